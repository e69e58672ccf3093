"""Arrays of one volume: read beyond their ends, and labels with what is known of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdseg.errors import DataError, ShapeError
from kdseg.geometry import Roi
from kdseg.volumes.background import background_of
from kdseg.volumes.inputs import labels_at
from kdseg.volumes.volume import Volume, open_volume

OUTSIDE = 2**63 - 1
"""Id of the background where it is an object."""
IN_MEMORY = 2 * 1024**3
"""Bytes up to which an array is read once and kept."""


class Array:
    """An array of one volume, in memory where it is small, with reading beyond its ends."""

    def __init__(self, volume: Volume, signed: bool) -> None:
        """Open an array.

        Args:
            volume: where it lies.
            signed: store ids as int64 (labels) rather than as they are (raw).
        """
        self.roi = volume.roi
        self._volume = volume
        self._signed = signed
        self._kept: Tensor | None = None
        self._lead = () if volume.channels is None else (volume.channels,)
        if volume.roi.size * sum(self._lead or (1,)) * (8 if signed else volume.dtype.itemsize) <= IN_MEMORY:
            # not as an array: a tensor goes to the processes of a loader as memory that all of them share
            self._kept = torch.from_numpy(self._convert(volume.read(volume.roi)))

    def read(self, roi: Roi) -> NDArray[Any]:
        """Return the voxels of ``roi``, channels first if there are any; 0 beyond the array."""
        inside = roi.intersect(self.roi)
        out = np.zeros((*self._lead, *roi.shape), np.int64 if self._signed else self._volume.dtype)
        if inside.size:
            kept = self._kept
            values = self._convert(self._volume.read(inside)) if kept is None else kept.numpy()[(..., *inside.slices())]
            out[(..., *inside.slices(roi))] = values
        return out

    def _convert(self, values: NDArray[Any]) -> NDArray[Any]:
        if not self._signed:
            return values
        ids = values.astype(np.int64)
        if ids.size and ids.min() < 0:
            raise DataError("labels must lie between 0 and 2**63 - 1: renumber them when converting the volume")
        return ids


class Labels:
    """Ids of objects on the voxels of raw data, of which they may cover a part.

    Attributes:
        roi: the voxels of raw that have labels.
        background: meaning of label 0.
    """

    def __init__(self, name: str, address: str | Path, raw: Volume) -> None:
        """Open labels.

        Args:
            name: of the volume, for messages.
            address: of integers (z, y, x).
            raw: on the same grid of voxels.

        Raises:
            ShapeError: if the labels do not meet the raw data.
        """
        volume = open_volume(address)
        self.background = background_of(volume.attributes, address)
        self.array = Array(volume, signed=True)
        first = labels_at(name, volume, raw)
        self.roi = Roi(first, volume.shape).intersect(raw.roi)
        self._shift = (-first[0], -first[1], -first[2])
        if not self.roi.size:
            raise ShapeError(f"the labels of {name!r} at {first} do not meet its raw data {raw.roi}")

    def read(self, roi: Roi) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the ids of voxels of raw, int64 (z, y, x), and which of them are known, bool (z, y, x)."""
        place = roi.shift(self._shift)
        labels = self.array.read(place)
        if self.background == "unknown":
            return labels, labels > 0
        looked_at = np.zeros(roi.shape, bool)
        looked_at[place.intersect(self.array.roi).slices(place)] = True
        if self.background == "object":
            labels = np.where(looked_at & (labels == 0), OUTSIDE, labels)
        return labels, looked_at

    def ids(self, roi: Roi) -> NDArray[np.int64]:
        """Return the ids of voxels of raw, int64 (z, y, x); 0 where none is known."""
        return self.read(roi)[0]
