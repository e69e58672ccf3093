"""OME-TIFF: sections that metadata map to pages of one file or of several, and pages that are more than grey values."""

from __future__ import annotations

import logging
import os
import pickle
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from kdseg.config.data import SectionsOptions
from kdseg.errors import KdsegError, MissingError, ShapeError, UnreadableError
from kdseg.geometry import Roi
from kdseg.volumes.sources import open_source

DATA = np.random.default_rng(0).integers(1, 2**16, (10, 24, 18), dtype=np.uint16)


def xml(
    tiff_data: str,
    size: int = len(DATA),
    own: str = "",
    sizes: str = "",
    planes: tuple[int, int] = (1, 1),
    more: str = "",
) -> str:
    c, t = planes
    channels = "".join(f'<Channel ID="Channel:0:{k}" SamplesPerPixel="1"/>' for k in range(c))
    return (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"'
        f'{f" UUID={own!r}" if own else ""}><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" '
        f'Type="uint16" SizeX="18" SizeY="24" SizeZ="{size}" SizeC="{c}" SizeT="{t}" {sizes}>{channels}{tiff_data}'
        f"</Pixels></Image>{more}</OME>"
    )


def write(path: Path, pages: Sequence[int], text: str, **options: Any) -> str:
    """Write sections of DATA as pages, and OME-XML."""
    with tifffile.TiffWriter(path) as file:
        for k, z in enumerate(pages):
            described = {"description": text.encode()} if k == 0 else {}
            file.write(DATA[z], contiguous=False, metadata=None, **described, **options)
    return str(path)


def planes(pages: Sequence[int]) -> str:
    """Return the TiffData of sections that are pages."""
    return "".join(f'<TiffData FirstZ="{z}" IFD="{page}" PlaneCount="1"/>' for page, z in enumerate(pages))


