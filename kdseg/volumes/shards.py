"""Size and CRC-32 of each file of a volume: kept beside it, and compared before a file is used.

A volume `x.zarr` of a finished stage has a table `x.checksums.npz`, with two arrays for each resolution level, of one
element per shard: ``size_0`` in bytes, -1 where nothing was written, which reads as 0, and ``crc32_0``. The checksums
are made while what is written is in memory, and come with the blocks that are done. Volumes in buckets have no table.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import UnreadableError
from kdseg.geometry import Triple
from kdseg.results.files import CHECKSUMS, again
from kdseg.results.tables import read_table

SHARD = np.dtype([("size", "<i8"), ("crc32", "<u4")])
"""Size of a file in bytes, and its CRC-32.

Not CRC-32C: zarr ends chunks and indices with it, and the CRC of what ends with its own CRC is the same whatever it is:
any shard could stand for another."""
UNWRITTEN = -1
"""Size of a file that is not there, since all its voxels are 0."""
_PIECE = 2**20
"""Bytes of a file that are in memory at a time: few enough for the cache of a core."""
_TABLES = 16
"""Tables that are kept in memory."""
_sound: dict[Path, tuple[int, int, int]] = {}
"""Files that were compared by this process, as they were then: inode, size and time of the last change."""


def checksums(store: Path, level: int, grid: Triple) -> NDArray[np.void] | None:
    """Return what is known of the files of one resolution level, (z, y, x) of `SHARD`; None if nothing is.

    Args:
        store: the volume.
        level: of its resolutions.
        grid: number of files along each axis.

    Raises:
        UnreadableError: if the table is damaged, or of another volume.
    """
    path = store.with_suffix(CHECKSUMS)
    try:
        changed = path.stat().st_mtime_ns
    except FileNotFoundError:
        return None
    found = _levels(path, changed).get(level)
    if found is None or found.shape != grid:
        raise UnreadableError(f"{path} is not of {store}, whose level {level} has {grid} files; {_again(path)}")
    return found


@lru_cache(maxsize=_TABLES)
def _levels(path: Path, _changed: int) -> dict[int, NDArray[np.void]]:
    columns, found = read_table(path), dict[int, NDArray[np.void]]()
    level = 0
    while (size := columns.get(f"size_{level}")) is not None:
        found[level] = np.empty(size.shape, SHARD)
        found[level]["size"], found[level]["crc32"] = size, columns[f"crc32_{level}"]
        level += 1
    return found


def expect_sound(file: Path, said: np.void) -> None:
    """Refuse a file that is not the one that was written; each is read once in a process, unless it changes.

    Args:
        file: with one shard.
        said: a record of `SHARD`.

    Raises:
        UnreadableError: if it is gone, or another one, or damaged.
    """
    try:
        facts = file.stat()
    except FileNotFoundError:
        if said["size"] == UNWRITTEN:
            return
        raise UnreadableError(f"{file} is gone since it was written; {_again(file)}") from None
    now = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
    if _sound.get(file) != now:
        if wrong := difference(file, said):
            raise UnreadableError(f"{file} {wrong}; {_again(file)}")
        _sound[file] = now


def difference(file: Path, said: np.void) -> str | None:
    """Return what is wrong with a file that should be as it was written; None if it is so."""
    try:
        found = file.stat().st_size
        if said["size"] == UNWRITTEN:
            return "was not written by the stage: all voxels there are 0"
        if found != said["size"]:
            return f"has {found} bytes, {said['size']} were written"
        checksum = 0
        with file.open("rb", buffering=0) as opened:
            while piece := opened.read(_PIECE):
                checksum = zlib.crc32(piece, checksum)
    except FileNotFoundError:
        return None if said["size"] == UNWRITTEN else "is gone since it was written"
    except OSError as error:
        return f"cannot be read: {error}"
    if checksum != said["crc32"]:
        return f"is damaged or another one: its CRC-32 is {checksum:08x}, {said['crc32']:08x} was written"
    return None


def _again(path: Path) -> str:
    store = next((one for one in path.parents if one.suffix == ".zarr"), path.with_suffix("").with_suffix(".zarr"))
    return again(store.with_suffix(".json"))
