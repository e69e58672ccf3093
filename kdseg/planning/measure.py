"""Stages timed on samples of a configuration's volumes, in a private folder: seconds to start, and per unit of work."""

from __future__ import annotations

import logging
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import NamedTuple

from kdseg.config import Config, tasks
from kdseg.errors import KdsegError, masked
from kdseg.geometry import Triple
from kdseg.planning.actual import stored_bytes
from kdseg.planning.bench import Bench, Cost
from kdseg.planning.extents import Conversion, Extents, conversion, conversions
from kdseg.planning.jobs import Job
from kdseg.planning.networks import time_network, time_pretrained, time_training
from kdseg.planning.samples import Samples, sample_shapes
from kdseg.planning.sizes import halo_voxels
from kdseg.planning.timings import Timing, Timings, of_two, timed_options
from kdseg.results.manifests import read
from kdseg.running.resources import TRAIN_CORES

log = logging.getLogger(__name__)

CHAIN = ("fragments", "edges", "agglomerate", "relabel", "sweep", "score")
"""Stages after the affinities."""
PAIR: tuple[tasks.Kind, tasks.Kind] = ("raw", "labels")
"""Datasets of a sample."""


class _Sample(NamedTuple):
    """Manifests of one sample."""

    shape: Triple
    raw: Path
    labels: Path


def measure(config: Config, extents: Mapping[str, Extents], jobs: Sequence[Job], cores: int) -> Timings:
    """Time all kinds of work of some jobs, each on a small and a larger sample, on this machine.

    Each stage is run as the workflow runs it, with one worker, on a part of the first volume that is scored; networks
    with weights as they are before training, unless trained ones are given; affinities are made of ground truth, or of
    a phantom where there is none. What cannot be timed here is left out, with the reason.

    Args:
        config: of the run.
        extents: of its volumes as they are.
        jobs: whose work is to be timed.
        cores: that trainings may use.
    """
    wanted = list(dict.fromkeys(name for job in jobs for name in job.work))
    found, missing = dict[str, Timing](), dict[str, str]()
    volume = config.evaluate.volumes[0]
    shapes = sample_shapes(extents[volume].raw, config.storage.shard)
    with tempfile.TemporaryDirectory(prefix="kdseg-plan-") as folder:
        bench = Bench(Path(folder), min(cores, TRAIN_CORES))
        samples = Samples(bench, config)

        def attempt(names: Iterable[str], call: Callable[[], Mapping[str, Timing]]) -> None:
            asked = [name for name in names if name in wanted and name not in found]
            if not asked:
                return
            log.info("timing %s", ", ".join(asked))
            try:
                found.update(call())
            except KdsegError as error:
                missing.update(dict.fromkeys(asked, masked(str(error))))
            else:
                missing.update({name: "it is not timed yet" for name in asked if name not in found})

        for one in conversions(config, extents):
            attempt([one.work], partial(_conversion, samples, one))
        attempt(CHAIN, partial(_chain, samples, extents, volume, shapes))
        for model in dict.fromkeys(job.model for job in jobs if job.model):
            products = [name for name in wanted if name.startswith(f"predict {model} ")]
            attempt(products, partial(time_network, samples, model, products, extents[volume].voxel_size))
            training = [f"{what} {model}" for what in ("train", "validate", "budget")]
            attempt(training, partial(time_training, samples, extents, model))
        attempt(["pretrained"], partial(time_pretrained, samples))
    # another dataset of the same kind may have served
    missing = {name: why for name, why in missing.items() if name not in found}
    missing.update({name: "it cannot be timed on a sample" for name in wanted if name not in {**found, **missing}})
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    return Timings(machine=machine, options=timed_options(config), sample=shapes[1], timings=found, missing=missing)


