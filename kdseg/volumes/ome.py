"""OME-XML in TIFF files: sections by the pages that hold them, which may lie in other files, and voxel sizes."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from kdseg.errors import ShapeError, UnreadableError
from kdseg.geometry import VoxelSize
from kdseg.volumes.metadata import nm_per

_HEAD = 2**13
"""Characters of OME-XML that hold its first element; in images of thousands of files each may repeat all of it."""


class Run(NamedTuple):
    """Pages that follow each other in a file, as sections that follow each other.

    Attributes:
        first: section.
        page: the first one.
        length: pages; None: all that follow.
        file: name of the file; None: the one that says it.
        uuid: of the file; None: it does not say.
    """

    first: int
    page: int
    length: int | None
    file: str | None
    uuid: str | None


@dataclass(frozen=True)
class Ome:
    """Sections of an image by their pages.

    Attributes:
        uuid: of the file that says it, if it says one.
        size: sections; 0 if another file tells the rest.
        axis: of the sections: Z, or the only other axis, C or T, that is not of length 1.
        runs: of pages; may leave out sections.
        voxel_size: nm, (z, y, x); None if it does not say all three.
        elsewhere: name of the file that tells the rest; empty: none.
    """

    uuid: str | None
    size: int
    axis: str
    runs: tuple[Run, ...]
    voxel_size: VoxelSize | None
    elsewhere: str = ""

    @property
    def whole(self) -> bool:
        """Whether it says of all sections where they are."""
        return sum(min(run.length or 0, self.size) for run in self.runs) >= self.size > 0

    def own(self, run: Run, name: str) -> bool:
        """Return whether a run is of the file ``name`` that says it; it may have been renamed."""
        if run.uuid is None and run.file is None:
            return True
        if self.uuid is not None and run.uuid is not None:
            return run.uuid == self.uuid
        return run.file in (None, name) or all(one[-2:] == run[-2:] for one in self.runs)

    def others(self, name: str) -> list[str]:
        """Return the names of other files that the file ``name`` says sections lie in."""
        found = [run.file or str(run.uuid) for run in self.runs if not self.own(run, name)]
        return list(dict.fromkeys([*found, *filter(None, [self.elsewhere])]))


def uuid_of(text: str) -> str | None:
    """Return the UUID of the file that OME-XML was found in, without a look at the rest of it."""
    parser: ElementTree.XMLPullParser[Any] = ElementTree.XMLPullParser(["start"])
    parser.feed(text[:_HEAD])
    for event in parser.read_events():
        return cast("tuple[str, ElementTree.Element]", event)[1].get("UUID")
    return None


def read_ome(text: str, path: Path) -> Ome | None:
    """Return what OME-XML says of its image; None if it has none.

    Args:
        text: the XML.
        path: of the file that it was found in, for messages.

    Raises:
        ShapeError: if it has several images, or sections along several axes.
        UnreadableError: if it is damaged.
    """
    try:
        root = ElementTree.fromstring(text)
        if (rest := root.find("{*}BinaryOnly")) is not None:
            return Ome(root.get("UUID"), 0, "Z", (), None, rest.get("MetadataFile", "") or str(rest.get("UUID")))
        images = root.findall("{*}Image/{*}Pixels")
        if not images:
            return None
        if len(images) > 1:
            raise ShapeError(f"{path} says that it holds {len(images)} images, expected one: save one of them alone")
        pixels = images[0]
        sizes = {axis: int(pixels.get(f"Size{axis}", 1)) for axis in "ZTC"}
        samples = sum(int(channel.get("SamplesPerPixel", 1)) for channel in pixels.findall("{*}Channel"))
        planes = len(pixels.findall("{*}Channel"))
        if samples > planes:  # colours of a pixel, which its page has, too
            sizes["C"] = planes
        long = [axis for axis, size in sizes.items() if size > 1]
        if len(long) > 1:
            raise ShapeError(
                f"{path} says that its sections lie along {' and '.join(long)}, "
                f"{' x '.join(str(sizes[axis]) for axis in long)} of them, expected one axis: save one channel and time"
            )
        axis = long[0] if long else "Z"
        runs = tuple(_run(data, axis) for data in pixels.findall("{*}TiffData")) or (Run(0, 0, None, None, None),)
    except (ElementTree.ParseError, ValueError) as error:
        if isinstance(error, ShapeError):
            raise
        raise UnreadableError(f"the OME metadata of {path} are damaged: {error}; save it again") from error
    return Ome(root.get("UUID"), sizes[axis], axis, runs, _voxel_size(pixels))


def _run(data: ElementTree.Element, axis: str) -> Run:
    if odd := [other for other in "ZTC" if other != axis and data.get(f"First{other}", "0") != "0"]:
        raise ValueError(f"it has pages of {odd[0]} {data.get(f'First{odd[0]}')}, an axis of length 1")
    given = data.get("PlaneCount", data.get("NumPlanes"))
    length = int(given) if given is not None else (1 if "IFD" in data.attrib else None)
    file = data.find("{*}UUID")
    name, uuid = (None, None) if file is None else (file.get("FileName"), (file.text or "").strip() or None)
    first, page = int(data.get(f"First{axis}", 0)), int(data.get("IFD", 0))
    if min(first, page, length or 0) < 0:
        raise ValueError("it has pages or sections of negative numbers")
    return Run(first, page, length, name, uuid)


def _voxel_size(pixels: ElementTree.Element) -> VoxelSize | None:
    found = []
    for axis in "ZYX":
        unit = nm_per(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        size = float(pixels.get(f"PhysicalSize{axis}", "nan"))
        if unit is None or not 0 < size < math.inf:  # some programs write 0 for what they do not know
            return None
        found.append(size * unit)
    return (found[0], found[1], found[2])


def places(
    ome: Ome, path: Path, pages: Mapping[Path, int], uuids: Mapping[Path, str | None]
) -> dict[int, tuple[Path, int]]:
    """Return the file and page of each section that is there.

    Args:
        ome: of the file ``path``.
        path: of that file.
        pages: how many each file has, by path, in one folder.
        uuids: of the files, by path.

    Raises:
        UnreadableError: if two pages are of one section, or a page is not there.
    """
    by_name, by_uuid = {file.name: file for file in pages}, {uuid: file for file, uuid in uuids.items() if uuid}
    found: dict[int, tuple[Path, int]] = {}
    for run in ome.runs:
        own = path in pages and ome.own(run, path.name)  # a companion has no pages
        file = path if own else by_uuid.get(run.uuid or "")
        if file is None and (file := by_name.get(run.file or "")) is None:
            continue
        if None not in (run.uuid, uuids[file]) and file != path and uuids[file] != run.uuid:
            raise UnreadableError(
                f"{file} has the UUID {uuids[file]}, but {path.name} expects {run.uuid} there: put back the file of "
                "that name"
            )
        rest = min(pages[file] - run.page, ome.size - run.first)
        for k in range(rest if run.length is None else run.length):
            z, place = run.first + k, (file, run.page + k)
            if z >= ome.size or place[1] >= pages[file]:
                raise UnreadableError(
                    f"{path} says that section {z} of {ome.size} is page {place[1]} of {file.name}, which has "
                    f"{pages[file]} pages: it is cut off or damaged; copy it again"
                )
            if found.setdefault(z, place) != place:
                raise UnreadableError(
                    f"{path} says that section {z} is page {found[z][1]} of {found[z][0].name} and page {place[1]} of "
                    f"{file.name}: its OME metadata are damaged; save it again"
                )
    return found


def _expect_once(path: Path, found: Mapping[int, tuple[Path, int]]) -> None:
    seen: dict[tuple[Path, int], int] = {}
    for z, place in found.items():
        if place in seen:
            raise UnreadableError(
                f"{path} says that page {place[1]} of {place[0].name} is section {seen[place]} and {z}: its OME "
                "metadata are damaged; save it again"
            )
        seen[place] = z


def merged(path: Path, parts: Sequence[Mapping[int, tuple[Path, int]]]) -> dict[int, tuple[Path, int]]:
    """Return the sections that several files of one image place.

    Raises:
        UnreadableError: if they place one section differently, or two sections on one page.
    """
    found: dict[int, tuple[Path, int]] = {}
    for part in parts:
        for z, place in part.items():
            if found.setdefault(z, place) != place:
                raise UnreadableError(
                    f"the files in {path} are of several images: section {z} is in {found[z][0].name} and in "
                    f"{place[0].name}; keep those of one image, or set `sections.order: name` to take single sections"
                )
    _expect_once(path, found)
    return found
