"""Conversion: values, places in the world, blocks against the whole array, and bad input that must not pass."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader

from kdseg.config.data import PhantomOptions, StorageOptions, VolumeOptions
from kdseg.config.tasks import ConvertTask, Kind
from kdseg.config.teachers import SegmentationTeacher
from kdseg.errors import (
    ClaimError,
    ConfigError,
    DataError,
    KdsegError,
    ShapeError,
    StageError,
    UnreadableError,
    VoxelSizeError,
)
from kdseg.geometry import Roi, Triple, VoxelSize, blocks, is_multiple
from kdseg.results.manifests import read
from kdseg.volumes import convert
from kdseg.volumes.phantom import phantom_block
from kdseg.volumes.plan import block_shape, convert_block, plan_labels, plan_raw
from kdseg.volumes.pyramid import downsample_mean, downsample_mode
from kdseg.volumes.sources import open_source
from kdseg.volumes.values import to_labels, to_uint8
from kdseg.volumes.volume import create_volume, open_volume

STORAGE = StorageOptions(chunk=(8, 8, 8), shard=(16, 16, 16), levels=3)
VOXEL_SIZE = (40.0, 4.0, 4.5)
RAW = np.random.default_rng(0).integers(0, 256, (30, 40, 50), dtype=np.uint8)
LABELS = np.random.default_rng(1).integers(0, 5, (20, 25, 30)).astype(np.uint64)
OFFSET = (4, 10, 6)
"""Of the labels, in voxels of the raw data."""


def write_hdf5(
    path: Path, raw: NDArray[Any] = RAW, labels: NDArray[Any] | None = LABELS, **attributes: Any
) -> dict[str, Any]:
    """Write a file of the CREMI layout, whose raw data say no place, and return what a configuration says of it."""
    size, shift = attributes.get("resolution", VOXEL_SIZE), attributes.get("offset", np.multiply(OFFSET, VOXEL_SIZE))
    options = {"raw": f"{path}:/volumes/raw", "offset": {"raw": (0, 0, 0)}}
    with h5py.File(path, "w") as file:
        file["volumes/raw"] = raw
        if size is not None:
            file["volumes/raw"].attrs["resolution"] = size
        if labels is not None:
            file["volumes/labels/neuron_ids"] = labels
            file["volumes/labels/neuron_ids"].attrs.update(
                {"resolution": attributes.get("label_resolution", VOXEL_SIZE), "offset": shift}
            )
            options["labels"] = f"{path}:/volumes/labels/neuron_ids"
    return options


def run(kind: Any, folder: Path, options: dict[str, Any], **changes: Any) -> Path:
    manifest = folder / "out" / f"{kind}.json"
    convert.run(
        ConvertTask(
            kind=kind, manifest=manifest, options=VolumeOptions.model_validate(options), storage=STORAGE, **changes
        )
    )
    return manifest


def stored(manifest: Path, level: int = 0) -> NDArray[Any]:
    volume = open_volume(manifest.with_suffix(".zarr"), level=level)
    return volume.read(volume.roi)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("names", ["xyz", "tcyzx", "yxzc"])
def test_all_kinds_in_another_order_are_the_same(tmp_path: Path, names: str) -> None:
    raw, labels = RAW[tuple(slice(n) for n in LABELS.shape)], LABELS
    data: dict[Any, NDArray[Any]] = {"raw": raw, "labels": labels, "mask": labels > 3, "baseline": labels + 1}
    space = [name for name in names if name in "zyx"]
    given: dict[str, dict[str, Any]] = {"zarr": {}, "h5": {}}
    for kind, array in data.items():
        moved = array.transpose(*("zyx".index(name) for name in space))
        moved = moved.reshape([1 if name in "tc" else array.shape["zyx".index(name)] for name in names])
        attributes = {"resolution": [VOXEL_SIZE["zyx".index(name)] for name in space]}
        made = zarr.create_array(str(tmp_path / f"{kind}.zarr"), data=moved, dimension_names=names)
        made.attrs.update(attributes)
        given["zarr"][kind] = f"{tmp_path}/{kind}.zarr"
        with h5py.File(tmp_path / "a.h5", "a") as file:
            file[kind] = moved
            file[kind].attrs.update(attributes)
            for axis, name in enumerate(names):
                file[kind].dims[axis].label = name
        given["h5"][kind] = f"{tmp_path}/a.h5:/{kind}"
    for form, options in given.items():
        for kind, array in data.items():
            manifest = run(kind, tmp_path / form, options)
            np.testing.assert_array_equal(stored(manifest), array)
            assert open_volume(manifest.with_suffix(".zarr")).voxel_size == VOXEL_SIZE


# ---- values


@settings(deadline=None, max_examples=50)
@given(arrays("f8", (2, 3, 4), elements=st.floats(-1e6, 1e6)), st.floats(-100, 100), st.floats(0.01, 1000))
def test_intensities_are_mapped_linearly_rounded_and_clipped(raw: NDArray[Any], low: float, width: float) -> None:
    result = to_uint8(raw, low, low + width)
    exact = (np.clip(raw, low, low + width) - low) / (low + width - low) * 255
    assert result.dtype == np.uint8
    assert np.abs(result - exact).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("raw", "low", "high", "expected"),
    [
        (np.array([0, 1, 128, 254, 255], "u1"), 0, 255, [0, 1, 128, 254, 255]),
        (np.array([0, 128, 129, 65535], "u2"), 0, 65535, [0, 0, 1, 255]),
        (np.array([-32768, 0, 32767], "i2"), -32768, 32767, [0, 128, 255]),
        (np.array([99, 100, 300, 301], ">u2"), 100, 300, [0, 0, 255, 255]),
        (np.array([-1, 0, 0.5, 1, 2], "f4"), 0, 1, [0, 0, 128, 255, 255]),
        (np.array([0, 63, 255], "u1"), 0, 100, [0, 161, 255]),
    ],
)
def test_known_intensities(raw: NDArray[Any], low: float, high: float, expected: list[int]) -> None:
    assert to_uint8(raw[None, None], low, high).tolist() == [[expected]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_raw_data_that_are_not_finite(bad: float) -> None:
    raw = np.zeros((3, 4, 5), np.float32)
    raw[1, 2, 3] = bad
    with pytest.raises(DataError, match=r"\(1, 2, 3\)"):
        to_uint8(raw, 0, 1)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "i8", "u8", "f4", "f8", ">u4"])
def test_labels_of_every_type_become_uint64(dtype: str) -> None:
    result = to_labels(np.arange(24).reshape(2, 3, 4).astype(dtype))
    assert result.dtype == np.uint64
    assert result.dtype.isnative
    np.testing.assert_array_equal(result, np.arange(24).reshape(2, 3, 4))


def test_float_labels_that_are_exact() -> None:
    for dtype, most in (("f2", 2**11 - 1), ("f4", 2**24 - 1), ("f8", 2**53 - 1)):
        assert to_labels(np.array([[[0, most]]], dtype)).tolist() == [[[0, most]]]


def test_reserved_ids_are_unlabelled() -> None:
    ids = np.array([2**64 - 1, 2**64 - 2, 2**64 - 3, 2**63 - 1, 0], np.uint64)
    assert to_labels(ids[None, None]).tolist() == [[[0, 0, 0, 2**63 - 1, 0]]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([1, -1], "i8"), "negative label -1"),
        (np.array([1, -2], "f4"), "negative label -2"),
        (np.array([1, 0.5], "f4"), "whole"),
        (np.array([1, np.nan], "f4"), "NaN"),
        (np.array([1, 2.0**60], "f8"), "float64, which cannot tell ids apart from 9007199254740992 on"),
        (np.array([1, 2.0**53], "f8"), "cannot tell ids apart"),
        (np.array([1, 2.0**24 + 2], "f4"), "float32, which cannot tell ids apart from 16777216 on, .* one of 16777218"),
        (np.array([1, 2.0**11], "f2"), "float16, which cannot tell ids apart from 2048 on"),
        (np.array([1, 2**63], "u8"), "9223372036854775808"),
        (np.array([1, 2**64 - 4], "u8"), "renumber"),
    ],
)
def test_labels_that_are_none(labels: NDArray[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_labels(labels[None, None])


# ---- blocks and levels


@settings(deadline=None, max_examples=50)
@given(*[st.tuples(*[st.integers(1, n)] * 3) for n in (256, 3000, 3000)])
def test_a_block_is_whole_shards_of_bounded_size(shard: Any, unit: Any, shape: Any) -> None:
    block = block_shape(shard, unit, shape)
    assert is_multiple(block, shard)
    assert block == shard or np.prod(block) <= 2**23
    assert all(b < n + s for b, n, s in zip(block, shape, shard, strict=True)) or block == shard


def test_wide_strips_are_read_once() -> None:
    assert block_shape((128, 128, 128), (1, 10, 512), (1000, 1000, 512)) == (128, 128, 512)
    assert block_shape((16, 16, 16), (16, 64, 64), (1000, 1000, 1000)) == (16, 64, 64)


def test_the_volume_is_the_source(tmp_path: Path) -> None:
    options = write_hdf5(tmp_path / "a.h5")
    raw = run("raw", tmp_path, options)
    np.testing.assert_array_equal(stored(raw), RAW)
    np.testing.assert_array_equal(stored(raw, 1), downsample_mean(RAW))
    np.testing.assert_array_equal(stored(raw, 2), downsample_mean(downsample_mean(RAW)))
    labels = run("labels", tmp_path, options)
    np.testing.assert_array_equal(stored(labels), LABELS)
    np.testing.assert_array_equal(stored(labels, 2), downsample_mode(downsample_mode(LABELS)))
    volume = open_volume(labels.with_suffix(".zarr"))
    assert (volume.voxel_size, volume.dtype) == (VOXEL_SIZE, np.uint64)
    np.testing.assert_allclose(volume.offset, np.multiply(OFFSET, VOXEL_SIZE))
    assert read(labels).store == labels.with_name("labels.zarr")
    assert read(labels).stats["voxels"] == LABELS.size


def test_two_workers_write_the_same_files_as_one(tmp_path: Path) -> None:
    options = write_hdf5(tmp_path / "a.h5", RAW[:20, :20, :20])
    for workers in (1, 2):
        run("raw", tmp_path / str(workers), options, workers=workers)
    one, two = (files_of(tmp_path / str(workers) / "out" / "raw.zarr") for workers in (1, 2))
    assert one == two


def test_ome_zarr_opens_the_result(tmp_path: Path) -> None:
    manifest = run("raw", tmp_path, write_hdf5(tmp_path / "a.h5"))
    (node, *_) = list(Reader(parse_url(str(manifest.with_suffix(".zarr"))))())
    assert [level.shape for level in node.data] == [(30, 40, 50), (15, 20, 25), (8, 10, 13)]
    np.testing.assert_array_equal(np.asarray(node.data[0]), RAW)
    scales = [steps[0]["scale"] for steps in node.metadata["coordinateTransformations"]]
    assert scales == [[v * 2**k for v in VOXEL_SIZE] for k in range(3)]


def test_blocks_may_come_in_any_order_and_twice(tmp_path: Path) -> None:
    options = VolumeOptions.model_validate(write_hdf5(tmp_path / "a.h5"))
    whole, parts = tmp_path / "whole" / "raw.json", tmp_path / "raw.zarr"
    convert.run(ConvertTask(kind="raw", manifest=whole, options=options, storage=STORAGE))
    source = open_source(str(options.raw))
    plan = plan_raw(source, options)
    create_volume(parts, shape=RAW.shape, dtype="u1", chunk=STORAGE.chunk, shard=STORAGE.shard, voxel_size=VOXEL_SIZE)
    cells = list(blocks(plan.roi, STORAGE.shard))
    for block in [*cells[::2], *cells[::-1]]:
        convert_block(source, plan, parts, block)
    assert files_of(parts / "0") == files_of(whole.with_suffix(".zarr") / "0")


_STAGE = """
import sys
from pathlib import Path
from kdseg.config.data import StorageOptions, VolumeOptions
from kdseg.config.tasks import ConvertTask
from kdseg.volumes import convert
storage = StorageOptions(chunk=(8, 8, 8), shard=(8, 8, 8), levels=2)
options = VolumeOptions(raw=sys.argv[1])
convert.run(ConvertTask(kind="raw", manifest=Path(sys.argv[2]), options=options, storage=storage))
"""


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    address = str(tmp_path / "s.zarr")
    array = zarr.create_array(address, shape=(16, 24, 40), chunks=(8, 8, 8), dtype="u1")
    array[...] = RAW[:16, :24, :40]
    array.attrs["resolution"] = VOXEL_SIZE
    killed, whole = tmp_path / "killed" / "raw.json", tmp_path / "whole" / "raw.json"
    process = subprocess.Popen([sys.executable, "-c", _STAGE, address, str(killed)], stderr=subprocess.PIPE)
    shards = killed.with_suffix(".zarr") / "0" / "c"
    while process.poll() is None and len(list(shards.glob("*/*/*"))) < 8:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    before = {p: p.stat().st_mtime_ns for p in shards.glob("*/*/*")}
    assert process.returncode == -signal.SIGKILL
    assert not killed.exists()
    for manifest in (killed, whole):
        subprocess.run([sys.executable, "-c", _STAGE, address, str(manifest)], check=True, capture_output=True)
    assert files_of(killed.with_suffix(".zarr")) == files_of(whole.with_suffix(".zarr"))
    again = [p for p, time_ns in before.items() if p.stat().st_mtime_ns != time_ns]
    assert len(again) <= 2


def test_a_damaged_source_is_refused_and_once_mended_it_is_another_source(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    array = zarr.create_array(str(path), shape=(16, 16, 48), chunks=(16, 16, 16), dtype="f4")
    data = np.random.default_rng(0).random((16, 16, 48), np.float32)
    array[...] = data
    array[3, 4, 40] = np.nan
    options = {"raw": str(path), "voxel_size": VOXEL_SIZE, "intensity": (0, 1)}
    with pytest.raises(StageError, match=r"NaN or infinite, the first at \(3, 4, 8\)") as caught:
        run("raw", tmp_path, options)
    assert "\n" not in str(caught.value)
    manifest = tmp_path / "out" / "raw.json"
    assert not manifest.exists()
    array[3, 4, 40] = data[3, 4, 40]
    with pytest.raises(ClaimError, match=r"inputs\.source/raw was"):
        run("raw", tmp_path, options)
    run("raw", tmp_path, options, overwrite=True)
    np.testing.assert_array_equal(stored(manifest), to_uint8(data, 0, 1))


# ---- places


def test_a_region_of_raw_data_and_labels(tmp_path: Path) -> None:
    roi = {"offset": (7, 0, 9), "shape": (20, 33, 20)}
    options = write_hdf5(tmp_path / "a.h5") | {"roi": roi}
    raw, labels = run("raw", tmp_path, options), run("labels", tmp_path, options)
    np.testing.assert_array_equal(stored(raw), RAW[7:27, 0:33, 9:29])
    np.testing.assert_allclose(open_volume(raw.with_suffix(".zarr")).offset, np.multiply((7, 0, 9), VOXEL_SIZE))
    # In voxels of the raw data the labels cover 4:24, 10:35, 6:36.
    np.testing.assert_array_equal(stored(labels), LABELS[3:20, 0:23, 3:23])
    np.testing.assert_allclose(open_volume(labels.with_suffix(".zarr")).offset, np.multiply((7, 10, 9), VOXEL_SIZE))


@settings(deadline=None, max_examples=40)
@given(
    shift=st.tuples(*[st.integers(-12, 12)] * 3),
    origin=st.tuples(*[st.integers(-3, 3)] * 3),
    size=st.tuples(*[st.integers(1, 12)] * 3),
    roi=st.tuples(*[st.tuples(st.integers(0, 7), st.integers(1, 8)) for _ in range(3)]),
)
def test_labels_and_raw_data_stay_together(
    tmp_path_factory: pytest.TempPathFactory, shift: Any, origin: Any, size: Any, roi: Any
) -> None:
    # Each voxel holds its own place in the world, as raw data and as label.
    path = tmp_path_factory.mktemp("h") / "a.h5"
    number = np.arange(1, 40**3 + 1).reshape(40, 40, 40)
    low = tuple(20 + s for s in shift)
    with h5py.File(path, "w") as file:
        for name, first, shape in (("raw", (20, 20, 20), (8, 8, 8)), ("labels", low, size)):
            file[name] = number[tuple(slice(a, a + n) for a, n in zip(first, shape, strict=True))]
            file[name].attrs["resolution"] = (9.7, 4.3, 4.3)
            file[name].attrs["offset"] = np.multiply(np.add(first, origin), (9.7, 4.3, 4.3))
    options = VolumeOptions.model_validate(
        {"raw": f"{path}:/raw", "roi": {"offset": [o for o, _ in roi], "shape": [min(n, 8 - o) for o, n in roi]}}
    )
    raw, labels = open_source(f"{path}:/raw"), open_source(f"{path}:/labels")
    box = plan_raw(raw, options).roi.shift((20, 20, 20)).intersect(Roi(low, size))
    if not box.size:
        with pytest.raises(ShapeError, match="does not meet"):
            plan_labels(labels, options, raw)
        return
    plan = plan_labels(labels, options, raw)
    np.testing.assert_array_equal(labels.read(plan.roi), number[box.slices()])
    np.testing.assert_allclose(plan.offset, np.multiply(np.add(box.offset, origin), (9.7, 4.3, 4.3)))


def _plan(options: dict[str, Any], kind: str = "raw") -> Any:
    values = VolumeOptions.model_validate(options)
    raw = open_source(str(values.raw))
    return plan_raw(raw, values) if kind == "raw" else plan_labels(open_source(str(values.labels)), values, raw)


@pytest.mark.parametrize("offset", [(-1, 0, 0), (0, 0, 31), (11, 0, 0)])
def test_a_region_outside_of_the_volume(tmp_path: Path, offset: Any) -> None:
    options = write_hdf5(tmp_path / "a.h5") | {"roi": {"offset": offset, "shape": (20, 20, 20)}}
    for kind in ("raw", "labels"):
        with pytest.raises(ShapeError, match=r"`roi` .* does not lie inside"):
            _plan(options, kind)


def test_labels_between_voxels(tmp_path: Path) -> None:
    options = write_hdf5(tmp_path / "a.h5", offset=(40.0, 2.0, 0.0))
    with pytest.raises(ShapeError, match="whole voxels"):
        _plan(options, "labels")
    # An offset that was rounded to a float is still whole.
    assert _plan(write_hdf5(tmp_path / "b.h5", offset=(40.001, 3.999, 0.0)), "labels").offset == (40, 4, 0)


def test_labels_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="does not meet"):
        _plan(write_hdf5(tmp_path / "a.h5", offset=(30 * 40.0, 0, 0)), "labels")


PLACE = (120.0, 28.0, 36.0)
"""nm; 3, 7 and 8 voxels."""


def write_pair(folder: Path, shape: Triple, raw_at: VoxelSize | None, labels_at: VoxelSize | None, how: str) -> Any:
    """Write raw data and something beside them, and return their addresses."""
    with h5py.File(folder / "raw.h5", "w") as file:
        file["raw"] = RAW
        file["raw"].attrs["resolution"] = VOXEL_SIZE
        if raw_at is not None:
            file["raw"].attrs["offset"] = raw_at
    ids = np.arange(1, 1 + np.prod(shape)).reshape(shape)
    if how == "tif":
        tifffile.imwrite(folder / "labels.tif", ids.astype(np.uint16))
        return {"raw": f"{folder}/raw.h5:/raw", "labels": f"{folder}/labels.tif"}
    if how == "zarr":
        group = zarr.create_group(folder / "labels.zarr")
        group.create_array("labels", data=ids)
        group["labels"].attrs["resolution"] = VOXEL_SIZE
        if labels_at is not None:
            group["labels"].attrs["offset"] = labels_at
        return {"raw": f"{folder}/raw.h5:/raw", "labels": f"{folder}/labels.zarr/labels"}
    with h5py.File(folder / "labels.h5", "w") as file:
        file["labels"] = ids
        file["labels"].attrs["resolution"] = VOXEL_SIZE
        if labels_at is not None:
            file["labels"].attrs["offset"] = labels_at
    return {"raw": f"{folder}/raw.h5:/raw", "labels": f"{folder}/labels.h5:/labels"}


@pytest.mark.parametrize("kind", ["labels", "baseline", "mask"])
@pytest.mark.parametrize(
    ("how", "raw_at", "labels_at"),
    [("h5", PLACE, None), ("zarr", PLACE, None), ("tif", PLACE, None), ("h5", None, PLACE), ("h5", None, None)],
)
def test_the_same_shape_is_the_same_place_and_that_is_said(
    tmp_path: Path, kind: Kind, how: str, raw_at: Any, labels_at: Any, caplog: pytest.LogCaptureFixture
) -> None:
    options = write_pair(tmp_path, RAW.shape, raw_at, labels_at, how)
    options[kind] = options.pop("labels")
    with caplog.at_level("INFO"):
        manifest = run(kind, tmp_path, options)
    found = stored(manifest)
    assert found.shape == RAW.shape
    assert kind == "mask" or (found == np.arange(1, 1 + RAW.size).reshape(RAW.shape)).all()
    assert open_volume(manifest.with_suffix(".zarr")).offset == (raw_at or (0, 0, 0))
    assert "is taken to lie at the same place" in caplog.text


@pytest.mark.parametrize("kind", ["labels", "baseline", "mask"])
@pytest.mark.parametrize(
    ("how", "raw_at", "labels_at", "line"),
    [
        ("h5", PLACE, None, "offset: {KIND: [z, y, x]}"),
        ("zarr", PLACE, None, "offset: {KIND: [z, y, x]}"),
        ("tif", PLACE, None, "offset: {KIND: [z, y, x]}"),
        ("h5", None, PLACE, "offset: {raw: [0, 0, 0]}"),
        ("tif", None, None, "offset: {raw: [0, 0, 0], KIND: [z, y, x]}"),
    ],
)
def test_a_part_without_a_place_names_the_line_to_add(
    tmp_path: Path, kind: Kind, how: str, raw_at: Any, labels_at: Any, line: str
) -> None:
    options = write_pair(tmp_path, (12, 15, 20), raw_at, labels_at, how)
    options[kind] = options.pop("labels")
    options["roi"] = {"offset": (5, 8, 9), "shape": (4, 5, 6)}
    with pytest.raises(ShapeError, match=re.escape(f"add `{line.replace('KIND', kind)}`")):
        run(kind, tmp_path, options)
    assert not (tmp_path / "out" / f"{kind}.json").exists()
    origin = np.array(raw_at or (0, 0, 0))
    place = tuple(origin + np.array(PLACE))
    options["offset"] = {"raw": None if raw_at else (0, 0, 0), kind: None if labels_at else place}
    found = stored(run(kind, tmp_path, options))
    ids = np.arange(1, 1 + 12 * 15 * 20).reshape(12, 15, 20)
    assert (found == (1 if kind == "mask" else ids[2:6, 1:6, 1:7])).all()


@pytest.mark.parametrize("kind", ["raw", "labels"])
def test_a_place_that_the_file_says_otherwise(tmp_path: Path, kind: str) -> None:
    options = write_pair(tmp_path, RAW.shape, PLACE, PLACE, "h5")
    with pytest.raises(VoxelSizeError, match=rf"the configuration says .* remove `offset: \{{{kind}"):
        _plan(options | {"offset": {kind: (0, 0, 0)}}, kind)
    assert _plan(options | {"offset": {kind: PLACE}}, kind).offset == PLACE


def test_places_of_what_is_not_there() -> None:
    with pytest.raises(ValueError, match="says where mask lies, but the volume has no `mask`"):
        VolumeOptions.model_validate({"raw": "a.zarr", "offset": {"mask": (0, 0, 0)}})
    with pytest.raises(ValueError, match="a phantom brings its own"):
        VolumeOptions.model_validate({"phantom": {}, "offset": {"raw": (0, 0, 0)}})
    teacher = SegmentationTeacher(segmentation={"a": "other.h5:/ids"})
    options = VolumeOptions.model_validate({"raw": "a.zarr", "labels": "b.zarr", "offset": {"labels": PLACE}})
    assert teacher.as_labels("a", options).offset.labels is None


# ---- voxel sizes


def test_voxel_sizes(tmp_path: Path) -> None:
    known = write_hdf5(tmp_path / "a.h5")
    unknown = write_hdf5(tmp_path / "b.h5", resolution=None)
    with pytest.raises(VoxelSizeError, match=r"set `voxel_size: \[z, y, x\]`"):
        _plan(unknown)
    assert _plan(unknown | {"voxel_size": VOXEL_SIZE}).voxel_size == VOXEL_SIZE
    assert _plan(known | {"voxel_size": (40.001, 4, 4.5)}).voxel_size == VOXEL_SIZE
    with pytest.raises(VoxelSizeError, match=r"says its voxels have .* `voxel_size` says"):
        _plan(known | {"voxel_size": (4.5, 4, 40)})
    with pytest.raises(VoxelSizeError, match="resample"):
        _plan(write_hdf5(tmp_path / "c.h5", label_resolution=(40, 8, 9)), "labels")


# ---- types


@pytest.mark.parametrize("dtype", ["c8", "?", "S4", "O"])
@pytest.mark.parametrize("kind", ["raw", "labels"])
def test_types_that_are_neither(tmp_path: Path, dtype: str, kind: str) -> None:
    bad = np.zeros((4, 4, 4), np.uint8).astype(dtype) if dtype != "O" else np.full((4, 4, 4), "text", object)
    options = write_hdf5(tmp_path / "a.h5", **({"raw": bad} if kind == "raw" else {"labels": bad}))
    with pytest.raises(DataError, match=r"expected (integers|one integer)"):
        _plan(options, kind)


def test_floats_need_intensities(tmp_path: Path) -> None:
    options = write_hdf5(tmp_path / "a.h5", RAW.astype("f4"))
    with pytest.raises(DataError, match="set `intensity"):
        _plan(options)
    np.testing.assert_array_equal(stored(run("raw", tmp_path, options | {"intensity": (0, 255)})), RAW)


@pytest.mark.parametrize(
    ("raw", "intensity", "line"),
    [
        (RAW.astype("u2") * 16, None, "6.2 %, some 16 grey levels. Set `intensity: [0, 4095]`"),
        (RAW.astype("u2") * 256, None, None),
        (RAW.astype("i2") * 16, None, "of -32768 to 32767, .* 6.2 %, some 16 grey levels. Set `intensity: [0, 4095]`"),
        (RAW.astype("f4") / 255, (0, 255), "0.4 %, some 2 grey levels. Set `intensity: [0, 1]`"),
        (RAW.astype("f4") / 255, (0, 1), None),
        (RAW.astype("f4") / 510 - 0.25, (-10, 10), "2.5 %, some 7 grey levels. Set `intensity: [-0.25, 0.25]`"),
        (RAW, None, None),
        (np.zeros_like(RAW, np.float32), (0, 1), None),
    ],
)
def test_a_range_that_is_hardly_used_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, raw: Any, intensity: Any, line: str | None
) -> None:
    """Twelve bits in uint16 would leave sixteen grey levels."""
    run("raw", tmp_path, write_hdf5(tmp_path / "a.h5", raw) | {"intensity": intensity})
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == (line is not None), said
    assert line is None or re.search(line.replace("[", r"\["), said[0]), said


@pytest.mark.parametrize("intensity", [(1, 1), (2, 1), (0, float("nan")), (float("-inf"), 0)])
def test_intensities_that_are_none(intensity: Any) -> None:
    with pytest.raises(ValueError, match="low < high"):
        VolumeOptions.model_validate({"raw": "a.zarr", "intensity": intensity})


def test_negative_labels_stop_the_stage(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="negative label -3"):
        run("labels", tmp_path, write_hdf5(tmp_path / "a.h5", labels=LABELS.astype("i8") - 3))
    assert not (tmp_path / "out" / "labels.json").exists()


def test_a_dataset_that_the_volume_has_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set `labels`"):
        run("labels", tmp_path, write_hdf5(tmp_path / "a.h5", labels=None))
    with pytest.raises(ConfigError, match="no baseline"):
        run("baseline", tmp_path, {"phantom": {}})


def test_a_baseline_is_stored_like_labels(tmp_path: Path) -> None:
    options = write_hdf5(tmp_path / "a.h5")
    options["baseline"] = options.pop("labels")
    np.testing.assert_array_equal(stored(run("baseline", tmp_path, options)), LABELS)


# ---- masks


def with_mask(path: Path, mask: NDArray[Any], **attributes: Any) -> dict[str, Any]:
    options = write_hdf5(path)
    with h5py.File(path, "a") as file:
        file["mask"] = mask
        file["mask"].attrs.update(attributes)
    return options | {"mask": f"{path}:/mask"}


@pytest.mark.parametrize("dtype", ["bool", "u1", "i8", "u8"])
def test_a_mask_becomes_0_and_1_in_the_region(tmp_path: Path, dtype: str) -> None:
    mask = (RAW > 100).astype(dtype) * np.ones(1, dtype) * (1 if dtype == "bool" else 3)
    roi = {"offset": (7, 0, 9), "shape": (20, 33, 20)}
    manifest = run("mask", tmp_path, with_mask(tmp_path / "a.h5", mask) | {"roi": roi})
    assert stored(manifest).dtype == np.uint8
    np.testing.assert_array_equal(stored(manifest), RAW[7:27, 0:33, 9:29] > 100)
    raw = open_volume(run("raw", tmp_path, with_mask(tmp_path / "b.h5", mask) | {"roi": roi}).with_suffix(".zarr"))
    volume = open_volume(manifest.with_suffix(".zarr"))
    assert (volume.voxel_size, volume.offset) == (raw.voxel_size, raw.offset)


def test_a_mask_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    whole = np.ones(RAW.shape, np.uint8)
    cases: list[tuple[Any, NDArray[Any], dict[str, Any], str]] = [
        (ShapeError, whole[:29], {}, r"does not say where it lies"),
        (
            ShapeError,
            whole[:29],
            {"offset": (0, 0, 0)},
            r"\(29, 40, 50\) of the \(30, 40, 50\) voxels .* expected all",
        ),
        (ShapeError, whole, {"offset": np.multiply((1, 0, 0), VOXEL_SIZE)}, r"covers \(29, 40, 50\)"),
        (VoxelSizeError, whole, {"resolution": (40.0, 8.0, 9.0)}, "resample one of them"),
        (DataError, whole.astype("f4"), {}, "float32, expected a mask of integers or bools"),
    ]
    for number, (error, mask, attributes, message) in enumerate(cases):
        with pytest.raises(error, match=message):
            run("mask", tmp_path, with_mask(tmp_path / f"{number}.h5", mask, **attributes))
    # a part is enough where only this part is used
    roi = {"shape": (29, 40, 50)}
    run("mask", tmp_path, with_mask(tmp_path / "part.h5", whole[:29], offset=(0, 0, 0)) | {"roi": roi})
    with pytest.raises(ConfigError, match="no mask"):
        run("mask", tmp_path / "b", {"phantom": {}})


# ---- phantoms


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["raw", "labels"])
def test_a_phantom_is_stored_as_it_is_computed(tmp_path: Path, kind: Any) -> None:
    phantom = {"shape": (20, 24, 17), "seed": 3, "voxel_size": (20, 10, 10), "offset": (-5, 7, 100)}
    manifest = run(kind, tmp_path, {"phantom": phantom})
    whole = phantom_block(PhantomOptions.model_validate(phantom), Roi((0, 0, 0), (20, 24, 17)))
    np.testing.assert_array_equal(stored(manifest), whole[0 if kind == "raw" else 1])
    volume = open_volume(manifest.with_suffix(".zarr"))
    assert (volume.voxel_size, volume.offset) == ((20, 10, 10), (-100, 70, 1000))


def test_a_phantom_takes_no_region() -> None:
    for key, value in {"roi": {"shape": (1, 1, 1)}, "baseline": "a.zarr", "labels": "a.zarr", "mask": "a.zarr"}.items():
        with pytest.raises(ValueError, match="a phantom brings its own"):
            VolumeOptions.model_validate({"phantom": {}, key: value})


# ---- a full disk

_SMALL_FILES = """
import resource, sys
from pathlib import Path
from kdseg.config.data import StorageOptions, VolumeOptions
from kdseg.config.tasks import ConvertTask
from kdseg.volumes.plan import convert_block, plan_raw
from kdseg.geometry import blocks
from kdseg.volumes.sources import open_source
from kdseg.volumes import convert
from kdseg.volumes.volume import create_volume

