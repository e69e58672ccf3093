"""Affinities → fragments, block by block of a canonical grid."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdseg.blockwise import run_blocks
from kdseg.config import FragmentsOptions, StorageOptions
from kdseg.errors import DataError, ShapeError
from kdseg.geometry import Block, Roi, Triple, block_number, grid_shape
from kdseg.manifests import claim, read, store_of
from kdseg.segmentation.agglomerate import waterz_segments
from kdseg.segmentation.checks import doubts, thin_halo
from kdseg.segmentation.links import nearest_channels
from kdseg.segmentation.watershed import clean, drop_weak
from kdseg.segmentation.watershed import fragments as watershed
from kdseg.volume import Volume, affinity_offsets, create_volume, open_volume

LARGEST_ID = 2**63
_SAMPLE = 64
"""Voxels along each axis of the sample that is looked at before work begins."""

log = logging.getLogger(__name__)


def run(
    affinities: Path,
    manifest: Path,
    options: FragmentsOptions,
    storage: StorageOptions,
    *,
    mask: Path | None = None,
    workers: int = 1,
    overwrite: bool = False,
) -> None:
    """Cut a volume into fragments with globally unique uint64 ids; 0 is background.

    The id of a fragment is ``block number * voxels per block + number within the block``, both in C order,
    so that ids need no communication and follow from (affinities, mask, grid, options) alone. Warns of
    affinities that look wrong and of a halo that is too thin.

    Args:
        affinities: manifest of uint8 affinities.
        manifest: to write; the fragments lie beside it.
        options: method, canonical grid, halo.
        storage: layout on disk.
        mask: manifest of a volume (z, y, x) of the affinities' shape, of integers or bools; where it is 0 is
            no tissue: background.
        workers: processes; the result does not depend on them.
        overwrite: clear what other options or inputs made.

    Raises:
        ShapeError: if the affinities do not fit the offsets they name, or the mask does not fit them.
        DataError: if ids would overflow.
        ClaimError: if the store holds something else, or is being written.
        StageError: if a block failed.
    """
    source = open_volume(store_of(affinities))
    offsets = affinity_offsets(source)
    nearest_channels(offsets)
    grid = grid_shape(source.shape, options.block)
    if int(np.prod(grid, dtype=object)) * int(np.prod(options.block, dtype=object)) >= LARGEST_ID:
        raise DataError(f"ids of a grid of {grid} blocks of {options.block} voxels exceed 2**63: use smaller blocks")
    if source.voxel_size is None:
        raise ShapeError(f"{affinities} has no voxel size")
    inputs = {"affinities": read(affinities)["fingerprint"]}
    if mask is not None:
        _check_mask(open_volume(store_of(mask)), source, mask)
        inputs["mask"] = read(mask)["fingerprint"]
    for doubt in _doubts(source, options):
        log.warning("fragments: %s: %s", affinities, doubt)
    made_of = {**options.model_dump(mode="json"), "storage": storage.model_dump(mode="json")}
    with claim(manifest, "fragments", made_of, inputs, overwrite=overwrite) as held:
        create_volume(
            held.store,
            shape=source.shape,
            dtype=np.uint64,
            chunk=storage.chunk,
            shard=storage.shard,
            voxel_size=source.voxel_size,
            offset=source.offset,
        )
        paths = store_of(affinities), None if mask is None else store_of(mask), held.store
        function = partial(fragment_block, *paths, options, grid)
        run_blocks("fragments", source.roi, options.block, function, workers=workers, done=held.progress(options.block))
        held.stats["voxels"] = source.roi.size


def _check_mask(mask: Volume, source: Volume, path: Path) -> None:
    if mask.shape != source.shape or mask.channels is not None or mask.dtype.kind not in "bui":
        raise ShapeError(
            f"the mask {path} is {mask.dtype} {mask.array.shape}, expected integers {source.shape} as the affinities: "
            "make it on their grid"
        )
    placed = mask.voxel_size in (None, source.voxel_size) and mask.offset == source.offset
    if not placed:
        raise ShapeError(
            f"the mask {path} has the voxel size {mask.voxel_size} and offset {mask.offset} nm, expected "
            f"{source.voxel_size} and {source.offset} as the affinities: make it on their grid"
        )


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
    found = _fragments(source, None if mask is None else open_volume(mask), options, block)
    base = np.uint64(block_number(block.index, grid) * int(np.prod(options.block)))
    open_volume(out).write(block.roi, np.where(found > 0, found + base, np.uint64(0)))


def _fragments(source: Volume, mask: Volume | None, options: FragmentsOptions, block: Block) -> NDArray[np.uint64]:
    how = options.watershed
    per_section = how.method == "watershed" and how.per_section
    # sections that are flooded alone know nothing of each other, unless they are merged afterwards
    z, y, x = options.halo
    read_roi = block.roi.grow((0 if per_section and options.premerge is None else z, y, x)).intersect(source.roi)
    core = block.roi.slices(read_roi)
    offsets = affinity_offsets(source)
    channels = list(range(len(offsets))) if how.method == "mutex" else nearest_channels(offsets)
    offsets = tuple(offsets[c] for c in channels)
    near = source.read(read_roi, channels)
    tissue = None if mask is None else mask.read(read_roi) != 0
    found = watershed(near, offsets, how, tissue, source.voxel_size or (1.0, 1.0, 1.0))
    if options.premerge is not None and found.any():
        (found,) = waterz_segments(near, found, offsets, [options.premerge])
    pieces = clean(found, core, options.dust)
    if options.least_mean > 0:
        pieces = drop_weak(pieces, near, offsets, core, options.least_mean, tissue, per_section=per_section)
    return pieces
