"""Tasks, each the work of one stage as one value: inputs by their roles, options, and how to run it.

A rule of the workflow writes its task as JSON; by hand its fields are flags, which `kdseg.cli` makes of them. Three
fields mean the same in every task that has them:

- ``manifest``: the small JSON file that is written last; what the stage makes lies beside it
- ``workers``: processes; no result depends on their number.
- ``overwrite``: clear what other options or inputs made, instead of refusing.

Every stage raises `ClaimError` if the result is of other options or inputs, or is being written, and one that works
block by block `StageError` if a block failed; its docstring lists what it raises besides.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from kdseg.config import (
    AgglomerateOptions,
    Config,
    EdgesOptions,
    EvaluateOptions,
    FragmentsOptions,
    ModelOptions,
    PredictOptions,
    SegmentOptions,
    StorageOptions,
    TrialOptions,
    TuneSegmentationOptions,
    VolumeOptions,
    load,
)
from kdseg.config.base import Count, Positive, Section, Step
from kdseg.config.cluster import ClusterOptions, LocalOptions
from kdseg.config.data import RoiOptions
from kdseg.config.teachers import NetworkTeacher, SegmentationTeacher

Kind = Literal["raw", "labels", "baseline", "mask"]
"""Datasets of a volume; a baseline is somebody else's segmentation, stored like labels."""
Product = Literal["affinities", "affinities_flips", "affinities_all", "embedding"]
"""Predictions of a network: affinities, as they are or averaged over images of each tile, or the embedding."""


def _device(name: Any) -> Any:
    if not isinstance(name, str) or not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError(f"expected auto, cpu, cuda or cuda:N, got {name!r}")
    return name


def region(text: Any) -> Any:
    """Return the box that ``z0:z1,y0:y1,x0:x1`` means."""
    if not isinstance(text, str):
        return text
    match = re.fullmatch(r"(\d+):(\d+),(\d+):(\d+),(\d+):(\d+)", text.replace(" ", ""))
    bounds = [int(v) for v in match.groups()] if match else []
    first, last = bounds[::2], bounds[1::2]
    if not match or any(e <= o for o, e in zip(first, last, strict=True)):
        raise ValueError(f"expected z0:z1,y0:y1,x0:x1 with z0 < z1 and so on, got {text!r}")
    return {"offset": first, "shape": [e - o for o, e in zip(first, last, strict=True)]}


def steps(text: Any) -> Any:
    """Return the steps that ``-1,0,0 0,-1,0`` means."""
    if not isinstance(text, str):
        return text
    try:
        return [[int(value) for value in step.split(",")] for step in text.split()]
    except ValueError:
        raise ValueError(f"expected steps like '-1,0,0 0,-1,0 0,0,-1', got {text!r}") from None


def _config(text: Any) -> Any:
    """Return the configuration of a YAML file."""
    return load(Path(text)) if isinstance(text, str) else text


def _json(manifest: Path) -> Path:
    if manifest.suffix != ".json":
        raise ValueError(f"expected a path that ends in .json, beside which the result will lie: name {manifest}.json")
    return manifest


Device = Annotated[str, BeforeValidator(_device)]
Offsets = Annotated[tuple[Step, ...], BeforeValidator(steps)]


class VolumeInputs(Section):
    """The manifests of one volume."""

    raw: Path
    """Of raw data."""
    labels: Path | None = None
    """Of ground truth, if there is any."""


class Task(Section):
    """The work of one stage that leaves a manifest."""

    manifest: Annotated[Path, AfterValidator(_json)]
    """Manifest to write, a path that ends in .json."""
    overwrite: bool = False
    """Clear what other options or inputs made."""


class BlockTask(Task):
    """A task that is done block by block."""

    workers: Count = 1
    """Processes; changes no result."""
    cluster: ClusterOptions = LocalOptions()
    """Place where the processes run: the section `cluster` or `cpu_cluster`, as JSON."""


class ReusingTask(BlockTask):
    """A task that can take blocks from an earlier result."""

    reuse: Path | None = None
    """Manifest of an earlier result of the same options, whose inputs lie where those of this one do, seen from it. Its
    blocks are taken where all that they follow from is as it was; changes no result."""


class ConvertTask(BlockTask):
    """Raw data, labels or a mask of any format → OME-Zarr."""

    kind: Kind
    """Raw data as uint8, labels and a baseline as uint64, a mask as 0 and 1."""
    options: VolumeOptions
    """Source of the volume, and the part of it to take."""
    storage: StorageOptions = StorageOptions()


