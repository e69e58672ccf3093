"""Volumes of any format or stage as arrays that are read where they are indexed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdseg.config.data import SectionsOptions
from kdseg.errors import KdsegError, ShapeError
from kdseg.geometry import Roi, VoxelSize, triple
from kdseg.volumes.foreign import ChannelSource, Source
from kdseg.volumes.sources import open_channels, open_source

Index = int | slice | EllipsisType


@dataclass(frozen=True)
class Opened:
    """A volume on disk or in a bucket: indexing reads what is asked for, `numpy.asarray` all of it.

    Attributes:
        address: what it was opened from.
        shape: (z, y, x), or (c, z, y, x) of channels.
        dtype: of its voxels, in this machine's order of bytes.
        voxel_size: nm, (z, y, x); None if nobody says.
        offset: nm, (z, y, x), of the first voxel; None if nobody says.
    """

    address: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    voxel_size: VoxelSize | None
    offset: VoxelSize | None
    _data: Source | ChannelSource

    @property
    def ndim(self) -> int:
        """Number of axes, 3 or 4."""
        return len(self.shape)

    def __getitem__(self, key: Index | tuple[Index, ...]) -> NDArray[Any]:
        """Return voxels, read now: integers, slices and an ellipsis, as NumPy takes them.

        Raises:
            IndexError: if there are more indices than axes, or one is outside.
        """
        given = key if isinstance(key, tuple) else (key,)
        gaps = sum(one is Ellipsis for one in given)
        if gaps > 1 or len(given) - gaps > self.ndim:
            raise IndexError(f"{self.address} has {self.ndim} axes, got {key!r}")
        where = given.index(Ellipsis) if gaps else len(given)
        rest = (slice(None),) * (self.ndim - len(given) + gaps)
        # an axis of numbers takes no room, and knows NumPy's rules
        chosen = [
            _taken(range(n), one) for n, one in zip(self.shape, given[:where] + rest + given[where + 1 :], strict=True)
        ]
        shape = [len(places) for places, kept in chosen if kept]
        if not all(len(places) for places, _ in chosen):
            return np.empty(shape, self.dtype)
        low = [min(places) for places, _ in chosen]
        extent = [max(places) + 1 - first for (places, _), first in zip(chosen, low, strict=True)]
        found = self._data.read(Roi(triple(low[-3:]), triple(extent[-3:])))
        low[:-3] = [0] * (self.ndim - 3)  # channels are read whole
        within = [np.subtract(places, first) for (places, _), first in zip(chosen, low, strict=True)]
        picked: NDArray[Any] = found[np.ix_(*within)].reshape(shape)
        return picked.astype(self.dtype, copy=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return all voxels, read now."""
        if copy is False:
            raise ValueError(f"{self.address} is on disk: its voxels are always a copy")
        return self[...].astype(self.dtype if dtype is None else dtype, copy=False)


def _taken(axis: range, index: Index) -> tuple[range, bool]:
    """Return what an index takes of an axis, and whether the axis stays."""
    if isinstance(index, slice):
        return axis[index], True
    if isinstance(index, int | np.integer):
        place = axis[int(index)]
        return range(place, place + 1), False
    raise IndexError(f"expected an integer or a slice, got {index!r}")


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a type in this machine's order of bytes, which PyTorch takes no other than."""
    return dtype.newbyteorder("=")


def open_array(address: str | Path, sections: SectionsOptions | None = None) -> Opened:
    """Open a volume: of any address that a configuration takes, or by the manifest (`.json`) of a stage.

    Args:
        address: of it.
        sections: order and gaps of sections; default: by number, without gaps.

    Raises:
        MissingError: if it is not there.
        UnreadableError: if it is damaged, or of no known format.
        ShapeError: if it has neither three axes nor these and one of channels.
    """
    name = str(address)
    try:
        source = open_source(name, sections)
    except ShapeError as error:
        try:
            taught = open_channels(name)
        except KdsegError:
            raise error from None
        shape = (taught.channels, *taught.shape)
        return Opened(name, shape, _native(taught.dtype), taught.voxel_size, taught.offset, taught)
    place = source.offset if source.placed else None
    return Opened(name, source.roi.shape, _native(source.data.dtype), source.voxel_size, place, source)
