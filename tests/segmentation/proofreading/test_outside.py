"""What leaves kdseg for other programs, made by the real stages, against brute force over the voxels."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import invoke
from numpy.typing import NDArray
from pipeline import NEAREST, VOXEL_SIZE, FragmentsOptions, perfect_affinities, run_fragments, run_rest, store, voxels
from toy_volumes import cells

from kdseg.config.segmentation import WatershedOptions
from kdseg.geometry import pair_slices
from kdseg.results.parquet import read_parquet
from kdseg.volumes.inputs import open_input

SHAPE, BLOCK = (20, 40, 36), (32, 32, 32)
Pair = tuple[int, int]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[np.uint8]]:
    """A folder with the results of all stages, four leaves below a root, and the affinities."""
    folder = tmp_path_factory.mktemp("outside")
    clean = perfect_affinities(cells(SHAPE, 12)[1]).astype(float)
    noise = np.random.default_rng(4).normal(30, 40, clean.shape)
    affinities = np.clip(0.6 * clean + noise, 0, 255).astype(np.uint8)
    source = store(folder / "affinities.json", affinities, offsets=[list(offset) for offset in NEAREST])
    options = FragmentsOptions(block=BLOCK, halo=(8, 8, 8), watershed=WatershedOptions(seed_distance=4))
    run_rest(folder, source, run_fragments(folder, source, options), block=BLOCK, chunk=BLOCK)
    return folder, affinities


def touching(ids: NDArray[np.uint64], affinities: NDArray[np.uint8]) -> dict[Pair, list[int]]:
    """Return sum and count of the affinities between touching fragments, by looking at every pair of voxels."""
    found: dict[Pair, list[int]] = defaultdict(lambda: [0, 0])
    for channel, offset in enumerate(NEAREST):
        here, there = pair_slices(SHAPE, offset)
        pairs = zip(ids[here].ravel(), ids[there].ravel(), affinities[channel][here].ravel(), strict=True)
        for a, b, affinity in pairs:
            if a != b and a and b:
                entry = found[int(min(a, b)), int(max(a, b))]
                entry[0] += int(affinity)
                entry[1] += 1
    return found


def merged(graph: dict[Pair, list[int]], threshold: float) -> list[tuple[int, int, int, int]]:
    """Return the merges of one pass over the whole graph, the strongest mean affinity first."""
    graph = {pair: list(row) for pair, row in graph.items()}
    merges = []
    while graph:
        means = {pair: Fraction(*row) for pair, row in graph.items()}
        (a, b), best = max(means.items(), key=lambda item: item[1])
        if best < 255 * (1 - Fraction(threshold).limit_denominator(10**6)):
            break
        assert list(means.values()).count(best) == 1, "the order of equal scores is not defined here"
        merges.append((a, b, *graph.pop((a, b))))
        for u, v in [pair for pair in graph if b in pair]:
            sums, contact = graph.pop((u, v))
            other = u if v == b else v
            entry = graph.setdefault((min(a, other), max(a, other)), [0, 0])
            entry[0] += sums
            entry[1] += contact
    return merges


def rows(table: dict[str, NDArray[Any]], *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(table[name].tolist() for name in names), strict=True))


def test_the_exported_graph_is_that_of_the_voxels(made: tuple[Path, NDArray[np.uint8]]) -> None:
    folder, affinities = made
    names = ("edges", "agglomeration", "fragments")
    options = [part for name in names for part in (f"--{name}", str(folder / f"{name}.json"))]
    done = invoke("graph", *options, str(folder / "out"))
    assert done.exit_code == 0, done.output
    ids = voxels(folder / "fragments.json")
    expected = touching(ids, affinities)
    assert len(expected) > 100
    found = read_parquet(folder / "out" / "region_graph.parquet")
    assert rows(found, "u", "v", "affinity_sum", "contact") == [(*pair, *row) for pair, row in sorted(expected.items())]
    means = [sums / (255 * contact) for _, (sums, contact) in sorted(expected.items())]
    assert found["mean_affinity"].tolist() == pytest.approx(means, rel=1e-12)

    tree = read_parquet(folder / "out" / "merge_tree.parquet")
    merges = merged(expected, 0.9)
    assert len(merges) > 20
    # node by node, so in another order
    assert sorted(rows(tree, "a", "b", "affinity_sum", "contact")) == sorted(merges)
    scores = {(a, b): 1 - sums / (255 * contact) for a, b, sums, contact in merges}
    assert tree["score"].tolist() == pytest.approx([scores[pair] for pair in rows(tree, "a", "b")], abs=1e-12)

    fragments = read_parquet(folder / "out" / "fragments.parquet")
    unique, sizes = np.unique(ids[ids > 0], return_counts=True)
    assert rows(fragments, "fragment", "size") == list(zip(unique.tolist(), sizes.tolist(), strict=True))


def test_segment_properties_are_those_of_the_voxels(made: tuple[Path, NDArray[np.uint8]]) -> None:
    folder, _ = made
    segmentation = folder / "segmentation.json"
    ids = voxels(segmentation)
    unique, sizes = np.unique(ids[ids > 0], return_counts=True)
    least = int(np.sort(sizes)[len(sizes) // 2])
    assert open_input(segmentation).volume.voxel_size == VOXEL_SIZE
    command = ["properties", "--segmentation", str(segmentation), "--least", str(least), str(folder / "properties")]
    done = invoke(*command)
    assert done.exit_code == 0, done.output
    info = json.loads((folder / "properties" / "info").read_text())["inline"]
    expected = unique[sizes >= least].tolist()
    assert 1 < len(expected) < len(unique)
    assert info["ids"] == [str(one) for one in expected]
    values = {one["id"]: one["values"] for one in info["properties"]}
    assert values["size"] == sizes[sizes >= least].tolist()
    for row, one in enumerate(expected):
        places = np.argwhere(ids == one)
        for axis, letter in enumerate("zyx"):
            assert values[f"begin_{letter}"][row] == places[:, axis].min()
            assert values[f"end_{letter}"][row] == places[:, axis].max() + 1
            assert values[f"centroid_{letter}"][row] == pytest.approx(places[:, axis].mean(), rel=1e-6)


def test_properties_of_a_table_that_was_changed_are_refused(
    made: tuple[Path, NDArray[np.uint8]], tmp_path: Path
) -> None:
    for suffix in (".json", ".parquet"):
        shutil.copy((made[0] / "segmentation").with_suffix(suffix), tmp_path)
    (tmp_path / "segmentation.parquet").write_bytes(b"PAR1")
    done = invoke("properties", "--segmentation", str(tmp_path / "segmentation.json"), str(tmp_path / "out"))
    assert done.exit_code == 1
    assert "segmentation.parquet is not the file that `kdseg relabel` left" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_properties_of_an_unfinished_segmentation_are_refused(tmp_path: Path) -> None:
    done = invoke("properties", "--segmentation", str(tmp_path / "s.json"), str(tmp_path / "out"))
    assert done.exit_code == 1
    assert "no manifest at" in done.output
    assert not (tmp_path / "out").exists()
