"""Affinities → fragments, block by block of a canonical grid."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from kdseg.blockwise import run_blocks
from kdseg.config import FragmentsOptions, StorageOptions
from kdseg.errors import DataError, ShapeError
from kdseg.geometry import Block, Triple, block_number, grid_shape
from kdseg.manifests import claim, read, store_of
from kdseg.segmentation.watershed import clean
from kdseg.segmentation.watershed import fragments as watershed
from kdseg.volume import Volume, affinity_offsets, create_volume, open_volume

LARGEST_ID = 2**63


def run(
    affinities: Path,
    manifest: Path,
    options: FragmentsOptions,
    storage: StorageOptions,
    *,
    workers: int = 1,
    overwrite: bool = False,
) -> None:
    """Cut a volume into fragments with globally unique uint64 ids; 0 is background.

    The id of a fragment is ``block number * voxels per block + number within the block``, both in C order,
    so that ids need no communication and follow from (affinities, grid, options) alone.

    Args:
        affinities: manifest of uint8 affinities.
        manifest: to write; the fragments lie beside it.
        options: method, canonical grid, halo.
        storage: layout on disk.
        workers: processes; the result does not depend on them.
        overwrite: clear what other options or inputs made.

    Raises:
        ShapeError: if the affinities do not fit the offsets they name.
        DataError: if ids would overflow.
        ClaimError: if the store holds something else, or is being written.
        StageError: if a block failed.
    """
    source = open_volume(store_of(affinities))
    affinity_offsets(source)
    grid = grid_shape(source.shape, options.block)
    if int(np.prod(grid, dtype=object)) * int(np.prod(options.block, dtype=object)) >= LARGEST_ID:
        raise DataError(f"ids of a grid of {grid} blocks of {options.block} voxels exceed 2**63: use smaller blocks")
    made_of = {**options.model_dump(mode="json"), "storage": storage.model_dump(mode="json")}
    with claim(
        manifest, "fragments", made_of, {"affinities": read(affinities)["fingerprint"]}, overwrite=overwrite
    ) as held:
        if source.voxel_size is None:
            raise ShapeError(f"{affinities} has no voxel size")
        create_volume(
            held.store,
            shape=source.shape,
            dtype=np.uint64,
            chunk=storage.chunk,
            shard=storage.shard,
            voxel_size=source.voxel_size,
            offset=source.offset,
        )
        function = partial(fragment_block, store_of(affinities), held.store, options, grid)
        run_blocks("fragments", source.roi, options.block, function, workers=workers, done=held.progress(options.block))
        held.stats["voxels"] = source.roi.size


def fragment_block(affinities: Path, out: Path, options: FragmentsOptions, grid: Triple, block: Block) -> None:
    """Compute and write the fragments of one block."""
    source = open_volume(affinities)
    found = _fragments(source, options, block)
    base = np.uint64(block_number(block.index, grid) * int(np.prod(options.block)))
    open_volume(out).write(block.roi, np.where(found > 0, found + base, np.uint64(0)))


def _fragments(
    source: Volume, options: FragmentsOptions, block: Block
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
    read_roi = block.roi.grow(options.halo).intersect(source.roi)
    size = source.voxel_size or (1.0, 1.0, 1.0)
    found = watershed(source.read(read_roi), affinity_offsets(source), options.watershed, voxel_size=size)
    return clean(found, block.roi.slices(read_roi), options.dust)
