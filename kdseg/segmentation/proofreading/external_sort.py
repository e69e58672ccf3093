"""Rows of many tables, brought together by id in bounded memory.

Rows of one id may be spread over many tables. They are routed to files by ranges of ids, each small enough
for memory, and come back range after range (the partitioning of Grace's hash join, Kitsuregawa et al. 1983,
by ranges instead of hashes, so that the ranges are in order).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import DataError, UnreadableError

ROWS = 1 << 21
"""Rows that come together, unless the ids of one unit alone have more."""


def gathered(
    tables: Callable[[], Iterator[NDArray[np.uint64]]], folder: Path, *, unit: int, units: int, rows: int = ROWS
) -> Iterator[NDArray[np.uint64]]:
    """Yield the rows of all tables so that the rows of one id come together, in ascending ranges of ids.

    In memory are one table, 16 bytes per unit, and one yielded array: at most ``rows`` rows, or as many as
    the ids of one unit have. On disk is one copy of all rows. The tables are read twice.

    Args:
        tables: called twice; yields the same tables, uint64 (n, k), each time. Column 0 is the id, from 1.
        folder: to make a folder of temporary files in; it is removed at the end.
        unit: ids per unit: ``unit * i + 1, …, unit * (i + 1)`` are never separated. Voxels of a block, say.
        units: number of units.
        rows: how many to yield together.

    Yields:
        uint64 (n, k), n > 0, not sorted within.

    Raises:
        DataError: if an id is 0 or beyond the units.
        UnreadableError: if the disk does not take the temporary files.
    """
    counts = np.zeros(units, np.int64)
    width = 0
    for table in tables():
        counts += np.bincount(_unit_of(table, unit, units), minlength=units)
        width = table.shape[1]
    bucket_of = _buckets(counts, rows)
    folder = folder / f".routing-{uuid4().hex}"
    try:
        folder.mkdir()
        for table in tables():
            _route(table, bucket_of[_unit_of(table, unit, units)], folder)
        for bucket in range(int(bucket_of[-1]) + 1 if units else 0):
            file = folder / str(bucket)
            if file.exists():
                yield np.fromfile(file, np.uint64).reshape(-1, width)
                file.unlink()
    except OSError as error:
        raise UnreadableError(f"cannot keep temporary files in {folder}: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unit_of(table: NDArray[np.uint64], unit: int, units: int) -> NDArray[np.int64]:
    ids = table[:, 0]
    # unsigned: id 0 wraps around to beyond the units
    found = (ids - np.uint64(1)) // np.uint64(unit)
    if (beyond := found >= units).any():
        raise DataError(
            f"fragment {ids[beyond][0]} is not among {units} blocks of {unit} voxels: the tables and the fragments are "
            "of different runs; run the stages again"
        )
    return found.astype(np.int64)


def _buckets(counts: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """Return the bucket of each unit: consecutive units of at most ``rows`` rows, or a single unit."""
    found = np.zeros(counts.size, np.int64)
    bucket = held = 0
    for k, count in enumerate(counts.tolist()):
        if held and held + count > rows:
            bucket, held = bucket + 1, 0
        held += count
        found[k] = bucket
    return found


def _route(table: NDArray[np.uint64], bucket: NDArray[np.int64], folder: Path) -> None:
    """Append each row to the file of its bucket."""
    order = np.argsort(bucket, kind="stable")
    first = np.flatnonzero(np.diff(bucket[order], prepend=-1))
    for start, stop in pairwise([*first, len(order)]):
        with (folder / str(bucket[order[start]])).open("ab") as file:
            table[order[start:stop]].tofile(file)
