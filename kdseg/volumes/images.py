"""Stacks of PNG or JPEG sections: a folder of them, or one; each file is one grey image.

Files are read by Pillow's readers of these two formats, not by `PIL.Image.open`: that would take any format behind any
ending, and refuses images of more than 179 million pixels, which sections have.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from kdseg.config.data import SectionsOptions
from kdseg.errors import KdsegError, ShapeError, UnreadableError
from kdseg.geometry import Slices, Triple
from kdseg.volumes.decoding import expect_small_chunks
from kdseg.volumes.section_files import JPEG, PNG
from kdseg.volumes.sections import in_order

_READERS: dict[str, type[ImageFile]] = {PNG: PngImageFile, JPEG: JpegImageFile}
_TYPES = {"1": np.dtype(bool), "L": np.dtype(np.uint8), "P": np.dtype(np.uint8), "I;16": np.dtype(np.uint16)}
"""Types by Pillow's modes; of a palette (P) the indices are taken."""
_ORIENTATION = 0x0112
"""EXIF tag of how an image is to be turned; 1: not at all."""
_DEPTH = 24
"""Byte of a PNG file that says its bits per value."""
_SCALED = (2, 4)
"""Bits of grey values that Pillow would scale to 8."""


@dataclass(frozen=True)
class ImageStack:
    """An array of sections that reads what it is asked for; it holds no open file.

    Attributes:
        kind: `PNG` or `JPEG`.
        files: one per z; None is a section of zeros.
        shape: (z, y, x).
        dtype: of the voxels.
        numbers: of the sections, if names number them.
    """

    kind: str
    files: tuple[Path | None, ...]
    shape: Triple
    dtype: np.dtype[Any]
    numbers: tuple[Fraction, ...] | None = None

    def __getitem__(self, key: Slices) -> NDArray[Any]:
        """Return the voxels of three slices of step 1; each section is decoded as a whole.

        Raises:
            UnreadableError: if a section is damaged.
        """
        z, y, x = (range(n)[s] for n, s in zip(self.shape, key, strict=True))
        out = np.zeros((len(z), len(y), len(x)), self.dtype)
        for path, into in zip(self.files[z.start : z.stop], out, strict=True):
            if path is not None:
                with _opened(path, self.kind) as image:
                    into[...] = np.asarray(image)[key[1:]]
        return out


def open_images(kind: str, files: Sequence[Path], options: SectionsOptions) -> ImageStack:
    """Open sections, whose order is that of `kdseg.volumes.sections`.

    Args:
        kind: `PNG` or `JPEG`.
        files: one or more.
        options: order and gaps.

    Raises:
        ShapeError: if the sections differ in size or type, or are not grey, or their order is not clear.
        UnreadableError: if a file is damaged or of another kind.
    """
    facts = {path: _facts(path, kind) for path in files}
    first, (size, dtype) = next(iter(facts.items()))
    for path, (its_size, its_dtype) in facts.items():
        if (its_size, its_dtype) != (size, dtype):
            raise ShapeError(
                f"{path} is {its_dtype} {its_size}, but {first} is {dtype} {size}; all sections need one size and "
                "type: pad or crop them"
            )
    ordered = in_order(files, options)
    return ImageStack(kind, ordered.files, (len(ordered.files), *size), dtype, ordered.numbers)


def _facts(path: Path, kind: str) -> tuple[tuple[int, int], np.dtype[Any]]:
    """Return size (y, x) and type of one section, from the head of its file."""
    with _opened(path, kind) as image:
        width, height = image.size
        dtype = _TYPES.get(image.mode)
        if dtype is None:
            raise ShapeError(
                f"{path} has several values per pixel ({image.mode}), expected one: make it grey, or save one channel"
            )
        if (images := getattr(image, "n_frames", 1)) > 1:
            raise ShapeError(f"{path} has {images} images, expected one section: save each by itself")
        turned = image.getexif().get(_ORIENTATION, 1) if "exif" in image.info else 1
        if turned != 1:
            raise ShapeError(f"{path} is to be turned when it is shown (EXIF orientation {turned}): save it upright")
    if kind == PNG and image.mode == "L" and (bits := _bits(path)) in _SCALED:
        raise ShapeError(f"{path} has {bits} bits per pixel, expected 1, 8 or 16: save it with 8")
    expect_small_chunks(str(path), {"the image": width * height * dtype.itemsize})
    return (height, width), dtype


def _bits(path: Path) -> int:
    with path.open("rb") as file:
        return file.read(_DEPTH + 1)[-1]


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[ImageFile]:
    """Open an image, and say what is wrong with one that cannot be read."""
    try:
        with _READERS[kind](path) as image:
            yield image
    except KdsegError:
        raise
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error) as error:
        raise UnreadableError(f"cannot read {path}: {error}; it is damaged or no {kind}: copy it again") from error
