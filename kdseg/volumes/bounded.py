"""Looks at few voxels of volumes of any size: no more is decoded than a bound, whatever chunks there are."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdseg.geometry import Roi, triple
from kdseg.volumes.foreign import Source
from kdseg.volumes.values import RESERVED

_PLANE = 128
"""Voxels along y and x of one part of a sample."""
_PLACES = (0.5, 0.1, 0.9, 0.3, 0.7)
"""Places of these parts along z, as shares of it; those along y and x are others, so that they lie all over."""
MOST_BYTES = 2**27
"""Of chunks that are decoded for a sample, about."""


def decoded_bytes(source: Source, roi: Roi) -> int:
    """Return the bytes of the chunks or strips that a region may meet, i.e. that are decoded when it is read."""
    units = prod(-(-n // unit) + 1 for n, unit in zip(roi.shape, source.unit, strict=True))
    return units * prod(source.unit) * source.data.dtype.itemsize


def sampled(source: Source, roi: Roi) -> Iterator[NDArray[Any]]:
    """Yield parts of single sections, (1, y, x), from all over a region, as far as their chunks are not too large.

    Args:
        source: to read.
        roi: region of it, in voxels from its first one.
    """
    left = MOST_BYTES
    for number, share in enumerate(_PLACES):
        extent = triple(min(n, wanted) for n, wanted in zip(roi.shape, (1, _PLANE, _PLANE), strict=True))
        shares = (share, _PLACES[(number + 2) % len(_PLACES)], _PLACES[number - 1])
        steps = (int(part * (n - m)) for part, n, m in zip(shares, roi.shape, extent, strict=True))
        plane = Roi(triple(o + step for o, step in zip(roi.offset, steps, strict=True)), extent)
        left -= decoded_bytes(source, plane)
        if left < 0:
            return
        yield source.read(plane)


def box_of_labels(source: Source, roi: Roi) -> Roi | None:
    """Return the smallest box that holds all labels other than 0 of a region; the region itself if it is large.

    Args:
        source: integers, or floats that are whole numbers.
        roi: region of it.

    Returns:
        In voxels from the first one of the source; None if there is no label.
    """
    if roi.size * source.data.dtype.itemsize > MOST_BYTES or decoded_bytes(source, roi) > 8 * MOST_BYTES:
        return roi
    values = source.read(roi)
    there = values != 0
    if values.dtype == np.uint64:
        there &= values < RESERVED
    ranges = [np.flatnonzero(there.any(axis)) for axis in ((1, 2), (0, 2), (0, 1))]
    if not len(ranges[0]):
        return None
    first = triple(int(found[0]) for found in ranges)
    return Roi(first, triple(int(found[-1]) + 1 - n for found, n in zip(ranges, first, strict=True))).shift(roi.offset)
