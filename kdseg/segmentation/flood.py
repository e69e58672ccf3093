"""Flooding of a graph of voxels from seeds, and its connected components, compiled by numba.

All functions work on `links`: uint8 (3, z, y, x), ``[axis, p]`` is the affinity of ``p`` and ``p - e_axis``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

_LEVELS = 256


@njit(cache=True)
def strength(links: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return how far each voxel is inside: its mean affinity to both neighbours, along its weakest axis.

    A mean over all six neighbours would miss a sharp flat boundary, where five of them are on one side.

    Args:
        links: nearest affinities.
        mask: bool (z, y, x); others are neither inside nor neighbours.

    Returns:
        uint8 (z, y, x), in 1/255, rounded down; 0 outside of the mask and without any neighbour.
    """
    _, nz, ny, nx = links.shape
    out = np.zeros(mask.shape, np.uint8)
    flat, allowed, result = links.reshape(3, out.size), mask.ravel(), out.ravel()
    for p in range(out.size):
        weakest = -1
        for axis, step, count in ((0, ny * nx, nz), (1, nx, ny), (2, 1, nx)):
            place = (p // step) % count
            total, ends = 0, 0
            if place > 0 and allowed[p - step]:
                total, ends = total + int(flat[axis, p]), ends + 1
            if place < count - 1 and allowed[p + step]:
                total, ends = total + int(flat[axis, p + step]), ends + 1
            if ends > 0 and (weakest < 0 or total // ends < weakest):
                weakest = total // ends
        result[p] = max(weakest, 0) if allowed[p] else 0
    return out


def blend(links: NDArray[np.uint8], strengths: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return links that are strong only where both of their ends are inside too.

    One quarter link, three eighths the strength of each end: a single wrong link opens no boundary.

    Args:
        links: nearest affinities.
        strengths: uint8 (z, y, x), from `strength`.

    Returns:
        uint8 (3, z, y, x).
    """
    out = np.empty_like(links)
    thrice = 3 * strengths.astype(np.uint16)
    for axis in range(3):
        out[axis] = (2 * links[axis].astype(np.uint16) + thrice + np.roll(thrice, 1, axis)) >> 3
    return out


@njit(cache=True)
def _root(parent: NDArray[np.int64], k: int) -> int:
    while parent[k] != k:
        parent[k] = parent[parent[k]]
        k = parent[k]
    return k


@njit(cache=True)
def add_seeds(
    seeds: NDArray[np.int64],
    links: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    boundary: float,
    smallest: int,
) -> None:
    """Give a seed to every component that has none: to all its voxels, a new id each component.

    Components are voxels joined by affinities above ``boundary``. Without this, a thin neurite whose own
    maximum is suppressed by a thicker neighbour's would be flooded by that one.

    Args:
        seeds: int64 (z, y, x), 0 for none; changed.
        links: nearest affinities.
        mask: bool (z, y, x), others get no seed.
        boundary: in 0..1.
        smallest: components of fewer voxels get no seed.
    """
    _, nz, ny, nx = links.shape
    parent = np.arange(nz * ny * nx)
    flat_seeds, flat_mask = seeds.ravel(), mask.ravel()
    least = boundary * 255
    for axis, step in ((2, 1), (1, nx), (0, ny * nx)):
        flat = links[axis].ravel()
        for p in range(step, parent.size):
            if flat[p] > least and flat_mask[p] and flat_mask[p - step]:
                # flat indices wrap around at the border of the array
                if (axis == 2 and p % nx == 0) or (axis == 1 and (p // nx) % ny == 0):
                    continue
                a, b = _root(parent, p), _root(parent, p - step)
                parent[max(a, b)] = min(a, b)
    size = np.zeros(parent.size, np.int32)
    seed = np.zeros(parent.size, np.int64)
    for p in range(parent.size):
        parent[p] = parent[parent[p]]
        size[parent[p]] += 1
        seed[parent[p]] = max(seed[parent[p]], flat_seeds[p])
    following = flat_seeds.max() + 1
    for p in range(parent.size):
        root = parent[p]
        if seed[root] == 0 and size[root] >= smallest and flat_mask[p]:
            seed[root] = -following
            following += 1
        if seed[root] < 0:
            flat_seeds[p] = -seed[root]


class _Queue(NamedTuple):
    """Voxels by level, first in, first out; each voxel is in at most one of the doubly linked lists."""

    head: NDArray[np.int32]  # (256,), -1: empty
    tail: NDArray[np.int32]
    after: NDArray[np.int32]  # (voxels,)
    before: NDArray[np.int32]
    level: NDArray[np.int16]  # (voxels,), -1: not met yet, 256: done


@njit(cache=True)
def _push(queue: _Queue, p: int, level: int) -> None:
    """Put a voxel at the end of a level, out of a lower one where it waits."""
    old = queue.level[p]
    if old >= 0:
        after, before = queue.after[p], queue.before[p]
        if before == -1:
            queue.head[old] = after
        else:
            queue.after[before] = after
        if after == -1:
            queue.tail[old] = before
        else:
            queue.before[after] = before
    last = queue.tail[level]
    if last == -1:
        queue.head[level] = p
    else:
        queue.after[last] = p
    queue.before[p], queue.after[p] = last, -1
    queue.tail[level] = p
    queue.level[p] = level


@njit(cache=True)
def _pop(queue: _Queue, level: int) -> int:
    p = queue.head[level]
    queue.head[level] = queue.after[p]
    if queue.after[p] == -1:
        queue.tail[level] = -1
    else:
        queue.before[queue.after[p]] = -1
    queue.level[p] = _LEVELS
    return int(p)


@njit(cache=True)
def flood(seeds: NDArray[np.int64], links: NDArray[np.uint8], mask: NDArray[np.bool_]) -> None:
    """Grow the seeds along the strongest affinities until all of the mask that they reach is filled.

    Priority flooding of the edge-weighted graph (a watershed cut: Cousty et al. 2009; hierarchical queue:
    Meyer 1991): the voxel with the strongest link to what is flooded comes next, where a weaker link on the
    way to it counts for all that lies behind; first in, first out among equals. Time is linear.

    Args:
        seeds: int64 (z, y, x), ids above 0; 0 is filled in place. At most 2**31 voxels.
        links: nearest affinities.
        mask: bool (z, y, x); others stay 0.
    """
    label, allowed = seeds.ravel(), mask.ravel()  # views
    flat = links.reshape(3, label.size)
    queue = _Queue(
        np.full(_LEVELS, -1, np.int32),
        np.full(_LEVELS, -1, np.int32),
        np.empty(label.size, np.int32),
        np.empty(label.size, np.int32),
        np.full(label.size, -1, np.int16),
    )
    for p in range(label.size):
        if not allowed[p]:
            queue.level[p] = _LEVELS
        elif label[p] != 0:
            _push(queue, p, _LEVELS - 1)
    _, nz, ny, nx = links.shape
    for level in range(_LEVELS - 1, -1, -1):
        while queue.head[level] != -1:
            p = _pop(queue, level)
            for axis, step, count in ((0, ny * nx, nz), (1, nx, ny), (2, 1, nx)):
                place = (p // step) % count
                for q, far in ((p - step, place == 0), (p + step, place == count - 1)):
                    if far:
                        continue
                    link = min(int(flat[axis, max(p, q)]), level)
                    if link > queue.level[q]:
                        label[q] = label[p]
                        _push(queue, q, link)
