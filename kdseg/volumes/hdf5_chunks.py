"""Chunks of HDF5, in no more memory than they should take: HDF5 gives a chunk all that it unpacks to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
from h5py import h5s, h5z

from kdseg.errors import UnreadableError
from kdseg.volumes.decoding import DEFLATED, SPARE, expect_small_chunks, unpacks_to_more
from kdseg.volumes.hdf5_filters import expect_filters, filters_of
from kdseg.volumes.hdf5_links import CHAIN, named, places, series

_SAFE = {h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32}
"""Filters whose result is as large as what they are given."""
_ADDED = 21
"""Bytes that a filter before gzip adds to a chunk at most: scale-offset; a checksum adds 4."""


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
    if links > CHAIN:
        raise UnreadableError(f"{node.file.filename}:{node.name} is a virtual dataset of itself: make the file again")
    if node.is_virtual:
        for source in node.virtual_sources():
            _expect_small_chunks_of(node, source, key, links)
    if node.chunks is None:
        return
    where, most = f"{node.file.filename}:{node.name}", math.prod(node.chunks) * node.dtype.itemsize
    expect_small_chunks(where, {"a chunk": most})
    expect_filters(node)
    filters = filters_of(node)
    numbers = [number for number, _, _ in filters]
    lzf = [values[2] for number, values, _ in filters if number == h5z.FILTER_LZF and len(values) > 2]
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
    for number in series(source, key):
        name, inside = (named(text, number) for text in (source.file_name, source.dset_name))
        for path in [Path(node.file.filename)] if name == "." else places(Path(node.file.filename), name):
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
