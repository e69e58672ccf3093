"""The receptive field of a U-Net, by interval arithmetic along each axis.

A network is described by its windows (kernel, stride, padding): output ``p`` of a convolution or pooling reads
the inputs ``p * stride - padding ... p * stride - padding + kernel - 1``. A transposed convolution whose kernel
is its stride ``s`` reads the one input ``p // s``. The inputs that an output depends on follow by going
backwards through both branches of every level, and they depend on where ``p`` lies in the pooling grid, so
the widest of all positions counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from kdseg.config.base import Extent
from kdseg.geometry import Triple, triple


class Window(NamedTuple):
    """One convolution or pooling, (z, y, x) each."""

    kernel: Triple
    stride: Triple = (1, 1, 1)
    padding: Triple = (0, 0, 0)


class Level(NamedTuple):
    """One resolution of a U-Net.

    Attributes:
        encoder: windows from the encoder above to this one, in the order of execution, pooling included.
        decoder: windows after the concatenation with the upsampled level below; empty for the bottleneck.
        step: factor of the upsampling from the level below.
    """

    encoder: Sequence[Window]
    decoder: Sequence[Window] = ()
    step: Extent = (1, 1, 1)


def same(kernel: Triple) -> Window:
    """Return the window of a convolution that keeps the shape."""
    z, y, x = (k // 2 for k in kernel)
    return Window(kernel, (1, 1, 1), (z, y, x))


def pooling(step: Triple) -> Window:
    """Return the window of a pooling whose kernel is its stride."""
    return Window(step, step)


def receptive_radius(levels: Sequence[Level]) -> Triple:
    """Return the largest distance, per axis, from an output voxel to an input voxel that it depends on.

    Args:
        levels: finest first; the last one is the bottleneck.
    """
    return triple(_axis_radius(levels, axis) for axis in range(3))


def halo_and_stride(levels: Sequence[Level]) -> tuple[Triple, Triple]:
    """Return the receptive radius rounded up to the total pooling, and the total pooling."""
    z, y, x = (prod(level.step[axis] for level in levels) for axis in range(3))
    stride = (z, y, x)
    z, y, x = (-(-r // s) * s for r, s in zip(receptive_radius(levels), stride, strict=True))
    return (z, y, x), stride


def _axis_radius(levels: Sequence[Level], axis: int) -> int:
    positions = range(prod(level.step[axis] for level in levels))
    reaches = []
    for p in positions:
        low = high = p
        for depth, level in enumerate(levels):
            low, high = _backwards(level.decoder, axis, low, high)
            first, last = low, high
            for above in reversed(levels[: depth + 1]):
                first, last = _backwards(above.encoder, axis, first, last)
            reaches += [p - first, last - p]
            low, high = low // level.step[axis], high // level.step[axis]
    return max(reaches)


def _backwards(windows: Sequence[Window], axis: int, low: int, high: int) -> tuple[int, int]:
    for kernel, stride, padding in ((w.kernel[axis], w.stride[axis], w.padding[axis]) for w in reversed(windows)):
        low, high = low * stride - padding, high * stride - padding + kernel - 1
    return low, high
