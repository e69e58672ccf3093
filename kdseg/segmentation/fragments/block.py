"""Fragments of one cell of the canonical grid, from arrays; wherever its affinities come from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kdseg.config.segmentation import FragmentsOptions
from kdseg.errors import DataError
from kdseg.geometry import Offsets, Roi, Slices, Triple, VoxelSize, block_number, grid_shape
from kdseg.segmentation.fragments.watershed import Grains, clean, drop_weak, fragments, seeded_grains
from kdseg.segmentation.links import nearest_channels
from kdseg.segmentation.waterz import waterz_segments

LARGEST_ID = 2**63


def halo_roi(options: FragmentsOptions, cell: Roi, volume: Roi) -> Roi:
    """Return the voxels that the fragments of a cell are made from."""
    z, y, x = options.halo
    # sections that are flooded alone know nothing of each other, unless they are merged afterwards
    return cell.grow((0 if per_section(options) and options.premerge is None else z, y, x)).intersect(volume)


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
    pieces = clean(_unfiltered(affinities, offsets, options, tissue, voxel_size), core, options.dust)
    if options.least_mean > 0:
        flat = per_section(options)
        pieces = drop_weak(pieces, affinities, offsets, core, options.least_mean, tissue, per_section=flat)
    return pieces


def cell_grains(
    affinities: NDArray[np.uint8],
    offsets: Offsets,
    options: Sequence[FragmentsOptions],
    tissue: NDArray[np.bool_] | None,
    voxel_size: VoxelSize,
) -> Grains:
    """Return what the fragments of one cell and its halo are made of, before any filter.

    Args:
        affinities: as of `cell_fragments`.
        offsets: likewise.
        options: equal in `shared`, by ascending `seed_distance`, each once.
        tissue: likewise.
        voxel_size: nm.
    """
    watershed = options[0].watershed
    if len(options) > 1 and watershed.method == "watershed":
        distances = [seed_distance(one) for one in options]
        return seeded_grains(affinities, offsets, watershed, distances, tissue, voxel_size)
    found = _unfiltered(affinities, offsets, options[0], tissue, voxel_size)
    return Grains(found, np.arange(int(found.max(initial=0)) + 1)[None])


def shared(options: FragmentsOptions) -> FragmentsOptions:
    """Return what options agree in whose fragments are made of the same grains.

    Filters are left out, and the distance of seeds, unless fragments are merged before they are grains.

    Args:
        options: of one of them.
    """
    update: dict[str, object] = {"dust": 0, "least_mean": 0.0}
    if options.watershed.method == "watershed" and options.premerge is None:
        update["watershed"] = options.watershed.model_copy(update={"seed_distance": 1})
    return options.model_copy(update=update)


def seed_distance(options: FragmentsOptions) -> int:
    """Return the distance up to which seeds are joined; 0 where the method has none."""
    return options.watershed.seed_distance if options.watershed.method == "watershed" else 0


def _unfiltered(
    affinities: NDArray[np.uint8],
    offsets: Offsets,
    options: FragmentsOptions,
    tissue: NDArray[np.bool_] | None,
    voxel_size: VoxelSize,
) -> NDArray[np.uint64]:
    found = fragments(affinities, offsets, options.watershed, tissue, voxel_size)
    if options.premerge is not None and found.any():
        (found,) = waterz_segments(affinities, found, offsets, [options.premerge])
    return found


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


def renumbered(ids: NDArray[np.uint64], index: Triple, was: Triple, now: Triple, block: Triple) -> NDArray[np.uint64]:
    """Return the ids of one cell, made by `unique_ids` in a grid of ``was`` cells, as they are in one of ``now``.

    Args:
        ids: uint64, of that cell alone; 0 is background.
        index: of the cell.
        was: number of cells of the volume, in which the ids were made.
        now: likewise, of the volume as it is.
        block: voxels per cell.
    """
    # unsigned numbers wrap around: a difference below 0 is right, too
    shift = np.uint64((block_number(index, now) - block_number(index, was)) * int(np.prod(block)) % 2**64)
    return np.where(ids > 0, ids + shift, np.uint64(0)) if shift else ids


def checked_grid(shape: Triple, block: Triple) -> Triple:
    """Return the number of cells of a volume.

    Raises:
        DataError: if ids would overflow.
    """
    grid = grid_shape(shape, block)
    if int(np.prod(grid, dtype=object)) * int(np.prod(block, dtype=object)) >= LARGEST_ID:
        raise DataError(f"ids of a grid of {grid} blocks of {block} voxels exceed 2**63: use smaller blocks")
    return grid


def per_section(options: FragmentsOptions) -> bool:
    """Return whether sections are flooded alone."""
    return options.watershed.method == "watershed" and options.watershed.per_section
