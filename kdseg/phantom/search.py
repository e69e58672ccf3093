"""The nearest object of a point and the next one, among tapered segments.

A tile looks only at the segments that can be nearest or second to one of its points. This selection is
conservative and keeps the order of the segments, so that no result depends on it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdseg.phantom.hashing import compiled
from kdseg.phantom.tissue import REACH, Segments

Found = tuple[int, float, float, float, int, float, float]
"""Nearest object: segment, position 0 to 1 along it, distance to its axis and to its surface; next object:
segment (-1 for none within reach), position, distance to the surface."""


@compiled
def _squared_distance(segments: Segments, n: int, z: float, y: float, x: float) -> tuple[float, float]:
    """Return the squared distance of a point to a segment, and the position 0 to 1 of its nearest point."""
    a, v = segments.start[n], segments.axis[n]
    dz, dy, dx = z - a[0], y - a[1], x - a[2]
    t = min(max((dz * v[0] + dy * v[1] + dx * v[2]) * segments.inverse[n], 0.0), 1.0)
    dz, dy, dx = dz - t * v[0], dy - t * v[1], dx - t * v[2]
    return dz * dz + dy * dy + dx * dx, t


@compiled
def select(
    segments: Segments, among: NDArray[np.int64], centre: NDArray[np.float64], radius: float
) -> NDArray[np.int64]:
    """Return those of ``among`` that can be first or second, or within reach, in a ball.

    The surface distance of a segment changes by at most its slope times the way; second to none is an
    object whose smallest value in the ball exceeds the largest value that the second object can have.
    """
    nearest, slope = np.empty(len(among)), np.empty(len(among))
    best, second, owner = np.inf, np.inf, np.uint64(0)
    for k, n in enumerate(among):
        square, t = _squared_distance(segments, n, centre[0], centre[1], centre[2])
        v, r = segments.axis[n], segments.radius[n]
        slope[k] = 1.0 + abs(r[1] - r[0]) / np.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])
        middle = np.sqrt(square) - (r[0] + t * (r[1] - r[0]))
        nearest[k] = middle - slope[k] * radius
        most = middle + slope[k] * radius
        if segments.owner[n] == owner:
            best = min(best, most)
        elif most < best:
            best, second, owner = most, best, segments.owner[n]
        else:
            second = min(second, most)
    return among[nearest <= min(second, REACH) + 1e-6]


@compiled
def nearest_two(segments: Segments, among: NDArray[np.int64], z: float, y: float, x: float) -> Found:
    """Return the nearest and the next object of a point, see `Found`; earlier segments win ties."""
    n1, t1, d1, s1 = -1, 0.0, 0.0, REACH
    n2, t2, s2 = -1, 0.0, REACH
    owner = np.uint64(0)
    for n in among:
        square, t = _squared_distance(segments, n, z, y, x)
        r = segments.radius[n, 0] + t * (segments.radius[n, 1] - segments.radius[n, 0])
        bound = s2 + r
        if bound <= 0.0 or square >= bound * bound:
            continue
        d = np.sqrt(square)
        s = d - r
        if segments.owner[n] == owner:
            if s < s1:
                n1, t1, d1, s1 = n, t, d, s
        elif s < s1:
            n2, t2, s2 = n1, t1, s1
            n1, t1, d1, s1, owner = n, t, d, s, segments.owner[n]
        elif s < s2:
            n2, t2, s2 = n, t, s
    return n1, t1, d1, s1, n2, t2, s2


@compiled
def direction(segments: Segments, n: int, t: float, z: float, y: float, x: float) -> tuple[float, float, float]:
    """Return the unit vector from the nearest point of a segment."""
    a, v = segments.start[n], segments.axis[n]
    dz, dy, dx = z - a[0] - t * v[0], y - a[1] - t * v[1], x - a[2] - t * v[2]
    length = np.sqrt(dz * dz + dy * dy + dx * dx) + 1e-9
    return dz / length, dy / length, dx / length
