"""The configuration: one YAML file per dataset, validated here, passed to each rule by section.

Import rule: this package loads pydantic and PyYAML and nothing heavy, since the Snakefile imports it in
every job.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from kdseg.config.addresses import Address, Folder
from kdseg.config.base import Count, Name, Section, Step
from kdseg.config.cluster import ClusterOptions, LocalOptions, PartitionsOptions
from kdseg.config.compare import NO_COMPARE, CompareOptions, TrialOptions, trials
from kdseg.config.data import StorageOptions, VolumeOptions
from kdseg.config.matching import mismatches, uneven_chunks, uneven_tiles, unfit
from kdseg.config.mistakes import explain
from kdseg.config.networks import ModelOptions, TrainOptions
from kdseg.config.reading import read_values
from kdseg.config.secrets import hidden
from kdseg.config.sections import reaches, within_sections
from kdseg.config.segmentation import (
    VALIDATED,
    AgglomerateOptions,
    EdgesOptions,
    EvaluateOptions,
    FragmentsOptions,
    PredictOptions,
    SegmentOptions,
)
from kdseg.config.teachers import ForeignTeacher, check_foreign
from kdseg.config.tuning import NO_TUNING, TuneSegmentationOptions
from kdseg.errors import ConfigError
from kdseg.geometry import in_sections, is_multiple

__all__ = [
    "AgglomerateOptions",
    "CompareOptions",
    "Config",
    "EdgesOptions",
    "EvaluateOptions",
    "FragmentsOptions",
    "ModelOptions",
    "PredictOptions",
    "SegmentOptions",
    "StorageOptions",
    "TrialOptions",
    "TuneSegmentationOptions",
    "VolumeOptions",
    "explain",
    "load",
    "schema",
    "validate",
]


FOLDERS = ("volumes", "baseline", "logs", "benchmarks")
"""Folders of the results that are of no network."""


class Config(Section):
    """Everything one run needs."""

    results: Folder = "results"
    """Folder of all that is written; its path has letters, digits and `./_+=,@-` alone."""
    title: str = "kdseg"
    """Headline of the report."""
    overwrite: bool = False
    """Start a store over when its options or inputs changed, instead of refusing."""
    reuse: Folder | None = None
    """Folder of the results of an earlier run of this configuration, before its data grew or changed: blocks of
    predictions and fragments are taken from there where they would come out the same. Changes no result."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """Device of the networks. `auto`: CUDA where there is one, else CPU."""
    gpus: Count = 1
    """GPUs per training and prediction job, where there is CUDA."""
    workers: Count = 8
    """CPU processes per job, at most the cores that Snakemake is given; small volumes go faster with 1, since
    jobs then run side by side. Changes no result."""
    cluster: ClusterOptions = LocalOptions()
    """Processes of predictions: on this machine, in jobs on SLURM, or of a Dask scheduler. Changes no result."""
    cpu_cluster: ClusterOptions = LocalOptions()
    """Likewise of all other stages that go block by block."""
    partitions: Annotated[PartitionsOptions, Field(exclude=True)] = PartitionsOptions()
    """Where jobs of the workflow run, with `--profile profiles/slurm`. Changes no result."""
    sections: bool = False
    """Each z is an image of its own, as in stacks of 2-D images: nothing is learned, joined or scored across sections.
    Changes defaults, so that nothing else need say it: see docs/data.md."""
    offsets: Annotated[tuple[Step, ...], Field(min_length=2)] = (
        (-1, 0, 0),
        (0, -1, 0),
        (0, 0, -1),
        (-3, 0, 0),
        (0, -3, 0),
        (0, 0, -3),
        (-9, 0, 0),
        (0, -9, 0),
        (0, 0, -9),
    )
    """Affinity channels of every network; the first three are the nearest neighbours in z, y, x. With `sections` there
    are none along z."""
    storage: StorageOptions = StorageOptions()
    volumes: Annotated[dict[Name, VolumeOptions], Field(min_length=1)]
    models: dict[Name, ModelOptions] = Field(default_factory=dict)
    """Networks to train."""
    pretrained: dict[Name, Address] = Field(default_factory=dict)
    """Networks that are trained already, by names that are used like those of models: each is the name of one that
    `kdseg models` lists, or the path of a model file."""
    teachers: dict[Name, ForeignTeacher] = Field(default_factory=dict)
    """Teachers that are not trained here, by names that `train.teacher` may use beside those of models."""
    predict: PredictOptions = PredictOptions()
    fragments: FragmentsOptions = FragmentsOptions()
    edges: EdgesOptions = EdgesOptions()
    agglomerate: AgglomerateOptions = AgglomerateOptions()
    segment: SegmentOptions = SegmentOptions()
    evaluate: EvaluateOptions
    compare: CompareOptions | None = None
    """Methods of distillation to compare: `kdseg run CONFIG compare` trains the student with each."""

    tune_segmentation: TuneSegmentationOptions | None = None
    """Post-processing options to try: `kdseg run CONFIG tune_segmentation` says which suit each model best."""

    @cached_property
    def trials(self) -> dict[str, ModelOptions]:
        """The models that `compare` trains, by name; none without that section."""
        return trials(self.compare, self.models[self.compare.student]) if self.compare else {}

    @cached_property
    def all_models(self) -> dict[str, ModelOptions]:
        """The models of the configuration and those that `compare` trains."""
        return {**self.models, **self.trials}

    def expect_compare(self) -> CompareOptions:
        """Return the section `compare`.

        Raises:
            ConfigError: if there is none; the message says how to add one.
        """
        if self.compare is None:
            raise ConfigError(NO_COMPARE)
        return self.compare

    def expect_tune_segmentation(self) -> TuneSegmentationOptions:
        """Return the section `tune_segmentation`.

        Raises:
            ConfigError: if there is none; the message says how to add one.
        """
        if self.tune_segmentation is None:
            raise ConfigError(NO_TUNING)
        return self.tune_segmentation

    @property
    def tuned_options(self) -> Literal["none", "own", "shared"]:
        """Options of which search segmentations are made with; see `TuneSegmentationOptions.apply`."""
        return "none" if self.tune_segmentation is None else self.tune_segmentation.apply

    @property
    def compared_teachers(self) -> tuple[str, ...]:
        """Names of the models that teach the compared student; none without that section."""
        return self.own_teachers(self.compare.student) if self.compare else ()

    def own_teachers(self, model: str) -> tuple[str, ...]:
        """Return the names of the models that teach a model, trained here or before; `teachers` are left out."""
        train = self.all_models[model].train if model in self.all_models else None
        return () if train is None else tuple(name for name in train.teachers if name not in self.teachers)

    def taught_volumes(self, model: str) -> tuple[str, ...]:
        """Return the names of the volumes that a model's teachers are asked about."""
        train = self.all_models[model].train
        judged = () if self.volumes[train.validate_on].labelled else (train.validate_on,)
        return tuple(dict.fromkeys((*train.drawn, *judged)))

    @property
    def trial(self) -> TrialOptions:
        """Options by which `compare` scores a model."""
        compare, tune_on = self.expect_compare(), self.evaluate.tune_on
        if tune_on is None:
            raise ConfigError("compare chooses each threshold on a labelled volume: name it as `evaluate.tune_on`")
        return TrialOptions(
            tune_on=tune_on,
            volumes=compare.volumes or self.evaluate.volumes,
            shape=compare.shape,
            dust=self.evaluate.dust,
            boundary=self.models[compare.student].train.boundary,
            precision=self.predict.precision,
        )

    @model_validator(mode="before")
    @classmethod
    def _of_sections(cls, values: Any) -> Any:
        return within_sections(values) if isinstance(values, dict) and values.get("sections") is True else values

    @model_validator(mode="after")
    def _within_sections(self) -> Self:
        if self.sections and (problem := next(reaches(self), None)):
            raise ValueError(f"{problem}, since with `sections: true` each z is an image of its own")
        return self

    @model_validator(mode="after")
    def _reuses_another_folder(self) -> Self:
        if self.reuse is not None and Path(self.reuse).resolve() == Path(self.results).resolve():
            raise ValueError(
                f"reuse {self.reuse!r} is the folder `results`: keep that, and let `results` be another one"
            )
        return self

    @model_validator(mode="after")
    def _nearest_first(self) -> Self:
        axes = (1, 2) if self.sections else (0, 1, 2)
        nearest = [tuple(int(axis == a) for a in range(3)) for axis in axes]
        if [tuple(map(abs, offset)) for offset in self.offsets[: len(axes)]] != nearest:
            which, along = ("two", "y and x") if self.sections else ("three", "z, y and x")
            hint = "" if self.sections or not in_sections(self.offsets) else "; a stack of images has `sections: true`"
            raise ValueError(
                f"the first {which} offsets must be one-voxel steps along {along}, in this order; "
                f"got {self.offsets[: len(axes)]}{hint}"
            )
        if self.gpus > 1 and not self.device.startswith("cuda"):
            raise ValueError(f"gpus: {self.gpus} needs `device: cuda`, got {self.device!r}")
        if len(set(self.offsets)) != len(self.offsets) or (0, 0, 0) in self.offsets:
            raise ValueError(f"offsets must be distinct and not zero, got {self.offsets}")
        return self

    @model_validator(mode="after")
    def _blocks_are_whole_shards(self) -> Self:
        for name in ("predict", "fragments", "edges", "segment"):
            block = getattr(self, name).block
            if not is_multiple(block, self.storage.shard):
                raise ValueError(
                    f"{name}.block {block} must be a multiple of storage.shard {self.storage.shard}: two tasks "
                    "must never write one shard"
                )
        return self

    @model_validator(mode="after")
    def _threshold_is_reached(self) -> Self:
        threshold, last = self.segment.threshold, self.agglomerate.thresholds[-1]
        if threshold is not None and threshold > last:
            raise ValueError(
                f"segment.threshold {threshold} is above the last one of agglomerate.thresholds, {last}, up to which "
                "regions are merged: add it there"
            )
        return self

    @model_validator(mode="after")
    def _quantiles_have_histograms(self) -> Self:
        if self.agglomerate.percent is not None and not self.edges.histograms:
            raise ValueError(f"agglomerate.score {self.agglomerate.score} needs `edges.histograms: true`")
        if self.predict.fused and (self.edges.histograms or self.edges.long_range):
            raise ValueError(
                "predict.fused keeps sums of the nearest affinities only: remove it, or edges.histograms and "
                "edges.long_range"
            )
        return self

    @model_validator(mode="after")
    def _tuning_is_possible(self) -> Self:
        if self.tune_segmentation is None:
            return self
        self.tune_segmentation.expect_possible(self.fragments, self.agglomerate)
        quantiles = [score for score in self.tune_segmentation.score if score != "mean"]
        if self.predict.fused and quantiles:
            raise ValueError(
                f"predict.fused keeps sums of affinities only: remove it, or {quantiles} from tune_segmentation.score"
            )
        self.tune_segmentation.expect_large({name: volume.shape for name, volume in self.volumes.items()})
        if self.tuned_options != "none" and self.segment.threshold is not None:
            raise ValueError(
                f"segment.threshold {self.segment.threshold} and tune_segmentation.apply {self.tuned_options!r} both "
                "say the threshold: remove one of them"
            )
        return self

    @model_validator(mode="after")
    def _agglomeration_finds_what_it_needs(self) -> Self:
        """Refuse what the agglomeration would refuse hours later, for volumes that are segmented for certain.

        A chunk need not be a multiple where it covers the volume, and the extent of most volumes is in their files.
        """
        if self.predict.fused and self.agglomerate.engine == "waterz":
            raise ValueError(
                "agglomerate.engine waterz needs the affinities of the whole volume, which predict.fused does not "
                "store: use the engine `exact`, or remove `fused`"
            )
        if problem := next(uneven_chunks(self, {name: volume.shape for name, volume in self.volumes.items()}), None):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        if not self.models and not self.pretrained:
            raise ValueError("no network is named: give `models` to train, or `pretrained` ones")
        named = Counter((*self.models, *self.pretrained, *self.teachers))
        if reserved := {*FOLDERS} & named.keys():
            raise ValueError(f"the model names {sorted(reserved)} are folders of the results: choose others")
        if twice := sorted(name for name, times in named.items() if times > 1):
            raise ValueError(
                f"the names {twice} are given twice in `models`, `pretrained` and `teachers`: choose others"
            )
        if self.compare:
            self._expect(self.compare.student, self.models, "compare.student", "model")
            for volume in self.trial.volumes:
                self._expect_labelled(volume, "compare.volumes")
        for name, model in self.all_models.items():
            train = model.train
            truth = (*(train.volumes if train.supervised else ()), *(() if train.teachers else (train.validate_on,)))
            for volume in truth:
                self._expect_labelled(volume, f"models.{name}.train")
            for volume in (*train.volumes, train.validate_on, *train.unlabelled):
                self._expect(volume, self.volumes, f"models.{name}.train", "volume")
            for teacher in train.teachers:
                self._expect(teacher, named, f"models.{name}.train.teacher", "model")
                if teacher in self.teachers:
                    taught = self.taught_volumes(name)
                    check_foreign(f"models.{name}", teacher, self.teachers[teacher], train, taught, self.offsets)
            if problem := next(mismatches(self, name), None):
                raise ValueError(problem)
        for volume in self.evaluate.volumes:
            self._expect(volume, self.volumes, "evaluate.volumes", "volume")
        for volume in self.evaluate.tuned:
            self._expect_labelled(volume, "evaluate.tune_on")
        for region in self.tune_segmentation.regions if self.tune_segmentation else ():
            self._expect_labelled(region.volume, "tune_segmentation.regions")
        for model_name in self.evaluate.models:
            self._expect(model_name, {**self.models, **self.pretrained}, "evaluate.models", "model")
        if problem := next(chain(unfit(self), uneven_tiles(self)), None):
            raise ValueError(problem)
        if self.evaluate.tune_on is None and self.segment.threshold is None and self.tuned_options == "none":
            self._expect_validated_threshold()
        return self

    def _expect_validated_threshold(self) -> None:
        """Refuse an agglomeration whose thresholds are not those of validation, where its best one is taken."""
        section = self.agglomerate
        if section.score != "mean" or self.edges.long_range or section.thresholds[-1] < VALIDATED[-1]:
            raise ValueError(
                "without evaluate.tune_on the threshold is the best one of validation, which merges by the mean of the "
                f"nearest affinities up to {VALIDATED[-1]}: name a labelled volume as evaluate.tune_on, fix "
                "segment.threshold, or leave agglomerate.score, agglomerate.thresholds and edges.long_range as they are"
            )

    def _expect(self, name: str, known: Iterable[str], where: str, what: str) -> None:
        if name not in known:
            raise ValueError(f"{where} names the {what} {name!r}, but there are only {sorted(known)}")

    def _expect_labelled(self, name: str, where: str) -> None:
        self._expect(name, self.volumes, where, "volume")
        if not self.volumes[name].labelled:
            raise ValueError(f"{where} needs ground truth of the volume {name!r}: give it `labels`")

    def unlabelled_of(self, train: TrainOptions) -> tuple[str, ...]:
        """Return the names of the volumes whose crops a training draws without ground truth."""
        without = () if train.supervised else [name for name in train.volumes if not self.volumes[name].labelled]
        return tuple(dict.fromkeys((*without, *train.active_unlabelled)))


def validate(values: dict[str, Any]) -> Config:
    """Return the validated configuration; secrets in its addresses are `hidden`.

    Raises:
        ConfigError: one line per problem, with the path of the key and what was got.
    """
    try:
        return Config.model_validate(hidden(values))
    except ValidationError as error:
        raise ConfigError(explain(error, model=Config)) from None


def load(path: Path) -> Config:
    """Read and validate one YAML file; see `read_values`."""
    return validate(read_values(path))


def schema() -> str:
    """Return the JSON Schema of a configuration file, for editors."""
    return json.dumps(Config.model_json_schema(), indent=2) + "\n"
