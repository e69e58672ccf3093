"""Folders of PNG and JPEG sections that Pillow and tifffile wrote: order, gaps and values as of TIFF, and traps."""

from __future__ import annotations

import logging
import os
import struct
import tempfile
import tracemalloc
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from kdseg.config.data import SectionsOptions, VolumeOptions
from kdseg.errors import DataError, KdsegError, MissingError, ShapeError, UnreadableError
from kdseg.evaluation.alignment import expect_ids
from kdseg.geometry import Roi
from kdseg.results.manifests import source_fingerprint
from kdseg.volumes.plan import plan_labels, plan_mask, plan_raw
from kdseg.volumes.sources import open_channels, open_source

SHAPE = (6, 7)


def section(k: int, dtype: Any = np.uint16) -> NDArray[Any]:
    """Return the voxels of section k; none is 0, no two sections are alike."""
    return (np.arange(SHAPE[0] * SHAPE[1]) % 40 + 41 * (k + 1)).astype(dtype).reshape(SHAPE)


def folder(path: Path, names: Sequence[str], dtype: Any = np.uint16) -> str:
    path.mkdir(parents=True)
    for k, name in enumerate(names):
        Image.fromarray(section(k, dtype)).save(path / name)
    return str(path)


def order(address: str, **options: Any) -> list[int | None]:
    source = open_source(address, SectionsOptions(**options))
    return [None if not (k := int(voxels[0, 0]) // 41) else k - 1 for voxels in source.read(source.roi)]


def test_sections_are_ordered_and_checked_as_those_of_tiff(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert order(folder(tmp_path / "a", ["s2.png", "s3.PNG", "s10.png"]), missing="leave_out") == [0, 1, 2]
    assert "3 sections, s2.png to s10.png" in caplog.text
    gap = folder(tmp_path / "gap", ["s1.png", "s2.png", "s5.png"])
    with pytest.raises(ShapeError, match=r"3 of the 5 sections 1 to 5; missing: 3 to 4\."):
        open_source(gap)
    assert order(gap, missing="fill") == [0, 1, None, None, 2]
    assert open_source(gap, SectionsOptions(missing="fill")).numbers == tuple(range(1, 6))
    with pytest.raises(ShapeError, match=r"twice: s001\.png and s1\.png"):
        open_source(folder(tmp_path / "twice", ["s0.png", "s001.png", "s1.png"]))
    with pytest.raises(ShapeError, match=r"holds s1 copy\.png beside 2 files"):
        open_source(folder(tmp_path / "copy", ["s0.png", "s1 copy.png", "s1.png"]))
    named = folder(tmp_path / "named", ["a.png", "b7.png"])
    assert order(named, order="name") == [0, 1]
    (tmp_path / "named" / "._a.png").write_bytes(b"no image")
    (tmp_path / "named" / "Thumbs.db").write_bytes(b"no image")
    assert order(named, order="name") == [0, 1]


def test_attributes_beside_sections_make_no_n5_of_them(tmp_path: Path) -> None:
    address = folder(tmp_path / "a", ["s0.png", "s1.png"])
    (tmp_path / "a" / "attributes.json").write_text('{"microscope": "ours"}')
    assert order(address) == [0, 1]


def test_kinds_of_files_are_not_mixed(tmp_path: Path) -> None:
    address = folder(tmp_path / "a", ["s0.png", "s1.png"])
    tifffile.imwrite(tmp_path / "a" / "s2.tif", section(2))
    with pytest.raises(UnreadableError, match=r"holds PNG and TIFF files, such as s0\.png and s2\.tif"):
        open_source(address)
    (tmp_path / "a" / "s2.tif").rename(tmp_path / "a" / "s2.jpg")
    with pytest.raises(UnreadableError, match="holds PNG and JPEG files"):
        open_source(address)
    (tmp_path / "none").mkdir()
    with pytest.raises(MissingError, match="no TIFF, PNG or JPEG"):
        open_source(f"{tmp_path}/none")


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 5),
    dtype=st.sampled_from([np.uint8, np.uint16, bool]),
    interlaced=st.booleans(),
    data=st.data(),
)
def test_any_region_of_any_folder_of_png(count: int, dtype: Any, interlaced: bool, data: st.DataObject) -> None:
    rng = np.random.default_rng(count)
    whole = rng.integers(0, 2 if dtype is bool else np.iinfo(dtype).max + 1, (count, 9, 11)).astype(dtype)
    with tempfile.TemporaryDirectory() as name:
        for z, voxels in enumerate(whole):
            path = Path(name) / f"s{z + 7}.png"
            path.write_bytes(adam7(voxels)) if interlaced and dtype is np.uint8 else Image.fromarray(voxels).save(path)
        source = open_source(name)
        assert (source.data.shape, source.data.dtype, source.unit) == (whole.shape, dtype, (1, 9, 11))
        assert (source.voxel_size, source.offset, source.placed) == (None, None, False)
        low = [data.draw(st.integers(0, n - 1)) for n in whole.shape]
        size = [data.draw(st.integers(1, n - k)) for n, k in zip(whole.shape, low, strict=True)]
        roi = Roi((low[0], low[1], low[2]), (size[0], size[1], size[2]))
        np.testing.assert_array_equal(source.read(roi), whole[roi.slices()])


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, data: bytes, interlace: int = 0) -> bytes:
    """Return a PNG by the specification, its scan lines given with their filters."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def adam7(voxels: NDArray[Any]) -> bytes:
    """Return an interlaced PNG."""
    passes = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)]
    lines = b""
    for y, dy, x, dx in passes:
        part = voxels[y::dy, x::dx]
        lines += b"".join(b"\0" + row.tobytes() for row in part if row.size)
    return png(voxels.shape[1], voxels.shape[0], 8, 0, lines, 1)


def test_bits_and_palettes(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(png(8, 2, 1, 0, b"\0\xf0\0\x0f"))
    source = open_source(f"{tmp_path}/one.png")
    assert (source.read(source.roi) == [[[True] * 4 + [False] * 4, [False] * 4 + [True] * 4]]).all()
    assert source.data.dtype == bool
    for depth in (2, 4):
        (tmp_path / "few.png").write_bytes(png(2, 1, depth, 0, b"\0\x1b"))
        with pytest.raises(ShapeError, match=rf"has {depth} bits per pixel, expected 1, 8 or 16"):
            open_source(f"{tmp_path}/few.png")
    palette = Image.fromarray(section(0, np.uint8))
    palette = palette.convert("P")
    palette.putpalette([(7 * k) % 256 for k in range(768)])
    palette.save(tmp_path / "palette.png")
    source = open_source(f"{tmp_path}/palette.png")
    np.testing.assert_array_equal(source.read(source.roi)[0], np.asarray(palette))


def test_what_is_more_than_grey_is_refused(tmp_path: Path) -> None:
    grey = Image.fromarray(section(0, np.uint8))
    for mode in ("RGB", "RGBA", "LA"):
        grey.convert(mode).save(tmp_path / f"{mode}.png")
        with pytest.raises(ShapeError, match=rf"{mode}\.png has several values per pixel"):
            open_source(f"{tmp_path}/{mode}.png")
    for mode in ("RGB", "CMYK"):
        grey.convert(mode).save(tmp_path / f"{mode}.jpg")
        with pytest.raises(ShapeError, match=rf"{mode}\.jpg has several values per pixel"):
            open_source(f"{tmp_path}/{mode}.jpg")
    grey.save(tmp_path / "moving.png", save_all=True, append_images=[Image.fromarray(section(2, np.uint8))])
    with pytest.raises(ShapeError, match=r"moving\.png has 2 images"):
        open_source(f"{tmp_path}/moving.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    for ending in ("png", "jpg"):
        grey.save(tmp_path / f"turned.{ending}", exif=turned)
        with pytest.raises(ShapeError, match=r"orientation 6\): save it upright"):
            open_source(f"{tmp_path}/turned.{ending}")
    upright = Image.Exif()
    upright[0x0112] = 1
    grey.save(tmp_path / "upright.png", exif=upright)
    assert open_source(f"{tmp_path}/upright.png").data.shape == (1, *SHAPE)
    with pytest.raises(UnreadableError, match="no channels"):
        open_channels(f"{tmp_path}/upright.png")


def test_sections_of_other_sizes_or_types(tmp_path: Path) -> None:
    for name, other in {"size": section(1)[:5], "type": section(1, np.uint8)}.items():
        address = folder(tmp_path / name, ["s0.png", "s1.png"])
        Image.fromarray(other).save(tmp_path / name / "s1.png")
        with pytest.raises(ShapeError, match=r"s1\.png is .* but .*s0\.png is uint16 \(6, 7\); all sections need one"):
            open_source(address)


def test_jpeg_is_read_as_grey_values_but_not_as_ids(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(40, dtype=np.uint8), 3 * np.arange(50, dtype=np.uint8))
    (tmp_path / "j").mkdir()
    for k, ending in enumerate(("jpg", "JPG", "jpeg")):
        Image.fromarray(smooth + np.uint8(5 * k)).save(tmp_path / "j" / f"s{k}.{ending}", format="JPEG", quality=95)
    source = open_source(f"{tmp_path}/j")
    assert (source.data.shape, source.data.dtype) == ((3, 40, 50), np.uint8)
    wanted = smooth + 5 * np.arange(3, dtype=np.uint8)[:, None, None]
    assert np.abs(source.read(source.roi).astype(int) - wanted).max() <= 4
    part = Roi((1, 3, 4), (2, 30, 20))
    np.testing.assert_array_equal(source.read(part), source.read(source.roi)[part.slices()])
    options = VolumeOptions.model_validate({"raw": f"{tmp_path}/j", "voxel_size": [30, 8, 8]})
    assert plan_raw(source, options).roi.shape == (3, 40, 50)
    for plan in (lambda: plan_labels(source, options, source), lambda: plan_mask(source, options, source)):
        with pytest.raises(DataError, match=r"stored as JPEG or the like, which changes values"):
            plan()
    with pytest.raises(DataError, match=r"the segmentation .*stored as JPEG"):
        expect_ids(source, "the segmentation")


def test_damaged_and_false_files(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 60), np.uint8)).save(path)
    whole = path.read_bytes()
    source = open_source(str(path))
    flipped = bytearray(whole)
    flipped[-100] ^= 255
    for content in (whole[:500], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(UnreadableError, match=r"cannot read .*a\.png.* damaged or no PNG"):
            source.read(source.roi)
    for content in (b"", b"no image", whole[:20]):
        path.write_bytes(content)
        with pytest.raises(UnreadableError, match=r"cannot read .*a\.png.* damaged or no PNG") as caught:
            open_source(str(path))
        assert "\n" not in str(caught.value)


def test_no_other_format_hides_behind_the_ending(tmp_path: Path) -> None:
    grey = Image.fromarray(section(0, np.uint8))
    for ending, other in (("png", "JPEG"), ("png", "GIF"), ("jpg", "PNG"), ("png", "EPS"), ("jpg", "TIFF")):
        grey.save(tmp_path / f"a.{ending}", format=other)
        with pytest.raises(UnreadableError, match=f"a.{ending}"):
            open_source(f"{tmp_path}/a.{ending}")


def test_large_sections_are_read_and_larger_ones_refused(tmp_path: Path) -> None:
    """Pillow's own limit is 179 million pixels; sections of 2**28 exist, and more than 2 GiB are refused."""
    for width, height, colour, ok in ((2**14, 2**14, 0, True), (2**17, 2**15, 0, False)):
        head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b""))
        if ok:
            assert open_source(f"{tmp_path}/a.png").data.shape == (1, height, width)
        else:
            with pytest.raises(UnreadableError, match="says that the image has 4294967296 bytes"):
                open_source(f"{tmp_path}/a.png")


