"""Groups and datasets of N5, and their attributes.

Attributes are inherited: what a dataset lacks, the groups say that it lies in. Those of size and place are read by
`kdseg.volumes.n5_place`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from kdseg.config.addresses import N5_ATTRIBUTES, N5_FINEST
from kdseg.errors import MissingError, UnreadableError, VoxelSizeError
from kdseg.volumes.axes import Layout
from kdseg.volumes.metadata import Place
from kdseg.volumes.n5_place import Attributes, Reader
from kdseg.volumes.section_files import kind_of

_XYZ = ("x", "y", "z")
_LISTED = 8
"""Datasets that a message lists."""
_DEEP = 4
"""Groups below each other in which datasets are looked for, to list them."""


def is_n5(path: Path) -> bool:
    """Return whether a folder is one of N5.

    A dataset, a group of resolutions and the root of a container are, whatever else lies in them; other groups are, and
    folders below one named ``.n5``, unless they hold sections.

    Raises:
        UnreadableError: if its attributes are damaged.
    """
    if not path.is_dir():
        return False
    if path.suffix == ".n5" or "n5" in attributes_of(path) or _finest(path) is not None:
        return True
    told = (path / N5_ATTRIBUTES).is_file() or any(part.endswith(".n5") for part in path.parts)
    return told and not any(kind_of(one) for one in path.iterdir())


def attributes_of(folder: Path) -> Attributes:
    """Return the attributes of a group or dataset; none if it has no file of them.

    Raises:
        UnreadableError: if the file is damaged.
    """
    file = folder / N5_ATTRIBUTES
    if not file.exists():
        return {}
    try:
        if not file.is_file():
            raise ValueError("it is no file, but a folder, pipe, socket or device")
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("expected a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UnreadableError(f"cannot read {file}: {error}; it is damaged: copy it again") from error
    return values


def groups_above(folder: Path) -> Iterator[Path]:
    """Yield the groups that a dataset lies in, the nearest first, up to the root of the container.

    That is the folder with the version of N5 among its attributes, or whose name ends with ``.n5``; where there is
    none, the next one alone is looked into.
    """
    chain = [folder, *folder.absolute().parents]
    root = next((k for k, one in enumerate(chain) if one.suffix == ".n5" or "n5" in attributes_of(one)), 1)
    yield from chain[1 : root + 1]


def dataset_in(path: Path) -> Path:
    """Return the folder of a dataset: itself, or the finest one in a group of resolutions, also Paintera's.

    Raises:
        MissingError: if it is a group of another kind.
    """
    if (found := _finest(path)) is not None:
        return found
    there = [one.relative_to(path).as_posix() for one in islice(_datasets(path, _DEEP), _LISTED)]
    raise MissingError(f"{path} is a group of N5 without a dataset s0, expected one of its datasets {there}: name one")


def _finest(path: Path) -> Path | None:
    return next((one for one in map(path.joinpath, N5_FINEST) if "dimensions" in attributes_of(one)), None)


def _datasets(folder: Path, deep: int) -> Iterator[Path]:
    for one in sorted(folder.iterdir()) if deep else ():
        if one.is_dir() and not one.name.isdecimal():
            if "dimensions" in attributes_of(one):
                yield one
            else:
                yield from _datasets(one, deep - 1)


def described(folder: Path, own: Attributes, ndim: int) -> tuple[dict[str, list[str]], Callable[[Layout], Place]]:
    """Return what attributes say of a dataset: names of axes, in the opposite order of the file, and size and place.

    The latter are in the order of axes that they are then asked for.

    Args:
        folder: of the dataset.
        own: its attributes.
        ndim: number of its axes.

    Raises:
        UnreadableError: if attributes of groups are damaged.
        VoxelSizeError: if they are not understood, or contradict each other.
    """
    above = [attributes_of(group) for group in groups_above(folder)]
    chain = [own, *above]
    axes = next((one["axes"] for one in chain if "axes" in one), None)
    if axes is not None and (not isinstance(axes, list) or len(axes) != ndim):
        raise VoxelSizeError(f"the attribute axes of {folder} is {axes!r}, expected {ndim} names: correct it")
    names = [str(axis) for axis in axes] if axes is not None else [*_XYZ, *("" for _ in range(ndim - 3))][:ndim]
    said = {} if axes is None else {"`axes`": [*reversed(names)]}
    reader = Reader(folder, names, chain)
    return said, reader.place
