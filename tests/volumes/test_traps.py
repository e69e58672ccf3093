"""Sources that would read files which they should not, or wait for ever."""

from __future__ import annotations

import contextlib
import json
import lzma
import os
import resource
import socket
import struct
import threading
import tracemalloc
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import google_crc32c
import h5py
import numcodecs
import numpy as np
import pytest
import tifffile
import zarr
from toy_volumes import write_zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, ZstdCodec

from kdseg.errors import KdsegError, ShapeError, UnreadableError
from kdseg.geometry import Roi
from kdseg.results.manifests import source_fingerprint
from kdseg.volumes.hdf5_links import ANYWHERE
from kdseg.volumes.sources import Source, open_channels, open_source

Way = Callable[[h5py.File, Path], None]
DATA = np.arange(4 * 6 * 8, dtype=np.uint8).reshape(4, 6, 8)


def external_link(file: h5py.File, target: Path) -> None:
    file["raw"] = h5py.ExternalLink(str(target), "/data")


def link_to_a_group(file: h5py.File, target: Path) -> None:
    file["group"] = h5py.ExternalLink(str(target), "/")
    file["raw"] = h5py.SoftLink("group/data")


def virtual(file: h5py.File, target: Path) -> None:
    layout = h5py.VirtualLayout(DATA.shape, DATA.dtype)
    layout[...] = h5py.VirtualSource(str(target), "data", DATA.shape)
    file.create_virtual_dataset("raw", layout)


def virtual_of_virtual(file: h5py.File, target: Path) -> None:
    virtual(file, target)
    file.move("raw", "inner")
    layout = h5py.VirtualLayout(DATA.shape, DATA.dtype)
    layout[...] = h5py.VirtualSource(".", "inner", DATA.shape)
    file.create_virtual_dataset("raw", layout)


