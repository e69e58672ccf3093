"""Two results compared, against a comparison voxel by voxel."""

from __future__ import annotations

import csv
import json
import math
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Result, invoke
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pipeline import store
from toy_volumes import cells, write_volume

from kdseg.config.questions import DiffTask
from kdseg.evaluation.difference.objects import agreement
from kdseg.evaluation.difference.stage import run
from kdseg.evaluation.difference.volumes import Values, joined
from kdseg.evaluation.metrics.contingency import block_located
from kdseg.geometry import Roi, Triple
from kdseg.results.claims import claim

Ids = NDArray[np.uint64]
Voxel = tuple[int, ...]
HIGH = np.uint64(2**64 - 4)


def kdseg(*arguments: object) -> Result:
    return invoke("diff", *map(str, arguments))


def oracle(old: Ids, new: Ids) -> tuple[dict[str, int], list[tuple[int, ...]]]:
    """Return numbers of objects, and rows (change, old, its size, new, its size, voxels, first voxel)."""
    pairs: dict[tuple[int, int], list[Voxel]] = {}
    for index in np.ndindex(*old.shape):
        pairs.setdefault((int(old[index]), int(new[index])), []).append(index)
    sizes = Counter(old.ravel().tolist()), Counter(new.ravel().tolist())
    numbers = Counter[str]()
    rows = []
    best = [dict[int, int](), dict[int, int]()]
    for side in (0, 1):
        for name in sizes[side].keys() - {0}:
            mine = [pair for pair in pairs if pair[side] == name and pair[1 - side]]
            if mine:
                best[side][name] = min(mine, key=lambda pair: (-len(pairs[pair]), pair[1 - side]))[1 - side]
    numbers["split"] = sum(n > 1 for n in Counter(best[1].values()).values())
    numbers["merged"] = sum(n > 1 for n in Counter(best[0].values()).values())
    for a in sorted(sizes[0].keys() - {0}):
        parts = {b: voxels for (one, b), voxels in pairs.items() if one == a}
        others = [b for b in parts if b]
        numbers["old"] += 1
        if len(parts) == 1 and others and sizes[1][others[0]] == sizes[0][a]:
            numbers["equal"] += 1
            numbers["renamed"] += others[0] != a
            continue
        numbers["changed"] += 1
        numbers["vanished"] += not others
        change = sizes[0][a]
        if others and best[1][best[0][a]] == a:
            change = sum(1 for index in np.ndindex(*old.shape) if (old[index] == a) != (new[index] == best[0][a]))
        rows += [(change, a, sizes[0][a], b, sizes[1][b], len(at), *at[0]) for b, at in parts.items()]
    for b in sizes[1].keys() - {0}:
        before = [a for a, one in pairs if one == b]
        numbers["new"] += 1
        if before == [0]:
            numbers["appeared"] += 1
            at = pairs[0, b]
            rows.append((len(at), 0, 0, b, len(at), len(at), *at[0]))
    return numbers, sorted(rows, key=lambda row: (-row[0], row[1], -row[5], row[3]))


def information(given: Ids, of: Ids) -> float:
    """Return H(of | given) in bits."""
    pairs, alone = Counter(zip(given.ravel(), of.ravel(), strict=True)), Counter(given.ravel())
    return sum(n * math.log2(alone[key[0]] / n) for key, n in pairs.items()) / given.size


def random_pair(seed: int, shape: Triple) -> tuple[Ids, Ids]:
    """Return a segmentation with background and huge ids, and one that was changed in a box and renamed in part."""
    rng = np.random.default_rng(seed)
    old = cells(shape, 7, seed)[1]
    old[old == 3] = 0
    new = old.copy()
    low = [int(rng.integers(0, n)) for n in shape]
    box = tuple(slice(a, a + int(rng.integers(1, 6))) for a in low)
    new[box] = rng.integers(0, 9, new[box].shape) // 3 * rng.integers(0, 2)
    for name in rng.choice(9, 3, replace=False).tolist():
        old[old == np.uint64(name)] = HIGH - np.uint64(name)
    if rng.random() < 0.5:
        new[new == 5] = old[tuple(low)]
    return old, new


