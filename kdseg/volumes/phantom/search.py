"""The nearest object of a point and the next one, among tapered segments.

A leaf looks only at the segments that can be nearest or second to one of its points. This selection is
conservative and keeps the order of the segments, so that no result depends on it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdseg.volumes.phantom.hashing import compiled
from kdseg.volumes.phantom.leaf import FAR, FIRST, LEAF, NEAR, OBJECT, SECOND, X, Y, Z
from kdseg.volumes.phantom.tissue import REACH, Segments

Numbers = NDArray[np.float64]
Indices = NDArray[np.int64]

COLUMNS = 7
"""First columns of the table, which place a segment: start and axis (z, y, x), 1 / squared length."""


def table(segments: Segments) -> Numbers:
    """Return what the search needs of each segment, float64 (n, 11): one row, so that it lies together in memory.

    Columns: start (3), axis (3), 1 / squared length, radius at the start, growth of the radius to the end, bound of the
    change of the distance to the surface per way, number of the object.
    """
    v, r = segments.axis, segments.radius
    slope = 1.0 + np.abs(r[:, 1] - r[:, 0]) / np.sqrt((v * v).sum(axis=1))
    number = np.unique(segments.owner, return_inverse=True)[1]
    columns = (segments.start, v, segments.inverse, r[:, 0], r[:, 1] - r[:, 0], slope, number.astype(np.float64))
    return np.column_stack(columns)


@compiled
def _bounds(rows: Numbers, among: Indices, centre: Numbers, radius: float, least: Numbers, most: Numbers) -> None:
    """Fill ``least`` and ``most`` with bounds of the distance from the points of a ball to surfaces."""
    for k in range(among.size):
        row = rows[among[k]]
        dz, dy, dx = centre[0] - row[0], centre[1] - row[1], centre[2] - row[2]
        t = min(max((dz * row[3] + dy * row[4] + dx * row[5]) * row[6], 0.0), 1.0)
        dz, dy, dx = dz - t * row[3], dy - t * row[4], dx - t * row[5]
        middle = np.sqrt(dz * dz + dy * dy + dx * dx) - (row[7] + t * row[8])
        least[k] = middle - row[9] * radius
        most[k] = middle + row[9] * radius


@compiled
def select(rows: Numbers, among: Indices, centre: Numbers, radius: float) -> Indices:
    """Return those of ``among`` that can be first or second, or within reach, in a ball.

    The surface distance of a segment changes by at most its slope times the way; second to none is an
    object whose smallest value in the ball exceeds the largest value that the second object can have.
    """
    least, most = np.empty(among.size), np.empty(among.size)
    _bounds(rows, among, centre, radius, least, most)
    best, second, owner = np.inf, np.inf, -1.0
    for k in range(among.size):
        if most[k] >= second:
            continue
        number = rows[among[k], 10]
        if number == owner:
            best = min(best, most[k])
        elif most[k] < best:
            best, second, owner = most[k], best, number
        else:
            second = most[k]
    bound = min(second, REACH) + 1e-6
    kept, count = np.empty(among.size, np.int64), 0
    for k in range(among.size):
        kept[count] = among[k]
        count += least[k] <= bound
    return kept[:count]


@compiled
def _compare(work: Numbers, row: Numbers, segment: float) -> None:
    """Let one segment compete for the first and the second place of every voxel of a leaf."""
    a0, a1, a2, v0, v1, v2, inverse = row[0], row[1], row[2], row[3], row[4], row[5], row[6]
    start, growth, number = row[7], row[8], row[10]
    for i in range(LEAF):
        dz, dy, dx = work[Z + i] - a0, work[Y + i] - a1, work[X + i] - a2
        t = min(max((dz * v0 + dy * v1 + dx * v2) * inverse, 0.0), 1.0)
        dz, dy, dx = dz - t * v0, dy - t * v1, dx - t * v2
        square = dz * dz + dy * dy + dx * dx
        r = start + t * growth
        near, far, first = work[NEAR + i], work[FAR + i], work[FIRST + i]
        second, owner = work[SECOND + i], work[OBJECT + i]
        bound = far + r
        s = np.sqrt(square) - r
        seen = (bound > 0.0) & (square < bound * bound)
        other = owner != number
        nearer = seen & (s < near)
        overtaken = nearer & other
        next_one = seen & other & (s >= near) & (s < far)
        work[FAR + i] = near if overtaken else (s if next_one else far)
        work[SECOND + i] = first if overtaken else (segment if next_one else second)
        work[NEAR + i] = s if nearer else near
        work[FIRST + i] = segment if nearer else first
        work[OBJECT + i] = number if nearer else owner


@compiled
def nearest_two(rows: Numbers, among: Indices, work: Numbers) -> None:
    """Find the nearest and the next object of the voxels of a leaf; earlier segments win ties.

    Args:
        rows: all segments, see `table`.
        among: those that can be nearest or next, ascending.
        work: the leaf; of its rows, ``FIRST`` to ``FAR`` are changed.
    """
    work[FIRST : FIRST + LEAF] = -1.0
    work[OBJECT : OBJECT + LEAF] = -1.0
    work[SECOND : SECOND + LEAF] = -1.0
    work[NEAR : NEAR + LEAF] = REACH
    work[FAR : FAR + LEAF] = REACH
    for n in among:
        _compare(work, rows[n], float(n))
