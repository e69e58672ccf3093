"""Depth of each voxel inside its neuron: the heights whose peaks are seeds of the watershed, compiled by numba.

Heights are float32 (z, y, x). Sums are made in a fixed order, so that the same input gives the same heights.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdseg.geometry import VoxelSize
from kdseg.running.compiled import compiled

REACH = 16
"""Voxels of the finest axis up to which distances are told apart: the inside of a soma is one plateau."""


@compiled
def _fan(squares: NDArray[np.float32], axis: int, weight: float) -> NDArray[np.float32]:
    """Return the lower envelope of parabolas along axis 0 or 1 of (z, y, x), row by row of x."""
    nz, ny, nx = squares.shape
    out = np.empty_like(squares)
    n = squares.shape[axis]
    # the other axis is the outer one: the rows that are read then stay in the cache
    for a in range(ny if axis == 0 else nz):
        for i in range(n):
            row, own = (out[i, a], squares[i, a]) if axis == 0 else (out[a, i], squares[a, i])
            most = np.float32(0)
            for x in range(nx):
                row[x] = own[x]
                most = max(most, own[x])
            for k in range(1, int(np.sqrt(most / weight)) + 1):
                lift = np.float32(weight * k * k)
                for j in (i - k, i + k):
                    if 0 <= j < n:
                        other = squares[j, a] if axis == 0 else squares[a, j]
                        for x in range(nx):
                            lifted = other[x] + lift
                            row[x] = lifted if lifted < row[x] else row[x]
    return out


@compiled
def _runs(inside: NDArray[np.bool_], step: float, most: float) -> NDArray[np.float32]:
    """Return the squared distance to the next voxel that is not inside, along the last axis."""
    rows, n = inside.shape
    out = np.empty(inside.shape, np.float32)
    for r in range(rows):
        distance = np.float32(most)
        for x in range(n):
            distance = min(distance + np.float32(step), np.float32(most)) if inside[r, x] else np.float32(0)
            out[r, x] = distance
        distance = np.float32(most)
        for x in range(n - 1, -1, -1):
            distance = min(distance + np.float32(step), np.float32(most)) if inside[r, x] else np.float32(0)
            out[r, x] = min(out[r, x], distance) ** 2
    return out


def distance(inside: NDArray[np.bool_], spacing: VoxelSize, first: int) -> NDArray[np.float32]:
    """Return the Euclidean distance to the next voxel that is not inside, at most ``REACH``.

    Separable (Saito & Toriwaki 1994). The border of the array is not a boundary.

    Args:
        inside: bool (z, y, x).
        spacing: length of a voxel along z, y, x, in the unit of the distance.
        first: axis along which distance counts first; 1: within each section.

    Returns:
        float32 (z, y, x).
    """
    nz, ny, nx = inside.shape
    squares = _runs(inside.reshape(nz * ny, nx), spacing[2], REACH)
    squares = _fan(squares.reshape(inside.shape), 1, spacing[1] ** 2)
    if first == 0:
        squares = _fan(squares, 0, spacing[0] ** 2)
    return np.sqrt(squares, out=squares)


@compiled
def mean_affinity(links: NDArray[np.uint8], mask: NDArray[np.bool_], first: int) -> NDArray[np.float32]:
    """Return each voxel's mean affinity to all of its neighbours, 0..255; 0 without any.

    Args:
        links: uint8 (3, z, y, x), ``[axis, p]`` is the affinity of ``p`` and ``p - e_axis``.
        mask: bool (z, y, x); others are not neighbours.
        first: axis that counts first, 0 or 1.

    Returns:
        float32 (z, y, x).
    """
    nz, ny, nx = mask.shape
    out = np.zeros(mask.shape, np.float32)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                total, ends = 0, 0
                for axis in range(first, 3):
                    dz, dy, dx = int(axis == 0), int(axis == 1), int(axis == 2)
                    if z >= dz and y >= dy and x >= dx and mask[z - dz, y - dy, x - dx]:
                        total, ends = total + int(links[axis, z, y, x]), ends + 1
                    if z + dz < nz and y + dy < ny and x + dx < nx and mask[z + dz, y + dy, x + dx]:
                        total, ends = total + int(links[axis, z + dz, y + dy, x + dx]), ends + 1
                if ends > 0 and mask[z, y, x]:
                    out[z, y, x] = np.float32(total) / np.float32(ends)
    return out


@compiled
def _smooth_rows(height: NDArray[np.float32], out: NDArray[np.float32], weight: np.float32) -> None:
    """Weigh each row of the middle axis of (a, n, b) with the next ones; the outermost counts twice."""
    outer, n, inner = height.shape
    centre = np.float32(1) - np.float32(2) * weight
    for a in range(outer):
        for i in range(n):
            below, own, above = height[a, max(i - 1, 0)], height[a, i], height[a, min(i + 1, n - 1)]
            row = out[a, i]
            for x in range(inner):
                row[x] = centre * own[x] + weight * (below[x] + above[x])


@compiled
def _smooth_within(height: NDArray[np.float32], out: NDArray[np.float32], weight: np.float32) -> None:
    rows, n = height.shape
    centre = np.float32(1) - np.float32(2) * weight
    for r in range(rows):
        row, new = height[r], out[r]
        for x in range(1, n - 1):
            new[x] = centre * row[x] + weight * (row[x - 1] + row[x + 1])
        new[0] = centre * row[0] + weight * (row[0] + row[min(1, n - 1)])
        new[n - 1] = centre * row[n - 1] + weight * (row[max(n - 2, 0)] + row[n - 1])


def smooth(height: NDArray[np.float32], spacing: VoxelSize, first: int) -> NDArray[np.float32]:
    """Return heights smoothed by two binomial filters per axis, together of the variance of one voxel.

    Args:
        height: float32 (z, y, x), C-contiguous; overwritten.
        spacing: length of a voxel along z, y, x, in voxels of the finest axis.
        first: axis that is smoothed first, 0 or 1.

    Returns:
        float32 (z, y, x).
    """
    nz, ny, nx = height.shape
    other = np.empty_like(height)
    for axis in range(first, 3):
        weight = np.float32(0.25 / spacing[axis] ** 2)
        for _ in range(2):
            if axis == 2:
                _smooth_within(height.reshape(nz * ny, nx), other.reshape(nz * ny, nx), weight)
            else:
                rows = (1, nz, ny * nx) if axis == 0 else (nz, ny, nx)
                _smooth_rows(height.reshape(rows), other.reshape(rows), weight)
            height, other = other, height
    return height
