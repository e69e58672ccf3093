"""Size and CRC-32 of each file of a volume: kept beside it, and compared before a file is used.

A volume `x.zarr` of a finished stage has a table `x.checksums.npz`, with two arrays for each resolution level, of one
element per shard: ``size_0`` in bytes, -1 where nothing was written, which reads as 0, and ``crc32_0``. The checksums
are made while what is written is in memory, and come with the blocks that are done. For a volume in a bucket the table
lies beside the link to it, and has a third array, ``etag_0``: see `kdseg.volumes.stores`.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import UnreadableError
from kdseg.geometry import Triple
from kdseg.results import remote
from kdseg.results.files import CHECKSUMS, again
from kdseg.results.tables import read_table

SHARD = np.dtype([("size", "<i8"), ("crc32", "<u4")])
"""Size of a file in bytes, and its CRC-32.

Not CRC-32C: zarr ends chunks and indices with it, and the CRC of what ends with its own CRC is the same whatever it is:
any shard could stand for another."""
OBJECT = np.dtype([*SHARD.descr, ("etag", "<u4")])
"""The same of an object in a bucket, and the CRC-32 of the ETag that the bucket gave it; 0 if it gave none."""
UNWRITTEN = -1
"""Size of a file that is not there, since all its voxels are 0."""
_PIECE = 2**20
"""Bytes of a file that are in memory at a time: few enough for the cache of a core."""
_TABLES = 16
"""Tables that are kept in memory."""
_sound: dict[Path, tuple[int, int, int]] = {}
"""Files that were compared by this process, as they were then: inode, size and time of the last change."""


def checksums(store: Path, level: int, grid: Triple) -> NDArray[np.void] | None:
    """Return what is known of the files of one resolution level, (z, y, x) of `SHARD` or `OBJECT`; None if nothing is.

    Args:
        store: the volume, or the link to it.
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
        raise UnreadableError(f"{path} is not of {store}, whose level {level} has {grid} files; {cure(path)}")
    return found


def known_levels(store: Path) -> int:
    """Return of how many resolution levels of a volume the files are known, none without its table."""
    path = store.with_suffix(CHECKSUMS)
    return len(_levels(path, path.stat().st_mtime_ns)) if path.exists() else 0


@lru_cache(maxsize=_TABLES)
def _levels(path: Path, _changed: int) -> dict[int, NDArray[np.void]]:
    columns, found = read_table(path), dict[int, NDArray[np.void]]()
    level = 0
    while (size := columns.get(f"size_{level}")) is not None:
        found[level] = np.empty(size.shape, OBJECT if f"etag_{level}" in columns else SHARD)
        for name in found[level].dtype.names or ():
            found[level][name] = columns[f"{name}_{level}"]
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
        if wrong := wrong_size(UNWRITTEN, said):
            raise UnreadableError(f"{file} {wrong}; {cure(file)}") from None
        return
    now = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
    if _sound.get(file) != now:
        if wrong := difference(file, said):
            raise UnreadableError(f"{file} {wrong}; {cure(file)}")
        _sound[file] = now


def difference(file: Path | str, said: np.void) -> str | None:
    """Return what is wrong with a file, or with an object by its URL; None if it is as it was written."""
    checksum = 0
    if isinstance(file, str):
        data = remote.content(file)
        size = UNWRITTEN if data is None else len(data)
        return wrong_size(size, said) or (None if data is None else wrong_sum(zlib.crc32(data), said))
    try:
        size = file.stat().st_size if file.exists() else UNWRITTEN
        if (wrong := wrong_size(size, said)) or size == UNWRITTEN:
            return wrong
        with file.open("rb", buffering=0) as opened:
            while piece := opened.read(_PIECE):
                checksum = zlib.crc32(piece, checksum)
    except OSError as error:
        return f"cannot be read: {error}"
    return wrong_sum(checksum, said)


def wrong_size(size: int, said: np.void) -> str | None:
    """Return what is wrong with a file of ``size`` bytes, `UNWRITTEN` if it is not there; None if nothing is."""
    if size == said["size"]:
        return None
    if said["size"] == UNWRITTEN:
        return "was not written by the stage: all voxels there are 0"
    if size == UNWRITTEN:
        return "is gone since it was written"
    return f"has {size} bytes, {said['size']} were written"


def wrong_sum(checksum: int, said: np.void) -> str | None:
    """Return what is wrong with a file of some CRC-32; None if nothing is."""
    if checksum == said["crc32"]:
        return None
    return f"is damaged or another one: its CRC-32 is {checksum:08x}, {said['crc32']:08x} was written"


def cure(path: Path | None) -> str:
    """Return what to do about a path of a volume, or below it, or of its table; None is somebody else's volume."""
    if path is None:
        return "copy or compute it again"
    parts = (path, *path.parents)
    store = next((one for one in parts if one.suffix == ".zarr"), path.with_suffix("").with_suffix(".zarr"))
    return again(store.with_suffix(".json"))
