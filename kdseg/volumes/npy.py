"""Arrays of NumPy in files, `.npy`, mapped into memory: nothing but what is asked for is read.

The format has no place for names of axes, voxel size and position.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from kdseg.errors import DataError, UnreadableError
from kdseg.geometry import triple
from kdseg.volumes.axes import Layout, layout
from kdseg.volumes.foreign import ForeignArray
from kdseg.volumes.metadata import Place

_DAMAGE = (OSError, ValueError, TypeError, SyntaxError, OverflowError, TokenError, RecursionError, MemoryError)
"""Errors of damaged files; the last two are of Python's parser, whose stack a header may exceed."""


@dataclass(frozen=True)
class NpyArray(ForeignArray):
    """An array in a file.

    Attributes:
        path: of the file.
        layout: which axes of the array are (c,) z, y, x.
    """

    path: Path
    layout: Layout

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return the values of a box; see `ForeignArray`."""
        return np.array(self.layout.read(_mapped(self.path), key))


def open_npy(path: Path, *, single: bool) -> NpyArray:
    """Open an array, whose axes are (c,) z, y, x.

    Args:
        path: of the file.
        single: take (z, y, x) of one channel, not (c, z, y, x).

    Raises:
        DataError: if it holds other values than numbers; Python objects, which could run code, among them.
        ShapeError: if it has other axes.
        UnreadableError: if it is damaged or no `.npy`, or holds more than one array.
    """
    array = _mapped(path)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path} holds {array.dtype}, expected integers, floats or bools: convert it")
    if (size := path.stat().st_size) > (end := array.offset + array.nbytes):
        raise UnreadableError(f"{path} has {size} bytes, but its array ends at {end}: save one array in each file")
    order = layout(array.shape, {}, str(path), single=single)
    # what lies in one piece: a row, or in Fortran's order a column
    rows = order.of([*(1 for _ in array.shape[:-1]), array.shape[-1]], 1)
    columns = order.of([array.shape[0], *(1 for _ in array.shape[1:])], 1)
    unit = rows if array.flags.c_contiguous else columns
    return NpyArray(order.of(array.shape, 1), array.dtype, Place(), triple(unit[-3:]), path, order)


def _mapped(path: Path) -> np.memmap[Any, np.dtype[Any]]:
    try:
        return open_memmap(path, mode="r")
    except _DAMAGE as error:
        if "Python objects" in str(error):
            raise DataError(
                f"{path} holds Python objects, which could run code when they are read: save numbers, "
                "with numpy.save(…, allow_pickle=False)"
            ) from error
        said = str(error) or type(error).__name__
        raise UnreadableError(f"cannot read {path}: {said}; it is cut off, damaged or no .npy: copy it") from error
