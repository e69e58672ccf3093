"""Volumes on disk or in a bucket: a zarr array with a voxel size and a position.

With `stores` and `decoding`, all that knows zarr.

kdseg writes OME-Zarr 0.5 (zarr v3, sharded): a group whose array ``0`` is the full resolution and whose
arrays ``1, 2, …`` are halved for viewers. It reads those, OME-Zarr 0.4 (zarr v2) and plain arrays.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.errors import BaseZarrError
from zarr.storage import LocalStore

from kdseg.errors import KdsegError, MissingError, ShapeError, UnreadableError
from kdseg.geometry import Roi, Triple, VoxelSize, grid_shape, triple
from kdseg.results import remote
from kdseg.volumes.axes import SPACE, Layout, layout
from kdseg.volumes.decoding import expect_small_chunks
from kdseg.volumes.metadata import Level, Place, Unscaled, axis_names, image_attributes, level_of, placed, plain
from kdseg.volumes.phantom.unstored import Computed, open_computed
from kdseg.volumes.shards import OBJECT, SHARD, UNWRITTEN, checksums, expect_sound
from kdseg.volumes.stores import Bucket, Compared, Folder, Unread, reaching, store_at, through
from kdseg.volumes.zipped import top, zipped

_OME = "OME metadata"


@dataclass(frozen=True)
class Volume:
    """An open array with its place in the world.

    Attributes:
        array: zarr array, its axes as in ``layout``; or a phantom that is computed when it is read.
        voxel_size: nm, (z, y, x); None if the store does not say.
        offset: nm, (z, y, x), position of the first voxel.
        attributes: what kdseg notes beside the OME metadata, e.g. the offsets of affinities.
        placed: whether the store says where it lies; if not, ``offset`` is 0.
        unscaled: what the store says of size and place in units that are no lengths.
        layout: which axes of the array are (c,) z, y, x.
    """

    array: zarr.Array[Any] | Computed
    voxel_size: VoxelSize | None
    offset: VoxelSize
    attributes: Mapping[str, Any] = field(default_factory=dict)
    placed: bool = True
    unscaled: Unscaled | None = None
    layout: Layout = field(default_factory=Layout)

    @property
    def where(self) -> str:
        """Path or URL of the array, for messages."""
        if isinstance(self.array, Computed):
            return str(self.array.path)
        if not isinstance(self.array.store, Bucket):
            return str(self.array.store_path)
        return "/".join(part for part in (self.array.store.url, self.array.path) if part)

    @property
    def shape(self) -> Triple:
        """Extent in voxels, without channels."""
        return triple(self.layout.of(self.array.shape, 1)[-3:])

    @property
    def channels(self) -> int | None:
        """Length of the channel axis, None without one."""
        lengths = self.layout.of(self.array.shape, 1)
        return lengths[0] if len(lengths) == 4 else None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the voxels."""
        return np.dtype(self.array.dtype)

    @property
    def roi(self) -> Roi:
        """All voxels, counted from this array's first one."""
        return Roi((0, 0, 0), self.shape)

    @property
    def read_unit(self) -> Triple:
        """Extent in voxels of one chunk."""
        return triple(self.layout.of(self.array.chunks, 1)[-3:])

    @property
    def write_unit(self) -> Triple:
        """Extent in voxels of one file: two writers must never meet in one (zarr 3 loses data silently)."""
        return triple(self.layout.of(self.array.shards or self.array.chunks, 1)[-3:])

    def read(self, roi: Roi, channels: Sequence[int] | None = None) -> NDArray[Any]:
        """Return the voxels of ``roi``, channels first if there are any.

        Args:
            roi: inside of the volume.
            channels: which ones, in this order; default: all.

        Raises:
            ShapeError: if ``roi`` is not inside of the volume, or a channel is not there.
            UnreadableError: if a chunk is damaged, or its bucket does not answer.
        """
        if channels is not None and not all(0 <= c < (self.channels or 0) for c in channels):
            raise ShapeError(f"{self.where} has {self.channels} channels, {list(channels)} were asked for")
        selection = roi.slices(self.roi)
        if isinstance(self.array, Computed):
            return self.array.read(roi)
        array = self._compared(self.array, roi)
        try:
            with self._reaching():
                if channels is None:
                    every = () if self.channels is None else (slice(None),)
                    return self.layout.read(array, (*every, *selection))
                # not by zarr's `oindex`, which picks voxels one by one: 10 times the time of a slice
                low, high = min(channels, default=0), max(channels, default=-1) + 1
                picked = self.layout.read(array, (slice(low, high), *selection))
            in_order = list(channels) == list(range(low, high))
            return picked if in_order else picked[np.array(channels, np.int64) - low]
        except KdsegError:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            raise UnreadableError(f"cannot read {roi} of {self.where}: {error}; the chunk is damaged") from error

    def working_bytes(self, roi: Roi) -> int:
        """Return the memory in bytes that reading ``roi`` takes beside its voxels; 0 where that is next to nothing."""
        return self.array.working_bytes(roi) if isinstance(self.array, Computed) else 0

    def _reaching(self) -> AbstractContextManager[None]:
        return remote.reaching(self.where) if self._in_bucket else nullcontext()

    @property
    def _in_bucket(self) -> bool:
        return isinstance(self.array, zarr.Array) and isinstance(self.array.store, Bucket)

    def _compared(self, array: zarr.Array[Any], roi: Roi) -> zarr.Array[Any]:
        """Return the array, no file of which in ``roi`` is read that is not the one that was written.

        Where that is not known, files of no bytes are refused, as a crash of the machine leaves them: zarr reads them
        as zeros.
        """
        known, store = self._known(), array.store
        if isinstance(store, Bucket):
            said = {} if known is None else {key: known[index] for index, key in self._keys(roi)}
            return through(Compared(store, said), array)
        if known is not None:
            for index, key in self._keys(roi):
                expect_sound(cast("LocalStore", store).root / key, known[index])
        elif isinstance(store, LocalStore):
            for channel in range(self._channel_files):
                for _, key in self._keys(roi, channel):
                    file = store.root / key
                    if file.is_file() and not file.stat().st_size:
                        raise UnreadableError(f"{file} is empty, so {roi} cannot be read: copy or compute it again")
        return array

    def _known(self) -> NDArray[np.void] | None:
        """Return what is known of the files, (z, y, x) of ``record``; None if nothing is."""
        store = None if isinstance(self.array, Computed) else self.array.store
        root = store.root if isinstance(store, LocalStore) else store.link if isinstance(store, Bucket) else None
        folder = None if root is None else root / self.array.path
        if folder is None or not folder.name.isdecimal():
            return None
        return checksums(folder.parent, int(folder.name), grid_shape(self.shape, self.write_unit))

    def sync(self, roi: Roi) -> None:
        """Fsync the files of ``roi``, so that a crash of the machine cannot lose them.

        Raises:
            UnreadableError: if the disk does not take it.
        """
        files = [file for _, file in self.files(roi) if isinstance(file, Path) and file.is_file()]
        try:
            for path in [*files, *dict.fromkeys(file.parent for file in files)]:
                handle = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
        except OSError as error:
            raise UnreadableError(f"cannot write {roi} to {self.where}: {error}") from error

    def files(self, roi: Roi) -> Iterator[tuple[Triple, Path | str]]:
        """Yield paths or URLs of the files of ``roi`` by their places in the grid of shards, there or not."""
        if isinstance(self.array, Computed):
            return
        store = self.array.store
        for index, key in self._keys(roi):
            if isinstance(store, LocalStore):
                yield index, store.root / key
            elif isinstance(store, Bucket):
                yield index, f"{store.url}/{key}"

    def sizes(self) -> Iterator[tuple[Triple, Path | str, int]]:
        """Yield all files by their places in the grid of shards, with sizes in bytes; `UNWRITTEN` if not there."""
        listed, found = "", dict[str, int]()
        for index, file in self.files(self.roi):
            if isinstance(file, Path):
                yield index, file, file.stat().st_size if file.exists() else UNWRITTEN
                continue
            plane = file.rsplit("/", 2)[0]
            if plane != listed:
                listed, found = plane, remote.sizes(plane)
            yield index, file, found.get(file, UNWRITTEN)

    def _keys(self, roi: Roi, channel: int = 0) -> Iterator[tuple[Triple, str]]:
        """Yield the keys of the files of ``roi`` in the store, by their places in the grid of shards.

        Args:
            roi: voxels.
            channel: place of the file along the channels, of which volumes of others have several.
        """
        if isinstance(self.array, Computed):
            return
        prefix = f"{self.array.path}/" if self.array.path else ""
        for index in product(*self.shards(roi)):
            lead = () if self.channels is None else (channel,)
            place = self.layout.back((*lead, *index), self.array.ndim, 0)
            yield triple(index), prefix + self.array.metadata.encode_chunk_key(place)

    @property
    def record(self) -> np.dtype[np.void]:
        """Type of what is known of a file: `kdseg.volumes.shards.SHARD`, or `OBJECT` in a bucket."""
        return OBJECT if self._in_bucket else SHARD

    def shards(self, roi: Roi) -> list[range]:
        """Return which shards hold voxels of ``roi``, along each axis."""
        return [range(o // u, -(-e // u)) for o, e, u in zip(roi.offset, roi.end, self.write_unit, strict=True)]

    @property
    def _channel_files(self) -> int:
        """Number of files along the channels; 1 without channels."""
        if self.channels is None or isinstance(self.array, Computed):
            return 1
        per_file: int = self.layout.of(self.array.shards or self.array.chunks, 1)[0]
        return -(-self.channels // per_file)

    def write(self, roi: Roi, data: NDArray[Any]) -> bytes:
        """Write the voxels of ``roi``.

        Args:
            roi: must start and end on the borders of ``write_unit`` or of the volume.
            data: array of the region's shape, channels first if the volume has any.

        Returns:
            What is known of the files of ``roi``, values of ``record`` in C order.

        Raises:
            ShapeError: if the region does not lie on those borders, or the data do not fit it, or the axes of the array
                are not in order.
            UnreadableError: if the disk or the bucket does not take them, or the volume is computed when it is read.
        """
        if isinstance(self.array, Computed):
            raise _read_only(self.array.path)
        if self.layout != Layout():
            raise ShapeError(f"cannot write to {self.where}: its axes are not (c,) z, y, x; copy it to another volume")
        expected = (*(() if self.channels is None else (self.channels,)), *roi.shape)
        if data.shape != expected:
            raise ShapeError(f"cannot write data of shape {data.shape} to {roi}: expected {expected}")
        for o, e, n, unit in zip(roi.offset, roi.end, self.shape, self.write_unit, strict=True):
            if o % unit or (e % unit and e != n):
                raise ShapeError(f"cannot write {roi}: it must start and end on multiples of {self.write_unit}")
        array = self.array
        whole = through(Unread(array.store), array)
        if not any(isinstance(codec, BloscCodec) for codec in array.compressors):
            # looking for chunks of zeros only would take longer than to write them
            whole = whole.with_config({"write_empty_chunks": True})
        try:
            with self._reaching():
                whole[(..., *roi.slices(self.roi))] = data
        except KdsegError:
            raise
        except OSError as error:
            raise UnreadableError(f"cannot write {roi} to {self.where}: {error}") from error
        written = cast("Folder | Bucket", array.store).written
        return np.array([written[key] for _, key in self._keys(roi)], self.record).tobytes()


def open_volume(address: str | Path, *, level: int = 0, single: bool = False) -> Volume:
    """Open a dataset for reading and, but in a zip file, for writing of its blocks.

    Args:
        address: ``path.zarr``, ``path.zarr/group``, ``path.zarr.zip/group`` or ``s3://bucket/path.zarr/group``: an
            array, or an OME-Zarr image group; or a file that links to one (`kdseg.results.remote`) or stands for a
            phantom (`kdseg.volumes.phantom.unstored`).
        level: resolution level, where the group is a pyramid.
        single: take (z, y, x) of one channel; other axes are left out, and have to be of length 1.

    Raises:
        MissingError: if nothing is there.
        UnreadableError: if what is there is no zarr, or damaged, or a bucket does not answer.
        ShapeError: if the array is not one of (c,) z, y, x in any order, or its metadata contradict each other.
        VoxelSizeError: if the metadata of size and place are not understood.
    """
    path = remote.resolve(address)
    inside = zipped(path)
    if inside is None and isinstance(path, Path) and not path.exists():
        raise MissingError(f"no dataset at {path}; expected path.zarr or path.zarr/group")
    if inside is None and isinstance(path, Path) and path.is_file():
        return _open_phantom(path, level)
    try:
        with reaching(path):
            node = zarr.open(inside or store_at(path, address), mode="r" if inside else "r+")
    except KdsegError:
        raise
    except (FileNotFoundError, KeyError) as error:
        there = "" if inside is None else f"; at its top are {top(inside)}"
        raise MissingError(f"{path} holds no zarr array or OME-Zarr image: {error}{there}") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UnreadableError(f"cannot open {path} as zarr: {error}") from error
    if isinstance(node, zarr.Group):
        return _open_image(node, path, level, single=single)
    image = _image_around(path)
    order = _layout(node, {} if image is None else {_OME: image.names}, path, single=single)
    place = plain(node.attrs, order, node.ndim, path)
    if place == Place() and image is not None:
        place = _placed(image, order, path)
    return _checked(_volume(node, order, place, {}), path)


def create_volume(
    path: Path,
    *,
    shape: Triple,
    dtype: DTypeLike,
    chunk: Triple,
    shard: Triple,
    voxel_size: VoxelSize,
    offset: VoxelSize = (0.0, 0.0, 0.0),
    channels: int | None = None,
    levels: int = 1,
    compress: bool = True,
    labels: bool = False,
    attributes: Mapping[str, Any] | None = None,
) -> Volume:
    """Create an OME-Zarr 0.5 image, or open the one that an earlier attempt created.

    Args:
        path: folder to create, or a link to where to create it; what it already holds stays.
        shape: extent in voxels of level 0, (z, y, x).
        dtype: data type of the voxels; unwritten voxels read 0.
        chunk: voxels per unit of reading.
        shard: voxels per file, a multiple of ``chunk``.
        voxel_size: nm, (z, y, x).
        offset: nm, position of the first voxel.
        channels: length of a leading channel axis; None leaves it out.
        levels: resolution levels; level k has ``ceil(shape / 2**k)`` voxels.
        compress: blosc-zstd at its lightest; affinities are stored raw, they hardly shrink.
        labels: the voxels are ids or a mask; noted in the OME metadata, by which viewers show them as such.
        attributes: JSON values to note beside the OME metadata.

    Returns:
        The full resolution.

    Raises:
        ShapeError: if the folder already holds an array of other shape or type.
        UnreadableError: if the disk or the bucket does not take it, or a phantom that is not stored lies there.
    """
    lead = () if channels is None else (channels,)
    where = remote.resolve(path)
    if isinstance(where, Path) and where.suffix == ".zarr" and where.is_file():
        raise _read_only(where)
    notes = dict(attributes or {})
    ome = image_attributes(path.stem, voxel_size, offset, levels, channels=channels is not None, labels=labels)
    try:
        with reaching(where):
            store = store_at(where, path)
            arrays = [
                _array(store, level, lead, _halved(shape, level), np.dtype(dtype), chunk, shard, compress)
                for level in range(levels)
            ]
            zarr.create_group(Unread(store), zarr_format=3, attributes={"kdseg": notes, "ome": ome})
    except KdsegError:
        raise
    except OSError as error:
        raise UnreadableError(f"cannot create {path}: {error}") from error
    return Volume(arrays[0], voxel_size, offset, notes)


def _read_only(path: Path) -> UnreadableError:
    return UnreadableError(f"{path} is a phantom that is not stored, so nothing can be written to it")


def _open_phantom(path: Path, level: int) -> Volume:
    if level:
        raise MissingError(f"{path} is a phantom that is not stored: it has no resolution level {level}")
    array = open_computed(path)
    size = array.options.voxel_size
    z, y, x = (n * v for n, v in zip(array.options.offset, size, strict=True))
    return Volume(array, size, (z, y, x))


def _array(
    store: Bucket | Folder,
    level: int,
    lead: tuple[int, ...],
    shape: Triple,
    dtype: np.dtype[Any],
    chunk: Triple,
    shard: Triple,
    compress: bool,
) -> zarr.Array[Any]:
    codecs: list[BytesBytesCodec] = [BloscCodec(cname="zstd", clevel=1)] if compress else []
    if compress or isinstance(store, Bucket):
        # In a bucket it is the only checksum of what is read, elsewhere for readers that do not know ours: on
        # uncompressed chunks there it would be 5 % of a fast prediction.
        codecs.append(Crc32cCodec())
    found = _found(store, level)
    if found is not None and (found.shape != (*lead, *shape) or found.dtype != dtype):
        raise ShapeError(f"{found.store_path} holds {found.dtype} {found.shape}, expected {dtype} {(*lead, *shape)}")
    # metadata of an earlier attempt may be damaged: they are written anew
    created = zarr.create_array(
        Unread(store),
        name=str(level),
        shape=(*lead, *shape),
        chunks=(*lead, *chunk),
        shards=(*lead, *shard),
        dtype=dtype,
        fill_value=0,
        compressors=codecs or None,
        zarr_format=3,
        dimension_names=[*("c" for _ in lead), *SPACE],
    )
    return through(store, created)


def _found(store: Bucket | Folder, level: int) -> zarr.Array[Any] | None:
    """Return what an earlier attempt created, unless its metadata are damaged."""
    try:
        return zarr.open_array(store, path=str(level), mode="r+")
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _halved(shape: Triple, level: int) -> Triple:
    return triple(-(-n // 2**level) for n in shape)


def _open_image(group: zarr.Group, path: str | Path, level: int, *, single: bool) -> Volume:
    attributes = dict(group.attrs)
    ome = attributes.get("ome", attributes)
    if not isinstance(ome, dict) or not ome.get("multiscales"):
        raise MissingError(f"{path} is a zarr group without an image; its members are {sorted(group.keys())}: name one")
    found = level_of(ome, level, path)
    array = _member(group, found.path, path)
    order = _layout(array, {_OME: found.names}, path, single=single)
    notes = cast("dict[str, Any]", attributes.get("kdseg", {}))
    return _checked(_volume(array, order, _placed(found, order, path), notes), path)


def _image_around(path: str | Path) -> Level | None:
    """Return what the image that an array is a level of says of it; None if there is no image that names its axes.

    Raises:
        UnreadableError: if what is around it cannot be read: nobody knows then whether it is an image.
        VoxelSizeError: if the image is not understood.
    """
    whole, _, name = str(path).rstrip("/").rpartition("/")
    if name.endswith(".zarr") or not whole:
        return None
    parent = Path(whole) if isinstance(path, Path) else whole
    try:
        with reaching(parent):
            attributes = dict(zarr.open_group(zipped(parent) or store_at(parent, parent), mode="r").attrs)
    except (FileNotFoundError, NotADirectoryError, MissingError, BaseZarrError):  # no group is there
        return None
    except UnreadableError as error:
        if isinstance(error.__cause__, PermissionError):  # a bucket's answer for what is not there, to who may not list
            return None
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UnreadableError(
            f"cannot read the metadata of {parent}, of which {path} may be a level: {error}"
        ) from error
    ome = cast("dict[str, Any]", attributes.get("ome", attributes))
    try:
        image = ome["multiscales"][0]
        levels = [level for level, dataset in enumerate(image["datasets"]) if dataset["path"] == name]
        if not levels or not ("axes" in image or "coordinateSystems" in image):
            return None
    except (TypeError, LookupError):
        return None
    return level_of(ome, levels[0], parent)


def _placed(level: Level, order: Layout, path: str | Path) -> Place:
    scale, translation = order.of(level.scale, 1.0)[-3:], order.of(level.translation, 0.0)[-3:]
    units = order.of(level.units, None)[-3:]  # of an image nobody says how thick it is
    return placed(scale, translation, units, path)


def _layout(array: zarr.Array[Any], said: Mapping[str, Sequence[str]], path: str | Path, *, single: bool) -> Layout:
    """Return the order of the axes of an array, by what is said of them and by its own metadata."""
    said = {**said, **axis_names(array.attrs, path)}
    names = getattr(array.metadata, "dimension_names", None)  # zarr v3
    if names:
        said["`dimension_names`"] = [name or "" for name in names]
    return layout(array.shape, said, str(path), single=single)


def _volume(array: zarr.Array[Any], order: Layout, place: Place, notes: Mapping[str, Any]) -> Volume:
    return Volume(array, place.voxel_size, place.offset, notes, place.placed, place.unscaled, order)


def _member(group: zarr.Group, name: str, path: str | Path) -> zarr.Array[Any]:
    try:
        node = group[name]
    except KeyError:
        raise MissingError(f"{path} names a resolution level {name!r} that is not there: copy it again") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UnreadableError(f"cannot open {path}/{name} as zarr: {error}") from error
    if isinstance(node, zarr.Group):
        raise MissingError(f"{path}/{name} is a group, expected the array of a resolution level")
    return node


def _checked(volume: Volume, path: str | Path) -> Volume:
    chunk, voxel = volume.array.chunks, volume.dtype.itemsize
    per_shard = prod(grid_shape(volume.write_unit, volume.read_unit)) if volume.array.shards else 0
    expect_small_chunks(str(path), {"a chunk": prod(chunk) * voxel, "the index of a shard": 16 * per_shard})
    return volume
