"""The agglomeration as a stage: any chunk and number of workers, killed at any level, all scores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pipeline import STORAGE, FragmentsOptions, columns_of, dendrogram, perfect_affinities, run_fragments, store, voxels

from kdseg.config import AgglomerateOptions, EdgesOptions, SegmentOptions
from kdseg.config.data import PhantomOptions
from kdseg.config.segmentation import WatershedOptions
from kdseg.config.tasks import AgglomerateTask, EdgesTask, SegmentTask
from kdseg.geometry import Offsets, Roi, Triple
from kdseg.results.manifests import read
from kdseg.results.parquet import read_parquet
from kdseg.segmentation.agglomeration import stage
from kdseg.segmentation.agglomeration.linkage import agglomerate, cut
from kdseg.segmentation.agglomeration.store import Tree
from kdseg.segmentation.graph import stage as edges
from kdseg.segmentation.graph.details import block_details
from kdseg.segmentation.graph.rag import block_edges
from kdseg.segmentation.lut import apply, lut
from kdseg.segmentation.segments import stage as segment
from kdseg.volumes.phantom import phantom_block

SHAPE = (40, 72, 84)
OFFSETS: Offsets = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (-2, 0, 0), (0, -4, 0), (0, 0, -4))
CHUNKS: list[Triple] = [(32, 32, 96), (64, 32, 96), (96, 96, 96)]
SCORES = [("mean", False), ("quantile50", False), ("mean", True), ("quantile20", True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agglomerate")
    labels = phantom_block(PhantomOptions(shape=SHAPE, seed=3), Roi((0, 0, 0), SHAPE))[1]
    clean = perfect_affinities(labels, OFFSETS).astype(float)
    noisy = np.clip(0.7 * clean + np.random.default_rng(0).normal(30, 30, clean.shape), 0, 255).astype(np.uint8)
    affinities = store(path / "affinities.json", noisy, offsets=[list(offset) for offset in OFFSETS])
    options = FragmentsOptions(block=(32, 32, 32), halo=(4, 4, 4), watershed=WatershedOptions(seed_distance=2))
    run_fragments(path, affinities, options)
    edges.run(
        EdgesTask(
            affinities=affinities,
            fragments=path / "fragments.json",
            manifest=path / "edges.json",
            options=EdgesOptions(block=(32, 32, 32)),
        )
    )
    return path


def run(folder: Path, name: str, chunk: Triple, edge: str = "edges", score: str = "mean", workers: int = 1) -> Path:
    """Agglomerate into a folder of its own; return the manifest."""
    roles = {"affinities": "affinities", "fragments": "fragments", "edges": edge}
    inputs = {role: folder / f"{name}.json" for role, name in roles.items()}
    out = folder / name
    out.mkdir(exist_ok=True)
    options = AgglomerateOptions(chunk=chunk, thresholds=(0.2, 0.6), score=score)
    stage.run(AgglomerateTask(**inputs, manifest=out / "agglomeration.json", options=options, workers=workers))
    return out / "agglomeration.json"


@pytest.mark.parametrize(("score", "long_range"), SCORES)
def test_chunks_and_workers_change_nothing(folder: Path, score: str, long_range: bool) -> None:
    ids, affinities = voxels(folder / "fragments.json"), voxels(folder / "affinities.json")
    offsets = OFFSETS if long_range else OFFSETS[:3]
    owned, links = Roi((0, 0, 0), SHAPE).slices(), affinities[: len(offsets)]
    whole = block_edges(ids, links, offsets, owned)
    nearest = block_edges(ids, affinities[:3], OFFSETS[:3], owned)
    details = block_details(ids, links, offsets, owned, whole, nearest, with_histograms=True)
    percent = None if score == "mean" else int(score[-2:])
    expected = agglomerate(whole, 0.6, details=details, percent=percent)._asdict()
    assert len(expected["a"]) > 50

    name = f"{score}-{long_range}"
    options = EdgesOptions(block=(32, 32, 96), histograms=score != "mean", long_range=long_range)
    edges.run(
        EdgesTask(
            affinities=folder / "affinities.json",
            fragments=folder / "fragments.json",
            manifest=folder / f"edges-{name}.json",
            options=options,
            workers=2,
        )
    )
    for workers, chunk in zip((1, 2, 2), CHUNKS, strict=True):
        found = dendrogram(run(folder, f"{name}-{chunk[0]}", chunk, f"edges-{name}", score, workers))
        assert all(np.array_equal(found[column], expected[column]) for column in expected)


def test_the_order_of_channels_changes_nothing(folder: Path) -> None:
    order = [4, 2, 0, 5, 1, 3]
    affinities = voxels(folder / "affinities.json")[order]
    offsets = [list(OFFSETS[c]) for c in order]
    shuffled = store(folder / "shuffled.json", affinities, offsets=offsets)
    for options in (EdgesOptions(), EdgesOptions(histograms=True, long_range=True)):
        found = []
        for name, source in (("ordered", folder / "affinities.json"), ("shuffled", shuffled)):
            manifest = folder / f"edges-{name}-{options.long_range}.json"
            edges.run(
                EdgesTask(affinities=source, fragments=folder / "fragments.json", manifest=manifest, options=options)
            )
            found.append(columns_of(read(manifest).result))
        assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.2, 0.35, 0.6])
def test_neurons_of_a_tree_are_those_of_the_whole(folder: Path, threshold: float) -> None:
    """Look-up tables from the root down, where regions have names of other leaves; thresholds below the largest."""
    ids, affinities = voxels(folder / "fragments.json"), voxels(folder / "affinities.json")
    owned = Roi((0, 0, 0), SHAPE).slices()
    whole = agglomerate(block_edges(ids, affinities[:3], OFFSETS[:3], owned), 0.6)
    names = np.unique(ids[ids > 0])
    expected = apply(ids, names, lut(names, *cut(whole, threshold)))
    made = run(folder, "for-neurons", (32, 32, 32))
    assert Tree(made).layout.levels == 3
    out = folder / f"segmentation-{threshold}.json"
    how = SegmentOptions(block=(32, 64, 96), threshold=threshold)
    segment.run(
        SegmentTask(
            fragments=folder / "fragments.json",
            edges=folder / "edges.json",
            agglomeration=made,
            manifest=out,
            options=how,
            storage=STORAGE,
            workers=2,
        )
    )
    assert np.array_equal(voxels(out), expected)
    table = read_parquet(out.with_suffix(".parquet"))
    segments, sizes = np.unique(expected[expected > 0], return_counts=True)
    assert np.array_equal(table["segment"], segments)
    assert np.array_equal(table["size"], sizes)


KILLED = """
import os, signal, sys
from pathlib import Path
import test_agglomerate_stage as tests
from kdseg.segmentation.agglomeration import stage

level, writes = int(sys.argv[3]), int(sys.argv[4])
write = stage.write_table

def dying(path, columns):
    global writes
    mine = path.name.startswith((f"{level}_", f"rows_{level}_"))
    if mine and writes == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    writes -= mine
    write(path, columns)

stage.write_table = dying
tests.run(Path(sys.argv[1]), sys.argv[2], (32, 32, 32))
"""


@pytest.mark.slow
@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("writes", [0, 1, 3])
def test_killed_at_any_level_it_ends_with_the_same_tables(folder: Path, level: int, writes: int) -> None:
    """Killed before a node's first table, between its two, and between those of the next one."""
    if level == 2 and writes == 3:
        level, writes = 1, 4  # the root has two tables only
    name = f"killed-{level}-{writes}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, str(folder), name, str(level), str(writes)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    assert not (folder / name / "agglomeration.json").exists()
    found, whole = run(folder, name, (32, 32, 32)), run(folder, "whole", (32, 32, 32))
    expected = {path.name: path.read_bytes() for path in read(whole).result.iterdir()}
    assert len({name[0] for name in expected}) == 3, "not three levels"
    assert {path.name: path.read_bytes() for path in read(found).result.iterdir()} == expected