def test_a_section_that_unpacks_to_more_than_its_voxels_does_not_take_the_memory(tmp_path: Path) -> None:
    lines = b"\0" + bytes(8)
    (tmp_path / "a.png").write_bytes(png(8, 2, 8, 0, 2 * lines + bytes(2**26)))
    notes = PngImagePlugin.PngInfo()
    notes.add_text("note", "x" * 2**19, zip=True)
    Image.fromarray(section(0, np.uint8)).save(tmp_path / "text.png", pnginfo=notes)
    bomb = zlib.compress(bytes(2**26))
    text = (tmp_path / "text.png").read_bytes()
    at = text.index(b"zTXt") - 4
    (tmp_path / "text.png").write_bytes(text[:at] + chunk(b"zTXt", b"note\0\0" + bomb) + text[at:])
    tracemalloc.start()
    source = open_source(f"{tmp_path}/a.png")
    assert not source.read(source.roi).any()
    with pytest.raises(UnreadableError, match=r"text\.png"):
        open_source(f"{tmp_path}/text.png")
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    address = folder(tmp_path / "a", ["s0.png"])
    os.mkfifo(tmp_path / "a" / "s1.png")
    os.mkfifo(tmp_path / "pipe.png")
    for place in (address, f"{tmp_path}/pipe.png"):
        with pytest.raises(KdsegError, match="is no file"):
            open_source(place)


def test_a_section_that_is_written_anew_changes_the_fingerprint(tmp_path: Path) -> None:
    options = VolumeOptions.model_validate({"raw": folder(tmp_path / "a", ["s0.png", "s1.png"])})
    (path,) = options.files("raw")
    before = source_fingerprint(Path(path))
    Image.fromarray(section(5)).save(tmp_path / "a" / "s1.png")
    assert source_fingerprint(Path(path)) != before
