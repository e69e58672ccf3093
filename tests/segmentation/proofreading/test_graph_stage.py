"""Parquet files for other programs, against sums over hand-made tables."""

from __future__ import annotations

from collections import defaultdict
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from command import invoke
from numpy.typing import NDArray
from workflow import ROOT

from kdseg.config.questions import GraphTask
from kdseg.errors import DataError, MissingError, UnreadableError, VoxelSizeError
from kdseg.geometry import Roi, Slices, Triple, block_number, blocks, grid_shape
from kdseg.results.claims import claim
from kdseg.results.manifests import read
from kdseg.results.parquet import read_notes, read_parquet
from kdseg.results.sealed import read_sealed, write_sealed
from kdseg.results.tables import write_table
from kdseg.segmentation.graph.statistics import block_statistics
from kdseg.segmentation.proofreading import graph
from kdseg.segmentation.proofreading.supervoxels import fragment_ids, pychunkedgraph_ids
from kdseg.volumes.volume import create_volume

SHAPE, BLOCK, TABLES = (8, 12, 9), (4, 4, 4), (8, 6, 5)
VOXEL, OFFSET = (40.0, 8.0, 16.0), (1000.0, -80.0, 0.0)
NAMES = ("region_graph.parquet", "merge_tree.parquet", "fragments.parquet")


class World(NamedTuple):
    folder: Path
    ids: NDArray[np.uint64]
    rows: list[tuple[int, int, int, int]]
    merges: list[tuple[int, int, int, int]]

    @property
    def manifests(self) -> tuple[Path, Path, Path]:
        return self.folder / "edges.json", self.folder / "agglomeration.json", self.folder / "fragments.json"

    @property
    def roles(self) -> dict[str, Path]:
        return dict(zip(("edges", "agglomeration", "fragments"), self.manifests, strict=True))


def random_ids() -> NDArray[np.uint64]:
    rng = np.random.default_rng(1)
    ids = np.zeros(SHAPE, np.uint64)
    for cell in blocks(Roi((0, 0, 0), SHAPE), BLOCK):
        base = block_number(cell.index, grid_shape(SHAPE, BLOCK)) * prod(BLOCK)
        # numbers of a block up to its last one, and background
        local = rng.choice(np.array([0, 1, 2, 3, prod(BLOCK)]), cell.roi.shape)
        ids[cell.roi.slices()] = np.where(local > 0, local + base, 0)
    return ids


def whole(shape: Triple) -> Slices:
    return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])


def write_fragments(folder: Path, ids: NDArray[np.uint64], **changes: Any) -> None:
    place = {"chunk": (4, 4, 4), "shard": (4, 4, 4), "voxel_size": VOXEL, "offset": OFFSET}
    with claim(folder / "fragments.json", "fragments", {"block": BLOCK, **changes}, {}) as held:
        volume = create_volume(held.store, shape=SHAPE, dtype=np.uint64, **place)  # type: ignore[arg-type]
        volume.write(volume.roi, ids)


@pytest.fixture
def world(tmp_path: Path) -> World:
    rng = np.random.default_rng(2)
    ids = random_ids()
    names = np.unique(ids[ids > 0])
    write_fragments(tmp_path, ids)
    rows: list[tuple[int, int, int, int]] = []
    folder = tmp_path / "edges.tables"
    made_of = {"fragments": read(tmp_path / "fragments.json").fingerprint}
    with claim(tmp_path / "edges.json", "edges", {}, made_of, tables=True):
        folder.mkdir()
        for cell in blocks(Roi((0, 0, 0), SHAPE), TABLES):
            pairs = np.sort(np.array([rng.choice(names[:12], 2, replace=False) for _ in range(25)]), axis=1)
            pairs = np.unique(pairs, axis=0)
            contact = rng.integers(0, 3, len(pairs)).astype(np.uint64)
            sums = (contact * rng.integers(0, 256, len(pairs), dtype=np.uint64)).astype(np.uint64)
            edges = {"u": pairs[:, 0], "v": pairs[:, 1], "affinity_sum": sums, "contact": contact}
            statistics = block_statistics(ids[cell.roi.slices()], whole(cell.roi.shape), cell.roi.offset)
            write_table(folder / f"{'_'.join(map(str, cell.index))}.npz", {**edges, **statistics._asdict()})
            rows += zip(*(column.tolist() for column in edges.values()), strict=True)
    merges = write_merges(tmp_path)
    return World(tmp_path, ids, rows, merges)


def write_merges(folder: Path) -> list[tuple[int, int, int, int]]:
    nodes = {
        "0_0_0_2": [(5, 9, 510, 4), (1, 5, 255, 1), (5, 11, 357, 2)],
        "0_0_0_10": [(20, 30, 0, 0)],
        "1_0_0_0": [(1, 20, 0, 7)],
        "10_0_0_0": [(1, 40, 0, 0)],
        "2_0_0_0": [],
    }
    inputs = {"edges": read(folder / "edges.json").fingerprint}
    with claim(folder / "agglomeration.json", "agglomerate", {}, inputs, tables=True):
        (folder / "agglomeration.tables").mkdir()
        for name, rows in nodes.items():
            columns = np.array(rows, np.uint64).reshape(-1, 4).T
            table = dict(zip(("a", "b", "affinity_sum", "contact"), columns, strict=True))
            write_table(folder / "agglomeration.tables" / f"{name}.npz", table)
    return [row for name in ("0_0_0_2", "0_0_0_10", "1_0_0_0", "10_0_0_0") for row in nodes[name]]


def table_rows(path: Path) -> list[tuple[Any, ...]]:
    return list(zip(*(column.tolist() for column in read_parquet(path).values()), strict=True))


