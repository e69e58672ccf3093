"""Size, bounding box and centre of fragments and segments, additive over blocks and over fragments.

All columns are integers: sums of coordinates instead of means, so that the tables of blocks add up to
exactly the table of the volume, and those of fragments to that of segments, in any order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from kdseg.errors import DataError, ShapeError
from kdseg.geometry import Slices, Triple
from kdseg.segmentation.lut import apply

_FIRST_CAPACITY = 1 << 10
_HASH = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio (Knuth, multiplicative hashing)
_COLUMNS = 10  # of a row while counting: size, begin zyx, end zyx, total zyx
_HALF, _LOW = np.uint64(32), np.uint64(2**32 - 1)


class Statistics(NamedTuple):
    """Size, bounding box and sum of coordinates of fragments (or segments), one row each, sorted by id without repeats.

    Attributes:
        fragment: uint64 (f,), ids, never 0.
        size: uint64 (f,), number of voxels, at least 1.
        begin: int64 (f, 3), first voxel of the bounding box, (z, y, x), in voxels of the volume.
        end: int64 (f, 3), the first voxel behind the bounding box, likewise.
        total: uint64 (f, 3), sum of the coordinates (z, y, x) of all voxels, in voxels of the volume.
    """

    fragment: NDArray[np.uint64]
    size: NDArray[np.uint64]
    begin: NDArray[np.int64]
    end: NDArray[np.int64]
    total: NDArray[np.uint64]


def block_statistics(ids: NDArray[np.uint64], owned: Slices, origin: Triple) -> Statistics:
    """Return the statistics of the voxels that one block owns.

    One pass; a run of equal voxels along x costs one look-up and is summed in closed form.

    Args:
        ids: uint64 (z, y, x), fragment or segment ids over the read_roi; 0 is background, left out.
        owned: the write_roi, as slices of ``ids``; other voxels are not counted.
        origin: voxel ``ids[0, 0, 0]`` in voxels of the volume, (z, y, x), none negative.

    Raises:
        ShapeError: if ``ids`` is not 3-D, ``owned`` leaves the array, or ``origin`` is negative.
        DataError: if ``ids`` is not uint64, or a sum of coordinates exceeds 2**64.
    """
    if ids.ndim != 3 or any(not 0 <= s.start <= s.stop <= n for s, n in zip(owned, ids.shape, strict=True)):
        raise ShapeError(f"owned {owned} does not lie inside ids of shape {ids.shape}; expected (z, y, x) and slices")
    if ids.dtype != np.uint64:
        raise DataError(f"expected uint64 ids, got {ids.dtype}")
    if min(origin) < 0:
        raise ShapeError(f"the block starts at voxel {origin}; expected no negative coordinate")
    bounds = np.array([(s.start, s.stop) for s in owned], np.int64)
    names, rows = _count(ids, bounds)
    order = np.argsort(names)
    rows = rows[order]
    place = np.array(origin, np.int64)
    far = place.astype(np.uint64)
    size = rows[:, 0].astype(np.uint64)
    shift = size[:, None] * far
    total = rows[:, 7:10].astype(np.uint64) + shift
    # what does not fit wraps around
    over = (size[:, None] > np.uint64(2**64 - 1) // np.maximum(far, 1)) | (total < shift)
    _refuse_overflow(np.any(over, axis=1), names[order])
    return Statistics(names[order], size, rows[:, 1:4] + place, rows[:, 4:7] + place, total)


def merge(tables: Iterable[Statistics]) -> Statistics:
    """Return one table with the rows of all ``tables``; rows of one id become one.

    The result depends neither on the order of the tables nor on how the voxels are spread over them.

    Args:
        tables: any number of tables, also none.

    Raises:
        DataError: if a sum of coordinates exceeds 2**64.
    """
    parts = list(tables)
    if not parts:
        ints, words = np.empty((0, 3), np.int64), np.empty((0, 3), np.uint64)
        return Statistics(np.empty(0, np.uint64), np.empty(0, np.uint64), ints, ints, words)
    fragment, size, begin, end, total = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not fragment.size:
        return parts[0]
    order = np.argsort(fragment)
    fragment = fragment[order]
    first = np.flatnonzero(np.concatenate(([True], fragment[1:] != fragment[:-1])))
    total = total[order]
    high = np.add.reduceat(total >> _HALF, first) + (np.add.reduceat(total & _LOW, first) >> _HALF)
    _refuse_overflow(np.any(high > _LOW, axis=1), fragment[first])
    return Statistics(
        fragment[first],
        np.add.reduceat(size[order], first),
        np.minimum.reduceat(begin[order], first),
        np.maximum.reduceat(end[order], first),
        np.add.reduceat(total, first),
    )


def by_segment(statistics: Statistics, lut_from: NDArray[np.uint64], lut_to: NDArray[np.uint64]) -> Statistics:
    """Return the statistics of segments, from those of their fragments.

    Args:
        statistics: of fragments.
        lut_from: uint64 (f,), fragment ids, ascending without repeats.
        lut_to: uint64 (f,), their segments; fragments of segment 0 are left out.

    Returns:
        A table whose column ``fragment`` holds segment ids.
    """
    segment = apply(statistics.fragment, lut_from, lut_to)
    kept = segment > 0
    _, size, begin, end, total = statistics
    return merge([Statistics(segment[kept], size[kept], begin[kept], end[kept], total[kept])])


def centroid(statistics: Statistics) -> NDArray[np.float64]:
    """Return the mean voxel of each row, float64 (f, 3), (z, y, x), in voxels of the volume.

    An integer coordinate is the centre of a voxel, as in OME-Zarr.
    """
    return statistics.total / statistics.size[:, None].astype(np.float64)


def _refuse_overflow(over: NDArray[np.bool_], ids: NDArray[np.uint64]) -> None:
    if over.any():
        raise DataError(
            f"the coordinates of the voxels of {ids[over][0]} add up to 2**64 or more: "
            "it fills most of the volume, so it is background or a false merger; lower the threshold"
        )


@njit(cache=True)
def _slot(name: np.uint64, names: NDArray[np.uint64]) -> np.int64:
    """Return the row of an id in an open-addressing table, or the free row where it belongs."""
    mask = np.uint64(names.size - 1)
    k = ((name * _HASH) >> np.uint64(32)) & mask
    while names[k] != 0 and names[k] != name:
        k = (k + np.uint64(1)) & mask
    return np.int64(k)


@njit(cache=True)
def _grow(names: NDArray[np.uint64], rows: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the table with four times as many rows."""
    more_names = np.zeros(4 * names.size, np.uint64)
    more_rows = np.empty((4 * names.size, _COLUMNS), np.int64)
    for k in range(names.size):
        if names[k] != 0:
            new = _slot(names[k], more_names)
            more_names[new] = names[k]
            more_rows[new] = rows[k]
    return more_names, more_rows


