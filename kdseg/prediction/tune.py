"""A network → the tile and the precision that it predicts fastest with, on the device at hand."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import lcm, prod

import numpy as np
import torch

from kdseg.config import StorageOptions
from kdseg.config.questions import TuneTask
from kdseg.geometry import Offsets, Triple
from kdseg.networks.checkpoint import load_model
from kdseg.networks.models import Network, resolve_device, resolve_precision
from kdseg.networks.weights import weights
from kdseg.prediction.tiles import predictor, tile_memory
from kdseg.running.heartbeat import doing, span

EDGES = (32, 48, 64, 96, 128, 160, 192, 256)
"""Edges of the tiles that are tried, in voxels; each as a cube and with half of them along z."""


BLOCK = 2**25
"""Voxels of a block that a worker can be expected to hold several times, with all channels: 1.2 GB of affinities."""


@dataclass(frozen=True)
class Trial:
    """One way to predict.

    Attributes:
        tile: voxels that one forward pass yields, (z, y, x).
        precision: what convolutions compute in, as `PredictOptions.precision` names it.
        mvox_per_s: million voxels a second, of one process; None where the memory did not suffice.
        read: voxels that are read per voxel that is kept: tile with halo over tile.
        memory_mb: memory of a tile in MB: measured on CUDA, else that of `tile_memory`.
    """

    tile: Triple
    precision: str
    mvox_per_s: float | None
    read: float
    memory_mb: float

    @property
    def block(self) -> list[int]:
        """Voxels of a block: whole tiles, and whole shards of the default size."""
        return [lcm(t, s) for t, s in zip(self.tile, StorageOptions().shard, strict=True)]

    @property
    def options(self) -> str:
        """The line of the configuration."""
        return f"predict: {{ block: {self.block}, tile: {list(self.tile)}, precision: {self.precision} }}"


def run(task: TuneTask) -> list[Trial]:
    """Measure tiles and precisions, and return what was found, fastest first."""
    where = resolve_device(task.device)
    loaded = load_model(weights(task.model))
    network, offsets = loaded.network, loaded.offsets
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ways = [(dtype, *one) for dtype in _precisions(where) for one in _tiles(network, offsets, dtype, task.memory)]
    found: list[Trial] = []

    def far() -> str:
        dtype, tile, _ = ways[min(len(found), len(ways) - 1)]
        left = (len(ways) - len(found)) * (time.monotonic() - began) / len(found) if found else None
        until = "" if left is None else f", {span(left)} left"
        return f"tune: tile {'x'.join(map(str, tile))}, {dtype}, {len(found) + 1} of {len(ways)}{until}"

    began = time.monotonic()
    try:
        with doing(far):
            for dtype, tile, size in ways:
                found.append(_trial(network, offsets, tile, dtype, where, size, task.seconds))
    finally:
        torch.set_num_threads(threads)
    return sorted(found, key=lambda trial: -(trial.mvox_per_s or 0))


def advised(trials: Sequence[Trial]) -> Trial:
    """Return the fastest of trials whose blocks are not too large, or the fastest where all are."""
    fit = [trial for trial in trials if trial.mvox_per_s is not None and prod(trial.block) <= BLOCK]
    return [*fit, *trials][0]


def _precisions(device: torch.device) -> list[torch.dtype]:
    native = resolve_precision("auto", device)
    more = [torch.float16] if device.type == "cuda" else []
    return [*dict.fromkeys([native, *more, torch.float32])]


def _tiles(network: Network, offsets: Offsets, dtype: torch.dtype, memory_mb: float) -> Iterator[tuple[Triple, float]]:
    """Yield tiles in multiples of the network's stride, with the memory in MB that they are to take."""
    tried = set()
    for edge in EDGES:
        for extent in ((edge // 2, edge, edge), (edge, edge, edge)):
            z, y, x = (-(-n // s) * s for n, s in zip(extent, network.stride, strict=True))
            size = tile_memory(network, (z, y, x), dtype, offsets) / 1e6
            if size <= memory_mb and (z, y, x) not in tried:
                tried.add((z, y, x))
                yield (z, y, x), size


def _trial(
    network: Network,
    offsets: Offsets,
    tile: Triple,
    dtype: torch.dtype,
    device: torch.device,
    size: float,
    seconds: float,
) -> Trial:
    precision = str(dtype).removeprefix("torch.")
    predict = predictor(network, tile, device, dtype, offsets=offsets)
    shape = [t + 2 * h for t, h in zip(tile, predict.halo, strict=True)]
    read = prod(shape) / prod(tile)
    raw = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    cuda = device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time  # what else runs on a CPU is not to count
    try:
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        predict(raw)  # the first pass makes the kernels ready
        least, started = float("inf"), time.monotonic()
        while least == float("inf") or time.monotonic() - started < seconds:
            before = clock()
            predict(raw)
            least = min(least, clock() - before)
    except (torch.OutOfMemoryError, MemoryError):
        return Trial(tile, precision, None, read, size)
    finally:
        if cuda:
            torch.cuda.empty_cache()
    return Trial(
        tile, precision, prod(tile) / least / 1e6, read, torch.cuda.max_memory_allocated(device) / 1e6 if cuda else size
    )