def storage(file: h5py.File, target: Path) -> None:
    size = target.stat().st_size
    file.create_dataset("raw", DATA.shape, DATA.dtype, external=[(str(target), size - DATA.size, DATA.size)])


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Return a file whose dataset `data` lies at its end."""
    path = tmp_path / "private" / "target.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["data"] = DATA
    return path


WAYS = [external_link, link_to_a_group, virtual, virtual_of_virtual, storage]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("relative", [False, True])
def test_voxels_of_files_elsewhere_are_refused_until_they_are_allowed(
    tmp_path: Path,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[[h5py.File, Path], None],
    relative: bool,
) -> None:
    path = tmp_path / "given" / "x.h5"
    path.parent.mkdir()
    monkeypatch.chdir(path.parent)
    with h5py.File(path, "w") as file:
        way(file, Path("../private/target.h5") if relative else target)
    with pytest.raises(UnreadableError, match=rf"x\.h5 takes voxels from .*target\.h5, outside of .*{ANYWHERE}=1"):
        open_source(f"{path}:/raw")
    monkeypatch.setenv(ANYWHERE, "1")
    source = open_source(f"{path}:/raw")
    assert source.read(source.roi).shape == DATA.shape


@pytest.mark.parametrize("way", WAYS)
def test_voxels_of_files_in_the_same_folder_are_read(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch, way: Way
) -> None:
    monkeypatch.chdir(target.parent)
    with h5py.File("x.h5", "w") as file:
        way(file, Path("target.h5"))
    source = open_source("x.h5:/raw")
    found = source.read(source.roi)
    assert way is storage or (found == DATA).all()
    (tmp_path / "link.h5").symlink_to(target.parent / "x.h5")
    monkeypatch.chdir(tmp_path)
    if way is not storage:  # whose names are those of the working directory
        source = open_source("link.h5:/raw")
        assert (source.read(source.roi) == DATA).all()


def test_a_link_beside_the_file_does_not_lead_out(tmp_path: Path, target: Path) -> None:
    path = tmp_path / "given" / "x.h5"
    path.parent.mkdir()
    (path.parent / "near.h5").symlink_to(target)
    with h5py.File(path, "w") as file:
        external_link(file, Path("near.h5"))
    with pytest.raises(UnreadableError, match="outside of its own folder"):
        open_source(f"{path}:/raw")


def test_channels_of_files_elsewhere_are_refused(tmp_path: Path, target: Path) -> None:
    with h5py.File(target, "a") as file:
        file["more"] = DATA[None]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["raw"] = h5py.ExternalLink("/etc/../" + str(target), "/more")
    (tmp_path / "given").mkdir()
    (tmp_path / "x.h5").rename(tmp_path / "given" / "x.h5")
    with pytest.raises(UnreadableError, match="outside of its own folder"):
        open_channels(f"{tmp_path}/given/x.h5:/raw")


def test_links_that_lead_to_themselves_or_to_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["soft"] = h5py.SoftLink("/soft")
        file["round"] = h5py.ExternalLink("x.h5", "/round/a")
        file["pipe"] = h5py.ExternalLink("pipe", "/a")
    for name, said in (
        ("soft", "has no dataset|cannot open"),
        ("round", "leads to itself"),
        ("pipe", "which is no file"),
    ):
        with pytest.raises(KdsegError, match=said):
            open_source(f"{tmp_path}/x.h5:/{name}")


def odd(path: Path, kind: str) -> None:
    """Make what is no file."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one, contextlib.chdir(path.parent):  # names of sockets are short
            one.bind(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(path.name)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "loop"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    stack = tmp_path / "stack"
    stack.mkdir()
    tifffile.imwrite(stack / "s1.tif", DATA[0])
    odd(stack / "s2.tif", kind)
    with pytest.raises(UnreadableError, match=r"s2\.tif is no file"):
        open_source(str(stack))
    for name in ("x.h5", "x.tif", "x.zarr"):
        odd(tmp_path / name, kind)
        with pytest.raises(KdsegError, match=rf"{name}"):
            open_source(f"{tmp_path}/{name}" + (":/a" if name == "x.h5" else ""))
    for name in ("zarr.json", ".zarray"):
        folder = tmp_path / f"of-{name}"
        folder.mkdir()
        odd(folder / name, kind)
        with pytest.raises(KdsegError, match=f"of-{name}"):
            open_source(str(folder))


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "loop"])
def test_a_folder_with_what_is_no_file_has_no_fingerprint(tmp_path: Path, kind: str) -> None:
    path = Path(write_zarr(tmp_path / "x.zarr", 3, DATA))
    before = source_fingerprint(path)
    odd(path / "c" / "odd", kind)
    if kind == "loop":  # nothing that could be read
        assert source_fingerprint(path) == before
    else:
        with pytest.raises(UnreadableError, match="c/odd is no file"):
            source_fingerprint(path)
    (path / "c" / "round").symlink_to(path)
    (path / "c" / "odd").unlink()
    assert source_fingerprint(path) == before


def bomb(path: Path, compression: str, packed: bytes) -> str:
    """Write a TIFF section whose only strip unpacks to more than its voxels."""
    tifffile.imwrite(path, DATA[0], compression=compression)
    with tifffile.TiffFile(path) as file:
        counts, offsets = (file.pages.first.tags[f"Strip{name}"] for name in ("ByteCounts", "Offsets"))
    content = bytearray(path.read_bytes())
    for tag, value in ((offsets, len(content)), (counts, len(packed))):
        content[tag.offset + 2 : tag.offset + 12] = struct.pack("<HII", 4, 1, value)
    path.write_bytes(content + packed)
    return str(path.parent)


