"""Chunks in the shards of a precomputed volume, found without decoding them, and what they unpack to.

Source: neuroglancer, `src/datasource/precomputed/sharded.md`. A chunk has a number, its position in Morton order; the
hash of the number names a shard, which is a file, and a minishard in it. The file begins with the place of the index of
each minishard, and that has the number, place and size of each chunk::

    | start, end of minishard 0, 1, … | chunks … | [numbers; gaps; sizes] of a minishard, perhaps gzip | …

tensorstore unpacks what is gzip with all the memory that it takes. Both, index and chunk, are unpacked here before,
into no more than they may have, but chunks that are too small to hold much.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from kdseg.errors import KdsegError, UnreadableError
from kdseg.geometry import Triple
from kdseg.volumes.decoding import DEFLATED, SPARE, unpacks_to_more

_GZIP = 31
"""zlib's window bits of a gzip stream."""
_ENTRY = 24
"""Bytes of a chunk in the index of its minishard."""
_INDICES = 256
"""Indices of minishards that are kept in memory."""
_WORD = 2**32 - 1


class Sharding(BaseModel):
    """Rule by which chunks are spread over files, as `info` says it."""

    model_config = ConfigDict(frozen=True)

    type: Literal["neuroglancer_uint64_sharded_v1"] = Field(alias="@type")
    hash: Literal["identity", "murmurhash3_x86_128"]
    preshift_bits: int = Field(ge=0, le=64)
    minishard_bits: int = Field(ge=0, le=32)
    shard_bits: int = Field(ge=0, le=64)
    minishard_index_encoding: Literal["raw", "gzip"] = "raw"
    data_encoding: Literal["raw", "gzip"] = "raw"


@dataclass(frozen=True)
class Shards:
    """The shards of one scale.

    Attributes:
        folder: of the files.
        sharding: how chunks are spread over them.
        grid: number of chunks, (z, y, x).
        most: bytes of a chunk that is not packed.
    """

    folder: Path
    sharding: Sharding
    grid: Triple
    most: int

    def expect_small(self, cells: Iterable[Triple]) -> None:
        """Refuse chunks, and indices of their minishards, that unpack to more than they should.

        Args:
            cells: places of chunks in the grid, (z, y, x).

        Raises:
            UnreadableError: if there is one, or what leads to it is damaged.
        """
        if "gzip" not in (self.sharding.data_encoding, self.sharding.minishard_index_encoding):
            return
        for cell in cells:
            number = morton(cell, self.grid)
            path, minishard = self._place(number)
            if not path.is_file():
                continue
            try:
                index = self._index(path, minishard)
                if self.sharding.data_encoding == "gzip":
                    for _, start, size in index.T[index[0] == number].tolist():
                        self._expect_small_chunk(path, cell, start, size)
            except KdsegError:
                raise
            except (OSError, ValueError, OverflowError, zlib.error) as error:
                raise UnreadableError(f"cannot read {path}: {error}; the volume is damaged") from error

    def _place(self, number: int) -> tuple[Path, int]:
        """Return the file of a chunk, and its minishard."""
        how, shifted = self.sharding, number >> self.sharding.preshift_bits
        hashed = shifted if how.hash == "identity" else murmur(shifted)
        shard = hashed >> how.minishard_bits & (1 << how.shard_bits) - 1
        name = f"{shard:0{-(-how.shard_bits // 4)}x}.shard"
        return self.folder / name, hashed & (1 << how.minishard_bits) - 1

    def _index(self, path: Path, minishard: int) -> NDArray[np.uint64]:
        facts = path.stat()
        return _read_index(self, path, minishard, (facts.st_ino, facts.st_size, facts.st_mtime_ns))

    def _expect_small_chunk(self, path: Path, cell: Triple, start: int, size: int) -> None:
        if size * DEFLATED <= self.most + SPARE:
            return
        with path.open("rb") as file:
            file.seek(start)
            if unpacks_to_more(file.read(min(size, path.stat().st_size)), self.most, _GZIP):
                raise UnreadableError(
                    f"{path} has a chunk at {cell} that unpacks to more than {self.most} bytes: it is damaged"
                )


@lru_cache(maxsize=_INDICES)
def _read_index(shards: Shards, path: Path, minishard: int, _facts: tuple[int, ...]) -> NDArray[np.uint64]:
    """Return numbers of the chunks in a minishard, where they begin in the file, and their sizes in bytes, (3, n)."""
    base = 16 << shards.sharding.minishard_bits
    with path.open("rb") as file:
        file.seek(16 * minishard)
        start, end = (int(n) for n in np.frombuffer(file.read(16), "<u8"))
        file.seek(base + start)
        data = file.read(min(max(end - start, 0), _facts[1]))
    if data and shards.sharding.minishard_index_encoding == "gzip":
        most = min(_ENTRY * math.prod(shards.grid), SPARE)
        if unpacks_to_more(data, most, _GZIP):
            raise UnreadableError(
                f"{path} has an index of minishard {minishard} that unpacks to more than {most} bytes: it is damaged"
            )
        data = zlib.decompress(data, _GZIP)
    numbers, gaps, sizes = np.frombuffer(data, "<u8").reshape(3, -1)
    starts = base + np.cumsum(gaps) + np.cumsum(sizes) - sizes
    return np.stack([np.cumsum(numbers), starts, sizes])


def morton(cell: Triple, grid: Triple) -> int:
    """Return the number of a chunk: the bits of x, y and z by turns, as many of each as its axis needs.

    Args:
        cell: place in the grid, (z, y, x).
        grid: number of chunks, (z, y, x).
    """
    number = place = 0
    for bit in range(max(grid).bit_length()):
        for position, extent in zip(reversed(cell), reversed(grid), strict=True):
            if 1 << bit < extent:
                number |= (position >> bit & 1) << place
                place += 1
    return number


def murmur(key: int) -> int:
    """Return the low 64 bits of MurmurHash3_x86_128, seed 0, of a number of 64 bits in little-endian bytes.

    Source: Austin Appleby, smhasher, `src/MurmurHash3.cpp`, public domain.
    """
    # the key is shorter than the 16 bytes of a block: only what is done with the rest is left
    h1 = _mixed_in(key & _WORD, 0x239B961B, 15, 0xAB0E9789)
    h2 = _mixed_in(key >> 32, 0xAB0E9789, 16, 0x38B34AE5)
    h1, h2, h3, h4 = (h ^ 8 for h in (h1, h2, 0, 0))
    for finish in (lambda h: h, _finished):
        h1, h2, h3, h4 = (finish(h) for h in (h1, h2, h3, h4))
        h1 = h1 + h2 + h3 + h4 & _WORD
        h2, h3, h4 = (h + h1 & _WORD for h in (h2, h3, h4))
    return h2 << 32 | h1


def _mixed_in(word: int, before: int, turn: int, after: int) -> int:
    word = word * before & _WORD
    word = (word << turn | word >> 32 - turn) & _WORD
    return word * after & _WORD


def _finished(word: int) -> int:
    for turn, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        word = (word ^ word >> turn) * factor & _WORD
    return word


def sharding_of(scale: Mapping[str, Any]) -> Sharding | None:
    """Return how the chunks of a scale of `info` are spread over files; None if each is one.

    Raises:
        pydantic.ValidationError: if it is not said as the format has it; a ValueError.
    """
    said = scale.get("sharding")
    return None if said is None else Sharding.model_validate(said)
