"""Affinities of nearest neighbours in one convention, whatever the sign and order of the offsets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import ConfigError, DataError, ShapeError
from kdseg.geometry import Offsets, nearest_count, pair_slices


def nearest_links(affinities: NDArray[np.uint8], offsets: Offsets) -> NDArray[np.uint8]:
    """Return the affinity of every voxel to the one before it along z, y and x, as waterz has them.

    A channel with a positive step is moved by one voxel: the affinity of ``p`` and ``p + e`` belongs to
    ``p + e`` then. Copies only where it must.

    Args:
        affinities: uint8 (c, z, y, x); ``affinities[c, p]`` is the affinity between ``p`` and
            ``p + offsets[c]`` in 1/255.
        offsets: one ``(z, y, x)`` step in voxels per channel.

    Returns:
        uint8 (3, z, y, x), C-contiguous; ``[axis, p]`` links ``p`` and ``p - e_axis``. What links the first
        plane along an axis to nothing is not defined. 0 along z where no offset leaves its section.

    Raises:
        ShapeError: if there is not one channel per offset.
        DataError: if the affinities are not uint8.
    """
    if affinities.ndim != 4 or affinities.shape[0] != len(offsets):
        raise ShapeError(f"expected affinities (c, z, y, x) for {len(offsets)} offsets, got {affinities.shape}")
    if affinities.dtype != np.uint8:
        raise DataError(f"expected uint8 affinities (255: same neuron), got {affinities.dtype}")
    channels = nearest_channels(offsets)
    if channels == [0, 1, 2] and all(sum(offset) == -1 for offset in offsets[:3]):
        return np.ascontiguousarray(affinities[:3])
    links = np.zeros((3, *affinities.shape[1:]), np.uint8)
    _, z, y, x = affinities.shape
    for axis, channel in zip((0, 1, 2)[-len(channels) :], channels, strict=True):
        here, there = pair_slices((z, y, x), offsets[channel])
        target = there if sum(offsets[channel]) > 0 else here
        links[axis][target] = affinities[channel][here]
    return links


def nearest_channels(offsets: Offsets) -> list[int]:
    """Return the channels of the one-voxel steps along z, y and x; y and x where no offset leaves its section.

    Raises:
        ConfigError: if one of them is missing.
    """
    return [_channel(offsets, axis) for axis in range(3 - nearest_count(offsets), 3)]


def _channel(offsets: Offsets, axis: int) -> int:
    for channel, offset in enumerate(offsets):
        if [abs(o) for o in offset] == [int(axis == a) for a in range(3)]:
            return channel
    raise ConfigError(f"a one-voxel step along {'zyx'[axis]} is missing among the offsets {offsets}")
