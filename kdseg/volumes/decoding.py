"""Chunks of zarr arrays, decoded into no more memory than they should take.

Codecs of zarr give a chunk all the memory that its header asks for, or that it unpacks to: some kB can take all that
there is. Here what is larger than its array says is refused before it has the memory, where zarr's usual codecs unpack
it. Others, of packages that a user has installed, are left as they are.
"""

from __future__ import annotations

import asyncio
import bz2
import gzip
import io
import lzma
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import numcodecs
import numpy as np
import zarr
from zarr.abc.codec import ArrayArrayCodec, BytesBytesCodec, Codec
from zarr.codecs import ShardingCodec
from zarr.codecs._v2 import V2Codec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.registry import register_pipeline

from kdseg.errors import UnreadableError

MOST = 2**31
"""Bytes of one chunk, and of the index of a shard: blosc has no larger ones."""
DEFLATED = 1032
"""Bytes that gzip makes of one at most."""
SPARE = 2**28
"""Bytes that a chunk of HDF5 or of a precomputed shard may take in excess: those that cannot take more are not unpacked
twice."""
_SUM = 4
"""Bytes that a checksum adds to a chunk."""
_HEAD = 600
"""Bytes that a codec adds, beside an eighth, to what it cannot make smaller: bzip2 adds most."""
_ENTRY = 16
"""Bytes of an inner chunk in the index of its shard."""
_WIDER = 8
"""Bytes that filters of zarr v2 make of one at most: of uint8, float64."""
_BATCH = 16
"""Chunks that a thread is given at a time; all of them are in memory at once."""
_MARK = 0xA5
"""Last byte of a buffer that may not be filled."""

Settings = Mapping[str, Any]


def _of_stream(data: Any, most: int, settings: Settings, opened: Callable[..., Any]) -> bytes:
    with opened(io.BytesIO(data), **settings) as stream:
        return bytes(stream.read(most + 1))


def _gzip(data: Any, most: int, _: Settings) -> bytes:
    return _of_stream(data, most, {}, lambda file: gzip.GzipFile(fileobj=file))


def _bz2(data: Any, most: int, _: Settings) -> bytes:
    return _of_stream(data, most, {}, bz2.BZ2File)


def _lzma(data: Any, most: int, settings: Settings) -> bytes:
    return _of_stream(data, most, {name: settings.get(name) for name in ("format", "filters")}, lzma.LZMAFile)


def _zlib(data: Any, most: int, _: Settings) -> bytes:
    unpacking = zlib.decompressobj()
    unpacked = unpacking.decompress(data, most + 1)
    if len(unpacked) <= most and not unpacking.eof:
        raise ValueError("the stream is cut off")
    return unpacked


def _zstd(data: Any, most: int, _: Settings) -> Any:
    """Return what a chunk unpacks to; numcodecs refuses what is larger than the buffer, not what is smaller."""
    codec, out = numcodecs.Zstd(), np.empty(most, np.uint8)
    out[-1:] = _MARK
    try:
        codec.decode(data, out)
    except RuntimeError:  # it is damaged; or does not say its size, of which numcodecs takes what fills the buffer only
        import pyarrow

        return _of_stream(data, most, {}, lambda file: pyarrow.input_stream(file, compression="zstd"))
    return codec.decode(data) if out[-1:] == _MARK else out


def _blosc(data: Any, most: int, _: Settings) -> Any:
    _, size = struct.unpack_from("<4sI", data)
    _expect_small(size, most)
    return numcodecs.Blosc().decode(data)


def _lz4(data: Any, most: int, _: Settings) -> Any:
    (size,) = struct.unpack_from("<I", data)
    _expect_small(size, most)
    return numcodecs.LZ4().decode(data)


def _expect_small(size: int, most: int) -> None:
    if size > most:
        raise ValueError(f"it unpacks to more than the {most} bytes of a chunk")


_UNPACK: dict[str, Callable[[bytes, int, Settings], Any]] = {
    "gzip": _gzip,
    "zlib": _zlib,
    "bz2": _bz2,
    "lzma": _lzma,
    "zstd": _zstd,
    "blosc": _blosc,
    "lz4": _lz4,
}
_SUMS = {"crc32c", "crc32", "adler32", "fletcher32", "jenkins_lookup3"}


@dataclass(frozen=True)
class _Unpacking:
    """A codec of numcodecs that unpacks no more than ``most`` bytes."""

    name: str
    settings: Settings
    most: int

    def decode(self, data: Any) -> Any:
        return unpacked(self.name, data, self.most, self.settings)


@dataclass(frozen=True)
class _Bounded(BytesBytesCodec):
    """A codec of zarr v3 that unpacks no more than what those ``before`` it make of a chunk."""

    codec: BytesBytesCodec
    name: str
    settings: Settings
    before: tuple[Codec, ...]
    is_fixed_size = False

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        return self.codec.compute_encoded_size(input_byte_length, chunk_spec)

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> Any:
        return self.codec.evolve_from_array_spec(array_spec)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        unpacking = _Unpacking(self.name, self.settings, _most(self.before, chunk_spec))
        found = await asyncio.to_thread(unpacking.decode, chunk_data.as_numpy_array())
        return chunk_spec.prototype.buffer.from_bytes(found)

    async def _encode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer | None:
        return await self.codec._encode_single(chunk_data, chunk_spec)


