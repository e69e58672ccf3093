"""Seeds of the watershed: the peaks of heights and their basins, compiled by numba."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdseg.running.compiled import compiled


@compiled
def _sees(
    height: NDArray[np.float32],
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
            if height[to[0], y, x] < 0 or links[max(z, to[0]) + 1, y + 1, x + 1, 0] <= least:
                return False
            z = to[0]
        if to[1] != y:
            if height[z, to[1], x] < 0 or links[z + 1, max(y, to[1]) + 1, x + 1, 1] <= least:
                return False
            y = to[1]
        if to[2] != x:
            if height[z, y, to[2]] < 0 or links[z + 1, y + 1, max(x, to[2]) + 1, 2] <= least:
                return False
            x = to[2]
    return True


@compiled
def _uphill(
    height: NDArray[np.float32],
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
                if better and _sees(height, links, least, at, (a, b, c)):
                    best, top = other, height[a, b, c]
    return int(best)


@compiled
def _highest_neighbour(
    height: NDArray[np.float32],
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
    if first == 0 and z > 0 and links[z + 1, y + 1, x + 1, 0] > least and height[z - 1, y, x] >= top:
        best, top = own - ny * nx, height[z - 1, y, x]
    if y > 0 and links[z + 1, y + 1, x + 1, 1] > least:
        there = height[z, y - 1, x]
        if there > top or (best == own and there == top):
            best, top = own - nx, there
    if x > 0 and links[z + 1, y + 1, x + 1, 2] > least:
        there = height[z, y, x - 1]
        if there > top or (best == own and there == top):
            best, top = own - 1, there
    if x + 1 < nx and links[z + 1, y + 1, x + 2, 2] > least and height[z, y, x + 1] > top:
        best, top = own + 1, height[z, y, x + 1]
    if y + 1 < ny and links[z + 1, y + 2, x + 1, 1] > least and height[z, y + 1, x] > top:
        best, top = own + nx, height[z, y + 1, x]
    ahead = first == 0 and z + 1 < nz and links[z + 2, y + 1, x + 1, 0] > least
    if ahead and height[z + 1, y, x] > top:
        best = own + ny * nx
    return int(best)


@compiled
def basins(
    height: NDArray[np.float32],
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
        height: float32 (z, y, x), negative where nothing is inside.
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
                if height[z, y, x] < 0:
                    continue
                own = (z * ny + y) * nx + x
                best = _highest_neighbour(height, links, least, (z, y, x), first)
                if best == own:
                    best = _uphill(height, links, least, (z, y, x), near)
                if best == own:
                    best = _uphill(height, links, least, (z, y, x), window)
                target[own] = best
    return _named(target, (nz, ny, nx))


@compiled
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
