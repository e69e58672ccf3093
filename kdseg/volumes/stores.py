"""Stores of zarr that know what was written to them, and compare what is read of a bucket.

A folder is compared file by file before it is read (`kdseg.volumes.shards`). An object in a bucket is compared while it
is read: if all of it is read, by its CRC-32. Beside the first part of it that a process reads, another request asks
whether it has the size and the ETag that the bucket gave it when it was written. Where the ETag is another one, as of a
copy, all of the object is read for its CRC-32. Flipped bits of a part are found by the CRC-32C of its chunk, and an
object that is not there whenever it is read.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import zarr
from zarr import AsyncArray
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, LocalStore, StorePath, WrapperStore

from kdseg.errors import UnreadableError
from kdseg.results import remote
from kdseg.volumes.absent import expect_absent
from kdseg.volumes.shards import UNWRITTEN, cure, wrong_size, wrong_sum

_sound = dict[str, bytes]()
"""Objects that this process has compared, with what was known of them then."""


class Folder(LocalStore):
    """A folder that knows size and CRC-32 of what was written to it, from when that was in memory.

    Links to nothing are refused, which zarr reads as zeros.
    """

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self.written: dict[str, tuple[int, ...]] = {}

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return a file, or a part of it."""
        data = await super().get(key, prototype, byte_range)
        if data is None:
            expect_absent(self.root / key, self.root)
        return data

    async def set(self, key: str, value: Buffer) -> None:
        """Write a file."""
        self.written[key] = len(value), zlib.crc32(value.as_buffer_like())
        await super().set(key, value)

    async def delete(self, key: str) -> None:
        """Delete a file."""
        self.written[key] = UNWRITTEN, 0
        await super().delete(key)


class Bucket(FsspecStore):
    """Objects below a URL; of those that were written it knows size, CRC-32 and ETag.

    Attributes:
        link: path that was opened, a link to the bucket or below one, beside which the checksums are; None of a URL.
        written: by the key of an object, see `kdseg.volumes.shards.OBJECT`.
    """

    link: Path | None = None
    written: dict[str, tuple[int, ...]]

    @classmethod
    def at(cls, url: str, link: Path | None) -> Self:
        """Return what lies at a URL."""
        store = cast("Self", cls.from_url(url, storage_options=remote.OPTIONS))
        store.link, store.written = link, {}
        return store

    @property
    def url(self) -> str:
        """URL of the store, without passwords."""
        return str(self.fs.unstrip_protocol(self.path))

    async def set(self, key: str, value: Buffer, byte_range: tuple[int, int] | None = None) -> None:
        """Write an object, and ask for it."""
        await super().set(key, value, byte_range)
        size, etag = await self.facts(key)
        if size != len(value):
            raise UnreadableError(f"{self.url}/{key} has {size} bytes after {len(value)} were written: run it again")
        self.written[key] = size, zlib.crc32(value.as_buffer_like()), etag

    async def delete(self, key: str) -> None:
        """Delete an object."""
        await super().delete(key)
        self.written[key] = UNWRITTEN, 0, 0

    async def facts(self, key: str) -> tuple[int, int]:
        """Return size in bytes of an object, and what is kept of its ETag; `UNWRITTEN` if it is not there."""
        try:
            found = await self.fs._info(f"{self.path}/{key}")
        except FileNotFoundError:
            return UNWRITTEN, 0
        return (int(found["size"]), remote.etag(found)) if found["type"] == "file" else (UNWRITTEN, 0)


class Unread(WrapperStore[Store]):
    """A store of which nothing is read: zarr reads what lies there, damaged or not, before it writes all of it."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return nothing."""
        return None


class Compared(WrapperStore[Bucket]):
    """A bucket of which no object is read that is empty, or not the one that was written, where that is known."""

    def __init__(self, store: Bucket, said: Mapping[str, np.void]) -> None:
        super().__init__(store)
        self.said = said

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return an object, or a part of it."""
        said, url = self.said.get(key), f"{self._store.url}/{key}"
        reading = self._store.get(key, prototype, byte_range)
        wrong: str | None = None
        if said is None or byte_range is None or said["size"] == UNWRITTEN or _sound.get(url) == said.tobytes():
            data = await reading
        else:
            data, wrong = await asyncio.gather(reading, self._difference(key, said))
            if wrong is None:
                _sound[url] = said.tobytes()
        if said is not None and wrong is None:
            wrong = _wrong(data, said, whole=byte_range is None)
        if data is not None and not len(data):
            wrong = "is empty"
        if wrong is not None:
            raise UnreadableError(f"{url} {wrong}; {cure(self._store.link)}")
        return data

    async def _difference(self, key: str, said: np.void) -> str | None:
        """Return what is wrong with an object that should be as it was written; None if it is so."""
        size, etag = await self._store.facts(key)
        if (wrong := wrong_size(size, said)) or (etag and etag == said["etag"]):
            return wrong
        return wrong_sum(zlib.crc32(await self._store.fs._cat_file(f"{self._store.path}/{key}")), said)


def store_at(where: str | Path, address: str | Path) -> Bucket | Folder:
    """Return the store at a path or a URL.

    Args:
        where: path or URL.
        address: that led there, perhaps a link.
    """
    if isinstance(where, Path):
        return Folder(where)
    return Bucket.at(where, None if remote.is_remote(address) else Path(address))


def reaching(where: str | Path) -> AbstractContextManager[None]:
    """Return the context in which a URL is reached; of a path, one that does nothing."""
    return remote.reaching(where) if isinstance(where, str) else nullcontext()


def through(store: Store, array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Return an array as another store has it."""
    other: AsyncArray[Any] = AsyncArray(array.metadata, StorePath(store, array.path), array.config)
    return zarr.Array[Any](other)


def _wrong(data: Buffer | None, said: np.void, *, whole: bool) -> str | None:
    """Return what is wrong with an object, of which ``data`` was read; None if nothing is."""
    if data is None or said["size"] == UNWRITTEN:
        return wrong_size(UNWRITTEN if data is None else len(data), said)
    if not whole:
        return None
    return wrong_size(len(data), said) or wrong_sum(zlib.crc32(data.as_buffer_like()), said)