@pytest.mark.parametrize(("compression", "pack"), [("zlib", zlib.compress), ("lzma", lzma.compress)])
def test_a_strip_that_unpacks_to_more_than_its_voxels_is_refused_before_it_has_the_memory(
    tmp_path: Path, compression: str, pack: Callable[[bytes], bytes]
) -> None:
    whole = open_source(bomb(tmp_path / "a.tif", compression, pack(DATA[0].tobytes())))
    assert (whole.read(whole.roi) == DATA[0]).all()
    source = open_source(bomb(tmp_path / "a.tif", compression, pack(bytes(2**25))))
    tracemalloc.start()
    with pytest.raises(UnreadableError, match=r"a\.tif has a strip or tile that unpacks to more than 65632 bytes"):
        source.read(source.roi)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize("key", ["../private", "a/../../private", "{}/private"])
def test_chunks_of_another_folder_are_refused(tmp_path: Path, key: str) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "given" / "a").mkdir(parents=True)
    key = key.format(tmp_path)
    scale = {"key": key, "size": [8, 6, 4], "resolution": [1, 1, 1], "chunk_sizes": [[8, 6, 4]], "encoding": "raw"}
    info = {"num_channels": 1, "data_type": "uint8", "scales": [scale], "type": "image"}
    (tmp_path / "given" / "info").write_text(json.dumps(info))
    with pytest.raises(UnreadableError, match=r"names chunks in .*, outside of its own folder"):
        open_source(str(tmp_path / "given"))


def test_a_web_server_does_not_lead_to_files_here(tmp_path: Path) -> None:
    write_zarr(tmp_path / "x.zarr", 3, DATA)

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", f"file://{tmp_path}{self.path}")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UnreadableError, match=r"cannot reach .*x\.zarr"):
            open_source(f"http://127.0.0.1:{server.server_port}/x.zarr")
        server.shutdown()


MUCH = 2**26
V2_CODECS = {
    "gzip": numcodecs.GZip(),
    "zlib": numcodecs.Zlib(),
    "bz2": numcodecs.BZ2(),
    "lzma": numcodecs.LZMA(),
    "zstd": numcodecs.Zstd(),
    "blosc": numcodecs.Blosc("zstd"),
    "lz4": numcodecs.LZ4(),
}


def zstd_of_unknown_size(size: int) -> bytes:
    """Return a frame of zeros whose header does not say how many they are; RLE blocks of at most 128 KiB."""
    blocks = [min(2**17, size - start) for start in range(0, size, 2**17)]
    header = struct.pack("<IBB", 0xFD2FB528, 0, 7 << 3)
    packed = [struct.pack("<I", n << 3 | 1 << 1 | (i + 1 == len(blocks)))[:3] + b"\0" for i, n in enumerate(blocks)]
    return header + b"".join(packed)


def refused(source: Source, said: str) -> None:
    """Expect that a source is refused before it has the memory."""
    tracemalloc.start()
    with pytest.raises(UnreadableError, match=said):
        source.read(source.roi)
    assert tracemalloc.get_traced_memory()[1] < MUCH / 4
    tracemalloc.stop()


@pytest.mark.parametrize("name", V2_CODECS)
@pytest.mark.parametrize("filters", [None, [numcodecs.Delta("u1")]])
def test_a_chunk_of_zarr_2_that_unpacks_to_more_than_its_voxels(
    tmp_path: Path, name: str, filters: list | None
) -> None:
    codec = V2_CODECS[name]
    zarr.create_array(
        tmp_path / "x.zarr", data=DATA, chunks=DATA.shape, compressors=codec, filters=filters, zarr_format=2
    )
    source = open_source(str(tmp_path / "x.zarr"))
    assert (source.read(source.roi) == DATA).all()
    (tmp_path / "x.zarr" / "0.0.0").write_bytes(codec.encode(np.zeros(MUCH, np.uint8)))
    refused(source, "cannot read .*x.zarr")


