"""The objects of the phantom: thin neurites around thick dendrites, as tapered line segments.

Dendrites are trees on a coarse lattice. Neurites are trees on a fine lattice, without the nodes that lie
in a dendrite; some of them are joined to a dendrite as its twigs. All lines keep a distance from each
other, so that the region of each, the points nearest to it less its radius, is connected.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.volumes.phantom.fields import Point
from kdseg.volumes.phantom.forest import MARGIN, Habit, degrees, is_closed, links, trees
from kdseg.volumes.phantom.hashing import chain, compiled, hash3, uniform

REACH = 260.0
"""nm; a segment whose surface is further away from a point than this is not seen from there."""

NEURITE_SPACING, DENDRITE_SPACING = 112.0, 820.0
_JITTER = 0.3
_THICKEST = 210.0
_CLEARANCE = 60.0
_TWIG_GAP = 130.0
_TWIG_CHANCE = 0.2
_DENDRITES_KEPT = 0.8
_GROWTH = 10
"""Nodes by which a window grows whose trees are cut; trees hardly ever fit into one that begins smaller than here."""


class Segments(NamedTuple):
    """Tapered line segments; lengths in nm, axes z, y, x.

    Attributes:
        start: float64 (n, 3).
        axis: float64 (n, 3), end less start.
        radius: float64 (n, 2), at start and end; differences between objects matter, not the values.
        filling: float64 (n, 2), at start and end; size of a mitochondrion, 0 (none) to 1.
        owner: uint64 (n,), label of the object.
        inverse: float64 (n,), 1 / squared length.
    """

    start: NDArray[np.float64]
    axis: NDArray[np.float64]
    radius: NDArray[np.float64]
    filling: NDArray[np.float64]
    owner: NDArray[np.uint64]
    inverse: NDArray[np.float64]


class Lattice(NamedTuple):
    """A window of a lattice with its trees.

    Attributes:
        seed: key of the lattice.
        spacing: distance of the nodes in nm.
        first: int64 (3,), index of the first node.
        core: int64 (2, 3), first node and end of the box whose trees are complete, in the window.
        taken: bool (3, z, y, x), links to the next node along each axis.
        tree: int64 (z, y, x), first node of the tree of a node, a C-order number.
    """

    seed: np.uint64
    spacing: float
    first: NDArray[np.int64]
    core: NDArray[np.int64]
    taken: NDArray[np.bool_]
    tree: NDArray[np.int64]


@compiled
def _position(seed: np.uint64, spacing: float, z: int, y: int, x: int) -> tuple[float, float, float]:
    bits = hash3(chain(seed, 1), z, y, x)
    return (
        (z + 0.5 + _JITTER * (2.0 * uniform(bits) - 1.0)) * spacing,
        (y + 0.5 + _JITTER * (2.0 * uniform(chain(bits, 1)) - 1.0)) * spacing,
        (x + 0.5 + _JITTER * (2.0 * uniform(chain(bits, 2)) - 1.0)) * spacing,
    )


@compiled
def _label(lattice: Lattice, tree: int) -> np.uint64:
    _, ny, nx = lattice.tree.shape
    z, y, x = tree // (ny * nx), tree // nx % ny, tree % nx
    first = lattice.first
    bits = hash3(chain(lattice.seed, 2), z + first[0], y + first[1], x + first[2])
    return (bits >> np.uint64(1)) | np.uint64(1)


@compiled
def _girth(lattice: Lattice, label: np.uint64, thick: bool, z: int, y: int, x: int) -> tuple[float, float]:
    """Return radius and filling of a node (absolute index) of the object ``label``."""
    whole = uniform(chain(label, 1))
    here = uniform(hash3(chain(lattice.seed, 3), z, y, x))
    if thick:
        filled = uniform(hash3(chain(label, 2), z, y, x)) < 0.45
        radius = 50.0 + 120.0 * whole * whole + 40.0 * here
    else:
        filled = uniform(hash3(chain(label, 2), z // 3, y // 3, x // 3)) < 0.16
        radius = -20.0 + 46.0 * whole * whole + 12.0 * here
    return radius, 0.55 + 0.45 * here if filled else 0.0


@compiled
def _segments(lattice: Lattice, labels: NDArray[np.uint64], thick: bool) -> Segments:
    """Return the links of the core; ``labels`` (z, y, x) holds 0 where there is no object."""
    low, high, first = lattice.core[0], lattice.core[1], lattice.first
    box = lattice.taken[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    total = int(box.sum())
    start, axis = np.empty((total, 3)), np.empty((total, 3))
    radius, filling = np.empty((total, 2)), np.empty((total, 2))
    owner = np.empty(total, np.uint64)
    n = 0
    for z in range(low[0], high[0]):
        for y in range(low[1], high[1]):
            for x in range(low[2], high[2]):
                label = labels[z, y, x]
                if label == 0:
                    continue
                for side in range(3):
                    if not lattice.taken[side, z, y, x]:
                        continue
                    p, q, r = z + first[0], y + first[1], x + first[2]
                    a = _position(lattice.seed, lattice.spacing, p, q, r)
                    radius[n, 0], filling[n, 0] = _girth(lattice, label, thick, p, q, r)
                    p, q, r = p + (side == 0), q + (side == 1), r + (side == 2)
                    b = _position(lattice.seed, lattice.spacing, p, q, r)
                    radius[n, 1], filling[n, 1] = _girth(lattice, label, thick, p, q, r)
                    for k in range(3):
                        start[n, k], axis[n, k] = a[k], b[k] - a[k]
                    owner[n] = label
                    n += 1
    inverse = 1.0 / (axis[:n] * axis[:n]).sum(axis=1)
    return Segments(start[:n], axis[:n], radius[:n], filling[:n], owner[:n], inverse)


@compiled
def _dendrite_labels(lattice: Lattice) -> NDArray[np.uint64]:
    labels = np.zeros(lattice.tree.shape, np.uint64)
    for node, tree in enumerate(lattice.tree.flat):
        label = _label(lattice, int(tree))
        if uniform(chain(label, 3)) < _DENDRITES_KEPT:
            labels.flat[node] = label
    return labels


@compiled
def _nearest_segment(
    lattice_seed: np.uint64, first: NDArray[np.int64], shape: tuple[int, int, int], segments: Segments
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Return distance to the surface, segment and position along it, of the nearest segment of each node.

    Right where the distance is less than ``_TWIG_GAP``; elsewhere it is no less, perhaps infinite.
    """
    gap = np.full(shape, np.inf)
    stray = _JITTER * NEURITE_SPACING * np.sqrt(3.0) + 1e-6
    nearest = np.full(shape, -1, np.int64)
    along = np.zeros(shape)
    low, high = np.empty(3, np.int64), np.empty(3, np.int64)
    for n in range(len(segments.owner)):
        a, v, r = segments.start[n], segments.axis[n], segments.radius[n]
        square = v[0] * v[0] + v[1] * v[1] + v[2] * v[2]
        seen = (max(r[0], r[1]) + _TWIG_GAP + stray) ** 2
        for k in range(3):
            reach = max(r[0], r[1]) + _TWIG_GAP
            low[k] = np.floor((min(a[k], a[k] + v[k]) - reach) / NEURITE_SPACING) - 1 - first[k]
            high[k] = np.floor((max(a[k], a[k] + v[k]) + reach) / NEURITE_SPACING) + 2 - first[k]
        for z in range(max(low[0], 0), min(high[0], shape[0])):
            for y in range(max(low[1], 0), min(high[1], shape[1])):
                for x in range(max(low[2], 0), min(high[2], shape[2])):
                    # Most are too far away wherever they lie in their cell: cheaper to see than where they do.
                    dz = (z + first[0] + 0.5) * NEURITE_SPACING - a[0]
                    dy = (y + first[1] + 0.5) * NEURITE_SPACING - a[1]
                    dx = (x + first[2] + 0.5) * NEURITE_SPACING - a[2]
                    t = min(max((dz * v[0] + dy * v[1] + dx * v[2]) / square, 0.0), 1.0)
                    dz, dy, dx = dz - t * v[0], dy - t * v[1], dx - t * v[2]
                    if dz * dz + dy * dy + dx * dx >= seen:
                        continue
                    p = _position(lattice_seed, NEURITE_SPACING, z + first[0], y + first[1], x + first[2])
                    dz, dy, dx = p[0] - a[0], p[1] - a[1], p[2] - a[2]
                    t = min(max((dz * v[0] + dy * v[1] + dx * v[2]) / square, 0.0), 1.0)
                    dz, dy, dx = dz - t * v[0], dy - t * v[1], dx - t * v[2]
                    score = np.sqrt(dz * dz + dy * dy + dx * dx) - (r[0] + t * (r[1] - r[0]))
                    if score < gap[z, y, x]:
                        gap[z, y, x], nearest[z, y, x], along[z, y, x] = score, n, t
    return gap, nearest, along


