"""N5 datasets that tensorstore wrote, and such as the specification has them; with attributes of four programs."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import pickle
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from toy_volumes import converted_raw

from kdseg.config.data import VolumeOptions
from kdseg.config.overlap import source_of
from kdseg.errors import DataError, KdsegError, MissingError, ShapeError, UnreadableError, VoxelSizeError
from kdseg.geometry import Roi
from kdseg.results.manifests import source_fingerprint
from kdseg.volumes.opened import open_array
from kdseg.volumes.sources import open_channels, open_source, source_state

DATA = np.random.default_rng(0).integers(1, 2**16, (6, 9, 11), dtype=np.uint16)
PACK: dict[str, Callable[[bytes], bytes]] = {
    "raw": bytes,
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda data: bytes(numcodecs.Zstd().encode(data)),
    "blosc": lambda data: bytes(numcodecs.Blosc("zstd").encode(data)),
}


def attributes(path: Path, **values: Any) -> None:
    path.mkdir(parents=True, exist_ok=True)
    file = path / "attributes.json"
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | values))


def encoded(voxels: NDArray[Any], packing: str = "gzip", mode: int = 0) -> bytes:
    """Return a block (…, z, y, x), whose numbers of voxels are noted x first, its values big-endian and x fastest."""
    head = struct.pack(f">HH{voxels.ndim}I", mode, voxels.ndim, *voxels.shape[::-1])
    return head + PACK[packing](voxels.astype(voxels.dtype.newbyteorder(">")).tobytes())


def write(
    path: Path, data: NDArray[Any] = DATA, block: Sequence[int] = (4, 4, 4), packing: str = "gzip", **more: Any
) -> str:
    """Write (…, z, y, x) by the specification."""
    compression = {"type": "gzip", "useZlib": True} if packing == "zlib" else {"type": packing}
    attributes(
        path,
        dimensions=data.shape[::-1],
        blockSize=[*block][::-1],
        dataType=data.dtype.name,
        compression=compression,
        **more,
    )
    for cell in product(*(range(-(-n // b)) for n, b in zip(data.shape, block, strict=True))):
        part = data[tuple(slice(k * b, (k + 1) * b) for k, b in zip(cell, block, strict=True))]
        file = path.joinpath(*(str(k) for k in cell[::-1]))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(part, packing))
    return str(path)


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("dtype", ["u1", "u8", "i4", "f4"])
def test_blocks_by_the_specification(tmp_path: Path, packing: str, dtype: str) -> None:
    data = (DATA % 120).astype(dtype)
    source = open_source(write(tmp_path / "a.n5" / "raw", data, packing=packing))
    assert (source.data.shape, source.unit) == (DATA.shape, (4, 4, 4))
    assert source.data.dtype == np.dtype(dtype).newbyteorder(">")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).read(source.roi), data)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(["uint8", "uint16", "int32", "uint64", "float32", "float64"]),
    compression=st.sampled_from(
        [
            {"type": "raw"},
            {"type": "gzip"},
            {"type": "gzip", "useZlib": True},
            {"type": "bzip2"},
            {"type": "xz"},
            {"type": "zstd"},
            {"type": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1},
        ]
    ),
    block=st.tuples(*(st.integers(1, 12) for _ in range(3))),
    data=st.data(),
)
def test_any_region_as_tensorstore_reads_it(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, compression: Any, block: Sequence[int], data: st.DataObject
) -> None:
    tensorstore = pytest.importorskip("tensorstore", reason="tensorstore writes and reads N5")
    path = tmp_path_factory.mktemp("n5") / "a.n5"
    spec = {
        "driver": "n5",
        "kvstore": {"driver": "file", "path": f"{path}/"},
        "metadata": {
            "dimensions": DATA.shape[::-1],
            "blockSize": [*block],
            "dataType": dtype,
            "compression": compression,
            "axes": ["x", "y", "z"],
        },
    }
    store = tensorstore.open(spec, create=True).result()
    low, size = (
        [data.draw(st.integers(a, n - b)) for a, n, b in zip(first, DATA.shape, last, strict=True)]
        for first, last in (((0, 0, 0), (1, 1, 1)), ((1, 1, 1), (0, 0, 0)))
    )
    roi = Roi((low[0], low[1], low[2]), (size[0], size[1], size[2])).intersect(Roi((0, 0, 0), DATA.shape))
    written = (DATA % 120).astype(dtype)[roi.slices()]
    store[tuple(reversed(roi.slices()))].write(written.T).result()  # other blocks are not there
    whole = store.read().result().T
    source = open_source(str(path))
    assert source.data.shape == DATA.shape
    np.testing.assert_array_equal(source.read(source.roi), whole)
    np.testing.assert_array_equal(source.read(roi), written)


def test_blocks_at_the_ends_may_be_smaller_or_whole(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.n5"))
    whole = np.full((4, 4, 4), 7, np.uint16)
    whole[:2, :1, :3] = DATA[4:, 8:, 8:]
    (path / "2" / "2" / "1").write_bytes(encoded(whole))
    source = open_source(str(path))
    np.testing.assert_array_equal(source.read(source.roi), DATA)
    (path / "0" / "0" / "0").write_bytes(encoded(DATA[:3, :2, :4]))  # as before the dataset grew
    found = source.read(source.roi)
    wanted = DATA.copy()
    wanted[3, :4, :4] = wanted[:4, 2:4, :4] = 0
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("axes", "shown"), [(["x", "y", "z"], (0, 1, 2)), (["z", "y", "x"], (2, 1, 0)), (["y", "x", "z"], (0, 2, 1))]
)
def test_axes_are_those_of_the_file(tmp_path: Path, axes: list[str], shown: tuple[int, int, int]) -> None:
    """`axes` are in the order of `dimensions`, and so are sizes."""
    size = {"x": 4.0, "y": 5.0, "z": 40.0}
    said = {"axes": axes, "resolution": [size[name] for name in axes], "offset": [10 * size[name] for name in axes]}
    source = open_source(write(tmp_path / "a.n5", **said, units=["nm", "nm", "nm"]))
    np.testing.assert_array_equal(source.read(source.roi), DATA.transpose(shown))
    assert (source.voxel_size, source.offset, source.placed) == ((40, 5, 4), (400, 50, 40), True)
    assert source.unit == (4, 4, 4)


def test_axes_that_are_none(tmp_path: Path) -> None:
    for axes, error in ((["x", "y"], VoxelSizeError), (["x", "y", "x"], ShapeError), (["i", "j", "k"], ShapeError)):
        with pytest.raises(error, match=r"a\.n5"):
            open_source(write(tmp_path / "a.n5", axes=axes))
    image = open_source(write(tmp_path / "b.n5", DATA[0], (4, 4), resolution=[4, 5]))
    np.testing.assert_array_equal(image.read(image.roi), DATA[:1])
    assert image.voxel_size is None  # nobody says how thick it is


def test_channels(tmp_path: Path) -> None:
    channels = np.stack([DATA, DATA // 2])
    address = write(tmp_path / "a.n5", channels, (1, 4, 4, 4), resolution=[4, 5, 40])
    source = open_channels(address)
    assert (source.channels, source.shape, source.voxel_size) == (2, DATA.shape, (40, 5, 4))
    roi = Roi((1, 2, 3), (4, 5, 6))
    np.testing.assert_array_equal(source.read(roi), channels[(slice(None), *roi.slices())])
    with pytest.raises(ShapeError, match="one channel"):
        open_source(address)
    first = np.moveaxis(channels, 0, -1)  # (z, y, x, c): the channel is first in the file
    source = open_channels(write(tmp_path / "b.n5", first, (4, 4, 4, 2), axes=["c", "x", "y", "z"]))
    np.testing.assert_array_equal(source.read(Roi((0, 0, 0), DATA.shape)), channels)
    one = open_source(write(tmp_path / "c.n5", DATA[None, None], (1, 1, 4, 4, 4)))
    np.testing.assert_array_equal(one.read(one.roi), DATA)


def test_sizes_as_programs_write_them(tmp_path: Path) -> None:
    """Neuroglancer, n5-viewer with a unit and without one, Paintera, and COSEM, which names the axes of each value."""
    nm = ["nm", "nm", "nm"]
    turned = {"axes": ["z", "y", "x"], "scale": [40, 5, 4], "translate": [80, 10, 4], "units": nm}
    um = {"axes": ["x", "y", "z"], "scale": [0.004, 0.005, 0.04], "units": ["um"] * 3}
    for name, said, size, place in (
        ("neuroglancer", {"resolution": [4, 5, 40], "units": nm}, (40, 5, 4), None),
        ("metres", {"resolution": [4e-9, 5e-9, 4e-8], "units": ["m", "m", "m"]}, (40, 5, 4), None),
        ("viewer", {"pixelResolution": {"unit": "um", "dimensions": [0.004, 0.005, 0.04]}}, (40, 5, 4), None),
        ("paintera", {"resolution": [4.0, 5.0, 40.0], "offset": [8.0, 0.0, 80.0]}, (40, 5, 4), (80, 0, 8)),
        (
            "cosem",
            {"transform": turned, "pixelResolution": {"dimensions": [4, 5, 40], "unit": "nm"}},
            (40, 5, 4),
            (80, 10, 4),
        ),
        ("micrometres", {"transform": um}, (40, 5, 4), None),
        ("nothing", {}, None, None),
        ("list", {"pixelResolution": [4, 5, 40]}, None, None),
        ("list with units", {"pixelResolution": [4, 5, 40], "units": nm}, (40, 5, 4), None),
        ("pixels", {"resolution": [4, 5, 40], "units": ["px"] * 3}, None, None),
        ("coarse", {"resolution": [4, 5, 40], "downsamplingFactors": [2, 2, 1]}, (40, 10, 8), None),
        ("straight", {"affineTransform": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]}, None, None),
    ):
        source = open_source(write(tmp_path / f"{name}.n5", **said))
        assert source.voxel_size == (None if size is None else pytest.approx(size)), name
        assert source.placed == (place is not None), name
        assert place is None or source.offset == pytest.approx(place), name


def test_sizes_that_are_not_understood(tmp_path: Path) -> None:
    nm = {"unit": "nm", "dimensions": [4, 5, 40]}
    for k, (said, words) in enumerate(
        (
            ({"resolution": [4, 5]}, "resolution .*expected a number for each"),
            ({"resolution": "4 nm"}, "resolution .*expected a number for each"),
            ({"resolution": [4, 5, 0]}, "expected .*positive"),
            ({"resolution": [4, 5, 40], "units": ["nm"]}, "units .*expected one for each"),
            ({"resolution": [4, 5, 41], "pixelResolution": nm}, "contradict each other"),
            (
                {
                    "transform": {"axes": ["z", "y", "x"], "scale": [4, 5, 40], "units": ["nm"] * 3},
                    "pixelResolution": nm,
                },
                "contradict",
            ),
            ({"transform": {"axes": ["z", "y"], "scale": [4, 5]}}, "transform .*expected axes"),
            ({"transform": {"axes": ["z", "y", "x"], "scale": [4, 5]}}, "transform .*expected axes"),
            (
                {"resolution": [4, 5, 40], "affineTransform": [[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]},
                "affineTransform",
            ),
            (
                {
                    "transform": {
                        "axes": ["z", "y", "x"],
                        "scale": [40, 5, 4],
                        "translate": [0, 0, 1],
                        "units": ["nm"] * 3,
                    },
                    "offset": [0, 0, 0],
                },
                "contradict",
            ),
            ({"resolution": [4, 5, 40], "downsamplingFactors": [2, 2]}, "downsamplingFactors .*expected"),
            ({"resolution": [4, 5, 40], "downsamplingFactors": [2, 2, 0], "offset": [0, 0, 0]}, "expected positive"),
            ({"pixelResolution": {"unit": "nm"}}, "pixelResolution .*expected"),
            ({"resolution": [4, 5, 40], "units": "nm", "pixelResolution": nm | {"unit": "um"}}, "contradict"),
            ({"resolution": [10**400] * 3}, "resolution .*expected a number"),
            ({"axis_names": ["z", "y", "x"], "resolution": [40, 5, 4], "offset": [0, 0, 0]}, "axis_names"),
            ({"voxel_size": [40, 5, 4], "offset": [0, 0, 0]}, r"voxel_size.*order of dimensions, \['x', 'y', 'z'\]"),
            ({"_ARRAY_DIMENSIONS": ["z", "y", "x"]}, "_ARRAY_DIMENSIONS"),
            ({"resolution": "454"}, "resolution .*expected a number"),
            ({"resolution": [4, 5, 40], "offset": [10**400] * 3}, "offset .*expected a number"),
            ({"transform": {"axes": ["z", "y", "x"], "scale": [10**400] * 3, "units": ["nm"] * 3}}, "transform .*axes"),
        )
    ):
        with pytest.raises(VoxelSizeError, match=words):
            open_source(write(tmp_path / f"{k}.n5", **said))


@pytest.mark.parametrize(
    ("axes", "shown"),
    [
        (["c", "x", "y", "z"], (0, 1, 2, 3)),
        (["x", "y", "c^", "z"], (1, 0, 2, 3)),
        (["X", "Y", "Z", "C"], (3, 0, 1, 2)),
        (["z", "c", "y", "x"], (2, 3, 1, 0)),
    ],
)
def test_three_numbers_are_those_of_the_axes_in_space(tmp_path: Path, axes: list[str], shown: tuple[int, ...]) -> None:
    """They are in the order of the file, whichever axis is that of the channels."""
    size, place = {"x": 4.0, "y": 5.0, "z": 0.04}, {"x": 100.0, "y": 200.0, "z": 0.3}
    unit, factor = {"x": "nm", "y": "nm", "z": "um"}, {"x": 2, "y": 4, "z": 1}
    order = [name.lower() for name in axes if name.lower() in size]
    said = {name: [of[axis] for axis in order] for name, of in (("resolution", size), ("offset", place))}
    said |= {"units": [unit[axis] for axis in order], "downsamplingFactors": [factor[axis] for axis in order]}
    dims = dict(zip("cxyz", (2, *reversed(DATA.shape)), strict=True))
    shape = [dims[name.lower().strip("^")] for name in axes]
    source = open_channels(write(tmp_path / "a.n5", np.ones(shape[::-1], np.uint8), (4, 4, 4, 4), axes=axes, **said))
    assert (source.channels, source.shape) == (2, DATA.shape)
    assert source.voxel_size == pytest.approx((40, 20, 8))
    assert source.offset == pytest.approx((300, 207.5, 102))
    path = write(tmp_path / "b.n5", DATA[..., None], (4, 4, 4, 1), resolution=[4, 5, 40])  # 1, x, y, z in the file
    assert open_source(path).voxel_size == (40, 5, 4)


def test_an_offset_of_the_group_is_that_of_its_finest_dataset(tmp_path: Path) -> None:
    """Whoever says the size of a coarser one."""
    root = tmp_path / "a.n5" / "raw"
    attributes(root, scales=[[1, 1, 1], [2, 2, 1]], offset=[0, 0, 0], resolution=[4, 5, 40])
    path = write(root / "s1")
    for own in ({}, {"resolution": [8, 10, 40]}, {"resolution": [4, 5, 40], "downsamplingFactors": [2, 2, 1]}):
        attributes(Path(path), **own)
        assert (open_source(path).voxel_size, open_source(path).offset) == ((40, 10, 8), (0, 2.5, 2))
    attributes(Path(write(root / "s2")), resolution=[16, 20, 40])
    with pytest.raises(VoxelSizeError, match="nobody says how much"):
        open_source(f"{root}/s2")
    attributes(root / "s2", offset=[8, 0, 0])
    assert open_source(f"{root}/s2").offset == (0, 0, 8)


def test_units_are_compared_with_sizes(tmp_path: Path) -> None:
    um = {"unit": "um", "dimensions": [0.004, 0.004, 0.04]}
    said = {"resolution": [4, 4, 40], "pixelResolution": um, "offset": [8, 0, 0]}
    for units in ({}, {"units": "nm"}, {"units": ["nm"] * 3}):
        source = open_source(write(tmp_path / f"{len(str(units))}.n5", **said, **units))
        assert (source.voxel_size, source.offset) == ((40, 4, 4), (0, 0, 8))
    pixels = {"resolution": [0.004, 0.004, 0.04], "units": "px", "pixelResolution": um}
    assert open_source(write(tmp_path / "b.n5", **pixels)).voxel_size == pytest.approx((40, 4, 4))


def test_places_without_a_size_or_a_unit(tmp_path: Path) -> None:
    nm = {"pixelResolution": {"unit": "nm", "dimensions": [4, 5, 40]}}
    plain = {"axes": ["z", "y", "x"], "scale": [40, 5, 4]}
    for name, said, place in (
        ("no unit", nm | {"transform": plain | {"translate": [80, 10, 4]}}, (80, 10, 4)),
        ("voxels", nm | {"transform": plain | {"scale": [1, 1, 1], "translate": [2, 2, 1]}}, (80, 10, 4)),
        ("offset", {"offset": [4, 10, 80], "transform": plain | {"units": ["nm"] * 3}}, (80, 10, 4)),
        ("um", {"offset": [1, 2, 3], "units": "um"}, (3000, 2000, 1000)),
        ("no size", {"downsamplingFactors": [2, 2, 2], "offset": [0, 0, 0]}, (0, 0, 0)),
    ):
        source = open_source(write(tmp_path / f"{name}.n5", **said))
        assert (source.placed, source.offset) == (True, place), name
        assert source.voxel_size == (None if name in ("um", "no size") else (40, 5, 4)), name


def test_resolutions_of_a_group(tmp_path: Path) -> None:
    """The group says size and place of the finest one, and how much coarser the others are."""
    for name, factors in (("downsamplingFactors", True), ("scales", True), ("of each", False)):
        root = tmp_path / f"{name}.n5"
        attributes(root, n5="4.0.0", units=["um"] * 3)
        group = {"resolution": [0.004, 0.005, 0.04], "offset": [0.04, 0, 0]}
        attributes(root / "raw", **group, **({name: [[1, 1, 1], [2, 4, 1]]} if factors else {}))
        write(root / "raw" / "s0")
        write(root / "raw" / "s1", DATA[:, ::4, ::2], **({} if factors else {"downsamplingFactors": [2, 4, 1]}))
        for address in ("raw", "raw/s0"):
            source = open_source(f"{root}/{address}")
            assert source.voxel_size == pytest.approx((40, 5, 4))
            assert source.offset == pytest.approx((0, 0, 40))
            np.testing.assert_array_equal(source.read(source.roi), DATA)
        coarse = open_source(f"{root}/raw/s1")
        assert coarse.voxel_size == pytest.approx((40, 20, 8))
        assert coarse.offset == pytest.approx((0, 7.5, 42))  # the mean of voxels lies between them
    with pytest.raises(MissingError, match=r"a group of N5 .*\['raw/s0', 'raw/s1'\]: name one"):
        open_source(str(root))
    attributes(root / "raw", resolution=[4, 5, 40], units=["nm"] * 3)
    write(root / "raw" / "s2", DATA[:, ::8, ::4])
    with pytest.raises(VoxelSizeError, match="nobody says how much"):
        open_source(f"{root}/raw/s2")


def test_cosem_names_sizes_in_the_group(tmp_path: Path) -> None:
    root = tmp_path / "a.n5" / "em"
    levels = [
        {
            "path": f"s{k}",
            "transform": {
                "axes": ["z", "y", "x"],
                "scale": [40, 5 * f, 4 * f],
                "translate": [0, 0, k],
                "units": ["nm"] * 3,
            },
        }
        for k, f in enumerate((1, 2))
    ]
    attributes(
        root,
        multiscales=[{"name": "em", "datasets": levels}],
        pixelResolution={"unit": "nm", "dimensions": [4, 5, 40]},
        scales=[[1, 1, 1], [2, 2, 1]],
        axes=["x", "y", "z"],
    )
    write(root / "s0")
    write(root / "s1", DATA[:, ::2, ::2], pixelResolution={"unit": "nm", "dimensions": [8, 10, 40]})
    assert (open_source(str(root)).voxel_size, open_source(f"{root}/s0").offset) == ((40, 5, 4), (0, 0, 0))
    assert (open_source(f"{root}/s1").voxel_size, open_source(f"{root}/s1").offset) == ((40, 10, 8), (0, 0, 1))


def test_what_is_said_in_other_ways(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Render says a place of the group in voxels of its own; OME-Zarr's metadata may lie in N5, too."""
    root = tmp_path / "a.n5" / "em"
    attributes(root, axes=["x", "y", "z"], resolution=[4, 5, 40], translate=[0, 0, 0])
    write(root / "s0")
    assert open_source(str(root)).voxel_size == (40, 5, 4)
    assert not caplog.records
    attributes(root, translate=[10, 0, 0])
    assert not open_source(str(root)).placed
    assert "has an attribute translate, which is not read" in caplog.text
    attributes(root, translate=5)
    assert not open_source(str(root)).placed
    steps = [{"type": "scale", "scale": [40, 5, 4]}]
    attributes(root, multiscales=[{"datasets": [{"path": "s0", "coordinateTransformations": steps}]}])
    with pytest.raises(VoxelSizeError, match="has OME metadata, which are read in zarr only"):
        open_source(str(root))
    for value in (5, [], [{}], [{"datasets": [{"path": 0}]}], [{"datasets": [["path"]]}]):
        attributes(root, multiscales=value)
        assert open_source(str(root)).voxel_size == (40, 5, 4)


