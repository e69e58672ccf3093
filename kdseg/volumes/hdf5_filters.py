"""Filters of HDF5 datasets: those that HDF5 lacks are of the package hdf5plugin, which is optional."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import h5py
from h5py import h5z

from kdseg.errors import MissingError

_NAMES = {
    307: "bzip2",
    32001: "blosc",
    32004: "lz4",
    32008: "bitshuffle",
    32013: "zfp",
    32015: "zstd",
    32017: "sz",
    32018: "fcidecomp",
    32024: "sz3",
    32026: "blosc2",
    32028: "sperr",
}
"""Filters of hdf5plugin by the numbers that the HDF Group gave them; files need not name them."""


def filters_of(node: h5py.Dataset) -> list[tuple[int, tuple[int, ...], str]]:
    """Return number, settings and name of the filters of a dataset, in the order of packing."""
    made = node.id.get_create_plist()
    found = map(made.get_filter, range(made.get_nfilters()))
    return [(number, values, name.decode(errors="replace")) for number, _, values, name in found]


def expect_filters(node: h5py.Dataset) -> None:
    """Have all filters of a dataset ready in this process, which hdf5plugin registers where it is installed.

    Raises:
        MissingError: if one is not there by which chunks were packed.
    """
    for place, (number, _, name) in enumerate(filters_of(node)):
        if h5z.filter_avail(number):
            continue
        there = find_spec("hdf5plugin") is not None
        if there:
            import_module("hdf5plugin")
        if h5z.filter_avail(number) or not _used(node, place):
            continue
        cure = "which hdf5plugin lacks, too: repack it where it was written, e.g. by h5repack -f GZIP=1"
        if not there:
            cure = "which is not installed: pip install 'kdseg[hdf5]', or pip install hdf5plugin"
        raise MissingError(
            f"{node.file.filename}:{node.name} is packed by the filter {number} ({_NAMES.get(number, name) or '?'}), "
            f"{cure}"
        )


def _used(node: h5py.Dataset, place: int) -> bool:
    """Return whether a chunk was packed by a filter, which is left out where it is optional and fails.

    Args:
        node: dataset.
        place: of the filter, in the order of packing.
    """
    return node.id.chunk_iter(lambda chunk: None if chunk.filter_mask >> place & 1 else True) is not None
