"""Seeds of the watershed: how far inside a voxel is, and the basins of that, compiled by numba.

Heights are float32 (z, y, x). Sums are made in a fixed order, so that the same input gives the same heights.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

REACH = 16
"""Voxels of the finest axis up to which distances are told apart: the inside of a soma is one plateau."""

Spacing = tuple[float, float, float]


@njit(cache=True)
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


@njit(cache=True)
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


def distance(inside: NDArray[np.bool_], spacing: Spacing, first: int) -> NDArray[np.float32]:
    """Return the Euclidean distance to the next voxel that is not inside, at most ``REACH``.

    Separable (Saito & Toriwaki 1994). The border of the array is no boundary.

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


@njit(cache=True)
def mean_affinity(links: NDArray[np.uint8], mask: NDArray[np.bool_], first: int) -> NDArray[np.float32]:
    """Return each voxel's mean affinity to all of its neighbours, 0..255; 0 without any.

    Args:
        links: uint8 (3, z, y, x), ``[axis, p]`` is the affinity of ``p`` and ``p - e_axis``.
        mask: bool (z, y, x); others are no neighbours.
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


@njit(cache=True)
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


@njit(cache=True)
def _smooth_within(height: NDArray[np.float32], out: NDArray[np.float32], weight: np.float32) -> None:
    rows, n = height.shape
    centre = np.float32(1) - np.float32(2) * weight
    for r in range(rows):
        row, new = height[r], out[r]
        for x in range(1, n - 1):
            new[x] = centre * row[x] + weight * (row[x - 1] + row[x + 1])
        new[0] = centre * row[0] + weight * (row[0] + row[min(1, n - 1)])
        new[n - 1] = centre * row[n - 1] + weight * (row[max(n - 2, 0)] + row[n - 1])


def smooth(height: NDArray[np.float32], spacing: Spacing, first: int) -> NDArray[np.float32]:
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


@njit(cache=True)
def _sees(
    inside: NDArray[np.bool_],
    links: NDArray[np.uint8],
    least: int,
    a: tuple[int, int, int],
    b: tuple[int, int, int],
) -> bool:
    """Return whether the straight way between two voxels, over faces, stays inside and on links above ``least``."""
    dz, dy, dx = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    n = max(abs(dz), abs(dy), abs(dx))
    z, y, x = a
    for i in range(1, n + 1):
        # rounded half up, in integers
        to = a[0] + (2 * i * dz + n) // (2 * n), a[1] + (2 * i * dy + n) // (2 * n), a[2] + (2 * i * dx + n) // (2 * n)
        if to[0] != z:
            if not inside[to[0], y, x] or links[max(z, to[0]) + 1, y + 1, x + 1, 0] <= least:
                return False
            z = to[0]
        if to[1] != y:
            if not inside[z, to[1], x] or links[z + 1, max(y, to[1]) + 1, x + 1, 1] <= least:
                return False
            y = to[1]
        if to[2] != x:
            if not inside[z, y, to[2]] or links[z + 1, y + 1, max(x, to[2]) + 1, 2] <= least:
                return False
            x = to[2]
    return True


@njit(cache=True)
def _uphill(
    height: NDArray[np.float32],
    inside: NDArray[np.bool_],
    links: NDArray[np.uint8],
    least: int,
    at: tuple[int, int, int],
    window: tuple[int, int, int],
) -> int:
    """Return the highest voxel of the window that can be seen, as a flat index; the first of equals."""
    nz, ny, nx = height.shape
    z, y, x = at
    best, top = (z * ny + y) * nx + x, height[z, y, x]
    for a in range(max(z - window[0], 0), min(z + window[0] + 1, nz)):
        for b in range(max(y - window[1], 0), min(y + window[1] + 1, ny)):
            for c in range(max(x - window[2], 0), min(x + window[2] + 1, nx)):
                other = (a * ny + b) * nx + c
                better = height[a, b, c] > top or (height[a, b, c] == top and other < best)
                if better and inside[a, b, c] and _sees(inside, links, least, at, (a, b, c)):
                    best, top = other, height[a, b, c]
    return int(best)


@njit(cache=True)
def _highest_neighbour(
    height: NDArray[np.float32],
    inside: NDArray[np.bool_],
    links: NDArray[np.uint8],
    least: int,
    at: tuple[int, int, int],
    first: int,
) -> int:
    """Return the highest of a voxel and its neighbours over links above ``least``, flat; the first of equals."""
    nz, ny, nx = height.shape
    z, y, x = at
    own = (z * ny + y) * nx + x
    best, top = own, height[z, y, x]
    # before the voxel itself, an equal one wins; ascending indices keep the first of equals
    if first == 0 and z > 0 and links[z + 1, y + 1, x + 1, 0] > least and height[z - 1, y, x] >= top and inside[z - 1, y, x]:
        best, top = own - ny * nx, height[z - 1, y, x]
    if y > 0 and links[z + 1, y + 1, x + 1, 1] > least and inside[z, y - 1, x]:
        there = height[z, y - 1, x]
        if there > top or (best == own and there == top):
            best, top = own - nx, there
    if x > 0 and links[z + 1, y + 1, x + 1, 2] > least and inside[z, y, x - 1]:
        there = height[z, y, x - 1]
        if there > top or (best == own and there == top):
            best, top = own - 1, there
    if x + 1 < nx and links[z + 1, y + 1, x + 2, 2] > least and height[z, y, x + 1] > top and inside[z, y, x + 1]:
        best, top = own + 1, height[z, y, x + 1]
    if y + 1 < ny and links[z + 1, y + 2, x + 1, 1] > least and height[z, y + 1, x] > top and inside[z, y + 1, x]:
        best, top = own + nx, height[z, y + 1, x]
    ahead = first == 0 and z + 1 < nz and links[z + 2, y + 1, x + 1, 0] > least
    if ahead and height[z + 1, y, x] > top and inside[z + 1, y, x]:
        best = own + ny * nx
    return int(best)


@njit(cache=True)
def basins(
    height: NDArray[np.float32],
    inside: NDArray[np.bool_],
    links: NDArray[np.uint8],
    least: int,
    window: tuple[int, int, int],
    first: int,
) -> NDArray[np.int32]:
    """Divide the inside among its peaks, by climbing (quick shift: Vedaldi & Soatto 2008).

    Each voxel goes to the highest of its neighbours that strong links lead to, and so on. From a peak lower
    than another one in the window around it, the way leads on to the highest voxel there, if it can be seen:
    so a thick neurite does not swallow the thin one beside it. Among equals the first in C order is higher.

    Args:
        height: float32 (z, y, x).
        inside: bool (z, y, x).
        links: uint8 (z + 2, y + 2, x + 2, 3 or more), ``[p, axis]`` is what joins ``p`` and ``p - e_axis``, with a
            margin of one voxel as `flood.levels` has it.
        least: links must be above this.
        window: voxels that are looked at on either side along z, y, x.
        first: axis that is climbed first, 0 or 1; the window must be 0 along the others.

    Returns:
        int32 (z + 2, y + 2, x + 2), with a margin of 0: 1..n inside, by the peaks' order in C.
    """
    nz, ny, nx = height.shape
    target = np.full(nz * ny * nx, -1, np.int32)
    near = (min(window[0], 1), min(window[1], 1), min(window[2], 1))
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                if not inside[z, y, x]:
                    continue
                own = (z * ny + y) * nx + x
                best = _highest_neighbour(height, inside, links, least, (z, y, x), first)
                if best == own:
                    best = _uphill(height, inside, links, least, (z, y, x), near)
                if best == own:
                    best = _uphill(height, inside, links, least, (z, y, x), window)
                target[own] = best
    return _named(target, (nz, ny, nx))


@njit(cache=True)
def _named(target: NDArray[np.int32], shape: tuple[int, int, int]) -> NDArray[np.int32]:
    """Follow targets (-1: none) to the voxels that are their own, and number those. Overwrites them."""
    nz, ny, nx = shape
    out = np.zeros((nz + 2, ny + 2, nx + 2), np.int32)
    name = -1
    for p in range(target.size):
        if target[p] == p:
            name -= 1
            target[p] = name
    p = -1
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                p += 1
                end = p
                while target[end] >= 0:
                    end = target[end]
                found = target[end]
                on = p
                while target[on] >= 0:
                    following = target[on]
                    target[on] = found
                    on = following
                out[z + 1, y + 1, x + 1] = -1 - found
    return out
