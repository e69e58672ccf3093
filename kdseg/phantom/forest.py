"""Node-disjoint random trees on a jittered cubic lattice, by rules that look at a neighbourhood only.

Every edge of the lattice has a random priority; edges of a straight run share most of it, so that
trees run straight for a while. In a few rounds, an edge is taken where both of its nodes hold it among
the best they can still take, and no node takes more than two: this leaves paths that never touch.
Some loose ends are then joined to a neighbour, which makes branches. All of it is a function of the
seed within a few nodes, so that any window computes the same trees; a tree is identified by its
lexicographically first node, for which the window must contain all of it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.phantom.hashing import chain, compiled, hash3, uniform

ROUNDS = 3
MARGIN = 2 * ROUNDS + 3
"""Nodes at the faces of a window whose links may be wrong: each round looks two nodes further."""


class Habit(NamedTuple):
    """How trees grow.

    Attributes:
        run: length of a straight run in nodes.
        cut: probability that a link is taken away again, which bounds the trees.
        join: probability that a loose end becomes a branch of a neighbour.
    """

    run: int
    cut: float
    join: float


@compiled
def _priorities(
    seed: np.uint64, first: NDArray[np.int64], present: NDArray[np.bool_], habit: Habit
) -> NDArray[np.float64]:
    shape = present.shape
    priority = np.full((3, *shape), -1.0)
    for axis in range(3):
        runs, edges = chain(seed, 10 + axis), chain(seed, 20 + axis)
        for z in range(shape[0] - (axis == 0)):
            for y in range(shape[1] - (axis == 1)):
                for x in range(shape[2] - (axis == 2)):
                    there = present[z + (axis == 0), y + (axis == 1), x + (axis == 2)]
                    if not (present[z, y, x] and there):
                        continue
                    p, q, r = z + first[0], y + first[1], x + first[2]
                    noise = uniform(hash3(edges, p, q, r))
                    if axis == 0:
                        along, p = p, 0
                    elif axis == 1:
                        along, q = q, 0
                    else:
                        along, r = r, 0
                    line = hash3(runs, p, q, r)
                    shift = int(uniform(line) * habit.run)
                    run = int(np.floor((along + shift) / habit.run))
                    priority[axis, z, y, x] = uniform(chain(line, run)) + 0.3 * noise
    return priority


@compiled
def _thresholds(
    priority: NDArray[np.float64], taken: NDArray[np.bool_], degree: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Return the least priority (z, y, x) among the edges that each node would take next."""
    nz, ny, nx = degree.shape
    best, second = np.full((nz, ny, nx), -1.0), np.full((nz, ny, nx), -1.0)
    for axis in range(3):
        a, b, c = int(axis == 0), int(axis == 1), int(axis == 2)
        for z in range(nz - a):
            for y in range(ny - b):
                for x in range(nx - c):
                    value = priority[axis, z, y, x]
                    if value < 0.0 or taken[axis, z, y, x]:
                        continue
                    if degree[z, y, x] >= 2 or degree[z + a, y + b, x + c] >= 2:
                        continue
                    for node in ((z, y, x), (z + a, y + b, x + c)):
                        second[node] = max(second[node], min(best[node], value))
                        best[node] = max(best[node], value)
    for node in np.ndindex(degree.shape):
        if degree[node] == 0:
            best[node] = second[node]
    return best


@compiled
def _match(priority: NDArray[np.float64]) -> NDArray[np.bool_]:
    _, nz, ny, nx = priority.shape
    taken = np.zeros(priority.shape, np.bool_)
    degree = np.zeros((nz, ny, nx), np.uint8)
    for _ in range(ROUNDS):
        threshold = _thresholds(priority, taken, degree)
        before = degree.copy()
        for axis in range(3):
            a, b, c = int(axis == 0), int(axis == 1), int(axis == 2)
            for z in range(nz - a):
                for y in range(ny - b):
                    for x in range(nx - c):
                        value = priority[axis, z, y, x]
                        if value < 0.0 or taken[axis, z, y, x]:
                            continue
                        here, there = (z, y, x), (z + a, y + b, x + c)
                        if before[here] >= 2 or before[there] >= 2:
                            continue
                        if value >= threshold[here] and value >= threshold[there]:
                            taken[axis, z, y, x] = True
                            degree[here] += 1
                            degree[there] += 1
    return taken


