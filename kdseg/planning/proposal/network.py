"""Networks, crops and blocks that suit voxels of a size and volumes of an extent."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from kdseg.geometry import Offsets, Triple, VoxelSize, is_cubic, triple

WIDTHS = (8, 16, 32)
"""Channels per level: those of the best network of docs/results.md, 1 % of the parameters of its teacher."""
LIGHT = (4, 8, 16)
"""Likewise of a student of it."""
_COARSE, _VERY_COARSE = 2.0, 4.0
"""Times as long as the shortest side of a voxel: from there on a side is pooled later, and neurons cross sections so
steeply that fragments are better flat."""
_CROP = 2**18
"""Voxels of a crop, about: 64 a side."""
_REACH = 0.75
"""Share of a crop that an offset may reach over: of longer ones hardly a pair is seen."""
_LARGE = 256
"""Voxels along an axis from which on volumes have larger blocks."""
FAR: Offsets = tuple(step for n in (1, 3, 9) for step in ((-n, 0, 0), (0, -n, 0), (0, 0, -n)))
"""The default of the configuration, which the shipped networks have, too."""
_FAR_COARSE: Offsets = tuple(
    step for z, n in ((1, 1), (2, 3), (3, 9), (4, 27)) for step in ((-z, 0, 0), (0, -n, 0), (0, 0, -n))
)
"""Of sections that are much coarser than fine in the plane, as config/cremi.yaml has them."""


@dataclass(frozen=True)
class Shape:
    """Form of a U-Net of three levels.

    Attributes:
        downsample: pooling between them, (z, y, x).
        kernels: of each.
        offsets: of its affinities.
        crop: voxels that it is trained on at a time.
        rotate: quarter turns that leave voxels as they are.
    """

    downsample: tuple[Triple, ...]
    kernels: tuple[Triple, ...]
    offsets: Offsets
    crop: Triple
    rotate: Literal["none", "yx", "zyx"]

    @property
    def even(self) -> bool:
        """Whether it treats all axes alike, which is the default of the configuration."""
        return {*self.downsample} == {(2, 2, 2)} and {*self.kernels} == {(3, 3, 3)}


def shape_for(voxel_size: VoxelSize, train: Triple) -> Shape:
    """Return the form of a network for voxels of a size.

    An axis whose voxels are at least twice as long as the shortest is left out of the pooling until it no longer is,
    and of the kernels of the first level.

    Args:
        voxel_size: nm, (z, y, x).
        train: voxels to train on, (z, y, x).
    """
    spacing, downsample = list(voxel_size), list[Triple]()
    coarse = [size >= _COARSE * min(spacing) for size in spacing]
    for _ in WIDTHS[1:]:
        step = triple(1 if size >= _COARSE * min(spacing) else 2 for size in spacing)
        downsample.append(step)
        spacing = [size * n for size, n in zip(spacing, step, strict=True)]
    first = triple(1 if one else 3 for one in coarse)
    crop = _crop(voxel_size, train, downsample)
    _, y, x = voxel_size
    return Shape(
        downsample=tuple(downsample),
        kernels=(first, *(((3, 3, 3),) * len(downsample))),
        offsets=_offsets(_FAR_COARSE if coarse[0] else FAR, crop),
        crop=crop,
        rotate="zyx" if is_cubic(voxel_size) else "yx" if is_cubic((x, y, x)) else "none",
    )


def even_box(voxel_size: VoxelSize, voxels: int) -> tuple[float, float, float]:
    """Return how many voxels of a size, nm, (z, y, x), a cube of about so many voxels has along each axis."""
    finest = min(voxel_size)
    ratios = triple(size / finest for size in voxel_size)
    side = (voxels * prod(ratios)) ** (1 / 3)
    return triple(side / ratio for ratio in ratios)


def _crop(voxel_size: VoxelSize, train: Triple, downsample: list[Triple]) -> Triple:
    """Return a crop about as long along all axes, in nm, of whole strides, that volumes hold."""
    found = []
    for axis, side in enumerate(even_box(voxel_size, _CROP)):
        stride = prod(step[axis] for step in downsample)
        unit = 2 * stride if train[axis] >= 2 * stride else stride
        found.append(max(int(min(side + unit / 2, train[axis])) // unit * unit, unit))
    return triple(found)


def _offsets(wanted: Offsets, crop: Triple) -> Offsets:
    def seen(step: Triple) -> bool:
        return all(abs(n) <= max(_REACH * m, 1) for n, m in zip(step, crop, strict=True))

    return tuple(step for step in wanted if seen(step))


@dataclass(frozen=True)
class Blocks:
    """Layout of volumes, and what one task of each stage works on; all (z, y, x) in voxels.

    Attributes:
        chunk: unit of reading.
        shard: unit of writing.
        tile: of a prediction.
        predict: block of predictions.
        fragments: block of fragments.
        halo: around it.
        flat: flood each section alone.
    """

    chunk: Triple
    shard: Triple
    tile: Triple
    predict: Triple
    fragments: Triple
    halo: Triple
    flat: bool


def blocks_for(voxel_size: VoxelSize, largest: Triple) -> Blocks:
    """Return blocks for volumes of up to a shape, (z, y, x), of voxels of a size in nm."""
    large, finest = max(largest) > _LARGE, min(voxel_size)
    if voxel_size[0] >= _COARSE * finest:
        side = 128 if large else 64
        flat = voxel_size[0] >= _VERY_COARSE * finest
        return Blocks(
            chunk=(16, side, side),
            shard=(32, 2 * side, 2 * side),
            tile=(16, 128, 128),
            predict=(32, 256, 256) if large else (32, 128, 128),
            fragments=(32, 4 * side, 4 * side),
            halo=(0, 64, 64) if flat else (8, 32, 32),
            flat=flat,
        )
    side = 64 if large else 32
    return Blocks(
        chunk=(side, side, side),
        shard=(2 * side, 2 * side, 2 * side),
        tile=(2 * side, 2 * side, 2 * side),
        predict=(4 * side, 4 * side, 4 * side) if large else (2 * side, 2 * side, 2 * side),
        fragments=(2 * side, 4 * side, 4 * side),
        halo=(32, 32, 32),
        flat=False,
    )
