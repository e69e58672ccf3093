"""Files that an HDF5 file takes voxels from: by links, external storage and virtual datasets.

A file from elsewhere can name any file of this machine, whose bytes would be read as voxels: those outside of its own
folder are refused.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kdseg.errors import UnreadableError

ANYWHERE = "KDSEG_HDF5_ANYWHERE"
"""Variable of the environment that allows files in other folders, if it is 1."""
CHAIN = 100
"""Links that are followed one after the other."""
_NUMBER = re.compile("%([b%])")
"""Part of the names of a series of virtual sources."""


def expect_within(path: Path, dataset: str) -> None:
    """Refuse a dataset parts of which lie outside of the folder of its file, before such a part is opened.

    Args:
        path: of the file; in links, relative names are those beside it.
        dataset: name in the file; one that is not there is for others to refuse.

    Raises:
        UnreadableError: if there is one, or a link leads to no file, or to itself.
    """
    if os.environ.get(ANYWHERE) != "1":
        _Check(path).follow(path, dataset, 0)


class _Check:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.folders = {path.parent.resolve(), path.resolve().parent}
        self.seen: set[tuple[Path, str]] = set()

    def follow(self, path: Path, name: str, links: int) -> None:
        """Follow a name in a file, link by link, to its dataset."""
        if links > CHAIN:
            raise UnreadableError(f"{self.path}: the link {name!r} leads to itself: make the file again")
        if (path, name) in self.seen:
            return
        self.seen.add((path, name))
        with h5py.File(path, "r") as file:
            node: h5py.Group | h5py.Dataset = file
            parts = [part for part in name.split("/") if part not in ("", ".")]
            for number, part in enumerate(parts):
                if not isinstance(node, h5py.Group):
                    return
                link, rest = node.get(part, getlink=True), "/".join(parts[number + 1 :])
                if isinstance(link, h5py.ExternalLink):
                    self.open(path, link.filename, f"{link.path}/{rest}", links)
                    return
                if isinstance(link, h5py.SoftLink):
                    start = "" if link.path.startswith("/") else node.name
                    self.follow(path, f"{start}/{link.path}/{rest}", links + 1)
                    return
                if link is None:
                    return
                node = node[part]
            if isinstance(node, h5py.Dataset):
                self.dataset(path, node)

    def dataset(self, path: Path, node: h5py.Dataset) -> None:
        """Look at the files that a dataset names."""
        for name, _, _ in node.external or ():
            self.expect(Path(name))  # HDF5 takes relative names from the working directory
        for source in node.virtual_sources() if node.is_virtual else ():
            for number in series(source, tuple(slice(0, n) for n in node.shape)):
                name = named(source.file_name, number)
                self.open(path, path.name if name == "." else name, named(source.dset_name, number), 0)

    def open(self, path: Path, name: str, dataset: str, links: int) -> None:
        """Go on in another file, where there is one: HDF5 looks for it beside this one, then here."""
        for other in places(path, name):
            if os.path.lexists(other):
                self.expect(other)
                self.follow(other, dataset, links + 1)
                return

    def expect(self, other: Path) -> None:
        """Refuse a file in another folder, or what is none."""
        found = other.resolve()
        if not any(found.is_relative_to(folder) for folder in self.folders):
            raise UnreadableError(
                f"{self.path} takes voxels from {other}, outside of its own folder: copy them into one file by "
                f"h5repack, or set {ANYWHERE}=1 in the environment if you trust it"
            )
        if other.exists() and not other.is_file():
            raise UnreadableError(f"{self.path} takes voxels from {other}, which is no file: copy them into one file")


def series(source: Any, key: tuple[slice, ...]) -> range:
    """Return the numbers of the datasets that a source of a virtual dataset stands for, and that ``key`` needs."""
    if not any(named(text, 0) != named(text, 1) for text in (source.file_name, source.dset_name)):
        return range(1)
    start, stride, count, _ = source.vspace.get_regular_hyperslab()
    axis = int(np.argmax(count))  # the one that has no end
    first, last = ((n - start[axis]) // stride[axis] for n in (key[axis].start, key[axis].stop - 1))
    return range(max(first, 0), last + 1)


def named(text: str, number: int) -> str:
    """Return the name of one dataset of a series, or of its file: HDF5 takes %b for its number, and %% for %."""
    return _NUMBER.sub(lambda found: str(number) if found[1] == "b" else "%", text)


def places(path: Path, name: str) -> list[Path]:
    """Return where HDF5 looks for a file that another one names."""
    folders = (path.parent, path.resolve().parent)
    beside = [folder / one for one in (name, Path(name).name) for folder in folders]
    return list(dict.fromkeys([*beside[:2], Path(name), *beside[2:]]))
