"""Raw data and a network → uint8 affinities, block by block on Dask workers."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from kdseg.checkpoint import load_model
from kdseg.cluster import local_client, run_tasks, worker_number
from kdseg.config import PredictOptions, StorageOptions
from kdseg.errors import ConfigError, DataError, ShapeError, StageError, VoxelSizeError
from kdseg.geometry import Block, Triple, blocks, is_cubic, is_multiple
from kdseg.inference import Predictor, Product, predict_roi, predictor
from kdseg.manifests import claim, file_fingerprint, peak_mb, read, store_of, write_json
from kdseg.models.device import resolve_device, resolve_precision
from kdseg.volume import Volume, create_volume, open_volume

log = logging.getLogger(__name__)

VOXEL_SIZE_TOLERANCE = 0.05
"""Largest relative difference between the voxels of the training data and of the volume."""


@dataclass(frozen=True)
class Work:
    """What a worker needs to know; small, sent with every block."""

    raw: Path
    model: Path
    out: Path
    tile: Triple
    device: str
    precision: str
    product: Product


def run(
    raw: Path,
    model: Path,
    manifest: Path,
    options: PredictOptions,
    storage: StorageOptions,
    *,
    product: Product = "affinities",
    device: str = "auto",
    gpus: int = 1,
    workers: int = 1,
    overwrite: bool = False,
) -> None:
    """Predict the affinities of a volume, or what else a student learns from.

    Args:
        raw: manifest of uint8 raw data.
        model: manifest of a network.
        manifest: to write; uint8 affinities (c, z, y, x) lie beside it, with the offsets as an attribute; or the
            float16 embedding (d, z, y, x).
        options: block, tile, precision.
        storage: layout on disk.
        product: affinities, as they are or averaged over mirror images (and quarter turns), or the embedding.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        gpus: processes on CUDA, one GPU each.
        workers: processes on a CPU, one thread each. The result depends on neither.
        overwrite: clear what other options or inputs made.

    Raises:
        DeviceError: if the device is not there.
        ConfigError: if the network has no embedding, but it is asked for.
        VoxelSizeError: if the network was trained on voxels of another size.
        DataError: if the network yields NaN.
        ClaimError: if the store holds something else, or is being written.
        StageError: if a block failed.
    """
    where = resolve_device(device)
    precision = str(resolve_precision(options.precision, where)).removeprefix("torch.")
    source, weights = open_volume(store_of(raw)), store_of(model)
    loaded = load_model(weights)
    _check(source, loaded.voxel_size, raw)
    if product == "embedding" and not loaded.heads.embedding:
        raise ConfigError(f"{model} has no embedding to predict: train it with heads.embedding")
    if not is_multiple(options.block, storage.shard):
        raise ShapeError(f"predict.block {options.block} must be a multiple of the shard {storage.shard}")
    made_of = {
        "tile": list(options.tile),
        # The last bit of a float differs between kinds of device: a run is finished where it was begun.
        "device": where.type,
        "precision": precision,
        **({} if product == "affinities" else {"product": product}),
        "storage": storage.model_dump(mode="json"),
    }
    inputs = {"raw": read(raw)["fingerprint"], "model": file_fingerprint(weights)}
    with claim(manifest, "predict", made_of, inputs, volume=True, overwrite=overwrite) as held:
        create_volume(
            held.store,
            shape=source.shape,
            dtype=np.float16 if product == "embedding" else np.uint8,
            chunk=storage.chunk,
            shard=storage.shard,
            voxel_size=source.voxel_size or loaded.voxel_size,
            offset=source.offset,
            channels=loaded.heads.embedding if product == "embedding" else len(loaded.offsets),
            compress=False,
            attributes={} if product == "embedding" else {"offsets": [list(o) for o in loaded.offsets]},
        )
        work = Work(store_of(raw), weights, held.store, options.tile, str(where), precision, product)
        count = gpus if where.type == "cuda" else workers
        done = Done(held.private / f"blocks-{'x'.join(map(str, options.block))}.txt")
        held.stats.update(voxels=source.roi.size, device=where.type, workers=count)
        held.stats.update(_measured(_run_blocks(work, source, options.block, count, done), held.private / "speed.json"))


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


def predict_block(work: Work, block: Block) -> tuple[float, float]:
    """Predict and write one block; return the seconds it took and the peak memory in MB so far."""
    started = time.monotonic()
    predict = _predictor(work)
    source = open_volume(work.raw)
    open_volume(work.out).write(block.roi, predict_roi(predict, source.read, source.roi, block.roi))
    return time.monotonic() - started, peak_mb()


@lru_cache(maxsize=1)
def _predictor(work: Work) -> Predictor:
    import torch

    torch.set_num_threads(1)
    # Workers are numbered; each takes the GPU of its number, unless one was named.
    device = resolve_device(f"cuda:{worker_number()}" if work.device == "cuda" else work.device)
    loaded = load_model(work.model)
    return predictor(
        loaded.network,
        work.tile,
        device,
        getattr(torch, work.precision),
        offsets=loaded.offsets,
        product=work.product,
        cubic=is_cubic(loaded.voxel_size),
    )


def _run_blocks(work: Work, source: Volume, block: Triple, workers: int, done: Done) -> tuple[float, int, float]:
    finished = done.read()
    todo = [b for b in blocks(source.roi, block) if b.index not in finished]
    log.info("predict: %d blocks to do, %d done before", len(todo), len(finished))
    if not todo:
        return 0.0, 0, 0.0
    peak = 0.0
    started = time.monotonic()
    with local_client(min(workers, len(todo))) as client:
        for item, (_, memory) in _progress(run_tasks(client, partial(predict_block, work), todo), len(todo)):
            done.add(item.index)
            peak = max(peak, memory)
    missing = {b.index for b in blocks(source.roi, block)} - done.read()
    if missing:
        raise StageError(f"predict: {len(missing)} blocks are not done, e.g. {min(missing)}; rerun")
    return time.monotonic() - started, sum(b.roi.size for b in todo), peak


def _progress(
    results: Iterator[tuple[Block, tuple[float, float]]], total: int
) -> Iterator[tuple[Block, tuple[float, float]]]:
    from tqdm import tqdm

    yield from tqdm(results, total=total, desc="predict", unit="block", disable=not sys.stderr.isatty())


def _measured(attempt: tuple[float, int, float], note: Path) -> dict[str, float | None]:
    """Return speed and memory of this attempt, or of the last one that had anything to do."""
    seconds, voxels, peak = attempt
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
