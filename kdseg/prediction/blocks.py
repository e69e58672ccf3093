"""Networks over the blocks of a volume on Dask workers, resumable: what all stages that predict share."""

from __future__ import annotations

import logging
import sys
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from kdseg.config.cluster import ClusterOptions, LocalOptions, SlurmOptions
from kdseg.config.tasks import NetworkTask, Product, ReusingTask
from kdseg.errors import ConfigError, DataError, DeviceError, MissingError, UnreadableError, VoxelSizeError
from kdseg.geometry import Roi, Triple, VoxelSize, is_cubic, knows_voxels
from kdseg.networks.checkpoint import LoadedModel, load_model
from kdseg.networks.models.device import Precision, resolve_device, resolve_precision
from kdseg.networks.weights import weights
from kdseg.prediction.tiles import Predictor, predictor, tile_memory
from kdseg.results.claims import Claim
from kdseg.results.manifests import file_fingerprint
from kdseg.results.sealed import read_sealed, write_sealed
from kdseg.results.usage import peak_mb, resident_mb
from kdseg.running.attempt import BlockWork
from kdseg.running.dask_tasks import worker_number
from kdseg.running.runner import Place, run_work
from kdseg.running.telemetry import status_path
from kdseg.volumes.decoding import decode_in_one_thread
from kdseg.volumes.inputs import Input, fingerprints, open_input, open_mask
from kdseg.volumes.volume import Volume

log = logging.getLogger(__name__)

SWITCH_S = 2e-4
"""GIL switch interval in seconds. The compute thread takes the GIL hundreds of times per tile; with Python's default of
5 ms a busy I/O thread slows it severalfold."""
_ENCODED = 2
"""Copies of a block that exist while it is written."""
_loading = threading.Lock()


@dataclass(frozen=True)
class Weights:
    """The network that a worker makes ready; small, sent with every block."""

    model: Path
    tile: Triple
    device: str
    precision: str
    product: Product


class Prepared(NamedTuple):
    """Inputs of a stage, opened and checked before it predicts.

    Attributes:
        raw: the raw data.
        mask: 0 where there is no tissue; None if all is.
        loaded: the network.
        weights: for the workers.
        cluster: where these are.
        workers: processes to run; None where that is not ours to say.
        threads: of each: one computes, the others read and write.
        compares: whether blocks of an earlier result are compared.
        made_of: what determines the values that are predicted, as JSON values.
        inputs: fingerprints of raw data, network and mask.
    """

    raw: Input
    mask: Input | None
    loaded: LoadedModel
    weights: Weights
    cluster: ClusterOptions
    workers: int | None
    threads: int
    compares: bool
    made_of: dict[str, Any]
    inputs: dict[str, str]

    def announced_mb(self, read: Roi, written: Roi) -> float:
        """Return the memory in MB that a worker will need.

        It is what a process has before it predicts, as this one, the tensors of one tile, and the blocks in flight: one
        is read, one computed, one encoded and written. To compute a phantom that is not stored takes more, in
        each of the threads at worst.

        Args:
            read: the raw voxels of the largest block, halo included.
            written: what is predicted of them.
        """
        network, dtype = self.loaded.network, getattr(torch, self.weights.precision)
        tile = (
            tile_memory(network, self.weights.tile, dtype, self.loaded.offsets) if self.weights.device == "cpu" else 0
        )
        item = (
            2 * (self.loaded.heads.embedding or 0) if self.weights.product == "embedding" else len(self.loaded.offsets)
        )
        blocks = (1 + self.compares) * self.threads * read.size + (self.threads + _ENCODED) * item * written.size
        reading = self.threads * self.raw.volume.working_bytes(read)
        return resident_mb() + (tile + blocks + reading) / 2**20


def prepare(task: NetworkTask, product: Product = "affinities") -> Prepared:
    """Return what is needed to predict, when network, raw data and mask fit each other.

    Args:
        task: SLURM and running schedulers have numbers of workers of their own.
        product: what is predicted.

    Raises:
        DeviceError: if the device is not there, or there are fewer GPUs than ``task.gpus``.
        ConfigError: if the cluster is elsewhere and ``task.device`` is ``auto``.
        VoxelSizeError: if the network was trained on voxels of another size.
        DataError: if the raw data are not uint8 (z, y, x).
    """
    options, cluster = task.options, task.cluster
    where, precision = _kind(task.device, options.precision, task.gpus, cluster)
    image, network = open_input(task.raw), weights(task.model)
    loaded = load_model(network)
    _check(image.volume, loaded.voxel_size, task.raw)
    tissue = open_mask(task.mask, image.volume)
    # The last bit of a float differs between kinds of device: a run is finished where it was begun.
    averages: dict[str, Product] = {"flips": "affinities_flips", "all": "affinities_all"}
    averaged = averages.get(options.average) if product == "affinities" else None
    made_of: dict[str, Any] = {"tile": list(options.tile), "device": where.partition(":")[0], "precision": precision}
    if averaged is not None:
        made_of["average"] = options.average
    on_gpu = where.startswith("cuda")
    return Prepared(
        image,
        tissue,
        loaded,
        Weights(network, options.tile, where, precision, averaged or product),
        cluster,
        _processes(cluster, task.gpus if on_gpu else task.workers),
        3 if on_gpu else 2,
        isinstance(task, ReusingTask) and task.reuse is not None,
        made_of,
        {"raw": image.fingerprint, "model": file_fingerprint(network), **fingerprints(mask=tissue)},
    )


