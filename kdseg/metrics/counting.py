"""The hash table that overlaps are counted in: one row per pair of segment and label, compiled.

Columns `COUNT`, `SEGMENT`, `LABEL`, `FIRST`, all uint64; a row with a count of 0 is free.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

_FIRST_CAPACITY = 1 << 12
_HASH = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio (Knuth, multiplicative hashing)
COUNT, SEGMENT, LABEL, FIRST = range(4)
_STRETCH = 1 << 13
"""Voxels of which the runs are found before they are counted."""


def empty() -> NDArray[np.uint64]:
    """Return a table without rows."""
    return np.zeros((_FIRST_CAPACITY, 4), np.uint64)


@njit(cache=True)
def _slot(rows: NDArray[np.uint64], segment: np.uint64, label: np.uint64) -> np.int64:
    """Return the row of the pair in an open-addressing table, or the free row where it belongs."""
    mask = np.uint64(rows.shape[0] - 1)
    mixed = (segment * _HASH) ^ label
    mixed = (mixed ^ (mixed >> np.uint64(29))) * _HASH
    k = (mixed >> np.uint64(32)) & mask
    while rows[k, COUNT] != 0 and (rows[k, SEGMENT] != segment or rows[k, LABEL] != label):
        k = (k + np.uint64(1)) & mask
    return np.int64(k)


@njit(cache=True)
def _put(
    rows: NDArray[np.uint64], used: int, segment: np.uint64, label: np.uint64, count: np.uint64, first: np.uint64
) -> tuple[NDArray[np.uint64], int]:
    """Add one overlap; return the table, a larger one if it was half full, and its number of used rows."""
    k = _slot(rows, segment, label)
    if rows[k, COUNT] != 0:
        rows[k, COUNT] += count
        rows[k, FIRST] = min(rows[k, FIRST], first)
        return rows, used
    rows[k, COUNT], rows[k, SEGMENT], rows[k, LABEL], rows[k, FIRST] = count, segment, label, first
    if 2 * (used + 1) < rows.shape[0]:
        return rows, used + 1
    more = np.zeros((2 * rows.shape[0], 4), np.uint64)
    for old in range(rows.shape[0]):
        if rows[old, COUNT] != 0:
            more[_slot(more, rows[old, SEGMENT], rows[old, LABEL])] = rows[old]
    return more, used + 1


@njit(cache=True)
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


@njit(cache=True)
def count(
    segmentation: NDArray[Any],
    labels: NDArray[Any],
    mask: NDArray[np.bool_],
    ignore_segment: NDArray[np.uint64],
    ignore_label: NDArray[np.uint64],
) -> NDArray[np.uint64]:
    """Return a hash table of pairs; ``mask`` and what is ignored may be empty."""
    rows, used = np.zeros((_FIRST_CAPACITY, 4), np.uint64), 0
    ends, start = np.empty(_STRETCH, np.int64), 0
    for low in range(1, segmentation.size + 1, _STRETCH):
        for k in range(_ends(segmentation, labels, mask, low, ends)):
            first, length = start, np.uint64(ends[k] - start)
            start = ends[k]
            segment, label = np.uint64(segmentation[first]), np.uint64(labels[first])
            if mask.size and not mask[first]:
                continue
            if (ignore_segment.size and segment == ignore_segment[0]) or (
                ignore_label.size and label == ignore_label[0]
            ):
                continue
            row = _slot(rows, segment, label)
            if rows[row, COUNT] != 0:  # mostly; the first voxel is that of the first run
                rows[row, COUNT] += length
            else:
                rows, used = _put(rows, used, segment, label, length, np.uint64(first))
    return rows


@njit(cache=True)
def _ends(
    segmentation: NDArray[Any], labels: NDArray[Any], mask: NDArray[np.bool_], low: int, ends: NDArray[np.int64]
) -> int:
    """Write the ends of runs from voxel ``low`` on, over as many voxels as ``ends`` has room for.

    Writes every voxel's number and keeps it or not, without a branch: twice as fast as a loop over each run.
    """
    n, high = 0, min(low + ends.size, segmentation.size)
    for k in range(low, high):
        ends[n] = k
        new = (segmentation[k] != segmentation[k - 1]) | (labels[k] != labels[k - 1])
        if mask.size:
            new |= mask[k] != mask[k - 1]
        n += int(new)
    if high < low + ends.size:
        ends[n] = high
        n += 1
    return n
