"""Affinities → fragments, block by block of a canonical grid."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from kdseg.config import FragmentsOptions
from kdseg.config.tasks import FragmentsTask
from kdseg.geometry import Block, Roi, Triple
from kdseg.results.claims import claim
from kdseg.running.runner import place_of, run_blocks
from kdseg.segmentation.fragments.block import cell_fragments, channels_used, checked_grid, halo_roi, unique_ids
from kdseg.segmentation.fragments.checks import doubts, thin_halo
from kdseg.segmentation.fragments.store import create_fragments
from kdseg.segmentation.links import nearest_channels
from kdseg.volumes.inputs import fingerprints, open_input, open_mask
from kdseg.volumes.volume import Volume, affinity_offsets, open_volume

_SAMPLE = 64
"""Voxels along each axis of the sample that is looked at before work begins."""

log = logging.getLogger(__name__)


def run(task: FragmentsTask) -> None:
    """Cut a volume into fragments with globally unique uint64 ids; 0 is background.

    The id of a fragment is ``block number * voxels per block + number within the block``, both in C order,
    so that ids need no communication and follow from (affinities, mask, grid, options) alone. Warns of
    affinities that look wrong and of a halo that is too thin.

    Raises:
        ShapeError: if the affinities do not fit the offsets they name, or the mask does not fit them.
        DataError: if ids would overflow.
        ClaimError: if the store holds something else, or is being written.
        StageError: if a block failed.
    """
    options, storage = task.options, task.storage
    predicted = open_input(task.affinities)
    source = predicted.volume
    offsets = affinity_offsets(source)
    nearest_channels(offsets)
    grid = checked_grid(source.shape, options.block)
    tissue = open_mask(task.mask, source)
    inputs = fingerprints(affinities=predicted, mask=tissue)
    for doubt in _doubts(source, options):
        log.warning("fragments: %s: %s", task.affinities, doubt)
    made_of = {**options.model_dump(mode="json"), "storage": storage.model_dump(mode="json")}
    with claim(
        task.manifest, "fragments", made_of, inputs, volume=True, bucket=storage.remote, overwrite=task.overwrite
    ) as held:
        create_fragments(held.store, source, storage)
        paths = predicted.store, None if tissue is None else tissue.store, held.store
        function = partial(fragment_block, *paths, options, grid)
        progress = held.progress(options.block)
        run_blocks("fragments", source.roi, options.block, function, place_of(task), progress)
        held.stats["voxels"] = source.roi.size


def _doubts(source: Volume, options: FragmentsOptions) -> list[str]:
    offsets = affinity_offsets(source)
    halo = thin_halo(options, offsets, source.voxel_size or (1.0, 1.0, 1.0), source.shape)
    low = [max((n - _SAMPLE) // 2, 0) for n in source.shape]
    extent = [min(n, _SAMPLE) for n in source.shape]
    middle = Roi((low[0], low[1], low[2]), (extent[0], extent[1], extent[2]))
    channels = nearest_channels(offsets)
    found = doubts(source.read(middle, channels), tuple(offsets[c] for c in channels))
    return [*found, *([halo] if halo else [])]


def fragment_block(
    affinities: Path, mask: Path | None, out: Path, options: FragmentsOptions, grid: Triple, block: Block
) -> None:
    """Compute and write the fragments of one block."""
    source = open_volume(affinities)
    read_roi = halo_roi(options, block.roi, source.roi)
    offsets = affinity_offsets(source)
    channels = channels_used(options, offsets)
    near = source.read(read_roi, channels)
    tissue = None if mask is None else open_volume(mask).read(read_roi) != 0
    size, core = source.voxel_size or (1.0, 1.0, 1.0), block.roi.slices(read_roi)
    found = cell_fragments(near, tuple(offsets[c] for c in channels), options, core, tissue, size)
    open_volume(out).write(block.roi, unique_ids(found, block.index, grid, options.block))
