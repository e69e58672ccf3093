"""Raw data and a network → fragments in one pass over the volume; affinities are never stored."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdseg.config import FragmentsOptions
from kdseg.config.tasks import FuseTask
from kdseg.errors import ShapeError
from kdseg.geometry import Block, Offsets, Roi, Triple, VoxelSize, block_name, blocks, is_multiple
from kdseg.prediction.blocks import Weights, prepare, run_predicted, worker_predictor
from kdseg.prediction.tiles import Predictor, predict_tiles, read_reflected, tiled
from kdseg.results.claims import claim
from kdseg.results.tables import write_table
from kdseg.running.attempt import Clock
from kdseg.segmentation.fragments.block import cell_fragments, channels_used, checked_grid, halo_roi, unique_ids
from kdseg.segmentation.fragments.checks import thin_halo
from kdseg.segmentation.fragments.store import create_fragments
from kdseg.segmentation.graph.faces import NEAREST, cell_part, nearest_offsets
from kdseg.volumes.volume import Volume, open_volume

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """Arguments of `fuse_block` that are equal for all blocks; small, sent with every block.

    Attributes:
        raw: volume of raw data.
        mask: volume of the tissue, if there is one.
        weights: the network.
        offsets: of all its affinities.
        options: how fragments are made.
        grid: number of blocks of the fragments.
        voxel_size: nm.
        volume: all voxels.
        unit: cell of a table, one shard.
        out: volume of fragments.
        tables: folder of what the region graph needs.
    """

    raw: Path
    mask: Path | None
    weights: Weights
    offsets: Offsets
    options: FragmentsOptions
    grid: Triple
    voxel_size: VoxelSize
    volume: Roi
    unit: Triple
    out: Path
    tables: Path


def run(task: FuseTask) -> None:
    """Predict each block with the halo that its fragments need, and keep the fragments only.

    The fragments, and the edges that the stage `edges` makes of them, are to the byte those of affinities that
    are stored first: a voxel is predicted alike in every block. What the edges need of the affinities lies in a
    folder beside the volume, one table per shard (`kdseg.segmentation.graph.faces`): edges, and planes of affinities at
    three faces, some 3 % of the nearest affinities at shards of 128 voxels.

    Raises:
        DeviceError: if the device is not there.
        ConfigError: if the network's first offsets are not one-voxel steps along z, y, x.
        VoxelSizeError: if the network was trained on voxels of another size.
        ShapeError: if the block is not made of shards, or the mask does not fit.
        DataError: if ids would overflow, or the network yields NaN.
        ClaimError: if the store holds something else, or is being written.
        StageError: if a block failed.
    """
    ready, options, storage = prepare(task), task.fragments, task.storage
    source, offsets = ready.raw.volume, ready.loaded.offsets
    nearest, grid = nearest_offsets(offsets), checked_grid(source.shape, options.block)
    if not is_multiple(options.block, storage.shard):
        raise ShapeError(f"fragments.block {options.block} must be a multiple of the shard {storage.shard}")
    size = source.voxel_size or ready.loaded.voxel_size
    if halo := thin_halo(options, offsets, size, source.shape):
        log.warning("fuse: %s", halo)
    made_of = {
        **options.model_dump(mode="json"),
        "predict": ready.made_of,
        "storage": storage.model_dump(mode="json"),
    }
    with claim(
        task.manifest,
        "fuse",
        made_of,
        ready.inputs,
        volume=True,
        tables=True,
        bucket=storage.remote,
        overwrite=task.overwrite,
    ) as held:
        create_fragments(held.store, source, storage)
        held.tables.mkdir(exist_ok=True)
        tissue = None if ready.mask is None else ready.mask.store
        places = size, source.roi, storage.shard, held.store, held.tables
        work = Work(ready.raw.store, tissue, ready.weights, offsets, options, grid, *places)
        times = _times_predicted(source, options, task.options.tile)
        log.info("fuse: each voxel is predicted %.2f times on the mean, for the halos", times)
        held.stats.update(
            voxels=source.roi.size,
            device=ready.made_of["device"],
            workers=ready.workers,
            times_predicted=round(times, 3),
            kept={"unit": storage.shard, "offsets": nearest},
        )
        block = halo_roi(options, Roi((0, 0, 0), options.block).intersect(source.roi), source.roi)
        announced = ready.announced_mb(tiled(block, task.options.tile).grow(ready.loaded.network.halo), block)
        run_predicted("fuse", source.roi, options.block, partial(fuse_block, work), held, ready, announced)


def fuse_block(work: Work, block: Block, clock: Clock) -> bool:
    """Predict one block with its halo, write its fragments and what its edges need; return whether it has tissue."""
    predict = worker_predictor(work.weights)  # before the mask is read: it says how many threads decode
    read_roi = halo_roi(work.options, block.roi, work.volume)
    with clock("read"):
        tissue = None if work.mask is None else open_volume(work.mask).read(read_roi) != 0
    if tissue is not None and not tissue.any():
        ids, nearest = np.zeros(block.roi.shape, np.uint64), np.zeros((NEAREST, *block.roi.shape), np.uint8)
    else:
        ids, nearest = _predicted(work, predict, block, read_roi, tissue, clock)
    with clock("write"):
        for cell in blocks(block.roi, work.unit):
            here = cell.roi.slices(block.roi)
            part = cell_part(ids[here], nearest[(..., *here)], work.offsets[:NEAREST])
            write_table(work.tables / block_name(cell.index), part.columns())
        out = open_volume(work.out)
        out.write(block.roi, ids)
        out.sync(block.roi)
    return tissue is None or bool(tissue.any())


def _predicted(
    work: Work, predict: Predictor, block: Block, read_roi: Roi, tissue: NDArray[np.bool_] | None, clock: Clock
) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Return the fragments of a block and its nearest affinities."""
    source = open_volume(work.raw)
    around = tiled(read_roi, predict.tile).grow(predict.halo)
    used = channels_used(work.options, work.offsets)
    channels = [*range(NEAREST), *(c for c in used if c >= NEAREST)]
    with clock("read"):
        raw = read_reflected(source.read, source.roi, around)

    def has_tissue(tile: Roi) -> bool:
        return tissue is None or bool(tissue[tile.intersect(read_roi).slices(read_roi)].any())

    with predict.stream():
        with clock("read"):
            grey = predict.placed(raw)
        with clock.computing():
            result = predict_tiles(predict, grey, read_roi, channels, has_tissue)
            affinities = predict.fetched(result)
            near = affinities if channels == used else affinities[[channels.index(c) for c in used]]
            ids = _fragments(work, block, near, tissue) if predict.device.type == "cpu" else None
    if ids is None:  # the GPU goes on with the next block meanwhile; on a CPU there is one core for both
        ids = _fragments(work, block, near, tissue)
    return ids, affinities[(slice(NEAREST), *block.roi.slices(read_roi))]


def _fragments(
    work: Work, block: Block, near: NDArray[np.uint8], tissue: NDArray[np.bool_] | None
) -> NDArray[np.uint64]:
    """Return the fragments of a block, with ids of the volume."""
    steps = tuple(work.offsets[c] for c in channels_used(work.options, work.offsets))
    core = block.roi.slices(halo_roi(work.options, block.roi, work.volume))
    found = cell_fragments(near, steps, work.options, core, tissue, work.voxel_size)
    return unique_ids(found, block.index, work.grid, work.options.block)


def _times_predicted(source: Volume, options: FragmentsOptions, tile: Triple) -> float:
    """Return how many voxels the network yields for each voxel of the volume."""
    parts = (tiled(halo_roi(options, block.roi, source.roi), tile) for block in blocks(source.roi, options.block))
    whole = tiled(source.roi, tile).size
    return sum(part.size for part in parts) / whole
