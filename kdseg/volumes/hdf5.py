"""Datasets of HDF5, and the files that they lie in: links, external storage and virtual datasets name others.

A file from elsewhere can name any file of this machine, whose bytes would be read as voxels: those outside of its own
folder are refused. So is a chunk that unpacks to more than its voxels, for which HDF5 would take the memory.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5s, h5z
from numpy.typing import NDArray

from kdseg.errors import KdsegError, MissingError, UnreadableError
from kdseg.geometry import Triple, triple
from kdseg.volumes.axes import Layout, layout
from kdseg.volumes.decoding import DEFLATED, SPARE, expect_small_chunks, unpacks_to_more
from kdseg.volumes.metadata import Place, axis_names, plain

ANYWHERE = "KDSEG_HDF5_ANYWHERE"
"""Variable of the environment that allows files in other folders, if it is 1."""
_SAFE = {h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32}
"""Filters whose result is as large as what they are given."""
_ADDED = 21
"""Bytes that a filter before gzip adds to a chunk at most: scale-offset; a checksum adds 4."""
_CHAIN = 100
"""Links that are followed one after the other."""
_NUMBER = re.compile("%([b%])")
"""Part of the names of a series of virtual sources."""


@dataclass(frozen=True)
class Hdf5Array:
    """A dataset that is opened whenever it is read.

    Attributes:
        path: of the file.
        dataset: name in the file.
        lengths: of its axes, (c,) z, y, x.
        dtype: of the values.
        layout: which axes of the dataset these are.
        place: what its attributes say of voxel size and position.
        unit: voxels, (z, y, x), of one chunk.
    """

    path: Path
    dataset: str
    lengths: tuple[int, ...]
    dtype: np.dtype[Any]
    layout: Layout
    place: Place
    unit: Triple

    @property
    def shape(self) -> Triple:
        """Extent in voxels, (z, y, x)."""
        return triple(self.lengths[-3:])

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return the values of a box, one slice for each axis.

        Raises:
            UnreadableError: if the file is damaged there.
        """
        with (
            _readable(f"cannot read {self.path}:{self.dataset}", "the file is damaged"),
            h5py.File(self.path, "r") as file,
        ):
            node = file[self.dataset]
            expect_small_chunks_in(node, self.layout.back(key, node.ndim, slice(0, 1)))
            return self.layout.read(node, key)


def open_dataset(path: Path, dataset: str, *, single: bool) -> Hdf5Array:
    """Open a dataset of HDF5; its order of axes is what labels or scales of its dimensions, or attributes say.

    Args:
        path: of the file.
        dataset: name in the file.
        single: take (z, y, x) of one channel, not (c, z, y, x).

    Raises:
        MissingError: if the dataset is not there.
        UnreadableError: if the file is damaged or no HDF5.
        ShapeError: if it has other axes, or its metadata contradict each other.
        VoxelSizeError: if its attributes of size and place are not understood.
    """
    where = f"{path}:{dataset}"
    with _readable(f"cannot open {path} as HDF5", "the file is damaged or no HDF5"):
        expect_within(path, dataset)
        with h5py.File(path, "r") as file:
            node = file.get(dataset) if dataset.strip("/") else None
            if not isinstance(node, h5py.Dataset):
                raise MissingError(f"{path} has no dataset {dataset!r}, expected {path}: and one of {datasets(file)}")
            said = _dimensions(node) | axis_names(node.attrs, where)
            order = layout(node.shape or (), said, where, single=single)  # an empty dataset has no shape
            unit = order.of(node.chunks or (1, *node.shape[1:]), 1)
            place = plain(node.attrs, order, node.ndim, where)
            return Hdf5Array(path, dataset, order.of(node.shape, 1), node.dtype, order, place, triple(unit[-3:]))


def _dimensions(node: h5py.Dataset) -> dict[str, list[str]]:
    """Return the names of the axes by the labels of the dimensions, and by their scales, as netCDF writes them."""
    labels = [dimension.label for dimension in node.dims]
    scales = [dimension[0].name.rsplit("/", 1)[-1] if len(dimension) else "" for dimension in node.dims]
    said = {"dimension labels": labels, "dimension scales": scales}
    return {by: names for by, names in said.items() if any(names)}


@contextmanager
def _readable(what: str, why: str) -> Iterator[None]:
    try:
        yield
    except KdsegError:
        raise
    except FileNotFoundError as error:
        raise MissingError(f"{what}: it is not there") from error
    except (OSError, KeyError, RuntimeError, zlib.error) as error:
        raise UnreadableError(f"{what}: {error}; {why}") from error


