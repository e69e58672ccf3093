"""Volumes in the formats that others write.

Nothing is read before a region is asked for, and nothing stays open in between: a source can be pickled, and read in a
forked process.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from kdseg.config.addresses import Location, is_precomputed, local, locate
from kdseg.errors import KdsegError, MissingError, ShapeError, UnreadableError, VoxelSizeError
from kdseg.geometry import Roi, Slices, Triple, VoxelSize, triple
from kdseg.results import remote
from kdseg.results.manifests import read
from kdseg.volumes.hdf5 import Hdf5Array, datasets, expect_small_chunks_in, expect_within
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
    """

    address: str
    data: _Readable
    voxel_size: VoxelSize | None
    offset: VoxelSize | None
    unit: Triple
    placed: bool = True
    corner: bool = False

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


def open_source(address: str) -> Source:
    """Open a volume by its address.

    Args:
        address: ``path.zarr``, ``path.zarr/group`` or ``s3://bucket/path.zarr/group`` (OME-Zarr 0.4 or 0.5, plain zarr
            v2 or v3), ``path.h5:/dataset`` (attributes ``resolution`` and ``offset`` in nm, zyx), ``stack.tif``, a
            folder of TIFF sections, or a folder of Neuroglancer's precomputed format, ``folder`` for its first scale,
            ``folder:key`` for another; or the manifest of a volume that kdseg made, ``….json``.

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
        stack = open_stack(path)
        return replace(_source(address, stack, stack.voxel_size, None, (1, *stack.unit)), placed=False)
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
    """

    address: str
    channels: int
    shape: Triple
    dtype: np.dtype[Any]
    voxel_size: VoxelSize | None
    offset: VoxelSize | None

    def read(self, roi: Roi) -> NDArray[Any]:
        """Return the values of ``roi``, (c, z, y, x).

        Raises:
            UnreadableError: if the file is damaged there.
        """
        hdf5 = _hdf5(self.address)
        if hdf5 is None:
            return open_volume(self.address).read(roi)
        try:
            with h5py.File(hdf5.path, "r") as file:
                key = (slice(0, self.channels), *roi.slices())
                expect_small_chunks_in(file[hdf5.member], key)
                return np.asarray(file[hdf5.member][key])
        except KdsegError:
            raise
        except (OSError, KeyError, RuntimeError, zlib.error) as error:
            raise UnreadableError(f"cannot read {self.address}: {error}; the file is damaged") from error


def open_channels(address: str) -> ChannelSource:
    """Open a volume (c, z, y, x) by its address, zarr or HDF5; see `open_source`.

    Raises:
        MissingError: if the file or the dataset in it is not there.
        UnreadableError: if it is there but damaged, or of no known format.
        ShapeError: if it is not (c, z, y, x), or empty.
        VoxelSizeError: if its voxel size is not three positive numbers.
    """
    address = _made(local(address))
    hdf5 = _hdf5(address)
    if hdf5 is None:
        if not _in_bucket(address) and not Path(address).exists():
            raise MissingError(f"nothing at {address}; expected path.zarr, path.zarr/group or path.h5:/dataset")
        volume = open_volume(address)
        if volume.channels is None:
            raise ShapeError(f"{address} has the shape {volume.array.shape}, expected (c, z, y, x)")
        offset = volume.offset if volume.placed else None
        return ChannelSource(address, volume.channels, volume.shape, volume.dtype, volume.voxel_size, offset)
    try:
        _expect_file(hdf5.path)
        expect_within(hdf5.path, hdf5.member)
        with h5py.File(hdf5.path, "r") as file:
            node = file.get(hdf5.member or "/")
            if not isinstance(node, h5py.Dataset):
                raise MissingError(f"{address} is not a dataset: expected {hdf5.path}: and one of {datasets(file)}")
            if node.ndim != 4 or 0 in node.shape:
                raise ShapeError(f"{address} has the shape {node.shape}, expected (c, z, y, x)")
            c, z, y, x = node.shape
            found = (_attribute(address, node, name) for name in ("resolution", "offset"))
            return ChannelSource(address, c, (z, y, x), node.dtype, *found)
    except KdsegError:
        raise
    except FileNotFoundError:
        raise MissingError(f"nothing at {hdf5.path}") from None
    except (OSError, RuntimeError, KeyError) as error:
        raise UnreadableError(f"cannot open {address} as HDF5: {error}; the file is damaged or no HDF5") from error


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


def _hdf5(address: str) -> Location | None:
    """Return where a dataset of HDF5 is; None for addresses of other formats."""
    found = None if _in_bucket(address) else locate(address)
    return found if found is not None and found.hdf5 else None


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
    ndim: int = 3

    def __getitem__(self, key: Slices) -> NDArray[Any]:
        z, y, x = (range(n)[s] for n, s in zip(self.shape, key, strict=True))
        return open_volume(self.address).read(Roi((z.start, y.start, x.start), (len(z), len(y), len(x))))


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
    volume = open_volume(address)
    if volume.channels is not None:
        raise ShapeError(f"{address} has the shape {volume.array.shape}, expected (z, y, x) of one channel: extract it")
    array = _ZarrArray(address, volume.shape, volume.dtype)
    z, y, x = volume.array.chunks
    return replace(_source(address, array, volume.voxel_size, volume.offset, (z, y, x)), placed=volume.placed)


def _open_hdf5(address: str, path: Path, dataset: str) -> Source:
    try:
        _expect_file(path)
        expect_within(path, dataset)
        with h5py.File(path, "r") as file:
            node = file.get(dataset) if dataset.strip("/") else None
            if not isinstance(node, h5py.Dataset):
                raise MissingError(f"{path} has no dataset {dataset!r}, expected {path}: and one of {datasets(file)}")
            if node.ndim != 3:
                raise ShapeError(f"{address} has the shape {node.shape}, expected (z, y, x)")
            array = Hdf5Array(path, dataset, node.shape, node.dtype)
            voxel_size = _attribute(address, node, "resolution")
            offset = _attribute(address, node, "offset")
            source = _source(address, array, voxel_size, offset or (0.0, 0.0, 0.0), node.chunks or (1, *node.shape[1:]))
            return replace(source, placed=offset is not None)
    except KdsegError:
        raise
    except (OSError, RuntimeError, KeyError) as error:
        raise UnreadableError(f"cannot open {path} as HDF5: {error}; the file is damaged or no HDF5") from error


def _attribute(address: str, node: h5py.Dataset, name: str) -> VoxelSize | None:
    if name not in node.attrs:
        return None
    value = node.attrs[name]
    try:
        return triple(float(v) for v in value)
    except (TypeError, ValueError) as error:
        raise VoxelSizeError(f"the attribute {name} of {address} is {value!r}, expected (z, y, x) in nm") from error


def _source(
    address: str, array: _Readable, voxel_size: VoxelSize | None, offset: VoxelSize | None, unit: Triple
) -> Source:
    if 0 in array.shape:
        raise ShapeError(f"{address} is empty: its shape is {array.shape}")
    return Source(address, array, voxel_size, offset, unit)
