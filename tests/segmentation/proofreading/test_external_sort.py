"""Rows come together by id, in order, within the memory that is promised."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdseg.errors import DataError, UnreadableError
from kdseg.segmentation.proofreading.external_sort import gathered

UNIT, UNITS = 10, 7


@settings(deadline=None, max_examples=50)
@given(
    tables=st.lists(
        st.lists(st.tuples(st.integers(1, UNIT * UNITS), st.integers(0, 2**64 - 1)), max_size=12), max_size=6
    ),
    rows=st.integers(1, 30),
)
def test_rows_of_an_id_come_together(
    tables: list[list[tuple[int, int]]], rows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("routing")
    arrays = [np.array(table, np.uint64).reshape(-1, 2) for table in tables]
    parts = list(gathered(lambda: iter(arrays), folder, unit=UNIT, units=UNITS, rows=rows))
    found = sorted(tuple(row) for part in parts for row in part.tolist())
    assert found == sorted(row for table in tables for row in table)
    units = [{(row[0] - 1) // UNIT for row in part.tolist()} for part in parts]
    for below, above in pairwise(units):
        assert max(below) < min(above)
    assert all(len(part) <= rows or len(unit) == 1 for part, unit in zip(parts, units, strict=True))
    assert not list(folder.iterdir())


def test_as_few_parts_as_fit(tmp_path: Path) -> None:
    table = np.array([[unit * UNIT + 1, unit] for unit in (0, 0, 1, 2, 3, 3, 4, 4, 4, 4, 6)], np.uint64)
    parts = gathered(lambda: iter([table]), tmp_path, unit=UNIT, units=UNITS, rows=3)
    assert [part[:, 1].tolist() for part in parts] == [[0, 0, 1], [2, 3, 3], [4, 4, 4, 4], [6]]


@pytest.mark.parametrize("name", [0, UNIT * UNITS + 1, 2**64 - 1])
def test_refuses_ids_beyond_the_units(tmp_path: Path, name: int) -> None:
    table = np.array([[name, 0]], np.uint64)
    with pytest.raises(DataError, match=f"fragment {name} is not among 7 blocks of 10 voxels"):
        list(gathered(lambda: iter([table]), tmp_path, unit=UNIT, units=UNITS))


def test_leaves_nothing_where_it_fails(tmp_path: Path) -> None:
    calls = 0

    def tables() -> Iterator[NDArray[np.uint64]]:
        nonlocal calls
        calls += 1
        yield np.ones((3, 2), np.uint64)
        if calls == 2:
            raise DataError("stop")

    with pytest.raises(DataError, match="stop"):
        list(gathered(tables, tmp_path, unit=UNIT, units=UNITS))
    assert not list(tmp_path.iterdir())
    with pytest.raises(UnreadableError, match="temporary files"):
        list(gathered(lambda: iter([]), tmp_path / "gone", unit=UNIT, units=UNITS))