@pytest.mark.parametrize("name", ["gzip", "zstd", "blosc"])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_chunk_of_zarr_3_that_unpacks_to_more_than_its_voxels(tmp_path: Path, name: str, sharded: bool) -> None:
    codec = {"gzip": GzipCodec(), "zstd": ZstdCodec(), "blosc": BloscCodec(cname="zstd")}[name]
    zarr.create_array(
        tmp_path / "x.zarr",
        data=DATA,
        chunks=DATA.shape,
        shards=DATA.shape if sharded else None,
        compressors=[codec, Crc32cCodec()],
    )
    source = open_source(str(tmp_path / "x.zarr"))
    assert (source.read(source.roi) == DATA).all()
    chunk = with_sum(bytes(V2_CODECS[name].encode(np.zeros(MUCH, np.uint8))))
    index = with_sum(struct.pack("<QQ", 0, len(chunk))) if sharded else b""
    (tmp_path / "x.zarr" / "c" / "0" / "0" / "0").write_bytes(chunk + index)
    refused(source, "unpacks to more than|destination buffer too small")


def with_sum(data: bytes) -> bytes:
    return data + struct.pack("<I", google_crc32c.value(data))


def test_zstd_of_unknown_size(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "x.zarr", data=DATA, chunks=DATA.shape, compressors=[ZstdCodec()])
    source = open_source(str(tmp_path / "x.zarr"))
    chunk = tmp_path / "x.zarr" / "c" / "0" / "0" / "0"
    chunk.write_bytes(zstd_of_unknown_size(DATA.size))
    assert not source.read(source.roi).any()
    chunk.write_bytes(zstd_of_unknown_size(MUCH))
    refused(source, "cannot read .*x.zarr")
    for size in (DATA.size - 1, DATA.size + 1):
        for packed in (zstd_of_unknown_size(size), bytes(numcodecs.Zstd().encode(np.zeros(size, np.uint8)))):
            chunk.write_bytes(packed)
            refused(source, "cannot read .*x.zarr")


NOISE = np.random.default_rng(1).integers(0, 256, (8, 8, 8), np.uint8)


@pytest.mark.parametrize("name", V2_CODECS)
@pytest.mark.parametrize(
    "filters", [[numcodecs.Delta("u1", "i4")], [numcodecs.AsType("f8", "u1")], [numcodecs.CRC32()]]
)
def test_filters_of_zarr_2_that_make_more_of_a_chunk(tmp_path: Path, name: str, filters: list) -> None:
    for array in (NOISE, NOISE[:1, :1, :1]):
        path = tmp_path / f"{array.size}.zarr"
        codec = V2_CODECS[name]
        zarr.create_array(path, data=array, chunks=array.shape, compressors=codec, filters=filters, zarr_format=2)
        source = open_source(str(path))
        assert (source.read(source.roi) == array).all()


@pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec disables partial reads")
@pytest.mark.parametrize("outer", [ZstdCodec(), GzipCodec(), BloscCodec()])
@pytest.mark.parametrize("inner", [[], [ZstdCodec(), Crc32cCodec()]])
@pytest.mark.parametrize("chunk", [(1, 1, 1), (2, 4, 8)])
def test_shards_of_zarr_3_with_a_codec_around_them(
    tmp_path: Path, outer: zarr.abc.codec.Codec, inner: list, chunk: tuple[int, int, int]
) -> None:
    sharding = ShardingCodec(chunk_shape=chunk, codecs=[BytesCodec(), *inner])
    array = zarr.create_array(
        tmp_path / "x.zarr", shape=NOISE.shape, dtype="u1", chunks=NOISE.shape, serializer=sharding, compressors=outer
    )
    array[:] = NOISE
    source = open_source(str(tmp_path / "x.zarr"))
    assert (source.read(source.roi) == NOISE).all()
    packed = outer.to_dict()["name"]
    (tmp_path / "x.zarr" / "c" / "0" / "0" / "0").write_bytes(V2_CODECS[packed].encode(np.zeros(MUCH, np.uint8)))
    refused(source, "unpacks to more than|destination buffer too small")


def test_a_codec_of_zarr_3_after_another_one(tmp_path: Path) -> None:
    codecs = [GzipCodec(), ZstdCodec()]
    zarr.create_array(tmp_path / "x.zarr", data=NOISE, chunks=NOISE.shape, compressors=codecs)
    source = open_source(str(tmp_path / "x.zarr"))
    assert (source.read(source.roi) == NOISE).all()


