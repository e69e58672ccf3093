"""Counts of affinities by value, a list of entries per edge: what quantiles are computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.running.compiled import compiled

_PREFIX = "histogram_"


class Histograms(NamedTuple):
    """Affinities between regions, counted by value.

    Attributes:
        start: int64 (e + 1,), first entry of each edge, and the number of entries.
        bin: uint8 (h,), affinity in 1/255, ascending within an edge.
        pairs: uint64 (h,), number of voxel pairs with that affinity, above 0.
    """

    start: NDArray[np.int64]
    bin: NDArray[np.uint8]
    pairs: NDArray[np.uint64]


def starts(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where lists of the given sizes start one after the other, and where the last one ends."""
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)))


def take(histograms: Histograms | None, wanted: NDArray[np.bool_] | NDArray[np.int64]) -> Histograms | None:
    """Return the histograms of some edges.

    Args:
        histograms: of e edges, or none.
        wanted: bool (e,) or int64 (n,), which.
    """
    if histograms is None:
        return None
    sizes = np.diff(histograms.start)[wanted]
    start = starts(sizes)
    entries = np.arange(start[-1]) + np.repeat(histograms.start[:-1][wanted] - start[:-1], sizes)
    return Histograms(start, histograms.bin[entries], histograms.pairs[entries])


def join(tables: Sequence[Histograms | None]) -> Histograms | None:
    """Return the histograms of all tables, one after the other; none if one of the tables has none."""
    found = [table for table in tables if table is not None]
    if not found or len(found) < len(tables):
        return None
    return Histograms(
        starts(np.concatenate([np.diff(table.start) for table in found])),
        np.concatenate([table.bin for table in found]),
        np.concatenate([table.pairs for table in found]),
    )


def add_up(histograms: Histograms | None, order: NDArray[np.int64], first: NDArray[np.int64]) -> Histograms | None:
    """Return the sums of histograms of runs of edges.

    Args:
        histograms: of e edges, or none.
        order: int64 (n,), edges, those of a run one after the other.
        first: int64 (r,), where each run begins in ``order``.
    """
    return None if histograms is None else Histograms(*_add_up(*histograms, order, np.append(first, order.size)))


@compiled
def _add_up(
    start: NDArray[np.int64],
    values: NDArray[np.uint8],
    pairs: NDArray[np.uint64],
    order: NDArray[np.int64],
    ends: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint64]]:
    out = np.zeros(ends.size, np.int64)
    found, sums = np.empty(values.size, np.uint8), np.empty(values.size, np.uint64)
    counts, size = np.zeros(256, np.uint64), 0
    for run in range(ends.size - 1):
        low, high = 255, 0
        for edge in order[ends[run] : ends[run + 1]]:
            for k in range(start[edge], start[edge + 1]):
                counts[values[k]] += pairs[k]
                low, high = min(low, int(values[k])), max(high, int(values[k]))
        for value in range(low, high + 1):
            if counts[value] > 0:
                found[size], sums[size] = value, counts[value]
                counts[value] = np.uint64(0)
                size += 1
        out[run + 1] = size
    return out, found[:size].copy(), sums[:size].copy()


def totals(histograms: Histograms | None, contact: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return uint64 (e,), the voxel pairs that each edge's histogram counts; ``contact`` where there are none."""
    if histograms is None:
        return contact
    sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(histograms.pairs, dtype=np.uint64)))
    return np.asarray(np.diff(sums[histograms.start]), np.uint64)


def to_columns(histograms: Histograms | None) -> dict[str, NDArray[Any]]:
    """Return histograms as columns of a table on disk."""
    return {} if histograms is None else {_PREFIX + name: column for name, column in histograms._asdict().items()}


def from_columns(table: Mapping[str, NDArray[Any]]) -> Histograms | None:
    """Return the histograms of a table on disk, or none if it has none."""
    if _PREFIX + "start" not in table:
        return None
    return Histograms(*(table[_PREFIX + name] for name in Histograms._fields))