@compiled
def _cut(seed: np.uint64, first: NDArray[np.int64], taken: NDArray[np.bool_], chance: float) -> None:
    """Take away some links; changes ``taken``."""
    for axis, z, y, x in np.ndindex(taken.shape):
        if taken[axis, z, y, x]:
            bits = hash3(chain(seed, 40 + axis), z + first[0], y + first[1], x + first[2])
            taken[axis, z, y, x] = uniform(bits) >= chance


@compiled
def degrees(taken: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the number of links (z, y, x) of every node."""
    _, nz, ny, nx = taken.shape
    degree = np.zeros((nz, ny, nx), np.uint8)
    for axis in range(3):
        a, b, c = int(axis == 0), int(axis == 1), int(axis == 2)
        for z in range(nz - a):
            for y in range(ny - b):
                for x in range(nx - c):
                    if taken[axis, z, y, x]:
                        degree[z, y, x] += 1
                        degree[z + a, y + b, x + c] += 1
    return degree


@compiled
def _join_ends(
    seed: np.uint64,
    first: NDArray[np.int64],
    present: NDArray[np.bool_],
    taken: NDArray[np.bool_],
    join: float,
) -> None:
    """Join some nodes with less than two links to a random neighbour; changes ``taken``."""
    nz, ny, nx = present.shape
    degree = degrees(taken)
    key = chain(seed, 30)
    for z in range(1, nz - 1):
        for y in range(1, ny - 1):
            for x in range(1, nx - 1):
                if not present[z, y, x] or degree[z, y, x] >= 2:
                    continue
                bits = hash3(key, z + first[0], y + first[1], x + first[2])
                # A node without any link would be a lone grain: it is always joined.
                if degree[z, y, x] > 0 and uniform(bits) >= join:
                    continue
                start = int(uniform(chain(bits, 1)) * 6)
                for step in range(6):
                    side = (start + step) % 6
                    axis, back = side // 2, side % 2
                    a, b, c = int(axis == 0), int(axis == 1), int(axis == 2)
                    i, j, k = z - a * back, y - b * back, x - c * back
                    other = (z + a - 2 * a * back, y + b - 2 * b * back, x + c - 2 * c * back)
                    if present[other] and not taken[axis, i, j, k]:
                        taken[axis, i, j, k] = True
                        break


@compiled
def links(seed: np.uint64, first: NDArray[np.int64], present: NDArray[np.bool_], habit: Habit) -> NDArray[np.bool_]:
    """Return the edges of the trees in a window of the lattice.

    Args:
        seed: key of this lattice.
        first: int64 (3,), index of the window's first node.
        present: (z, y, x), the nodes that may be part of a tree.
        habit: how trees grow.

    Returns:
        bool (3, z, y, x): whether a node is linked to the next one along each axis. Right for nodes
        at least ``MARGIN`` away from the faces of the window.
    """
    taken = _match(_priorities(seed, first, present, habit))
    _cut(seed, first, taken, habit.cut)
    _join_ends(seed, first, present, taken, habit.join)
    return taken


@compiled
def _root(parent: NDArray[np.int64], node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@compiled
def trees(taken: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return, for every node (z, y, x), the C-order number of the first node of its tree."""
    _, nz, ny, nx = taken.shape
    parent = np.arange(nz * ny * nx)
    strides = (ny * nx, nx, 1)
    for axis in range(3):
        for node, linked in enumerate(taken[axis].flat):
            if linked:
                u, v = _root(parent, node), _root(parent, node + strides[axis])
                parent[max(u, v)] = min(u, v)
    for node in range(parent.size):
        parent[node] = _root(parent, node)
    return parent.reshape((nz, ny, nx))


@compiled
def is_closed(tree: NDArray[np.int64], core: NDArray[np.int64]) -> bool:
    """Return whether every tree of the box ``core`` ((2, 3): first, end) stays ``MARGIN`` off the faces."""
    nz, ny, nx = tree.shape
    open_trees = np.zeros(tree.size, np.bool_)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                inside = min(z, y, x, nz - 1 - z, ny - 1 - y, nx - 1 - x) >= MARGIN
                if not inside:
                    open_trees[tree[z, y, x]] = True
    for z in range(core[0, 0], core[1, 0]):
        for y in range(core[0, 1], core[1, 1]):
            for x in range(core[0, 2], core[1, 2]):
                if open_trees[tree[z, y, x]]:
                    return False
    return True
