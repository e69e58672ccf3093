"""The jobs of a run, as the rules of the workflow make them, with what each has to do: no data are read, none run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from kdseg.config import Config
from kdseg.config.tasks import Kind
from kdseg.config.teachers import StoredTeacher
from kdseg.geometry import Triple
from kdseg.planning import sizes
from kdseg.planning.extents import Conversion, Extents, conversion, taught_conversion
from kdseg.planning.places import place_of
from kdseg.running import resources


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        stage: command that it runs.
        manifest: path that it writes, below the folder of results.
        model: name of the network, if there is one.
        volume: name of the volume, if there is one.
        voxels: of the volume; of a training those of its crops.
        blocks: tasks that workers share; steps of a training.
        work: amounts by the names of what was timed.
        needs: manifests that have to be there.
        cores: threads that the rule asks for.
        workers: processes that share the blocks; None: those of a Dask scheduler, nobody knows how many.
        gpus: that it takes, also in jobs of its own on SLURM; None: likewise.
        mb: megabytes that the rule asks for.
        size: bytes of what it stores where they are known without timing; None: in proportion to the sample.
    """

    stage: str
    manifest: str
    model: str = ""
    volume: str = ""
    voxels: int = 0
    blocks: int = 1
    work: Mapping[str, float] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    cores: int = 1
    workers: int | None = 1
    gpus: int | None = 0
    mb: int = 0
    size: int | None = None


def jobs(config: Config, extents: Mapping[str, Extents], gpus: int = 0) -> list[Job]:
    """Return the jobs up to the report, each after those that it needs; the report itself takes seconds.

    Args:
        config: of the run.
        extents: of its volumes, by name.
        gpus: that a training or a prediction takes, 0 on a CPU.
    """
    made = _Jobs(config, extents, gpus)
    for model in config.evaluate.models:
        for volume in config.evaluate.volumes:
            made.add_scores(model, volume)
    for volume in config.evaluate.volumes:
        if config.volumes[volume].baseline and config.volumes[volume].labelled:
            made.add_baseline(volume)
    return list(made.found.values())