source, out, mode = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
options, storage = VolumeOptions(raw=source), StorageOptions(chunk=(16, 16, 16), shard=(32, 32, 32), levels=1)
if mode == "block":
    raw = open_source(source)
    plan = plan_raw(raw, options)
    create_volume(out, shape=plan.roi.shape, dtype="u1", chunk=storage.chunk, shard=storage.shard, voxel_size=(1, 1, 1))
resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000))
try:
    if mode == "block":
        convert_block(raw, plan, out, next(blocks(plan.roi, storage.shard)))
    else:
        convert.run(ConvertTask(kind="raw", manifest=out, options=options, storage=storage))
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("mode", ["block", "stage"])
def test_a_disk_that_takes_no_more(tmp_path: Path, mode: str) -> None:
    # No file may grow beyond 16 kB, a shard of noise has 32 kB: the write fails half way.
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 32), dtype=np.uint8)
    address = write_hdf5(tmp_path / "a.h5", noise, None)["raw"]
    out = tmp_path / "out" / ("raw.zarr" if mode == "block" else "raw.json")
    done = subprocess.run(
        [sys.executable, "-c", _SMALL_FILES, address, str(out), mode], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("UnreadableError cannot write" if mode == "block" else "StageError convert-raw: ")
    assert "File too large" in done.stdout
    assert done.stdout.count("\n") == 1
    written = [p for p in (tmp_path / "out" / "raw.zarr" / "0").rglob("*") if p.is_file()]
    assert [p.name for p in written] == ["zarr.json"]
    assert not (tmp_path / "out" / "raw.json").exists()


@pytest.mark.skipif(os.geteuid() != 0 or not sys.platform.startswith("linux"), reason="needs to mount a file system")
def test_a_full_disk_and_the_rerun_after_it_was_emptied(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 64), dtype=np.uint8)
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    try:
        (disk / "ballast").write_bytes(bytes(100_000))
        options = write_hdf5(tmp_path / "a.h5", noise, None)
        with pytest.raises(KdsegError, match="No space left"):
            run("raw", disk, options)
        assert not (disk / "out" / "raw.json").exists()
        (disk / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        np.testing.assert_array_equal(stored(run("raw", disk, options)), noise)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_manifest_says_what_the_volume_is_made_of(tmp_path: Path) -> None:
    options = write_hdf5(tmp_path / "a.h5")
    manifest = run("raw", tmp_path, options)
    first = json.loads(manifest.read_text())
    assert first["options"]["voxel_size"] == list(VOXEL_SIZE)
    with pytest.raises(KdsegError, match="roi"):
        run("raw", tmp_path, options | {"roi": {"shape": (16, 16, 16)}})
    run("raw", tmp_path, options | {"roi": {"shape": (16, 16, 16)}}, overwrite=True)
    np.testing.assert_array_equal(stored(manifest), RAW[:16, :16, :16])
    np.testing.assert_array_equal(stored(manifest, 1), downsample_mean(RAW[:16, :16, :16]))


def test_a_damaged_hdf5_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    options = write_hdf5(tmp_path / "a.h5")
    data = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(data[: len(data) // 2])
    with pytest.raises(UnreadableError, match="truncated"):
        run("raw", tmp_path, options)
    assert not (tmp_path / "out").exists()
