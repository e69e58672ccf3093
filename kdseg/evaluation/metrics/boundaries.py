"""Boundaries: an F-score of boundary voxels with a tolerance, and masks of voxels away from borders.

Distances are Euclidean, in nm between centres of voxels. Counts are integers and additive: those of blocks add
up to those of the volume where each block is read with a halo of `halo` voxels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from kdseg.errors import DataError, ShapeError, VoxelSizeError
from kdseg.geometry import Slices, Triple, VoxelSize

_ROUNDING = 1 + 1e-9
"""Voxels at just the tolerance are within it, however the nearest of several equally near ones was rounded."""


class BoundaryCounts(NamedTuple):
    """Boundary voxels of a block; the sum over blocks is that of the volume.

    Attributes:
        found: boundary voxels of the segmentation.
        found_near: of these, those with one of the labels within the tolerance.
        true: boundary voxels of the labels.
        true_near: of these, those with one of the segmentation within the tolerance.
    """

    found: int
    found_near: int
    true: int
    true_near: int

    def plus(self, other: BoundaryCounts) -> BoundaryCounts:
        """Return the counts of both."""
        return BoundaryCounts(*(a + b for a, b in zip(self, other, strict=True)))


class BoundaryScores(NamedTuple):
    """Agreement of boundaries, all in 0..1; 1 is best.

    Attributes:
        f: harmonic mean of the two below.
        precision: share of the segmentation's boundary voxels that are near one of the labels; 1 if none.
        recall: share of the labels' boundary voxels that are near one of the segmentation; 1 if none.
    """

    f: float
    precision: float
    recall: float


def halo(tolerance: float, voxel_size: VoxelSize, *, sections: bool = False) -> Triple:
    """Return how many voxels a block needs around it, (z, y, x).

    Args:
        tolerance: nm, 0 or above.
        voxel_size: (z, y, x) in nm.
        sections: distances within a section only.
    """
    _check_sizes(tolerance, voxel_size)
    # one more: whether a voxel is a boundary depends on its neighbours
    z, y, x = (math.floor(tolerance * _ROUNDING / size) + 1 for size in voxel_size)
    return (0 if sections else z, y, x)


def boundary(ids: NDArray[np.integer], *, sections: bool = False) -> NDArray[np.bool_]:
    """Return the voxels that have a face neighbour with another id: both sides of each border.

    Args:
        ids: integers, (z, y, x); 0 is an id like any other. The border of the array is not a boundary.
        sections: neighbours in y and x only.

    Returns:
        bool, (z, y, x).
    """
    found = np.zeros(ids.shape, np.bool_)
    for axis in range(1 if sections else 0, 3):
        here = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
        there = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
        differ = ids[here] != ids[there]
        found[here] |= differ
        found[there] |= differ
    return found


def boundary_counts(
    segmentation: NDArray[np.integer],
    labels: NDArray[np.integer],
    tolerance: float,
    voxel_size: VoxelSize,
    owned: Slices,
    *,
    ignore_label: int | None = 0,
    mask: NDArray[np.bool_] | None = None,
    sections: bool = False,
) -> BoundaryCounts:
    """Return how many boundary voxels of one block have a counterpart within the tolerance.

    Each side is matched to the nearest voxel of the other, several to one if need be, as in the boundary
    F-measure of Csurka et al. (2013), "What is a good evaluation measure for semantic segmentation?", which
    leaves out the one-to-one assignment of Martin et al. (2004).

    Args:
        segmentation: integers, (z, y, x), of the block with its halo.
        labels: integers, the same shape.
        tolerance: nm, 0 or above; voxels at just this distance count as near.
        voxel_size: (z, y, x) in nm.
        owned: the block without its halo, as slices: these voxels are counted. The halo is to be that of
            `halo`, except at the border of the volume.
        ignore_label: voxels with this label are not counted, on either side; they do serve as counterparts.
        mask: bool, (z, y, x), of the block without its halo: likewise, voxels where it is false.
        sections: boundaries and distances within sections, (y, x), only.

    Raises:
        ShapeError: if the shapes differ or are not three-dimensional, or the mask is not bool of the block's shape.
    """
    if segmentation.shape != labels.shape or labels.ndim != 3:
        raise ShapeError(f"segmentation {segmentation.shape} and labels {labels.shape} must have one shape, (z, y, x)")
    _check_sizes(tolerance, voxel_size)
    counted = np.ones(labels[owned].shape, np.bool_) if ignore_label is None else labels[owned] != ignore_label
    if mask is not None:
        if mask.dtype != np.bool_ or mask.shape != counted.shape:
            raise ShapeError(f"the mask must be bool of {counted.shape}, got {mask.dtype} of {mask.shape}")
        counted = counted & mask
    ours, truth = (boundary(ids, sections=sections) for ids in (segmentation, labels))
    found, true = ours[owned] & counted, truth[owned] & counted
    found_near = found & _within(truth, tolerance, voxel_size, sections)[owned]
    true_near = true & _within(ours, tolerance, voxel_size, sections)[owned]
    return BoundaryCounts(*(int(np.count_nonzero(part)) for part in (found, found_near, true, true_near)))


def boundary_scores(counts: BoundaryCounts) -> BoundaryScores:
    """Return precision, recall and F of boundary voxels.

    Args:
        counts: of the whole volume.
    """
    precision = counts.found_near / counts.found if counts.found else 1.0
    recall = counts.true_near / counts.true if counts.true else 1.0
    both = precision + recall
    return BoundaryScores(2 * precision * recall / both if both else 0.0, precision, recall)


def away_from_borders(
    labels: NDArray[np.integer], tolerance: float, voxel_size: VoxelSize, *, sections: bool = False
) -> NDArray[np.bool_]:
    """Return the voxels further than a tolerance from every border of the labels.

    The mask for `contingency.block_contingency` that makes scores forgive where exactly a membrane is. CREMI's
    convention: borders are voxels with a face neighbour of another label, within the section
    (``sections=True``), and a voxel at just the tolerance is left out.

    Args:
        labels: integers, (z, y, x), with a halo of `halo` voxels, which the caller cuts off.
        tolerance: nm, 0 or above; with 0 the border voxels themselves are left out.
        voxel_size: (z, y, x) in nm.
        sections: borders and distances within sections, (y, x), only.

    Returns:
        bool, (z, y, x).

    Raises:
        ShapeError: if the labels are not three-dimensional.
    """
    if labels.ndim != 3:
        raise ShapeError(f"labels must be (z, y, x), got {labels.shape}")
    _check_sizes(tolerance, voxel_size)
    return ~_within(boundary(labels, sections=sections), tolerance, voxel_size, sections)


def _within(marked: NDArray[np.bool_], tolerance: float, voxel_size: VoxelSize, sections: bool) -> NDArray[np.bool_]:
    """Return the voxels at most ``tolerance`` nm from a marked one."""
    near = np.zeros(marked.shape, np.bool_)
    if sections:
        for z in np.flatnonzero(marked.any(axis=(1, 2))):
            near[z] = distance_transform_edt(~marked[z], voxel_size[1:]) <= tolerance * _ROUNDING
    elif marked.any():  # without any, distances would be to nowhere
        near = distance_transform_edt(~marked, voxel_size) <= tolerance * _ROUNDING
    return near


def _check_sizes(tolerance: float, voxel_size: VoxelSize) -> None:
    if not 0 <= tolerance < math.inf:
        raise DataError(f"the tolerance must be 0 nm or more, got {tolerance}")
    if not all(0 < size < math.inf for size in voxel_size):
        raise VoxelSizeError(f"voxels must have a positive size, got {voxel_size} nm")
