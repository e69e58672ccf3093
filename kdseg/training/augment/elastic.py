"""Turns by any angle, and smooth deformations."""

from __future__ import annotations

from math import ceil, cos, hypot, pi, sin
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from kdseg.geometry import Triple
from kdseg.networks.symmetry import Crop

SPACING = 16
"""Voxels between the control points of a deformation."""
SIGMA = 2.0
"""Voxels by which a control point moves; at most twice this, so that the deformation cannot fold."""
PLANES = {"none": (), "yx": ((1, 2),), "zyx": ((0, 1), (0, 2), (1, 2))}
"""Axes that a turn mixes, by the option `augment.rotate`."""


def turn_margin(shape: Triple, rotate: Literal["none", "yx", "zyx"]) -> Triple:
    """Return the voxels around a crop that come into sight where it is turned by at most an eighth of a circle.

    Args:
        shape: of the crop.
        rotate: the option of this name.
    """
    margin = [0, 0, 0]
    for plane in PLANES[rotate]:
        for axis in plane:
            margin[axis] = max(margin[axis], ceil((hypot(*(shape[a] for a in plane)) - shape[axis]) / 2))
    return (margin[0], margin[1], margin[2])


def turn(crop: Crop, rng: np.random.Generator, rotate: Literal["yx", "zyx"]) -> Crop:
    """Return the crop turned about its middle by any angle up to an eighth of a circle; see `_seen`.

    Args:
        crop: as it was imaged, or turned by quarters; not changed.
        rng: where the plane and the angle come from.
        rotate: the option of this name; with ``"zyx"`` voxels are cubes.
    """
    plane = PLANES[rotate][int(rng.integers(len(PLANES[rotate])))]
    angle = rng.uniform(-pi / 4, pi / 4)
    places = _grid(crop.raw.shape)
    first, second = (places[axis] - (crop.raw.shape[axis] - 1) / 2 for axis in plane)
    turned = (cos(angle) * first - sin(angle) * second, sin(angle) * first + cos(angle) * second)
    for axis, place in zip(plane, turned, strict=True):
        places[axis] = place + (crop.raw.shape[axis] - 1) / 2
    return _seen(crop, places)


def deform(crop: Crop, rng: np.random.Generator, *, in_plane: bool) -> Crop:
    """Return the crop seen through a smooth random displacement; see `_seen`.

    Control points move at random and voxels between them by trilinear interpolation.

    Args:
        crop: as it was imaged, or turned; not changed.
        rng: where the displacement comes from.
        in_plane: leave z alone (coarse sections).
    """
    shape = crop.raw.shape
    control = [max(2, 1 + round(n / SPACING)) for n in shape]
    moves = rng.standard_normal((3, *control), dtype=np.float32) * SIGMA
    moves = moves.clip(-2 * SIGMA, 2 * SIGMA)
    if in_plane:
        moves[0] = 0
    flow = interpolate(torch.from_numpy(moves)[None], size=shape, mode="trilinear", align_corners=True)[0]
    return _seen(crop, [flow[axis] + step for axis, step in enumerate(_grid(shape))])


def _grid(shape: tuple[int, ...]) -> list[Tensor]:
    return list(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij"))


def _seen(crop: Crop, places: list[Tensor]) -> Crop:
    """Return the crop whose voxels show other places of it.

    Raw is interpolated, labels and mask take the nearest voxel. Voxels that come from outside do not count.

    Args:
        crop: not changed.
        places: float32 (z, y, x) per axis, in voxels.
    """
    shape = crop.raw.shape
    # grid_sample counts from -1 to 1 and wants x first
    scaled = [2 * place / max(n - 1, 1) - 1 for place, n in zip(places, shape, strict=True)]
    grid = torch.stack(scaled[::-1], dim=-1)[None]
    raw = grid_sample(
        torch.from_numpy(np.ascontiguousarray(crop.raw))[None, None],
        grid,
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )[0, 0].numpy()
    nearest = [place.round().long() for place in places]
    inside = torch.ones(shape, dtype=torch.bool)
    for place, n in zip(nearest, shape, strict=True):
        inside &= (place >= 0) & (place < n)
        place.clamp_(0, n - 1)
    source = ((nearest[0] * shape[1] + nearest[1]) * shape[2] + nearest[2]).numpy()
    labels, mask = (array.reshape(-1)[source] for array in (crop.labels, crop.mask))
    seen = inside.numpy()
    if crop.places is None:
        return Crop(raw, labels, mask & seen, np.where(seen, source, ~source))
    before = crop.places.reshape(-1)[source]
    return Crop(raw, labels, mask & seen, np.where(seen & (before >= 0), before, np.minimum(before, ~before)))