@settings(deadline=None, max_examples=200)
@given(seed=st.integers(0, 2**32 - 1), ids=st.integers(1, 4), others=st.integers(1, 4))
def test_objects_of_few_voxels(seed: int, ids: int, others: int) -> None:
    rng, shape = np.random.default_rng(seed), (2, 2, 3)
    old, new = rng.integers(0, ids, shape).astype(np.uint64), rng.integers(0, others, shape).astype(np.uint64)
    found, changes = agreement(block_located(new, old, (0, 0, 0), shape, None))
    numbers, rows = oracle(old, new)
    named = found._asdict()
    assert named.pop("differing") == int((old != new).sum())
    assert named.pop("same") == (((old > 0) == (new > 0)).all() and numbers["changed"] == 0)
    assert named == {name: numbers[name] for name in named}
    expected = [(*row[:6], int(np.ravel_multi_index(row[6:], shape))) for row in rows]
    assert list(zip(*(column.tolist() for column in changes), strict=True)) == expected


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 2**32 - 1),
    block=st.tuples(*[st.integers(2, 14)] * 3),
    shift=st.tuples(*[st.integers(-3, 3)] * 3),
)
def test_any_blocks_find_what_a_loop_finds(
    tmp_path_factory: pytest.TempPathFactory, seed: int, block: Triple, shift: Triple
) -> None:
    folder = tmp_path_factory.mktemp("a")
    whole = random_pair(seed, (7, 12, 9))
    # each lacks planes at the beginning that the other one has
    lacking = [max(-n, 0) for n in shift], [max(n, 0) for n in shift]
    old, new = (one[tuple(slice(n, None) for n in lack)] for one, lack in zip(whole, lacking, strict=True))
    both = tuple(one[tuple(slice(abs(n), None) for n in shift)] for one in whole)
    for name, one, lack in zip(("old", "new"), (old, new), lacking, strict=True):
        store(folder / f"{name}.json", one, tuple(10.0 * n for n in lack))
    task = DiffTask(old=folder / "old.json", new=folder / "new.json", out=folder / "c.csv", block=block, changes=10**6)
    (found,) = run(task)["results"]
    numbers, rows = oracle(*both)
    begin = lacking[1]
    assert found["region"] == [begin, [a + n for a, n in zip(begin, both[0].shape, strict=True)]]
    assert found["beyond"] == [old.size - both[0].size, new.size - both[0].size]
    assert found["differing"] == int((both[0] != both[1]).sum())
    assert found["objects"] == {name: numbers[name] for name in found["objects"]}
    assert found["voi_split"] == pytest.approx(information(*both), abs=1e-12)
    assert found["voi_merge"] == pytest.approx(information(both[1], both[0]), abs=1e-12)
    expected = [(*row[:6], *(v + o for v, o in zip(row[6:], begin, strict=True))) for row in rows]
    names = ("change", "old", "old_size", "new", "new_size", "voxels", "z", "y", "x")
    assert [tuple(row[name] for name in names) for row in found["changes"]] == expected
    with (folder / "c.csv").open() as file:
        listed = list(csv.DictReader(file))
    assert [tuple(int(row[name]) for name in names) for row in listed] == expected
    for row in listed:
        assert [float(row[f"{a}_nm"]) for a in "zyx"] == [
            10.0 * (n + int(row[a])) for a, n in zip("zyx", lacking[0], strict=True)
        ]


def test_workers_change_nothing(tmp_path: Path) -> None:
    for name, array in zip(("old", "new"), random_pair(5, (20, 24, 20)), strict=True):
        store(tmp_path / f"{name}.json", array)
        store(tmp_path / f"{name}_values.json", array.astype(np.uint16))
    for kind in ("", "_values"):
        task = DiffTask(old=tmp_path / f"old{kind}.json", new=tmp_path / f"new{kind}.json", out=tmp_path / "c.csv")
        alone, table = run(task), (tmp_path / "c.csv").read_text()
        assert run(task.model_copy(update={"workers": 2, "block": (7, 9, 6)})) == alone
        assert (tmp_path / "c.csv").read_text() == table


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), block=st.tuples(*[st.integers(2, 9)] * 3), channels=st.sampled_from([0, 1, 3]))
def test_values_of_any_channels(
    tmp_path_factory: pytest.TempPathFactory, seed: int, block: Triple, channels: int
) -> None:
    folder, rng = tmp_path_factory.mktemp("a"), np.random.default_rng(seed)
    old = rng.integers(0, 256, (*([channels] if channels else []), 6, 7, 9), np.uint8)
    new = np.where(rng.random(old.shape) < rng.choice([0, 0.01, 0.3]), rng.integers(0, 256, old.shape), old)
    store(folder / "old.json", old)
    store(folder / "new.json", new.astype(np.uint8))
    (found,) = run(DiffTask(old=folder / "old.json", new=folder / "new.json", block=block))["results"]
    wrong = (old != new).reshape(-1, 6, 7, 9).any(0)
    assert found["differing"] == wrong.sum()
    assert found["state"] == ("different" if wrong.any() else "identical")
    assert found["largest"] == np.abs(old.astype(int) - new).max()
    where = np.argwhere(wrong)
    assert found["box"] == ([where.min(0).tolist(), (where.max(0) + 1).tolist()] if wrong.any() else None)


