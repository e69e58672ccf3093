"""Volumes in the formats that others write.

Nothing is read before a region is asked for, and nothing stays open in between: a source can be pickled, and read in a
forked process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from kdseg.config.addresses import is_precomputed, local, locate
from kdseg.config.data import SectionsOptions
from kdseg.errors import MissingError, ShapeError, UnreadableError, VoxelSizeError
from kdseg.geometry import Roi, Slices, Triple, VoxelSize
from kdseg.results import remote
from kdseg.results.manifests import read
from kdseg.volumes.hdf5 import Hdf5Array, open_dataset
from kdseg.volumes.metadata import Place, Unscaled
from kdseg.volumes.precomputed import open_precomputed
from kdseg.volumes.tiff import SUFFIXES, open_stack
from kdseg.volumes.volume import open_volume


class _Readable(Protocol):
    @property
    def shape(self) -> Triple: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, key: Slices) -> NDArray[Any]: ...


@dataclass(frozen=True)
class Source:
    """A volume that can be read.

    Attributes:
        address: what it was opened from.
        data: (z, y, x), has a shape and a type and reads what it is asked for.
        voxel_size: nm, (z, y, x); None if the file does not say.
        offset: nm, (z, y, x), position of the first voxel; None if the format has no place for it (TIFF).
        unit: voxels, (z, y, x), of one chunk, strip or tile of the file.
        placed: whether the file says where it lies; if not, an ``offset`` of 0 is a guess.
        corner: whether ``offset`` is the first voxel's corner by the format; else take it for its centre, as OME-Zarr.
        numbers: of its sections, if names of files or metadata number them.
        unscaled: what the file says of size and place in units that are no lengths; see `sized`.
    """

    address: str
    data: _Readable
    voxel_size: VoxelSize | None
    offset: VoxelSize | None
    unit: Triple
    placed: bool = True
    corner: bool = False
    numbers: tuple[Fraction, ...] | None = None
    unscaled: Unscaled | None = None

    def __post_init__(self) -> None:
        """Refuse sizes and places that are none, of files and of users.

        Raises:
            VoxelSizeError: if a size is not positive, or a place not finite.
        """
        if self.voxel_size is not None and not all(0 < v < math.inf for v in self.voxel_size):
            raise VoxelSizeError(f"{self.address} has the voxel size {self.voxel_size} nm, expected positive numbers")
        if self.offset is not None and not all(math.isfinite(v) for v in self.offset):
            raise VoxelSizeError(f"{self.address} has the offset {self.offset} nm, expected finite numbers")

    @property
    def roi(self) -> Roi:
        """All voxels, counted from the first one."""
        z, y, x = self.data.shape
        return Roi((0, 0, 0), (z, y, x))

    def read(self, roi: Roi) -> NDArray[Any]:
        """Return the voxels of ``roi``, read now."""
        return np.asarray(self.data[roi.slices(self.roi)])


def open_source(address: str, sections: SectionsOptions | None = None) -> Source:
    """Open a volume by its address.

    Args:
        address: ``path.zarr``, ``path.zarr/group`` or ``s3://bucket/path.zarr/group`` (OME-Zarr 0.4 to 0.6, plain zarr
            v2 or v3), ``path.h5:/dataset``, ``stack.tif``, a
            folder of TIFF sections, or a folder of Neuroglancer's precomputed format, ``folder`` for its first scale,
            ``folder:key`` for another; or the manifest of a volume that kdseg made, ``….json``.
        sections: order and gaps of TIFF sections; default: by number, without gaps.

    Raises:
        MissingError: if the file or the dataset in it is not there.
        UnreadableError: if it is there but damaged, or of no known format, or a bucket does not answer.
        ShapeError: if it is not (z, y, x), or empty.
        VoxelSizeError: if its voxel size is not three positive numbers.
    """
    address = _made(local(address))
    if _in_bucket(address):
        return _open_zarr(address)
    path, member, hdf5 = locate(address)
    if not hdf5 and is_precomputed(path) and not _is_zarr(path):
        volume = open_precomputed(path, member)
        opened = _source(address, volume, volume.voxel_size, volume.offset, volume.unit)
        return replace(opened, placed=volume.placed, corner=True)
    if not path.exists():
        raise MissingError(
            f"nothing at {path}; expected path.zarr, path.zarr/group, path.h5:/dataset, stack.tif or a folder of TIFFs"
        )
    if hdf5:
        return _open_hdf5(address, path, member)
    if path.suffix.lower() in SUFFIXES or (path.is_dir() and not _is_zarr(path)):
        stack = open_stack(path, sections or SectionsOptions())
        opened = _source(address, stack, stack.voxel_size, None, (1, *stack.unit))
        return replace(opened, placed=False, numbers=stack.numbers)
    if path.is_dir() or path.suffix == ".zarr":
        return _open_zarr(address)
    raise UnreadableError(f"{path} is of no known format; expected .zarr, .h5:/dataset, .tif or a folder of TIFFs")


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
        unscaled: what the file says of size and place in units that are no lengths; see `sized`.
        data: dataset (c, z, y, x) of HDF5; None if it is a zarr.
    """

    address: str
    channels: int
    shape: Triple
    dtype: np.dtype[Any]
    voxel_size: VoxelSize | None
    offset: VoxelSize | None
    unscaled: Unscaled | None = None
    data: Hdf5Array | None = None

    def read(self, roi: Roi) -> NDArray[Any]:
        """Return the values of ``roi``, (c, z, y, x).

        Raises:
            UnreadableError: if the file is damaged there.
        """
        if self.data is None:
            return open_volume(self.address).read(roi)
        return self.data[(slice(0, self.channels), *roi.slices())]


