"""Volumes that other programs wrote: what is known of one, whatever its format, and of two beside each other.

Nothing is read before a region is asked for, and nothing stays open in between: a source can be pickled, and read in a
forked process.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Protocol, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import DataError, ShapeError, VoxelSizeError
from kdseg.geometry import Roi, Slices, Triple, VoxelSize, triple
from kdseg.volumes.metadata import Place, Unscaled


class Readable(Protocol):
    """An array (z, y, x) that reads what it is asked for."""

    @property
    def shape(self) -> Triple: ...  # noqa: D102

    @property
    def dtype(self) -> np.dtype[Any]: ...  # noqa: D102

    def __getitem__(self, key: Slices) -> NDArray[Any]: ...


@dataclass(frozen=True)
class ForeignArray(ABC):
    """An array in a file, which is opened whenever it is read.

    Attributes:
        lengths: of its axes, (c,) z, y, x.
        dtype: of the values, in the byte order of the file.
        place: what the file says of voxel size and position.
        unit: voxels, (z, y, x), of one chunk.
    """

    lengths: tuple[int, ...]
    dtype: np.dtype[Any]
    place: Place
    unit: Triple

    @property
    def shape(self) -> Triple:
        """Extent in voxels, (z, y, x)."""
        return triple(self.lengths[-3:])

    @abstractmethod
    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return the values of a box, one slice for each axis.

        Raises:
            UnreadableError: if the file is damaged there.
        """


@final
@dataclass(frozen=True)
class Source:
    """A volume that can be read.

    Attributes:
        address: what it was opened from.
        data: (z, y, x), has a shape and a type and reads what it is asked for.
        voxel_size: nm, (z, y, x); None if the file does not say.
        offset: nm, (z, y, x), position of the first voxel; None if the format has no place for it (TIFF, PNG).
        unit: voxels, (z, y, x), of one chunk, strip or tile of the file.
        placed: whether the file says where it lies; if not, an ``offset`` of 0 is a guess.
        corner: whether ``offset`` is the first voxel's corner by the format; else take it for its centre, as OME-Zarr.
        numbers: of its sections, if names of files or metadata number them.
        unscaled: what the file says of size and place in units that are no lengths; see `sized`.
        lossy: whether values near the true ones were stored, as of JPEG: they are no ids.
    """

    address: str
    data: Readable
    voxel_size: VoxelSize | None
    offset: VoxelSize | None
    unit: Triple
    placed: bool = True
    corner: bool = False
    numbers: tuple[Fraction, ...] | None = None
    unscaled: Unscaled | None = None
    lossy: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes and places that are none, of files and of users.

        Raises:
            VoxelSizeError: if a size is not positive, or a place not finite.
        """
        _expect_finite(self)

    @property
    def roi(self) -> Roi:
        """All voxels, counted from the first one."""
        z, y, x = self.data.shape
        return Roi((0, 0, 0), (z, y, x))

    def read(self, roi: Roi) -> NDArray[Any]:
        """Return the voxels of ``roi``, read now."""
        return np.asarray(self.data[roi.slices(self.roi)])


@final
@dataclass(frozen=True)
class ChannelSource:
    """A volume of channels that can be read.

    Attributes:
        address: what it was opened from.
        channels: how many.
        shape: (z, y, x).
        dtype: of the values.
        voxel_size: nm, (z, y, x); None if the file does not say.
        offset: nm, (z, y, x); None if the file does not say.
        data: (c, z, y, x).
        unscaled: what the file says of size and place in units that are no lengths; see `sized`.
    """

    address: str
    channels: int
    shape: Triple
    dtype: np.dtype[Any]
    voxel_size: VoxelSize | None
    offset: VoxelSize | None
    data: ForeignArray
    unscaled: Unscaled | None = None

    def __post_init__(self) -> None:
        """Refuse sizes and places that are none, as `Source` does.

        Raises:
            VoxelSizeError: if a size is not positive, or a place not finite.
        """
        _expect_finite(self)

    def read(self, roi: Roi) -> NDArray[Any]:
        """Return the values of ``roi``, (c, z, y, x).

        Raises:
            UnreadableError: if the file is damaged there.
        """
        return self.data[(slice(0, self.channels), *roi.slices())]


def _expect_finite(source: Source | ChannelSource) -> None:
    if source.voxel_size is not None and not all(0 < v < math.inf for v in source.voxel_size):
        raise VoxelSizeError(f"{source.address} has the voxel size {source.voxel_size} nm, expected positive numbers")
    if source.offset is not None and not all(math.isfinite(v) for v in source.offset):
        raise VoxelSizeError(f"{source.address} has the offset {source.offset} nm, expected finite numbers")


Opened = TypeVar("Opened", Source, ChannelSource)


def sized(source: Opened, voxel_size: VoxelSize | None) -> Opened:
    """Return a source with a voxel size in nm that somebody gives, where its file does not say one.

    A place in units that are no lengths is then one in voxels.
    """
    if source.voxel_size is not None or voxel_size is None:
        return source
    place = Place(unscaled=source.unscaled).sized(voxel_size)
    found = replace(source, voxel_size=voxel_size, unscaled=None)
    if not place.placed:
        return found
    if isinstance(found, Source):
        return replace(found, offset=place.offset, placed=True)
    return replace(found, offset=place.offset)


def lacks_size(source: Source | ChannelSource) -> str:
    """Return why the voxel size of a source is not known, for messages that begin with its address."""
    if source.unscaled is None:
        return "does not say how large its voxels are"
    return f"has axes in {list(source.unscaled.units)}, which are no units of length"


def expect_exact(source: Source, what: str) -> None:
    """Refuse ids or masks of a format that keeps values nearly.

    Args:
        source: not read.
        what: it is to be, for the message.

    Raises:
        DataError: if it is of one.
    """
    if source.lossy:
        raise DataError(
            f"{what} {source.address} are stored as JPEG or the like, which changes values: save them anew from where "
            "they are exact, e.g. as PNG"
        )


def expect_sections_in_step(one: Source, other: Source, shift: int) -> None:
    """Refuse volumes that say where they lie, but whose sections run apart: one of them lacks some.

    Args:
        one: numbered or not.
        other: likewise, with sections of the same thickness.
        shift: first section of ``one``, counted from that of ``other``.

    Raises:
        ShapeError: if the numbers of the sections that lie on each other do not differ by the same throughout.
    """
    a, b = one.numbers, other.numbers
    if a is None or b is None:
        return
    pairs = [(number, b[k + shift]) for k, number in enumerate(a) if 0 <= k + shift < len(b)]
    if apart := [(p, q) for p, q in pairs if p - q != pairs[0][0] - pairs[0][1]]:
        (p, q), (first, its) = apart[0], pairs[0]
        raise ShapeError(
            f"section {float(first):g} of {one.address} lies on {float(its):g} of {other.address}, but {float(p):g} on "
            f"{float(q):g}: one of them lacks sections. Set `sections.missing: fill`"
        )


def expect_same_sections(one: Source, other: Source) -> None:
    """Refuse volumes of one place whose sections have other numbers.

    Raises:
        ShapeError: if some have, as far as both are numbered.
    """
    a, b = one.numbers, other.numbers
    if a is None or b is None or a == b:
        return
    alone = min(set(a) ^ set(b))
    where, lacks = (one, other) if alone in a else (other, one)
    raise ShapeError(
        f"{where.address} has a section {float(alone):g}, which {lacks.address} lacks: expected the same sections in "
        "both. Number them alike, or set `sections.missing: fill`, or `sections.order: name` if they agree anyway"
    )
