"""Objects that two segmentations have in common, and those that changed from the first to the second.

An object of the old segmentation has a partner if it shares most voxels with a new object that shares most with it (of
equal shares that of the smaller id). Its change is the number of voxels that only one of the two has; of one without a
partner, whose voxels went to objects of others or to background, its size::

    old   |aaaaaaaaa|bbb|        a, 9 voxels, became x, y and a part of z; its partner is x, the change is 3
    new   |xxxxxx|yy|zzzz|       b, 3 voxels, has the partner z, the change is 1; a was split, for y shares most with it

Id 0 is background on both sides, and no object.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.evaluation.metrics.contingency import Located, sizes

Ids = NDArray[np.uint64]


class Changes(NamedTuple):
    """Overlaps of objects that changed, one row each, the largest change first, its overlaps from the largest on.

    Objects that appeared where all was background have the old id 0 and the old size 0.

    Attributes:
        change: uint64 (k,), voxels that only one of object and partner has; its size if it has none, or appeared.
        old: uint64 (k,), id.
        old_size: uint64 (k,), its voxels in what was compared.
        new: uint64 (k,), id of what a part of it became; 0 is background.
        new_size: uint64 (k,), voxels of that.
        voxels: uint64 (k,), voxels of the part, of both ids.
        first: uint64 (k,), the first of these voxels, see `Located`.
    """

    change: Ids
    old: Ids
    old_size: Ids
    new: Ids
    new_size: Ids
    voxels: Ids
    first: Ids


class Agreement(NamedTuple):
    """Numbers of objects.

    Attributes:
        old: objects of the old segmentation.
        new: objects of the new one.
        equal: objects of the same voxels in both.
        renamed: those of them that have another id.
        changed: old objects that are not equal to a new one.
        split: old objects with which several new ones share most.
        vanished: old objects that became background.
        merged: new objects with which several old ones share most.
        appeared: new objects where all was background.
        differing: voxels of another id.
        same: whether nothing but ids differs.
    """

    old: int
    new: int
    equal: int
    renamed: int
    changed: int
    split: int
    vanished: int
    merged: int
    appeared: int
    differing: int
    same: bool


def agreement(table: Located) -> tuple[Agreement, Changes]:
    """Return what two segmentations have in common, and what changed.

    Args:
        table: overlaps of both, nothing left out; its segments are the new objects, its labels the old ones.
    """
    old, new, count = table.label, table.segment, table.count
    of_old, old_ids, old_size = sizes(old, count)
    of_new, new_ids, new_size = sizes(new, count)
    old_size, new_size = old_size[of_old], new_size[of_new]
    both = (old > 0) & (new > 0)
    equal = both & (count == old_size) & (count == new_size)
    appeared = (old == 0) & (new > 0) & (count == new_size)
    changed = np.zeros(old_ids.size, np.bool_)
    changed[of_old[(old > 0) & ~equal]] = True
    rows = np.flatnonzero(both)
    best_new, best_old = _most(of_old, count, new, rows), _most(of_new, count, old, rows)
    change = np.zeros(old_ids.size, np.uint64)
    change[of_old] = old_size
    partner = np.intersect1d(best_new, best_old)
    change[of_old[partner]] = old_size[partner] + new_size[partner] - np.uint64(2) * count[partner]
    change = change[of_old]
    change[appeared] = new_size[appeared]
    rows = np.flatnonzero(changed[of_old] | appeared)
    rows = rows[np.lexsort((new[rows], ~count[rows], old[rows], ~change[rows]))]  # ~ reverses the order of unsigned
    numbers = Agreement(
        old=int(np.count_nonzero(old_ids)),
        new=int(np.count_nonzero(new_ids)),
        equal=int(equal.sum()),
        renamed=int((equal & (old != new)).sum()),
        changed=int(changed.sum()),
        split=int((np.bincount(of_old[best_old]) > 1).sum()),
        vanished=int(np.count_nonzero(old_ids)) - best_new.size,
        merged=int((np.bincount(of_new[best_new]) > 1).sum()),
        appeared=int(appeared.sum()),
        differing=int(count[old != new].sum()),
        same=not rows.size and not ((old > 0) != (new > 0)).any(),
    )
    sizes_of_old = np.where(old > 0, old_size, np.uint64(0))
    columns = (change, old, sizes_of_old, new, new_size, count, table.first)
    return numbers, Changes(*(column[rows] for column in columns))


def _most(of: NDArray[np.intp], count: Ids, other: Ids, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return, of each number ``of``, the row with most voxels, of equal ones that of the smaller other id."""
    rows = rows[np.lexsort((other[rows], ~count[rows], of[rows]))]
    first = np.ones(rows.size, np.bool_)
    first[1:] = of[rows][1:] != of[rows][:-1]
    return rows[first]
