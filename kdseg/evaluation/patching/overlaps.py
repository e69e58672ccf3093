"""Overlaps of two segmentations in a region and around it, counted block by block.

Around the region, both are there in up to six boxes. Before a face behind which the new segmentation has no object, a
new voxel shares with the old one behind the face, as long as no other old object lies before the face, too::

    old   ...aaaa:aabb...        new   :xxyy       x shares with a
    old   ...aaaa:bbbb...        new   :xxyy       x shares with nobody: the old segmentation knew that a ends here
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.evaluation.alignment import Placed
from kdseg.evaluation.counting import Count, Rows, added, count_blocks, read_rows
from kdseg.evaluation.patching.names import Ids, Overlaps
from kdseg.geometry import Roi, Slices, Triple, blocks, triple
from kdseg.running.runner import Place
from kdseg.volumes.foreign import Source

HERE = (1, 1, 1)
"""Ratio of volumes on their own grid."""


class Found(NamedTuple):
    """Overlaps in and around a region.

    Attributes:
        outside: of the region.
        place: uint64 (k,), of each row of ``outside`` the first voxel of the old object there, as linear index into the
            old volume, C order.
        inside: of the region.
    """

    outside: Overlaps
    place: Ids
    inside: Overlaps


@dataclass(frozen=True)
class _Continues:
    """Voxels before a face: 1 where no other old object lies there than behind it, else 0.

    Attributes:
        old: the old segmentation.
        step: from a voxel before the face to the one behind it.
        shape: of the old volume.
        dtype: of the values.
    """

    old: Placed
    step: Triple
    shape: Triple
    dtype: np.dtype[Any]

    def __getitem__(self, key: Slices) -> NDArray[Any]:
        z, y, x = key
        before = Roi((z.start, y.start, x.start), (z.stop - z.start, y.stop - y.start, x.stop - x.start))
        here, there = self.old.read(before), self.old.read(before.shift(self.step))
        return np.asarray((here == 0) | (here == there)).astype(self.dtype)


def count_overlaps(old: Placed, new: Placed, region: Roi, block: Triple, folder: Path, place: Place) -> Found:
    """Count the overlaps in and around a region.

    Args:
        old: uint64 ids, at voxel 0 of the grid.
        new: uint64 ids.
        region: voxels that both cover.
        block: voxels per task; changes nothing.
        folder: for the tables of blocks; what is there from an earlier attempt is used.
        place: where the blocks are done.
    """
    counts = [
        (Count(new, old, box, block, ignore_segments=(0,)), (0, 0, 0))
        for box in around(new.roi.intersect(old.roi), region)
    ]
    counts += list(_faces(old, new, region, block))
    parts = [np.empty((5, 0), np.uint64)]
    for number, (what, step) in enumerate(counts):
        rows = _counted(what, folder / f"outside{number}", place)
        parts.append(_from_old(rows, what.roi.shift(step), what.roi.shape, old.roi.shape))
    outside = added(np.concatenate(parts, axis=1))
    inside = _counted(Count(new, old, region, block, ignore_labels=(), ignore_segments=(0,)), folder / "inside", place)
    return Found(Overlaps(*outside[1:4]), outside[4], Overlaps(*inside[1:4]))


def around(whole: Roi, region: Roi) -> Iterator[Roi]:
    """Yield boxes that tile what of ``whole`` lies outside of ``region``, which is inside of it."""
    rest = whole
    for axis in range(3):
        for low, high in ((rest.offset[axis], region.offset[axis]), (region.end[axis], rest.end[axis])):
            if low < high:
                yield _cut(rest, axis, low, high)
        rest = _cut(rest, axis, region.offset[axis], region.end[axis])


def _cut(roi: Roi, axis: int, low: int, high: int) -> Roi:
    offset, shape = list(roi.offset), list(roi.shape)
    offset[axis], shape[axis] = low, high - low
    return Roi(triple(offset), triple(shape))


def _faces(old: Placed, new: Placed, region: Roi, block: Triple) -> Iterator[tuple[Count, Triple]]:
    """Yield what to count before each face that has nothing new behind it, and the step to what is old there."""
    for axis in range(3):
        for side, low in ((-1, region.offset[axis]), (1, region.end[axis] - 1)):
            before = _cut(region, axis, low, low + 1)
            step = triple(side if k == axis else 0 for k in range(3))
            behind = before.shift(step)
            if not old.roi.contains(behind) or _any(new, behind, block):
                continue
            mask = Source("", _Continues(old, step, old.roi.shape, np.dtype(np.uint8)), None, None, block)
            moved = Placed(old.source, HERE, triple(-s for s in step))
            yield Count(new, moved, before, block, Placed(mask, HERE, (0, 0, 0)), ignore_segments=(0,)), step


def _any(new: Placed, layer: Roi, block: Triple) -> bool:
    """Return whether the new segmentation has an object in a layer."""
    there = new.roi.intersect(layer)
    return there.size > 0 and any(new.read(one.roi).any() for one in blocks(there, block))


def _counted(what: Count, folder: Path, place: Place) -> Rows:
    count_blocks(what, folder, folder / "all.parquet", place=place)
    return read_rows(folder / "all.parquet")


def _from_old(rows: Rows, roi: Roi, shape: Triple, whole: Triple) -> Rows:
    """Return rows whose places are linear indices into the old volume instead of into a box."""
    inside = np.unravel_index(rows[4].astype(np.int64), shape)
    z, y, x = (v + o for v, o in zip(inside, roi.offset, strict=True))
    rows = rows.copy()
    rows[4] = np.ravel_multi_index((z, y, x), whole).astype(np.uint64)
    return rows
