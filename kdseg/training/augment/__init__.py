"""Augmentation of crops: pure functions of a crop and a random generator, before targets are computed.

Since affinities are computed from the labels after they moved, they are right by construction; for affinities
that are stored there are `flip_affinities`, `rotate_affinities` and `transform_affinities`, and the places of the
voxels of a deformed crop.
"""

from __future__ import annotations

import numpy as np

from kdseg.config.networks import AugmentOptions
from kdseg.geometry import Triple
from kdseg.networks.symmetry import (
    Crop,
    Symmetry,
    channel_plan,
    flip_affinities,
    rotate_affinities,
    shift_sections,
    symmetries,
    transform_affinities,
)
from kdseg.training.augment.elastic import deform, turn, turn_margin
from kdseg.training.augment.intensity import add_noise, blank_sections, blur, change_intensity

__all__ = [
    "Crop",
    "Symmetry",
    "augment",
    "channel_plan",
    "draw_symmetry",
    "flip_affinities",
    "misalign",
    "rotate_affinities",
    "symmetries",
    "transform_affinities",
    "turn_margin",
]


def draw_symmetry(shape: Triple, rng: np.random.Generator, options: AugmentOptions) -> Symmetry:
    """Return one of the allowed symmetries of a crop of ``shape`` voxels, all alike probable."""
    allowed = symmetries(shape, options.flip, options.rotate)
    return allowed[int(rng.integers(len(allowed)))]


def augment(
    crop: Crop,
    symmetry: Symmetry,
    rng: np.random.Generator,
    options: AugmentOptions,
    *,
    isotropic: bool,
    margin: Triple = (0, 0, 0),
) -> Crop:
    """Return a crop as it might have been imaged elsewhere.

    Args:
        crop: not changed.
        symmetry: by which it is flipped and turned, from `draw_symmetry`.
        rng: decides everything else; the same state gives the same crop.
        options: how often.
        isotropic: whether z is as fine as y and x; else deformation and blur stay in the section plane.
        margin: voxels at both ends of each axis that will be cut away: sections are chosen between them.

    Returns:
        A crop of the same shape, in arrays of its own; its places are counted in the turned crop.
    """
    # copies: an axis of one voxel that was reversed counts as contiguous, but torch refuses its negative stride
    crop = Crop(*(symmetry.apply(array).copy() for array in (crop.raw, crop.labels, crop.mask)))
    if options.turn and rng.random() < options.turn and options.rotate != "none":
        crop = turn(crop, rng, options.rotate)
    if rng.random() < options.elastic:
        crop = deform(crop, rng, in_plane=not isotropic)
    if rng.random() < options.misaligned_section:
        crop = misalign(crop, rng, margin)
    raw = crop.raw
    if rng.random() < options.intensity:
        raw = change_intensity(raw, rng)
    if rng.random() < options.blur:
        raw = blur(raw, rng, in_plane=not isotropic)
    if rng.random() < options.noise:
        raw = add_noise(raw, rng)
    if rng.random() < options.missing_section:
        raw = blank_sections(raw, rng, margin[0])
    return crop._replace(raw=raw)


def misalign(crop: Crop, rng: np.random.Generator, margin: Triple = (0, 0, 0)) -> Crop:
    """Return a crop with one section, or all from one on, moved in the plane by up to a tenth of the crop.

    Its margins count neither for the choice of the section nor for the tenth.
    """
    depth = crop.raw.shape[0]
    plane = [n - 2 * m for n, m in zip(crop.raw.shape[1:], margin[1:], strict=True)]
    first = margin[0] + int(rng.integers(0, depth - 2 * margin[0]))
    sections = slice(first, first + 1) if rng.random() < 0.5 else slice(first, depth)
    y, x = (int(rng.integers(-max(n // 10, 1), max(n // 10, 1) + 1)) for n in plane)
    return shift_sections(crop, sections, (y, x))
