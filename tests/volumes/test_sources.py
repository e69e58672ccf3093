"""Small real files of every format, whole and damaged."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from toy_volumes import DATA, write_hdf5, write_zarr

from kdseg.errors import KdsegError, MissingError, ShapeError, UnreadableError, VoxelSizeError
from kdseg.geometry import Roi
from kdseg.volumes.sources import open_source

SHAPE = DATA.shape


def write_folder(path: Path, data: NDArray[Any] = DATA, **options: Any) -> str:
    path.mkdir(parents=True)
    for z, section in enumerate(data):
        tifffile.imwrite(path / f"section{z}.tif", section, **options)
    return str(path)


def write_pages(path: Path, data: NDArray[Any] = DATA, **options: Any) -> str:
    with tifffile.TiffWriter(
        path, bigtiff=options.pop("bigtiff", False), byteorder=options.pop("byteorder", "<")
    ) as file:
        for section in data:
            file.write(section, contiguous=False, metadata=None, **options)
    return str(path)


def write_ome(path: Path, fmt: str, data: NDArray[Any] = DATA) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The library warns of itself.
        from ome_zarr.format import FormatV04, FormatV05
        from ome_zarr.writer import write_image

        form = FormatV04() if fmt == "0.4" else FormatV05()
        group = zarr.open_group(str(path), mode="w", zarr_format=form.zarr_format)
        scale, units = {"z": 0.04, "y": 0.005, "x": 0.004}, dict.fromkeys("zyx", "micrometer")
        write_image(data, group, axes="zyx", fmt=form, scale=scale, axes_units=units, scale_factors=[2])
    return str(path)


def write_imagej(path: Path, unit: str = "nm", data: NDArray[Any] = DATA) -> str:
    tifffile.imwrite(
        path, data, imagej=True, resolution=(0.25, 0.2), metadata={"axes": "ZYX", "spacing": 40.0, "unit": unit}
    )
    return str(path)


def write_ome_tiff(path: Path, data: NDArray[Any] = DATA, **metadata: Any) -> str:
    sizes = {"PhysicalSizeZ": 0.04, "PhysicalSizeY": 5.0, "PhysicalSizeX": 4.0, "PhysicalSizeYUnit": "nm"}
    sizes["PhysicalSizeXUnit"] = "nm"
    tifffile.imwrite(path, data, ome=True, metadata={"axes": "ZYX"} | sizes | metadata)
    return str(path)


FORMATS = {
    "cremi.h5": lambda p: write_hdf5(p, resolution=[40.0, 5.0, 4.0], offset=[400.0, 0.0, 8.0]),
    "zarr2.zarr": lambda p: write_zarr(p, 2),
    "zarr3.zarr": lambda p: write_zarr(p, 3),
    "ome04.zarr": lambda p: write_ome(p, "0.4"),
    "ome05.zarr": lambda p: write_ome(p, "0.5"),
    "imagej.tif": write_imagej,
    "ome.ome.tif": write_ome_tiff,
    "shaped.tif": lambda p: (tifffile.imwrite(p, DATA), str(p))[1],
    "pages.tif": write_pages,
    "strips.tif": lambda p: write_pages(p, compression="zlib", rowsperstrip=7),
    "predictor.tif": lambda p: write_pages(p, compression="zlib", predictor=False, bigtiff=True),
    "tiles.tif": lambda p: write_pages(p, compression="zlib", tile=(16, 32)),
    "raw-tiles.tif": lambda p: write_pages(p, tile=(32, 16)),
    "big-endian.tif": lambda p: write_pages(p, byteorder=">"),
    "big-endian-strips.tif": lambda p: write_pages(p, byteorder=">", compression="zlib", rowsperstrip=9),
    "folder": write_folder,
    "zip-folder": lambda p: write_folder(p, compression="zlib", rowsperstrip=11),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("sources")
    return {name: write(folder / name) for name, write in FORMATS.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_reads_as_it_was_written(files: dict[str, str], name: str) -> None:
    source = open_source(files[name])
    assert source.data.shape == SHAPE
    assert source.data.dtype.newbyteorder("=") == np.uint16
    np.testing.assert_array_equal(source.read(source.roi), DATA)


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(FORMATS)),
    ends=st.tuples(*[st.tuples(st.integers(0, n - 1), st.integers(1, n)) for n in SHAPE]),
)
def test_any_region_of_any_format(files: dict[str, str], name: str, ends: Any) -> None:
    roi = Roi(tuple(a for a, _ in ends), tuple(min(n, len_ - a) for (a, n), len_ in zip(ends, SHAPE, strict=True)))  # type: ignore[arg-type]
    np.testing.assert_array_equal(open_source(files[name]).read(roi), DATA[roi.slices()])


@pytest.mark.parametrize("name", FORMATS)
def test_a_source_can_be_sent_to_another_process(files: dict[str, str], name: str) -> None:
    source = pickle.loads(pickle.dumps(open_source(files[name])))
    np.testing.assert_array_equal(source.read(Roi((3, 4, 5), (2, 3, 4))), DATA[3:5, 4:7, 5:9])


@pytest.mark.parametrize(
    ("name", "voxel_size", "offset"),
    [
        ("cremi.h5", (40, 5, 4), (400, 0, 8)),
        ("ome04.zarr", (40, 5, 4), (0, 0, 0)),
        ("ome05.zarr", (40, 5, 4), (0, 0, 0)),
        ("imagej.tif", (40, 5, 4), None),
        ("ome.ome.tif", (40, 5, 4), None),
        ("shaped.tif", None, None),
        ("folder", None, None),
        ("zarr2.zarr", None, (0, 0, 0)),
    ],
)
def test_voxel_size_and_offset_in_nm(files: dict[str, str], name: str, voxel_size: Any, offset: Any) -> None:
    source = open_source(files[name])
    if voxel_size is None:
        assert source.voxel_size is None
    else:
        np.testing.assert_allclose(source.voxel_size or (), voxel_size)
    assert source.offset == (offset if offset is None else pytest.approx(offset))


def test_other_units_of_tiff(tmp_path: Path) -> None:
    np.testing.assert_allclose(
        open_source(write_imagej(tmp_path / "a.tif", "micron")).voxel_size or (), (4e4, 5e3, 4e3)
    )
    assert open_source(write_imagej(tmp_path / "b.tif", "pixel")).voxel_size is None
    assert open_source(write_ome_tiff(tmp_path / "c.ome.tif", PhysicalSizeZUnit="pixel")).voxel_size is None


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    # Section 9 is damaged behind its header: sections 0-8 must not notice.
    address = write_folder(tmp_path / "s", compression="zlib")
    path = tmp_path / "s" / "section9.tif"
    with tifffile.TiffFile(path) as file:
        start = file.pages.first.dataoffsets[0]
    data = bytearray(path.read_bytes())
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    source = open_source(address)
    np.testing.assert_array_equal(source.read(Roi((0, 0, 0), (9, 50, 34))), DATA[:9])
    with pytest.raises(UnreadableError, match=r"section9\.tif"):
        source.read(Roi((8, 0, 0), (2, 1, 1)))


def test_sections_are_ordered_by_number(tmp_path: Path) -> None:
    names = [p.path.name for p in _sections(write_folder(tmp_path / "s"))]
    assert names == [f"section{z}.tif" for z in range(12)]


def _sections(address: str) -> Any:
    return open_source(address).data.sections


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.6, 0.97])
@pytest.mark.parametrize("name", [n for n in FORMATS if n.endswith((".tif", ".h5"))])
def test_a_file_that_is_cut_off_is_refused_when_it_is_opened(
    files: dict[str, str], tmp_path: Path, name: str, kept: float
) -> None:
    path = Path(files[name].split(":")[0])
    data = path.read_bytes()
    (tmp_path / path.name).write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(UnreadableError, match=path.name):
        open_source(files[name].replace(str(path.parent), str(tmp_path)))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_zarr_chunk_that_is_cut_off(tmp_path: Path, zarr_format: int) -> None:
    source = open_source(write_zarr(tmp_path / "z.zarr", zarr_format))
    chunk = max((p for p in (tmp_path / "z.zarr").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    whole = chunk.read_bytes()
    for part in (whole[: len(whole) // 2], b""):
        chunk.write_bytes(part)
        with pytest.raises(UnreadableError, match="cannot"):
            source.read(source.roi)


@pytest.mark.parametrize("name", ["a.h5:/volumes/raw", "a.tif", "a.zarr", "a.dat"])
def test_a_file_of_noise(tmp_path: Path, name: str) -> None:
    (tmp_path / name.split(":")[0]).write_bytes(bytes(range(256)) * 20)
    with pytest.raises(UnreadableError, match=name.split(":")[0]):
        open_source(f"{tmp_path}/{name}")


def test_nothing_there(tmp_path: Path) -> None:
    for name in ("a.h5:/raw", "a.zarr/b", "a.tif", "folder"):
        with pytest.raises(MissingError, match="nothing at"):
            open_source(f"{tmp_path}/{name}")
    (tmp_path / "folder").mkdir()
    with pytest.raises(MissingError, match="no TIFF"):
        open_source(f"{tmp_path}/folder")


@pytest.mark.parametrize("address", ["", ":", ":/volumes", ":/volumes/rew"])
def test_a_dataset_that_is_not_in_the_hdf5_lists_those_that_are(tmp_path: Path, address: str) -> None:
    write_hdf5(tmp_path / "a.h5")
    write_hdf5(tmp_path / "a.h5", name="volumes/labels/neuron_ids")
    with pytest.raises(MissingError, match=r"\['/volumes/labels/neuron_ids', '/volumes/raw'\]"):
        open_source(f"{tmp_path}/a.h5{address}")


@pytest.mark.parametrize("shape", [(5,), (2, 4, 5, 6), (0, 5, 6), (4, 0, 6)])
def test_other_shapes_of_hdf5_and_zarr(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"empty|expected"):
        open_source(write_hdf5(tmp_path / "a.h5", np.zeros(shape, np.uint8)))
    zarr.create_array(str(tmp_path / "a.zarr"), shape=shape, chunks=[max(n, 1) for n in shape], dtype="u1")
    with pytest.raises(ShapeError, match=r"empty|expected"):
        open_source(f"{tmp_path}/a.zarr")


def test_a_page_of_tiff_is_a_section_and_what_lies_beside_it_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", DATA[0])
    source = open_source(str(tmp_path / "a.tif"))
    assert (source.read(Roi((0, 3, 2), (1, 20, 30)))[0] == DATA[0, 3:23, 2:32]).all()
    assert not caplog.text
    tifffile.imwrite(tmp_path / "b.tif", DATA[1])
    assert open_source(str(tmp_path / "a.tif")).data.shape == (1, 50, 34)
    assert "a.tif is one section; 1 more TIFF files lie beside it, such as b.tif: give the folder" in caplog.text


@pytest.mark.parametrize("shape", [(2, 3, 50, 60), (5, 50, 60, 3)])
def test_other_shapes_of_tiff(tmp_path: Path, shape: tuple[int, ...]) -> None:
    photometric = "rgb" if shape[-1] == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", np.zeros(shape, np.uint8), photometric=photometric)
    with pytest.raises(ShapeError, match="expected"):
        open_source(f"{tmp_path}/a.tif")


def test_sections_of_different_sizes_or_types(tmp_path: Path) -> None:
    for name, other in {"size": np.zeros((50, 35), np.uint16), "type": np.zeros((50, 34), np.uint8)}.items():
        address = write_folder(tmp_path / name)
        tifffile.imwrite(tmp_path / name / "section5.tif", other)
        with pytest.raises(ShapeError, match=r"section5\.tif is .* but .*section0\.tif"):
            open_source(address)
        with tifffile.TiffWriter(tmp_path / f"{name}.tif") as file:
            for section in (DATA[0], DATA[1], other):
                file.write(section, contiguous=False, metadata=None)
        with pytest.raises(ShapeError, match="different sizes or types"):
            open_source(f"{tmp_path}/{name}.tif")


def test_a_folder_of_stacks(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    write_pages(tmp_path / "s" / "a.tif")
    with pytest.raises(ShapeError, match="expected one section"):
        open_source(f"{tmp_path}/s")


@pytest.mark.parametrize("value", [[40.0, 4.0], [40.0, 0.0, 4.0], [40.0, -4.0, 4.0], [np.nan, 4, 4], "forty", 4.0])
def test_a_voxel_size_that_is_none(tmp_path: Path, value: Any) -> None:
    with pytest.raises(VoxelSizeError, match=r"a\.h5"):
        open_source(write_hdf5(tmp_path / "a.h5", resolution=value))


def test_an_offset_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(VoxelSizeError, match="finite"):
        open_source(write_hdf5(tmp_path / "a.h5", resolution=[1.0, 1, 1], offset=[0, 0, np.inf]))


def test_messages_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"no")
    (tmp_path / "a.tif").write_bytes(b"no")
    for name in ("a.h5", "a.tif", "b"):
        with pytest.raises(KdsegError) as caught:
            open_source(f"{tmp_path}/{name}")
        assert "\n" not in str(caught.value)


def test_a_large_stack_of_imagej_has_one_page(tmp_path: Path) -> None:
    # ImageJ writes stacks above 4 GB as one page and the other sections behind it.
    path = tmp_path / "a.tif"
    write_imagej(path)
    with tifffile.TiffFile(path) as file:
        link = file.pages.first.offset + 2 + 12 * len(file.pages.first.tags)
    data = bytearray(path.read_bytes())
    data[link : link + 4] = bytes(4)
    path.write_bytes(data)
    with tifffile.TiffFile(path) as file:
        assert len(file.pages) == 1
    source = open_source(str(path))
    np.testing.assert_array_equal(source.read(source.roi), DATA)
    path.write_bytes(data[: DATA.nbytes])
    with pytest.raises(UnreadableError, match="cut off"):
        open_source(str(path))


def test_a_file_that_says_no_place_is_told_from_one_at_0(tmp_path: Path) -> None:
    assert not open_source(write_hdf5(tmp_path / "a.h5")).placed
    assert open_source(write_hdf5(tmp_path / "b.h5", offset=(0, 0, 0))).placed
    assert not open_source(write_zarr(tmp_path / "a.zarr", 3)).placed
    assert open_source(write_ome(tmp_path / "b.zarr", "0.5")).placed
    assert not open_source(write_pages(tmp_path / "a.tif")).placed


@pytest.mark.parametrize("shards", [None, (4, 4, 4)])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_chunks_that_are_links_to_nothing_are_not_zeros(tmp_path: Path, zarr_format: Any, shards: Any) -> None:
    """As in copies of git-annex, whose files are links to what was not fetched."""
    if shards and zarr_format == 2:
        pytest.skip("zarr v2 has no shards")
    path = tmp_path / "a.zarr"
    made = zarr.create_array(
        path, shape=(4, 4, 8), chunks=(2, 2, 2), shards=shards, dtype="u1", zarr_format=zarr_format, fill_value=0
    )
    made[:, :, :4] = 1
    source = open_source(str(path))
    assert source.read(source.roi).sum() == 64  # chunks of zeros are not there
    chunk = next(
        one for one in sorted(path.rglob("*")) if one.is_file() and one.suffix != ".json" and one.name[0] != "."
    )
    for lost in dict.fromkeys((chunk, path / chunk.relative_to(path).parts[0])):
        lost.rename(tmp_path / "kept")
        lost.symlink_to(tmp_path / "kept")
        assert source.read(source.roi).sum() == 64
        (tmp_path / "kept").rename(tmp_path / "elsewhere")
        with pytest.raises(UnreadableError, match=rf"{lost.relative_to(tmp_path)} is a link to nothing"):
            source.read(source.roi)
        lost.unlink()
        (tmp_path / "elsewhere").rename(lost)
