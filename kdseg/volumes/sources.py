"""Volumes in the formats that others write, opened by their addresses: one table of formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from kdseg.config.addresses import Location, above, is_precomputed, local, locate
from kdseg.config.data import SectionsOptions
from kdseg.errors import MissingError, ShapeError, UnreadableError
from kdseg.geometry import Roi, triple
from kdseg.results import remote
from kdseg.results.manifests import fingerprint, read, source_fingerprint
from kdseg.volumes import mrc
from kdseg.volumes.foreign import ChannelSource, ForeignArray, Readable, Source
from kdseg.volumes.hdf5 import open_dataset
from kdseg.volumes.images import open_images
from kdseg.volumes.metadata import Place
from kdseg.volumes.n5 import open_n5
from kdseg.volumes.n5_metadata import is_n5
from kdseg.volumes.npy import open_npy
from kdseg.volumes.precomputed import open_precomputed
from kdseg.volumes.section_files import JPEG, TIFF, kind_of, say_beside, section_files
from kdseg.volumes.tiff import open_stack
from kdseg.volumes.unread import refusal, unread
from kdseg.volumes.volume import open_volume
from kdseg.volumes.zipped import is_zipped

EXPECTED = (
    "path.zarr, path.zarr/group, path.zarr.zip, path.n5/dataset, path.h5:/dataset, path.npy, path.mrc, stack.tif, or a "
    "folder of TIFF, PNG or JPEG sections"
)
"""Addresses, for messages."""


class Format(NamedTuple):
    """A format that volumes are read from.

    Attributes:
        name: for messages.
        fits: whether a file or folder, which is there, is of this format.
        array: opens an array (z, y, x), or (c, z, y, x) if it is not to be single; None where there are no channels.
        source: opens a volume that is more than an array: of sections, or placed otherwise; None if it is none.
    """

    name: str
    fits: Callable[[Location], bool]
    array: Callable[[str, Location, bool], ForeignArray] | None = None
    source: Callable[[str, Location, SectionsOptions], Source] | None = None


def open_source(address: str, sections: SectionsOptions | None = None) -> Source:
    """Open a volume by its address.

    Args:
        address: ``path.zarr``, ``path.zarr/group`` or ``s3://bucket/path.zarr/group`` (OME-Zarr 0.4 to 0.6, plain zarr
            v2 or v3), ``path.zarr.zip``, ``path.n5/dataset``, ``path.h5:/dataset``, ``path.npy``, ``path.mrc``,
            ``stack.tif``, a folder of TIFF, PNG or JPEG sections, or a folder of Neuroglancer's precomputed format,
            ``folder`` for its first scale, ``folder:key`` for another; or the manifest of a volume that kdseg made,
            ``….json``.
        sections: order and gaps of sections; default: by number, without gaps.

    Raises:
        MissingError: if the file or the dataset in it is not there.
        UnreadableError: if it is there but damaged, or of no known format, or a bucket does not answer.
        ShapeError: if it is not (z, y, x), or empty.
        VoxelSizeError: if its voxel size is not three positive numbers.
    """
    address, form, location = _found(address)
    if form.source is not None:
        found = form.source(address, location, sections or SectionsOptions())
    else:
        array = _array(form, address, location, single=True)
        place = array.place
        found = Source(
            address, array, place.voxel_size, place.offset, array.unit, place.placed, unscaled=place.unscaled
        )
    _expect_voxels(address, found.data)
    return found


def open_channels(address: str) -> ChannelSource:
    """Open a volume (c, z, y, x) by its address, zarr, N5, HDF5 or `.npy`; see `open_source`.

    Raises:
        MissingError: if the file or the dataset in it is not there.
        UnreadableError: if it is there but damaged, or of no known format.
        ShapeError: if it is not (c, z, y, x), or empty.
        VoxelSizeError: if its voxel size is not three positive numbers.
    """
    address, form, location = _found(address)
    array = _array(form, address, location, single=False)
    if len(array.lengths) != 4 or 0 in array.lengths:
        raise ShapeError(f"{address} has the shape {array.lengths}, expected (c, z, y, x)")
    place = array.place
    offset = place.offset if place.placed else None
    return ChannelSource(
        address, array.lengths[0], array.shape, array.dtype, place.voxel_size, offset, array, place.unscaled
    )


def source_path(address: str) -> Path | str:
    """Return the file or folder that an address lies in, or its URL; a manifest is itself."""
    address = local(address)
    return remote.resolve(address) if _in_bucket(address) else locate(address).path


def source_member(address: str) -> str:
    """Return what an address names within its file: a dataset, a group, the scale of precomputed; else nothing."""
    address = local(address)
    return "" if _in_bucket(address) else locate(address).member.strip("/")


def source_state(address: str) -> str:
    """Return the fingerprint of what an address leads to, with files above it that say more of it.

    Raises:
        MissingError: if there is nothing.
        UnreadableError: if there is a pipe, a socket or a device, which a reader would wait for.
    """
    path = source_path(address)
    found = source_fingerprint(path)
    more = {str(k): source_fingerprint(one) for k, one in enumerate([] if isinstance(path, str) else above(path))}
    return fingerprint("source", {}, {"source": found, **more}) if more else found


def _found(address: str) -> tuple[str, Format, Location]:
    """Return an address as the readers take it, its format and its place.

    Raises:
        MissingError: if nothing is there.
        UnreadableError: if it is of no known format.
    """
    address = _made(local(address))
    if _in_bucket(address):
        return address, _ZARR, Location(Path(address), "", False)
    location = locate(address)
    path = location.path
    if not path.exists():
        raise MissingError(f"nothing at {path}; expected {EXPECTED}")
    if not path.is_dir() or location.hdf5:
        _expect_file(path)
    for form in FORMATS:
        if form.fits(location):
            return address, form, location
    if other := unread(path):
        raise refusal(path, other)
    raise UnreadableError(f"{path} is of no known format; expected {EXPECTED}")


def _array(form: Format, address: str, location: Location, *, single: bool) -> ForeignArray:
    if form.array is None:
        raise UnreadableError(f"{address} is {form.name}, of which no channels are read: convert it to zarr or .npy")
    return form.array(address, location, single)


def _expect_voxels(address: str, data: Readable) -> None:
    if 0 in data.shape:
        raise ShapeError(f"{address} is empty: its shape is {data.shape}")


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
        UnreadableError: if it is a URL of another format than zarr, or a file that is neither zarr nor link.
    """
    if remote.is_remote(address):
        path = Path(address)
        one_file = kind_of(path) or unread(path) or path.suffix.lower() in (".npy", *mrc.ENDINGS)
        whole = any(is_zipped(part) or part.suffix.lower() == ".n5" for part in (path, *path.parents))
        if one_file or whole or locate(address).hdf5:
            raise UnreadableError(
                f"{address}: only zarr is read from buckets and web servers; copy the file or folder here first"
            )
    return isinstance(remote.resolve(address), str)