def check(world: World, out: Path, spatial_bits: int) -> None:
    sums: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
    for u, v, affinity_sum, contact in world.rows:
        sums[u, v][0] += affinity_sum
        sums[u, v][1] += contact
    expected = [(*pair, s, n, s / (255 * n)) for pair, (s, n) in sorted(sums.items()) if n]
    assert any(n == 0 for _, n in sums.values())
    assert table_rows(out / NAMES[0]) == expected

    scores = [0.5, 0.0, 0.3, 0.0, 1.0, 0.0]  # exactly: users compare them with thresholds
    assert table_rows(out / NAMES[1]) == [(*row, score) for row, score in zip(world.merges, scores, strict=True)]

    found = read_parquet(out / NAMES[2])
    names = np.unique(world.ids[world.ids > 0])
    np.testing.assert_array_equal(found["fragment"], names)
    grid = grid_shape(SHAPE, BLOCK)
    np.testing.assert_array_equal(found["pychunkedgraph"], pychunkedgraph_ids(names, grid, BLOCK, spatial_bits))
    for row, name in enumerate(names):
        places = np.argwhere(world.ids == name)
        assert found["size"][row] == len(places)
        for axis, letter in enumerate("zyx"):
            assert found[f"begin_{letter}"][row] == places[:, axis].min()
            assert found[f"end_{letter}"][row] == places[:, axis].max() + 1
            centre = OFFSET[axis] + places[:, axis].mean() * VOXEL[axis]
            assert found[f"centroid_{letter}"][row] == pytest.approx(centre, rel=1e-12)
    assert sorted(entry.name for entry in out.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("rows", [1, 40, 10**6])
def test_equals_sums_over_all_tables(world: World, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    gathered = graph.gathered
    monkeypatch.setattr(graph, "gathered", lambda *args, **kwargs: gathered(*args, **kwargs, rows=rows))
    graph.run(GraphTask(**world.roles, out=world.folder / "a" / "b", spatial_bits=9))
    check(world, world.folder / "a" / "b", 9)


def test_the_command_writes_files_that_say_what_they_are(world: World) -> None:
    edges, agglomeration, fragments = map(str, world.manifests)
    options = ["--edges", edges, "--agglomeration", agglomeration, "--fragments", fragments]
    out = world.folder / "out"
    done = invoke("graph", *options, str(out))
    assert done.exit_code == 0, done.output
    check(world, out, 2)
    notes = read_notes(out / NAMES[2])
    assert notes["voxel_size_nm"] == list(VOXEL)
    assert notes["offset_nm"] == list(OFFSET)
    assert notes["pychunkedgraph"] == {"grid": [2, 3, 3], "block": list(BLOCK), "spatial_bits": 2}
    assert notes["columns"]["centroid_x"]["unit"] == "nm"
    chunks = notes["pychunkedgraph"]
    found = read_parquet(out / NAMES[2])
    back = fragment_ids(found["pychunkedgraph"], tuple(chunks["grid"]), BLOCK, chunks["spatial_bits"])
    np.testing.assert_array_equal(back, found["fragment"])
    before = [(out / name).read_bytes() for name in NAMES]
    assert invoke("graph", *options, str(out)).exit_code == 0
    assert [(out / name).read_bytes() for name in NAMES] == before


def test_refuses_manifests_of_different_runs(world: World) -> None:
    edges, agglomeration, fragments = world.manifests
    for path, name in ((fragments, "fragments"), (edges, "edges")):
        before = read_sealed(path)
        write_sealed(path, {**before, "fingerprint": "0" * 64})
        with pytest.raises(DataError, match=f"was not made of .*{name}.json"):
            graph.run(
                GraphTask(edges=edges, agglomeration=agglomeration, fragments=fragments, out=world.folder / "out")
            )
        write_sealed(path, before)
    assert not (world.folder / "out").exists()


def test_refuses_ids_of_another_grid(world: World) -> None:
    made = read_sealed(world.manifests[2])
    assert made["options"]["block"] == [4, 4, 4]
    write_sealed(world.manifests[2], {**made, "options": {**made["options"], "block": [2, 2, 2]}})
    with pytest.raises(DataError, match=r"is not among .* blocks"):
        graph.run(GraphTask(**world.roles, out=world.folder / "out"))
    assert {entry.name for entry in (world.folder / "out").iterdir()} <= set(NAMES[:2])


def test_refuses_what_is_gone_or_damaged(world: World) -> None:
    table = world.folder / "edges.tables" / "0_0_0.npz"
    table.write_bytes(table.read_bytes()[:-30])
    with pytest.raises(UnreadableError, match="0_0_0"):
        graph.run(GraphTask(**world.roles, out=world.folder / "out"))
    for path in (world.folder / "edges.tables").iterdir():
        path.unlink()
    with pytest.raises(MissingError, match=r"no tables in .*edges\.tables"):
        graph.run(GraphTask(**world.roles, out=world.folder / "out"))
    world.manifests[1].unlink()
    with pytest.raises(MissingError, match="no manifest"):
        graph.run(GraphTask(**world.roles, out=world.folder / "out"))


def test_refuses_fragments_without_a_voxel_size(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = graph.open_volume(world.folder / "fragments.zarr")
    bare = type(opened)(opened.array, None, opened.offset)
    monkeypatch.setattr(graph, "open_volume", lambda path: bare)
    with pytest.raises(VoxelSizeError, match="no voxel size"):
        graph.run(GraphTask(**world.roles, out=world.folder / "out"))


def test_the_documentation_names_every_column() -> None:
    text = (ROOT / "docs" / "proofreading.md").read_text()
    files = text.split("\n## ")[2]
    assert files.startswith("Parquet")
    for column in (*graph.REGION_GRAPH, *graph.MERGE_TREE, *graph.FRAGMENTS):
        assert f"`{column.name}" in files, column.name
