"""The contingency table: how many voxels each segment shares with each ground-truth label.

Counts are integers and additive: the tables of blocks add up to the table of the volume. Merging segments
adds rows, so that every threshold of an agglomeration is scored from one table of fragments.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import DataError, ShapeError


class Contingency(NamedTuple):
    """Overlaps, one row per pair that occurs, sorted by ``(segment, label)`` without repeats.

    Attributes:
        segment: uint64 (k,), segment (or fragment) id; 0 is background, a segment like any other.
        label: uint64 (k,), ground-truth label.
        count: uint64 (k,), number of voxels with both, at least 1.
    """

    segment: NDArray[np.uint64]
    label: NDArray[np.uint64]
    count: NDArray[np.uint64]  # type: ignore[assignment]  # hides tuple.count, on purpose


def block_contingency(
    segmentation: NDArray[np.uint64], labels: NDArray[np.integer], ignore_label: int = 0
) -> Contingency:
    """Return the contingency table of one block.

    Args:
        segmentation: uint64, any shape.
        labels: integers 0 or above, the same shape.
        ignore_label: voxels with this label are left out.

    Raises:
        ShapeError: if the shapes differ.
        DataError: if an id is negative or no integer.
    """
    if segmentation.shape != labels.shape:
        raise ShapeError(f"segmentation {segmentation.shape} and labels {labels.shape} must have one shape")
    segment, label = _ids(segmentation, "segmentation"), _ids(labels, "labels")
    if segment.size == 0:
        return Contingency(segment, label, np.empty(0, np.uint64))
    # sort runs of equal voxels, an order of magnitude fewer than voxels
    new = np.empty(segment.size, np.bool_)
    new[0] = True
    np.not_equal(segment[1:], segment[:-1], out=new[1:])
    new[1:] |= label[1:] != label[:-1]
    start = np.flatnonzero(new)
    length = np.diff(start, append=segment.size).astype(np.uint64)
    segment, label = segment[start], label[start]
    counted = label != ignore_label
    return _sum_repeats(segment[counted], label[counted], length[counted])


def merge(tables: Iterable[Contingency]) -> Contingency:
    """Return one table with the voxels of all ``tables``, whatever their order.

    Args:
        tables: any number of tables, also none.
    """
    parts = list(tables)
    if not parts:
        empty = np.empty(0, np.uint64)
        return Contingency(empty, empty, empty)
    return _sum_repeats(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def relabel(contingency: Contingency, lut_from: NDArray[np.uint64], lut_to: NDArray[np.uint64]) -> Contingency:
    """Return the table after replacing every fragment by its segment.

    The same as relabelling the voxels before counting; 0 stays 0.

    Args:
        contingency: table of fragments.
        lut_from: uint64 (f,), fragment ids, ascending without repeats.
        lut_to: uint64 (f,), their segments.

    Raises:
        DataError: if a fragment is not in ``lut_from``.
    """
    row = np.searchsorted(lut_from, contingency.segment)
    known = row < lut_from.size
    known[known] = lut_from[row[known]] == contingency.segment[known]
    unknown = contingency.segment[~known & (contingency.segment != 0)]
    if unknown.size:
        raise DataError(f"fragment {unknown[0]} is not in the lookup table of {lut_from.size} fragments")
    segment = np.zeros(contingency.segment.size, np.uint64)
    segment[known] = lut_to[row[known]]
    segment[contingency.segment == 0] = 0
    return _sum_repeats(segment, contingency.label, contingency.count)


def drop_small_labels(contingency: Contingency, dust: int) -> Contingency:
    """Return the table without the labels of fewer than ``dust`` voxels, as if these were ignored.

    Args:
        contingency: table of the whole volume: a label's size is the sum of its counts.
        dust: smallest number of voxels that is kept; 0 and 1 keep all.
    """
    _, row = np.unique(contingency.label, return_inverse=True)
    size = np.zeros(row.max(initial=-1) + 1, np.uint64)
    np.add.at(size, row, contingency.count)
    kept = size[row] >= dust
    return Contingency(contingency.segment[kept], contingency.label[kept], contingency.count[kept])


def _ids(array: NDArray[np.integer], what: str) -> NDArray[np.uint64]:
    flat = np.ascontiguousarray(array).ravel()
    if flat.dtype.kind not in "ui":
        raise DataError(f"{what} must hold integer ids, got {flat.dtype}")
    if flat.dtype.kind == "i" and flat.size and flat.min() < 0:
        raise DataError(f"{what} must hold ids of 0 or above, got {flat.min()}")
    return flat.astype(np.uint64, copy=False)


def _sum_repeats(segment: NDArray[np.uint64], label: NDArray[np.uint64], count: NDArray[np.uint64]) -> Contingency:
    """Sort rows by ``(segment, label)`` and add up those of the same pair."""
    if segment.size == 0:
        return Contingency(segment, label, count)
    order = np.lexsort((label, segment))
    segment, label = segment[order], label[order]
    first = np.flatnonzero(np.concatenate(([True], (segment[1:] != segment[:-1]) | (label[1:] != label[:-1]))))
    return Contingency(segment[first], label[first], np.add.reduceat(count[order], first))
