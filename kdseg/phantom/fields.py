"""Smooth random fields: hashed values on a lattice, interpolated between its points."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.phantom.hashing import chain, compiled, hash3, uniform

Point = tuple[float, float, float]


class Field(NamedTuple):
    """A field over a box.

    Attributes:
        values: float64 (z, y, x) in [-1, 1), the values at the lattice points of the box.
        first: int64 (3,), index of the first of them in the endless lattice.
        rate: lattice points per nm.
    """

    values: NDArray[np.float64]
    first: NDArray[np.int64]
    rate: float


@compiled
def lattice_values(key: np.uint64, first: NDArray[np.int64], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Return the hashed values in [-1, 1) of a box of lattice points."""
    values = np.empty(shape)
    for z in range(shape[0]):
        for y in range(shape[1]):
            for x in range(shape[2]):
                bits = hash3(key, z + first[0], y + first[1], x + first[2])
                values[z, y, x] = 2.0 * uniform(bits) - 1.0
    return values


def field(seed: np.uint64, stream: int, spacing: float, low: Point, high: Point) -> Field:
    """Return the field ``stream`` of ``seed``, ready for positions from ``low`` to ``high`` in nm."""
    first = np.floor(np.array(low) / spacing).astype(np.int64) - 1
    last = np.floor(np.array(high) / spacing).astype(np.int64) + 2
    z, y, x = (int(n) for n in last - first + 1)
    return Field(lattice_values(np.uint64(chain(seed, stream)), first, (z, y, x)), first, 1.0 / spacing)


@compiled
def sample(field: Field, z: float, y: float, x: float) -> float:
    """Return the field at a position in nm: cubic (smoothstep) between the eight points around it."""
    u, v, w = z * field.rate, y * field.rate, x * field.rate
    k, m, n = np.floor(u), np.floor(v), np.floor(w)
    u, v, w = u - k, v - m, w - n
    u, v, w = u * u * (3.0 - 2.0 * u), v * v * (3.0 - 2.0 * v), w * w * (3.0 - 2.0 * w)
    i, j, l = int(k) - field.first[0], int(m) - field.first[1], int(n) - field.first[2]  # noqa: E741
    f = field.values
    a = f[i, j, l] + w * (f[i, j, l + 1] - f[i, j, l])
    b = f[i, j + 1, l] + w * (f[i, j + 1, l + 1] - f[i, j + 1, l])
    c = f[i + 1, j, l] + w * (f[i + 1, j, l + 1] - f[i + 1, j, l])
    d = f[i + 1, j + 1, l] + w * (f[i + 1, j + 1, l + 1] - f[i + 1, j + 1, l])
    a, c = a + v * (b - a), c + v * (d - c)
    return float(a + u * (c - a))
