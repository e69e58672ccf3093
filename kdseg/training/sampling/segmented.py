"""Affinities of a segmentation that teaches, for crops that were flipped, turned and deformed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kdseg.geometry import Offsets, Roi, Triple, VoxelSize, inner_slices, pair_slices
from kdseg.networks.models import Taught
from kdseg.networks.symmetry import Symmetry
from kdseg.training.sampling.arrays import Labels
from kdseg.training.targets import boundary_axes, boundary_distance


class Seen(NamedTuple):
    """Voxels of a segmentation.

    Attributes:
        ids: int64 (z, y, x), of objects; 0 is none.
        known: bool (z, y, x), where the segmentation says something.
        distance: uint8 (z, y, x), voxels from another object, ``rim + 1`` where it is more.
    """

    ids: NDArray[np.int64]
    known: NDArray[np.bool_]
    distance: NDArray[np.uint8]


def segmented_outputs(
    seen: Seen, rim: int, offsets: Offsets, symmetry: Symmetry, places: NDArray[np.int64] | None = None
) -> Taught:
    """Return the affinities of a segmentation, less sure near the boundaries of its objects, a batch of one.

    With ``y`` 1 for a pair within an object and 0 for any other, and ``d`` the smaller one of the distances of its
    voxels from another object, in voxels of the volume as it was imaged, the affinity is::

        1/2 + (y - 1/2) min(d, rim + 1) / (rim + 1)

    It is the smoothing of labels by place of Islam & Glocker (IPMI 2021, arXiv 2104.05788) with a ramp instead of
    their Gaussian: a boundary may lie some voxels off, the inside of an object is certain. A pair is known where both
    voxels are. Crops are deformed as ground truth is: by the objects that their voxels show, of whatever distance.

    Args:
        seen: of the crop, as it was imaged; see `seen_voxels`.
        rim: voxels from another object up to which affinities are less sure; 0: all are 0 or 1.
        offsets: one affinity channel each.
        symmetry: that was applied to the crop.
        places: of the crop if it was deformed, after the symmetry; see `Crop`.
    """
    parts = [np.ascontiguousarray(symmetry.apply(part)) for part in seen]
    if places is not None:
        index = np.where(places < 0, ~places, places)
        parts = [part.reshape(-1)[index] for part in parts]
        parts[1] &= places >= 0
    affinities, known = _pairs(Seen(*parts), rim, offsets)
    none = torch.zeros(1, 0, *known.shape[1:], dtype=torch.float16)
    return Taught(torch.from_numpy(affinities)[None, None], torch.from_numpy(known)[None], none)


def seen_voxels(segmentation: Labels, roi: Roi, rim: int, voxel_size: VoxelSize, *, sections: bool = False) -> Seen:
    """Return what a segmentation says about the voxels of a region, whatever lies around its border.

    Args:
        segmentation: that teaches.
        roi: region, in voxels of the raw data.
        rim: see `segmented_outputs`.
        voxel_size: nm, (z, y, x); where z is coarser, distances lie in the section plane.
        sections: whether each is an image of its own, so that they do so in any case.
    """
    axes = boundary_axes("auto", voxel_size, sections=sections) or ""
    ids, known = segmentation.read(roi.grow((rim, rim, rim)))
    distance = boundary_distance(torch.from_numpy(ids), axes, rim, torch.from_numpy(known)).numpy()
    z, y, x = (slice(rim, rim + n) for n in roi.shape)
    return Seen(ids[z, y, x], known[z, y, x], distance[z, y, x])


def inner(taught: Taught, margin: Triple) -> Taught:
    """Return the outputs without as many voxels at both ends of each axis."""
    cut = (..., *inner_slices(taught.known.shape[2:], margin))
    return Taught(*(part[cut] for part in taught))


def _pairs(seen: Seen, rim: int, offsets: Offsets) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the affinities of voxels, uint8 (c, z, y, x) in 1/255, and which are known, of pairs in the array."""
    ids, there_is, distance = seen
    share = np.arange(rim + 2) / (rim + 1)
    values = np.rint(255 * (0.5 + np.multiply.outer([-0.5, 0.5], share))).astype(np.uint8)
    affinities = np.zeros((len(offsets), *ids.shape), np.uint8)
    known = np.zeros(affinities.shape, bool)
    for channel, offset in enumerate(offsets):
        here, there = pair_slices((ids.shape[0], ids.shape[1], ids.shape[2]), offset)
        joined, both = (ids[here] == ids[there]) & (ids[here] > 0), there_is[here] & there_is[there]
        value = values[joined.astype(np.uint8), np.minimum(distance[here], distance[there])]
        affinities[(channel, *here)], known[(channel, *here)] = value * both, both
    return affinities, known