@njit(cache=True)
def _add_run(row: NDArray[np.int64], z: int, y: int, start: int, stop: int) -> None:
    """Add the voxels ``(z, y, start:stop)`` to a row."""
    n = stop - start
    row[0] += n
    row[1], row[2], row[3] = min(row[1], z), min(row[2], y), min(row[3], start)
    row[4], row[5], row[6] = max(row[4], z + 1), max(row[5], y + 1), max(row[6], stop)
    row[7] += n * z
    row[8] += n * y
    row[9] += n * (start + stop - 1) // 2  # start + (start + 1) + … + (stop − 1)


@njit(cache=True)
def _count(ids: NDArray[np.uint64], bounds: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return ids in no order, and their rows, in voxels of the array."""
    names = np.zeros(_FIRST_CAPACITY, np.uint64)
    rows = np.empty((_FIRST_CAPACITY, _COLUMNS), np.int64)
    used = 0
    for z in range(bounds[0, 0], bounds[0, 1]):
        for y in range(bounds[1, 0], bounds[1, 1]):
            line = ids[z, y]
            x, last = bounds[2, 0], bounds[2, 1]
            while x < last:
                name, start = line[x], x
                x += 1
                while x < last and line[x] == name:
                    x += 1
                if name == 0:
                    continue
                k = _slot(name, names)
                if names[k] == 0:
                    if 2 * used >= names.size:
                        names, rows = _grow(names, rows)
                        k = _slot(name, names)
                    names[k] = name
                    rows[k] = 0
                    rows[k, 1:4] = np.iinfo(np.int64).max
                    used += 1
                _add_run(rows[k], z, y, start, x)
    kept = np.flatnonzero(names)
    return names[kept], rows[kept]