class _BoundedV2(V2Codec):
    """The codecs of zarr v2, of which the compressor unpacks no more than a chunk, 8 times that if filters follow."""

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        compressor: Any = self.compressor
        if compressor is not None and compressor.codec_id in _UNPACK:
            most = _bytes(chunk_spec) * (_WIDER if self.filters else 1)
            compressor = _Unpacking(compressor.codec_id, compressor.get_config(), most)
        return await V2Codec(self.filters, compressor)._decode_single(chunk_bytes, chunk_spec)


class BoundedPipeline(BatchedCodecPipeline):
    """zarr's own pipeline, of codecs that take no more memory than a chunk should have."""

    @classmethod
    def from_codecs(cls, codecs: Iterable[Codec], *, batch_size: int | None = None) -> Self:
        """Return the pipeline of some codecs."""
        return super().from_codecs(list(_bounded(codecs)), batch_size=batch_size)


def _bounded(codecs: Iterable[Codec]) -> Iterator[Codec]:
    before = list[Codec]()
    for codec in codecs:
        if isinstance(codec, V2Codec):
            yield _BoundedV2(codec.filters, codec.compressor)
            continue
        name, settings = _said(codec)
        if isinstance(codec, BytesBytesCodec) and name in _UNPACK:
            yield _Bounded(codec, name, settings, tuple(before))
        else:
            yield codec
        if not isinstance(codec, ArrayArrayCodec):  # zarr gives the chunk's shape and type behind those
            before.append(codec)


def _said(codec: Codec) -> tuple[str, Settings]:
    said = cast("dict[str, Any]", codec.to_dict())
    return str(said["name"]).removeprefix("numcodecs."), said.get("configuration", {})


def _most(codecs: Iterable[Codec], spec: ArraySpec) -> int:
    """Return the bytes that codecs make of a chunk at most."""
    size = _bytes(spec)
    for codec in codecs:
        if isinstance(codec, ArrayArrayCodec):
            spec = codec.resolve_metadata(spec)
            size = _bytes(spec)
        elif isinstance(codec, ShardingCodec):
            chunks = math.prod(n // m for n, m in zip(spec.shape, codec.chunk_shape, strict=True))
            size = chunks * (_ENTRY + _most(codec.codecs, replace(spec, shape=codec.chunk_shape))) + _SUM
        elif _said(codec)[0] in _SUMS:
            size += _SUM
        elif isinstance(codec, BytesBytesCodec):
            size = packed_most(size)
    return size


def _bytes(spec: ArraySpec) -> int:
    return math.prod(spec.shape) * spec.dtype.to_native_dtype().itemsize


def unpacked(name: str, data: Any, most: int, settings: Settings | None = None) -> Any:
    """Return what a chunk unpacks to, taking memory for no more than ``most`` bytes.

    Args:
        name: of a codec: gzip, zlib, bz2, lzma, zstd, blosc or lz4.
        data: the chunk.
        most: bytes.
        settings: of the codec, as numcodecs has them.

    Raises:
        ValueError: if it unpacks to more.
    """
    found = _UNPACK[name](data, most, settings or {})
    _expect_small(len(found), most)
    return found


def packed_most(size: int) -> int:
    """Return the bytes that a codec makes of ``size`` bytes at most, where it cannot make them smaller."""
    return size + size // 8 + _HEAD


def unpacks_to_more(data: bytes, most: int, bits: int = zlib.MAX_WBITS) -> bool:
    """Return whether a stream of zlib, or of gzip, unpacks to more than ``most`` bytes, taking memory for no more.

    Args:
        data: the stream.
        most: bytes.
        bits: the window of zlib; 31 for gzip.

    Raises:
        zlib.error: if it is damaged.
    """
    return len(zlib.decompressobj(bits).decompress(data, most + 1)) > most


def expect_small_chunks(where: str, sizes: Mapping[str, int]) -> None:
    """Refuse chunks that would take more than `MOST` bytes, in which nobody stores volumes.

    Args:
        where: name of the volume, for the message.
        sizes: bytes of what is in memory at a time, by its name.

    Raises:
        UnreadableError: if one is larger.
    """
    for name, size in sizes.items():
        if size > MOST:
            raise UnreadableError(
                f"{where} says that {name} has {size} bytes, more than {MOST}: copy it with smaller chunks"
            )


def decode_in_one_thread() -> None:
    """Have one thread of this process encode and decode chunks, not one per core and more.

    They would take turns with a thread that computes, and with each other: a read takes a third of the CPU time then
    (benchmarks/README.md). It is to be called before any chunk is read.
    """
    zarr.config.set({"threading.max_workers": 1, "codec_pipeline.batch_size": _BATCH})


register_pipeline(BoundedPipeline)
zarr.config.set({"codec_pipeline.path": f"{BoundedPipeline.__module__}.{BoundedPipeline.__qualname__}"})
