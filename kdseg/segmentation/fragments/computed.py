"""Affinities that are computed block by block with the halo that fragments need, and never stored."""

from __future__ import annotations

import logging
from functools import partial

from kdseg.config.tasks import FragmentsTask, NetworkTask
from kdseg.errors import ShapeError
from kdseg.geometry import Roi, blocks, is_multiple
from kdseg.prediction.affinities import ComputedAffinities
from kdseg.prediction.blocks import Prepared, prepare, run_predicted
from kdseg.prediction.tiles import tiled
from kdseg.results.claims import Claim
from kdseg.running.attempt import BlockWork
from kdseg.segmentation.fragments.block import halo_roi
from kdseg.segmentation.fragments.source import Source
from kdseg.segmentation.graph.faces import nearest_offsets

log = logging.getLogger(__name__)


def computed(task: FragmentsTask, network: NetworkTask) -> Source:
    """Return the affinities that a network computes of raw data.

    What the region graph needs of them is kept, one table per shard (`kdseg.segmentation.graph.faces`): edges, and
    planes of affinities at three faces, some 3 % of the nearest affinities at shards of 128 voxels.

    Raises:
        ShapeError: if a block is not made of shards.
    """
    ready = prepare(network)
    nearest_offsets(ready.loaded.offsets)
    if not is_multiple(task.options.block, task.storage.shard):
        raise ShapeError(f"fragments.block {task.options.block} must be a multiple of the shard {task.storage.shard}")
    return Source(
        volume=ready.raw.volume,
        affinities=ComputedAffinities(ready.raw.store, ready.weights),
        offsets=ready.loaded.offsets,
        mask=ready.mask,
        inputs=ready.inputs,
        run=partial(_run, task, ready),
        doubts=[],
        made_of={"predict": ready.made_of},
        kept=task.storage.shard,
        beside=ready.made_of["device"] != "cpu",
    )


def _run(task: FragmentsTask, ready: Prepared, work: BlockWork, held: Claim) -> None:
    options, tile, volume = task.options, task.predict.tile, ready.raw.volume.roi
    held.tables.mkdir(exist_ok=True)
    halos = [tiled(halo_roi(options, block.roi, volume), tile).size for block in blocks(volume, options.block)]
    times = sum(halos) / tiled(volume, tile).size
    log.info("fragments: each voxel is predicted %.2f times on the mean, for the halos", times)
    held.stats.update(
        device=ready.made_of["device"],
        workers=ready.workers,
        times_predicted=round(times, 3),
        kept={"unit": task.storage.shard, "offsets": nearest_offsets(ready.loaded.offsets)},
    )
    block = halo_roi(options, Roi((0, 0, 0), options.block).intersect(volume), volume)
    announced = ready.announced_mb(tiled(block, tile).grow(ready.loaded.network.halo), block)
    run_predicted("fragments", volume, options.block, work, held, ready, announced)