def test_paintera(tmp_path: Path) -> None:
    group = tmp_path / "a.n5" / "labels"
    attributes(group, painteraData={"type": "label"}, maxId=9, resolution=[4, 5, 40], offset=[0, 0, 0])
    attributes(group / "data", multiScale=True)
    write(group / "data" / "s0", DATA.astype(np.uint64), isLabelMultiset=False)
    source = open_source(str(group))
    assert (source.voxel_size, source.placed) == ((40, 5, 4), True)
    np.testing.assert_array_equal(source.read(source.roi), DATA)
    attributes(group / "data" / "s0", isLabelMultiset=True)
    with pytest.raises(DataError, match="label multisets of Paintera"):
        open_source(str(group))


def test_damage_is_named(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.n5"))
    source = open_source(str(path))
    block, whole = path / "0" / "1" / "1", (path / "0" / "1" / "1").read_bytes()
    rest = Roi((0, 0, 0), (4, 4, 11))
    for content, said in (
        (b"", ""),
        (whole[:9], ""),
        (whole[:-9], ""),
        (whole[:16] + b"no gzip", ""),
        (encoded(DATA[:4, :4, :4], "xz"), ""),
        (encoded(DATA[:4, :4, :4], mode=1), "its mode is 1, expected 0"),
        (encoded(DATA[0, :4, :4]), "it has 2 axes, expected 3"),
        (encoded(DATA[:5, :4, :4]), r"it has \(5, 4, 4\) voxels, expected no more than \(4, 4, 4\)"),
        (encoded(DATA[:4, :4, :4].astype(np.uint8)), "it has 64 bytes, expected 128"),
        (encoded(DATA[:4, :4, :4].astype(np.uint32)), "more than the 128 bytes"),
    ):
        block.write_bytes(content)
        np.testing.assert_array_equal(source.read(rest), DATA[rest.slices()])
        with pytest.raises(UnreadableError, match=rf"cannot read .*a\.n5/0/1/1: .*{said}.*damaged") as caught:
            source.read(source.roi)
        assert "\n" not in str(caught.value)
    block.unlink()
    os.mkfifo(block)
    with pytest.raises(UnreadableError, match=r"a\.n5/0/1/1 is no file"):
        source.read(source.roi)


def test_blocks_that_are_elsewhere_are_not_zeros(tmp_path: Path) -> None:
    """As in copies of git-annex, whose files are links to what was not fetched."""
    path = Path(write(tmp_path / "a.n5"))
    source = open_source(str(path))
    for lost in (path / "0" / "1" / "1", path / "0" / "1", path / "0"):
        lost.rename(tmp_path / "kept")
        lost.symlink_to(tmp_path / "nowhere")
        with pytest.raises(UnreadableError, match=rf"{lost.relative_to(tmp_path)} is a link to nothing"):
            source.read(source.roi)
        lost.unlink()
        if lost != path / "0" / "1" / "1":
            lost.write_bytes(b"")
            with pytest.raises(UnreadableError, match=rf"cannot read {lost}/.*Not a directory"):
                source.read(source.roi)
            lost.unlink()
        lost.symlink_to(tmp_path / "kept")
        np.testing.assert_array_equal(source.read(source.roi), DATA)
        if lost.is_dir():
            block = path / "0" / "1" / "1"
            block.rename(tmp_path / "block")
            assert not source.read(Roi((4, 4, 0), (2, 4, 4))).any()
            (tmp_path / "block").rename(block)
        lost.unlink()
        assert not source.read(Roi((4, 4, 0), (2, 4, 4))).any()  # not there at all
        (tmp_path / "kept").rename(lost)


def test_attributes_that_are_not_those_of_a_dataset(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.n5"))
    good = json.loads((path / "attributes.json").read_text())
    for wrong in (
        {"dimensions": [11, 9]},
        {"dimensions": [11, -9, 6]},
        {"dimensions": 11},
        {"dimensions": [float("inf"), 9, 6]},
        {"blockSize": [4, 0, 4]},
        {"compression": "gzip"},
        {"dataType": None},
        {"dataType": "string"},
        {"compression": {"type": "lz4"}},
        {"compression": {"type": "jpeg"}},
        {"blockSize": [2**11, 2**11, 2**11]},
    ):
        (path / "attributes.json").write_text(json.dumps(good | wrong))
        with pytest.raises(UnreadableError, match=r"a\.n5") as caught:
            open_source(str(path))
        assert "\n" not in str(caught.value)
    for text in ("{", "[]", "[" * 100_000):
        (path / "attributes.json").write_text(text)
        with pytest.raises(UnreadableError, match=r"cannot read .*attributes\.json: .*damaged"):
            open_source(str(path))
    (path / "attributes.json").unlink()
    os.mkfifo(path / "attributes.json")
    with pytest.raises(UnreadableError, match="it is no file"):
        open_source(str(path))
    old = {key: value for key, value in good.items() if key != "compression"} | {"compressionType": "gzip"}
    (path / "attributes.json").unlink()
    (path / "attributes.json").write_text(json.dumps(old))
    assert (open_source(str(path)).read(Roi((0, 0, 0), DATA.shape)) == DATA).all()


def test_sections_and_attributes_in_one_folder(tmp_path: Path) -> None:
    """A picture of a dataset makes no sections of it, nor attributes of something else N5 of sections."""

    def picture(path: Path) -> None:
        Image.fromarray(DATA[0, :3].astype(np.uint8)).save(path / "preview.png")

    for name, root in (("", tmp_path / "whole"), ("s0", tmp_path / "group"), ("data/s0", tmp_path / "labels")):
        write(root / name)
        attributes(root, maxId=9)
        picture(root)
        source = open_source(str(root))
        np.testing.assert_array_equal(source.read(source.roi), DATA)
    for name, root in (("version", tmp_path / "version"), ("named", tmp_path / "a.n5")):
        write(root / "em")
        attributes(root, **({"n5": "4.0.0"} if name == "version" else {}))
        picture(root)
        with pytest.raises(MissingError, match=r"a group of N5 .*\['em'\]: name one"):
            open_source(str(root))
    for root in (tmp_path / "sections", tmp_path / "a.n5" / "sections"):
        attributes(root, who="me")
        picture(root)
        assert open_source(str(root)).data.shape == (1, 3, 11)


def test_a_dataset_without_blocks(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.n5"))
    for folder in ("0", "1", "2"):
        (path / folder).rename(tmp_path / folder)
    with pytest.raises(MissingError, match="holds no blocks"):
        open_source(str(path))


@pytest.mark.parametrize("packing", [name for name in PACK if name != "raw"])
def test_a_block_does_not_take_the_memory_that_it_asks_for(tmp_path: Path, packing: str) -> None:
    path = Path(write(tmp_path / "a.n5", packing=packing))
    source = open_source(str(path))
    head = encoded(DATA[:4, :4, :4])[:16]
    (path / "0" / "0" / "0").write_bytes(head + PACK[packing](bytes(2**26)))
    tracemalloc.start()
    with pytest.raises(UnreadableError, match=r"a\.n5/0/0/0.* damaged"):
        source.read(source.roi)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_block_that_is_a_large_file_is_not_read_as_a_whole(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.n5", packing="raw"))
    source = open_source(str(path))
    with (path / "0" / "0" / "0").open("r+b") as file:
        file.truncate(2**32)
    tracemalloc.start()
    with pytest.raises(UnreadableError, match=r"a\.n5/0/0/0.* damaged"):
        source.read(source.roi)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_attributes_of_groups_above_are_part_of_the_source(tmp_path: Path) -> None:
    root = tmp_path / "a.n5"
    attributes(root, n5="4.0.0")
    attributes(root / "raw", axes=["x", "y", "z"])
    write(root / "raw" / "s0", DATA[:, :6, :6])
    options = VolumeOptions.model_validate({"raw": f"{root}/raw/s0", "voxel_size": [1, 1, 1]})

    def state() -> list[str]:
        return [source_fingerprint(Path(path)) for path in options.files("raw")]

    assert options.files("raw") == [f"{root}/raw/s0", f"{root}/raw/attributes.json", f"{root}/attributes.json"]
    seen = []
    for change in (
        lambda: None,
        lambda: attributes(root / "raw", axes=["z", "y", "x"]),
        lambda: (root / "raw" / "s0" / "0" / "0" / "0").write_bytes(encoded(DATA[:4, :4, :4] // 2)),
    ):
        change()
        volume = converted_raw(tmp_path / "out", **options.model_dump(exclude_unset=True))
        seen.append((state(), source_state(str(options.raw)), volume.read(volume.roi).tobytes()))
    for k in range(3):
        assert len({str(one[k]) for one in seen}) == 3


def test_one_volume_by_two_names_is_one_source() -> None:
    names = {source_of(VolumeOptions(raw=raw)) for raw in ("x/a.n5/raw", "x/a.n5/raw/s0", "x/a.n5/raw/s0/")}
    assert len(names) == 1
    assert source_of(VolumeOptions(raw="x/a.n5/raw/s1")) not in names


@pytest.mark.parametrize("root", ["p.n5", "q"])
@pytest.mark.parametrize("inside", ["s0", "data/s0", "data"])
def test_a_group_is_the_same_source_as_its_finest_dataset(tmp_path: Path, root: str, inside: str) -> None:
    volume = tmp_path / root / "vol"
    attributes(volume, maxId=9)
    write(volume / inside)
    other = write(tmp_path / root / "other" / inside)
    names = {source_of(VolumeOptions(raw=str(raw))) for raw in (volume, volume / inside, f"{volume}/{inside}/")}
    assert len(names) == 1
    assert source_of(VolumeOptions(raw=other)) not in names
    attributes(tmp_path / "odd")
    for text in ("{", "5", "[" * 100_000):
        (tmp_path / "odd" / "attributes.json").write_text(text)
        assert source_of(VolumeOptions(raw=f"{tmp_path}/odd")) == f"{tmp_path}/odd:"


def test_arrays_of_notebooks_are_in_the_order_of_bytes_of_this_machine(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", DATA.astype(">i4"))
    for address in (write(tmp_path / "a.n5", DATA.astype(np.int32)), str(tmp_path / "a.npy")):
        found = open_array(address)
        assert found.dtype == found[1:, 2].dtype == found[:0].dtype == np.dtype("=i4")
        np.testing.assert_array_equal(torch.from_numpy(found[...]).numpy(), DATA)
    channels = open_array(write(tmp_path / "b.n5", DATA[None].repeat(2, 0), (1, 4, 4, 4)))
    assert channels.dtype == channels[...].dtype == np.dtype("=u2")


def test_places_of_channels_are_finite(tmp_path: Path) -> None:
    said = {"resolution": [4, 5, 40], "offset": [float("inf"), 0, 0]}
    channels = write(tmp_path / "a.n5", DATA[None].repeat(2, 0), (1, 4, 4, 4), **said)
    for opening, address in ((open_channels, channels), (open_source, write(tmp_path / "b.n5", **said))):
        with pytest.raises(VoxelSizeError, match="expected finite numbers"):
            opening(address)


def test_no_bucket(tmp_path: Path) -> None:
    for name in ("a.n5/raw", "a.N5/raw", "a.N5"):
        with pytest.raises(KdsegError, match="only zarr is read from buckets"):
            open_source(f"s3://bucket/{name}")
