"""Smooth random fields: hashed values on a lattice, interpolated between its points."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.volumes.phantom.hashing import chain, compiled, hash3, uniform

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
def _steps(field: Field, axis: int, positions: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return, for positions in nm along an axis, the lattice point before each and the weight of the next one."""
    index, weight = np.empty(positions.size, np.int64), np.empty(positions.size)
    for n in range(positions.size):
        u = positions[n] * field.rate
        k = np.floor(u)
        u = u - k
        index[n], weight[n] = int(k) - field.first[axis], u * u * (3.0 - 2.0 * u)
    return index, weight


@compiled
def _along(values: NDArray[np.float64], index: NDArray[np.int64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (2, y, x): lines of lattice points (2, y, :) interpolated to the positions along x."""
    lines = np.empty((2, values.shape[1], index.size))
    for k in range(2):
        for m in range(values.shape[1]):
            line, out = values[k, m], lines[k, m]
            for n in range(index.size):
                before = line[index[n]]
                out[n] = before + weight[n] * (line[index[n] + 1] - before)
    return lines


@compiled
def sample(field: Field, z: float, y: NDArray[np.float64], x: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """Fill ``out`` (y, x) with the field in one plane: cubic (smoothstep) between the eight points around each.

    A row of voxels lies between the same four lines of lattice points, which rows share: this is what makes it fast.

    Args:
        field: a field over a box that holds all positions.
        z: position of the plane in nm.
        y: float64 (y,), positions of the rows in nm, ascending.
        x: float64 (x,), positions along a row in nm.
        out: float64 (y, x) or larger, changed.
    """
    k, u = _steps(field, 0, np.full(1, z))
    j, v = _steps(field, 1, y)
    i, w = _steps(field, 2, x)
    lines = _along(field.values[k[0] : k[0] + 2, j[0] : j[-1] + 2], i, w)
    near, far = lines[0], lines[1]
    for m in range(y.size):
        row, weight, towards = j[m] - j[0], v[m], u[0]
        for n in range(x.size):
            a = near[row, n] + weight * (near[row + 1, n] - near[row, n])
            b = far[row, n] + weight * (far[row + 1, n] - far[row, n])
            out[m, n] = a + towards * (b - a)
