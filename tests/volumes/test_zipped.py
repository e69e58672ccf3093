"""Zarr in zip files that zarr, Python's zipfile and zip wrote."""

from __future__ import annotations

import multiprocessing
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from toy_volumes import converted_raw
from zarr.storage import ZipStore

from kdseg.config.data import VolumeOptions
from kdseg.config.overlap import source_of
from kdseg.errors import KdsegError, MissingError, ShapeError, UnreadableError
from kdseg.geometry import Roi
from kdseg.results.manifests import source_fingerprint
from kdseg.volumes import zipped
from kdseg.volumes.foreign import Source
from kdseg.volumes.sources import open_channels, open_source, source_member, source_path
from kdseg.volumes.volume import open_volume

DATA = np.random.default_rng(0).integers(0, 2**16, (6, 10, 12), dtype=np.uint16)
SIZE, PLACE = (40.0, 5.0, 4.0), (80.0, 10.0, 4.0)


def plain(path: Path, zarr_format: Any = 3, data: Any = DATA, shards: Any = None) -> str:
    with ZipStore(path, mode="w") as store:
        made = zarr.create_array(
            store,
            shape=data.shape,
            chunks=(*data.shape[:-3], 4, 4, 4),
            shards=shards,
            dtype=data.dtype,
            zarr_format=zarr_format,
        )
        made[...] = data
    return str(path)


def ome() -> dict[str, Any]:
    """Return the metadata of an image of two levels."""
    datasets = []
    for level in (0, 1):
        scale, shift = (
            [v * 2**level for v in SIZE],
            [o + v * (2**level - 1) / 2 for o, v in zip(PLACE, SIZE, strict=True)],
        )
        steps = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
        datasets.append({"path": str(level), "coordinateTransformations": steps})
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    return {"axes": axes, "datasets": datasets}


def image(path: Path) -> str:
    with ZipStore(path, mode="w") as store:
        zarr.create_group(store, attributes={"ome": {"version": "0.5", "multiscales": [ome()]}})
        for level, data in enumerate((DATA, DATA[::2, ::2, ::2])):
            made = zarr.create_array(
                store, name=str(level), shape=data.shape, chunks=(2, 2, 2), shards=(4, 4, 4), dtype=data.dtype
            )
            made[...] = data
    return str(path)


def rezip(path: Path, target: Path, packing: int = zipfile.ZIP_DEFLATED, prefix: str = "", **changed: bytes) -> str:
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", packing) as new:
        for name in old.namelist():
            new.writestr(prefix + name, changed.get(name, old.read(name)))
    return str(target)