def _kind(device: str, precision: Precision, gpus: int, cluster: ClusterOptions) -> tuple[str, str]:
    """Return where the workers compute and in what; this machine may not have what those of a cluster have.

    Raises:
        ConfigError: if the cluster is elsewhere and ``device`` is ``auto``.
        DeviceError: if the device is not there, or there are fewer than ``gpus``.
    """
    if isinstance(cluster, LocalOptions):
        where = resolve_device(device)
        if str(where) == "cuda" and gpus > torch.cuda.device_count():
            raise DeviceError(f"{gpus} GPUs were asked for, but torch sees {torch.cuda.device_count()}: set `gpus`")
        return str(where), _name(resolve_precision(precision, where))
    if device == "auto":
        raise ConfigError(f"a cluster of kind {cluster.kind} has its workers elsewhere: say `device: cuda` or `cpu`")
    if device.startswith("cuda") and precision == "auto":
        return device, "bfloat16"
    return device, _name(resolve_precision(precision, torch.device(device)))


def _processes(cluster: ClusterOptions, here: int) -> int | None:
    if isinstance(cluster, LocalOptions):
        return here
    return cluster.jobs if isinstance(cluster, SlurmOptions) else None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def worker_predictor(given: Weights) -> Predictor:
    """Return the network in this worker, on the worker's own device; it is loaded once, by one thread."""
    with _loading:
        return _loaded(given)


@lru_cache(maxsize=1)
def _loaded(given: Weights) -> Predictor:
    torch.set_num_threads(1)
    sys.setswitchinterval(SWITCH_S)
    # Workers of this machine are numbered, and each takes the GPU of its number, unless one was named. Those of a
    # cluster see only what they were given.
    number = worker_number()
    device = resolve_device(f"cuda:{number or 0}" if given.device == "cuda" else given.device)
    if device.type == "cpu":
        decode_in_one_thread()
    loaded = load_model(given.model)
    return predictor(
        loaded.network,
        given.tile,
        device,
        getattr(torch, given.precision),
        offsets=loaded.offsets,
        product=given.product,
        cubic=is_cubic(loaded.voxel_size),
    )


def run_predicted(
    name: str, total: Roi, block: Triple, work: BlockWork, held: Claim, ready: Prepared, announced_mb: float
) -> None:
    """Run ``work`` on every block that is not done yet, and note speed and memory in ``held.stats``.

    Args:
        name: of the stage, for messages and progress.
        total: voxels to cover.
        block: grid cell in voxels.
        work: predicts one block and writes what comes of it; idempotent, and pickled.
        held: the stage's claim.
        ready: where the workers are.
        announced_mb: memory that a worker will need; see `Prepared.announced_mb`.
    """
    log.info("%s: %.0f MB per worker", name, announced_mb)
    place = Place(ready.workers, status_path(held.manifest), ready.cluster, ready.threads, announced_mb)
    counted = run_work(name, total, block, work, place, held.progress(block))
    held.stats.update(_measured(counted.busy_s, counted.voxels, counted.peak_mb, held.private / "speed.json"))
    held.stats.update(counted.of_reuse)


def _measured(seconds: float, voxels: int, peak: float, note: Path) -> dict[str, float | None]:
    """Return speed and memory of this attempt, or of the last one that had anything to do.

    The start of the workers and of the network is not counted: it would be most of the time of a small volume.
    """
    if voxels:
        speed = round(voxels / max(seconds, 1e-9) / 1e6, 3)
        memory = round(max(peak, peak_mb()), 1)
        write_sealed(note, {"mvox_per_s": speed, "peak_mb": memory})
    else:
        try:
            before = read_sealed(note)
        except (MissingError, UnreadableError):
            return {"mvox_per_s": None}
        speed, memory = before["mvox_per_s"], before["peak_mb"]
    return {"mvox_per_s": speed, "peak_mb": memory}


def _check(source: Volume, trained_on: VoxelSize, raw: Path) -> None:
    if source.dtype != np.uint8 or source.channels is not None:
        raise DataError(f"{raw} stands for {source.dtype} {source.array.shape}: expected uint8 (z, y, x), see convert")
    size = source.voxel_size
    if size is None or not knows_voxels(trained_on, size):
        raise VoxelSizeError(
            f"{raw} has voxels of {size} nm, the network was trained on {trained_on} nm: choose another resolution "
            "level or network"
        )