def test_what_is_no_number_equals_itself(tmp_path: Path) -> None:
    for name, values in (("old", [np.nan, 1.0, 2.0, np.nan]), ("new", [np.nan, 1.0, 2.5, 3.0])):
        with claim(tmp_path / f"{name}.json", "test", {}, {}) as held:
            write_volume(held.store, np.array([[values]], np.float32))
    (found,) = run(DiffTask(old=tmp_path / "old.json", new=tmp_path / "new.json"))["results"]
    assert (found["differing"], found["box"]) == (2, [[0, 0, 2], [1, 1, 4]])
    assert math.isnan(found["largest"])


def made(manifest: Path, stage: str, options: dict[str, Any], **stats: Any) -> None:
    manifest.parent.mkdir(parents=True, exist_ok=True)
    with claim(manifest, stage, options, {"raw": "1234"}) as held:
        held.stats.update(stats)


def test_two_runs(tmp_path: Path) -> None:
    labels = cells((8, 9, 10), 5)[1]
    renamed = HIGH - labels
    for run_, array, rate in (("a", labels, 0.1), ("b", renamed, 0.2)):
        folder = tmp_path / run_ / "student"
        folder.mkdir(parents=True)
        store(folder / "segmentation.json", array)
        store(folder / "raw.json", labels.astype(np.uint8))
        made(folder / "scores.json", "score", {"dust": 1}, voi=rate, seconds=rate)
        made(folder / "rate.json", "rate", {"rate": rate}, weights=f"sha {rate}")
    made(tmp_path / "a" / "old only.json", "sweep", {})
    made(tmp_path / "b" / "=cmd.json", "sweep", {})
    done = kdseg(tmp_path / "a", tmp_path / "b", "--json", tmp_path / "found.json")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert "student/segmentation: renamed" in lines
    assert "  objects: 5 → 5, 5 equal (5 renamed), 0 changed" in lines
    assert "student/raw: identical" in lines
    assert "student/scores: different" in lines
    assert "  stats.voi was 0.1, is 0.2" in lines
    assert not [line for line in lines if "seconds" in line]
    assert "  options.rate was 0.1, is 0.2" in lines
    assert "  weights were sha 0.1, are sha 0.2" in lines
    assert lines[-2:] == ["old only: only in OLD", "=cmd: only in NEW"]
    assert json.loads((tmp_path / "found.json").read_text())["only_old"] == ["old only"]
    for which in ("raw", "segmentation"):
        done = kdseg(tmp_path / "a/student" / f"{which}.json", tmp_path / "b/student" / f"{which}.json")
        assert done.exit_code == 0, done.output
    assert kdseg(tmp_path / "a", tmp_path / "a").exit_code == 0
    assert kdseg(tmp_path / "a", tmp_path / "b/student/raw.json").exit_code == 2
    assert kdseg(tmp_path / "a", tmp_path / "none").exit_code == 2


def test_what_cannot_be_compared_stops_nothing(tmp_path: Path) -> None:
    for run_, shift in (("a", 0.0), ("b", 1000.0)):
        (tmp_path / run_).mkdir()
        store(tmp_path / run_ / "far.json", np.ones((4, 4, 4), np.uint64), (shift, 0, 0))
        store(tmp_path / run_ / "near.json", np.ones((4, 4, 4), np.uint64))
        store(tmp_path / run_ / "channels.json", np.ones((2 + (run_ == "b"), 4, 4, 4), np.uint8))
    done = kdseg(tmp_path / "a", tmp_path / "b")
    assert done.exit_code == 1
    assert "far: not comparable" in done.stdout
    assert "they do not overlap" in done.stdout
    assert f"channels: 2 in {tmp_path / 'a' / 'channels.json'}, 3 in" in done.stdout
    assert "near: identical" in done.stdout


