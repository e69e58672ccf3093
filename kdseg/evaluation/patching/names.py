"""Ids for the objects of a region that was segmented again, so that those outside of it keep theirs.

What both segmentations have outside of the region says which is which::

    old   |aaaaaaaa:        :bbbb|      the region is between the colons
    new      |xxxxx:xxxxyyyy:yy|        x shares 5 voxels with a, y 2 with b: x becomes a, y becomes b

Id 0 is background on both sides; its voxels share nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import DataError
from kdseg.volumes.values import RESERVED

Ids = NDArray[np.uint64]


class Overlaps(NamedTuple):
    """Voxels that objects of both segmentations share, a row per pair, each pair once.

    Attributes:
        new: uint64 (k,), id in the new segmentation, never 0.
        old: uint64 (k,), id in the old one.
        voxels: uint64 (k,), at least 1.
    """

    new: Ids
    old: Ids
    voxels: Ids


class Names(NamedTuple):
    """Id of each object of the region; no two have the same.

    Attributes:
        new: uint64 (n,), ids in the new segmentation, ascending.
        name: uint64 (n,), ids in the result.
        fresh: how many of them no object of the old segmentation has.
    """

    new: Ids
    name: Ids
    fresh: int


class Wanted(NamedTuple):
    """Change that the new segmentation makes to objects outside of the region, which keep their ids all the same.

    Attributes:
        merge: whether one new object is two old ones; else one old object is two new ones.
        rows: the two rows of the overlaps outside; the object that they share has the first one's name, if it may.
        voxels: of the second row.
    """

    merge: bool
    rows: tuple[int, int]
    voxels: int


def names(outside: Overlaps, inside: Overlaps, largest: int) -> Names:
    """Name the objects of a region.

    1. An object is named after the old one with which it shares most voxels outside. Of several that claim one name the
       one that shares most gets it.
    2. Those that share nothing outside claim likewise by what they share inside, of old objects that share nothing
       outside either.
    3. All others get new ids above ``largest``, in the order of their own.

    Of equal shares the smaller id counts.

    Args:
        outside: of the region; no old id is 0.
        inside: of the region, with all its new objects; the old id may be 0.
        largest: id of the old segmentation.

    Raises:
        DataError: if there are too many objects for ids of 64 bits.
    """
    new = np.unique(inside.new)
    name = np.zeros(new.size, np.uint64)
    here = np.flatnonzero(np.isin(outside.new, new))
    won = here[_won(Overlaps(*(column[here] for column in outside)))]
    name[np.searchsorted(new, outside.new[won])] = outside.old[won]
    alone = np.flatnonzero((inside.old > 0) & ~np.isin(inside.new, outside.new))
    won = alone[_won(Overlaps(*(column[alone] for column in inside)), outside.old)]
    name[np.searchsorted(new, inside.new[won])] = inside.old[won]
    rest = np.flatnonzero(name == 0)
    if largest + rest.size >= RESERVED:
        raise DataError(
            f"{rest.size} objects need ids above {largest}, the largest of the old segmentation, but {RESERVED} and "
            "above mean no label: give the old one smaller ids"
        )
    name[rest] = np.uint64(largest) + np.arange(1, rest.size + 1, dtype=np.uint64)
    return Names(new, name, rest.size)


def wanted(outside: Overlaps, found: Names, least: int) -> list[Wanted]:
    """Return what unchanged ids outside of the region cannot express, most voxels first.

    Args:
        outside: see `names`.
        found: what that returned.
        least: voxels of a row that counts.
    """
    place = np.searchsorted(found.new, outside.new)
    here = place < found.new.size
    here[here] = found.new[place[here]] == outside.new[here]
    rows = np.flatnonzero(here & (outside.voxels >= np.uint64(least)))
    kept = found.name[place[rows]] == outside.old[rows]
    listed = list[Wanted]()
    for merge, one, other in ((True, outside.new, outside.old), (False, outside.old, outside.new)):
        # of each object first the row that has the name, else the largest; all others contradict it
        order = np.lexsort((other[rows], ~outside.voxels[rows], ~kept, one[rows]))
        first = -1
        for row in rows[order].tolist():
            if first < 0 or one[row] != one[first]:
                first = row
            else:
                listed.append(Wanted(merge, (first, row), int(outside.voxels[row])))
    return sorted(listed, key=lambda want: (-want.voxels, not want.merge, *(int(outside.new[r]) for r in want.rows)))


def _won(overlaps: Overlaps, taken: Ids | None = None) -> NDArray[np.intp]:
    """Return the rows of those claims that are granted; none on ids that are taken."""
    best = _first(overlaps.new, overlaps.voxels, overlaps.old)
    if taken is not None:
        best = best[~np.isin(overlaps.old[best], taken)]
    return best[_first(overlaps.old[best], overlaps.voxels[best], overlaps.new[best])]


def _first(of: Ids, voxels: Ids, other: Ids) -> NDArray[np.intp]:
    """Return the row of each distinct id ``of`` with most voxels, of equal ones the one of the smaller other id."""
    order = np.lexsort((other, ~voxels, of))  # ~ reverses the order of unsigned integers
    new = np.ones(order.size, np.bool_)
    new[1:] = of[order][1:] != of[order][:-1]
    return order[new]
