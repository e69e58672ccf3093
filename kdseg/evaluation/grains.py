"""Grains of a part: what the fragments of many options are made of, so that no voxel is looked at again for each.

Numbers of voxels, sums of affinities and overlaps with labels are additive: those of a fragment are the sums over its
grains. A fragment of a cell is what hangs together of the grains that the options join, each of which is in one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.config import FragmentsOptions
from kdseg.geometry import Offsets, Roi, VoxelSize, blocks
from kdseg.segmentation.fragments.block import (
    cell_grains,
    channels_used,
    checked_grid,
    halo_roi,
    per_section,
    seed_distance,
    unique_ids,
)
from kdseg.segmentation.fragments.watershed import clean, summed_strength, weak
from kdseg.segmentation.graph import histograms
from kdseg.segmentation.graph.details import Details
from kdseg.segmentation.graph.rag import Edges
from kdseg.segmentation.lut import lut


class Grains(NamedTuple):
    """Facts of all grains of a part.

    Attributes:
        name: uint64 (n,), ids, ascending; those of a cell by first occurrence in C order.
        base: uint64 (n,), what the ids of the grain's cell are above.
        size: int64 (n,), voxels.
        strength: int64 (n,), sum of their `flood.strength`, in 1/255.
        fragment: by seed distance, integers (n,): in which fragment of its cell the grain lies, before any filter.
    """

    name: NDArray[np.uint64]
    base: NDArray[np.uint64]
    size: NDArray[np.int64]
    strength: NDArray[np.int64]
    fragment: dict[int, NDArray[np.integer]]


def grains(
    affinities: NDArray[np.uint8],
    offsets: Offsets,
    tried: Sequence[FragmentsOptions],
    tissue: NDArray[np.bool_] | None,
    voxel_size: VoxelSize,
) -> tuple[NDArray[np.uint64], Grains]:
    """Return the grains of a part, cell by cell as the stage makes fragments.

    Args:
        affinities: uint8 (c, z, y, x), in 1/255, all channels.
        offsets: one ``(z, y, x)`` step in voxels per channel.
        tried: options that are equal in `block.shared`.
        tissue: bool (z, y, x), False where there is none; None: all of it.
        voxel_size: nm.

    Returns:
        uint64 (z, y, x), ids, 0 for background; and their facts.
    """
    options = {seed_distance(one): one for one in tried}
    distances = sorted(options)
    shared, volume = options[distances[0]], Roi((0, 0, 0), affinities.shape[1:])
    channels = channels_used(shared, offsets)
    used = tuple(offsets[c] for c in channels)
    grid = checked_grid(volume.shape, shared.block)
    ids, cells = np.empty(volume.shape, np.uint64), []
    for block in blocks(volume, shared.block):
        read_roi = halo_roi(shared, block.roi, volume)
        here, core = read_roi.slices(), block.roi.slices(read_roi)
        links = np.ascontiguousarray(affinities[(slice(None), *here)][channels])
        mask = None if tissue is None else tissue[here]
        found = cell_grains(links, used, [options[far] for far in distances], mask, voxel_size)
        pieces = clean(found.ids, core, 0)
        count = int(pieces.max(initial=0)) + 1
        of = np.zeros(count, np.int64)
        of[pieces] = found.ids[core]
        strength = np.zeros(count, np.int64)
        if any(one.least_mean > 0 for one in tried):
            strength = summed_strength(pieces, links, used, core, mask, per_section=per_section(shared))
        numbers = np.arange(1, count, dtype=np.uint64)[None, None]
        name = unique_ids(numbers, block.index, grid, shared.block).ravel()
        size = np.bincount(pieces.ravel(), minlength=count)
        cells.append((name, name - numbers.ravel(), size[1:], strength[1:], found.fragment[:, of[1:]]))
        ids[block.roi.slices()] = unique_ids(pieces, block.index, grid, shared.block)
    cells.sort(key=lambda cell: int(cell[0][0]) if cell[0].size else 0)
    name, base, size, strength = (np.concatenate([cell[k] for cell in cells]) for k in range(4))
    fragment = np.concatenate([cell[4] for cell in cells], axis=1)
    return ids, Grains(name, base, size, strength, dict(zip(distances, fragment, strict=True)))


def fragments_of(
    found: Grains, edges: Edges, touch: NDArray[np.bool_] | None, options: FragmentsOptions
) -> NDArray[np.uint64]:
    """Return the fragment of each grain, uint64 (n,), by the id that the stage gives it; 0 where it drops it.

    Args:
        found: grains of the part.
        edges: between them.
        touch: bool (e,), which of these are of grains that touch; None: all.
        options: one of those that the grains were made for.
    """
    name, base, size, strength, fragments = found
    fragment = fragments[seed_distance(options)]
    u, v = np.searchsorted(name, edges.u), np.searchsorted(name, edges.v)
    one = (fragment[u] == fragment[v]) & (base[u] == base[v])
    if touch is not None:
        one &= touch
    root = np.searchsorted(name, lut(name, edges.u[one], edges.v[one]))
    voxels = _sums(root, size)
    kept = (root == np.arange(root.size)) & (voxels >= options.dust)
    if options.least_mean > 0:
        kept &= ~weak(_sums(root, strength), voxels, options.least_mean)
    # a fragment is numbered by its first grain, which has its first voxel
    before = np.cumsum(kept) - kept
    number = before - before[np.searchsorted(base, base)] + 1
    return np.where(kept[root], base + number[root].astype(np.uint64), np.uint64(0))


def edges_of(
    found: Grains, edges: Edges, details: Details | None, fragment: NDArray[np.uint64]
) -> tuple[Edges, Details | None]:
    """Return the edges between fragments, and their details, as if counted voxel by voxel.

    Args:
        found: grains of the part.
        edges: between them.
        details: of these, if there are any.
        fragment: from `fragments_of`.
    """
    one, other = (fragment[np.searchsorted(found.name, ends)] for ends in (edges.u, edges.v))
    u, v = np.minimum(one, other), np.maximum(one, other)
    order = np.flatnonzero((u > 0) & (u != v))
    order = order[np.lexsort((v[order], u[order]))]
    u, v = u[order], v[order]
    new = np.ones(u.size, np.bool_)
    new[1:] = (u[1:] != u[:-1]) | (v[1:] != v[:-1])
    first = np.flatnonzero(new)
    if not first.size:
        return Edges(u, v, u, v), details and Details(new, histograms.add_up(details.histograms, order, first))
    sums, contact = (np.add.reduceat(column[order], first) for column in (edges.affinity_sum, edges.contact))
    counted = Edges(u[first], v[first], sums, contact)
    if details is None:
        return counted, None
    touch = np.logical_or.reduceat(details.touch[order], first)
    return counted, Details(touch, histograms.add_up(details.histograms, order, first))


def _sums(root: NDArray[np.intp], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sum over all grains of each root."""
    out = np.zeros(root.size, np.int64)
    np.add.at(out, root, values)
    return out