def test_what_is_printed_is_plain(tmp_path: Path) -> None:
    old = np.array([[[0, 0, 0, 4, 4, 5, 5, 5]]], np.uint64)
    new = np.array([[[7, 7, 0, 0, 0, 5, 5, 6]]], np.uint64)
    store(tmp_path / "old.json", old)
    store(tmp_path / "new.json", new)
    store(tmp_path / "raw.json", np.ones((2, 1, 1, 8), np.uint8))
    done = kdseg(tmp_path / "old.json", tmp_path / "new.json")
    assert done.stdout.splitlines()[:4] == [
        "old → new: different",
        "  options.sum was 23, is 30",
        "  5 of 8 voxels (62.50%) have another id",
        "  objects: 2 → 3, 0 equal (0 renamed), 2 changed",
    ]
    assert [line.strip() for line in done.stdout.splitlines()[6:8]] == [
        "2 voxels of background are 7 (of 2), from (0, 0, 0); change 2",
        "2 voxels of 4 (of 2) are background, from (0, 0, 3); change 2",
    ]
    done = kdseg(tmp_path / "raw.json", tmp_path / "new.json")
    assert done.stdout.startswith(
        f"raw → new: not comparable, channels: 2 in {tmp_path / 'raw.json'}, none in {tmp_path / 'new.json'}\n"
    )
    for name, stage, options in (("a", "rate", {"rate": None}), ("b", "rate", {"rate": 1}), ("c", "sweep", {})):
        made(tmp_path / name / "x.json", stage, options, **({"weights": "sha"} if name == "a" else {}))
    assert "  options.rate was none, is 1\n  weights were sha, are none" in kdseg(tmp_path / "a", tmp_path / "b").stdout
    assert "  made by `kdseg rate`, now by `kdseg sweep`\n" in kdseg(tmp_path / "b", tmp_path / "c").stdout


@pytest.mark.parametrize("damaged", ["chunk", "metadata", "manifest", "table"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint64])
def test_what_is_damaged_stops_nothing(tmp_path: Path, damaged: str, dtype: type) -> None:
    for run_, value in (("a", 1), ("b", 2)):
        (tmp_path / run_).mkdir()
        for name in ("bad", "good"):
            store(tmp_path / run_ / f"{name}.json", np.full((4, 4, 4), value, dtype))
        store(tmp_path / run_ / "changed.json", np.full((4, 4, 4), value - 1, np.uint64))
        with claim(tmp_path / run_ / "rows.json", "edges", {}, {}, tables=True) as held:
            held.tables.mkdir()
            (held.tables / "0_0_0.npz").write_bytes(b"1")
    image = tmp_path / "b" / "bad.zarr"
    if damaged == "chunk":
        for chunk in image.glob("*/c/0/0/0"):
            chunk.write_bytes(b"damaged" * 100)
    elif damaged == "metadata":
        (image / "zarr.json").write_text("{")
    elif damaged == "manifest":
        (tmp_path / "b" / "bad.json").write_text("{")
    else:
        (tmp_path / "b" / "rows.tables" / "0_0_0.npz").unlink()
        (tmp_path / "b" / "rows.tables" / "0_0_0.npz").mkdir()
    done = kdseg(tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c.csv", "--json", tmp_path / "found.json")
    assert done.exit_code == 2, done.output
    name = "rows" if damaged == "table" else "bad"
    assert done.stderr.endswith(f"1 results could not be read, the reasons are above: ['{name}']\n")
    found = {one["name"]: one for one in json.loads((tmp_path / "found.json").read_text())["results"]}
    states = {name: one["state"] for name, one in found.items()}
    compared = "different" if dtype == np.uint8 else "renamed"
    expected = {"good": compared, "bad": compared, "changed": "different", "rows": "identical"}
    assert states == expected | {name: "unreadable"}
    why = found[name]["why"]
    assert f"{name}: unreadable, {why}" in done.stdout.splitlines()
    assert str(tmp_path / "b" / name) in why
    assert [row.split(",")[0] for row in (tmp_path / "c.csv").read_text().splitlines()] == ["result", "changed"]


def test_memory_for_values_does_not_grow_with_blocks() -> None:
    def parts() -> Iterator[dict[str, Any]]:
        for k in range(20_000):
            box = {"begin": np.array([k, 5, 7]), "end": np.array([k + 1, 6, 9])}
            yield {"differing": np.array([k % 2]), **box, "largest": np.array([float(k % 2 * k)])}

    tracemalloc.start()
    found = joined(parts())
    assert tracemalloc.get_traced_memory()[1] < 10_000
    tracemalloc.stop()
    assert found == Values(10_000, Roi((1, 5, 7), (19_999, 1, 2)), 19_999.0)


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    for name, value in (("old", 1), ("new", 0)):
        (tmp_path / name).mkdir()
        store(tmp_path / name / "=cmd.json", np.full((2, 2, 2), value, np.uint64))
    kdseg(tmp_path / "old", tmp_path / "new", "--out", tmp_path / "c.csv")
    assert (tmp_path / "c.csv").read_text().splitlines()[1].startswith("'=cmd,8,1,8,0,8,8,0,0,0,0.0")
