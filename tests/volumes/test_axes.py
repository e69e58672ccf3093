"""Arrays in any order of axes, with axes of length 1, and in any unit: read as (c,) z, y, x in nm, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdseg.config.data import VolumeOptions
from kdseg.errors import KdsegError, ShapeError, UnreadableError, VoxelSizeError
from kdseg.evaluation.alignment import align
from kdseg.geometry import Roi
from kdseg.volumes.plan import plan_labels, plan_mask, plan_raw
from kdseg.volumes.sources import open_channels, open_source
from kdseg.volumes.volume import open_volume

SIZE = {"z": 40.0, "y": 5.0, "x": 4.0}
OFFSET = {"z": 400.0, "y": 10.0, "x": 8.0}
LENGTH = {"t": 1, "c": 3, "z": 6, "y": 9, "x": 7}
CHANNELS = np.random.default_rng(3).integers(0, 255, (3, 6, 9, 7), dtype=np.uint8)
DATA = CHANNELS[0]
Write = Callable[[Path, NDArray[Any], Sequence[str]], str]


def ordered(names: Sequence[str], channels: int = 1) -> NDArray[Any]:
    """Return the data with its axes as named."""
    axes = [name for name in names if name not in "tc"]
    data = CHANNELS[:channels].transpose(0, *("zyx".index(name) + 1 for name in axes))
    shape = iter(data.shape[1:])
    if "c" in names:
        data = np.moveaxis(data, 0, [name for name in names if name != "t"].index("c"))
        shape = iter(data.shape)
    return data.reshape([1 if name == "t" else next(shape) for name in names])


def in_space(names: Sequence[str], values: dict[str, float]) -> list[float]:
    return [values[name] for name in names if name in values]


def chunks(data: NDArray[Any]) -> tuple[int, ...]:
    return tuple(min(n, 4) for n in data.shape)


def array(path: Path, data: NDArray[Any], zarr_format: Any, **more: Any) -> zarr.Array[Any]:
    made = zarr.create_array(
        str(path), shape=data.shape, chunks=chunks(data), dtype=data.dtype, zarr_format=zarr_format, **more
    )
    made[...] = data
    return made


def dimension_names(path: Path, data: NDArray[Any], names: Sequence[str]) -> str:
    made = array(path / "a.zarr", data, 3, dimension_names=names)
    made.attrs.update({"resolution": in_space(names, SIZE), "offset": in_space(names, OFFSET)})
    return str(path / "a.zarr")


def xarray_attribute(path: Path, data: NDArray[Any], names: Sequence[str]) -> str:
    made = array(path / "b.zarr", data, 2)
    made.attrs.update({"_ARRAY_DIMENSIONS": list(names)})
    made.attrs.update({"voxel_size": in_space(names, SIZE), "offset": in_space(names, OFFSET)})
    return str(path / "b.zarr")


def funlib(path: Path, data: NDArray[Any], names: Sequence[str], **more: Any) -> str:
    made = array(path / "c.zarr", data, 2)
    made.attrs.update({"axis_names": [name + "^" * (name in "tc") for name in names]})
    size, offset = ({**dict.fromkeys("tc", 1.0), **values} for values in (SIZE, OFFSET))
    made.attrs.update({"voxel_size": [size[n] / 1e3 for n in names], "offset": [offset[n] / 1e3 for n in names]})
    made.attrs.update({"units": ["um" if name in SIZE else "" for name in names]})
    return str(path / "c.zarr")


def hdf5(path: Path, data: NDArray[Any], names: Sequence[str], name: Callable[[h5py.Dataset], None]) -> str:
    with h5py.File(path / "a.h5", "w") as file:
        made = file.create_dataset("raw", data=data, chunks=chunks(data), compression="gzip")
        made.attrs.update({"resolution": in_space(names, SIZE), "offset": in_space(names, OFFSET)})
        name(made)
    return f"{path}/a.h5:/raw"


def labels_of_dimensions(path: Path, data: NDArray[Any], names: Sequence[str]) -> str:
    def name(made: h5py.Dataset) -> None:
        for axis, label in enumerate(names):
            made.dims[axis].label = label

    return hdf5(path, data, names, name)


def scales_of_dimensions(path: Path, data: NDArray[Any], names: Sequence[str]) -> str:
    def name(made: h5py.Dataset) -> None:
        for axis, label in enumerate(names):
            scale = made.file.create_dataset(label, data=np.arange(data.shape[axis]))
            scale.make_scale(label)
            made.dims[axis].attach_scale(scale)

    return hdf5(path, data, names, name)


def axistags(path: Path, data: NDArray[Any], names: Sequence[str]) -> str:
    tags = json.dumps({"axes": [{"key": name, "typeFlags": 2, "resolution": 0} for name in names]})
    return hdf5(path, data, names, lambda made: made.attrs.update({"axistags": tags}))


def hdf5_axis_names(path: Path, data: NDArray[Any], names: Sequence[str]) -> str:
    return hdf5(path, data, names, lambda made: made.attrs.update({"axis_names": [name.upper() for name in names]}))


def ome_axes(names: Sequence[str], unit: str | None = "nanometer") -> list[dict[str, str]]:
    kinds = {"t": "time", "c": "channel"}
    axes = [{"name": name, "type": kinds.get(name, "space")} for name in names]
    return [axis | ({"unit": unit} if unit is not None and axis["type"] == "space" else {}) for axis in axes]


def steps(names: Sequence[str], nm: float = 1.0) -> list[dict[str, Any]]:
    size, offset = ({**dict.fromkeys("tc", first * nm), **values} for values, first in ((SIZE, 1.0), (OFFSET, 0.0)))
    return [
        {"type": "scale", "scale": [size[name] / nm for name in names]},
        {"type": "translation", "translation": [offset[name] / nm for name in names]},
    ]


def image(path: Path, data: NDArray[Any], multiscales: dict[str, Any], version: str = "0.4") -> str:
    zarr_format: Any = 2 if version == "0.4" else 3
    group = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)
    made = group.create_array("s0", shape=data.shape, chunks=chunks(data), dtype=data.dtype)
    made[...] = data
    if version == "0.4":
        group.attrs["multiscales"] = [{"version": "0.4", **multiscales}]
    else:
        group.attrs["ome"] = {"version": version, "multiscales": [multiscales]}
    return str(path)


def ome_04(path: Path, data: NDArray[Any], names: Sequence[str]) -> str:
    datasets = [{"path": "s0", "coordinateTransformations": steps(names)}]
    return image(path / "o.zarr", data, {"axes": ome_axes(names), "datasets": datasets})


def ome_05(path: Path, data: NDArray[Any], names: Sequence[str]) -> str:
    datasets = [{"path": "s0", "coordinateTransformations": steps(names, 1e6)}]
    return image(path / "o.zarr", data, {"axes": ome_axes(names, "millimeter"), "datasets": datasets}, "0.5")


def ome_06(path: Path, data: NDArray[Any], names: Sequence[str]) -> str:
    return image(path / "o.zarr", data, multiscales_06(names), "0.6")


def multiscales_06(names: Sequence[str], ends: Callable[[str, str], Any] = lambda kind, name: {kind: name}) -> Any:
    """Return metadata of OME-Zarr 0.6 whose second coordinate system, which counts from another corner, is not ours."""
    inner = {"type": "sequence", "transformations": steps(names)}
    inner |= {"input": ends("path", "s0"), "output": ends("name", "intrinsic")}
    outer = {"type": "translation", "translation": [7.0] * len(names)}
    outer |= {"input": ends("name", "intrinsic"), "output": ends("name", "world")}
    return {
        "coordinateSystems": [
            {"name": "world", "axes": ome_axes(names, "meter")},
            {"name": "intrinsic", "axes": ome_axes(names)},
        ],
        "datasets": [{"path": "s0", "coordinateTransformations": [inner]}],
        "coordinateTransformations": [outer],
    }


WRITE: dict[str, Write] = {
    write.__name__: write
    for write in (
        dimension_names,
        xarray_attribute,
        funlib,
        labels_of_dimensions,
        scales_of_dimensions,
        axistags,
        hdf5_axis_names,
        ome_04,
        ome_05,
        ome_06,
    )
}
ORDERS = st.sets(st.sampled_from("tc")).flatmap(lambda more: st.permutations(["z", "y", "x", *sorted(more)]))
ROI = st.tuples(*[st.tuples(st.integers(0, n - 1), st.integers(1, n)) for n in DATA.shape]).map(
    lambda ends: Roi(
        tuple(low for low, _ in ends),  # type: ignore[arg-type]
        tuple(min(count, n - low) for (low, count), n in zip(ends, DATA.shape, strict=True)),  # type: ignore[arg-type]
    )
)


@settings(deadline=None, max_examples=60)
@given(kind=st.sampled_from(sorted(WRITE)), names=ORDERS, roi=ROI)
def test_axes_in_any_order(tmp_path_factory: pytest.TempPathFactory, kind: str, names: list[str], roi: Roi) -> None:
    source = open_source(WRITE[kind](tmp_path_factory.mktemp("a"), ordered(names), names))
    assert source.data.shape == DATA.shape
    np.testing.assert_array_equal(source.read(roi), DATA[roi.slices()])
    np.testing.assert_allclose(source.voxel_size or (), tuple(SIZE.values()))
    np.testing.assert_allclose(source.offset or (), tuple(OFFSET.values()))
    assert source.placed
    assert source.unit == (4, 4, 4)


@settings(deadline=None, max_examples=40)
@given(kind=st.sampled_from(sorted(WRITE)), names=ORDERS.filter(lambda names: "c" in names), roi=ROI)
def test_channels_in_any_order(tmp_path_factory: pytest.TempPathFactory, kind: str, names: list[str], roi: Roi) -> None:
    source = open_channels(WRITE[kind](tmp_path_factory.mktemp("a"), ordered(names, 3), names))
    assert (source.channels, source.shape) == (3, DATA.shape)
    np.testing.assert_array_equal(source.read(roi), CHANNELS[:, *roi.slices()])
    np.testing.assert_allclose(source.voxel_size or (), tuple(SIZE.values()))
    np.testing.assert_allclose(source.offset or (), tuple(OFFSET.values()))


@pytest.mark.parametrize("kind", sorted(WRITE))
def test_several_channels_or_times_are_no_volume(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ShapeError, match=r"of one channel: extract it"):
        open_source(WRITE[kind](tmp_path, ordered("xczy", 3), "xczy"))
    times = np.repeat(ordered("tzyx"), 2, axis=0)
    (tmp_path / "t").mkdir()
    with pytest.raises(ShapeError, match=r"a length of 1 of those that are none of c, z, y, x: extract one"):
        open_source(WRITE[kind](tmp_path / "t", times, "tzyx"))


def test_only_chunks_of_the_region_are_read_of_a_transposed_zarr(tmp_path: Path) -> None:
    source = open_source(dimension_names(tmp_path, ordered("xyz"), "xyz"))
    for chunk in (tmp_path / "a.zarr" / "c").rglob("*"):
        if chunk.is_file() and chunk.relative_to(tmp_path / "a.zarr" / "c").as_posix() != "0/2/1":  # x, y, z
            chunk.write_bytes(b"damaged")
    np.testing.assert_array_equal(source.read(Roi((4, 8, 0), (2, 1, 4))), DATA[4:6, 8:9, 0:4])
    with pytest.raises(UnreadableError, match="damaged"):
        source.read(Roi((3, 8, 0), (2, 1, 4)))


def test_only_chunks_of_the_region_are_read_of_a_transposed_dataset(tmp_path: Path) -> None:
    source = open_source(labels_of_dimensions(tmp_path, ordered("xyz"), "xyz"))
    with h5py.File(tmp_path / "a.h5") as file:
        made = file["raw"]
        places = [made.id.get_chunk_info(k) for k in range(made.id.get_num_chunks())]
    data = bytearray((tmp_path / "a.h5").read_bytes())
    for place in places:
        if place.chunk_offset != (0, 8, 4):  # x, y, z
            data[place.byte_offset : place.byte_offset + place.size] = b"\xff" * place.size
    (tmp_path / "a.h5").write_bytes(data)
    np.testing.assert_array_equal(source.read(Roi((4, 8, 0), (2, 1, 4))), DATA[4:6, 8:9, 0:4])
    with pytest.raises(UnreadableError, match="damaged"):
        source.read(Roi((3, 8, 0), (2, 1, 4)))


def test_an_empty_file_is_found_whatever_the_order(tmp_path: Path) -> None:
    source = open_source(dimension_names(tmp_path, ordered("xtyz"), "xtyz"))
    (tmp_path / "a.zarr" / "c" / "0" / "0" / "2" / "1").write_bytes(b"")
    with pytest.raises(UnreadableError, match="2/1 is empty"):
        source.read(Roi((4, 8, 0), (1, 1, 1)))
    np.testing.assert_array_equal(source.read(Roi((0, 8, 0), (4, 1, 4))), DATA[0:4, 8:9, 0:4])


@pytest.mark.parametrize("shape", [(1, 6, 9, 7), (1, 1, 6, 9, 7), (6, 9, 7, 1), (6, 9, 7, 1, 1), (1, 6, 9, 7, 1)])
def test_axes_of_length_1_without_names(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array(tmp_path / "a.zarr", DATA.reshape(shape), 2)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = DATA.reshape(shape)
    for address in (f"{tmp_path}/a.zarr", f"{tmp_path}/a.h5:/raw"):
        source = open_source(address)
        np.testing.assert_array_equal(source.read(source.roi), DATA)


def test_a_single_section_is_no_axis_to_leave_out(tmp_path: Path) -> None:
    array(tmp_path / "a.zarr", DATA[None, :1], 3)
    assert open_source(f"{tmp_path}/a.zarr").data.shape == (1, 9, 7)
    array(tmp_path / "b.zarr", DATA[:1, ..., None], 3)
    with pytest.raises(ShapeError, match="or name the axes: which of those of length 1 is none"):
        open_source(f"{tmp_path}/b.zarr")
    array(tmp_path / "c.zarr", DATA[:1, ..., None], 3, dimension_names="zyxc")
    assert open_source(f"{tmp_path}/c.zarr").data.shape == (1, 9, 7)


def test_the_long_one_of_several_axes_of_channels(tmp_path: Path) -> None:
    data = CHANNELS[:, None, :, None]
    array(tmp_path / "a.zarr", data, 3).attrs.update({"axis_names": ["c0^", "c1^", "d0", "c2^", "d1", "d2"]})
    source = open_channels(f"{tmp_path}/a.zarr")
    np.testing.assert_array_equal(source.read(Roi((0, 0, 0), source.shape)), CHANNELS)
    array(tmp_path / "b.zarr", data[:1], 3).attrs.update({"axis_names": ["c0^", "c1^", "z", "c2^", "y", "x"]})
    one = open_source(f"{tmp_path}/b.zarr")
    np.testing.assert_array_equal(one.read(one.roi), DATA)
    array(tmp_path / "c.zarr", data, 3).attrs.update({"axis_names": ["c0^", "z", "c1^", "c2^", "y", "x"]})
    with pytest.raises(ShapeError, match="expected z, y and x once each, perhaps c and t"):
        open_channels(f"{tmp_path}/c.zarr")


def test_channels_without_names_come_first(tmp_path: Path) -> None:
    for name, data in {"a": CHANNELS, "b": CHANNELS[None], "c": CHANNELS[..., None], "d": CHANNELS[:1]}.items():
        array(tmp_path / f"{name}.zarr", data, 3)
        source = open_channels(f"{tmp_path}/{name}.zarr")
        roi = Roi((1, 2, 3), (2, 3, 4))
        np.testing.assert_array_equal(source.read(roi), CHANNELS[: source.channels, *roi.slices()])


@pytest.mark.parametrize(
    "names", [("", "", ""), (None, None, None), ("dim_0", "dim_1", "dim_2"), ("d0", "d1", "d2"), ("", "y", "x"), "ZYX"]
)
def test_names_that_say_nothing_else_than_the_order(tmp_path: Path, names: Any) -> None:
    array(tmp_path / "a.zarr", DATA, 3, dimension_names=names)
    source = open_source(f"{tmp_path}/a.zarr")
    np.testing.assert_array_equal(source.read(source.roi), DATA)


REFUSED: dict[str, tuple[Sequence[str | None], dict[str, Any], str]] = {
    "not understood": (("depth", "row", "col"), {}, r"names the axes \['depth', 'row', 'col'\].*rename 'depth'"),
    "twice": (("x", "y", "x"), {}, "expected z, y and x once each"),
    "no x": (("z", "y", "c"), {}, "expected z, y and x once each"),
    "half a permutation": (("x", None, None), {}, "name all axes"),
    "two orders": (("z", "y", "x"), {"_ARRAY_DIMENSIONS": ["x", "y", "z"]}, "is not of one mind.*correct one"),
    "too few": (("z", "y", "x"), {"axis_names": ["z", "y"]}, "has 3 axes, but its `axis_names` names"),
    "vigra": ((None,) * 3, {"axistags": "{}"}, "axistags of .* is not understood"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_names_that_are_refused(tmp_path: Path, name: str) -> None:
    names, attributes, message = REFUSED[name]
    array(tmp_path / "a.zarr", DATA, 3, dimension_names=names).attrs.update(attributes)
    for opened in (open_source, open_channels, open_volume):
        with pytest.raises(ShapeError, match=message) as caught:
            opened(f"{tmp_path}/a.zarr")
        assert "\n" not in str(caught.value)
        assert "a.zarr" in str(caught.value)


@pytest.mark.parametrize("write", [ome_04, ome_05, ome_06])
def test_a_level_that_is_named_by_itself_is_what_its_image_says(tmp_path: Path, write: Write) -> None:
    address = write(tmp_path, ordered("txyz"), "txyz")
    for one in (address, f"{address}/s0", f"{address}/s0/"):
        source = open_source(one)
        np.testing.assert_array_equal(source.read(source.roi), DATA)
        assert source.voxel_size == pytest.approx(tuple(SIZE.values()))
        assert source.offset == pytest.approx(tuple(OFFSET.values()))
    group = zarr.open_group(address, mode="a")
    other = group.create_array("other", data=DATA)
    assert open_source(f"{address}/other").voxel_size is None
    other.attrs["voxel_size"] = [1, 2, 3]
    assert open_source(f"{address}/other").voxel_size == (1, 2, 3)


def test_a_level_of_an_image_that_is_not_understood_is_a_plain_array(tmp_path: Path) -> None:
    address = image(tmp_path / "o.zarr", DATA, {"datasets": [{"path": "s0"}]}, "0.2")
    assert open_source(f"{address}/s0").voxel_size is None


def test_a_level_of_an_image_that_cannot_be_read_or_understood_is_refused(tmp_path: Path) -> None:
    """As a plain array it would be in another order, without a word."""
    address = ome_05(tmp_path, ordered("xyz"), "xyz")
    metadata = tmp_path / "o.zarr" / "zarr.json"
    whole = metadata.read_text()
    metadata.write_text(whole[:-30])
    with pytest.raises(UnreadableError, match=r"metadata of .*o\.zarr, of which .*s0 may be a level"):
        open_source(f"{address}/s0")
    metadata.write_text(whole.replace('"scale"', '"affine"'))
    with pytest.raises(KdsegError, match=r"o\.zarr"):
        open_source(f"{address}/s0")
    metadata.write_text(whole)
    assert open_source(f"{address}/s0").data.shape == DATA.shape


def test_an_empty_file_of_any_channel_is_refused(tmp_path: Path) -> None:
    """zarr reads an empty shard as zeros."""
    values = np.ones((2, 8, 8, 8), np.uint8)
    zarr.create_array(tmp_path / "a.zarr", data=values, chunks=(1, 4, 4, 4), shards=(1, 8, 8, 8))
    source = open_channels(str(tmp_path / "a.zarr"))
    assert (source.read(Roi((0, 0, 0), (8, 8, 8))) == 1).all()
    (tmp_path / "a.zarr" / "c" / "1" / "0" / "0" / "0").write_bytes(b"")
    with pytest.raises(UnreadableError, match=r"c/1/0/0/0 is empty"):
        source.read(Roi((0, 0, 0), (4, 4, 4)))


def test_the_order_of_the_levels_contradicts_the_image(tmp_path: Path) -> None:
    address = ome_05(tmp_path, DATA, "zyx")
    array(tmp_path / "o.zarr" / "s0", DATA, 3, dimension_names="xyz", overwrite=True)
    with pytest.raises(ShapeError, match="not of one mind"):
        open_source(address)


def test_nothing_is_written_to_another_order(tmp_path: Path) -> None:
    volume = open_volume(dimension_names(tmp_path, ordered("xyz"), "xyz"))
    with pytest.raises(ShapeError, match="copy it to another volume"):
        volume.write(volume.roi, DATA)


def test_datasets_of_hdf5_without_axes_and_attributes_of_no_use(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["none"], file["one"] = h5py.Empty("u1"), 5
        file["raw"] = DATA
        space = h5py.h5s.create(h5py.h5s.SCALAR)
        h5py.h5a.create(file["raw"].id, b"bits", h5py.h5t.STD_B8LE, space)  # which h5py cannot read
    for name in ("none", "one"):
        with pytest.raises(ShapeError, match=r"has the shape \(\), expected"):
            open_source(f"{tmp_path}/a.h5:/{name}")
    source = open_source(f"{tmp_path}/a.h5:/raw")
    np.testing.assert_array_equal(source.read(source.roi), DATA)


UNITS = {
    **{"yoctometer": 1e-15, "zeptometer": 1e-12, "attometer": 1e-9, "femtometer": 1e-6, "picometer": 1e-3},
    **{"angstrom": 0.1, "nanometer": 1, "micrometer": 1e3, "millimeter": 1e6, "centimeter": 1e7, "decimeter": 1e8},
    **{"meter": 1e9, "hectometer": 1e11, "kilometer": 1e12, "megameter": 1e15, "gigameter": 1e18, "terameter": 1e21},
    **{"petameter": 1e24, "exameter": 1e27, "zettameter": 1e30, "yottameter": 1e33, "inch": 2.54e7, "foot": 304.8e6},
    **{"yard": 914.4e6, "mile": 1609.344e9, "parsec": 3.0856775814913673e25},
}
SPELLED = {"nm": 1, " um ": 1e3, "μm": 1e3, "µm": 1e3, "mm": 1e6, "Nanometers": 1, "micrometre": 1e3, "Å": 0.1}


@pytest.mark.parametrize("unit", [*UNITS, *SPELLED])
def test_units_of_length(tmp_path: Path, unit: str) -> None:
    nm = (UNITS | SPELLED)[unit]
    datasets = [{"path": "s0", "coordinateTransformations": steps("zyx", nm)}]
    found = [open_source(image(tmp_path / "o.zarr", DATA, {"axes": ome_axes("zyx", unit), "datasets": datasets}))]
    values = [{key: [v / nm for v in of.values()] for key, of in {"voxel_size": SIZE, "offset": OFFSET}.items()}]
    for k, units in enumerate((unit, [unit] * 3)):
        array(tmp_path / f"{k}.zarr", DATA, 3).attrs.update({"units": units, **values[0]})
        found.append(open_source(f"{tmp_path}/{k}.zarr"))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = DATA
        file["raw"].attrs.update({"units": [unit] * 3, **values[0]})
    found.append(open_source(f"{tmp_path}/a.h5:/raw"))
    for source in found:
        np.testing.assert_allclose(source.voxel_size or (), tuple(SIZE.values()))
        np.testing.assert_allclose(source.offset or (), tuple(OFFSET.values()))


def test_a_unit_for_each_axis(tmp_path: Path) -> None:
    made = array(tmp_path / "a.zarr", ordered("xyz"), 3, dimension_names="xyz")
    made.attrs.update({"units": ["nm", "um", "mm"], "voxel_size": [4, 5e-3, 4e-5]})
    np.testing.assert_allclose(open_source(f"{tmp_path}/a.zarr").voxel_size or (), (40, 5, 4))


def test_the_size_in_micrometres_of_imagej(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = DATA
        file["raw"].attrs["element_size_um"] = [0.04, 0.005, 0.004]
    assert open_source(f"{tmp_path}/a.h5:/raw").voxel_size == pytest.approx((40, 5, 4))
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["raw"].attrs["resolution"] = [40.0, 4.0, 4.0]
    with pytest.raises(VoxelSizeError, match=r"contradict each other.*remove all but one"):
        open_source(f"{tmp_path}/a.h5:/raw")


def test_two_sizes_that_differ(tmp_path: Path) -> None:
    made = array(tmp_path / "a.zarr", DATA, 3)
    made.attrs.update({"voxel_size": [40, 5, 4], "resolution": [40, 5, 4.001]})
    assert open_source(f"{tmp_path}/a.zarr").voxel_size == pytest.approx((40, 5, 4), rel=1e-3)
    made.attrs.update({"resolution": [4, 5, 40]})
    with pytest.raises(VoxelSizeError, match="contradict each other"):
        open_source(f"{tmp_path}/a.zarr")


UNKNOWN = [None, " ", "pixel", "second", "Mm", 3]


def unscaled(path: Path, unit: Any, names: str = "zyx", translation: Sequence[float] = (2.0, 6.0, 8.0)) -> list[str]:
    """Write voxels of 1 x 2 x 4 units, at ``translation`` units."""
    factor = dict(zip("zyx", (1.0, 2.0, 4.0), strict=True))
    at = dict(zip("zyx", translation, strict=True))
    shift = {"type": "translation", "translation": [at[name] for name in names]}
    transforms = [{"type": "scale", "scale": [factor[name] for name in names]}, *([shift] if any(translation) else [])]
    datasets = [{"path": "s0", "coordinateTransformations": transforms}]
    made = array(path / "f.zarr", ordered(names), 3, dimension_names=names)
    made.attrs.update({"voxel_size": [factor[name] for name in names], "units": [unit] * 3})
    if any(translation):
        made.attrs.update({"offset": [at[name] for name in names]})
    multiscales = {"axes": ome_axes(names, unit), "datasets": datasets}
    return [str(path / "f.zarr"), image(path / "o.zarr", ordered(names), multiscales)]


@pytest.mark.parametrize("unit", UNKNOWN)
@pytest.mark.parametrize("names", ["zyx", "xyz"])
def test_the_configuration_says_what_a_unit_does_not(tmp_path: Path, unit: Any, names: str) -> None:
    for address in unscaled(tmp_path, unit, names):
        source = open_source(address)
        with pytest.raises(VoxelSizeError, match=r"no units of length: set `voxel_size: \[z, y, x\]` in nm"):
            plan_raw(source, VolumeOptions(raw=address))
        plan = plan_raw(source, VolumeOptions(raw=address, voxel_size=(30, 8, 8)))
        # 2, 3 and 2 voxels from the origin
        assert (plan.voxel_size, plan.offset) == ((30, 8, 8), (60, 24, 16))


def test_a_place_that_the_configuration_repeats(tmp_path: Path) -> None:
    one, other = unscaled(tmp_path, "pixel")
    options = VolumeOptions.model_validate(
        {"raw": one, "labels": other, "voxel_size": (30, 8, 8), "offset": {"raw": (60, 24, 16), "labels": (60, 24, 16)}}
    )
    assert plan_labels(open_source(other), options, open_source(one)).offset == (60, 24, 16)
    for kind in ("raw", "labels"):
        places = options.offset.model_copy(update={kind: (60.0, 24.0, 24.0)})
        with pytest.raises(VoxelSizeError, match=r"says that it begins at \(60\.0, 24\.0, 16\.0\) nm"):
            plan_labels(open_source(other), options.model_copy(update={"offset": places}), open_source(one))


def test_labels_and_masks_without_a_unit_lie_where_they_say_in_voxels(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = np.zeros((20, 20, 20), np.uint8)
        file["raw"].attrs.update({"resolution": [30.0, 8, 8], "offset": [30.0, 8, 8]})
    raw, options = open_source(f"{tmp_path}/a.h5:/raw"), VolumeOptions(raw=f"{tmp_path}/a.h5:/raw")
    for address in unscaled(tmp_path, "pixel"):
        plan = plan_labels(open_source(address), options, raw)
        assert (plan.roi, plan.offset) == (Roi((0, 0, 0), DATA.shape), (60, 24, 16))
        with pytest.raises(ShapeError, match="covers"):
            plan_mask(open_source(address), options, raw)


def test_volumes_without_a_unit_are_compared_where_they_say_in_voxels(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = DATA
        file["raw"].attrs.update({"resolution": [30.0, 8, 8], "offset": [30.0, 8, 8]})
    known = open_source(f"{tmp_path}/a.h5:/raw")
    one, other = (open_source(address) for address in unscaled(tmp_path, "pixel"))
    assert align(known, one, other).placed[1].start == align(known, other).placed[1].start == (1, 2, 1)
    (tmp_path / "b").mkdir()
    moved = open_source(unscaled(tmp_path / "b", "pixel", translation=(3, 6, 0))[0])
    assert align(one, moved).placed[1].start == (1, 0, -2)


def test_a_size_without_unit_and_place_leaves_the_place_open(tmp_path: Path) -> None:
    for address in unscaled(tmp_path, None, translation=(0, 0, 0)):
        source = open_source(address)
        assert (source.placed, source.voxel_size) == (False, None)
        assert source.unscaled is not None
        assert source.unscaled.start is None


def test_affinities_without_a_unit(tmp_path: Path) -> None:
    made = array(tmp_path / "a.zarr", ordered("zyxc", 3), 3, dimension_names="zyxc")
    made.attrs.update({"voxel_size": [1, 2, 4], "offset": [2, 6, 8], "units": "pixel"})
    source = open_channels(f"{tmp_path}/a.zarr")
    assert source.unscaled is not None
    assert source.unscaled.start == (2, 3, 2)


def names_of_ends(kind: str, name: str) -> Any:
    return name


def test_drafts_of_ome_zarr_06_name_coordinate_systems_by_text(tmp_path: Path) -> None:
    address = image(tmp_path / "o.zarr", ordered("xyz"), multiscales_06("xyz", names_of_ends), "0.6.dev2")
    source = open_source(address)
    np.testing.assert_array_equal(source.read(source.roi), DATA)
    assert source.offset == (400, 10, 8)


def test_array_axes_of_ome_zarr_06_take_the_unit_of_the_next_system(tmp_path: Path) -> None:
    end: dict[str, Any] = {"input": {"name": "array"}, "output": {"name": "world"}}
    multiscales = {
        "coordinateSystems": [
            {"name": "array", "axes": [{"name": f"dim_{k}", "type": "array"} for k in range(3)]},
            {"name": "world", "axes": ome_axes("zyx")},
        ],
        "datasets": [
            {
                "path": "s0",
                "coordinateTransformations": [
                    {"type": "identity", "input": {"path": "s0"}, "output": {"name": "array"}}
                ],
            }
        ],
        "coordinateTransformations": [{"type": "sequence", "transformations": steps("zyx"), **end}],
    }
    source = open_source(image(tmp_path / "o.zarr", DATA, multiscales, "0.6rc0"))
    assert (source.voxel_size, source.offset) == ((40, 5, 4), (400, 10, 8))


@pytest.mark.parametrize(
    ("version", "change", "message"),
    [
        ("0.3", {"axes": ["z", "y", "x"]}, r"of OME-Zarr 0\.3, which is not read: write it as 0\.4, 0\.5 or 0\.6"),
        ("0.7", {}, r"of OME-Zarr 0\.7, which is not read"),
        ("0.60", {}, r"of OME-Zarr 0\.60, which is not read"),
        ("0.5", {"axes": ["z", "y", "x"]}, r"not understood.*expected those of 0\.4, 0\.5 or 0\.6"),
        (
            "0.5",
            {"coordinateTransformations": [{"type": "affine", "affine": []}]},
            "'affine', expected scale and trans",
        ),
        ("0.6", {"coordinateSystems": []}, "not understood"),
    ],
)
def test_versions_and_transformations_that_are_refused(
    tmp_path: Path, version: str, change: dict[str, Any], message: str
) -> None:
    datasets = [{"path": "s0", "coordinateTransformations": [{**step, "output": "i"} for step in steps("zyx")]}]
    address = image(tmp_path / "o.zarr", DATA, {"axes": ome_axes("zyx"), "datasets": datasets} | change, version)
    with pytest.raises(KdsegError, match=message) as caught:
        open_source(address)
    assert "\n" not in str(caught.value)


def test_all_permutations_of_space_are_tried() -> None:
    """The data tell the six orders apart."""
    assert len({ordered(names).tobytes() for names in permutations("zyx")}) == 6


IMAGES = ("yx", "xy", "tyx", "yxc", "cxy", "ytx")


@pytest.mark.parametrize("names", IMAGES)
@pytest.mark.parametrize("way", ["zarr", "hdf5", "ome"])
def test_an_image_is_one_section(tmp_path: Path, names: str, way: str) -> None:
    flat = CHANNELS[:1, :1]
    data = flat.transpose(0, *(2 + "yx".index(name) for name in names if name in "yx"), 1)[0, ..., 0]
    for axis, name in enumerate(names):
        data = np.expand_dims(data, axis) if name in "tc" else data
    if way == "hdf5":
        with h5py.File(tmp_path / "a.h5", "w") as file:
            made = file.create_dataset("a", data=data, chunks=chunks(data))
            made.attrs.update({"resolution": [40.0, 5.0, 4.0], "offset": [400.0, 10.0, 8.0]})
            for axis, name in enumerate(names):
                made.dims[axis].label = name
        address = f"{tmp_path}/a.h5:/a"
    elif way == "zarr":
        array(tmp_path / "a.zarr", data, 3, dimension_names=names).attrs.update(
            {"resolution": [40.0, 5.0, 4.0], "offset": [400.0, 10.0, 8.0]}
        )
        address = str(tmp_path / "a.zarr")
    else:
        group = zarr.open_group(str(tmp_path / "o.zarr"), mode="w", zarr_format=3)
        group.create_array("0", shape=data.shape, chunks=chunks(data), dtype=data.dtype, dimension_names=names)[...] = (
            data
        )
        steps = [{"type": "scale", "scale": [{**SIZE, "t": 1.0, "c": 1.0}[name] for name in names]}]
        axes = [{"name": n, "type": "space", "unit": "nanometer"} if n in "xy" else {"name": n} for n in names]
        image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
        group.attrs.update({"ome": {"version": "0.5", "multiscales": [image]}})
        address = str(tmp_path / "o.zarr")
    source = open_source(address)
    assert source.data.shape == (1, 9, 7)
    assert (source.read(Roi((0, 2, 1), (1, 5, 6))) == DATA[:1, 2:7, 1:7]).all()
    assert source.read(Roi((0, 0, 0), (0, 9, 7))).shape == (0, 9, 7)
    if way == "ome":  # nobody says how thick it is
        assert source.voxel_size is None
        plan = plan_raw(source, VolumeOptions(raw=address, voxel_size=(40, 5, 4)))
        assert (plan.voxel_size, plan.roi.shape) == ((40, 5, 4), (1, 9, 7))
    else:
        assert (source.voxel_size, source.offset) == ((40, 5, 4), (400, 10, 8))


def test_an_array_of_two_axes_without_names_is_an_image(tmp_path: Path) -> None:
    made = array(tmp_path / "a.zarr", DATA[0], 2)
    assert (open_source(str(tmp_path / "a.zarr")).read(Roi((0, 0, 0), (1, 9, 7)))[0] == DATA[0]).all()
    made.attrs["resolution"] = [5.0, 4.0]
    with pytest.raises(VoxelSizeError, match="expected three numbers"):
        open_source(str(tmp_path / "a.zarr"))


def test_channels_of_an_image_lie_before_its_section(tmp_path: Path) -> None:
    data = CHANNELS[:, 0].transpose(1, 2, 0)
    array(tmp_path / "a.zarr", data, 3, dimension_names="yxc")
    found = open_channels(str(tmp_path / "a.zarr"))
    assert (found.channels, found.shape) == (3, (1, 9, 7))
    assert (found.read(Roi((0, 1, 2), (1, 4, 5))) == CHANNELS[:, :1, 1:5, 2:7]).all()
    with pytest.raises(ShapeError, match="of one channel"):
        open_source(str(tmp_path / "a.zarr"))
