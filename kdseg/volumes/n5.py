"""N5 datasets: folders of blocks, their axes in the order x, y, z.

Source: saalfeldlab/n5, "File-system specification". Blocks are a short header and what the compressors of
`kdseg.volumes.decoding` unpack. They are read here, as fast as by tensorstore, whose threads do not survive the forks
of workers.
"""

from __future__ import annotations

import lzma
import math
import os
import stat
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdseg.config.addresses import N5_ATTRIBUTES
from kdseg.errors import DataError, KdsegError, MissingError, UnreadableError
from kdseg.geometry import triple
from kdseg.volumes.absent import expect_absent
from kdseg.volumes.axes import Layout, layout
from kdseg.volumes.decoding import expect_small_chunks, packed_most, unpacked
from kdseg.volumes.foreign import ForeignArray
from kdseg.volumes.n5_metadata import attributes_of, dataset_in, described
from kdseg.volumes.n5_place import Attributes

_TYPES = {f"{kind}{bits}" for kind in ("uint", "int") for bits in (8, 16, 32, 64)} | {"float32", "float64"}
_CODECS = {"gzip": "gzip", "bzip2": "bz2", "xz": "lzma", "blosc": "blosc", "zstd": "zstd"}
"""Names of compressors in `kdseg.volumes.decoding`. The lz4 of N5 is framed as Java does, which nobody else reads."""
_MULTISET = "isLabelMultiset"
"""Attribute of Paintera's labels, several of which may be in one voxel."""
_DAMAGE = (OSError, EOFError, ValueError, RuntimeError, struct.error, zlib.error, lzma.LZMAError)