class _Jobs:
    """Jobs by their manifests, each added once, after what it needs."""

    def __init__(self, config: Config, extents: Mapping[str, Extents], gpus: int) -> None:
        self.config, self.extents, self.gpus = config, extents, gpus
        self.found: dict[str, Job] = {}

    def _add(self, job: Job) -> str:
        self.found.setdefault(job.manifest, job)
        return job.manifest

    def _placed(self, stage: str, blocks: int, predicts: bool = False) -> dict[str, Any]:
        """Return the blocks of a job, and what it asks for where its stage works block by block."""
        place = place_of(self.config, blocks, predicts, self.gpus)
        return {**place._asdict(), "blocks": blocks, "mb": resources.stage_mb(self.config, stage, place.cores)}

    def dataset(self, volume: str, kind: Kind) -> str:
        """Add the conversion of one dataset; return its manifest."""
        one = conversion(self.config, self.extents, volume, kind)
        return self._converted(one, f"volumes/{volume}/{kind}.json")

    def _converted(self, one: Conversion, manifest: str) -> str:
        shape, phantom = one.dataset.shape, one.options.phantom
        stored = phantom is None or phantom.stored
        shard = self.config.storage.shard
        return self._add(
            Job(
                "convert",
                manifest,
                model=one.teacher,
                volume=one.volume,
                voxels=prod(shape),
                work={one.work: one.amount(shard) if stored else 0},
                size=None if stored else 0,
                **self._placed("convert", sizes.block_count(shape, one.block(shard)) if stored else 0),
            )
        )

    def _mask(self, volume: str) -> tuple[str, ...]:
        return (self.dataset(volume, "mask"),) if self.config.volumes[volume].mask else ()

    def model(self, model: str) -> str:
        """Add the training of a network, and all that it learns from; return its manifest."""
        manifest = f"{model}/model.json"
        if manifest in self.found:
            return manifest
        if model in self.config.pretrained:
            return self._add(Job("pretrained", manifest, model=model, work={"pretrained": 1}, mb=1_000, size=0))
        train = self.config.all_models[model].train
        named = dict.fromkeys((*train.volumes, train.validate_on, *train.active_unlabelled))
        needs = [self.dataset(name, "raw") for name in named]
        truth = (*train.volumes, train.validate_on)
        needs += [
            self.dataset(name, "labels") for name in named if name in truth and self.config.volumes[name].labelled
        ]
        for teacher in train.teachers:
            needs += self._taught(model, teacher)
        steps = train.steps or 0
        amounts = {f"train {model}": float(steps), f"validate {model}": -(-steps // train.validate_every)}
        return self._add(
            Job(
                "train",
                manifest,
                model=model,
                voxels=steps * train.batch * train.accumulate * prod(train.crop),
                blocks=steps,
                work={f"budget {model}": train.seconds} if train.seconds else amounts,
                needs=tuple(dict.fromkeys(needs)),
                cores=resources.TRAIN_CORES,
                gpus=self.gpus,
                mb=resources.training_mb(train),
            )
        )

    def _taught(self, model: str, teacher: str) -> list[str]:
        train, foreign = self.config.all_models[model].train, self.config.teachers
        needs = []
        if train.teaching.outputs == "stored":
            other = foreign.get(teacher)
            products = (other.product,) if isinstance(other, StoredTeacher) else train.stored_products
            for volume in self.config.taught_volumes(model):
                needs += [self.product(teacher, volume, product) for product in products]
        elif teacher not in foreign:
            needs.append(self.model(teacher))
        if train.teaching.instances == "segmentation" and teacher == train.teachers[0]:
            needs += [self.segmentation(teacher, volume) for volume in self.config.unlabelled_of(train)]
        return needs

    def product(self, model: str, volume: str, product: str = "affinities") -> str:
        """Add what a teacher or a network says of a volume, where it is stored; return its manifest."""
        if product == "segmentation":
            return self.segmentation(model, volume)
        config, raw = self.config, self.dataset(volume, "raw")
        shape = self.extents[volume].raw
        channels, item = len(config.offsets), 1
        if product == "embedding":
            channels, item = config.all_models[model].heads.embedding, 2
        foreign = model in config.teachers
        needs = (raw,) if foreign else (raw, self.model(model), *self._mask(volume))
        stage, name = ("adopt", "adopt") if foreign else ("predict", f"predict {model} {product}")
        block = config.storage.shard if foreign else config.predict.block
        return self._add(
            Job(
                stage,
                f"{model}/{volume}/{product}.json",
                model=model,
                volume=volume,
                voxels=prod(shape),
                work={name: prod(shape) if foreign else sizes.tiled_voxels(shape, config.predict.tile)},
                needs=needs,
                size=sizes.uncompressed_bytes(shape, channels, item, config.storage),
                **self._placed(stage, sizes.block_count(shape, block), predicts=not foreign),
            )
        )

    def _tuned(self, model: str) -> tuple[str, ...]:
        config = self.config
        if config.tuned_options == "none":
            return ()
        models = config.evaluate.models if config.tuned_options == "shared" else (model,)
        needs = []
        for region in config.expect_tune_segmentation().regions:
            needs += [self.product(one, region.volume) for one in models]
            needs += [self.dataset(region.volume, "labels"), *self._mask(region.volume)]
        manifest = "tuned.json" if config.tuned_options == "shared" else f"{model}/tuned.json"
        one = Job(
            "tune-segmentation",
            manifest,
            model="" if config.tuned_options == "shared" else model,
            work={"tune-segmentation": 1},
            needs=tuple(dict.fromkeys(needs)),
            **{**self._placed("tune-segmentation", 1), "mb": resources.SEARCH_MB},
        )
        return (self._add(one),)

    def _stage(
        self, stage: str, manifest: str, block: Triple, needs: tuple[str, ...], work: Mapping[str, float] | None = None
    ) -> str:
        model, volume, _ = manifest.split("/")
        shape, config = self.extents[volume].raw, self.config
        labels = self.extents[volume].datasets.get("labels")
        counted = labels.shape if labels is not None and stage in ("sweep", "score") else shape
        blocks = sizes.block_count(counted, block)
        if stage == "agglomerate":
            blocks = sizes.node_count(shape, config.agglomerate, config.fragments.block)
        fused = stage == "fragments" and config.predict.fused
        return self._add(
            Job(
                stage,
                manifest,
                model=model,
                volume=volume,
                voxels=prod(counted),
                work=work or {stage: prod(counted)},
                needs=needs,
                **self._placed(stage, blocks, predicts=fused),
            )
        )

    def fragments(self, model: str, volume: str) -> str:
        """Add fragments; return their manifest."""
        config, shape = self.config, self.extents[volume].raw
        work: dict[str, float] = {"fragments": sizes.halo_voxels(shape, config.fragments)}
        if config.predict.fused:
            source: tuple[str, ...] = (self.dataset(volume, "raw"), self.model(model))
            predicted = sizes.halo_tiled_voxels(shape, config.fragments, config.predict.tile)
            work[f"predict {model} affinities"] = predicted
        else:
            source = (self.product(model, volume),)
        needs = (*self._tuned(model), *self._mask(volume), *source)
        return self._stage("fragments", f"{model}/{volume}/fragments.json", config.fragments.block, needs, work)

    def agglomeration(self, model: str, volume: str) -> tuple[str, str, str]:
        """Add all up to the dendrogram; return the manifests of fragments, edges and dendrogram."""
        folder, config = f"{model}/{volume}", self.config
        fragments = self.fragments(model, volume)
        edges = self._stage("edges", f"{folder}/edges.json", config.edges.block, (fragments,))
        tree = self._stage("agglomerate", f"{folder}/agglomeration.json", config.agglomerate.chunk, (fragments, edges))
        return fragments, edges, tree

    def segmentation(self, model: str, volume: str) -> str:
        """Add all up to the segmentation, or the conversion of one that teaches; return its manifest."""
        manifest = f"{model}/{volume}/segmentation.json"
        if model in self.config.teachers:
            return self._converted(taught_conversion(self.config, self.extents, volume, model), manifest)
        config, needs = self.config, self.agglomeration(model, volume)
        more: tuple[str, ...] = ()
        if config.segment.threshold is None and config.tuned_options == "none":
            tune_on = config.evaluate.tune_on
            more = (self.model(model) if tune_on is None else self.sweep(model, tune_on),)
        return self._stage("relabel", manifest, config.segment.block, (*needs, *more))

    def sweep(self, model: str, volume: str) -> str:
        """Add a sweep over thresholds; return its manifest."""
        fragments, _, tree = self.agglomeration(model, volume)
        needs = (fragments, tree, self.dataset(volume, "labels"))
        return self._stage("sweep", f"{model}/{volume}/sweep.json", self.config.evaluate.block, needs)

    def add_scores(self, model: str, volume: str) -> None:
        """Add the scores of a segmentation, or it alone where nobody knows the truth."""
        segmentation = self.segmentation(model, volume)
        if self.config.volumes[volume].labelled:
            needs = (segmentation, self.dataset(volume, "labels"), self.sweep(model, volume))
            self._stage("score", f"{model}/{volume}/scores.json", self.config.evaluate.block, needs)

    def add_baseline(self, volume: str) -> None:
        """Add the scores of somebody else's segmentation."""
        needs = (self.dataset(volume, "baseline"), self.dataset(volume, "labels"))
        self._stage("score", f"baseline/{volume}/scores.json", self.config.evaluate.block, needs)
