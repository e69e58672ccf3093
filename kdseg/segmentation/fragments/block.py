"""Fragments of one cell of the canonical grid, from arrays; wherever its affinities come from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdseg.config.segmentation import FragmentsOptions
from kdseg.errors import DataError
from kdseg.geometry import Offsets, Roi, Slices, Triple, VoxelSize, block_number, grid_shape
from kdseg.segmentation.fragments.watershed import clean, drop_weak, fragments
from kdseg.segmentation.links import nearest_channels
from kdseg.segmentation.waterz import waterz_segments

LARGEST_ID = 2**63


def halo_roi(options: FragmentsOptions, cell: Roi, volume: Roi) -> Roi:
    """Return the voxels that the fragments of a cell are made from."""
    z, y, x = options.halo
    # sections that are flooded alone know nothing of each other, unless they are merged afterwards
    return cell.grow((0 if _per_section(options) and options.premerge is None else z, y, x)).intersect(volume)


def channels_used(options: FragmentsOptions, offsets: Offsets) -> list[int]:
    """Return the channels that the method looks at."""
    nearest = nearest_channels(offsets)
    return list(range(len(offsets))) if options.watershed.method == "mutex" else nearest


def cell_fragments(
    affinities: NDArray[np.uint8],
    offsets: Offsets,
    options: FragmentsOptions,
    core: Slices,
    tissue: NDArray[np.bool_] | None,
    voxel_size: VoxelSize,
) -> NDArray[np.uint64]:
    """Return the fragments of one cell; a pure function of its arguments.

    Args:
        affinities: uint8 (c, z, y, x) over `halo_roi`, in 1/255, the channels of `channels_used`.
        offsets: one ``(z, y, x)`` step in voxels per channel.
        options: method and filters.
        core: the cell without its halo.
        tissue: bool (z, y, x) over `halo_roi`, False where there is none; None: all of it.
        voxel_size: nm.

    Returns:
        uint64 in the shape of the core, 0 for background, else 1..n by first occurrence in C order.
    """
    found = cell_watershed(affinities, offsets, options, tissue, voxel_size)
    return filtered(found, affinities, offsets, options, core, tissue)


def cell_watershed(
    affinities: NDArray[np.uint8],
    offsets: Offsets,
    options: FragmentsOptions,
    tissue: NDArray[np.bool_] | None,
    voxel_size: VoxelSize,
) -> NDArray[np.uint64]:
    """Return the fragments of one cell and its halo before any filter; the arguments are those of `cell_fragments`."""
    found = fragments(affinities, offsets, options.watershed, tissue, voxel_size)
    if options.premerge is not None and found.any():
        (found,) = waterz_segments(affinities, found, offsets, [options.premerge])
    return found


def filtered(
    found: NDArray[np.uint64],
    affinities: NDArray[np.uint8],
    offsets: Offsets,
    options: FragmentsOptions,
    core: Slices,
    tissue: NDArray[np.bool_] | None,
) -> NDArray[np.uint64]:
    """Return the fragments of one cell, each in one piece, without those that the filters drop.

    Args:
        found: uint64 (z, y, x) over `halo_roi`, from `cell_watershed`.
        affinities: as of `cell_fragments`, as are the others.
        offsets: of the affinities.
        options: method and filters.
        core: the cell without its halo.
        tissue: over `halo_roi`.
    """
    pieces = clean(found, core, options.dust)
    if options.least_mean > 0:
        flat = _per_section(options)
        pieces = drop_weak(pieces, affinities, offsets, core, options.least_mean, tissue, per_section=flat)
    return pieces


def unique_ids(pieces: NDArray[np.uint64], index: Triple, grid: Triple, block: Triple) -> NDArray[np.uint64]:
    """Return ids that are unique in the volume: ``cell number * voxels per cell + number within the cell``.

    Args:
        pieces: uint64 (z, y, x), 1..n, 0 for background.
        index: of the cell.
        grid: number of cells of the volume.
        block: voxels per cell.
    """
    base = np.uint64(block_number(index, grid) * int(np.prod(block)))
    return np.where(pieces > 0, pieces + base, np.uint64(0))


def checked_grid(shape: Triple, block: Triple) -> Triple:
    """Return the number of cells of a volume.

    Raises:
        DataError: if ids would overflow.
    """
    grid = grid_shape(shape, block)
    if int(np.prod(grid, dtype=object)) * int(np.prod(block, dtype=object)) >= LARGEST_ID:
        raise DataError(f"ids of a grid of {grid} blocks of {block} voxels exceed 2**63: use smaller blocks")
    return grid


def _per_section(options: FragmentsOptions) -> bool:
    return options.watershed.method == "watershed" and options.watershed.per_section