def test_zstd_of_unknown_size_with_filters(tmp_path: Path) -> None:
    codecs = {"compressors": numcodecs.Zstd(), "filters": [numcodecs.Delta("u1")]}
    zarr.create_array(tmp_path / "x.zarr", data=DATA, chunks=DATA.shape, zarr_format=2, **codecs)
    source = open_source(str(tmp_path / "x.zarr"))
    chunk = tmp_path / "x.zarr" / "0.0.0"
    chunk.write_bytes(zstd_of_unknown_size(DATA.size))
    assert not source.read(source.roi).any()
    chunk.write_bytes(zstd_of_unknown_size(MUCH))
    refused(source, "unpacks to more than")
    chunk.write_bytes(zstd_of_unknown_size(DATA.size)[:-2])
    refused(source, "cannot read .*x.zarr")


@pytest.mark.parametrize("place", ["compressor", "filters"])
def test_codecs_that_run_code_are_refused(tmp_path: Path, place: str) -> None:
    zarr.create_array(tmp_path / "x.zarr", data=DATA, compressors=numcodecs.Zlib(), zarr_format=2)
    path = tmp_path / "x.zarr" / ".zarray"
    said = json.loads(path.read_text())
    said[place] = {"id": "pickle"} if place == "compressor" else [{"id": "pickle"}]
    path.write_text(json.dumps(said))
    with pytest.raises(UnreadableError, match=r"x\.zarr.*'pickle'"):
        open_source(str(tmp_path / "x.zarr"))


def test_other_codecs_are_left_as_they_are(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "x.zarr", data=DATA, compressors=numcodecs.Base64(), zarr_format=2)
    source = open_source(str(tmp_path / "x.zarr"))
    assert (source.read(source.roi) == DATA).all()


@pytest.mark.parametrize("sharded", [False, True])
def test_chunks_that_nobody_has_the_memory_for_are_refused(tmp_path: Path, sharded: bool) -> None:
    size = (2**20,) * 3
    zarr.create_array(
        tmp_path / "x.zarr",
        shape=size,
        dtype=np.uint8,
        chunks=(1, 1, 1) if sharded else (10**4,) * 3,
        shards=(2**10,) * 3 if sharded else None,
    )
    said = "the index of a shard has" if sharded else "a chunk has 1000000000000"
    with pytest.raises(UnreadableError, match=f"{said}.*: copy it with smaller chunks$"):
        open_source(str(tmp_path / "x.zarr"))


@pytest.mark.parametrize("shards", [None, (4, 6)])
def test_sections_of_zarr_are_refused_in_a_line(tmp_path: Path, shards: tuple[int, int] | None) -> None:
    zarr.create_array(tmp_path / "x.zarr", data=DATA[:, 0, :6], chunks=(2, 3), shards=shards)
    with pytest.raises(ShapeError, match=r"has the shape \(4, 6\), expected \(z, y, x\)"):
        open_source(str(tmp_path / "x.zarr"))


