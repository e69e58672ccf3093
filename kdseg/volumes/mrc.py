"""MRC, of electron microscopes and IMOD, mapped into memory by mrcfile, which is optional.

Its header says the order of axes and the size of voxels. Where a volume lies it says in two ways, whose sign programs
differ in: it is taken for not said.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import DataError, KdsegError, MissingError, UnreadableError
from kdseg.geometry import triple
from kdseg.volumes.axes import Layout, layout
from kdseg.volumes.foreign import ForeignArray
from kdseg.volumes.metadata import TO_NM, Place

ENDINGS = (".mrc", ".rec", ".st", ".map")
_AXES = {1: "x", 2: "y", 3: "z"}
_IMOD = (b"IMOD", b"DOMI")
"""Stamp of IMOD, in either order of bytes, and its place among what the format leaves to programs."""
_STAMP, _FLAGS = slice(40, 44), slice(44, 48)
_HEAD, _NSYMBT, _MACHST = 1024, slice(92, 96), slice(212, 213)
"""Bytes of the header, and in it the length of an extended one, and the stamp that says the order of bytes."""
_SIGNED = 1
"""Flag of IMOD: bytes are signed, as the format has them; without it they are not."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MrcArray(ForeignArray):
    """A volume in a file.

    Attributes:
        path: of the file.
        layout: which axes of the array are z, y, x.
    """

    path: Path
    layout: Layout

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return the values of a box; see `ForeignArray`."""
        with _mapped(self.path) as file:
            return np.array(self.layout.read(file.data, key)).view(self.dtype)


def open_mrc(path: Path, *, single: bool) -> MrcArray:
    """Open a volume.

    Args:
        path: of the file.
        single: take (z, y, x); the format has no channels, but stacks of volumes.

    Raises:
        DataError: if it holds complex numbers.
        MissingError: if mrcfile is not installed.
        UnreadableError: if it is damaged or no MRC.
        ShapeError: if it has other axes.
    """
    if find_spec("mrcfile") is None:
        raise MissingError(
            f"{path} is MRC, which mrcfile reads, and that is not installed: pip install 'kdseg[mrc]', or pip install "
            "mrcfile"
        )
    with _mapped(path) as file:
        head, shape, dtype = file.header, file.data.shape, file.data.dtype
        if dtype.kind == "c":
            raise DataError(f"{path} holds {dtype}, expected integers or floats: it is a Fourier transform")
        axes = [_AXES.get(int(head[name]), "?") for name in ("maps", "mapr", "mapc")]
        names = {} if axes == ["?"] * 3 else {"MAPC, MAPR and MAPS": [*("" for _ in shape[:-3]), *axes[-len(shape) :]]}
        order = layout(shape, names, str(path), single=single)
        sizes = [_size(head, name) for name in "zyx"]
        places = [float(v) for v in (*head.origin.item(), head.nxstart, head.nystart, head.nzstart)]
        if dtype == np.int8 and _unsigned(head):
            dtype = np.dtype(np.uint8)
    if any(places):
        log.warning("%s says a place, which programs do not agree on: it is not read, set `offset` if it counts", path)
    # pixels of 1 Å in all directions are what programs write that do not know better
    known = all(sizes) and sizes != [1.0] * 3
    size = triple(v * TO_NM["angstrom"] for v in sizes) if known else None
    unit = order.of([*(1 for _ in shape[:-1]), shape[-1]], 1)
    return MrcArray(order.of(shape, 1), dtype, Place(size), triple(unit[-3:]), path, order)


def _size(head: Any, axis: str) -> float:
    """Return the size of voxels along an axis in Å; 0 if it is not said."""
    steps = int(head[f"m{axis}"])
    return round(float(head.cella[axis]) / steps, 6) if steps > 0 else 0.0


def _unsigned(head: Any) -> bool:
    """Return whether bytes are those of IMOD, which are not signed unless it says so."""
    left = bytes(head.extra2.item())
    flags = int.from_bytes(left[_FLAGS], "little" if left[_STAMP] == _IMOD[0] else "big")
    return left[_STAMP] in _IMOD and not flags & _SIGNED


def _expect_short_header(path: Path) -> None:
    """Refuse an extended header that the file is too short for: mrcfile takes the memory of it before it reads it."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    # in the order of bytes of the file, by its stamp
    extended = int.from_bytes(head[_NSYMBT], "big" if head[_MACHST] == b"\x11" else "little", signed=True)
    if not 0 <= extended <= max(0, path.stat().st_size - _HEAD):
        raise ValueError(f"it has {path.stat().st_size} bytes, but its header says one of {extended} more")


@contextmanager
def _mapped(path: Path) -> Iterator[Any]:
    mrcfile: Any = import_module("mrcfile")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # of files that are larger than their header says
            _expect_short_header(path)
            file = mrcfile.mmap(path, mode="r")
        with file:
            yield file
    except KdsegError:
        raise
    except (OSError, ValueError, TypeError, RuntimeWarning) as error:
        raise UnreadableError(f"cannot read {path}: {error}; it is cut off, damaged or no MRC: copy it") from error
