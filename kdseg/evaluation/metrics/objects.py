"""Errors by object: each label's share of the false splits, each segment's of the false merges.

The shares add up to the variation of information, so that a list of the worst objects says how much of the
whole score it explains. What Nunez-Iglesias et al. (2013), "Machine learning of hierarchical clustering to
segment 2D and 3D images", plot as the conditional entropy of each object times its probability.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import DataError
from kdseg.evaluation.metrics.contingency import Contingency, Located, sizes


class Shares(NamedTuple):
    """One row per object, by ascending id.

    Attributes:
        id: uint64 (n,), label or segment.
        size: uint64 (n,), its voxels in the table.
        parts: int64 (n,), how many objects of the other volume it overlaps; 1 is best.
        bits: float64 (n,), what it adds to the variation of information of the whole volume; 0 where
            ``parts`` is 1.
    """

    id: NDArray[np.uint64]
    size: NDArray[np.uint64]
    parts: NDArray[np.int64]
    bits: NDArray[np.float64]


class Overlap(NamedTuple):
    """An object of the other volume that one overlaps.

    Attributes:
        id: segment or label.
        voxels: that both share.
        first: linear index of the first of these voxels in the volume, `numpy.unravel_index` makes it
            (z, y, x); None if the table is without places.
    """

    id: int
    voxels: int
    first: int | None


class Fault(NamedTuple):
    """A label that is split, or a segment that merges.

    Attributes:
        id: the label, or the segment.
        size: its voxels in the table.
        parts: how many objects of the other volume it overlaps.
        bits: what it adds to the variation of information of the whole volume.
        overlaps: the largest of the objects that it overlaps, largest first.
    """

    id: int
    size: int
    parts: int
    bits: float
    overlaps: tuple[Overlap, ...]


def split_shares(table: Contingency | Located) -> Shares:
    """Return each label's share of the split part of the variation of information: they add up to it.

    Args:
        table: of the whole volume.
    """
    return _shares(table.label, table.count)


def merge_shares(table: Contingency | Located) -> Shares:
    """Return each segment's share of the merge part of the variation of information: they add up to it.

    Args:
        table: of the whole volume.
    """
    return _shares(table.segment, table.count)


def worst_splits(table: Contingency | Located, k: int, overlaps: int = 10) -> list[Fault]:
    """Return the ``k`` labels that add most to the split part of the variation of information.

    Args:
        table: of the whole volume; a `Located` one also says where the overlaps are.
        k: how many at most, 0 or above; labels without a split are never listed.
        overlaps: how many segments are named for each, 0 or above.

    Returns:
        Worst first; of equal ones the smaller id first.
    """
    return _worst(table, split_shares(table), table.label, table.segment, k, overlaps)


def worst_merges(table: Contingency | Located, k: int, overlaps: int = 10) -> list[Fault]:
    """Return the ``k`` segments that add most to the merge part of the variation of information.

    Args:
        table: of the whole volume; a `Located` one also says where the overlaps are.
        k: how many at most, 0 or above; segments without a merge are never listed.
        overlaps: how many labels are named for each, 0 or above.

    Returns:
        Worst first; of equal ones the smaller id first.
    """
    return _worst(table, merge_shares(table), table.segment, table.label, k, overlaps)


def _shares(ids: NDArray[np.uint64], count: NDArray[np.uint64]) -> Shares:
    row, distinct, size = sizes(ids, count)
    terms = count * np.log2(size[row] / count)
    bits = np.bincount(row, terms, distinct.size) / max(int(count.sum()), 1)
    return Shares(distinct, size, np.bincount(row, minlength=distinct.size), bits)


def _worst(
    table: Contingency | Located,
    shares: Shares,
    ids: NDArray[np.uint64],
    partners: NDArray[np.uint64],
    k: int,
    overlaps: int,
) -> list[Fault]:
    if k < 0 or overlaps < 0:
        raise DataError(f"cannot list {k} objects with {overlaps} overlaps each")
    order = np.lexsort((shares.id, -shares.bits))
    found = []
    for at in order[shares.parts[order] > 1][:k]:
        rows = np.flatnonzero(ids == shares.id[at])
        rows = rows[np.lexsort((partners[rows], -table.count[rows].astype(np.int64)))][:overlaps]
        named = tuple(
            Overlap(int(partners[r]), int(table.count[r]), int(table.first[r]) if isinstance(table, Located) else None)
            for r in rows
        )
        size, parts = int(shares.size[at]), int(shares.parts[at])
        found.append(Fault(int(shares.id[at]), size, parts, float(shares.bits[at]), named))
    return found
