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

from kdseg.volumes.phantom.hashing import chain, compiled, hash3, uniform

ROUNDS = 3
MARGIN = 2 * ROUNDS + 3
"""Nodes at the faces of a window whose links may be wrong: each round looks two nodes further."""


class Habit(NamedTuple):
    """Growth of trees.

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
def _two_best(live: NDArray[np.float64], z: int, y: int, best: NDArray[np.float64], next_: NDArray[np.float64]) -> None:
    """Fill ``best`` and ``next_`` (x,) with the two highest priorities of a row of nodes among their live edges."""
    above, below, ahead, behind = live[0, z - 1, y], live[0, z, y], live[1, z, y - 1], live[1, z, y]
    beside = live[2, z, y]
    for x in range(1, best.size):
        first, second = max(above[x], below[x]), min(above[x], below[x])
        second, first = max(second, min(first, ahead[x])), max(first, ahead[x])
        second, first = max(second, min(first, behind[x])), max(first, behind[x])
        second, first = max(second, min(first, beside[x - 1])), max(first, beside[x - 1])
        second, first = max(second, min(first, beside[x])), max(first, beside[x])
        best[x], next_[x] = first, second


@compiled
def _take(
    live: NDArray[np.float64],
    threshold: NDArray[np.float64],
    there: NDArray[np.float64],
    taken: NDArray[np.uint8],
    degree: NDArray[np.uint8],
    degree_there: NDArray[np.uint8],
) -> None:
    """Take those edges of a row, from ``threshold`` to ``there``, that both ends hold among their best."""
    for x in range(live.size):
        yes = (live[x] >= 0.0) & (live[x] >= threshold[x]) & (live[x] >= there[x])
        taken[x] |= np.uint8(yes)
    for x in range(live.size):
        yes = (live[x] >= 0.0) & (live[x] >= threshold[x]) & (live[x] >= there[x])
        degree[x] += np.uint8(yes)
        degree_there[x] += np.uint8(yes)


@compiled
def _bury(
    live: NDArray[np.float64], taken: NDArray[np.uint8], degree: NDArray[np.uint8], there: NDArray[np.uint8]
) -> None:
    """Give the edges of a row that are taken, or whose ends have two, the priority -1: they are dead."""
    for x in range(live.size):
        dead = (taken[x] > 0) | (degree[x] >= 2) | (there[x] >= 2)
        live[x] = -1.0 if dead else live[x]


@compiled
def _match(priority: NDArray[np.float64]) -> NDArray[np.bool_]:
    _, nz, ny, nx = priority.shape
    # A border of dead edges before the first and behind the last node: no row needs a case of its own.
    live = np.full((3, nz + 2, ny + 2, nx + 2), -1.0)
    live[:, 1:-1, 1:-1, 1:-1] = priority
    taken = np.zeros(live.shape, np.uint8)
    degree = np.zeros((nz + 2, ny + 2, nx + 2), np.uint8)
    threshold = np.full(degree.shape, 2.0)
    second = np.empty(nx + 1)
    for _ in range(ROUNDS):
        for z in range(1, nz + 1):
            for y in range(1, ny + 1):
                row, linked = threshold[z, y, : nx + 1], degree[z, y]
                _two_best(live, z, y, row, second)
                for x in range(1, nx + 1):
                    row[x] = second[x] if linked[x] == 0 else row[x]
        for axis in range(3):
            a, b, c = int(axis == 0), int(axis == 1), int(axis == 2)
            for z in range(1, nz + 1):
                for y in range(1, ny + 1):
                    here, there = slice(0, nx + 1), slice(c, nx + 1 + c)
                    _take(
                        live[axis, z, y, here],
                        threshold[z, y, here],
                        threshold[z + a, y + b, there],
                        taken[axis, z, y, here],
                        degree[z, y, here],
                        degree[z + a, y + b, there],
                    )
        for axis in range(3):
            a, b, c = int(axis == 0), int(axis == 1), int(axis == 2)
            for z in range(1, nz + 1):
                for y in range(1, ny + 1):
                    here, there = slice(0, nx + 1), slice(c, nx + 1 + c)
                    edges = live[axis, z, y, here], taken[axis, z, y, here]
                    _bury(edges[0], edges[1], degree[z, y, here], degree[z + a, y + b, there])
    return taken[:, 1:-1, 1:-1, 1:-1] > 0


@compiled
def _cut(seed: np.uint64, first: NDArray[np.int64], taken: NDArray[np.bool_], chance: float) -> None:
    """Take away some links; changes ``taken``."""
    _, nz, ny, nx = taken.shape
    for axis in range(3):
        key = chain(seed, 40 + axis)
        for z in range(nz):
            for y in range(ny):
                row = chain(chain(key, z + first[0]), y + first[1])
                for x in range(nx):
                    if taken[axis, z, y, x]:
                        taken[axis, z, y, x] = uniform(chain(row, x + first[2])) >= chance


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
