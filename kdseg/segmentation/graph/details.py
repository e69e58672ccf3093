"""Details of edges beside their sums: histograms for quantile scores, contact where offsets are long."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.config.segmentation import EdgesOptions
from kdseg.geometry import Offsets, Roi, Slices, nearest_count, pair_slices
from kdseg.running.compiled import compiled
from kdseg.segmentation.graph.histograms import Histograms, starts
from kdseg.segmentation.graph.rag import Edges, block_edges
from kdseg.segmentation.links import nearest_channels


class Details(NamedTuple):
    """Of each row of `rag.Edges`.

    Attributes:
        touch: bool (e,), whether nearest neighbours are among the pairs of voxels, here or in another block.
        histograms: of the affinities, or none.
    """

    touch: NDArray[np.bool_]
    histograms: Histograms | None


def channels_used(offsets: Offsets, options: EdgesOptions) -> list[int]:
    """Return the channels whose affinities are counted, the nearest ones first."""
    nearest = nearest_channels(offsets)
    return [*nearest, *(c for c in range(len(offsets)) if c not in nearest and options.long_range)]


def detailed_edges(
    fragments: NDArray[np.uint64],
    affinities: NDArray[np.uint8],
    offsets: Offsets,
    owned: Slices,
    options: EdgesOptions,
) -> tuple[Edges, Details | None]:
    """Return the edges of one block, and what the options add to them; the first arguments are those of `block_edges`.

    Args:
        fragments: uint64 (z, y, x).
        affinities: uint8 (c, z, y, x), in 1/255, the channels of `channels_used`.
        offsets: one ``(z, y, x)`` step in voxels per channel.
        owned: the write_roi.
        options: whether there are histograms, or long offsets.
    """
    edges = block_edges(fragments, affinities, offsets, owned)
    if not (options.long_range or options.histograms):
        return edges, None
    count = nearest_count(offsets)
    near = block_edges(fragments, affinities[:count], offsets[:count], owned) if options.long_range else edges
    details = block_details(fragments, affinities, offsets, owned, edges, near, with_histograms=options.histograms)
    return edges, details


def block_details(
    fragments: NDArray[np.uint64],
    affinities: NDArray[np.uint8],
    offsets: Offsets,
    owned: Slices,
    edges: Edges,
    nearest: Edges,
    *,
    with_histograms: bool,
) -> Details:
    """Return the details of the edges of one block; the first arguments are those of `rag.block_edges`.

    Args:
        fragments: uint64 (z, y, x).
        affinities: uint8 (c, z, y, x), in 1/255.
        offsets: one ``(z, y, x)`` step in voxels per channel.
        owned: the write_roi.
        edges: what `rag.block_edges` found with them.
        nearest: what it found with the nearest offsets alone.
        with_histograms: whether to count the affinities by value; takes a byte per pair of voxels.
    """
    touch = _among(edges.u, edges.v, nearest.u, nearest.v)
    if not with_histograms:
        return Details(touch, None)
    z, y, x = fragments.shape
    inner = Roi((owned[0].start, owned[1].start, owned[2].start), tuple(s.stop - s.start for s in owned))
    values, place = np.empty(int(edges.contact.sum()), np.uint8), starts(edges.contact.astype(np.int64))
    filled = place[:-1].copy()
    for channel, offset in zip(affinities, offsets, strict=True):
        here = pair_slices((z, y, x), offset)[0]
        corner = (here[0].start, here[1].start, here[2].start)
        box = Roi(corner, tuple(s.stop - s.start for s in here)).intersect(inner)
        start, stop, step = np.array(box.offset), np.array(box.end), np.array(offset)
        _collect(fragments, channel, start, stop, step, edges.u, edges.v, filled, values)
    return Details(touch, Histograms(*_tally(values, place)))


def any_of_pair(edges: Edges, wanted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return bool (e,), whether any row of the same pair of fragments is wanted; rows in any order."""
    if wanted.all():
        return wanted
    order = np.lexsort((edges.v[wanted], edges.u[wanted]))
    return _among(edges.u, edges.v, edges.u[wanted][order], edges.v[wanted][order])


@compiled
def _row(u: np.uint64, v: np.uint64, us: NDArray[np.uint64], vs: NDArray[np.uint64]) -> int:
    """Return the first row not before the pair ``(u, v)``; rows ascend."""
    low, high = 0, us.size
    while low < high:
        middle = (low + high) // 2
        if us[middle] < u or (us[middle] == u and vs[middle] < v):
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _among(
    u: NDArray[np.uint64], v: NDArray[np.uint64], us: NDArray[np.uint64], vs: NDArray[np.uint64]
) -> NDArray[np.bool_]:
    """Return which pairs are among the ascending ones."""
    out = np.empty(u.size, np.bool_)
    for k in range(u.size):
        row = _row(u[k], v[k], us, vs)
        out[k] = row < us.size and us[row] == u[k] and vs[row] == v[k]
    return out


@compiled
def _collect(
    fragments: NDArray[np.uint64],
    affinities: NDArray[np.uint8],
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
    step: NDArray[np.int64],
    us: NDArray[np.uint64],
    vs: NDArray[np.uint64],
    filled: NDArray[np.int64],
    values: NDArray[np.uint8],
) -> None:
    """Write the affinities of a box to the lists of their edges."""
    row, one, other = 0, np.uint64(0), np.uint64(0)
    for z in range(start[0], stop[0]):
        for y in range(start[1], stop[1]):
            here, there, links = fragments[z, y], fragments[z + step[0], y + step[1]], affinities[z, y]
            for x in range(start[2], stop[2]):
                a, b = here[x], there[x + step[2]]
                if a == b or a == np.uint64(0) or b == np.uint64(0):
                    continue
                u, v = min(a, b), max(a, b)
                if u != one or v != other:  # neighbouring voxels mostly touch the same pair of fragments
                    row, one, other = _row(u, v, us, vs), u, v
                values[filled[row]] = links[x]
                filled[row] += 1


@compiled
def _tally(
    values: NDArray[np.uint8], place: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint64]]:
    """Return the columns of the histograms of lists of values."""
    start = np.zeros(place.size, np.int64)
    found, pairs = np.empty(values.size, np.uint8), np.empty(values.size, np.uint64)
    counts = np.zeros(256, np.uint64)
    size = 0
    for k in range(place.size - 1):
        counts[:] = np.uint64(0)
        for value in values[place[k] : place[k + 1]]:
            counts[value] += np.uint64(1)
        for value in range(256):
            if counts[value] > 0:
                found[size], pairs[size] = value, counts[value]
                size += 1
        start[k + 1] = size
    return start, found[:size].copy(), pairs[:size].copy()
