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
from kdseg.planning.samples import Samples, growing, sample_shapes
from kdseg.planning.sizes import halo_voxels
from kdseg.planning.timings import Timing, Timings, enough, of_two, timed_options
from kdseg.results.manifests import read
from kdseg.running.resources import TRAIN_CORES

log = logging.getLogger(__name__)

CHAIN = ("fragments", "edges", "agglomerate", "sweep", "relabel", "score")
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
    a phantom where there is none. Where two samples take about equally long, and a job has more than they have, larger
    ones follow. What cannot be timed here is left out, with the reason.

    Args:
        config: of the run.
        extents: of its volumes as they are.
        jobs: whose work is to be timed; their volumes may be larger than they are.
        cores: that trainings may use.
    """
    load = os.getloadavg()[0]
    needed = dict[str, float]()
    for job in jobs:
        for name, amount in job.work.items():
            needed[name] = max(amount, needed.get(name, 0.0))
    found, missing = dict[str, Timing](), dict[str, str]()
    volume = config.evaluate.volumes[0]
    with tempfile.TemporaryDirectory(prefix="kdseg-plan-") as folder:
        bench = Bench(Path(folder), min(cores, TRAIN_CORES))
        samples = Samples(bench, config, needed)

        def attempt(names: Iterable[str], call: Callable[[], Mapping[str, Timing]]) -> None:
            asked = [name for name in names if name in needed and name not in found]
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
        attempt(CHAIN, partial(_chain, samples, extents, volume))
        for model in dict.fromkeys(job.model for job in jobs if job.model):
            products = {name: work for name, work in needed.items() if name.startswith(f"predict {model} ")}
            attempt(products, partial(time_network, samples, model, products, extents[volume].voxel_size))
            training = [f"{what} {model}" for what in ("train", "validate", "budget")]
            attempt(training, partial(time_training, samples, extents, model))
        attempt(["pretrained"], partial(time_pretrained, samples))
    # another dataset of the same kind may have served
    missing = {name: why for name, why in missing.items() if name not in found}
    missing.update({name: "it cannot be timed on a sample" for name in needed if name not in {**found, **missing}})
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    return Timings(
        machine=machine,
        load=load,
        options=timed_options(config),
        sample=samples.largest,
        timings=found,
        missing=missing,
    )


def _conversion(samples: Samples, one: Conversion) -> dict[str, Timing]:
    """Time the conversion of parts of a dataset."""

    def converted(shape: Triple) -> dict[str, float]:
        manifest = samples.part(one, shape)
        return _facts(manifest, samples.costs[manifest], one.amount(shard, shape))

    shard = samples.config.storage.shard
    shape, larger = sample_shapes(one.dataset.shape, shard)
    # code is compiled at the first turn, once for all runs to come
    samples.part(one, shape, turn="-first")
    small = converted(shape)
    for shape in growing(larger, None if one.dataset.source == "phantom" else one.dataset.shape):
        large = converted(shape)
        if enough(small, large, samples.needed[one.work]):
            break
    return {one.work: of_two(small, large)}


def _chain(samples: Samples, extents: Mapping[str, Extents], volume: str) -> dict[str, Timing]:
    """Time all stages after the affinities; the first run of them compiles what is compiled, and does not count."""
    shape, larger = sample_shapes(extents[volume].raw, samples.config.storage.shard)
    part, samples.largest = _sample(samples, extents, volume, shape), shape
    _, small = (_run_chain(samples, part, turn) for turn in ("first", "second"))
    part = _sample(samples, extents, volume, larger)
    for shape in growing(larger):
        sample = part if shape == larger else _Sample(shape, *samples.mirrored(part.raw, part.labels, shape))
        samples.largest = shape
        large = _run_chain(samples, sample, "second")
        if all(enough(small[name], large[name], samples.needed.get(name, 0.0)) for name in CHAIN):
            break
    return {name: of_two(small[name], large[name]) for name in CHAIN}


def _sample(samples: Samples, extents: Mapping[str, Extents], volume: str, shape: Triple) -> _Sample:
    """Return a part of a volume with its labels, or of a phantom if there are none of all its voxels."""
    whole, kinds = extents[volume], PAIR
    if "labels" in whole.datasets and whole.datasets["labels"].shape == whole.raw:
        raw, labels = (samples.part(conversion(samples.config, extents, volume, kind), shape) for kind in kinds)
    else:
        raw, labels = (samples.phantom(shape, whole.voxel_size, kind) for kind in kinds)
    return _Sample(shape, raw, labels)


def _run_chain(samples: Samples, sample: _Sample, turn: str) -> dict[str, dict[str, float]]:
    config, how = samples.config, {"storage": samples.config.storage.model_copy(update={"remote": None})}
    folder = samples.bench.folder / f"chain-{turn}" / "x".join(map(str, sample.shape))
    affinities = samples.affinities(sample.raw, sample.labels)
    paths = {name: folder / f"{name}.json" for name in (*CHAIN, "segmentation", "agglomeration")}
    fragments, edges, tree = paths["fragments"], paths["edges"], paths["agglomeration"]
    evaluate = config.evaluate.model_copy(update={"tune_roi": None})
    made = {"affinities": affinities, "fragments": fragments}
    graph = {"fragments": fragments, "agglomeration": tree}
    chain: dict[str, tasks.Task] = {
        "fragments": tasks.FragmentsTask(manifest=fragments, affinities=affinities, options=config.fragments, **how),
        "edges": tasks.EdgesTask(manifest=edges, **made, options=config.edges),
        "agglomerate": tasks.AgglomerateTask(
            manifest=tree, **made, edges=edges, options=config.agglomerate.model_copy(update={"edits": None})
        ),
        "sweep": tasks.SweepTask(manifest=paths["sweep"], **graph, labels=sample.labels, options=evaluate),
        "relabel": tasks.SegmentTask(
            manifest=paths["segmentation"],
            **graph,
            edges=edges,
            sweep=paths["sweep"],  # segments as large as those of a run, which compress as well
            options=config.segment,
            **how,
        ),
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