def _conversion(samples: Samples, one: Conversion) -> dict[str, Timing]:
    """Time the conversion of parts of a dataset."""
    parts = []
    shapes = sample_shapes(one.dataset.shape, samples.config.storage.shard)
    # code is compiled at the first turn, once for all runs to come
    samples.part(one, shapes[0], turn="-first")
    for shape in shapes:
        manifest = samples.part(one, shape)
        parts.append(_facts(manifest, samples.costs[manifest], prod(shape)))
    return {one.work: of_two(*parts)}


def _chain(
    samples: Samples, extents: Mapping[str, Extents], volume: str, shapes: tuple[Triple, Triple]
) -> dict[str, Timing]:
    """Time all stages after the affinities; the first run of them compiles what is compiled, and does not count."""
    pairs: dict[str, list[dict[str, float]]] = {name: [] for name in CHAIN}
    for shape in (shapes[0], *shapes):
        for name, facts in _run_chain(samples, _sample(samples, extents, volume, shape), len(pairs["score"])).items():
            pairs[name].append(facts)
    return {name: of_two(small, large) for name, (_, small, large) in pairs.items()}


def _sample(samples: Samples, extents: Mapping[str, Extents], volume: str, shape: Triple) -> _Sample:
    """Return a part of a volume with its labels, or of a phantom if there are none of all its voxels."""
    whole, kinds = extents[volume], PAIR
    if "labels" in whole.datasets and whole.datasets["labels"].shape == whole.raw:
        raw, labels = (samples.part(conversion(samples.config, extents, volume, kind), shape) for kind in kinds)
    else:
        raw, labels = (samples.phantom(shape, whole.voxel_size, kind) for kind in kinds)
    return _Sample(shape, raw, labels)


def _run_chain(samples: Samples, sample: _Sample, turn: int) -> dict[str, dict[str, float]]:
    config, how = samples.config, {"storage": samples.config.storage.model_copy(update={"remote": None})}
    folder = samples.bench.folder / f"chain{turn}" / "x".join(map(str, sample.shape))
    affinities = samples.affinities(sample.raw, sample.labels)
    paths = {name: folder / f"{name}.json" for name in (*CHAIN, "segmentation", "agglomeration")}
    fragments, edges, tree = paths["fragments"], paths["edges"], paths["agglomeration"]
    last = config.agglomerate.thresholds[-1]
    fixed = config.segment.threshold if config.segment.threshold is not None else min(0.5, last)
    evaluate = config.evaluate.model_copy(update={"tune_roi": None})
    made = {"affinities": affinities, "fragments": fragments}
    graph = {"fragments": fragments, "agglomeration": tree}
    chain: dict[str, tasks.Task] = {
        "fragments": tasks.FragmentsTask(manifest=fragments, affinities=affinities, options=config.fragments, **how),
        "edges": tasks.EdgesTask(manifest=edges, **made, options=config.edges),
        "agglomerate": tasks.AgglomerateTask(
            manifest=tree, **made, edges=edges, options=config.agglomerate.model_copy(update={"edits": None})
        ),
        "relabel": tasks.SegmentTask(
            manifest=paths["segmentation"],
            **graph,
            edges=edges,
            options=config.segment.model_copy(update={"threshold": fixed}),
            **how,
        ),
        "sweep": tasks.SweepTask(manifest=paths["sweep"], **graph, labels=sample.labels, options=evaluate),
        "score": tasks.ScoreTask(
            manifest=paths["score"],
            segmentation=paths["segmentation"],
            labels=sample.labels,
            sweep=paths["sweep"],
            model="sample",
            volume="sample",
            options=evaluate,
        ),
    }
    found = {}
    for name, task in chain.items():
        cost = samples.bench.run(name, task)
        work = halo_voxels(sample.shape, config.fragments) if name == "fragments" else prod(sample.shape)
        found[name] = _facts(task.manifest, cost, work)
    return found


def _facts(manifest: Path, cost: Cost, work: float) -> dict[str, float]:
    voxels = read(manifest).stats.get("voxels", work)
    return {**cost._asdict(), "work": work, "bytes": stored_bytes(manifest), "voxels": float(voxels)}