@dataclass(frozen=True)
class N5Array(ForeignArray):
    """A dataset.

    Attributes:
        blocks: of it.
        layout: which of their axes are (c,) z, y, x.
    """

    blocks: Blocks
    layout: Layout

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return the values of a box; see `ForeignArray`."""
        return self.layout.read(self.blocks, key)


@dataclass(frozen=True)
class Blocks:
    """Blocks of a dataset as an array, its axes in the opposite order of the file: C order instead of Fortran's.

    Attributes:
        path: folder of the dataset.
        shape: of the array.
        block: of one block, but those at the ends, which may be smaller.
        dtype: of the values, big-endian.
        codec: by which blocks are packed; None: not at all.
    """

    path: Path
    shape: tuple[int, ...]
    block: tuple[int, ...]
    dtype: np.dtype[Any]
    codec: str | None

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return the values of a box; blocks that are not there are 0, as the format has it.

        Raises:
            UnreadableError: if a block is damaged, or unpacks to more than its voxels.
        """
        box = [range(n)[s] for n, s in zip(self.shape, key, strict=True)]
        out = np.zeros([len(axis) for axis in box], self.dtype)
        for cell in product(*(range(r.start // n, -(-r.stop // n)) for r, n in zip(box, self.block, strict=True))):
            found = self._block(cell)
            if found is None:
                continue
            first = [k * n for k, n in zip(cell, self.block, strict=True)]
            into, of = [], []
            for axis, low, length in zip(box, first, found.shape, strict=True):
                start, stop = max(axis.start, low), min(axis.stop, low + length)
                into.append(slice(start - axis.start, max(stop, start) - axis.start))
                of.append(slice(start - low, max(stop, start) - low))
            out[tuple(into)] = found[tuple(of)]
        return out

    def _block(self, cell: tuple[int, ...]) -> NDArray[Any] | None:
        file = self.path.joinpath(*(str(k) for k in reversed(cell)))
        try:
            if not stat.S_ISREG(file.stat().st_mode):
                raise UnreadableError(f"{file} is no file, but a folder, pipe, socket or device: remove it")
            return self._decoded(file)
        except FileNotFoundError:
            expect_absent(file, self.path)
            return None
        except KdsegError:
            raise
        except _DAMAGE as error:
            raise UnreadableError(f"cannot read {file}: {error}; it is damaged: copy it again") from error

    def _decoded(self, file: Path) -> NDArray[Any]:
        whole = math.prod(self.block) * self.dtype.itemsize
        head = 4 + 4 * self.ndim
        with file.open("rb") as opened:
            data = opened.read(head + packed_most(whole) + 1)
        mode, ndim = struct.unpack_from(">HH", data)
        if mode:
            raise ValueError(f"its mode is {mode}, expected 0: values of several labels or objects are not read")
        if ndim != self.ndim:
            raise ValueError(f"it has {ndim} axes, expected {self.ndim}")
        shape = struct.unpack_from(f">{ndim}I", data, 4)[::-1]
        if any(n > most for n, most in zip(shape, self.block, strict=True)):
            raise ValueError(f"it has {shape} voxels, expected no more than {self.block}")
        size = math.prod(shape) * self.dtype.itemsize
        values = data[head:] if self.codec is None else unpacked(self.codec, data[head:], size)
        if len(values) != size:
            raise ValueError(f"it has {len(values)} bytes, expected {size}")
        return np.frombuffer(values, self.dtype).reshape(shape)


def open_n5(path: Path, *, single: bool) -> N5Array:
    """Open a dataset, or the finest one of a group of resolutions; see `kdseg.volumes.n5_metadata`.

    Args:
        path: folder of the dataset or group.
        single: take (z, y, x) of one channel, not (c, z, y, x).

    Raises:
        DataError: if it holds several labels in one voxel.
        MissingError: if there is no dataset, or none of its blocks.
        UnreadableError: if its attributes are damaged, or its blocks are packed in a way that is not read.
        ShapeError: if it has other axes, or its attributes contradict each other.
        VoxelSizeError: if its attributes of size and place are not understood.
    """
    folder = dataset_in(path)
    own = attributes_of(folder)
    blocks = _blocks(folder, own)
    if own.get(_MULTISET):
        raise DataError(
            f"{folder} holds label multisets of Paintera, several labels in one voxel: convert it to uint64, with "
            "paintera-conversion-helper or paintera's export"
        )
    said, placed = described(folder, own, blocks.ndim)
    order = layout(blocks.shape, said, str(folder), single=single)
    unit, lengths = triple(order.of(blocks.block, 1)[-3:]), order.of(blocks.shape, 1)
    return N5Array(lengths, blocks.dtype, placed(order), unit, blocks, order)


def _blocks(folder: Path, own: Attributes) -> Blocks:
    try:
        shape, block = (tuple(int(n) for n in reversed(own[key])) for key in ("dimensions", "blockSize"))
        if len(shape) != len(block) or min(block, default=0) < 1 or min(shape, default=-1) < 0:
            raise ValueError(f"dimensions {shape} in blocks of {block}")
        kind = str(own["dataType"])
        packing = own["compression"] if "compression" in own else {"type": own["compressionType"]}
        name = str(packing["type"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UnreadableError(
            f"{folder / N5_ATTRIBUTES} is damaged or not that of an N5 dataset ({type(error).__name__}: {error}); "
            "expected dimensions, blockSize, dataType and compression"
        ) from error
    if kind not in _TYPES:
        raise UnreadableError(f"{folder} holds {kind}, expected integers or floats: convert it")
    codec = _codec(folder, name, packing)
    dtype = np.dtype(kind).newbyteorder(">")
    expect_small_chunks(str(folder), {"a block": math.prod(block) * dtype.itemsize})
    _expect_blocks(folder)
    return Blocks(folder, shape, block, dtype, codec)


def _codec(folder: Path, name: str, settings: Mapping[str, Any]) -> str | None:
    if name == "raw":
        return None
    if name not in _CODECS:
        raise UnreadableError(
            f"{folder} is packed by {name}, expected raw or one of {list(_CODECS)}: write it again, e.g. with gzip"
        )
    return "zlib" if name == "gzip" and settings.get("useZlib") else _CODECS[name]


def _expect_blocks(folder: Path) -> None:
    """Refuse a dataset without blocks, all of which would be read as zeros."""
    with os.scandir(folder) as entries:
        if not any(entry.name.isdecimal() for entry in entries):
            raise MissingError(f"{folder} holds no blocks, but attributes only: copy the blocks, too")
