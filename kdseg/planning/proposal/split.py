"""One labelled volume cut into parts: to learn from, to tune on, to score."""

from __future__ import annotations

from typing import NamedTuple

from kdseg.errors import ShapeError
from kdseg.geometry import Roi, VoxelSize, triple

AXES = "zyx"
_ALONG, _ACROSS = 1024, 512
"""Voxels along the axis that is cut, and along the others, of which no more is used: hours, not weeks."""
_SENSIBLE, _LEAST, _THIN = 64, 32, 4
"""Voxels along the axis that is cut: so many if there is an axis of them, so many at least; and along the others."""
_EQUAL = 0.99
"""Ratio of extents from which on they count as equally long."""


class Parts(NamedTuple):
    """Parts of a volume, in voxels of its raw data, that lie side by side.

    Attributes:
        axis: along which it was cut.
        train: half of it.
        tune: a quarter.
        test: a quarter.
    """

    axis: int
    train: Roi
    tune: Roi
    test: Roi


def split(region: Roi, voxel_size: VoxelSize) -> Parts:
    """Cut a labelled region into halves, and one of these into halves again, along its longest axis.

    The longest in nm has the thickest parts, in which neurons are whole. Of equally long ones it is y, then x: all
    parts then meet all sections, of which only some may have labels. The middle of a very large region is used.

    Args:
        region: voxels of the raw data with labels.
        voxel_size: nm, (z, y, x).

    Raises:
        ShapeError: if it is too small.
    """
    long = [axis for axis in range(3) if region.shape[axis] >= _SENSIBLE]
    long = long or [axis for axis in range(3) if region.shape[axis] >= _LEAST]
    if not long or min(region.shape) < _THIN:
        raise ShapeError(
            f"labels cover {region.shape} voxels (z, y, x), too few to learn from one part and to tune and score on "
            f"others: expected {_LEAST} along one axis and {_THIN} along each; images that do not follow each other "
            "start from config/sections.example.yaml"
        )
    extents = {axis: region.shape[axis] * voxel_size[axis] for axis in long}
    longest = max(extents.values())
    axis = next(one for one in (1, 2, 0) if extents.get(one, 0.0) >= _EQUAL * longest)
    used = region.central(triple(_ALONG if one == axis else _ACROSS for one in range(3)))
    n = used.shape[axis]
    return Parts(axis, *(_cut(used, axis, *ends) for ends in ((0, n // 2), (n // 2, n * 3 // 4), (n * 3 // 4, n))))


def _cut(whole: Roi, axis: int, begin: int, end: int) -> Roi:
    pairs = list(zip(whole.offset, whole.shape, strict=True))
    pairs[axis] = (whole.offset[axis] + begin, end - begin)
    return Roi(triple(offset for offset, _ in pairs), triple(shape for _, shape in pairs))