class LearnTask(Task):
    """A task that trains a network."""

    name: str
    """Of the network, noted in its file."""
    options: ModelOptions
    """Network, heads, training."""
    offsets: Offsets
    """One affinity channel each: '-1,0,0 0,-1,0 0,0,-1'."""
    volumes: dict[str, VolumeInputs]
    """Manifests of the volumes, by name."""
    teachers: dict[str, Path] = Field(default_factory=dict)
    """Manifests of networks to distil from, by name, where they predict online."""
    foreign: dict[str, NetworkTeacher | SegmentationTeacher] = Field(default_factory=dict)
    """Networks of others, or a segmentation, to distil from, by name."""
    stored: dict[str, dict[str, dict[Product | Literal["segmentation"], Path]]] = Field(default_factory=dict)
    """Manifests of what teachers made, where that is stored: by teacher, volume and product."""
    instances: dict[str, Path] = Field(default_factory=dict)
    """Manifests of segmentations by the first teacher, of volumes without ground truth, by volume."""
    device: Device = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: Count = 1
    """CPU threads. Their number may change the last bit of a float: a run goes on with as many as it began with."""


class TrainTask(LearnTask):
    """Volumes → one network."""

    fragments: FragmentsOptions = FragmentsOptions()
    """Options of the fragments in validation; the run's own section."""


class PretrainedTask(Task):
    """A network that is trained already → the same as a result, for the stages that go on from it."""

    file: str
    """The name of a network that `kdseg models` lists, or the path of a model file."""
    offsets: Offsets
    """Of the configuration: one affinity channel each, '-1,0,0 0,-1,0 0,0,-1'."""


class RateTask(LearnTask):
    """Range test: losses of a network while its learning rate rises → the rate that lets them fall the fastest."""

    low: Positive = 1e-5
    """Rate of the first step."""
    high: Positive = 1.0
    """Rate of the last step; the test ends before where the loss is four times its least."""
    steps: Annotated[int, Field(ge=20)] = 100
    """Steps of the optimiser."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        return self


class NetworkTask(BlockTask):
    """A task that runs a network over a volume."""

    raw: Path
    """Manifest of uint8 raw data."""
    model: Path
    """Manifest of a network, a model file, or the name of a shipped network."""
    mask: Path | None = None
    """Manifest of a volume on the raw data's voxels, integers or bools, that is 0 where there is no tissue."""
    options: PredictOptions = PredictOptions()
    storage: StorageOptions = StorageOptions()
    device: Device = "auto"
    """auto, cpu, cuda or cuda:N."""
    gpus: Count = 1
    """Processes on CUDA, one GPU each; `workers` are those on a CPU, one of whose threads computes."""


class PredictTask(NetworkTask, ReusingTask):
    """Raw data and a network → affinities."""

    product: Product = "affinities"
    """Affinities, as they are or averaged over images of each tile, or the embedding."""
    roi: Annotated[RoiOptions | None, BeforeValidator(region)] = None
    """Predict these voxels only: z0:z1,y0:y1,x0:x1; the others are 0. The same bytes as without it."""

    @model_validator(mode="after")
    def _stored(self) -> Self:
        if self.options.fused:
            raise ValueError(
                "got options.fused, but a prediction is stored: leave it out, or make fragments of `raw` and `model` "
                "with `kdseg fragments`"
            )
        return self


class TunedTask(BlockTask):
    """A task whose options a search may choose."""

    tuned: Path | None = None
    """Manifest of a search (`kdseg tune-segmentation`), whose options take the place of those given."""


class FragmentsTask(TunedTask, ReusingTask):
    """Affinities, stored or computed by a network → supervoxels."""

    affinities: Path | None = None
    """Manifest of uint8 affinities; or give `raw` and `model`."""
    raw: Path | None = None
    """Manifest of uint8 raw data, for affinities that are computed and never stored."""
    model: Path | None = None
    """Manifest of the network that computes them, a model file, or the name of a shipped network."""
    mask: Path | None = None
    """Manifest of a volume on the affinities' voxels, integers or bools, that is 0 where there is no tissue."""
    options: FragmentsOptions = FragmentsOptions()
    predict: PredictOptions = PredictOptions()
    storage: StorageOptions = StorageOptions()
    device: Device = "auto"
    """Of the network: auto, cpu, cuda or cuda:N."""
    gpus: Count = 1
    """Processes on CUDA, one GPU each; `workers` are those on a CPU."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        self.source()
        return self

    def source(self) -> Path | NetworkTask:
        """Return the manifest of the affinities, or how a network computes them.

        Raises:
            ValueError: if neither is given, or both.
        """
        if self.affinities is not None and self.raw is None and self.model is None:
            if self.predict != PredictOptions():
                raise ValueError("got options of `predict`, but affinities that are stored: leave them out")
            return self.affinities
        if self.affinities is not None or self.raw is None or self.model is None:
            raise ValueError("expected either affinities, or raw and model")
        return NetworkTask(
            manifest=self.manifest,
            workers=self.workers,
            cluster=self.cluster,
            raw=self.raw,
            model=self.model,
            mask=self.mask,
            options=self.predict,
            storage=self.storage,
            device=self.device,
            gpus=self.gpus,
        )


class EdgesTask(TunedTask):
    """Affinities and supervoxels → the region graph."""

    affinities: Path | None = None
    """Manifest of the affinities; not where they were computed for the fragments, which keep what is needed."""
    fragments: Path
    """Manifest of the fragments."""
    options: EdgesOptions = EdgesOptions()


class AgglomerateTask(TunedTask):
    """The region graph → the dendrogram, node by node of a tree."""

    affinities: Path | None = None
    """Manifest of the affinities, read by the engine `waterz` only, which needs them stored."""
    fragments: Path
    """Manifest of the fragments."""
    edges: Path
    """Manifest of the region graph."""
    options: AgglomerateOptions = AgglomerateOptions()


class SegmentTask(TunedTask):
    """Supervoxels and the dendrogram → the segmentation."""

    fragments: Path
    """Manifest of the fragments."""
    edges: Path
    """Manifest of the region graph, for the segments' sizes and places."""
    agglomeration: Path
    """Manifest of the dendrogram."""
    sweep: Path | None = None
    """Manifest of the sweep that the threshold is chosen from; this, `model` or `tuned` is needed unless
    options.threshold is set."""
    model: Path | None = None
    """Manifest of the network, whose training chose a threshold in its validation."""
    options: SegmentOptions = SegmentOptions()
    storage: StorageOptions = StorageOptions()


