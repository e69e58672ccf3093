"""Zarr in one file: `.zarr.zip`, and OME-Zarr's `.ozx`, which are read in place, never written."""

from __future__ import annotations

import os
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import StorePath, ZipStore

from kdseg.config.addresses import locate
from kdseg.errors import UnreadableError

MOST = 2**28
"""Bytes of a packed file in it. Those of zarr should be stored as they are, of which parts can be read."""
_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Ways to pack of which Python unpacks no more than it is asked for."""
_DAMAGE = (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""Errors of a damaged file, and of those that are encrypted or packed in a way that Python does not know."""


class Zipped(ZipStore):
    """A zip file of a zarr.

    Raises:
        UnreadableError: if it is damaged, or a file in it is empty or unpacks to more than `MOST` bytes.
    """

    def __str__(self) -> str:
        return str(self.path)

    def _sync_open(self) -> None:
        try:
            super()._sync_open()
        except _DAMAGE as error:
            raise UnreadableError(
                f"cannot open {self.path}: {error}; it is damaged or no zip: copy it again"
            ) from error

    def _get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        if not self._is_open:
            self._sync_open()
        there = self._zf.NameToInfo.get(key)
        if there is None:
            return None
        if not there.file_size:
            raise UnreadableError(f"{self.path}/{key} is empty: zip it again")
        if there.compress_type not in _BOUNDED or (there.compress_type and there.file_size > MOST):
            raise UnreadableError(
                f"{self.path}/{key} is packed, and unpacks to {there.file_size} bytes, expected deflate and no more "
                f"than {MOST}: unpack it, or zip it again without compression (zip -0)"
            )
        if not there.compress_type and there.file_size > Path(self.path).stat().st_size:
            raise UnreadableError(
                f"{self.path}/{key} is said to have {there.file_size} bytes, more than all of the file: copy it again"
            )
        try:
            start, stop = _range(byte_range, there.file_size)
            with self._zf.open(there) as file:
                file.seek(start)
                # a size, however large: without one, Python unpacks all before it looks at what it is said to have
                return prototype.buffer.from_bytes(file.read(stop - start))
        except _DAMAGE as error:
            said = str(error) or type(error).__name__
            raise UnreadableError(f"cannot read {self.path}/{key}: {said}; it is damaged: copy it again") from error


def _range(wanted: ByteRequest | None, size: int) -> tuple[int, int]:
    """Return the first byte of a part of a file, and that behind the last one."""
    if isinstance(wanted, RangeByteRequest):
        return wanted.start, min(wanted.end, size)
    if isinstance(wanted, OffsetByteRequest):
        return wanted.offset, size
    return (0 if wanted is None else max(0, size - wanted.suffix)), size


def zipped(path: Path | str) -> StorePath | None:
    """Return the place in a zip file that a path leads to; None if it is not in one, or a URL.

    Raises:
        UnreadableError: if the file is damaged, or the path leads out of it.
    """
    file, member, hdf5 = locate(str(path))
    if isinstance(path, str) or hdf5 or not is_zipped(file) or not file.is_file():
        return None
    facts = file.stat()
    store = _opened(file, (facts.st_ino, facts.st_size, facts.st_mtime_ns), os.getpid())
    try:
        return StorePath(store, member.strip("/"))
    except ValueError as error:
        raise UnreadableError(f"{path} is no place in {file}: {error}; leave out `.` and `..`") from error


@lru_cache(maxsize=4)
def _opened(file: Path, _: tuple[int, int, int], __: int) -> Zipped:
    """Return an open zip file, whose list of files takes a second to read if there are 100,000.

    Args:
        file: path.
        _: inode, size and time, after which it would be another one.
        __: id of the process: forks would share the place in the file.
    """
    store = Zipped(file)
    store._sync_open()  # zarr opens what it makes itself only
    return store


def is_zipped(path: Path) -> bool:
    """Return whether a file is a zipped zarr, by its name."""
    return path.name.lower().endswith((".zarr.zip", ".ozx"))


def top(place: StorePath) -> list[str]:
    """Return the names at the top of a zip file, for messages."""
    with zipfile.ZipFile(str(place.store)) as file:
        return sorted({name.partition("/")[0] for name in file.namelist()})
