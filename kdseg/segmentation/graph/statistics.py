"""Size, bounding box and centre of fragments and segments, additive over blocks and over fragments.

All columns are integers: sums of coordinates instead of means, so that the tables of blocks add up to
exactly the table of the volume, and those of fragments to that of segments, in any order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import DataError, ShapeError
from kdseg.geometry import Slices, Triple
from kdseg.running.compiled import compiled
from kdseg.segmentation.lut import apply
from kdseg.segmentation.pair_table import CAPACITY, COUNT, A, grown, slot

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
    table = _count(ids, bounds)
    table = table[table[:, COUNT] > 0]
    table = table[np.argsort(table[:, A])]
    size, names = table[:, COUNT].copy(), table[:, A].copy()
    begin, end, inside = (columns.copy() for columns in np.split(table[:, 3:], 3, axis=1))
    far = np.array(origin, np.uint64)
    shift = size[:, None] * far
    total = inside + shift
    # what does not fit wraps around
    over = (size[:, None] > np.uint64(2**64 - 1) // np.maximum(far, 1)) | (total < shift)
    _refuse_overflow(np.any(over, axis=1), names)
    return Statistics(names, size, (begin + far).astype(np.int64), (end + far).astype(np.int64), total)


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


@compiled
def _count(ids: NDArray[np.uint64], bounds: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return a `pair_table` of ids and 0: size, id, 0, begin zyx, end zyx, total zyx, in voxels of the array."""
    table, used, zero, one = np.zeros((CAPACITY, 12), np.uint64), 0, np.uint64(0), np.uint64(1)
    for z in range(bounds[0, 0], bounds[0, 1]):
        for y in range(bounds[1, 0], bounds[1, 1]):
            line = ids[z, y]
            x, last = bounds[2, 0], bounds[2, 1]
            while x < last:
                name, start = line[x], np.uint64(x)
                x += 1
                while x < last and line[x] == name:
                    x += 1
                if name == zero:
                    continue
                row = table[slot(table, name, zero)]
                if row[COUNT] == zero:
                    row[A], row[3:6], row[6:9] = name, ~zero, zero
                    used += 1
                stop, plane, height = np.uint64(x), np.uint64(z), np.uint64(y)
                n = stop - start
                row[COUNT] += n
                row[3], row[4], row[5] = min(row[3], plane), min(row[4], height), min(row[5], start)
                row[6], row[7], row[8] = max(row[6], plane + one), max(row[7], height + one), max(row[8], stop)
                row[9] += n * plane
                row[10] += n * height
                row[11] += n * (start + stop - one) // np.uint64(2)  # start + (start + 1) + … + (stop − 1)
                if 2 * used > table.shape[0]:
                    table = grown(table)
    return table