def expect_small_chunks_in(node: h5py.Dataset, key: tuple[slice, ...], links: int = 0) -> None:
    """Refuse chunks for which gzip or LZF would take much more memory than their voxels have.

    The chunks of a virtual dataset are those of other datasets. Filters of packages that a user has installed are left
    as they are.

    Args:
        node: dataset.
        key: box that is to be read.
        links: virtual datasets that led to it.

    Raises:
        UnreadableError: if there is one, or virtual datasets lead to themselves.
    """
    if links > _CHAIN:
        raise UnreadableError(f"{node.file.filename}:{node.name} is a virtual dataset of itself: make the file again")
    if node.is_virtual:
        for source in node.virtual_sources():
            _expect_small_chunks_of(node, source, key, links)
    if node.chunks is None:
        return
    where, most = f"{node.file.filename}:{node.name}", math.prod(node.chunks) * node.dtype.itemsize
    expect_small_chunks(where, {"a chunk": most})
    made = node.id.get_create_plist()
    filters = [(number, values) for number, _, values, _ in map(made.get_filter, range(made.get_nfilters()))]
    numbers = [number for number, _ in filters]
    lzf = [values[2] for number, values in filters if number == h5z.FILTER_LZF and len(values) > 2]
    if numbers.count(h5z.FILTER_DEFLATE) > 1 or any(size > most for size in lzf):
        raise UnreadableError(f"{where} is packed more than once: repack it, e.g. by h5repack -f GZIP=1")
    packed = [number for number in numbers if number not in _SAFE]
    if packed[-1:] != [h5z.FILTER_DEFLATE]:
        return
    place = numbers.index(h5z.FILTER_DEFLATE)
    most += place * _ADDED
    for chunk in node.iter_chunks(key):
        first = tuple(s.start // n * n for s, n in zip(chunk, node.chunks, strict=True))
        info = node.id.get_chunk_info_by_coord(first)
        if info.byte_offset is None or info.size * DEFLATED <= most + SPARE:
            continue
        skipped, data = node.id.read_direct_chunk(first)
        deflated = not skipped >> place & 1
        if deflated and unpacks_to_more(data, most):
            raise UnreadableError(
                f"{where} has a chunk at {first} that unpacks to more than {most} bytes: it is damaged"
            )


def _expect_small_chunks_of(node: h5py.Dataset, source: Any, key: tuple[slice, ...], links: int) -> None:
    """Do so of one source of a virtual dataset, whose ``vspace`` and ``src_space`` say which voxels lie where."""
    there, full = _box(source.vspace, node.shape)
    part = _cut(there, key)
    if part is None:
        return
    for number in _series(source, key):
        name, inside = (_named(text, number) for text in (source.file_name, source.dset_name))
        for path in [Path(node.file.filename)] if name == "." else _places(Path(node.file.filename), name):
            if not path.is_file():
                continue
            with h5py.File(path, "r") as file:
                other = file.get(inside)
                if not isinstance(other, h5py.Dataset):
                    continue
                box, fills = _box(source.src_space, other.shape)
                if full and fills and _shape(there) == _shape(box):  # else nobody knows which voxel is which
                    ways = zip(part, there, box, strict=True)
                    box = tuple(slice(p.start - t.start + b.start, p.stop - t.start + b.start) for p, t, b in ways)
                inner = _cut(box, tuple(slice(0, n) for n in other.shape))
                if inner is not None:
                    expect_small_chunks_in(other, inner, links + 1)


def _box(space: Any, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], bool]:
    """Return the box around the selected elements of a dataset, and whether these are all in it.

    It is all of the dataset, and they may be any of them, if they have no end, or are of a dataset of other axes.
    """
    whole = tuple(slice(0, n) for n in shape)
    if space.get_select_type() == h5s.SEL_ALL:
        return whole, True
    try:
        low, high = space.get_select_bounds()
    except (ValueError, RuntimeError):
        return whole, False
    box = tuple(slice(int(first), int(last) + 1) for first, last in zip(low, high, strict=True))
    if len(box) != len(whole):
        return whole, False
    return box, math.prod(_shape(box)) == space.get_select_npoints()


def _shape(box: tuple[slice, ...]) -> list[int]:
    return [one.stop - one.start for one in box]


def _cut(box: tuple[slice, ...], key: tuple[slice, ...]) -> tuple[slice, ...] | None:
    """Return what two boxes share; None if nothing."""
    shared = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(box, key, strict=True))
    return shared if all(one.start < one.stop for one in shared) else None


