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
    seen: tuple[int, int, int],
    best: int,
) -> int:
    """Return the highest voxel of the window that can be seen, as a flat index; the first of equals.

    ``best`` is that of the window ``seen`` inside of it, which is not searched again.
    """
    nz, ny, nx = height.shape
    z, y, x = at
    top = height[best // (ny * nx), best // nx % ny, best % nx]
    for a in range(max(z - window[0], 0), min(z + window[0] + 1, nz)):
        for b in range(max(y - window[1], 0), min(y + window[1] + 1, ny)):
            row, c, stop = height[a, b], max(x - window[2], 0), min(x + window[2] + 1, nx)
            skips = abs(a - z) <= seen[0] and abs(b - y) <= seen[1]
            while c < stop:
                if skips and c == max(x - seen[2], 0):
                    c = x + seen[2] + 1
                    continue
                other = (a * ny + b) * nx + c
                better = row[c] > top or (row[c] == top and other < best)
                if better and _sees(height, links, least, at, (a, b, c)):
                    best, top = other, row[c]
                c += 1
    return best


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
    height: NDArray[np.float32], links: NDArray[np.uint8], least: int, first: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Divide the inside among its peaks, by climbing (quick shift: Vedaldi & Soatto 2008).

    Each voxel goes to the highest of its neighbours that strong links lead to, and so on. Among equals the first in C
    order is higher.

    Args:
        height: float32 (z, y, x), negative where nothing is inside.
        links: uint8 (z + 2, y + 2, x + 2, 3 or more), ``[p, axis]`` is what joins ``p`` and ``p - e_axis``, with a
            margin of one voxel as `flood.levels` has it.
        least: links must be above this.
        first: axis that is climbed first, 0 or 1.

    Returns:
        int32 (z + 2, y + 2, x + 2), with a margin of 0: 1..n inside, by the peaks' order in C; int64 (n,), the peaks as
        flat indices of the heights.
    """
    nz, ny, nx = height.shape
    target, count = np.full(nz * ny * nx, -1, np.int32), 0
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                if height[z, y, x] >= 0:
                    own = (z * ny + y) * nx + x
                    target[own] = _highest_neighbour(height, links, least, (z, y, x), first)
                    count += target[own] == own
    peaks, k = np.empty(count, np.int64), 0
    for p in range(target.size):
        if target[p] == p:
            peaks[k] = p
            k += 1
    return _named(target, (nz, ny, nx)), peaks


@compiled
def joined(
    height: NDArray[np.float32],
    links: NDArray[np.uint8],
    least: int,
    windows: NDArray[np.int64],
    labels: NDArray[np.int32],
    peaks: NDArray[np.int64],
) -> NDArray[np.int32]:
    """Join basins where one peak sees the way to another, for several windows.

    From a peak lower than another voxel in the window around it, the way leads on to the highest one there, if it can
    be seen: so a thick neurite does not swallow the thin one beside it. Neighbours come first, corners included.

    Args:
        height: as of `basins`.
        links: likewise.
        least: likewise.
        windows: int64 (w, 3), voxels that are looked at on either side along z, y, x, each inside of the next; 0 along
            an axis that is not climbed.
        labels: from `basins`.
        peaks: likewise.

    Returns:
        int32 (w, n + 1), the basin that each one comes to lie in; 0 stays 0.
    """
    _, ny, nx = height.shape
    into = np.zeros((len(windows), peaks.size + 1), np.int32)
    for k in range(peaks.size):
        p = peaks[k]
        at = (p // (ny * nx), p // nx % ny, p % nx)
        seen, best = (0, 0, 0), p
        for w in range(len(windows)):
            window = (windows[w, 0], windows[w, 1], windows[w, 2])
            near = (min(window[0], 1), min(window[1], 1), min(window[2], 1))
            found = _uphill(height, links, least, at, near, (0, 0, 0), p)
            if found == p:
                best = _uphill(height, links, least, at, window, seen, best)
                seen, found = window, best
            into[w, k + 1] = labels[found // (ny * nx) + 1, found // nx % ny + 1, found % nx + 1]
    for row in into:
        for k in range(row.size):
            end = row[k]
            while row[end] != end:
                end = row[end]
            row[k] = end
    return into


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
