"""Stored outputs of teachers for crops that were flipped, turned and deformed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from kdseg.geometry import Offsets, Roi, Triple, pair_slices
from kdseg.networks.models import Taught
from kdseg.training.augment import Symmetry, transform_affinities
from kdseg.training.sampling.source import Source


def stored_outputs(source: Source, roi: Roi, offsets: Offsets, symmetry: Symmetry) -> Taught:
    """Return what stored teachers say about a crop that was flipped and turned, a batch of one.

    Stored affinities are read with a margin, since a flip moves pairs to their other end.

    Args:
        source: a volume with stored outputs.
        roi: of the crop, as it was imaged.
        offsets: of the stored affinities.
        symmetry: that was applied to the crop.
    """
    margin = max((abs(step) for offset in offsets for step in offset), default=0)
    grown = roi.grow((margin, margin, margin))
    z, y, x = (slice(margin, margin + roi.shape[axis]) for axis in symmetry.axes)
    teachers = [transform_affinities(array.read(grown), offsets, symmetry)[:, z, y, x] for array in source.affinities]
    vectors = [symmetry.apply(array.read(roi)) for array in source.embeddings]
    if len(vectors) > 1:  # as unit vectors each counts alike: the cosine of two voxels is the mean of the cosines
        vectors = [_unit(each) for each in vectors]
    shape = tuple(roi.shape[axis] for axis in symmetry.axes)
    embedding = np.concatenate(vectors) if vectors else np.zeros((0, *shape), np.float16)
    here = _inside(roi, source.raw.roi, (0, 0, 0))
    known = np.stack([symmetry.apply(here & _inside(roi, source.raw.roi, symmetry.before(step))) for step in offsets])
    return Taught(*(torch.from_numpy(np.ascontiguousarray(a))[None] for a in (np.stack(teachers), known, embedding)))


def deformed_outputs(taught: Taught, places: NDArray[np.int64], offsets: Offsets) -> Taught:
    """Return what stored teachers say about a crop that was deformed.

    An affinity is known of a pair only if its two voxels show two that were just as far apart: of others, nothing was
    stored. So it stays exact, at the price of pairs: an elastic deformation leaves about three quarters of the nearest
    neighbours, and a tenth of pairs nine voxels apart. The embedding of a voxel that shows nothing is 0.

    Args:
        taught: of the crop before it was deformed, a batch of one.
        places: of the deformed crop; see `Crop`.
        offsets: of the stored affinities.
    """
    shown = torch.from_numpy(places)
    index = torch.where(shown < 0, ~shown, shown).flatten()
    affinities, known, embedding = (
        part.flatten(-3)[..., index].reshape(*part.shape[:-3], *places.shape) for part in taught
    )
    embedding *= shown >= 0
    # numbered as in an array twice as wide, where no two steps are the same number
    _, height, width = places.shape
    strides = (4 * height * width, 2 * width, 1)
    numbers = sum(axis * s for axis, s in zip(torch.unravel_index(index, places.shape), strides, strict=True))
    numbers = torch.where(shown < 0, 2**62, numbers.view(places.shape))
    for channel, offset in enumerate(offsets):
        here, there = pair_slices(places.shape, offset)
        step = sum(o * s for o, s in zip(offset, strides, strict=True))
        apart = torch.zeros(places.shape, dtype=torch.bool)
        apart[here] = (numbers[here] < 2**62) & (numbers[there] - numbers[here] == step)
        known[0, channel] &= apart
    return Taught(affinities, known, embedding)


def _unit(vectors: NDArray[np.float16]) -> NDArray[np.float16]:
    """Return vectors (d, z, y, x) divided by their length."""
    exact = vectors.astype(np.float32)
    length: NDArray[np.float32] = np.sqrt((exact**2).sum(0))
    unit: NDArray[np.float16] = (exact / np.maximum(length, 1e-6)).astype(np.float16)
    return unit


def _inside(roi: Roi, volume: Roi, step: Triple) -> NDArray[np.bool_]:
    """Return, for each voxel of ``roi``, whether the voxel a step further lies in the volume."""
    axes = []
    for o, n, s, first, extent in zip(roi.offset, roi.shape, step, volume.offset, volume.shape, strict=True):
        there = np.arange(o + s, o + s + n)
        axes.append((there >= first) & (there < first + extent))
    return axes[0][:, None, None] & axes[1][:, None] & axes[2]
