"""The hash table that overlaps are counted in: one row per pair of segment and label, compiled.

Columns `COUNT`, `SEGMENT`, `LABEL`, `FIRST`, all uint64; a row with a count of 0 is free.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdseg.running.compiled import compiled
from kdseg.segmentation.pair_table import CAPACITY, COUNT, VALUE, A, B, grown, slot

SEGMENT, LABEL, FIRST = A, B, VALUE
_STRETCH = 1 << 12
"""Voxels of which the runs are found before they are counted."""


def empty() -> NDArray[np.uint64]:
    """Return a table without rows."""
    return np.zeros((CAPACITY, 4), np.uint64)


@compiled
def _put(
    rows: NDArray[np.uint64], used: int, segment: np.uint64, label: np.uint64, count: np.uint64, first: np.uint64
) -> tuple[NDArray[np.uint64], int]:
    """Add one overlap; return the table, a larger one if it was half full, and its number of used rows."""
    k = slot(rows, segment, label)
    if rows[k, COUNT] != 0:
        rows[k, COUNT] += count
        rows[k, FIRST] = min(rows[k, FIRST], first)
        return rows, used
    rows[k, COUNT], rows[k, SEGMENT], rows[k, LABEL], rows[k, FIRST] = count, segment, label, first
    return (rows if 2 * (used + 1) < rows.shape[0] else grown(rows)), used + 1


@compiled
def add(
    rows: NDArray[np.uint64],
    used: int,
    segment: NDArray[np.uint64],
    label: NDArray[np.uint64],
    count: NDArray[np.uint64],
    first: NDArray[np.uint64],
) -> tuple[NDArray[np.uint64], int]:
    """Add a table's columns to the hash table."""
    for k in range(segment.size):
        rows, used = _put(rows, used, segment[k], label[k], count[k], first[k])
    return rows, used


@compiled
def count(
    segmentation: NDArray[Any],
    labels: NDArray[Any],
    mask: NDArray[np.bool_],
    ignore_segment: NDArray[np.uint64],
    ignore_label: NDArray[np.uint64],
) -> NDArray[np.uint64]:
    """Return a hash table of pairs; ``mask`` and what is ignored may be empty."""
    rows, used = np.zeros((CAPACITY, 4), np.uint64), 0
    ends, new, start = np.empty(_STRETCH, np.int64), np.empty(_STRETCH, np.uint8), 0
    for low in range(1, segmentation.size + 1, _STRETCH):
        n, done = _ends(segmentation, labels, mask, low, new, ends), 0
        while done < n:
            done, start, used = _count_runs(
                rows, used, segmentation, labels, mask, ignore_segment, ignore_label, ends[:n], done, start
            )
            if 2 * used >= rows.shape[0]:
                rows = grown(rows)
    return rows


@compiled
def _count_runs(
    rows: NDArray[np.uint64],
    used: int,
    segmentation: NDArray[Any],
    labels: NDArray[Any],
    mask: NDArray[np.bool_],
    ignore_segment: NDArray[np.uint64],
    ignore_label: NDArray[np.uint64],
    ends: NDArray[np.int64],
    done: int,
    start: int,
) -> tuple[int, int, int]:
    """Count runs from number ``done`` on, until all are or the table is half full.

    Apart from `count`, since a table that may be replaced within the loop costs a count of references per run.

    Returns:
        Runs that are done, the first voxel of the next one, used rows.
    """
    while done < ends.size:
        first, start = start, ends[done]
        done += 1
        segment, label = np.uint64(segmentation[first]), np.uint64(labels[first])
        if mask.size and not mask[first]:
            continue
        if (ignore_segment.size and segment == ignore_segment[0]) or (ignore_label.size and label == ignore_label[0]):
            continue
        row = slot(rows, segment, label)
        if rows[row, COUNT] == 0:  # runs come in order: the first voxel is that of the first run
            rows[row, SEGMENT], rows[row, LABEL], rows[row, FIRST] = segment, label, np.uint64(first)
            used += 1
        rows[row, COUNT] += np.uint64(start - first)
        if 2 * used >= rows.shape[0]:
            break
    return done, start, used


@compiled
def _ends(
    segmentation: NDArray[Any],
    labels: NDArray[Any],
    mask: NDArray[np.bool_],
    low: int,
    new: NDArray[np.uint8],
    ends: NDArray[np.int64],
) -> int:
    """Write the ends of runs from voxel ``low`` on, over as many voxels as ``ends`` has room for.

    First compares all neighbours, into ``new``, which becomes vector instructions. Then writes every voxel's number and
    keeps it or not, without a branch.
    """
    size = min(ends.size, segmentation.size - low)
    segment, before = segmentation[low : low + size], segmentation[low - 1 : low - 1 + size]
    label, label_before = labels[low : low + size], labels[low - 1 : low - 1 + size]
    for k in range(size):
        new[k] = (segment[k] != before[k]) | (label[k] != label_before[k])
    if mask.size:
        kept, kept_before = mask[low : low + size], mask[low - 1 : low - 1 + size]
        for k in range(size):
            new[k] |= kept[k] != kept_before[k]
    n = 0
    for k in range(size):
        ends[n] = low + k
        n += new[k]
    if size < ends.size:
        ends[n] = low + size
        n += 1
    return n
