"""Stacks of TIFF sections: one file of many pages, or a folder of single sections.

Only what a region needs is read: sections stored in one piece are mapped into memory, of compressed ones
only the strips or tiles that meet the region are decoded.
"""

from __future__ import annotations

import lzma
import math
import re
import struct
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray

from kdseg.errors import MissingError, ShapeError, UnreadableError
from kdseg.geometry import Slices, Triple, VoxelSize
from kdseg.volumes.metadata import TO_NM

SUFFIXES = (".tif", ".tiff")
_UNPACK: dict[int, Callable[[], Any]] = {
    8: zlib.decompressobj,
    32946: zlib.decompressobj,
    34925: lzma.LZMADecompressor,
}
"""Compressions of TIFF that tifffile unpacks without imagecodecs."""
_DAMAGE = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    tifffile.TiffFileError,
)


class Section(NamedTuple):
    """Place of one section: its file, its page there, and its first byte if it is stored in one piece."""

    path: Path
    page: int
    start: int | None


@dataclass(frozen=True)
class TiffStack:
    """An array of sections that reads what it is asked for; it holds no open file.

    Attributes:
        sections: one per z.
        shape: (z, y, x).
        dtype: of the voxels, in the byte order of the files.
        unit: (y, x) of one strip or tile, the least that can be read.
        voxel_size: nm, (z, y, x), if ImageJ or OME metadata give all three.
    """

    sections: tuple[Section, ...]
    shape: Triple
    dtype: np.dtype[Any]
    unit: tuple[int, int]
    voxel_size: VoxelSize | None
    ndim: int = 3

    def __getitem__(self, key: Slices) -> NDArray[Any]:
        """Return the voxels of three slices of step 1.

        Raises:
            UnreadableError: if a section is damaged.
        """
        z, y, x = (range(n)[s] for n, s in zip(self.shape, key, strict=True))
        out = np.empty((len(z), len(y), len(x)), self.dtype)
        mapped = [k for k in z if self.sections[k].start is not None]
        for k in mapped:
            with _readable(self.sections[k].path):
                out[k - z.start] = self._mapped(self.sections[k])[key[1:]]
        pending = [k for k in z if self.sections[k].start is None]
        for path in dict.fromkeys(self.sections[k].path for k in pending):
            with _readable(path), tifffile.TiffFile(path) as file:
                for k in pending:
                    if self.sections[k].path == path:
                        _decode(file.pages[self.sections[k].page], y, x, out[k - z.start])
        return out

    def _mapped(self, section: Section) -> NDArray[Any]:
        return np.memmap(section.path, self.dtype, "r", section.start or 0, self.shape[1:])


def open_stack(path: Path) -> TiffStack:
    """Open a multi-page TIFF file or a folder of TIFF sections.

    The files of a folder are ordered by name, numbers in it by value (``s2.tif`` before ``s10.tif``).

    Raises:
        MissingError: if nothing is there, or no TIFF in the folder.
        ShapeError: if the sections differ in size or type, or are not two-dimensional.
        UnreadableError: if a file is no TIFF, or is cut off.
    """
    if path.is_dir():
        files = sorted((p for p in path.iterdir() if p.suffix.lower() in SUFFIXES), key=_natural)
        if not files:
            raise MissingError(f"{path} holds no TIFF files; expected sections named *.tif or *.tiff")
        if odd := [file for file in files if not file.is_file()]:  # a pipe would be waited for
            raise UnreadableError(f"{odd[0]} is no file, or a link to none: remove it, or give it another ending")
        return _joined([_open_file(file, single=True) for file in files])
    if not path.is_file():
        raise MissingError(f"no TIFF file or folder of TIFF files at {path}")
    return _open_file(path, single=False)


def _open_file(path: Path, *, single: bool) -> TiffStack:
    with _readable(path), tifffile.TiffFile(path) as file:
        # ImageJ writes a large stack as one page and the rest of it, without pages, behind that.
        images = (file.imagej_metadata or {}).get("images", 1)
        if _dangling(file) or images > max(len(file.pages), math.prod(file.series[0].shape[:-2])):
            raise UnreadableError(f"{path} is cut off: it has not all of its pages; copy it again")
        series = file.series
        if len(series) != 1:
            sizes = sorted({tuple(one.shape) for one in series})
            raise ShapeError(f"{path} has pages of different sizes or types {sizes}; expected sections of one size")
        shape, axes = tuple(series[0].shape), series[0].axes
        if len(shape) != (2 if single else 3) or not axes.endswith("YX"):
            expected = "one section (y, x)" if single else "(z, y, x)"
            raise ShapeError(f"{path} has the shape {shape} with axes {axes}, expected {expected} of one channel")
        sections, dtype = _sections(file, path, (1, *shape) if single else shape), series[0].dtype
        if dtype is None:
            raise UnreadableError(f"{path} has voxels of a type that is not known")
        page = file.pages.first
        unit = (min(page.chunks[-2], shape[-2]), min(page.chunks[-1], shape[-1]))
        stack = (len(sections), shape[-2], shape[-1])
        return TiffStack(sections, stack, dtype.newbyteorder(file.byteorder), unit, _voxel_size(file))


