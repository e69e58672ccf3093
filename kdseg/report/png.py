"""PNG of small 2D arrays (ISO/IEC 15948): greyscale, or a palette with transparency."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import ShapeError


def encode(image: NDArray[np.uint8], palette: NDArray[np.uint8] | None = None) -> bytes:
    """Return an image as the bytes of a PNG file.

    Args:
        image: uint8 (height, width): grey values, or numbers of colours in ``palette``.
        palette: uint8 (n, 4), red, green, blue, opacity; at most 256 colours.

    Raises:
        ShapeError: if the image is not 2D or empty, or the palette is not (n, 4) with 1 to 256 colours.
    """
    if image.ndim != 2 or not image.size:
        raise ShapeError(f"expected an image (height, width) of at least one pixel, got {image.shape}")
    if palette is not None and (palette.ndim != 2 or palette.shape[1] != 4 or not 1 <= len(palette) <= 256):
        raise ShapeError(f"expected a palette (n, 4) of at most 256 colours, got {palette.shape}")
    height, width = image.shape
    # Grey values compress better as differences to the left neighbour (filter 1), flat colours as they are.
    lines = np.zeros((height, width + 1), np.uint8)
    lines[:, 1:] = image
    if palette is None:
        lines[:, 0] = 1
        lines[:, 2:] = image[:, 1:] - image[:, :-1]
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if palette is None else 3, 0, 0, 0)
    chunks = [(b"IHDR", header)]
    if palette is not None:
        chunks += [(b"PLTE", palette[:, :3].tobytes()), (b"tRNS", palette[:, 3].tobytes())]
    chunks += [(b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def data_uri(png: bytes) -> str:
    """Return a PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