def _series(source: Any, key: tuple[slice, ...]) -> range:
    """Return the numbers of the datasets that a source of a virtual dataset stands for, and that ``key`` needs."""
    if not any(_named(text, 0) != _named(text, 1) for text in (source.file_name, source.dset_name)):
        return range(1)
    start, stride, count, _ = source.vspace.get_regular_hyperslab()
    axis = int(np.argmax(count))  # the one that has no end
    first, last = ((n - start[axis]) // stride[axis] for n in (key[axis].start, key[axis].stop - 1))
    return range(max(first, 0), last + 1)


def _named(text: str, number: int) -> str:
    """Return the name of one dataset of a series, or of its file: HDF5 takes %b for its number, and %% for %."""
    return _NUMBER.sub(lambda found: str(number) if found[1] == "b" else "%", text)


def _places(path: Path, name: str) -> list[Path]:
    """Return where HDF5 looks for a file that another one names."""
    folders = (path.parent, path.resolve().parent)
    beside = [folder / one for one in (name, Path(name).name) for folder in folders]
    return list(dict.fromkeys([*beside[:2], Path(name), *beside[2:]]))


def datasets(file: h5py.File) -> list[str]:
    """Return the names of all datasets of a file."""
    names: list[str] = []

    def visit(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset):
            names.append("/" + name)

    file.visititems(visit)
    return names


def expect_within(path: Path, dataset: str) -> None:
    """Refuse a dataset parts of which lie outside of the folder of its file, before such a part is opened.

    Args:
        path: of the file; in links, relative names are those beside it.
        dataset: name in the file; one that is not there is for others to refuse.

    Raises:
        UnreadableError: if there is one, or a link leads to no file, or to itself.
    """
    if os.environ.get(ANYWHERE) != "1":
        _Check(path).follow(path, dataset, 0)


class _Check:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.folders = {path.parent.resolve(), path.resolve().parent}
        self.seen: set[tuple[Path, str]] = set()

    def follow(self, path: Path, name: str, links: int) -> None:
        """Follow a name in a file, link by link, to its dataset."""
        if links > _CHAIN:
            raise UnreadableError(f"{self.path}: the link {name!r} leads to itself: make the file again")
        if (path, name) in self.seen:
            return
        self.seen.add((path, name))
        with h5py.File(path, "r") as file:
            node: h5py.Group | h5py.Dataset = file
            parts = [part for part in name.split("/") if part not in ("", ".")]
            for number, part in enumerate(parts):
                if not isinstance(node, h5py.Group):
                    return
                link, rest = node.get(part, getlink=True), "/".join(parts[number + 1 :])
                if isinstance(link, h5py.ExternalLink):
                    self.open(path, link.filename, f"{link.path}/{rest}", links)
                    return
                if isinstance(link, h5py.SoftLink):
                    start = "" if link.path.startswith("/") else node.name
                    self.follow(path, f"{start}/{link.path}/{rest}", links + 1)
                    return
                if link is None:
                    return
                node = node[part]
            if isinstance(node, h5py.Dataset):
                self.dataset(path, node)

    def dataset(self, path: Path, node: h5py.Dataset) -> None:
        """Look at the files that a dataset names."""
        for name, _, _ in node.external or ():
            self.expect(Path(name))  # HDF5 takes relative names from the working directory
        for source in node.virtual_sources() if node.is_virtual else ():
            for number in _series(source, tuple(slice(0, n) for n in node.shape)):
                name = _named(source.file_name, number)
                self.open(path, path.name if name == "." else name, _named(source.dset_name, number), 0)

    def open(self, path: Path, name: str, dataset: str, links: int) -> None:
        """Go on in another file, where there is one: HDF5 looks for it beside this one, then here."""
        for other in _places(path, name):
            if os.path.lexists(other):
                self.expect(other)
                self.follow(other, dataset, links + 1)
                return

    def expect(self, other: Path) -> None:
        """Refuse a file in another folder, or what is none."""
        found = other.resolve()
        if not any(found.is_relative_to(folder) for folder in self.folders):
            raise UnreadableError(
                f"{self.path} takes voxels from {other}, outside of its own folder: copy them into one file by "
                f"h5repack, or set {ANYWHERE}=1 in the environment if you trust it"
            )
        if other.exists() and not other.is_file():
            raise UnreadableError(f"{self.path} takes voxels from {other}, which is no file: copy them into one file")