def _sections(file: tifffile.TiffFile, path: Path, shape: Sequence[int]) -> tuple[Section, ...]:
    start, size = file.series[0].dataoffset, file.filehandle.size
    if start is not None:
        step = int(np.prod(shape[1:])) * np.dtype(file.series[0].dtype).itemsize
        if start + step * shape[0] > size:
            raise UnreadableError(f"{path} is cut off: {size} bytes, expected {start + step * shape[0]}; copy it again")
        return tuple(Section(path, k, start + step * k) for k in range(shape[0]))
    found = []
    for number, page in enumerate(file.pages):
        end = max(o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True))
        if end > size:
            raise UnreadableError(f"{path} is cut off: {size} bytes, but page {number} ends at {end}; copy it again")
        found.append(Section(path, number, page.dataoffsets[0] if page.is_memmappable else None))
    if len(found) != shape[0]:
        raise UnreadableError(f"{path} has {len(found)} pages, but says {shape[0]} sections; it is damaged")
    return tuple(found)


def _dangling(file: tifffile.TiffFile) -> bool:
    """Return whether the last page that was found points to one that is not there."""
    form, handle = file.tiff, file.filehandle
    handle.seek(file.pages[-1].offset)
    (tags,) = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))
    handle.seek(tags * form.tagsize, 1)
    link = handle.read(form.offsetsize)
    return len(link) < form.offsetsize or struct.unpack(form.offsetformat, link)[0] != 0


def _decode(page: Any, y: range, x: range, out: NDArray[Any]) -> None:
    """Write the window ``y``, ``x`` of one page to ``out``, from the strips or tiles that meet it."""
    height, width = page.chunks[-2:]
    across = page.chunked[-1]
    for row in range(y.start // height, -(-y.stop // height)):
        for column in range(x.start // width, -(-x.stop // width)):
            index = row * across + column
            page.parent.filehandle.seek(page.dataoffsets[index])
            data = page.parent.filehandle.read(page.databytecounts[index])
            _expect_small(page, data)
            decoded, _, (_, rows, columns, _) = page.decode(data, index, jpegtables=page.jpegtables)
            top, left = row * height, column * width
            ys = range(max(y.start, top), min(y.stop, top + rows))
            xs = range(max(x.start, left), min(x.stop, left + columns))
            cut = decoded[0, ys.start - top : ys.stop - top, xs.start - left : xs.stop - left, 0]
            out[ys.start - y.start : ys.stop - y.start, xs.start - x.start : xs.stop - x.start] = cut


def _expect_small(page: Any, data: bytes) -> None:
    """Refuse a strip that unpacks to much more than its voxels; without imagecodecs tifffile unpacks all of it."""
    unpack = _UNPACK.get(int(page.compression))
    most = 2 * math.prod(page.chunks) * page.dtype.itemsize + 2**16  # some programs pad
    if unpack is not None and len(unpack().decompress(data, most + 1)) > most:
        raise UnreadableError(
            f"{page.parent.filename} has a strip or tile that unpacks to more than {most} bytes, expected "
            f"{page.chunks} voxels: it is damaged"
        )


def _joined(stacks: list[TiffStack]) -> TiffStack:
    first = stacks[0]
    for stack in stacks[1:]:
        if (stack.shape, stack.dtype) != (first.shape, first.dtype):
            raise ShapeError(
                f"{stack.sections[0].path} is {stack.dtype} {stack.shape[1:]}, but {first.sections[0].path} is "
                f"{first.dtype} {first.shape[1:]}; all sections need one size and type: pad or crop them"
            )
    sections = tuple(section for stack in stacks for section in stack.sections)
    return TiffStack(sections, (len(sections), *first.shape[1:]), first.dtype, first.unit, None)


def _natural(path: Path) -> list[tuple[int, int | str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]


def _voxel_size(file: tifffile.TiffFile) -> VoxelSize | None:
    imagej = file.imagej_metadata
    if imagej is not None and "spacing" in imagej:
        unit = TO_NM.get(str(imagej.get("unit", "")).lower())
        tags = file.pages.first.tags
        if unit is None or "XResolution" not in tags or "YResolution" not in tags:
            return None
        x, y = (tags[name].value for name in ("XResolution", "YResolution"))
        if not all((*x, *y)):
            return None
        return (imagej["spacing"] * unit, y[1] / y[0] * unit, x[1] / x[0] * unit)
    return None if file.ome_metadata is None else _ome_voxel_size(file.ome_metadata)


def _ome_voxel_size(text: str) -> VoxelSize | None:
    pixels = ElementTree.fromstring(text).find(".//{*}Pixels")
    if pixels is None:
        return None
    found = []
    for axis in "ZYX":
        size = pixels.get(f"PhysicalSize{axis}")
        unit = TO_NM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        if size is None or unit is None:
            return None
        found.append(float(size) * unit)
    return (found[0], found[1], found[2])


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (ShapeError, UnreadableError):
        raise
    except ElementTree.ParseError as error:
        raise UnreadableError(f"the OME metadata of {path} are damaged: {error}") from error
    except _DAMAGE as error:
        hint = "pip install imagecodecs" if "imagecodecs" in str(error) else "it is damaged or no TIFF; copy it again"
        raise UnreadableError(f"cannot read {path}: {error}: {hint}") from error
