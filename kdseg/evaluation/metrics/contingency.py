"""The contingency table: how many voxels each segment shares with each ground-truth label.

Counts are integers and additive: the tables of blocks add up to the table of the volume. Merging segments
adds rows, so that every threshold of an agglomeration is scored from one table of fragments.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import DataError, ShapeError
from kdseg.evaluation.metrics.counting import FIRST, LABEL, SEGMENT, add, count, empty
from kdseg.geometry import Triple
from kdseg.segmentation.pair_table import COUNT


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


class Located(NamedTuple):
    """A contingency table that also says where each overlap is; taken wherever a `Contingency` is.

    Attributes:
        segment: uint64 (k,), segment (or fragment) id.
        label: uint64 (k,), ground-truth label.
        count: uint64 (k,), number of voxels with both, at least 1.
        first: uint64 (k,), the first of these voxels in C order, as linear index into the *volume*; of tables
            that are added the least, so that it does not depend on the blocks.
    """

    segment: NDArray[np.uint64]
    label: NDArray[np.uint64]
    count: NDArray[np.uint64]  # type: ignore[assignment]
    first: NDArray[np.uint64]


Table = TypeVar("Table", Contingency, Located)


def block_contingency(
    segmentation: NDArray[np.integer],
    labels: NDArray[np.integer],
    ignore_label: int | None = 0,
    *,
    ignore_segment: int | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> Contingency:
    """Return the contingency table of one block.

    One pass over runs of equal voxels, into a hash table of pairs. Ids are exact up to 2**64 - 1.

    Args:
        segmentation: integers 0 or above, any shape.
        labels: integers 0 or above, the same shape.
        ignore_label: voxels with this label are left out; None leaves out none.
        ignore_segment: voxels of this segment are left out; None leaves out none.
        mask: bool, the same shape; only voxels where it is true are counted.
    """
    return _finish(_count_block(segmentation, labels, ignore_label, ignore_segment, mask), Contingency)


def block_located(
    segmentation: NDArray[np.integer],
    labels: NDArray[np.integer],
    offset: Triple,
    volume: Triple,
    ignore_label: int | None = 0,
    *,
    ignore_segment: int | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> Located:
    """Return the contingency table of one block, with the first voxel of each overlap.

    Args:
        segmentation: integers 0 or above, (z, y, x).
        labels: integers 0 or above, the same shape.
        offset: (z, y, x) of the block's first voxel in the volume, in voxels.
        volume: (z, y, x), shape of the volume that linear indices count in.
        ignore_label: voxels with this label are left out; None leaves out none.
        ignore_segment: voxels of this segment are left out; None leaves out none.
        mask: bool, the same shape; only voxels where it is true are counted.

    Raises:
        ShapeError: if the block is not three-dimensional or leaves the volume.
    """
    shape = segmentation.shape
    inside = all(o >= 0 and o + n <= v for o, n, v in zip(offset, shape, volume, strict=False))
    if len(shape) != 3 or not inside:
        raise ShapeError(f"a block of {shape} at {offset} does not lie in a volume of {volume}")
    table = _finish(_count_block(segmentation, labels, ignore_label, ignore_segment, mask), Located)
    # C order within the block is C order within the volume: the first there is the first here
    z, y, x = (p + o for p, o in zip(np.unravel_index(table.first.astype(np.intp), shape), offset, strict=True))
    return table._replace(first=((z * volume[1] + y) * volume[2] + x).astype(np.uint64))


def merge(tables: Iterable[Table]) -> Table:
    """Return one table with the voxels of all ``tables``, whatever their order.

    Reads one table at a time: memory grows with the distinct rows, not with the number of tables.

    Args:
        tables: any number of tables of one kind, also none, for example from a generator that reads them.

    Raises:
        DataError: if some tables are `Located` and others are not.
    """
    rows, used = empty(), 0
    kind: Any = None
    for table in tables:
        if kind is not None and type(table) is not kind:
            raise DataError("tables with and without places cannot be merged into one")
        kind = type(table)
        rows, used = add(rows, used, *_four(table))
    merged: Table = _finish(rows, kind or Contingency)
    return merged


def relabel(contingency: Table, lut_from: NDArray[np.uint64], lut_to: NDArray[np.uint64]) -> Table:
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
    rows, _ = add(empty(), 0, *_four(contingency._replace(segment=segment)))
    return _finish(rows, type(contingency))


def by_section(labels: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Return labels, (z, y, x), with ids of their own in each section, from 1: of repeated ids each is another object.

    0 stays 0.
    """
    out, count = np.zeros(labels.shape, np.uint64), 0
    for z, section in enumerate(labels):
        ids, number = np.unique(section, return_inverse=True)
        first = count + int(ids[0] != 0)
        out[z] = np.where(section != 0, number.reshape(section.shape) + first, 0)
        count += int(np.count_nonzero(ids))
    return out