class SweepTask(BlockTask):
    """VOI and ARAND at every threshold."""

    fragments: Path
    """Manifest of the fragments."""
    agglomeration: Path
    """Manifest of the dendrogram."""
    labels: Path
    """Manifest of the ground truth."""
    options: EvaluateOptions
    """The section `evaluate`: dust, thresholds, block."""
    part: bool = False
    """Choose the threshold on the part `tune_roi` of the options."""
    sections: bool = False
    """Each z is an image of its own: a label in two sections is two."""


class ScoreTask(BlockTask):
    """VOI and ARAND of a segmentation of the workflow."""

    segmentation: Path
    """Manifest of the segmentation."""
    labels: Path
    """Manifest of the ground truth."""
    sweep: Path | None = None
    """Manifest of this volume's sweep; its best row is noted too, unless it is of a part."""
    model: str
    """Name of the model, for the report."""
    volume: str
    """Name of the volume, for the report."""
    options: EvaluateOptions
    """The section `evaluate`: dust, block, bootstrap."""
    sections: bool = False
    """Each z is an image of its own: an id in two sections is two, and each section is scored, too."""


class TunedVolume(Section):
    """The manifests of one volume to tune on."""

    affinities: Path
    """Of uint8 affinities."""
    labels: Path
    """Of ground truth."""
    mask: Path | None = None
    """Of a volume on the affinities' voxels, integers or bools, that is 0 where there is no tissue."""


class TuneSegmentationTask(BlockTask):
    """Affinities and ground truth → the post-processing options and the threshold that suit them best."""

    volumes: dict[str, TunedVolume]
    """Manifests of the volumes, by name."""
    options: TuneSegmentationOptions
    """The section `tune_segmentation`: parts of the volumes, and values to try."""
    fragments: FragmentsOptions = FragmentsOptions()
    """Options of the fragments that are not searched; the run's own section."""
    edges: EdgesOptions = EdgesOptions()
    """The run's own section: whether there are long offsets."""
    agglomerate: AgglomerateOptions = AgglomerateOptions()
    """The run's own section: the score, if it is not searched, and the last threshold."""
    dust: Annotated[int, Field(ge=0)] = 0
    """Ground-truth objects of fewer voxels within a part are left out."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self.options.expect_possible(self.fragments, self.agglomerate)
        return self


class TrialTask(Task):
    """A network → its scores on crops, in memory, and what its training cost."""

    model: Path
    """Manifest of the network."""
    name: str
    """Of the network, for the report."""
    volumes: dict[str, VolumeInputs]
    """Manifests of the volumes, by name."""
    options: TrialOptions
    """Volumes, extent of the crops, precision."""
    fragments: FragmentsOptions = FragmentsOptions()
    """Options of the fragments of crops; the run's own section."""
    device: Device = "auto"
    """auto, cpu, cuda or cuda:N."""


class ChooseTask(Task):
    """Trials of one method at several learning rates → the rate of least affinity loss on the tuning volume."""

    trials: dict[Positive, tuple[Path, ...]]
    """Manifests of the trials at each rate, of equal seeds."""


class PageTask(Section):
    """All that is below a folder of results → one HTML page."""

    config: Annotated[Config, BeforeValidator(_config)]
    """The whole configuration: the path of a YAML file, or JSON."""
    out: Path
    """HTML file to write; the others lie beside it."""


class ReportTask(PageTask):
    """The page of a run, with `report.txt` and `summary.json` beside it."""


class CompareTask(PageTask):
    """The page that compares methods of distillation, and the same as text, CSV, JSON and SVG beside it."""