def open_channels(address: str) -> ChannelSource:
    """Open a volume (c, z, y, x) by its address, zarr or HDF5; see `open_source`.

    Raises:
        MissingError: if the file or the dataset in it is not there.
        UnreadableError: if it is there but damaged, or of no known format.
        ShapeError: if it is not (c, z, y, x), or empty.
        VoxelSizeError: if its voxel size is not three positive numbers.
    """
    address = _made(local(address))
    in_bucket, array = _in_bucket(address), None
    path, member, hdf5 = (Path(address), "", False) if in_bucket else locate(address)
    if not in_bucket and not path.exists():
        raise MissingError(f"nothing at {path}; expected path.zarr, path.zarr/group or path.h5:/dataset")
    if hdf5:
        _expect_file(path)
        array = open_dataset(path, member, single=False)
        lengths, dtype, place = array.lengths, array.dtype, array.place
    else:
        volume = open_volume(address)
        lengths, dtype = (*(() if volume.channels is None else (volume.channels,)), *volume.shape), volume.dtype
        place = Place(volume.voxel_size, volume.offset, volume.placed, volume.unscaled)
    if len(lengths) != 4 or 0 in lengths:
        raise ShapeError(f"{address} has the shape {lengths}, expected (c, z, y, x)")
    c, z, y, x = lengths
    offset = place.offset if place.placed else None
    return ChannelSource(address, c, (z, y, x), dtype, place.voxel_size, offset, place.unscaled, array)


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


def source_path(address: str) -> Path | str:
    """Return the file or folder that an address lies in, or its URL; a manifest is itself."""
    address = local(address)
    return remote.resolve(address) if _in_bucket(address) else locate(address).path


def source_member(address: str) -> str:
    """Return what an address names within its file: the dataset of HDF5, the scale of precomputed; else nothing."""
    address = local(address)
    return "" if _in_bucket(address) else locate(address).member.strip("/")


def _made(address: str) -> str:
    """Return the address of the volume that a manifest stands for; any other address as it is.

    Raises:
        UnreadableError: if its result is no volume.
    """
    if not address.endswith(".json") or remote.is_remote(address) or not Path(address).is_file():
        return address
    manifest = read(Path(address))
    if manifest.store is None or manifest.store.suffix != ".zarr":
        raise UnreadableError(f"{address} is a result of `kdseg {manifest.stage}`, which is no volume: name one")
    return str(manifest.result)


def _in_bucket(address: str) -> bool:
    """Return whether an address is a URL, or a path to or below a link to one.

    Raises:
        UnreadableError: if it is a URL of HDF5 or TIFF, or a file that is neither zarr nor link.
    """
    if remote.is_remote(address) and (locate(address).hdf5 or Path(address).suffix.lower() in SUFFIXES):
        raise UnreadableError(f"{address}: only zarr is read from buckets and web servers; copy the file here first")
    return isinstance(remote.resolve(address), str)


@dataclass(frozen=True)
class _ZarrArray:
    address: str
    shape: Triple
    dtype: np.dtype[Any]

    def __getitem__(self, key: Slices) -> NDArray[Any]:
        z, y, x = (range(n)[s] for n, s in zip(self.shape, key, strict=True))
        return open_volume(self.address, single=True).read(Roi((z.start, y.start, x.start), (len(z), len(y), len(x))))


def _expect_file(path: Path) -> None:
    """Refuse pipes, sockets and devices, which would be waited for."""
    if path.exists() and not path.is_file():
        raise UnreadableError(f"{path} is no file, but a folder, pipe, socket or device: give a file")


def _is_zarr(path: Path) -> bool:
    named = any(part.endswith(".zarr") for part in path.parts)
    metadata = [path / name for name in ("zarr.json", ".zarray", ".zgroup", ".zattrs")]
    for file in metadata:
        _expect_file(file)
    return named or any(file.exists() for file in metadata[:-1])


def _open_zarr(address: str) -> Source:
    volume = open_volume(address, single=True)
    array = _ZarrArray(address, volume.shape, volume.dtype)
    source = _source(address, array, volume.voxel_size, volume.offset, volume.read_unit)
    return replace(source, placed=volume.placed, unscaled=volume.unscaled)


def _open_hdf5(address: str, path: Path, dataset: str) -> Source:
    _expect_file(path)
    array = open_dataset(path, dataset, single=True)
    source = _source(address, array, array.place.voxel_size, array.place.offset, array.unit)
    return replace(source, placed=array.place.placed, unscaled=array.place.unscaled)


def _source(
    address: str, array: _Readable, voxel_size: VoxelSize | None, offset: VoxelSize | None, unit: Triple
) -> Source:
    if 0 in array.shape:
        raise ShapeError(f"{address} is empty: its shape is {array.shape}")
    return Source(address, array, voxel_size, offset, unit)
