"""Stacks of TIFF sections: a file of many pages, a folder of single sections, or of the files of an OME-TIFF image."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from kdseg.config.data import SectionsOptions
from kdseg.errors import MissingError, ShapeError, UnreadableError
from kdseg.geometry import VoxelSize
from kdseg.volumes.ome import Ome, merged, places, read_ome
from kdseg.volumes.section_files import kind_of
from kdseg.volumes.sections import Numbers, in_order
from kdseg.volumes.tiff_file import ANOTHER_AXIS, PagesFile, open_file
from kdseg.volumes.tiff_stack import Section, TiffStack, readable

_LISTED = 3
"""Files that a message lists."""

log = logging.getLogger(__name__)


def open_stack(path: Path, options: SectionsOptions, files: Sequence[Path] | None = None) -> TiffStack:
    """Open a multi-page TIFF file, or a folder of TIFF sections or of the files of one OME-TIFF image.

    Pages of OME-TIFF are the sections that its metadata say, of which none may be missing, and single sections those
    that their names say (`kdseg.volumes.sections`).

    Args:
        path: of the file or folder.
        options: order and gaps of sections.
        files: those of the folder, by name; None: ``path`` is a file.

    Raises:
        MissingError: if of an OME-TIFF image what says where its sections are, or all of these, are not there.
        ShapeError: if the sections differ in size or type, or are not two-dimensional, or their order is not clear.
        UnreadableError: if a file is no TIFF, or is cut off, or names other files.
    """
    if files is None:
        return _of_file(open_file(path), options)
    opened = _open_files(files)
    if options.order == "number" and any(file.several for file in opened):
        return _of_image(path, opened, options)
    return _of_sections(opened, options)


def _of_file(file: PagesFile, options: SectionsOptions) -> TiffStack:
    if file.ome is None:
        if len(file.shape) != 3:
            raise ShapeError(f"{file.path} has the shape {file.shape}, expected (z, y, x): give the folder it lies in")
        return _stack([file], list(file.sections), file.voxel_size)
    if others := file.ome.others(file.path.name):
        raise UnreadableError(
            f"{file.path} is one file of an image that has others, such as {others[0]}: give the folder that holds all "
            "of them and no other TIFF files"
        )
    return _of_image(file.path, [file], options)


def _of_image(path: Path, files: Sequence[PagesFile], options: SectionsOptions) -> TiffStack:
    """Return the sections of an OME-TIFF image as its metadata order them."""
    pages = {file.path: len(file.sections) for file in files}
    uuids = {file.path: file.uuid for file in files}
    told = [(file.ome, file.path) for file in files if file.ome is not None and file.ome.size]
    told += _companions(files)
    if not told:
        raise MissingError(
            f"{path} holds parts of an OME-TIFF image, but not {_listed(files)}, which says where its sections are: "
            "add it"
        )
    if len(sizes := {(ome.size, ome.axis) for ome, _ in told}) > 1:
        various = sorted(size for size, _ in sizes)
        raise ShapeError(f"{path} holds files of OME-TIFF images of {various} sections: keep those of one image there")
    ome, said = told[0]
    found = merged(path, [places(one, file, pages, uuids) for one, file in told])
    if not found:
        raise MissingError(f"{path}: none of the {ome.size} sections of this OME-TIFF image is there; add its files")
    if left := sorted({file.path for file in files} - {file for file, _ in found.values()}):
        raise UnreadableError(
            f"{path} holds {', '.join(file.name for file in left[:_LISTED])}, which {said.name} does not name as part "
            "of its image: remove it, or add what names it"
        )
    if ome.axis != "Z":
        log.warning(ANOTHER_AXIS, path, ome.axis)
    there = tuple(Fraction(z) for z in sorted(found))
    numbers = Numbers(there, Fraction(1), Fraction(0), Fraction(ome.size - 1))
    indices = numbers.indices(str(path), options.missing)
    log.info("%s: %d sections, in the order of its OME metadata", path, len(indices))
    by_path = {file.path: file for file in files}
    ordered = [by_path[found[z][0]].sections[found[z][1]] for z in sorted(found)]
    left_out = len(indices) < ome.size
    sections = [None if k is None else ordered[k] for k in indices]
    return _stack(files, sections, ome.voxel_size, numbers.kept(options.missing) if left_out else None)


def _companions(files: Sequence[PagesFile]) -> list[tuple[Ome, Path]]:
    """Return what files beside the images say of them."""
    found = []
    names = {file.ome.elsewhere for file in files if file.ome is not None and file.ome.elsewhere}
    for name in sorted(names):
        path = files[0].path.parent / name
        if Path(name).name == name and kind_of(path) is None and path.is_file():
            with readable(path):
                ome = read_ome(path.read_text(encoding="utf-8"), path)
            if ome is not None and ome.size:
                found.append((ome, path))
    return found


def _listed(files: Sequence[PagesFile]) -> str:
    names = dict.fromkeys(other for file in files if file.ome for other in file.ome.others(file.path.name))
    return ", ".join(list(names)[:_LISTED])


def _of_sections(files: Sequence[PagesFile], options: SectionsOptions) -> TiffStack:
    for file in files:
        if len(file.sections) != 1:
            raise ShapeError(
                f"{file.path} has the shape {file.shape}, expected one section (y, x): give the file instead of its "
                "folder, or keep single sections there"
            )
    by_path = {file.path: file for file in files}
    ordered = in_order([file.path for file in files], options)
    sections = [None if path is None else by_path[path].sections[0] for path in ordered.files]
    return _stack(files, sections, None, ordered.numbers)


def _stack(
    files: Sequence[PagesFile],
    sections: Sequence[Section | None],
    voxel_size: VoxelSize | None,
    numbers: tuple[Fraction, ...] | None = None,
) -> TiffStack:
    first = files[0]
    for file in files[1:]:
        if (file.shape[-2:], file.dtype) != (first.shape[-2:], first.dtype):
            raise ShapeError(
                f"{file.path} is {file.dtype} {file.shape[-2:]}, but {first.path} is {first.dtype} {first.shape[-2:]}; "
                "all sections need one size and type: pad or crop them"
            )
    if white := [section for section in sections if section is not None and section.white is not None]:
        log.warning("%s: %d sections have 0 for white; they are inverted, as shown", white[0].path, len(white))
    stack = (len(sections), first.shape[-2], first.shape[-1])
    return TiffStack(tuple(sections), stack, first.dtype, first.unit, voxel_size, numbers)


def _open_files(files: Sequence[Path]) -> list[PagesFile]:
    opened: list[PagesFile] = []
    told = False
    for path in files:
        opened.append(open_file(path, told=told))
        # each file of an image may repeat all of its metadata: thousands of times thousands of lines
        told = told or (opened[-1].several and opened[-1].ome is not None and opened[-1].ome.whole)
    return opened