def _expect_file(path: Path) -> None:
    """Refuse pipes, sockets and devices, which would be waited for."""
    if path.exists() and not path.is_file():
        raise UnreadableError(f"{path} is no file, but a folder, pipe, socket or device: give a file")


def _is_zarr(location: Location) -> bool:
    path = location.path
    metadata = [path / name for name in ("zarr.json", ".zarray", ".zgroup", ".zattrs")]
    for file in metadata:
        _expect_file(file)
    if path.is_file():
        return path.suffix == ".zarr"
    return any(part.endswith(".zarr") for part in path.parts) or any(file.exists() for file in metadata[:-1])


@dataclass(frozen=True)
class _ZarrArray(ForeignArray):
    address: str

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        single = len(self.lengths) == 3
        z, y, x = (range(n)[s] for n, s in zip(self.shape, key[-3:], strict=True))
        found = open_volume(self.address, single=single).read(
            Roi((z.start, y.start, x.start), (len(z), len(y), len(x)))
        )
        return found if single else found[key[0]]


def _open_zarr(address: str, _: Location, single: bool) -> ForeignArray:
    volume = open_volume(address, single=single)
    lengths = (*(() if volume.channels is None else (volume.channels,)), *volume.shape)
    place = Place(volume.voxel_size, volume.offset, volume.placed, volume.unscaled)
    return _ZarrArray(lengths, volume.dtype, place, volume.read_unit, address)


def _open_precomputed(address: str, location: Location, _: SectionsOptions) -> Source:
    volume = open_precomputed(location.path, location.member)
    return Source(
        address,
        volume,
        volume.voxel_size,
        volume.offset,
        volume.unit,
        volume.placed,
        corner=True,
        lossy=volume.lossy,
    )


def _open_sections(address: str, location: Location, options: SectionsOptions) -> Source:
    path = location.path
    kind, files = section_files(path) if path.is_dir() else (kind_of(path), None)
    if kind == TIFF:
        stack = open_stack(path, options, files)
        unit = (1, *stack.unit)
        return Source(address, stack, stack.voxel_size, None, triple(unit), placed=False, numbers=stack.numbers)
    if files is None:
        say_beside(path)
    images = open_images(str(kind), files or [path], options)
    unit = (1, *images.shape[1:])
    return Source(address, images, None, None, triple(unit), placed=False, numbers=images.numbers, lossy=kind == JPEG)


_ZARR = Format("zarr", _is_zarr, array=_open_zarr)
FORMATS = (
    Format("HDF5", lambda at: at.hdf5, array=lambda _, at, single: open_dataset(at.path, at.member, single=single)),
    Format("zipped zarr", lambda at: at.path.is_file() and is_zipped(at.path), array=_open_zarr),
    Format(
        ".npy",
        lambda at: at.path.is_file() and at.path.suffix.lower() == ".npy",
        array=lambda _, at, single: open_npy(at.path, single=single),
    ),
    Format(
        "MRC",
        lambda at: at.path.is_file() and at.path.suffix.lower() in mrc.ENDINGS,
        array=lambda _, at, single: mrc.open_mrc(at.path, single=single),
    ),
    Format("a file of sections", lambda at: at.path.is_file() and kind_of(at.path) is not None, source=_open_sections),
    _ZARR,
    Format("Neuroglancer's precomputed format", lambda at: is_precomputed(at.path), source=_open_precomputed),
    Format("N5", lambda at: is_n5(at.path), array=lambda _, at, single: open_n5(at.path, single=single)),
    Format("a folder of sections", lambda at: at.path.is_dir(), source=_open_sections),
)
"""All formats; the first one that fits counts."""
