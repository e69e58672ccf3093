"""Tables of whole volumes: any blocks, workers, order and crashes, against counting voxel by voxel."""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from counted_volumes import BLOCKS, OPTIONS, made, named_components, volumes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdseg.errors import DataError, StageError
from kdseg.evaluation import counting
from kdseg.evaluation.counting import Count, Rows, count_blocks, merge_sorted, read_count, subtract
from kdseg.geometry import Triple
from kdseg.results.parquet import read_parquet
from kdseg.running.runner import Place


def oracle(seed: int, what: Count) -> list[tuple[int, ...]]:
    segments, labels, mask = (voxels[what.roi.slices()] for voxels in volumes(seed))
    names = named_components(labels, what.per_section) if what.components else labels
    found: Counter[tuple[int, ...]] = Counter()
    first: dict[tuple[int, ...], int] = {}
    for place, index in enumerate(np.ndindex(*what.roi.shape)):
        segment, label = int(segments[index]), int(labels[index])
        kept = what.mask is None or mask[index]
        if kept and label not in what.ignore_labels and segment not in what.ignore_segments:
            section = index[0] + what.roi.offset[0] if what.per_section else 0
            key = section, segment, int(names[index])
            found[key] += 1
            first.setdefault(key, place)
    return sorted((*key, count, first[key]) for key, count in found.items())


def rows(table: Path) -> list[tuple[int, ...]]:
    columns = read_parquet(table)
    return list(zip(*(columns[column.name].tolist() for column in counting.COLUMNS), strict=True))


@pytest.mark.slow
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 9), block=BLOCKS, options=OPTIONS, masked=st.booleans())
def test_blocks_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, seed: int, block: Triple, options: dict[str, object], masked: bool
) -> None:
    folder = tmp_path_factory.mktemp("a")
    what = made(folder, seed, block=block, **options)
    what = what if masked else replace(what, mask=None)
    count_blocks(what, folder / "count", folder / "a.parquet", place=Place(1))
    assert rows(folder / "a.parquet") == oracle(seed, what)


@pytest.mark.slow
def test_workers_and_a_deep_tree_change_nothing(tmp_path: Path) -> None:
    what = made(tmp_path, 1, components=True)
    count_blocks(what, tmp_path / "a", tmp_path / "a.parquet", place=Place(1))
    small = replace(what, block=(1, 2, 2))  # 140 blocks, 9 tables of 16, the last one
    count_blocks(small, tmp_path / "b", tmp_path / "b.parquet", place=Place(2))
    assert len(list((tmp_path / "b" / "merged").iterdir())) == 9
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert rows(tmp_path / "a.parquet") == oracle(1, what)


def killed_after(writes: int, what: Count, folder: Path) -> None:
    write = counting.write_table

    def dying(path: Path, columns: dict[str, Rows]) -> None:
        nonlocal writes
        if not writes:
            os.kill(os.getpid(), signal.SIGKILL)
        writes -= 1
        write(path, columns)

    counting.write_table = dying
    count_blocks(what, folder, folder.with_suffix(".parquet"), place=Place(1))


@pytest.mark.parametrize("writes", [0, 5])
def test_killed_it_goes_on_where_it_was(tmp_path: Path, writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    what = made(tmp_path, 2, block=(4, 4, 4), components=True)
    process = get_context("fork").Process(target=killed_after, args=(writes, what, tmp_path / "killed"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list((tmp_path / "killed").glob("*.npz"))) == writes
    again: list[Path] = []
    write = counting.write_table
    monkeypatch.setattr(counting, "write_table", lambda path, columns: (again.append(path), write(path, columns)))
    count_blocks(what, tmp_path / "killed", tmp_path / "killed.parquet", place=Place(1))
    assert len(again) == 12 - writes
    assert rows(tmp_path / "killed.parquet") == oracle(2, what)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), tables=st.integers(0, 5))
def test_merging_in_batches_equals_counting(seed: int, tables: int) -> None:
    rng = np.random.default_rng(seed)
    parts, total, first = [], Counter[tuple[int, ...]](), dict[tuple[int, ...], int]()
    for _ in range(tables):
        part = Counter({tuple(rng.integers(0, 3, 3).tolist()): int(rng.integers(1, 2**40)) for _ in range(20)})
        total.update(part)
        places = {key: int(rng.integers(0, 100)) for key in part}
        first.update({key: min(place, first.get(key, place)) for key, place in places.items()})
        table = np.array([(*key, part[key], places[key]) for key in sorted(part)], np.uint64).T
        cuts = np.sort(rng.integers(0, table.shape[1] + 1, 4))
        parts.append(iter(np.split(table, cuts, axis=1)))
    merged = [tuple(row) for batch in merge_sorted(parts) for row in batch.T.tolist()]
    assert merged == sorted((*key, count, first[key]) for key, count in total.items())


def test_a_part_taken_away_leaves_the_rest() -> None:
    whole = np.array([[0, 0, 1], [1, 2, 2], [4, 4, 5], [7, 8, 9], [1, 2, 3]], np.uint64)
    part = np.array([[0, 1], [2, 2], [4, 5], [3, 9], [0, 1]], np.uint64)
    assert subtract(whole, part).T.tolist() == [[0, 1, 4, 7, 0], [0, 2, 4, 5, 0]]


def test_a_segment_in_two_sections_is_two(tmp_path: Path) -> None:
    what = made(tmp_path, 3, per_section=True, mask=None, ignore_labels=())
    count_blocks(what, tmp_path / "a", tmp_path / "a.parquet", place=Place(1))
    found = read_count(tmp_path / "a.parquet")
    segments, labels, _ = volumes(3)
    assert np.unique(found.segment).size == sum(np.unique(section).size for section in segments)
    assert np.unique(found.label).size == sum(np.unique(section).size for section in labels)
    assert int(found.count.sum()) == segments.size
    keys = list(zip(found.segment.tolist(), found.label.tolist(), strict=True))
    assert keys == sorted(set(keys))


def test_nothing_to_score_is_said(tmp_path: Path) -> None:
    what = made(tmp_path, 4, ignore_labels=(0, 1, 2))
    count_blocks(what, tmp_path / "a", tmp_path / "a.parquet", place=Place(1))
    with pytest.raises(DataError, match="nothing to score: every voxel"):
        read_count(tmp_path / "a.parquet")
    what = made(tmp_path, 4)
    count_blocks(what, tmp_path / "b", tmp_path / "b.parquet", place=Place(1))
    with pytest.raises(DataError, match="dust of 1000"):
        read_count(tmp_path / "b.parquet", 1000)


def test_damage_is_named(tmp_path: Path) -> None:
    what = made(tmp_path, 5)
    chunk = next(path for path in (tmp_path / "labels.zarr" / "0").rglob("*") if path.is_file() and "c" in path.parts)
    chunk.write_bytes(chunk.read_bytes()[:-7])
    with pytest.raises(StageError, match=r"labels\.zarr.*damaged"):
        count_blocks(what, tmp_path / "a", tmp_path / "a.parquet", place=Place(1))
