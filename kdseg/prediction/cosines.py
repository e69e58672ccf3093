"""Affinities of an embedding: the cosines of pairs of voxels (Liu et al., arXiv 2401.06370, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kdseg.geometry import Offsets, Roi, Triple

EPSILON = 1e-6
"""Least length that a vector is divided by."""


def reach(offsets: Offsets, stride: Triple) -> Triple:
    """Return the voxels around a tile in which the second voxels of its pairs lie, in whole steps of the pooling."""
    z, y, x = (-(-max(abs(offset[axis]) for offset in offsets) // s) * s for axis, s in enumerate(stride))
    return (z, y, x)


def write_cosines(result: Tensor, embedding: Tensor, inner: Roi, offsets: Offsets) -> None:
    """Write the affinities of a tile: cosines, of which negative ones are 0.

    Args:
        result: uint8 (c, z, y, x) in 1/255, on the device; written.
        embedding: float (d, z', y', x'), of the tile and what `reach` says around it.
        inner: the tile in it.
        offsets: one (z, y, x) step in voxels per channel.
    """
    unit = normalize(embedding.float(), dim=0, eps=EPSILON)
    here = unit[(slice(None), *inner.slices())]
    for channel, offset in enumerate(offsets):
        there = unit[(slice(None), *inner.shift(offset).slices())]
        cosine = (here * there).sum(0)
        result[channel] = torch.round(cosine.clamp_(0, 1).mul_(255))
