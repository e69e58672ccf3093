"""Measurements of training on a GPU, in order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from job import Job
from step_time import Case, batch_of, cases, step_of
from timing import Item, rounded, timed, wait
from volumes import VOXEL_SIZE, mirrored

from kdseg.config.networks import TrainOptions
from kdseg.networks.models.device import deterministic
from kdseg.training.sampling import Crops, loader
from kdseg.volumes.volume import create_volume

FIRST = ("student alone", "teacher", "soft_affinity")
WORKERS = (4, 12, 0)


def items(job: Job) -> Iterator[Item]:
    """Yield what is measured, in order of worth."""
    known = {case.name: case for case in cases()}
    first = [known[name] for name in FIRST]
    others = [case for case in known.values() if case.name not in FIRST]
    few, many, crop, large = (1, 2, 16, 32) if job.rehearse else (2, 8, 64, 128)
    for case in first:
        yield _step(job, case, few, crop)
    for name, workers in (("student alone", WORKERS), ("soft_affinity", WORKERS[:2])):
        for number in (2, 0) if job.rehearse else workers:
            yield _waiting(job, known[name], number, few, crop)
    for case in others[:3] if job.rehearse else others:
        yield _step(job, case, few, crop)
    for case in first:
        yield _step(job, case, many, crop)
    yield _step(job, known["teacher"], few, large, 5)
    yield _waiting(job, known["student alone"], 2 if job.rehearse else 12, many, crop)
    for case in first[:2]:
        yield _step(job, case, few, crop, kernels="any")
    for case in () if job.rehearse else others:
        yield _step(job, case, many, crop)


def _step(job: Job, case: Case, batch: int, crop: int, seconds: float = 2, kernels: str = "deterministic") -> Item:
    key = f"step/{case.name}/{batch}x{crop}" + ("" if kernels == "deterministic" else f"/{kernels} kernels")
    return Item(key, seconds, partial(step, job, case, batch, crop, kernels))


def _waiting(job: Job, case: Case, workers: int, batch: int, crop: int) -> Item:
    key = f"loader/{workers}/{case.name}/{batch}x{crop}"
    return Item(key, 1 if job.rehearse else 8, partial(waiting, job, case, workers, batch, crop))


def step(job: Job, case: Case, batch: int, crop: int, kernels: str) -> dict[str, Any]:
    """Return how long a step takes on crops that are on the device."""
    device = torch.device(job.device)
    run, parameters = step_of(case, crop, batch, device)
    crops = batch_of(crop, batch, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with deterministic() if kernels == "deterministic" else nullcontext():
        took = timed(lambda: run(crops).item(), device, 0.0 if job.rehearse else 0.4, most=20)
    return {
        "case": case.name,
        "batch": batch,
        "crop": crop,
        "kernels": kernels,
        "ms": rounded(took.ms),
        "ms_least_most": [rounded(took.low), rounded(took.high)],
        "mvox_per_s": rounded(batch * crop**3 / took.ms / 1e3),
        "parameters": parameters,
        "peak_mb": rounded(torch.cuda.max_memory_allocated() / 1e6) if device.type == "cuda" else None,
    }


def waiting(job: Job, case: Case, workers: int, batch: int, crop: int) -> dict[str, Any]:
    """Return how fast crops are prepared, how long a step takes, and how long steps wait for crops when both go on."""
    device, seconds = torch.device(job.device), 0.3 if job.rehearse else 1.5
    run, _ = step_of(case, crop, batch, device)
    begun = time.perf_counter()
    batches = iter(loader(_crops(job, workers, batch, crop), 0))
    one = next(batches).to(device)
    first_s = time.perf_counter() - begun
    for _ in range(2 * workers):  # they were prepared while the others began
        next(batches)
    prepared, begun = 0, time.perf_counter()
    while (passed := time.perf_counter() - begun) < seconds:
        next(batches)
        prepared += batch
    crops_per_s = prepared / passed
    copied = timed(lambda: (next(batches).to(device), wait(device)), torch.device("cpu"), 0.0)
    with deterministic():
        computed = timed(lambda: run(one).item(), device, seconds / 3, most=20)
        steps, waited, begun = 0, 0.0, time.perf_counter()
        while (passed := time.perf_counter() - begun) < seconds:
            before = time.perf_counter()
            given = next(batches).to(device)
            waited += time.perf_counter() - before
            run(given).item()
            steps += 1
    return {
        "case": case.name,
        "workers": workers,
        "batch": batch,
        "crop": crop,
        "first_batch_s": rounded(first_s),
        "crops_per_s": rounded(crops_per_s),
        "mvox_per_s_per_core": rounded(crops_per_s * crop**3 / max(workers, 1) / 1e6),
        "batch_and_copy_ms": rounded(copied.ms),
        "step_ms": rounded(computed.ms),
        "loop_ms": rounded(1e3 * passed / steps),
        "wait_share": rounded(waited / passed, 3),
    }


def _crops(job: Job, workers: int, batch: int, crop: int) -> Crops:
    """Return crops of real EM data, without an end."""
    folder = job.work / "em"
    stores = {"raw": folder / "raw.zarr", "labels/neuron_ids": folder / "labels.zarr"}
    for dataset, path in stores.items():
        if not path.exists():
            values = mirrored((120, 200, 250), dataset)
            unit = (64, 64, 64)
            volume = create_volume(
                path, shape=values.shape, dtype=values.dtype, chunk=unit, shard=unit, voxel_size=VOXEL_SIZE
            )
            volume.write(volume.roi, np.ascontiguousarray(values))
    options = {"volumes": ("em",), "validate_on": "em", "crop": (crop,) * 3, "batch": batch, "loader_workers": workers}
    train = TrainOptions.model_validate({**options, "steps": 10**6, "augment": {"rotate": "zyx"}})
    return Crops(train, {"em": (stores["raw"], stores["labels/neuron_ids"])})
