"""One TIFF file: its pages, and what it says of them."""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from kdseg.errors import ShapeError, UnreadableError
from kdseg.geometry import VoxelSize
from kdseg.volumes.metadata import nm_per
from kdseg.volumes.ome import Ome, read_ome, uuid_of
from kdseg.volumes.tiff_stack import Section, readable

_HERE: dict[str, Any] = {"is_ome": False, "is_mmstack": False, "is_ndtiff": False}
"""Formats for which tifffile would open other files, of any folder, that a file names."""
ANOTHER_AXIS = "%s: its sections lie along the axis %s, not Z; they are taken as sections along z"
"""Message: programs save sections as channels or times when nobody tells them the axes."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PagesFile:
    """One TIFF file, closed.

    Attributes:
        path: of it.
        sections: one per page.
        shape: as the file says; the last two are (y, x).
        dtype: of the voxels.
        unit: (y, x) of one strip or tile.
        voxel_size: nm, (z, y, x), if it says all three.
        ome: what it says of an image that may be in several files.
        uuid: by which others name it.
    """

    path: Path
    sections: tuple[Section, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    unit: tuple[int, int]
    voxel_size: VoxelSize | None
    ome: Ome | None = None
    uuid: str | None = None

    @property
    def several(self) -> bool:
        """Whether it holds a part of an image."""
        return self.ome is not None and bool(self.ome.others(self.path.name) or self.ome.size > len(self.sections))


def open_file(path: Path, *, told: bool = False) -> PagesFile:
    """Open one file.

    Args:
        path: of it.
        told: its OME metadata are those of a file that was opened before, and are not looked into.

    Raises:
        ShapeError: if its pages differ in size or type, or are not grey.
        UnreadableError: if it is no TIFF, or is cut off.
    """
    with readable(path), tifffile.TiffFile(path, **_HERE) as file:
        if _dangling(file):
            raise UnreadableError(f"{path} is cut off: it has not all of its pages; copy it again")
        first = file.pages.first
        text = first.description if first.is_ome else ""
        ome = read_ome(text, path) if text and not told else None
        if ome is None and not told:  # as if it had no metadata: they are of no image
            text = ""
        shape, dtype = (_ome_shape if text else _shape)(file, path)
        sections = _pages(file, path) if text else _sections(file, path, (1, *shape) if len(shape) == 2 else shape)
        if dtype is None:
            raise UnreadableError(f"{path} has voxels of a type that is not known")
        unit = (min(first.chunks[-2], shape[-2]), min(first.chunks[-1], shape[-1]))
        size = _voxel_size(file) if ome is None else ome.voxel_size
        uuid = uuid_of(text) if text else None
        return PagesFile(path, sections, shape, dtype.newbyteorder(file.byteorder), unit, size, ome, uuid)


def _shape(file: tifffile.TiffFile, path: Path) -> tuple[tuple[int, ...], np.dtype[Any] | None]:
    # ImageJ writes a large stack as one page and the rest of it, without pages, behind that.
    images = (file.imagej_metadata or {}).get("images", 1)
    series = file.series
    if images > max(len(file.pages), math.prod(series[0].shape[:-2])):
        raise UnreadableError(f"{path} is cut off: it has not all of its pages; copy it again")
    _expect_grey(file.pages.first, path)
    if len(series) != 1:
        sizes = sorted({tuple(one.shape) for one in series})
        raise ShapeError(f"{path} has pages of different sizes or types {sizes}; expected sections of one size")
    shape, axes = tuple(series[0].shape), series[0].axes
    if not axes.endswith("YX") or len(shape) > 3:
        raise ShapeError(f"{path} has the shape {shape} with axes {axes}, expected (z, y, x) of one channel")
    if len(shape) == 3 and axes[0] in "CT":
        log.warning(ANOTHER_AXIS, path, axes[0])
    return shape, series[0].dtype


def _ome_shape(file: tifffile.TiffFile, path: Path) -> tuple[tuple[int, ...], np.dtype[Any] | None]:
    kinds = {}
    for page in file.pages:
        _expect_grey(page, path)
        kinds[(page.shape, page.dtype)] = page
    if len(kinds) > 1:
        raise ShapeError(f"{path} has pages of different sizes or types {list(kinds)}; expected sections of one size")
    ((shape, dtype),) = kinds
    if len(shape) != 2:
        raise ShapeError(f"{path} has pages of the shape {shape}, expected sections (y, x)")
    return shape, dtype


def _expect_grey(page: Any, path: Path) -> None:
    if page.samplesperpixel != 1:
        raise ShapeError(
            f"{path} has {page.samplesperpixel} values per pixel ({page.photometric.name}), expected one: make it "
            "grey, or save one channel"
        )


def _white(page: Any, path: Path) -> int | None:
    """Return the value that is stored for black where 0 is white."""
    if page.photometric != tifffile.PHOTOMETRIC.MINISWHITE:
        return None
    if page.dtype is None or page.dtype.kind not in "bu":
        raise ShapeError(f"{path} has {page.dtype} for which 0 is white (MinIsWhite): save it with 0 for black")
    return int(2**page.bitspersample - 1)


def _sections(file: tifffile.TiffFile, path: Path, shape: Sequence[int]) -> tuple[Section, ...]:
    start, size = file.series[0].dataoffset, file.filehandle.size
    if start is None:
        return _pages(file, path, shape[0])
    step = int(np.prod(shape[1:])) * np.dtype(file.series[0].dtype).itemsize
    if start + step * shape[0] > size:
        raise UnreadableError(f"{path} is cut off: {size} bytes, expected {start + step * shape[0]}; copy it again")
    white = _white(file.pages.first, path)
    return tuple(Section(path, k, start + step * k, white) for k in range(shape[0]))


def _pages(file: tifffile.TiffFile, path: Path, wanted: int | None = None) -> tuple[Section, ...]:
    size, found = file.filehandle.size, []
    for number, page in enumerate(file.pages):
        end = max(o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True))
        if end > size:
            raise UnreadableError(f"{path} is cut off: {size} bytes, but page {number} ends at {end}; copy it again")
        start = page.dataoffsets[0] if page.is_memmappable else None
        found.append(Section(path, number, start, _white(page, path)))
    if wanted is not None and len(found) != wanted:
        raise UnreadableError(f"{path} has {len(found)} pages, but says {wanted} sections; it is damaged")
    return tuple(found)


def _dangling(file: tifffile.TiffFile) -> bool:
    """Return whether the last page that was found points to one that is not there."""
    form, handle = file.tiff, file.filehandle
    handle.seek(file.pages[-1].offset)
    (tags,) = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))
    handle.seek(tags * form.tagsize, 1)
    link = handle.read(form.offsetsize)
    return len(link) < form.offsetsize or struct.unpack(form.offsetformat, link)[0] != 0


def _voxel_size(file: tifffile.TiffFile) -> VoxelSize | None:
    imagej = file.imagej_metadata
    if imagej is not None and "spacing" in imagej:
        unit = nm_per(imagej.get("unit"))
        tags = file.pages.first.tags
        if unit is None or "XResolution" not in tags or "YResolution" not in tags:
            return None
        x, y = (tags[name].value for name in ("XResolution", "YResolution"))
        if not all((*x, *y)):
            return None
        return (imagej["spacing"] * unit, y[1] / y[0] * unit, x[1] / x[0] * unit)
    return None
