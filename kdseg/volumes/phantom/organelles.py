"""Contents of the cytoplasm: mitochondria, vesicles, reticulum, microtubules; grey values to be added."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.volumes.phantom.fields import Point
from kdseg.volumes.phantom.hashing import chain, compiled, hash3, uniform
from kdseg.volumes.phantom.tissue import Segments

_CELL = 52.0
"""nm; extent of a cell of the lattice of vesicles."""


class Contents(NamedTuple):
    """Cytoplasm around each segment.

    Attributes:
        looks: float64 (n, 5): size of a mitochondrion at the start and its growth to the end, length in nm, grey
            value of the object, and 1 for an object with synapses, else 0.
        across: float64 (n, 6), two unit vectors (z, y, x) across the axis.
        tubules: uint64 (n,), key of the microtubules of its object.
    """

    looks: NDArray[np.float64]
    across: NDArray[np.float64]
    tubules: NDArray[np.uint64]


class Vesicles(NamedTuple):
    """The vesicles of a box, one at most per cell of a lattice.

    Attributes:
        centre: float64 (z, y, x, 3) in nm; infinite where a cell has none.
        first: int64 (3,), index of the first cell.
    """

    centre: NDArray[np.float64]
    first: NDArray[np.int64]


@compiled
def bump(x: float) -> float:
    """Return a bell of height 1 and half-width 1 with a flat top."""
    x = x * x
    return 1.0 / (1.0 + x * x)


@compiled
def ramp(x: float) -> float:
    """Return ``x`` cut to 0 and 1, with a smooth start and end."""
    x = min(max(x, 0.0), 1.0)
    return x * x * (3.0 - 2.0 * x)


@compiled
def _sides(v: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """Fill ``out`` with two unit vectors across ``v``."""
    # The axis furthest from it without its part along it, and their cross product.
    k = 0
    if abs(v[1]) < abs(v[k]):
        k = 1
    if abs(v[2]) < abs(v[k]):
        k = 2
    square = v[0] * v[0] + v[1] * v[1] + v[2] * v[2]
    e0, e1, e2 = -v[k] * v[0] / square, -v[k] * v[1] / square, -v[k] * v[2] / square
    if k == 0:
        e0 += 1.0
    elif k == 1:
        e1 += 1.0
    else:
        e2 += 1.0
    length = np.sqrt(e0 * e0 + e1 * e1 + e2 * e2)
    e0, e1, e2 = e0 / length, e1 / length, e2 / length
    root = np.sqrt(square)
    out[0], out[1], out[2] = e0, e1, e2
    out[3], out[4] = (v[1] * e2 - v[2] * e1) / root, (v[2] * e0 - v[0] * e2) / root
    out[5] = (v[0] * e1 - v[1] * e0) / root


@compiled
def contents(segments: Segments) -> Contents:
    """Return the contents of all segments, once instead of for every voxel."""
    total = len(segments.owner)
    looks, across, tubules = np.empty((total, 5)), np.empty((total, 6)), np.empty(total, np.uint64)
    for n in range(total):
        v, filling, label = segments.axis[n], segments.filling[n], segments.owner[n]
        looks[n, 0], looks[n, 1] = filling[0], filling[1] - filling[0]
        looks[n, 2] = np.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])
        looks[n, 3] = 34.0 * (uniform(chain(label, 5)) - 0.5)
        looks[n, 4] = 1.0 if uniform(chain(label, 4)) < 0.45 else 0.0
        _sides(v, across[n])
        tubules[n] = chain(label, 7)
    return Contents(looks, across, tubules)


@compiled
def _centres(key: np.uint64, first: NDArray[np.int64], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    centre = np.full((*shape, 3), np.inf)
    for i in range(shape[0]):
        for j in range(shape[1]):
            for k in range(shape[2]):
                z, y, x = i + first[0], j + first[1], k + first[2]
                bits = hash3(key, z, y, x)
                if bits & np.uint64(3) == 0:
                    continue
                more = chain(bits, 1)
                centre[i, j, k, 0] = (z + 0.3 + 0.4 * uniform(bits)) * _CELL
                centre[i, j, k, 1] = (y + 0.3 + 0.4 * uniform(more)) * _CELL
                centre[i, j, k, 2] = (x + 0.3 + 0.4 * uniform(chain(more, 1))) * _CELL
    return centre


def vesicles(key: np.uint64, low: Point, high: Point) -> Vesicles:
    """Return the vesicles that can be seen from ``low`` to ``high`` in nm."""
    first = np.floor(np.array(low) / _CELL - 0.5).astype(np.int64)
    z, y, x = (int(n) for n in np.floor(np.array(high) / _CELL - 0.5).astype(np.int64) + 2 - first)
    return Vesicles(_centres(key, first, (z, y, x)), first)


@compiled
def mitochondrion(size: float, t: float, length: float, d: float, depth: float, wobble: float) -> float:
    """Return the grey value of a mitochondrion around the axis of a segment, without a branch.

    Args:
        size: of the mitochondrion at this place, 0 (none) to 1.
        t: position along the segment, 0 to 1.
        length: of the segment in nm.
        d: distance to its axis in nm.
        depth: distance to the membrane in nm.
        wobble: a smooth field in [-1, 1] that deforms the mitochondrion.
    """
    available = d + depth
    full = 1.0 - (1.0 - size) * (1.0 - size)
    distance = d + 16.0 * wobble - min(0.74 * available, 140.0) * full
    along = t * length / 52.0 + 1.3 * wobble
    stripe = abs(2.0 * (along - np.floor(along)) - 1.0)
    inside = ramp((6.0 - distance) / 16.0)
    value = -inside * (20.0 + 22.0 * stripe) - 34.0 * bump(distance / 11.0) * (1.0 - 0.4 * inside)
    there = (size > 0.0) & (available >= 50.0) & (distance <= 30.0)
    return value if there else 0.0


@compiled
def vesicle(around: Vesicles, z: float, y: float, x: float) -> float:
    """Return the grey value of the vesicles near a point in nm: dark shells."""
    first = around.first
    i = int(np.floor(z / _CELL - 0.5)) - first[0]
    j = int(np.floor(y / _CELL - 0.5)) - first[1]
    k = int(np.floor(x / _CELL - 0.5)) - first[2]
    value = 0.0
    for a in range(2):
        for b in range(2):
            for c in range(2):
                centre = around.centre[i + a, j + b, k + c]
                dz, dy, dx = z - centre[0], y - centre[1], x - centre[2]
                shell = (np.sqrt(dz * dz + dy * dy + dx * dx) - 16.0) / 9.0
                value = max(value, bump(shell))
    return -36.0 * value


@compiled
def tubule(key: np.uint64, across: NDArray[np.float64], dz: float, dy: float, dx: float) -> float:
    """Return the grey value of microtubules along a segment: dots of a lattice across its axis.

    Args:
        key: of the object's microtubules.
        across: float64 (6,), two unit vectors across the axis.
        dz: way in nm from the start of the segment to the point.
        dy: likewise.
        dx: likewise.
    """
    p = (dz * across[0] + dy * across[1] + dx * across[2]) / 46.0
    q = (dz * across[3] + dy * across[4] + dx * across[5]) / 46.0
    i, j = int(np.floor(p)), int(np.floor(q))
    bits = chain(chain(key, i), j)
    if bits & np.uint64(1) == 0:
        return 0.0
    dp = (p - i - 0.35 - 0.3 * uniform(bits)) * 46.0
    dq = (q - j - 0.35 - 0.3 * uniform(chain(bits, 1))) * 46.0
    return -17.0 * bump(np.sqrt(dp * dp + dq * dq) / 11.0)
