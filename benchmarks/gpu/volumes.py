"""Stages from and to a local disk, by the product's own functions, on real EM data mirrored to any size."""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from job import STUDENT, Job, data
from numpy.typing import NDArray
from tiles import OFFSETS, network_of
from timing import rounded

from kdseg.config import FragmentsOptions, PredictOptions, StorageOptions
from kdseg.config.tasks import FragmentsTask, PredictTask, PretrainedTask
from kdseg.geometry import Roi, Triple, blocks
from kdseg.networks import pretrained
from kdseg.prediction import stage as predict
from kdseg.prediction.tiles import tiled
from kdseg.results.claims import claim
from kdseg.running.telemetry import status_path
from kdseg.segmentation.fragments import stage as fragments
from kdseg.segmentation.fragments.block import cell_fragments, halo_roi
from kdseg.segmentation.graph.faces import cell_part
from kdseg.volumes.volume import create_volume

NAME = "4,8,16"
"""Architecture of the shipped network `STUDENT`, by its name in `tiles.NETWORKS`."""
EM = "fib25_dev.h5"
VOXEL_SIZE = (10.0, 10.0, 10.0)


def mirrored(shape: Triple, dataset: str = "raw") -> NDArray[Any]:
    """Return real EM data, or its labels (``labels/neuron_ids``), continued by reflection."""
    with h5py.File(data(EM)) as file:
        values = file[f"volumes/{dataset}"][tuple(slice(n) for n in shape)]
    return np.pad(values, [(0, n - have) for n, have in zip(shape, values.shape, strict=True)], mode="symmetric")


def raw_of(folder: Path, side: int, storage: StorageOptions) -> Path:
    """Store raw data of ``side`` voxels along each axis, once; return its manifest."""
    manifest = folder / f"raw{side}.json"
    with claim(manifest, "mirrored", {"side": side}, {}, volume=True) as held:
        volume = create_volume(
            held.store,
            shape=(side, side, side),
            dtype=np.uint8,
            chunk=storage.chunk,
            shard=storage.shard,
            voxel_size=VOXEL_SIZE,
        )
        volume.write(volume.roi, mirrored((side, side, side)))
    return manifest


def model_of(folder: Path) -> Path:
    """Store the shipped student as a result; return its manifest."""
    manifest = folder / "model.json"
    pretrained.run(PretrainedTask(manifest=manifest, file=STUDENT, offsets=OFFSETS))
    return manifest


def predicted(job: Job, side: int, block: int, tile: int, folder: Path, bare: float | None) -> dict[str, Any]:
    """Return how fast affinities are predicted from zarr to zarr."""
    storage, options = _storage(job), PredictOptions(block=(block,) * 3, tile=(tile,) * 3)

    def stage(raw: Path, model: Path, manifest: Path) -> None:
        predict.run(
            PredictTask(raw=raw, model=model, manifest=manifest, options=options, storage=storage, device=job.device)
        )

    found = _run(stage, f"predict{side}", side, block, folder, storage)
    whole = Roi((0, 0, 0), (side,) * 3)
    sent = [tiled(cell.roi, options.tile).grow(network_of(NAME).halo).size for cell in blocks(whole, options.block)]
    return found | _beside(found, bare) | _over_pcie(sum(sent), len(OFFSETS) * whole.size)


def fused(job: Job, side: int, block: int, tile: int, folder: Path, bare: float | None) -> dict[str, Any]:
    """Return how fast fragments are made of raw data, affinities never being stored."""
    storage, options = _storage(job), FragmentsOptions(block=(block,) * 3, halo=(0 if job.rehearse else 16,) * 3)
    predicting = PredictOptions(block=(block,) * 3, tile=(tile,) * 3)

    def stage(raw: Path, model: Path, manifest: Path) -> None:
        fragments.run(
            FragmentsTask(
                raw=raw,
                model=model,
                manifest=manifest,
                predict=predicting,
                options=options,
                storage=storage,
                device=job.device,
            )
        )

    found = _run(stage, f"fuse{side}", side, block, folder, storage)
    whole = Roi((0, 0, 0), (side,) * 3)
    around = [halo_roi(options, cell.roi, whole) for cell in blocks(whole, options.block)]
    tiles = [tiled(roi, predicting.tile) for roi in around]
    sent = sum(roi.grow(network_of(NAME).halo).size for roi in tiles)
    times = {"times_predicted": rounded(sum(roi.size for roi in tiles) / whole.size)}
    return found | _beside(found, bare) | times | _over_pcie(sent, 3 * sum(roi.size for roi in around))


def compile_fragments() -> None:
    """Have numba compile what makes fragments, and keep it where the workers of a stage find it."""
    near = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 32), np.uint8)
    whole = Roi((0, 0, 0), (32, 32, 32)).slices()
    ids = cell_fragments(near, OFFSETS[:3], FragmentsOptions(block=(32,) * 3), whole, None, VOXEL_SIZE)
    cell_part(ids, near, OFFSETS[:3])


def disk(folder: Path, megabytes: int) -> dict[str, Any]:
    """Return how fast a file is written, until the disk has it."""
    folder.mkdir(parents=True, exist_ok=True)
    part = np.random.default_rng(0).integers(0, 256, 2**20, dtype=np.uint8).tobytes()
    before = time.perf_counter()
    with (folder / "written").open("wb") as file:
        for _ in range(megabytes):
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    took = time.perf_counter() - before
    (folder / "written").unlink()
    return {"write_gb_per_s": rounded(megabytes * 2**20 / took / 1e9)}


def _storage(job: Job) -> StorageOptions:
    return StorageOptions(chunk=(16,) * 3, shard=(16,) * 3) if job.rehearse else StorageOptions()


def _run(
    stage: Callable[[Path, Path, Path], None], name: str, side: int, block: int, folder: Path, storage: StorageOptions
) -> dict[str, Any]:
    """Run a stage; return its speed, and the CPU time of all its processes with their start."""
    folder.mkdir(parents=True, exist_ok=True)
    raw, model, manifest = raw_of(folder, side, storage), model_of(folder), folder / f"{name}.json"
    before = _cpu()
    try:
        stage(raw, model, manifest)
    finally:
        for made in folder.glob(f"{name}.*"):
            if made.is_dir():
                shutil.rmtree(made)
    facts = json.loads(status_path(manifest).read_text())
    manifest.unlink()
    steady = facts["seconds"] - facts["first_block_s"]
    workers = facts["workers"].values()
    phases = ("read", "wait", "compute", "write")
    return {
        "mvox_per_s": rounded((side**3 - min(block, side) ** 3) / steady / 1e6) if steady > 0 else None,
        "seconds": facts["seconds"],
        "first_block_s": facts["first_block_s"],
        "worker_seconds": {what: round(sum(each["seconds"][what] for each in workers), 3) for what in phases},
        "cpu_s": round(_cpu() - before, 1),
        "peak_mb": facts["memory_mb"]["peak"],
        "gpu_mb": max((each["gpu_mb"] for each in workers if each["gpu_mb"] is not None), default=None),
    }


def _cpu() -> float:
    """Return the CPU seconds of this process and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _beside(found: dict[str, Any], bare: float | None) -> dict[str, Any]:
    speed = found["mvox_per_s"]
    return {"of_bare": None if bare is None or speed is None else rounded(speed / bare, 3)}


def _over_pcie(sent: int, fetched: int) -> dict[str, Any]:
    return {"pcie_mb": [rounded(sent / 1e6), rounded(fetched / 1e6)]}
