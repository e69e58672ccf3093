"""Networks over the blocks of a volume on Dask workers, resumable: what all stages that predict share."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdseg.checkpoint import LoadedModel, load_model
from kdseg.cluster import local_client, run_tasks, worker_number
from kdseg.config import PredictOptions
from kdseg.errors import DataError, StageError, VoxelSizeError
from kdseg.geometry import Block, Roi, Triple, blocks, is_cubic
from kdseg.inference import Predictor, Product, predictor
from kdseg.manifests import Claim, file_fingerprint, peak_mb, read, store_of, write_json
from kdseg.models.device import resolve_device, resolve_precision
from kdseg.volume import Volume, open_volume

log = logging.getLogger(__name__)

VOXEL_SIZE_TOLERANCE = 0.05
"""Largest relative difference between the voxels of the training data and of the volume."""
Measured = tuple[float, float]
"""Seconds that a block took, and peak memory in MB so far."""


@dataclass(frozen=True)
class Weights:
    """The network that a worker makes ready; small, sent with every block."""

    model: Path
    tile: Triple
    device: str
    precision: str
    product: Product


class Prepared(NamedTuple):
    """What a stage knows before it predicts.

    Attributes:
        source: the raw data.
        loaded: the network.
        weights: for the workers.
        workers: processes to run.
        made_of: what determines the values that are predicted, as JSON values.
        inputs: fingerprints of raw data and network.
    """

    source: Volume
    loaded: LoadedModel
    weights: Weights
    workers: int
    made_of: dict[str, Any]
    inputs: dict[str, str]


def prepare(
    raw: Path,
    model: Path,
    options: PredictOptions,
    *,
    product: Product = "affinities",
    device: str = "auto",
    gpus: int = 1,
    workers: int = 1,
) -> Prepared:
    """Return what is needed to predict, when network and raw data fit each other.

    Args:
        raw: manifest of uint8 raw data.
        model: manifest of a network.
        options: tile, precision.
        product: what is predicted.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        gpus: processes on CUDA, one GPU each.
        workers: processes on a CPU, one thread each.

    Raises:
        DeviceError: if the device is not there.
        VoxelSizeError: if the network was trained on voxels of another size.
        DataError: if the raw data are not uint8 (z, y, x).
    """
    where = resolve_device(device)
    precision = str(resolve_precision(options.precision, where)).removeprefix("torch.")
    source, weights = open_volume(store_of(raw)), store_of(model)
    loaded = load_model(weights)
    _check(source, loaded.voxel_size, raw)
    # The last bit of a float differs between kinds of device: a run is finished where it was begun.
    made_of = {"tile": list(options.tile), "device": where.type, "precision": precision}
    return Prepared(
        source,
        loaded,
        Weights(weights, options.tile, str(where), precision, product),
        gpus if where.type == "cuda" else workers,
        made_of,
        {"raw": read(raw)["fingerprint"], "model": file_fingerprint(weights)},
    )


@lru_cache(maxsize=1)
def worker_predictor(weights: Weights) -> Predictor:
    """Return the network in this worker, on the worker's own device; it is loaded once."""
    import torch

    torch.set_num_threads(1)
    # Workers are numbered; each takes the GPU of its number, unless one was named.
    device = resolve_device(f"cuda:{worker_number()}" if weights.device == "cuda" else weights.device)
    loaded = load_model(weights.model)
    return predictor(
        loaded.network,
        weights.tile,
        device,
        getattr(torch, weights.precision),
        offsets=loaded.offsets,
        product=weights.product,
        cubic=is_cubic(loaded.voxel_size),
    )


class Done:
    """An append-only list of finished blocks; a line that a crash cut short is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists():
            whole = path.read_bytes().rpartition(b"\n")
            os.truncate(path, len(whole[0]) + len(whole[1]))

    def read(self) -> set[Triple]:
        """Return the indices of the finished blocks."""
        if not self.path.exists():
            return set()
        whole = self.path.read_text().rpartition("\n")[0].splitlines()  # the last line may be in the making
        return {(int(z), int(y), int(x)) for z, y, x in (line.split() for line in whole)}

    def add(self, index: Triple) -> None:
        """Note a finished block."""
        with self.path.open("a") as file:
            file.write(" ".join(str(i) for i in index) + "\n")


def run_predicted(
    name: str, total: Roi, block: Triple, function: Callable[[Block], Measured], held: Claim, *, workers: int
) -> None:
    """Run ``function`` on every block that is not done yet, and note speed and memory in ``held.stats``.

    Args:
        name: of the stage, for messages and progress.
        total: voxels to cover.
        block: grid cell in voxels.
        function: predicts one block and writes what comes of it; idempotent, and pickled.
        held: the stage's claim.
        workers: processes.

    Raises:
        StageError: if a block failed; what is done stays done.
    """
    done = Done(held.private / f"blocks-{'x'.join(map(str, block))}.txt")
    finished = done.read()
    todo = [b for b in blocks(total, block) if b.index not in finished]
    log.info("%s: %d blocks to do, %d done before", name, len(todo), len(finished))
    peak, started = 0.0, time.monotonic()
    if todo:
        with local_client(min(workers, len(todo))) as client:
            for item, (_, memory) in _progress(name, run_tasks(client, function, todo), len(todo)):
                done.add(item.index)
                peak = max(peak, memory)
    missing = {b.index for b in blocks(total, block)} - done.read()
    if missing:
        raise StageError(f"{name}: {len(missing)} blocks are not done, e.g. {min(missing)}; rerun")
    seconds = time.monotonic() - started
    held.stats.update(_measured(seconds, sum(b.roi.size for b in todo), peak, held.private / "speed.json"))


def _progress(name: str, results: Iterator[tuple[Block, Measured]], total: int) -> Iterator[tuple[Block, Measured]]:
    from tqdm import tqdm

    yield from tqdm(results, total=total, desc=name, unit="block", disable=not sys.stderr.isatty())


def _measured(seconds: float, voxels: int, peak: float, note: Path) -> dict[str, float | None]:
    """Return speed and memory of this attempt, or of the last one that had anything to do."""
    if voxels:
        speed = round(voxels / seconds / 1e6, 3)
        memory = round(max(peak, peak_mb()), 1)
        write_json(note, {"mvox_per_s": speed, "peak_mb": memory})
    elif note.exists():
        before = json.loads(note.read_text())
        speed, memory = before["mvox_per_s"], before["peak_mb"]
    else:
        return {"mvox_per_s": None}
    return {"mvox_per_s": speed, "peak_mb": memory}


def _check(source: Volume, trained_on: tuple[float, float, float], raw: Path) -> None:
    if source.dtype != np.uint8 or source.channels is not None:
        raise DataError(f"{raw} stands for {source.dtype} {source.array.shape}: expected uint8 (z, y, x), see convert")
    size = source.voxel_size
    if size is None or not np.allclose(size, trained_on, rtol=VOXEL_SIZE_TOLERANCE):
        raise VoxelSizeError(
            f"{raw} has voxels of {size} nm, the network was trained on {trained_on} nm: choose another resolution "
            "level or network"
        )
