"""Volumes on disk: what is written is read back, by us and by others; what is wrong is refused."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader

from kdseg.errors import MissingError, ShapeError, UnreadableError, VoxelSizeError
from kdseg.geometry import Roi
from kdseg.volumes.affinities import affinity_offsets
from kdseg.volumes.volume import Volume, create_volume, open_volume


def make(path: Path, **changes: Any) -> Volume:
    values: dict[str, Any] = {
        "shape": (20, 18, 12), "dtype": "u2", "chunk": (4, 4, 4), "shard": (8, 8, 8), "voxel_size": (9.7, 4.0, 4.5),
        "offset": (10.0, 0.0, -3.5),
    }  # fmt: skip
    return create_volume(path, **(values | changes))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 2**16, (20, 18, 12), dtype=np.uint16)
    volume = make(tmp_path / "a b.zarr")
    for roi in (Roi((0, 0, 0), (8, 16, 12)), Roi((8, 0, 0), (12, 16, 12)), Roi((0, 16, 0), (20, 2, 12))):
        volume.write(roi, data[roi.slices()])
    again = open_volume(tmp_path / "a b.zarr")
    assert (again.shape, again.channels, again.dtype) == ((20, 18, 12), None, np.uint16)
    assert (again.voxel_size, again.offset, again.write_unit) == ((9.7, 4.0, 4.5), (10.0, 0.0, -3.5), (8, 8, 8))
    part = Roi((3, 1, 5), (15, 17, 2))
    np.testing.assert_array_equal(again.read(part), data[part.slices()])


def test_channels_come_first(tmp_path: Path) -> None:
    offsets = [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]
    volume = make(tmp_path / "v.zarr", channels=3, attributes={"offsets": offsets}, dtype="u1")
    data = np.arange(3 * 8 * 8 * 8).reshape(3, 8, 8, 8).astype(np.uint8)
    volume.write(Roi((8, 8, 0), (8, 8, 8)), data)
    again = open_volume(tmp_path / "v.zarr")
    assert again.channels == 3
    assert again.array.metadata.dimension_names == ("c", "z", "y", "x")  # type: ignore[union-attr]
    np.testing.assert_array_equal(again.read(Roi((9, 8, 0), (2, 8, 8))), data[:, 1:3])
    assert affinity_offsets(again) == ((-1, 0, 0), (0, -1, 0), (0, 0, -1))


def test_some_channels_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    data = np.arange(5 * 12 * 10 * 9, dtype=np.uint16).reshape(5, 12, 10, 9)
    volume = create_volume(
        tmp_path / "v.zarr",
        shape=(12, 10, 9),
        dtype=np.uint16,
        chunk=(4, 4, 4),
        shard=(8, 8, 8),
        voxel_size=(1.0, 1.0, 1.0),
        channels=5,
    )
    volume.write(volume.roi, data)
    roi = Roi((2, 1, 3), (7, 8, 5))
    assert np.array_equal(volume.read(roi, [3, 0]), data[[3, 0], 2:9, 1:9, 3:8])
    with pytest.raises(ShapeError, match="5 channels"):
        volume.read(roi, [0, 5])
    with pytest.raises(ShapeError, match="None channels"):
        make(tmp_path / "w.zarr").read(Roi((0, 0, 0), (1, 1, 1)), [0])


def test_volumes_that_are_no_affinities(tmp_path: Path) -> None:
    for name, changes in {
        "no-offsets": {"channels": 3, "dtype": "u1"},
        "one-missing": {"channels": 2, "dtype": "u1", "attributes": {"offsets": [[-1, 0, 0]]}},
        "no-channels": {"dtype": "u1", "attributes": {"offsets": [[-1, 0, 0]]}},
        "floats": {"channels": 1, "dtype": "f4", "attributes": {"offsets": [[-1, 0, 0]]}},
    }.items():
        with pytest.raises(ShapeError, match="expected uint8 affinities"):
            affinity_offsets(make(tmp_path / f"{name}.zarr", **changes))


@pytest.mark.parametrize(
    ("roi", "message"),
    [
        (Roi((1, 0, 0), (7, 8, 8)), "multiples"),
        (Roi((0, 0, 0), (4, 8, 8)), "multiples"),
        (Roi((16, 0, 0), (8, 8, 8)), "inside"),
    ],
)
def test_a_shard_is_written_whole_or_not_at_all(tmp_path: Path, roi: Roi, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        make(tmp_path / "v.zarr").write(roi, np.ones(roi.shape, np.uint16))


def test_data_of_another_shape_than_the_region(tmp_path: Path) -> None:
    volume = make(tmp_path / "v.zarr", channels=2)
    with pytest.raises(ShapeError, match="expected"):
        volume.write(Roi((0, 0, 0), (8, 8, 8)), np.ones((8, 8, 8), np.uint16))
    with pytest.raises(ShapeError, match="inside"):
        volume.read(Roi((0, 0, 0), (21, 1, 1)))


def test_a_volume_that_is_there_is_kept(tmp_path: Path) -> None:
    roi = Roi((0, 0, 0), (8, 8, 8))
    make(tmp_path / "v.zarr").write(roi, np.full(roi.shape, 7, np.uint16))
    assert (make(tmp_path / "v.zarr").read(roi) == 7).all()
    with pytest.raises(ShapeError, match="holds uint16"):
        make(tmp_path / "v.zarr", shape=(20, 18, 13))
    with pytest.raises(ShapeError, match="expected uint8"):
        make(tmp_path / "v.zarr", dtype="u1")


def test_the_centre_of_a_volume_does_not_move_with_the_level(tmp_path: Path) -> None:
    make(tmp_path / "v.zarr", levels=3, shape=(16, 16, 16))
    centres = []
    for level in range(3):
        volume = open_volume(tmp_path / "v.zarr", level=level)
        assert volume.voxel_size is not None
        last = [o + (n - 1) * v for o, n, v in zip(volume.offset, volume.shape, volume.voxel_size, strict=True)]
        centres.append([(a + b) / 2 for a, b in zip(volume.offset, last, strict=True)])
    np.testing.assert_allclose(centres[1:], [centres[0]] * 2)


def test_ome_zarr_reads_what_we_write(tmp_path: Path) -> None:
    # The reference implementation of the format is the oracle.
    volume = make(tmp_path / "v.zarr", levels=2)
    data = np.random.default_rng(0).integers(0, 2**16, volume.shape, dtype=np.uint16)
    volume.write(volume.roi, data)
    (node, *_) = list(Reader(parse_url(str(tmp_path / "v.zarr")))())
    assert [level.shape for level in node.data] == [(20, 18, 12), (10, 9, 6)]
    np.testing.assert_array_equal(np.asarray(node.data[0]), data)
    assert [(a["name"], a["unit"]) for a in node.metadata["axes"]] == [(a, "nanometer") for a in "zyx"]
    assert node.metadata["coordinateTransformations"][0] == [
        {"type": "scale", "scale": [9.7, 4.0, 4.5]},
        {"type": "translation", "translation": [10.0, 0.0, -3.5]},
    ]


@pytest.mark.parametrize("channels", [None, 2])
def test_our_metadata_follow_the_specification(tmp_path: Path, channels: int | None) -> None:
    models = pytest.importorskip("ome_zarr_models.v05")
    make(tmp_path / "v.zarr", levels=3, channels=channels)
    image = models.Image.from_zarr(zarr.open_group(str(tmp_path / "v.zarr"), mode="r"))
    assert len(image.attributes.ome.multiscales[0].datasets) == 3


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_plain_arrays(tmp_path: Path, zarr_format: Any) -> None:
    path = tmp_path / "p.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)
    array = group.create_array("raw", shape=(4, 5, 6), chunks=(2, 2, 2), dtype="u1")
    array[...] = np.arange(120).reshape(4, 5, 6)
    assert open_volume(path / "raw").voxel_size is None
    assert open_volume(path / "raw").offset == (0, 0, 0)
    array.attrs.update({"resolution": [40, 4, 4], "offset": [80, 0, 8]})
    volume = open_volume(path / "raw")
    assert (volume.voxel_size, volume.offset) == ((40, 4, 4), (80, 0, 8))
    assert volume.read(Roi((1, 2, 3), (1, 1, 1))).item() == 30 + 12 + 3
    with pytest.raises(MissingError, match="raw"):
        open_volume(path)
    with pytest.raises(MissingError, match="no dataset at"):
        open_volume(path / "row")


def _ome(path: Path, shape: tuple[int, ...], image: dict[str, Any], zarr_format: Any = 2) -> Path:
    group = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)
    group.create_array("s0", shape=shape, chunks=shape, dtype="u1")
    values = {"multiscales": [{"datasets": [_dataset([1.0] * len(shape))], **image}]}
    group.attrs.update(values if zarr_format == 2 else {"ome": {"version": "0.5", **values}})
    return path


def _dataset(scale: list[float], translation: list[float] | None = None) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
    steps += [] if translation is None else [{"type": "translation", "translation": translation}]
    return {"path": "s0", "coordinateTransformations": steps}


def _axes(names: str, unit: str | None = "nanometer") -> list[dict[str, str]]:
    return [{"name": name, "type": "space"} | ({} if unit is None else {"unit": unit}) for name in names]


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_units_and_outer_transformations_become_nm(tmp_path: Path, zarr_format: int) -> None:
    image = {
        "axes": _axes("zyx", "micrometer"),
        "datasets": [_dataset([0.04, 0.004, 0.004], [1.0, 2.0, 3.0])],
        "coordinateTransformations": [{"type": "scale", "scale": [2.0, 1.0, 1.0]}],
    }
    volume = open_volume(_ome(tmp_path / "o.zarr", (4, 4, 4), image, zarr_format))
    np.testing.assert_allclose(volume.voxel_size or (), (80, 4, 4))
    np.testing.assert_allclose(volume.offset, (2000, 2000, 3000))


def test_a_scale_without_a_unit_is_no_voxel_size(tmp_path: Path) -> None:
    image = {"axes": _axes("zyx", None)}
    volume = open_volume(_ome(tmp_path / "o.zarr", (4, 4, 4), image))
    assert (volume.voxel_size, volume.placed) == (None, False)
    image |= {"datasets": [_dataset([2.0, 1.0, 1.0], [5.0, 0.0, 0.0])]}
    volume = open_volume(_ome(tmp_path / "t.zarr", (4, 4, 4), image))
    assert (volume.voxel_size, volume.placed, volume.offset) == (None, False, (0, 0, 0))
    assert volume.unscaled is not None
    assert volume.unscaled.start == (2.5, 0, 0)


@pytest.mark.parametrize(
    ("shape", "image", "error", "message"),
    [
        ((4, 4, 4), {"axes": _axes("xyt")}, ShapeError, r"\['x', 'y', 't'\], expected"),
        ((4, 4), {"axes": _axes("zx")}, ShapeError, r"\['z', 'x'\], expected"),
        ((2, 1, 4, 4, 4), {"axes": _axes("tczyx")}, ShapeError, r"\(2, 1, 4, 4, 4\)"),
        ((4, 4, 4), {"axes": ["z", "y", "x"]}, VoxelSizeError, "not understood"),
        ((4, 4, 4), {"axes": _axes("zyx"), "datasets": [_dataset([1.0])]}, VoxelSizeError, "not understood"),
        ((4, 4, 4), {"axes": _axes("zyx"), "datasets": [_dataset([0.0, 1, 1])]}, VoxelSizeError, "positive"),
        ((4, 4, 4), {"axes": _axes("zyx"), "datasets": [_dataset([1.0] * 3) | {"path": "s9"}]}, MissingError, "s9"),
        ((4, 4, 4), {}, VoxelSizeError, "axes"),
    ],
)
def test_images_that_are_not_understood(
    tmp_path: Path, shape: tuple[int, ...], image: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        open_volume(_ome(tmp_path / "o.zarr", shape, image))


@pytest.mark.parametrize("kept", [0, 10, -1, 0.5])
def test_a_damaged_shard_is_named_not_read_as_zeros(tmp_path: Path, kept: float) -> None:
    volume = make(tmp_path / "v.zarr", shape=(8, 8, 8))
    volume.write(volume.roi, np.random.default_rng(0).integers(1, 2**16, (8, 8, 8), dtype=np.uint16))
    (shard,) = (p for p in (tmp_path / "v.zarr/0/c").rglob("*") if p.is_file())
    data = shard.read_bytes()
    shard.write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(UnreadableError, match=r"cannot be read|damaged"):
        open_volume(tmp_path / "v.zarr").read(volume.roi)


def test_damaged_metadata(tmp_path: Path) -> None:
    make(tmp_path / "v.zarr")
    for name in ("zarr.json", "0/zarr.json"):
        path = tmp_path / "v.zarr" / name
        text = path.read_text()
        for wrong in (text[: len(text) // 2], "[" * 100_000):
            path.write_text(wrong)
            for address in (tmp_path / "v.zarr", tmp_path / "v.zarr" / "0"):
                with pytest.raises(UnreadableError, match=r"cannot (open|read)"):
                    open_volume(address)
        path.write_text(text)
    text = (tmp_path / "v.zarr/0/zarr.json").read_text()
    (tmp_path / "v.zarr/0/zarr.json").write_text(text.replace('"sharding_indexed"', '"no-such-codec"'))
    with pytest.raises(UnreadableError, match="no-such-codec"):
        open_volume(tmp_path / "v.zarr")


def test_what_is_no_zarr(tmp_path: Path) -> None:
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(MissingError, match="no zarr"):
        open_volume(tmp_path / "empty.zarr")
    for text in ("hello", "[" * 100_000):
        (tmp_path / "file.zarr").write_text(text)
        with pytest.raises(UnreadableError, match="cannot open"):
            open_volume(tmp_path / "file.zarr")


def test_the_store_is_sharded_zarr_v3(tmp_path: Path) -> None:
    make(tmp_path / "v.zarr")
    values = json.loads((tmp_path / "v.zarr/0/zarr.json").read_text())
    assert values["zarr_format"] == 3
    assert values["codecs"][0]["name"] == "sharding_indexed"
    assert values["chunk_grid"]["configuration"]["chunk_shape"] == [8, 8, 8]
    assert values["codecs"][0]["configuration"]["chunk_shape"] == [4, 4, 4]


@pytest.mark.parametrize("compress", [True, False])
def test_compression_is_a_choice(tmp_path: Path, compress: bool) -> None:
    make(tmp_path / "v.zarr", compress=compress)
    values = json.loads((tmp_path / "v.zarr/0/zarr.json").read_text())
    names = [codec["name"] for codec in values["codecs"][0]["configuration"]["codecs"]]
    assert names == (["bytes", "blosc", "crc32c"] if compress else ["bytes"])


@pytest.mark.parametrize("shape", [(16, 16, 16), (10, 16, 16)])
def test_a_file_is_whole_while_it_is_written_again(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    volume = create_volume(
        tmp_path / "x.zarr", shape=shape, dtype=np.uint8, chunk=(8, 8, 8), shard=(16, 16, 16), voxel_size=(1, 1, 1)
    )
    noise = np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)
    volume.write(volume.roi, noise)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(UnreadableError, match="cannot write"):
            volume.write(volume.roi, noise + 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (volume.read(volume.roi) == noise).all()
    volume.write(volume.roi, np.zeros_like(noise))
    assert not volume.read(volume.roi).any()