@pytest.mark.slow
@pytest.mark.parametrize("channels", [(), (2,)])
def test_a_chunk_of_hdf5_that_unpacks_to_more_than_its_voxels(tmp_path: Path, channels: tuple[int, ...]) -> None:
    chunk, data = (*(1 for _ in channels), 2, 6, 8), np.broadcast_to(DATA, (*channels, *DATA.shape))
    place = (*(1 for _ in channels), 2, 0, 0)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        node = file.create_dataset("raw", data=data, chunks=chunk, compression="gzip", shuffle=True, fletcher32=True)
        plain = file.create_dataset("sums", data=data, chunks=chunk, compression="gzip")
        plain.id.write_direct_chunk(place, zlib.compress(bytes(8 * MUCH)))
        more = file.create_dataset("more", data=data, chunks=chunk, scaleoffset=0)
        file.create_dataset("sparse", data.shape, data.dtype, chunks=chunk, compression="gzip")
        assert (node.chunks, more.chunks) == (chunk, chunk)
    open_it = open_channels if channels else open_source
    roi = Roi((0, 0, 0), DATA.shape)
    assert (open_it(f"{tmp_path}/x.h5:/raw").read(roi) == data).all()
    assert not open_it(f"{tmp_path}/x.h5:/sparse").read(roi).any()
    first = Roi((0, 0, 0), (2, 6, 8))
    if not channels:
        assert (open_it(f"{tmp_path}/x.h5:/sums").read(first) == DATA[:2]).all()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        UnreadableError, match=r"sums has a chunk at .* that unpacks to more than 96 bytes: it is damaged$"
    ):
        open_it(f"{tmp_path}/x.h5:/sums").read(roi)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MUCH / 4 / 1024
    assert (open_it(f"{tmp_path}/x.h5:/more").read(roi) == data).all()


def with_filters(path: Path, array: np.ndarray, chunk: tuple[int, int, int], *filters: str) -> Source:
    """Write HDF5 whose filters are in the order given."""
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk(chunk)
    for name in filters:
        getattr(made, f"set_{name}")(*((1,) if name == "deflate" else (h5py.h5z.SO_INT, 0) * (name == "scaleoffset")))
    with h5py.File(path, "w") as file:
        space = h5py.h5s.create_simple(array.shape)
        h5py.h5d.create(file.id, b"raw", h5py.h5t.NATIVE_UINT8, space, made)
        file["raw"][...] = array
    return open_source(f"{path}:/raw")


@pytest.mark.parametrize("filters", [("shuffle", "deflate"), ("deflate", "fletcher32")])
def test_a_chunk_of_hdf5_some_filters_of_which_were_skipped(tmp_path: Path, filters: tuple[str, str]) -> None:
    source = with_filters(tmp_path / "x.h5", DATA, (2, 6, 8), *filters)
    place = filters.index("deflate")
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file["raw"].id.write_direct_chunk((0, 0, 0), DATA[2:].tobytes(), filter_mask=0b11)
        file["raw"].id.write_direct_chunk((2, 0, 0), zlib.compress(bytes(8 * MUCH)), filter_mask=0b11 & ~(1 << place))
    assert (source.read(Roi((0, 0, 0), (2, 6, 8))) == DATA[2:]).all()
    with pytest.raises(UnreadableError, match=r"unpacks to more than .* bytes: it is damaged$"):
        source.read(Roi((2, 0, 0), (2, 6, 8)))


@pytest.mark.parametrize("first", ["fletcher32", "scaleoffset"])
def test_filters_of_hdf5_that_make_more_of_a_chunk(tmp_path: Path, first: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (2, 512, 1024), np.uint8)  # more of it than is not looked at
    source = with_filters(tmp_path / "x.h5", noise, (1, 512, 1024), first, "deflate")
    assert (source.read(source.roi) == noise).all()
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file["raw"].id.write_direct_chunk((0, 0, 0), noise[1].tobytes(), filter_mask=0b11)
    assert (source.read(source.roi) == noise[1]).all()


def test_chunks_of_hdf5_that_are_packed_twice(tmp_path: Path) -> None:
    source = with_filters(tmp_path / "x.h5", DATA, (2, 6, 8), "deflate", "deflate")
    with pytest.raises(UnreadableError, match=r"packed more than once: repack it, e\.g\. by h5repack -f GZIP=1$"):
        source.read(source.roi)


def test_chunks_of_hdf5_by_lzf_are_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("raw", data=DATA, chunks=(2, 6, 8), compression="lzf", shuffle=True)
    source = open_source(f"{tmp_path}/x.h5:/raw")
    assert (source.read(source.roi) == DATA).all()