@pytest.mark.filterwarnings("ignore:Duplicate name")  # zarr writes its metadata twice
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("packing", [None, zipfile.ZIP_DEFLATED])
def test_arrays(tmp_path: Path, zarr_format: Any, packing: int | None) -> None:
    address = plain(tmp_path / "a.zarr.zip", zarr_format)
    if packing is not None:
        address = rezip(Path(address), tmp_path / "b.zarr.zip", packing)
    source = open_source(address)
    assert (source.data.shape, source.unit, source.placed) == (DATA.shape, (4, 4, 4), False)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).read(source.roi), DATA)
    part = Roi((1, 3, 5), (4, 5, 6))
    np.testing.assert_array_equal(source.read(part), DATA[part.slices()])


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["a.zarr.zip", "a.ozx", "A.ZARR.ZIP"])
def test_images_of_ome_zarr_and_their_levels(tmp_path: Path, name: str) -> None:
    address = image(tmp_path / name)
    for one in (address, f"{address}/0", f"{address}/"):
        source = open_source(one)
        assert (source.voxel_size, source.offset, source.placed) == (SIZE, PLACE, True)
        np.testing.assert_array_equal(source.read(source.roi), DATA)
    coarse = open_source(f"{address}/1")
    assert coarse.voxel_size == (80.0, 10.0, 8.0)
    np.testing.assert_array_equal(coarse.read(coarse.roi), DATA[::2, ::2, ::2])
    assert (source_path(f"{address}/1"), source_member(f"{address}/1")) == (Path(address), "1")
    with pytest.raises(MissingError, match=r"at its top are \['0', '1', 'zarr\.json'\]"):
        open_source(f"{address}/5")
    options = VolumeOptions(raw=f"{address}/1")
    assert options.files("raw") == [address]
    assert source_of(VolumeOptions(raw=address)) == source_of(VolumeOptions(raw=f"{address}/0"))
    assert source_of(VolumeOptions(raw=address)) != source_of(options)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_of_the_folder_names_what_is_in_it(tmp_path: Path) -> None:
    """As `zip -r a.zarr.zip a.zarr` makes it."""
    address = rezip(Path(image(tmp_path / "a.zarr.zip")), tmp_path / "b.zarr.zip", prefix="a.zarr/")
    with pytest.raises(MissingError, match=r"at its top are \['a\.zarr'\]"):
        open_source(address)
    source = open_source(f"{address}/a.zarr")
    assert source.voxel_size == SIZE
    np.testing.assert_array_equal(source.read(source.roi), DATA)
    assert open_source(f"{address}/a.zarr/0").voxel_size == SIZE


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_channels(tmp_path: Path) -> None:
    channels = np.stack([DATA, DATA // 2])
    source = open_channels(plain(tmp_path / "a.zarr.zip", data=channels))
    roi = Roi((1, 3, 5), (4, 5, 6))
    np.testing.assert_array_equal(source.read(roi), channels[(slice(None), *roi.slices())])
    with pytest.raises(ShapeError):
        open_source(f"{tmp_path}/a.zarr.zip")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_nothing_is_written_to_it(tmp_path: Path) -> None:
    address = plain(tmp_path / "a.zarr.zip")
    before = Path(address).read_bytes()
    volume = open_volume(address)
    with pytest.raises((KdsegError, ValueError), match=r"read.only"):
        volume.write(volume.roi, DATA)
    assert Path(address).read_bytes() == before


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_damage_is_named(tmp_path: Path) -> None:
    address = plain(tmp_path / "a.zarr.zip")
    whole = Path(address).read_bytes()
    for content in (b"", b"no zip", whole[:-30], whole[: len(whole) // 2]):
        Path(address).write_bytes(content)
        with pytest.raises(UnreadableError, match=r"a\.zarr\.zip.*damaged or no zip"):
            open_source(address)
    with zipfile.ZipFile(tmp_path / "whole.zip", "w"):
        Path(address).write_bytes(whole)
    with zipfile.ZipFile(address) as file:
        at = file.getinfo("c/0/0/0").header_offset + 80
    Path(address).write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    source = open_source(address)
    with pytest.raises(UnreadableError, match=r"cannot read .*a\.zarr\.zip/c/0/0/0: .*damaged"):
        source.read(source.roi)
    rest = Roi((0, 4, 4), (6, 6, 8))
    np.testing.assert_array_equal(source.read(rest), DATA[rest.slices()])
    Path(address).write_bytes(whole)
    empty = rezip(Path(address), tmp_path / "b.zarr.zip", **{"c/0/0/0": b""})
    source = open_source(empty)
    with pytest.raises(UnreadableError, match=r"b\.zarr\.zip/c/0/0/0 is empty"):
        source.read(source.roi)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("packing", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_ways_to_pack_that_may_take_any_memory_are_refused(tmp_path: Path, packing: int) -> None:
    address = rezip(Path(plain(tmp_path / "a.zarr.zip")), tmp_path / "b.zarr.zip", packing)
    with pytest.raises(UnreadableError, match=r"is packed, .*expected deflate .*zip -0"):
        open_source(address)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_packed_file_does_not_take_the_memory_that_it_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipped, "MOST", 2**20)
    first = Path(plain(tmp_path / "a.zarr.zip"))
    for name in ("c/0/0/0", "zarr.json"):
        address = rezip(first, tmp_path / "b.zarr.zip", **{name: bytes(2**26)})
        tracemalloc.start()
        with pytest.raises(UnreadableError, match=rf"{name} is packed, and unpacks to 67108864 bytes"):
            open_source(address).read(Roi((0, 0, 0), DATA.shape))
        assert tracemalloc.get_traced_memory()[1] < 2**24
        tracemalloc.stop()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_size_that_is_false_is_no_way_around(tmp_path: Path) -> None:
    """The sizes in its list of files are lies: Python reads no more than they say, and the checksum differs."""
    first = Path(plain(tmp_path / "a.zarr.zip"))
    address = Path(rezip(first, tmp_path / "b.zarr.zip", **{"c/0/0/0": bytes(2**26)}))
    content = address.read_bytes()
    address.write_bytes(content.replace((2**26).to_bytes(4, "little"), (500).to_bytes(4, "little")))
    tracemalloc.start()
    with pytest.raises(UnreadableError, match="damaged"):
        open_source(str(address)).read(Roi((0, 0, 0), DATA.shape))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_that_is_said_to_be_larger_than_the_whole_is_not_read(tmp_path: Path) -> None:
    address = Path(plain(tmp_path / "a.zarr.zip", data=DATA[:4, :4, :4]))
    with zipfile.ZipFile(address) as file:
        size = file.getinfo("c/0/0/0").file_size
    both = size.to_bytes(4, "little") * 2
    content = address.read_bytes()
    at = content.rindex(both, 0, content.rindex(b"c/0/0/0"))  # in the list at the end: packed and unpacked
    address.write_bytes(content[:at] + len(content).to_bytes(4, "little") * 2 + content[at + 8 :])
    source = open_source(str(address))
    with pytest.raises(UnreadableError, match="c/0/0/0: EOFError; it is damaged"):
        source.read(source.roi)
    address.write_bytes(content[:at] + (2**31).to_bytes(4, "little") * 2 + content[at + 8 :])
    source = open_source(str(address))
    tracemalloc.start()
    with pytest.raises(UnreadableError, match=r"c/0/0/0 is said to have 2147483648 bytes, more than all"):
        source.read(source.roi)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_path_out_of_it_is_none(tmp_path: Path) -> None:
    address = plain(tmp_path / "a.zarr.zip")
    for way in ("../a", "..", "x/../../b"):
        with pytest.raises(UnreadableError, match=r"is no place in .*a\.zarr\.zip"):
            open_source(f"{address}/{way}")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_conversion_and_its_fingerprint(tmp_path: Path) -> None:
    address = image(tmp_path / "a.zarr.zip")
    options = VolumeOptions.model_validate({"raw": f"{address}/0"})
    found = converted_raw(tmp_path / "out", **options.model_dump(exclude_unset=True))
    assert (found.voxel_size, found.offset) == (SIZE, PLACE)
    np.testing.assert_array_equal(found.read(found.roi), np.floor(DATA / 257 + 0.5).astype(np.uint8))
    before = [source_fingerprint(Path(path)) for path in options.files("raw")]
    rezip(Path(address), tmp_path / "b.zarr.zip")
    (tmp_path / "b.zarr.zip").rename(address)
    assert before != [source_fingerprint(Path(path)) for path in options.files("raw")]


def differs(source: Source, data: NDArray[Any]) -> int:
    """Return how often one process reads other voxels than were written."""
    rois = [Roi((z, y, 0), (8, 8, 64)) for z in range(0, 64, 8) for y in range(0, 64, 8)]
    return sum(not np.array_equal(source.read(roi), data[roi.slices()]) for roi in rois)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forks_do_not_share_the_place_in_the_file(tmp_path: Path) -> None:
    data = np.random.default_rng(1).integers(0, 256, (64, 64, 64), dtype=np.uint8)
    source = open_source(plain(tmp_path / "a.zarr.zip", data=data))
    assert differs(source, data) == 0  # the file is open now
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.starmap(differs, [(source, data)] * 6) == [0] * 6


def test_no_bucket(tmp_path: Path) -> None:
    for name in ("a.zarr.zip", "a.zarr.zip/raw", "a.OZX/raw/s0", "a.ozx", "a.npy", "a.png", "a.nii.gz"):
        with pytest.raises(KdsegError, match="only zarr is read from buckets"):
            open_source(f"s3://bucket/{name}")
