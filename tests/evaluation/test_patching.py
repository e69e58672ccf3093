"""A region put into a segmentation, against a loop over voxels that is the definition."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from command import invoke
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pipeline import STORAGE, store, voxels
from toy_volumes import cells

from kdseg.config.data import RoiOptions
from kdseg.config.questions import PatchTask
from kdseg.errors import ConfigError, DataError, KdsegError, ShapeError
from kdseg.evaluation.patching import stage
from kdseg.evaluation.patching.names import Overlaps, names, wanted
from kdseg.geometry import Roi, Triple
from kdseg.results.claims import clear
from kdseg.results.manifests import read
from kdseg.results.parquet import read_parquet
from kdseg.segmentation.agglomeration.edits import read_edits
from kdseg.volumes.pyramid import downsample_mode
from kdseg.volumes.verify import verify
from kdseg.volumes.volume import open_volume

Ids = NDArray[np.uint64]
Voxel = tuple[int, ...]
HIGH = 2**64 - 4
SHAPE = (10, 12, 9)
EXTENT = st.tuples(*[st.integers(0, n - 1) for n in SHAPE]), st.tuples(*[st.integers(1, n) for n in SHAPE])


def box(offset: Triple, shape: Triple, within: Roi) -> Roi:
    """Return a box that begins in another one and is cut to it."""
    low = tuple(o + n % s for o, n, s in zip(within.offset, offset, within.shape, strict=True))
    return Roi((low[0], low[1], low[2]), shape).intersect(within)


def claims(shared: Counter[tuple[int, int]], taken: set[int]) -> dict[int, int]:
    best = {}
    for new in {pair[0] for pair in shared}:
        best[new] = min((old for one, old in shared if one == new), key=lambda old: (-shared[new, old], old))
    given_to = dict[int, int]()
    for old in set(best.values()) - taken:
        given_to[min((n for n, o in best.items() if o == old), key=lambda n: (-shared[n, old], n))] = old
    return given_to


def oracle(old: Ids, new: Ids, place: Roi, region: Roi) -> tuple[Ids, set[tuple[str, Voxel, Voxel]], int]:
    """Return the result, the wanted merges and splits with their ends, and how many ids are new.

    Args:
        old: whole.
        new: what covers ``place`` of it.
        place: in voxels of the old one.
        region: to replace.
    """

    def inside(voxel: Voxel, roi: Roi) -> bool:
        return all(o <= v < e for v, o, e in zip(voxel, roi.offset, roi.end, strict=True))

    def new_at(voxel: Voxel) -> int:
        return int(new[tuple(v - o for v, o in zip(voxel, place.offset, strict=True))]) if inside(voxel, place) else 0

    shared, first = Counter[tuple[int, int]](), dict[tuple[int, int], Voxel]()

    def add(pair: tuple[int, int], at: Voxel) -> None:
        if 0 not in pair:
            shared[pair] += 1
            first[pair] = min(first.get(pair, at), at)

    every = list(np.ndindex(*old.shape))
    for voxel in every:
        if not inside(voxel, region):
            add((new_at(voxel), int(old[voxel])), voxel)
    for axis, side in product(range(3), (-1, 1)):
        step = [side * (k == axis) for k in range(3)]
        pairs = [(v, tuple(a + b for a, b in zip(v, step, strict=True))) for v in every if inside(v, region)]
        pairs = [(p, q) for p, q in pairs if not inside(q, region) and inside(q, Roi((0, 0, 0), SHAPE))]
        if not any(new_at(q) for _, q in pairs):
            for p, q in pairs:
                if int(old[p]) in (0, int(old[q])):
                    add((new_at(p), int(old[q])), q)
    here = sorted({new_at(v) for v in every if inside(v, region)} - {0})
    names = claims(Counter({pair: n for pair, n in shared.items() if pair[0] in here}), set())
    alone = Counter[tuple[int, int]]()
    for voxel in every:
        if inside(voxel, region) and new_at(voxel) and old[voxel] and not any(n == new_at(voxel) for n, _ in shared):
            alone[new_at(voxel), int(old[voxel])] += 1
    names |= claims(alone, {o for _, o in shared})
    rest = [n for n in here if n not in names]
    names |= {n: int(old.max()) + 1 + k for k, n in enumerate(rest)}
    result = old.copy()
    for voxel in every:
        if inside(voxel, region):
            result[voxel] = names.get(new_at(voxel), 0)
    wants = set()
    rows = [pair for pair in shared if pair[0] in here]
    for kind, side in (("merge", 0), ("split", 1)):
        for name in {row[side] for row in rows}:
            mine = [row for row in rows if row[side] == name]
            keeper = min(mine, key=lambda row: (names[row[0]] != row[1], -shared[row], row[1 - side]))
            wants |= {(kind, first[keeper], first[row]) for row in mine if row != keeper}
    return result, wants, len(rest)


def random_case(seed: int, place: Roi, region: Roi) -> tuple[Ids, Ids]:
    """Return a segmentation and another one of a part, alike but for a box, names, and voxels here and there."""
    rng = np.random.default_rng(seed)
    old = cells(SHAPE, 8, seed)[1]
    old[old == 3] = 0
    new = old[place.slices()].copy()
    if rng.random() < 0.8:
        new[rng.random(new.shape) < rng.choice([0.02, 0.3])] = rng.integers(0, 9)
        new[new == rng.integers(1, 9)] = rng.integers(0, 9)
    if rng.random() < 0.3:  # nothing is known around the region
        around = np.ones(new.shape, np.bool_)
        around[region.slices(place)] = False
        new[around] = 0
    high = np.uint64(HIGH - 40)
    old = np.where((old > 4) & (rng.random() < 0.5), old + high, old)
    if rng.random() < 0.3:
        old[region.slices()] = 0
    return old, np.where(new > 0, np.uint64(HIGH - 7) - new * np.uint64(3), np.uint64(0))


def patched(folder: Path, old: Ids, new: Ids, place: Roi, region: Roi | None, **how: object) -> Path:
    if not (folder / "old.json").exists():
        store(folder / "old.json", old, (50.0, 0.0, 30.0))
        z, y, x = place.offset
        store(folder / "new.json", new, (50.0 + 10 * z, 10.0 * y, 30.0 + 10 * x))
    manifest = folder / f"out{len(list(folder.glob('out*.zarr')))}.json"
    options = None if region is None else RoiOptions(offset=region.offset, shape=region.shape)
    stage.run(
        PatchTask.model_validate(
            {
                "old": folder / "old.json",
                "new": folder / "new.json",
                "manifest": manifest,
                "region": options,
                "block": (32, 32, 32),
                "storage": STORAGE.model_dump(),
                **how,
            }
        )
    )
    return Path(str(how.get("manifest", manifest)))


def overlaps(pairs: Counter[tuple[int, int]]) -> Overlaps:
    rows = [(*pair, count) for pair, count in sorted(pairs.items())]
    return Overlaps(*np.array(rows, np.uint64).reshape(-1, 3).T)


PAIRS = st.dictionaries(st.tuples(st.integers(1, 5), st.integers(1, 5)), st.integers(1, 3), max_size=9).map(Counter)


@settings(deadline=None, max_examples=300)
@given(outside=PAIRS, inside=PAIRS, background=st.sets(st.integers(1, 7)))
def test_names_of_any_overlaps(
    outside: Counter[tuple[int, int]], inside: Counter[tuple[int, int]], background: set[int]
) -> None:
    here = {new for new, _ in inside} | background
    expected = claims(Counter({pair: n for pair, n in outside.items() if pair[0] in here}), set())
    alone = Counter({pair: n for pair, n in inside.items() if not any(new == pair[0] for new, _ in outside)})
    expected |= claims(alone, {old for _, old in outside})
    expected |= {new: 101 + k for k, new in enumerate(sorted(here - expected.keys()))}
    everything = inside | Counter({(new, 0): 1 for new in background})
    found = names(overlaps(outside), overlaps(everything), 100)
    assert dict(zip(found.new.tolist(), found.name.tolist(), strict=True)) == expected
    assert found.fresh == sum(name > 100 for name in expected.values())
    table, rows = overlaps(outside), sorted(outside)
    wants = set()
    for merge, side in ((True, 0), (False, 1)):
        for name in {pair[side] for pair in rows if pair[0] in here}:
            mine = [pair for pair in rows if pair[side] == name and pair[0] in here and outside[pair] > 1]
            mine.sort(key=lambda pair: (expected[pair[0]] != pair[1], -outside[pair], pair[1 - side]))
            wants |= {(merge, (rows.index(mine[0]), rows.index(pair)), outside[pair]) for pair in mine[1:]}
    listed = wanted(table, found, 2)
    assert {tuple(want) for want in listed} == wants
    assert [want.voxels for want in listed] == sorted((want.voxels for want in listed), reverse=True)


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), whole=st.tuples(*EXTENT), part=st.tuples(*EXTENT), cell=st.sampled_from([4, 8]))
def test_any_region_is_put_in_as_a_loop_does(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    whole: tuple[Triple, Triple],
    part: tuple[Triple, Triple],
    cell: int,
) -> None:
    folder = tmp_path_factory.mktemp("a")
    place = box(*whole, Roi((0, 0, 0), SHAPE))
    region = box(*part, place)
    old, new = random_case(seed, place, region)
    expected, wants, fresh = oracle(old, new, place, region)
    storage = {**STORAGE.model_dump(), "chunk": (cell, 4, 4), "shard": (cell, 4, 4)}
    manifest = patched(folder, old, new, place, region, storage=storage, block=(cell, 4, 8))
    found = voxels(manifest)
    np.testing.assert_array_equal(found, expected)
    stats = read(manifest).stats
    assert stats["fresh"] == fresh
    edits = read_edits(manifest.with_suffix(".edits.csv"))
    world = np.array((50.0, 0.0, 30.0))
    assert {(edit.kind, *edit.points) for edit in edits if edit.points} == {
        (kind, *(tuple((world + 10 * np.array(end)).tolist()) for end in ends)) for kind, *ends in wants
    }
    assert [stats["merges"], stats["splits"]] == [sum(kind == one for kind, *_ in wants) for one in ("merge", "split")]
    outside = np.ones(SHAPE, np.bool_)
    outside[region.slices()] = False
    np.testing.assert_array_equal(found[outside], old[outside])
    inside = np.stack([found[region.slices()].ravel(), new[region.slices(place)].ravel()])
    pairs = np.unique(inside, axis=1)
    assert all(np.unique(side).size == side.size for side in pairs), "names are one to one"


@pytest.mark.slow
@settings(deadline=None, max_examples=10)
@given(
    seed=st.integers(0, 2**32 - 1),
    whole=st.tuples(*EXTENT),
    part=st.tuples(*EXTENT),
    other=st.booleans(),
    dark=st.booleans(),
)
def test_what_did_not_change_is_the_old_one(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    whole: tuple[Triple, Triple],
    part: tuple[Triple, Triple],
    other: bool,
    dark: bool,
) -> None:
    folder = tmp_path_factory.mktemp("a")
    place = box(*whole, Roi((0, 0, 0), SHAPE))
    region = box(*part, place)
    rng = np.random.default_rng(seed)
    old = rng.integers(0, 7, SHAPE).astype(np.uint64) if seed % 2 else cells(SHAPE, 9, seed)[1]
    new = old[place.slices()].copy()
    if dark:
        new[:] = 0
        new[region.slices(place)] = old[region.slices()]
    if other:
        new = np.where(new > 0, np.uint64(HIGH) - new, new)
    manifest = patched(folder, old, new, place, region)
    np.testing.assert_array_equal(voxels(manifest), old)
    assert read(manifest).stats["fresh"] == 0
    assert not read_edits(manifest.with_suffix(".edits.csv"))


def a_case() -> tuple[Ids, Ids, Roi, Roi]:
    place, region = Roi((1, 2, 0), (9, 9, 8)), Roi((3, 4, 2), (5, 5, 5))
    return *random_case(7, place, region), place, region


def files(manifest: Path) -> dict[str, bytes]:
    folder = manifest.with_suffix(".zarr")
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*/c/**/*") if path.is_file()}
    beside = (".parquet", ".edits.csv")
    return found | {suffix: manifest.with_suffix(suffix).read_bytes() for suffix in beside}


SMALL = {**STORAGE.model_dump(), "chunk": (4, 4, 4), "shard": (4, 4, 4)}


@pytest.mark.slow
def test_blocks_and_workers_change_no_byte(tmp_path: Path) -> None:
    case = a_case()
    first = patched(tmp_path, *case, storage=SMALL)
    for how in ({"block": (4, 8, 4)}, {"block": (4, 4, 4), "workers": 2}):
        assert files(patched(tmp_path, *case, storage=SMALL, **how)) == files(first)


def killed_after(writes: int, folder: Path) -> None:
    block = stage.patch_block

    def dying(*arguments: object) -> bytes:
        nonlocal writes
        if not writes:
            os.kill(os.getpid(), signal.SIGKILL)
        writes -= 1
        return block(*arguments)  # type: ignore[arg-type]

    stage.patch_block = dying  # type: ignore[assignment]
    patched(folder, *a_case(), storage=SMALL, block=(4, 4, 4), manifest=folder / "out.json")


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    once = patched(tmp_path, *a_case(), storage=SMALL)
    half = tmp_path / "half"
    half.mkdir()
    process = get_context("fork").Process(target=killed_after, args=(10, half))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    written = {path: path.stat().st_mtime_ns for path in (half / "out.zarr").rglob("0/c/**/*") if path.is_file()}
    assert len(written) >= 8
    again = patched(half, *a_case(), storage=SMALL, block=(4, 4, 4), manifest=half / "out.json")
    assert files(again) == files(once)
    assert all(path.stat().st_mtime_ns == when for path, when in written.items())


def test_beside_the_result(tmp_path: Path) -> None:
    manifest = patched(tmp_path, *a_case(), storage=SMALL, block=(4, 8, 4))
    assert not [fault for _, faults in verify(manifest, 1) for fault in faults]
    found, table = voxels(manifest), read_parquet(manifest.with_suffix(".parquet"))
    ids, size = np.unique(found[found > 0], return_counts=True)
    assert table["segment"].tolist() == ids.tolist()
    assert table["size"].tolist() == size.tolist()
    for row, name in enumerate(ids):
        where = np.argwhere(found == name)
        assert [table[f"begin_{a}"][row] for a in "zyx"] == where.min(0).tolist()
        assert [table[f"end_{a}"][row] for a in "zyx"] == (where.max(0) + 1).tolist()
        np.testing.assert_allclose(
            [table[f"centroid_{a}"][row] for a in "zyx"], where.mean(0) * 10 + (50, 0, 30), rtol=1e-12
        )
    level = open_volume(manifest.with_suffix(".zarr"), level=1)
    np.testing.assert_array_equal(level.read(level.roi), downsample_mode(found))
    edits = manifest.with_suffix(".edits.csv")
    edits.write_text(edits.read_text() + "merge,1,2,,,,,,,\n")
    assert [fault.what for _, faults in verify(manifest, 1) for fault in faults] != []
    clear(manifest)
    assert not edits.exists()


def layout(manifest: Path) -> tuple[Triple, Triple, int]:
    """Return chunk, shard and number of levels of a volume."""
    volume = open_volume(manifest.with_suffix(".zarr"))
    return volume.array.chunks, volume.write_unit, len(list(manifest.with_suffix(".zarr").glob("*/zarr.json")))


def test_the_result_is_stored_as_the_old_one_unless_told_otherwise(tmp_path: Path) -> None:
    first = patched(tmp_path, *a_case(), storage={"chunk": (4, 4, 2), "shard": (8, 4, 4), "levels": 3})
    assert layout(first) == ((4, 4, 2), (8, 4, 4), 3)
    words = ("patch", first, tmp_path / "new.json", "--manifest")
    for name, flags, expected in (
        ("a", (), layout(first)),
        ("b", ("--storage.levels", 2, "--storage.shard", 4, 8, 6), ((4, 4, 2), (4, 8, 6), 2)),
        ("c", ("--storage", '{"levels": 1}'), ((4, 4, 2), (8, 4, 4), 1)),
    ):
        done = invoke(*words, tmp_path / f"{name}.json", *flags)
        assert done.exit_code == 0, done.output
        assert layout(tmp_path / f"{name}.json") == expected
    done = invoke(*words, tmp_path / "d.json", "--storage.chunk", 4, 4, 3)
    assert done.exit_code == 1
    assert "shard (8, 4, 4) must be a multiple of chunk (4, 4, 3)" in done.stderr
    assert "what is not given is that of OLD: give both" in done.stderr
    assert not (tmp_path / "d.zarr").exists()


def test_small_overlaps_are_left_out_of_the_edits(tmp_path: Path) -> None:
    old, new, place, region = a_case()
    counts = []
    for least in (1, 3, 10**6):
        manifest = patched(tmp_path, old, new, place, region, least=least)
        counts.append(len(read_edits(manifest.with_suffix(".edits.csv"))))
        assert read(manifest).stats["fresh"] == oracle(old, new, place, region)[2]
    assert counts[0] > counts[1] > counts[2] == 0


def refused(folder: Path, old: Ids, new: Ids, region: Roi | None = None, **how: object) -> None:
    patched(folder, old, new, Roi((0, 0, 0), SHAPE), region, **how)


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    old = cells(SHAPE, 8)[1]
    refuse = partial(refused, tmp_path, old, old)
    cases: list[tuple[dict[str, object], type[KdsegError], str]] = [
        ({"manifest": tmp_path / "old.json", "overwrite": True}, ConfigError, "nothing is patched in place"),
        ({"manifest": tmp_path / "x/../new.json", "overwrite": True}, ConfigError, "nothing is patched in place"),
        ({"region": Roi((5, 0, 0), (6, 2, 2))}, ShapeError, "is not in what both cover"),
        ({"block": (16, 32, 32)}, ShapeError, "must be a multiple of the shard"),
    ]
    for how, error, message in cases:
        with pytest.raises(error, match=message):
            refuse(**how)
    np.testing.assert_array_equal(voxels(tmp_path / "old.json"), old)
    for name, array, kind in (("raw", old.astype(np.uint8), DataError), ("full", old + np.uint64(HIGH - 9), DataError)):
        folder = tmp_path / name
        folder.mkdir()
        with pytest.raises(kind, match=r"uint64|mean no label"):
            refused(folder, array, np.arange(old.size, dtype=np.uint64).reshape(SHAPE))


def test_by_hand(tmp_path: Path) -> None:
    old, new, place, region = a_case()
    expected = voxels(patched(tmp_path, old, new, place, region))
    text = ",".join(f"{o}:{e}" for o, e in zip(region.offset, region.end, strict=True))
    words = ["patch", tmp_path / "old.json", tmp_path / "new.json", "--manifest", tmp_path / "hand.json"]
    done = invoke(*words, "--region", text, "--storage", json.dumps(STORAGE.model_dump(mode="json")))
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(voxels(tmp_path / "hand.json"), expected)
