"""Comparing two segmentations: against trying all matchings, and looking at every voxel."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from command import Result, invoke
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from toy_volumes import cells, write_hdf5, write_volume

from kdseg.evaluation.matching import best_matching
from kdseg.evaluation.metrics.contingency import block_contingency
from kdseg.evaluation.metrics.scores import scores

SHAPE = (10, 24, 20)
CELLS = cells(SHAPE, 9)[1]
CELLS[CELLS == 4] = 0
RENAMED = np.where(CELLS > 0, np.uint64(2**64 - 4) - CELLS * np.uint64(7), np.uint64(0))
Ids = NDArray[np.uint64]


def kdseg(*arguments: object) -> Result:
    return invoke("same", *map(str, arguments))


def most_agreeing(a: Ids, b: Ids) -> int:
    """Return the voxels that agree under the best of all one-to-one matchings; 0 is 0."""
    names_a, names_b = (np.unique(one[one > 0]).tolist() for one in (a, b))
    padded = names_b + [-1] * len(names_a)
    best = 0
    for order in set(permutations(padded, len(names_a))):
        agree = (a == 0) & (b == 0)
        for one, other in zip(names_a, order, strict=True):
            agree |= (a == one) & (b == other) if other > 0 else False
        best = max(best, int(agree.sum()))
    return best


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), names=st.integers(1, 4), others=st.integers(1, 4))
def test_no_matching_is_better(seed: int, names: int, others: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, names, 30).astype(np.uint64)
    b = np.where(rng.random(30) < 0.5, a, rng.integers(0, others, 30)).astype(np.uint64)
    table = block_contingency(a, b, None)
    matched = best_matching(table)
    for column in (table.segment, table.label):
        assert np.unique(column[matched]).size == matched.sum(), "an id is matched twice"
    assert ((table.segment[matched] == 0) == (table.label[matched] == 0)).all()
    assert int(table.count[matched].sum()) == most_agreeing(a, b)


def test_names_do_not_matter(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.zarr", CELLS)
    write_hdf5(tmp_path / "b.h5", RENAMED, "b", resolution=(10, 10, 10), offset=(0, 0, 0))
    done = kdseg(tmp_path / "a.zarr", f"{tmp_path}/b.h5:/b", "--block", 4, 9, 7)
    assert done.exit_code == 0, done.output
    assert done.stdout == "same: all 4800 voxels agree, but for the names of segments\n"


CHANGES = {
    "a voxel": ((7, 13, 5), (8, 14, 6), 99),
    "a voxel is background": ((7, 13, 5), (8, 14, 6), 0),
    "a box": ((3, 5, 7), (9, 16, 17), 12345),
    "the background is a segment": None,
    "two are merged": None,
    "a segment is background": None,
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CHANGES)
@pytest.mark.parametrize(("block", "workers"), [((16, 32, 32), 1), ((4, 9, 7), 2)])
def test_every_difference_is_found(tmp_path: Path, case: str, block: tuple[int, ...], workers: int) -> None:
    other = RENAMED.copy()
    if (box := CHANGES[case]) is not None:
        (z, y, x), (to_z, to_y, to_x), name = box
        other[z:to_z, y:to_y, x:to_x] = name
    elif case == "a segment is background":
        other[CELLS == 2] = 0
    elif case == "two are merged":
        other[CELLS == 2] = RENAMED[CELLS == 7][0]
    else:
        other[CELLS == 0] = 4
    write_volume(tmp_path / "a.zarr", CELLS)
    write_volume(tmp_path / "b.zarr", other)
    how = ["--json", tmp_path / "found.json", "--workers", workers, "--block", *block]
    done = kdseg(tmp_path / "a.zarr", tmp_path / "b.zarr", *how)
    assert done.exit_code == 1
    found = json.loads((tmp_path / "found.json").read_text())
    table = block_contingency(CELLS, other, None)
    rows = np.flatnonzero(~best_matching(table))
    pairs = [(int(table.segment[row]), int(table.label[row])) for row in rows]
    wrong = np.zeros(SHAPE, bool)
    for a, b in pairs:
        wrong |= (a == CELLS) & (other == np.uint64(b))
    assert not found["same"]
    assert found["differing"] == wrong.sum() > 0
    assert found["first"] == np.argwhere(wrong)[0].tolist()
    assert found["vi"] == scores(table).voi
    assert {(one["a"], one["b"]) for one in found["pairs"]} == set(pairs)
    for one in found["pairs"]:
        both = (one["a"] == CELLS) & (other == np.uint64(one["b"]))
        assert one["voxels"] == both.sum()
        assert one["size_a"] == (one["a"] == CELLS).sum()
        assert one["size_b"] == (other == np.uint64(one["b"])).sum()
        assert one["at"] == np.argwhere(both)[0].tolist()
    assert f"different: {wrong.sum()} of 4800 voxels" in done.stdout


def test_regions_and_trouble(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.zarr", CELLS)
    write_volume(tmp_path / "part.zarr", RENAMED[2:, 3:], offset=(20.0, 30.0, 0.0))
    done = kdseg(tmp_path / "a.zarr", tmp_path / "part.zarr")
    assert done.exit_code == 2
    assert "name a region of both with --roi, e.g. voxels:0:8,0:21,0:20" in done.output
    assert kdseg(tmp_path / "a.zarr", tmp_path / "part.zarr", "--roi", "voxels:0:8,0:21,0:20").exit_code == 0
    assert kdseg(tmp_path / "part.zarr", tmp_path / "a.zarr", "--roi", "nm:20:100,30:240,0:200").exit_code == 0
    assert kdseg(tmp_path / "a.zarr", tmp_path / "none.zarr").exit_code == 2