def own_background(segments: NDArray[np.uint64], section: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Return segments, of ids below 2**63, with a background of its own in each section but the first: 2**63 + z.

    Args:
        segments: uint64, any shape; 0 is background.
        section: z of each, not negative; of a shape that spreads to theirs.
    """
    background = np.where(section > 0, section.astype(np.uint64) + np.uint64(2**63), np.uint64(0))
    return np.where(segments > 0, segments, background)


def drop_small_labels(contingency: Table, dust: int) -> Table:
    """Return the table without the labels of fewer than ``dust`` voxels, as if these were ignored.

    Args:
        contingency: table of the whole volume: a label's size is the sum of its counts.
        dust: smallest number of voxels that is kept; 0 and 1 keep all.
    """
    row, _, size = sizes(contingency.label, contingency.count)
    kept = size[row] >= dust
    columns = (column[kept] for column in contingency)
    return type(contingency)(*columns)


def sizes(
    ids: NDArray[np.uint64], count: NDArray[np.uint64]
) -> tuple[NDArray[np.intp], NDArray[np.uint64], NDArray[np.uint64]]:
    """Return how many voxels each segment, or each label, has.

    Args:
        ids: uint64 (k,), a table's segments or its labels.
        count: uint64 (k,), its counts.

    Returns:
        intp (k,), the row of each of ``ids`` in the two others; uint64 (n,), the distinct ids, ascending;
        uint64 (n,), their exact numbers of voxels.
    """
    # a table is sorted by segment: only labels are to be sorted
    ascend = bool(np.all(ids[1:] >= ids[:-1]))
    order = np.arange(ids.size) if ascend else np.argsort(ids, kind="stable")
    names = ids[order]
    new = np.ones(ids.size, np.bool_)
    new[1:] = names[1:] != names[:-1]
    first = np.flatnonzero(new)
    row = np.empty(ids.size, np.intp)
    row[order] = np.cumsum(new) - 1
    size = np.add.reduceat(count[order], first) if first.size else count[order]
    return row, names[first], size


def _count_block(
    segmentation: NDArray[np.integer],
    labels: NDArray[np.integer],
    ignore_label: int | None,
    ignore_segment: int | None,
    mask: NDArray[np.bool_] | None,
) -> NDArray[np.uint64]:
    if segmentation.shape != labels.shape:
        raise ShapeError(f"segmentation {segmentation.shape} and labels {labels.shape} must have one shape")
    if mask is not None and (mask.dtype != np.bool_ or mask.shape != labels.shape):
        raise ShapeError(f"the mask must be bool of {labels.shape}, got {mask.dtype} of {mask.shape}")
    every = np.empty(0, np.bool_) if mask is None else np.ascontiguousarray(mask).ravel()
    return count(
        _ids(segmentation, "segmentation"),
        _ids(labels, "labels"),
        every,
        _ignored(ignore_segment, "ignore_segment"),
        _ignored(ignore_label, "ignore_label"),
    )


def _ids(array: NDArray[np.integer], what: str) -> NDArray[np.unsignedinteger]:
    """Return the ids flat; of two types only, since the kernel is compiled once per pair of types."""
    if array.dtype.kind not in "ui":
        raise DataError(f"{what} must hold integer ids, got {array.dtype}")
    flat = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).ravel()  # HDF5 may be big-endian
    if flat.dtype.kind == "i" and flat.size and flat.min() < 0:
        raise DataError(f"{what} must hold ids of 0 or above, got {flat.min()}")
    if flat.dtype.itemsize == 8:
        return flat.view(np.uint64)
    return flat.view(np.uint32) if flat.dtype.itemsize == 4 else flat.astype(np.uint32)


def _ignored(number: int | None, what: str) -> NDArray[np.uint64]:
    if number is None:
        return np.empty(0, np.uint64)
    if not 0 <= number < 1 << 64:
        raise DataError(f"{what} must be an id between 0 and 2**64 - 1, or None, got {number}")
    return np.array([number], np.uint64)


def _four(table: Contingency | Located) -> tuple[NDArray[np.uint64], ...]:
    first = table.first if isinstance(table, Located) else np.zeros(table.count.size, np.uint64)
    return table.segment, table.label, table.count, first


def _finish(rows: NDArray[np.uint64], kind: type[Table]) -> Table:
    """Return the used rows of a hash table, sorted."""
    used = rows[rows[:, COUNT] > 0]
    used = used[np.lexsort((used[:, LABEL], used[:, SEGMENT]))]
    order = (SEGMENT, LABEL, COUNT, FIRST)[: len(kind._fields)]
    return kind(*(np.ascontiguousarray(used[:, column]) for column in order))
