"""Datasets of HDF5, opened whenever they are read."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
from numpy.typing import NDArray

from kdseg.errors import KdsegError, MissingError, UnreadableError
from kdseg.geometry import triple
from kdseg.volumes.axes import Layout, layout
from kdseg.volumes.foreign import ForeignArray
from kdseg.volumes.hdf5_chunks import expect_small_chunks_in
from kdseg.volumes.hdf5_filters import expect_filters
from kdseg.volumes.hdf5_links import expect_within
from kdseg.volumes.metadata import axis_names, plain

_CURES = {
    "unable to lock file, errno = 11,": "another program has it open for writing: close it there; or, if it writes "
    "nothing now, set HDF5_USE_FILE_LOCKING=FALSE in the environment of every process",
    "unable to lock file": "its file system has no locks, as some of networks: if no program writes to it, set "
    "HDF5_USE_FILE_LOCKING=FALSE in the environment of every process",
    "already open for": "another program writes to it, or was ended while it did: close it there, or, if none does, "
    "h5clear -s FILE",
}
"""Answers to what HDF5 says of files that are whole."""


@dataclass(frozen=True)
class Hdf5Array(ForeignArray):
    """A dataset.

    Attributes:
        path: of the file.
        dataset: name in the file.
        layout: which axes of the dataset are (c,) z, y, x.
    """

    path: Path
    dataset: str
    layout: Layout

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return the values of a box; see `ForeignArray`."""
        with (
            _readable(f"cannot read {self.path}:{self.dataset}", "the file is damaged"),
            h5py.File(self.path, "r") as file,
        ):
            node = file[self.dataset]
            expect_small_chunks_in(node, self.layout.back(key, node.ndim, slice(0, 1)))
            return self.layout.read(node, key)


def open_dataset(path: Path, dataset: str, *, single: bool) -> Hdf5Array:
    """Open a dataset of HDF5; its order of axes is what labels or scales of its dimensions, or attributes say.

    Args:
        path: of the file.
        dataset: name in the file.
        single: take (z, y, x) of one channel, not (c, z, y, x).

    Raises:
        MissingError: if the dataset, or what unpacks its chunks, is not there.
        UnreadableError: if the file is damaged or no HDF5, or locked.
        ShapeError: if it has other axes, or its metadata contradict each other.
        VoxelSizeError: if its attributes of size and place are not understood.
    """
    where = f"{path}:{dataset}"
    with _readable(f"cannot open {path} as HDF5", "the file is damaged or no HDF5"):
        expect_within(path, dataset)
        with h5py.File(path, "r") as file:
            node = file.get(dataset) if dataset.strip("/") else None
            if not isinstance(node, h5py.Dataset):
                raise MissingError(f"{path} has no dataset {dataset!r}, expected {path}: and one of {datasets(file)}")
            expect_filters(node)
            said = _dimensions(node) | axis_names(node.attrs, where)
            order = layout(node.shape or (), said, where, single=single)  # an empty dataset has no shape
            unit = order.of(node.chunks or (1, *node.shape[1:]))
            place = plain(node.attrs, order, node.ndim, where)
            return Hdf5Array(order.of(node.shape), node.dtype, place, triple(unit[-3:]), path, dataset, order)


def _dimensions(node: h5py.Dataset) -> dict[str, list[str]]:
    """Return the names of the axes by the labels of the dimensions, and by their scales, as netCDF writes them."""
    labels = [dimension.label for dimension in node.dims]
    scales = [dimension[0].name.rsplit("/", 1)[-1] if len(dimension) else "" for dimension in node.dims]
    said = {"dimension labels": labels, "dimension scales": scales}
    return {by: names for by, names in said.items() if any(names)}


@contextmanager
def _readable(what: str, why: str) -> Iterator[None]:
    try:
        yield
    except KdsegError:
        raise
    except FileNotFoundError as error:
        raise MissingError(f"{what}: it is not there") from error
    except (OSError, KeyError, RuntimeError, zlib.error) as error:
        cure = next((cure for said, cure in _CURES.items() if said in str(error)), why)
        raise UnreadableError(f"{what}: {error}; {cure}") from error


def datasets(file: h5py.File) -> list[str]:
    """Return the names of all datasets of a file."""
    names: list[str] = []

    def visit(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset):
            names.append("/" + name)

    file.visititems(visit)
    return names