def test_chunks_of_other_formats_that_nobody_has_the_memory_for(tmp_path: Path) -> None:
    scale = {"key": "k", "size": [10**6] * 3, "resolution": [1, 1, 1], "chunk_sizes": [[10**4] * 3], "encoding": "raw"}
    (tmp_path / "k").mkdir()
    info = {"num_channels": 1, "data_type": "uint8", "scales": [scale], "type": "image"}
    (tmp_path / "info").write_text(json.dumps(info))
    with pytest.raises(UnreadableError, match="a chunk has 1000000000000 bytes"):
        open_source(str(tmp_path))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("raw", (2000,) * 3, np.uint8, chunks=(2000, 2000, 1000), compression="gzip")
    source = open_source(f"{tmp_path}/x.h5:/raw")
    with pytest.raises(UnreadableError, match="a chunk has 4000000000 bytes"):
        source.read(Roi((0, 0, 0), (1, 1, 1)))


@pytest.fixture(scope="module")
def packed() -> bytes:
    return zlib.compress(bytes(8 * MUCH))


def chunked(path: Path, packed: bytes, data: np.ndarray = DATA) -> None:
    """Write `data`, in chunks of half its length; the second one unpacks to more than its voxels."""
    with h5py.File(path, "a") as file:
        chunk = (data.shape[0] // 2, *data.shape[1:])
        node = file.create_dataset("data", data=data, chunks=chunk, compression="gzip")
        node.id.write_direct_chunk((chunk[0], *(0 for _ in chunk[1:])), packed)


def of_a_series(file: h5py.File, name: bytes, dataset: bytes, chunk: tuple[int, int, int]) -> None:
    """Make a virtual dataset of as many others as it is long."""
    whole, more = DATA.shape, (h5py.h5s.UNLIMITED, *DATA.shape[1:])
    there = h5py.h5s.create_simple(whole, more)
    there.select_hyperslab((0, 0, 0), (h5py.h5s.UNLIMITED, 1, 1), (chunk[0], 1, 1), chunk)
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_virtual(there, name, dataset, h5py.h5s.create_simple(chunk))
    h5py.h5d.create(file.id, b"raw", h5py.h5t.NATIVE_UINT8, h5py.h5s.create_simple(whole, more), made)


def series(path: Path, packed: bytes) -> None:
    with h5py.File(path.with_name("0.h5"), "w") as file:
        file["data"] = DATA[:2]
    chunked(path.with_name("1.h5"), packed, DATA[2:])
    with h5py.File(path, "w") as file:
        of_a_series(file, b"%b.h5", b"data", (2, 6, 8))


def here(path: Path, packed: bytes) -> None:
    chunked(path, packed)
    with h5py.File(path, "a") as file:
        layout = h5py.VirtualLayout(DATA.shape, DATA.dtype)
        layout[...] = h5py.VirtualSource(".", "data", DATA.shape)
        file.create_virtual_dataset("raw", layout)


def beside(path: Path, packed: bytes) -> None:
    chunked(path.with_name("100%.h5"), packed)
    with h5py.File(path, "w") as file:
        virtual_of_virtual(file, Path("100%%.h5"))


def beside_in_name_only(path: Path, packed: bytes) -> None:
    chunked(path.with_name("there.h5"), packed)
    with h5py.File(path, "w") as file:
        virtual(file, Path("/not/there.h5"))


def shifted(path: Path, packed: bytes) -> None:
    chunked(path.with_name("there.h5"), packed, np.concatenate([DATA[:1], DATA, DATA[:1]]))
    with h5py.File(path, "w") as file:
        layout = h5py.VirtualLayout(DATA.shape, DATA.dtype)
        layout[...] = h5py.VirtualSource("there.h5", "data", (6, 6, 8))[1:5]
        file.create_virtual_dataset("raw", layout)


def sections(path: Path, packed: bytes) -> None:
    with h5py.File(path, "w") as file:
        layout = h5py.VirtualLayout(DATA.shape, DATA.dtype)
        for z in range(4):
            file[str(z)] = DATA[z]
            layout[z] = h5py.VirtualSource("." if z < 3 else "there.h5", str(z) if z < 3 else "data", DATA[z].shape)
        file.create_virtual_dataset("raw", layout)
    chunked(path.with_name("there.h5"), packed, DATA[3])


def mixed(path: Path, packed: bytes) -> None:
    """The sections 0, 1, 3 and 4 of a dataset as 0, 1, 2 and 4 of one, whose last section but one is not filled."""
    chunked(path.with_name("there.h5"), packed, np.concatenate([DATA[:2], DATA[:1], DATA[2:], DATA[:1]]))
    with h5py.File(path, "w") as file:
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        spaces = h5py.h5s.create_simple((5, 6, 8)), h5py.h5s.create_simple((6, 6, 8))
        for space, picked in zip(spaces, ((0, 1, 2, 4), (0, 1, 3, 4)), strict=True):
            space.select_none()
            for z in picked:
                space.select_hyperslab((z, 0, 0), (1, 6, 8), op=h5py.h5s.SELECT_OR)
        made.set_virtual(spaces[0], b"there.h5", b"data", spaces[1])
        h5py.h5d.create(file.id, b"raw", h5py.h5t.NATIVE_UINT8, h5py.h5s.create_simple((5, 6, 8)), made)


def test_a_chunk_of_sections_that_were_picked(tmp_path: Path, packed: bytes) -> None:
    mixed(tmp_path / "x.h5", packed)
    source = open_source(f"{tmp_path}/x.h5:/raw")
    with pytest.raises(UnreadableError, match=r"data has a chunk at \(3, 0, 0\) that unpacks to more than \d+ bytes"):
        source.read(Roi((2, 0, 0), (1, 6, 8)))


@pytest.mark.parametrize(
    ("way", "section"), [(here, 2), (beside, 2), (beside_in_name_only, 2), (shifted, 2), (sections, 3), (series, 2)]
)
def test_a_chunk_of_a_virtual_dataset_that_unpacks_to_more_than_its_voxels(
    tmp_path: Path, packed: bytes, way: Callable[[Path, bytes], None], section: int
) -> None:
    way(tmp_path / "x.h5", packed)
    source = open_source(f"{tmp_path}/x.h5:/raw")
    first = Roi((0, 0, 0), (2, 6, 8))
    assert (source.read(first) == DATA[:2]).all()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for part in (source.roi, Roi((section, 0, 0), (1, 6, 8))):
        with pytest.raises(UnreadableError, match=r"data has a chunk at .* that unpacks to more than \d+ bytes"):
            source.read(part)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MUCH / 4 / 1024


def test_a_virtual_dataset_of_itself(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        virtual(file, Path("x.h5"))
        file.move("raw", "data")
    source = open_source(f"{tmp_path}/x.h5:/data")
    with pytest.raises(UnreadableError, match="is a virtual dataset of itself: make the file again"):
        source.read(source.roi)


@pytest.mark.parametrize("name", ["100%%.h5", "%b.h5"])
def test_no_name_of_a_virtual_source_leads_elsewhere(tmp_path: Path, target: Path, name: str) -> None:
    """HDF5 takes %% for %, and what is not the first of a series may be a link."""
    (tmp_path / "given").mkdir()
    with h5py.File(tmp_path / "given" / "0.h5", "w") as file:
        file["data"] = DATA[:2]
    for link in ("100%.h5", "1.h5"):
        (tmp_path / "given" / link).symlink_to(target)
    with h5py.File(tmp_path / "given" / "x.h5", "w") as file:
        if "%%" in name:
            virtual(file, Path(name))
        else:
            of_a_series(file, name.encode(), b"data", (2, 6, 8))
    with pytest.raises(UnreadableError, match=r"x\.h5 takes voxels from .*\.h5, outside of its own folder"):
        open_source(f"{tmp_path}/given/x.h5:/raw")