def test_metadata_of_no_image_say_nothing(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a.ome.tif", range(10), "<OME><Plate/></OME>"))
    np.testing.assert_array_equal(source.read(source.roi), DATA)


@settings(deadline=None, max_examples=40)
@given(
    pages=st.permutations(range(len(DATA))),
    ends=st.tuples(*[st.tuples(st.integers(0, n - 1), st.integers(1, n)) for n in DATA.shape]),
    compression=st.sampled_from([None, "zlib"]),
)
def test_sections_come_in_the_order_of_the_metadata(
    tmp_path_factory: pytest.TempPathFactory, pages: list[int], ends: Any, compression: Any
) -> None:
    path = tmp_path_factory.mktemp("ome") / "a.ome.tif"
    source = open_source(write(path, pages, xml(planes(pages)), compression=compression, rowsperstrip=7))
    roi = Roi(tuple(a for a, _ in ends), tuple(min(n, m - a) for (a, n), m in zip(ends, DATA.shape, strict=True)))  # type: ignore[arg-type]
    np.testing.assert_array_equal(source.read(roi), DATA[roi.slices()])
    np.testing.assert_array_equal(tifffile.imread(path), DATA)


MAPPINGS = {
    "reversed in one": (range(9, -1, -1), planes(range(9, -1, -1))),
    "all that follow": (range(10), "<TiffData/>"),
    "none said": (range(10), ""),
    "two runs": (
        [*range(5, 10), *range(5)],
        '<TiffData FirstZ="5" IFD="0" PlaneCount="5"/><TiffData IFD="5" PlaneCount="5"/>',
    ),
    "old word": ([*range(5, 10), *range(5)], '<TiffData FirstZ="5" NumPlanes="5"/><TiffData IFD="5" NumPlanes="5"/>'),
    "a page that is none of it": ([3, *range(10)], '<TiffData IFD="1" PlaneCount="10"/>'),
    "rest of the file": (
        [3, *range(10)],
        '<TiffData IFD="1" PlaneCount="1"/><TiffData FirstZ="1" IFD="2" PlaneCount="9"/>',
    ),
}


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("length", [1, 2])
def test_mappings_of_pages(tmp_path: Path, mapping: str, length: int) -> None:
    pages, data = MAPPINGS[mapping]
    # twice the same: programs repeat themselves
    source = open_source(write(tmp_path / "a.ome.tif", pages, xml(data * length)))
    np.testing.assert_array_equal(source.read(source.roi), DATA)
    assert source.numbers is None


DAMAGED = {
    "no such page": (range(9), planes(range(10)), r"page 9 of a\.ome\.tif, which has 9 pages"),
    "no such section": (range(10), '<TiffData FirstZ="9" PlaneCount="2"/>', r"section 10 of 10"),
    "two pages of one": (range(10), planes(range(10)) + '<TiffData FirstZ="3" IFD="4"/>', r"section 3 is page 3 .* 4 "),
    "two sections of one": (
        range(10),
        planes([0, 1, 2, 3, 4, 5, 6, 7, 8]) + '<TiffData FirstZ="9"/>',
        "section 0 and 9",
    ),
    "other channel": (range(10), '<TiffData FirstC="1" IFD="0" PlaneCount="10"/>', r"pages of C 1"),
    "no number": (range(10), '<TiffData FirstZ="one"/>', r"damaged"),
    "negative": (range(10), '<TiffData IFD="-1"/>', r"negative"),
    "no XML": (range(10), "<TiffData", r"metadata of .*a\.ome\.tif are damaged"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_metadata_that_cannot_be_are_refused(tmp_path: Path, case: str) -> None:
    pages, data, said = DAMAGED[case]
    with pytest.raises(UnreadableError, match=said):
        open_source(write(tmp_path / "a.ome.tif", pages, xml(data)))


def test_sections_that_metadata_leave_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    there = [0, 1, 3, 4, 5, 6, 7, 8]
    address = write(tmp_path / "a.ome.tif", there, xml(planes(there)))
    with pytest.raises(ShapeError, match=r"has 8 of the 10 sections 0 to 9; missing: 2, 9\."):
        open_source(address)
    source = open_source(address, SectionsOptions(missing="leave_out"))
    np.testing.assert_array_equal(source.read(source.roi), DATA[there])
    assert source.numbers == tuple(there)
    source = open_source(address, SectionsOptions(missing="fill"))
    np.testing.assert_array_equal(source.read(source.roi), np.where(np.isin(range(10), there)[:, None, None], DATA, 0))
    assert "2 sections are missing, 2, 9: they are filled with zeros" in caplog.text


def test_sections_along_another_axis(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pages = [*range(5, 10), *range(5)]
    data = '<TiffData FirstT="5" PlaneCount="5"/><TiffData IFD="5" PlaneCount="5"/>'
    source = open_source(write(tmp_path / "a.ome.tif", pages, xml(data, 1, planes=(1, 10))))
    np.testing.assert_array_equal(source.read(source.roi), DATA)
    assert "its sections lie along the axis T" in caplog.text
    caplog.clear()
    tifffile.imwrite(tmp_path / "imagej.tif", DATA, imagej=True)  # as channels
    source = open_source(f"{tmp_path}/imagej.tif")
    np.testing.assert_array_equal(source.read(source.roi), DATA)
    assert "imagej.tif: its sections lie along the axis C" in caplog.text
    with pytest.raises(ShapeError, match="along Z and C, 5 x 2"):
        open_source(write(tmp_path / "b.ome.tif", range(10), xml("<TiffData/>", 5, planes=(2, 1))))
    two = xml("<TiffData/>").replace("</OME>", "") + xml("<TiffData/>").split("06'>")[-1].split('06">')[-1]
    with pytest.raises(ShapeError, match="holds 2 images"):
        open_source(write(tmp_path / "c.ome.tif", range(10), two))


@pytest.mark.parametrize(
    ("unit", "nm"),
    [("", 1e3), ("µm", 1e3), ("\u03bcm", 1e3), ("nm", 1), ("Å", 0.1), ("\u212b", 0.1), ("pm", 1e-3), ("mm", 1e6)],
)
def test_units_of_voxel_sizes(tmp_path: Path, unit: str, nm: float) -> None:
    said = "".join(
        f'PhysicalSize{axis}="{size}" ' + (f'PhysicalSize{axis}Unit="{unit}" ' if unit else "")
        for axis, size in (("Z", 30), ("Y", 8), ("X", 4))
    )
    source = open_source(write(tmp_path / "a.ome.tif", range(10), xml("<TiffData/>", sizes=said)))
    np.testing.assert_allclose(source.voxel_size or (), (30 * nm, 8 * nm, 4 * nm))


@pytest.mark.parametrize(
    "change", [('PhysicalSizeZ="30"', 'PhysicalSizeZ="0"'), ("nm", "pixel"), ("PhysicalSizeX", "x")]
)
def test_voxel_sizes_that_are_not_said(tmp_path: Path, change: tuple[str, str]) -> None:
    said = "".join(f'PhysicalSize{axis}="30" PhysicalSize{axis}Unit="nm" ' for axis in "ZYX").replace(*change)
    assert open_source(write(tmp_path / "a.ome.tif", range(10), xml("<TiffData/>", sizes=said))).voxel_size is None


class Image:
    """An OME-TIFF image of several files in a folder, as programs write them."""

    def __init__(self, folder: Path, parts: Sequence[Sequence[int]], names: str = "im_{}.ome.tif") -> None:
        folder.mkdir()
        self.folder = folder
        self.parts = parts
        self.uuids = [f"urn:uuid:{uuid.UUID(int=k + 1)}" for k in range(len(parts))]
        self.paths = [folder / names.format(k) for k in range(len(parts))]
        self.whole = "".join(
            f'<TiffData FirstZ="{z}" IFD="{page}" PlaneCount="1"><UUID FileName="{path.name}">{one}</UUID></TiffData>'
            for part, path, one in zip(parts, self.paths, self.uuids, strict=True)
            for page, z in enumerate(part)
        )

    def write(self, *texts: str, **options: Any) -> str:
        """Write the files; the last text is repeated."""
        for k, path in enumerate(self.paths):
            text = texts[min(k, len(texts) - 1)]
            write(path, self.parts[k], text.replace("OWN", self.uuids[k]), **options)
        return str(self.folder)

    @property
    def full(self) -> str:
        return xml(self.whole, own="OWN", sizes='PhysicalSizeZ="0.03" PhysicalSizeY="0.008" PhysicalSizeX="0.004"')


def binary_only(name: str) -> str:
    return (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="OWN">'
        f'<BinaryOnly MetadataFile="{name}" UUID="urn:uuid:0"/></OME>'
    )


SINGLE = [[z] for z in (4, 2, 0, 1, 3, 9, 8, 7, 6, 5)]
PARTS = {"single": SINGLE, "several": [[3, 1, 0], [2, 9, 8, 7], [4], [5, 6]]}


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_folder_of_files_that_name_each_other(tmp_path: Path, parts: str, compression: Any) -> None:
    image = Image(tmp_path / "m", PARTS[parts])
    source = pickle.loads(pickle.dumps(open_source(image.write(image.full, compression=compression))))
    np.testing.assert_array_equal(source.read(source.roi), DATA)
    np.testing.assert_array_equal(source.read(Roi((2, 3, 4), (5, 6, 7))), DATA[2:7, 3:9, 4:11])
    np.testing.assert_allclose(source.voxel_size or (), (30, 8, 4))
    np.testing.assert_array_equal(tifffile.imread(image.paths[0]), DATA)
    with pytest.raises(UnreadableError, match=r"im_0\.ome\.tif is one file of an image that has others, .* the folder"):
        open_source(str(image.paths[0]))


def test_metadata_in_the_first_file_or_in_a_companion(tmp_path: Path) -> None:
    image = Image(tmp_path / "first", PARTS["several"])
    source = open_source(image.write(image.full, binary_only("im_0.ome.tif")))
    np.testing.assert_array_equal(source.read(source.roi), DATA)
    image = Image(tmp_path / "last", PARTS["several"])
    master = image.paths[-1].name
    source = open_source(image.write(binary_only(master), binary_only(master), binary_only(master), image.full))
    np.testing.assert_array_equal(source.read(source.roi), DATA)
    image = Image(tmp_path / "companion", PARTS["several"])
    address = image.write(binary_only("m.companion.ome"))
    with pytest.raises(MissingError, match=r"but not m\.companion\.ome, which says where its sections are: add it"):
        open_source(address)
    (image.folder / "m.companion.ome").write_text(image.full)
    source = open_source(address)
    np.testing.assert_array_equal(source.read(source.roi), DATA)
    with pytest.raises(UnreadableError, match="the folder"):
        open_source(str(image.paths[1]))
    one = Image(tmp_path / "one", [range(9, -1, -1)])
    address = one.write(binary_only("m.companion.ome"))
    (one.folder / "m.companion.ome").write_text(xml(one.whole))
    source = open_source(address)
    np.testing.assert_array_equal(source.read(source.roi), DATA)


def test_files_that_each_say_their_own_sections(tmp_path: Path) -> None:
    image = Image(tmp_path / "m", PARTS["several"])
    texts = [xml(planes(part), own="OWN") for part in image.parts]
    source = open_source(image.write(*texts))
    np.testing.assert_array_equal(source.read(source.roi), DATA)


def test_files_that_were_renamed_are_found_by_their_ids(tmp_path: Path) -> None:
    image = Image(tmp_path / "m", PARTS["several"])
    address = image.write(image.full)
    for k, path in enumerate(reversed(image.paths)):
        path.rename(path.with_name(f"renamed {k}.tif"))
    source = open_source(address)
    np.testing.assert_array_equal(source.read(source.roi), DATA)
    # a whole image in one file that has another name now
    named = xml(
        image.whole.split("<TiffData")[0]
        + planes(range(10)).replace("/>", '><UUID FileName="old.tif">u</UUID></TiffData>')
    )
    source = open_source(write(tmp_path / "new.tif", range(10), named))
    np.testing.assert_array_equal(source.read(source.roi), DATA)


def test_files_that_are_missing_and_files_too_many(tmp_path: Path) -> None:
    image = Image(tmp_path / "m", PARTS["several"])
    address = image.write(image.full)
    kept = image.paths[2].read_bytes()
    image.paths[2].unlink()
    with pytest.raises(ShapeError, match=r"has 9 of the 10 sections 0 to 9; missing: 4\."):
        open_source(address)
    source = open_source(address, SectionsOptions(missing="fill"))
    assert source.read(source.roi).any((1, 2)).tolist() == [z != 4 for z in range(10)]
    image.paths[2].write_bytes(image.paths[1].read_bytes())
    with pytest.raises(UnreadableError, match=r"im_2\.ome\.tif has the UUID .*0002, but im_0\.ome\.tif expects .*0003"):
        open_source(address)
    image.paths[2].write_bytes(kept)
    write(image.folder / "overview.tif", [0], "")
    with pytest.raises(UnreadableError, match=r"holds overview\.tif, which im_0\.ome\.tif does not name as part"):
        open_source(address)


def test_single_sections_with_the_metadata_of_all_are_taken_by_name_if_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    for z in range(10):
        write(tmp_path / "m" / f"s{z}.tif", [z], xml("<TiffData/>"))
    with pytest.raises(UnreadableError, match=r"of several images: section 0 .*sections\.order: name"):
        open_source(f"{tmp_path}/m")
    source = open_source(f"{tmp_path}/m", SectionsOptions(order="name"))
    np.testing.assert_array_equal(source.read(source.roi), DATA)


@pytest.mark.parametrize("name", ["../private/x.ome.tif", "{}/private/x.ome.tif", "pipe.ome.tif"])
def test_files_elsewhere_and_pipes_are_not_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "private").mkdir()
    write(tmp_path / "private" / "x.ome.tif", [1], xml("<TiffData/>", 1))
    (tmp_path / "m").mkdir()
    os.mkfifo(tmp_path / "m" / "pipe.ome.tif")
    data = f'<TiffData FirstZ="1"><UUID FileName="{name.format(tmp_path)}">b</UUID></TiffData>'
    address = write(tmp_path / "m" / "a.ome.tif", [0], xml("<TiffData PlaneCount='1'/>" + data, 2, own="a"))
    with pytest.raises(UnreadableError, match="is one file of an image that has others"):
        open_source(address)
    with pytest.raises(KdsegError, match=r"pipe\.ome\.tif is no file"):
        open_source(f"{tmp_path}/m")
    (tmp_path / "m" / "pipe.ome.tif").unlink()
    with pytest.raises(ShapeError, match=r"has 1 of the 2 sections"):
        open_source(f"{tmp_path}/m")


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("kind", ["page", "pages", "ome", "folder"])
def test_colours_are_refused(tmp_path: Path, planar: str, kind: str) -> None:
    data = np.zeros((3, 24, 18) if planar == "separate" else (24, 18, 3), np.uint8)
    path = tmp_path / "a.tif"
    many = {"page": data, "folder": data}.get(kind, np.stack([data] * 4))
    ome: dict[str, Any] = {"ome": True} if kind == "ome" else {}
    tifffile.imwrite(path, many, photometric="rgb", planarconfig=planar, **ome)
    with pytest.raises(ShapeError, match=r"a\.tif has 3 values per pixel \(RGB\), expected one: make it grey"):
        open_source(str(tmp_path if kind == "folder" else path))


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16"])
@pytest.mark.parametrize("kind", ["pages", "strips", "shaped", "ome", "folder"])
def test_where_0_is_white_voxels_are_as_shown(
    tmp_path: Path, dtype: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    shown = DATA > 2**15 if dtype == "bool" else DATA.astype(dtype)
    stored = ~shown if dtype == "bool" else np.iinfo(shown.dtype).max - shown
    path, how = tmp_path / "a.tif", {"photometric": "miniswhite"}
    if kind == "shaped":
        tifffile.imwrite(path, stored, **how)
    elif kind == "folder":
        path = tmp_path / "s"
        path.mkdir()
        for z, section in enumerate(stored):  # half of them the usual way
            if z % 2:
                tifffile.imwrite(path / f"{z}.tif", section, **how)
            else:
                tifffile.imwrite(path / f"{z}.tif", shown[z], photometric="minisblack")
    else:
        more: dict[str, Any] = {"compression": "zlib", "rowsperstrip": 7} if kind == "strips" else {}
        with tifffile.TiffWriter(path) as file:
            for z, section in enumerate(stored):
                text = {"description": xml("<TiffData/>")} if kind == "ome" and z == 0 else {}
                file.write(section, contiguous=False, metadata=None, **text, **how, **more)
    source = open_source(str(path))
    np.testing.assert_array_equal(source.read(source.roi), shown)
    np.testing.assert_array_equal(source.read(Roi((1, 2, 3), (4, 5, 6))), shown[1:5, 2:7, 3:9])
    assert f"{5 if kind == 'folder' else 10} sections have 0 for white; they are inverted" in caplog.text


def test_white_for_signed_values_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", DATA.astype(np.int16), photometric="miniswhite")
    with pytest.raises(ShapeError, match=r"a\.tif has int16 for which 0 is white"):
        open_source(f"{tmp_path}/a.tif")


def test_metadata_of_each_file_are_not_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = Image(tmp_path / "m", SINGLE)
    address = image.write(image.full, image.full.replace("</Pixels>", "</Pixels><"))  # all but the first are damaged
    with caplog.at_level(logging.INFO):
        source = open_source(address)
    np.testing.assert_array_equal(source.read(source.roi), DATA)
    assert "10 sections, in the order of its OME metadata" in caplog.text
