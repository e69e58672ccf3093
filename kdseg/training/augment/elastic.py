"""Smooth deformations."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import grid_sample, interpolate

from kdseg.networks.symmetry import Crop

SPACING = 16
"""Voxels between the control points of a deformation."""
SIGMA = 2.0
"""Voxels by which a control point moves; at most twice this, so that the deformation cannot fold."""


def deform(crop: Crop, rng: np.random.Generator, *, in_plane: bool) -> Crop:
    """Return the crop seen through a smooth random displacement.

    Control points move at random and voxels between them by trilinear interpolation; raw is interpolated,
    labels and mask take the nearest voxel. Voxels that come from outside do not count.

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
    steps = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij")
    places = [flow[axis] + step for axis, step in enumerate(steps)]
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
    return Crop(raw, labels, mask & inside.numpy(), np.where(inside.numpy(), source, ~source))
