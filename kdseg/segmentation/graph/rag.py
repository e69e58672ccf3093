"""The region graph: which fragments touch, over how many voxel pairs, with what sum of affinities.

All columns are integers and additive, so that the tables of blocks add up to exactly the table of the
volume, whatever the blocks and their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import DataError, ShapeError
from kdseg.geometry import Offsets, Roi, Slices, Triple, pair_slices
from kdseg.running.compiled import compiled
from kdseg.segmentation.pair_table import CAPACITY, COUNT, VALUE, A, B, grown, slot


class Edges(NamedTuple):
    """A region graph, one row per pair of touching fragments, sorted by ``(u, v)`` without repeats.

    Attributes:
        u: uint64 (e,), the smaller fragment id.
        v: uint64 (e,), the larger fragment id.
        affinity_sum: uint64 (e,), summed affinities of the pairs of voxels between both, in 1/255.
        contact: uint64 (e,), number of these pairs; 0 where another block counts all of them.
    """

    u: NDArray[np.uint64]
    v: NDArray[np.uint64]
    affinity_sum: NDArray[np.uint64]
    contact: NDArray[np.uint64]


def block_edges(fragments: NDArray[np.uint64], affinities: NDArray[np.uint8], offsets: Offsets, owned: Slices) -> Edges:
    """Return the edges between the fragments that touch in one block.

    Two fragments touch along channel ``c`` where voxel ``p`` lies in one and voxel ``p + offsets[c]`` in
    the other. A pair is counted if ``p`` is in ``owned``; its other end may lie in the halo. Pairs that
    leave the array are not counted. Where only ``p + offsets[c]`` is in ``owned``, the pair belongs to
    another block, but the fragments get a row, with a contact of 0: it says which of the block's fragments
    have contacts outside of it.

    Args:
        fragments: uint64 (z, y, x), fragment ids over the read_roi; 0 is background and never gets an edge.
        affinities: uint8 (c, z, y, x); ``affinities[c, p]`` is the affinity between ``p`` and
            ``p + offsets[c]`` in 1/255; 255 means "same neuron".
        offsets: one ``(z, y, x)`` step in voxels per channel.
        owned: the write_roi, as slices of ``fragments``. The halo around it must be at least the largest
            offset on both sides, except at the border of the volume.

    Returns:
        The edge table, in the fragments' own ids. Empty if nothing touches.

    Raises:
        ShapeError: if ``affinities`` has not one channel per offset, its last three axes differ from
            ``fragments``, or ``owned`` leaves the array.
        DataError: if ``fragments`` is not uint64 or ``affinities`` not uint8.
    """
    _check(fragments, affinities, offsets, owned)
    boxes: list[tuple[int, int, Roi]] = []
    z, y, x = fragments.shape
    inner = Roi(*_corner(owned))
    for c, offset in enumerate(offsets):
        here = Roi(*_corner(pair_slices((z, y, x), offset)[0]))
        boxes.append((c, 1, here.intersect(inner)))
        back = inner.shift((-offset[0], -offset[1], -offset[2]))
        boxes += [(c, 0, box) for box in _difference(here.intersect(back), inner)]
    steps = np.array([offsets[c] for c, _, _ in boxes], np.int64).reshape(-1, 3)
    starts = np.array([box.offset for _, _, box in boxes], np.int64).reshape(-1, 3)
    stops = np.array([box.end for _, _, box in boxes], np.int64).reshape(-1, 3)
    channels = np.array([c for c, _, _ in boxes], np.int64)
    weights = np.array([weight for _, weight, _ in boxes], np.uint64)
    table = _count(fragments, affinities, channels, weights, steps, starts, stops)
    counts, u, v, sums = table[table[:, COUNT] > 0].T
    return _sum_repeats(u, v, sums, counts - np.uint64(1))


def _corner(slices: Slices) -> tuple[Triple, Triple]:
    z, y, x = slices
    return (z.start, y.start, x.start), (z.stop - z.start, y.stop - y.start, x.stop - x.start)


def _difference(box: Roi, hole: Roi) -> Iterator[Roi]:
    """Yield boxes that hold the voxels of ``box`` that are not in ``hole``, each once."""
    for axis in range(3):
        low, high = box.offset[axis], box.end[axis]
        first, last = hole.offset[axis], hole.end[axis]
        for start, stop in ((low, min(high, first)), (max(low, last), high)):
            if start < stop and box.size:
                yield _along(box, axis, start, stop)
        start = max(low, first)
        box = _along(box, axis, start, max(min(high, last), start))


def _along(box: Roi, axis: int, start: int, stop: int) -> Roi:
    offset, shape = list(box.offset), list(box.shape)
    offset[axis], shape[axis] = start, stop - start
    return Roi((offset[0], offset[1], offset[2]), (shape[0], shape[1], shape[2]))


def merge(tables: Iterable[Edges]) -> Edges:
    """Return one table with the edges of all ``tables``; rows of one pair of fragments are added.

    The result depends neither on the order of the tables nor on how their rows are spread over them.

    Args:
        tables: any number of tables, also none.
    """
    parts = list(tables)
    if not parts:
        empty = np.empty(0, np.uint64)
        return Edges(empty, empty, empty, empty)
    return _sum_repeats(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _check(fragments: NDArray[np.uint64], affinities: NDArray[np.uint8], offsets: Offsets, owned: Slices) -> None:
    if fragments.ndim != 3 or affinities.shape != (len(offsets), *fragments.shape):
        raise ShapeError(
            f"affinities {affinities.shape} do not fit fragments {fragments.shape}, {len(offsets)} offsets; "
            "expected (c, z, y, x) with one channel per offset and the fragments' last three axes"
        )
    if fragments.dtype != np.uint64 or affinities.dtype != np.uint8:
        raise DataError(f"expected uint64 fragments and uint8 affinities, got {fragments.dtype} and {affinities.dtype}")
    if any(not 0 <= s.start <= s.stop <= n for s, n in zip(owned, fragments.shape, strict=True)):
        raise ShapeError(f"owned {owned} does not lie inside the fragments' shape {fragments.shape}")


def _sum_repeats(
    u: NDArray[np.uint64], v: NDArray[np.uint64], sums: NDArray[np.uint64], counts: NDArray[np.uint64]
) -> Edges:
    """Sort rows by ``(u, v)`` and add up those of the same pair."""
    if u.size == 0:
        return Edges(u, v, sums, counts)
    order = np.lexsort((v, u))
    u, v = u[order], v[order]
    first = np.flatnonzero(np.concatenate(([True], (u[1:] != u[:-1]) | (v[1:] != v[:-1]))))
    total, contact = np.add.reduceat(sums[order], first), np.add.reduceat(counts[order], first)
    return Edges(u[first], v[first], total, contact)


@compiled
def _count(
    fragments: NDArray[np.uint64],
    affinities: NDArray[np.uint8],
    channels: NDArray[np.int64],
    weights: NDArray[np.uint64],
    steps: NDArray[np.int64],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
) -> NDArray[np.uint64]:
    """Return a `pair_table` of fragments: count + 1, u, v, affinity sum."""
    table, used, row = np.zeros((CAPACITY, 4), np.uint64), 0, np.int64(0)
    zero, one = np.uint64(0), np.uint64(1)
    for box in range(channels.size):
        dz, dy, dx = steps[box]
        c, weight = channels[box], weights[box]
        for z in range(starts[box, 0], stops[box, 0]):
            for y in range(starts[box, 1], stops[box, 1]):
                here, there, links = fragments[z, y], fragments[z + dz, y + dy], affinities[c, z, y]
                for x in range(starts[box, 2], stops[box, 2]):
                    a, b = here[x], there[x + dx]
                    if a == b or a == zero or b == zero:  # noqa: SIM109
                        continue
                    u, v = min(a, b), max(a, b)
                    # neighbouring voxels mostly touch the same pair of fragments
                    if table[row, COUNT] == zero or table[row, A] != u or table[row, B] != v:
                        row = slot(table, u, v)
                    if table[row, COUNT] == zero:
                        table[row, COUNT], table[row, A], table[row, B] = one, u, v
                        used += 1
                    table[row, COUNT] += weight
                    table[row, VALUE] += np.uint64(links[x]) * weight
                    if 2 * used > table.shape[0]:
                        table, row = grown(table), np.int64(0)
    return table