@compiled
def _twigs(lattice: Lattice, present: NDArray[np.bool_], gap: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return, for every tree (by its first node), the loose end that joins a dendrite, or -1.

    A tree is joined once at most: it would make one object of two dendrites otherwise.
    """
    degree = degrees(lattice.taken).ravel()
    _, ny, nx = present.shape
    best = np.full(present.size, -1, np.int64)
    rank = np.ones(present.size)
    first = lattice.first
    key = chain(lattice.seed, 4)
    for node, tree in enumerate(lattice.tree.flat):
        if not present.flat[node] or degree[node] > 1 or gap.flat[node] >= _TWIG_GAP:
            continue
        z, y, x = node // (ny * nx), node // nx % ny, node % nx
        value = uniform(hash3(key, z + first[0], y + first[1], x + first[2]))
        if value < _TWIG_CHANCE and value < rank[tree]:
            rank[tree], best[tree] = value, node
    return best


@compiled
def _neurites(
    lattice: Lattice,
    present: NDArray[np.bool_],
    dendrites: Segments,
    gap: NDArray[np.float64],
    nearest: NDArray[np.int64],
    along: NDArray[np.float64],
) -> tuple[Segments, Segments]:
    """Return the neurites of the core, and the necks that join some of them to a dendrite."""
    twig = _twigs(lattice, present, gap)
    labels = np.zeros(present.shape, np.uint64)
    _, ny, nx = present.shape
    low, high = lattice.core[0], lattice.core[1]
    necks = np.empty(present.size, np.int64)
    count = 0
    for z in range(low[0], high[0]):
        for y in range(low[1], high[1]):
            for x in range(low[2], high[2]):
                if not present[z, y, x]:
                    continue
                tree = lattice.tree[z, y, x]
                end = twig[tree]
                labels[z, y, x] = _label(lattice, int(tree)) if end < 0 else dendrites.owner[nearest.flat[end]]
                node = (z * ny + y) * nx + x
                if node == end:
                    necks[count] = node
                    count += 1
    start, axis = np.empty((count, 3)), np.empty((count, 3))
    radius, owner = np.empty((count, 2)), np.empty(count, np.uint64)
    for n in range(count):
        node = necks[n]
        z, y, x = node // (ny * nx), node // nx % ny, node % nx
        p, q, r = z + lattice.first[0], y + lattice.first[1], x + lattice.first[2]
        a = _position(lattice.seed, lattice.spacing, p, q, r)
        owner[n] = labels[z, y, x]
        radius[n, 0] = _girth(lattice, owner[n], False, p, q, r)[0]
        radius[n, 1] = -16.0
        m, t = nearest[z, y, x], along[z, y, x]
        for k in range(3):
            start[n, k] = a[k]
            axis[n, k] = dendrites.start[m, k] + t * dendrites.axis[m, k] - a[k]
    inverse = 1.0 / (axis * axis).sum(axis=1)
    return _segments(lattice, labels, False), Segments(start, axis, radius, np.zeros((count, 2)), owner, inverse)


def _box(low: Point, high: Point, reach: float, spacing: float) -> NDArray[np.int64]:
    """Return first and end (2, 3) of the nodes of a lattice that concern a box grown by ``reach`` nm."""
    first = np.floor((np.array(low) - reach) / spacing) - 2
    return np.stack([first, np.floor((np.array(high) + reach) / spacing) + 3]).astype(np.int64)


def _dendrites(seed: np.uint64, low: Point, high: Point) -> Segments:
    core = _box(low, high, _TWIG_GAP + _THICKEST, DENDRITE_SPACING)
    margin = MARGIN + _GROWTH
    while True:
        first = core[0] - margin
        present = np.ones(tuple(core[1] + margin - first), np.bool_)
        taken = links(seed, first, present, Habit(4, 0.12, 0.0))
        lattice = Lattice(seed, DENDRITE_SPACING, first, core - first, taken, trees(taken))
        if is_closed(lattice.tree, lattice.core):
            return _segments(lattice, _dendrite_labels(lattice), True)
        margin += _GROWTH // 2


def tissue(seed: np.uint64, low: Point, high: Point) -> Segments:
    """Return all segments that can be seen from a box, i.e. whose surface is within ``REACH`` of it.

    Args:
        seed: key of the whole phantom.
        low: first corner of the box in nm, (z, y, x).
        high: last corner.

    Returns:
        The segments in an order that does not depend on the box: dendrites, neurites, necks of twigs, each in
        C order of their lattice.
    """
    key = np.uint64(chain(seed, 100))
    core = _box(low, high, REACH + 2.0 * _CLEARANCE, NEURITE_SPACING)
    margin = MARGIN + 2 * _GROWTH
    while True:
        first = core[0] - margin
        nz, ny, nx = (int(n) for n in core[1] + margin - first)
        corners = first * NEURITE_SPACING, (core[1] + margin) * NEURITE_SPACING
        dendrites = _dendrites(np.uint64(chain(seed, 200)), corners[0], corners[1])
        gap, nearest, along = _nearest_segment(key, first, (nz, ny, nx), dendrites)
        present = gap > _CLEARANCE
        taken = links(key, first, present, Habit(9, 0.03, 0.1))
        lattice = Lattice(key, NEURITE_SPACING, first, core - first, taken, trees(taken))
        if is_closed(lattice.tree, lattice.core):
            parts = dendrites, *_neurites(lattice, present, dendrites, gap, nearest, along)
            return Segments(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        margin += _GROWTH
