"""Pages of TIFF files as an array of sections.

Only what a region needs is read: sections stored in one piece are mapped into memory, of compressed ones
only the strips or tiles that meet the region are decoded.
"""

from __future__ import annotations

import lzma
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray

from kdseg.errors import ShapeError, UnreadableError
from kdseg.geometry import Slices, Triple, VoxelSize

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
    """Place of one section.

    Attributes:
        path: of its file.
        page: number of its page there.
        start: first byte, if it is stored in one piece.
        white: value that is stored for black; None: 0, as usual.
    """

    path: Path
    page: int
    start: int | None
    white: int | None = None


@dataclass(frozen=True)
class TiffStack:
    """An array of sections that reads what it is asked for; it holds no open file.

    Attributes:
        sections: one per z; None is one of zeros.
        shape: (z, y, x).
        dtype: of the voxels, in the byte order of the files.
        unit: (y, x) of one strip or tile, the least that can be read.
        voxel_size: nm, (z, y, x), if ImageJ or OME metadata give all three.
        numbers: of the sections, if names or metadata number them.
    """

    sections: tuple[Section | None, ...]
    shape: Triple
    dtype: np.dtype[Any]
    unit: tuple[int, int]
    voxel_size: VoxelSize | None
    numbers: tuple[Fraction, ...] | None = None

    def __getitem__(self, key: Slices) -> NDArray[Any]:
        """Return the voxels of three slices of step 1.

        Raises:
            UnreadableError: if a section is damaged.
        """
        z, y, x = (range(n)[s] for n, s in zip(self.shape, key, strict=True))
        out = np.zeros((len(z), len(y), len(x)), self.dtype)
        wanted = [(section, out[k]) for k, section in enumerate(self.sections[z.start : z.stop]) if section is not None]
        pending: dict[Path, list[tuple[Section, NDArray[Any]]]] = {}
        for section, into in wanted:
            if section.start is None:
                pending.setdefault(section.path, []).append((section, into))
                continue
            with readable(section.path):
                into[...] = np.memmap(section.path, self.dtype, "r", section.start, self.shape[1:])[key[1:]]
        for path, there in pending.items():
            with readable(path), tifffile.TiffFile(path) as file:
                for section, into in there:
                    _decode(file.pages[section.page], y, x, into)
        for section, into in wanted:
            if section.white is not None:
                into[...] = ~into if into.dtype.kind == "b" else section.white - into
        return out


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


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Report what tifffile says of a file that it cannot read, in words that say what to do.

    Raises:
        UnreadableError: if it cannot.
    """
    try:
        yield
    except (ShapeError, UnreadableError):
        raise
    except _DAMAGE as error:
        hint = "pip install imagecodecs" if "imagecodecs" in str(error) else "it is damaged or no TIFF; copy it again"
        raise UnreadableError(f"cannot read {path}: {error}: {hint}") from error
