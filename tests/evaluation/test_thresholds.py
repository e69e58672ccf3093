"""Every threshold from one table, against relabelling it for each, and the stage against relabelling voxels."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import invoke
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pipeline import NEAREST, VOXEL_SIZE, FragmentsOptions, perfect_affinities, run_fragments, run_rest, store, voxels
from toy_volumes import cells

from kdseg.config import EvaluateOptions
from kdseg.config.data import RoiOptions
from kdseg.config.segmentation import WatershedOptions
from kdseg.config.tasks import SweepTask
from kdseg.errors import ConfigError, DataError, ShapeError
from kdseg.evaluation import sweep
from kdseg.evaluation.measures import least_voi, measure
from kdseg.evaluation.metrics.contingency import Contingency, block_contingency, merge, relabel
from kdseg.evaluation.thresholds import tables_at
from kdseg.geometry import Roi, sides
from kdseg.results.manifests import read
from kdseg.segmentation.agglomeration.linkage import Dendrogram, cut
from kdseg.segmentation.agglomeration.store import Tree
from kdseg.segmentation.lut import lut

SHAPE, BLOCK = (20, 40, 36), (32, 32, 32)
IDS = np.array([3, 4, 9, 2**40, 2**63 + 1, 2**63 + 2, 2**64 - 1], np.uint64)
THRESHOLDS = tuple(k / 20 for k in range(1, 20))


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), merges=st.integers(0, 8), labels=st.sampled_from([1, 2, 5]))
def test_equals_relabelling_at_each_threshold(seed: int, merges: int, labels: int) -> None:
    rng = np.random.default_rng(seed)
    fragments = np.append(IDS, np.uint64(0))[rng.integers(0, 8, 60)]
    table = block_contingency(fragments, rng.integers(1, labels + 1, 60))
    ends = IDS[[rng.permutation(7)[:2] for _ in range(merges)]].reshape(-1, 2)
    contact = rng.integers(1, 4, merges).astype(np.uint64)
    tree = Dendrogram(ends.min(1), ends.max(1), rng.integers(0, 255, merges).astype(np.uint64) * contact, contact)
    found = list(tables_at(table, tree, THRESHOLDS))
    assert len(found) == len(THRESHOLDS)
    for threshold, at in zip(THRESHOLDS, found, strict=True):
        expected = relabel(table, IDS, lut(IDS, *cut(tree, threshold)))
        assert all((a == b).all() and a.shape == b.shape for a, b in zip(at, expected, strict=True)), threshold


def two_to_the_information(table: Contingency) -> Fraction:
    """``2 ** (voxels * VOI)``, a rational number: what VOIs of the same voxels are compared by, without logarithms."""
    of_segment, of_label = ({int(i): int(table.count[c == i].sum()) for i in c} for c in (table.segment, table.label))
    product = Fraction(1)
    for segment, label, n in zip(*(column.tolist() for column in table), strict=True):
        product *= Fraction(of_segment[segment] * of_label[label], n * n) ** n
    return product


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), voxels=st.sampled_from([4, 8, 12, 60]), labels=st.sampled_from([1, 2, 4]))
@example(seed=32, voxels=8, labels=4)  # two thresholds tie, the later one is a little better in float64
def test_the_best_threshold_is_the_first_of_those_that_tie(seed: int, voxels: int, labels: int) -> None:
    rng = np.random.default_rng(seed)
    table = block_contingency(IDS[rng.integers(0, 7, voxels)], rng.integers(1, labels + 1, voxels))
    ends = np.sort(IDS[[rng.permutation(7)[:2] for _ in range(6)]], axis=1)
    sums, contact = rng.integers(0, 255, 6).astype(np.uint64), np.ones(6, np.uint64)
    tables = list(tables_at(table, Dendrogram(ends[:, 0], ends[:, 1], sums, contact), THRESHOLDS))
    rows = [{"threshold": threshold, **measure(at)} for threshold, at in zip(THRESHOLDS, tables, strict=True)]
    exact = [two_to_the_information(at) for at in tables]
    assert least_voi(rows)["threshold"] == THRESHOLDS[exact.index(min(exact))]


def test_thresholds_must_ascend() -> None:
    none = np.empty(0, np.uint64)
    with pytest.raises(ConfigError, match="ascend"):
        list(tables_at(Contingency(none, none, none), Dendrogram(none, none, none, none), (0.5, 0.4)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[np.uint64]]:
    """A folder with the results of all stages, four leaves below a root, and the labels."""
    folder = tmp_path_factory.mktemp("sweep")
    labels = cells(SHAPE, 12)[1]
    clean = perfect_affinities(labels).astype(float)
    noise = np.random.default_rng(4).normal(30, 40, clean.shape)
    affinities = np.clip(0.6 * clean + noise, 0, 255).astype(np.uint8)
    source = store(folder / "affinities.json", affinities, offsets=[list(offset) for offset in NEAREST])
    store(folder / "labels.json", labels[:, :, 2:].copy(), offset=(0.0, 0.0, 20.0))
    options = FragmentsOptions(block=BLOCK, halo=(8, 8, 8), watershed=WatershedOptions(seed_distance=4))
    run_rest(folder, source, run_fragments(folder, source, options), block=BLOCK, chunk=BLOCK)
    return folder, labels[:, :, 2:]


def by_voxels(folder: Path, labels: NDArray[np.uint64], threshold: float, kept: NDArray[np.bool_]) -> dict[str, float]:
    """Relabel the voxels, then score those that are kept."""
    fragments = voxels(folder / "fragments.json")[:, :, 2:]
    ids = np.unique(fragments[fragments > 0])
    segments = np.append(Tree(folder / "agglomeration.json").segments(ids, threshold), np.uint64(0))
    relabelled = segments[np.where(fragments > 0, np.searchsorted(ids, fragments), ids.size)]
    return measure(block_contingency(relabelled[kept], labels[kept]))


def test_the_sweep_scores_what_relabelled_voxels_score(made: tuple[Path, NDArray[np.uint64]]) -> None:
    folder, labels = made
    part = Roi((0, 3, 5), (20, 17, 20))
    names = {name: folder / f"{name}.json" for name in ("fragments", "agglomeration", "labels")}
    options = EvaluateOptions(
        volumes=("a",), tune_on="a", models=("a",), block=(8, 16, 16), thresholds=(0.3, 0.55, 0.8)
    )
    section = options.model_copy(update={"tune_roi": RoiOptions(offset=part.offset, shape=part.shape)})
    sweep.run(SweepTask(**names, manifest=folder / "part.json", options=section, part=True, workers=2))
    sweep.run(SweepTask(**names, manifest=folder / "whole.json", options=options))
    inside = np.zeros(labels.shape, np.bool_)
    inside[part.slices()] = True
    for name, kept in (("part", inside), ("whole", inside | True)):
        stats = read(folder / f"{name}.json").stats
        rows = [{"threshold": t, **by_voxels(folder, labels, t, kept)} for t in (0.3, 0.55, 0.8)]
        assert stats["sweep"] == rows
        assert stats["tuned_on"] == list(part.shape if name == "part" else labels.shape)
        assert stats["narrowest"] == min(sides(tuple(stats["tuned_on"]), VOXEL_SIZE))
        assert len({row["voi"] for row in rows}) > 1
        assert stats["best"] == min(rows, key=lambda row: row["voi"])["threshold"]
    flags = [f"--{name}={path}" for name, path in names.items()]
    command = ["sweep", *flags, "--options", section.model_dump_json()]
    for name, flag in (("part", ["--part"]), ("whole", [])):  # done by now: another part would be refused
        done = invoke(*command, *flag, "--manifest", str(folder / f"{name}.json"))
        assert done.exit_code == 0, done.output
    stats = read(folder / "part.json").stats
    best = stats["best"]
    assert stats["rest"] == {"threshold": best, **by_voxels(folder, labels, best, ~inside)}
    assert "rest" not in read(folder / "whole.json").stats


def test_a_threshold_is_reached_where_it_means_the_same_fraction(made: tuple[Path, NDArray[np.uint64]]) -> None:
    tree = Tree(made[0] / "agglomeration.json")
    tree.expect_reached(math.nextafter(0.9, 1))
    with pytest.raises(ConfigError, match=r"it cannot be cut at 0\.90001"):
        tree.expect_reached(0.90001)


def test_what_cannot_be_swept_is_refused(made: tuple[Path, NDArray[np.uint64]]) -> None:
    folder, _ = made
    names = {name: folder / f"{name}.json" for name in ("fragments", "agglomeration", "labels")}
    options = EvaluateOptions(volumes=("a",), tune_on="a", models=("a",), block=BLOCK)

    def swept(name: str, **changes: Any) -> None:
        section = options.model_copy(update=changes)
        sweep.run(SweepTask(**names, manifest=folder / f"{name}.json", options=section, part=True))

    with pytest.raises(ShapeError, match=r"tune_roi \[0:21, 0:5, 0:5\] is not inside of"):
        swept("a", tune_roi=RoiOptions(shape=(21, 5, 5)))
    with pytest.raises(DataError, match="nothing to score"):
        swept("b", tune_roi=RoiOptions(shape=(20, 40, 34)))
    with pytest.raises(ConfigError, match=r"up to a score of 0\.9, it cannot be cut at 0\.95"):
        swept("c", thresholds=(0.95,))


def test_merges_of_some_fragments_are_those_that_decide_about_them(made: tuple[Path, NDArray[np.uint64]]) -> None:
    folder, _ = made
    tree = Tree(folder / "agglomeration.json")
    fragments = voxels(folder / "fragments.json")
    ids = np.unique(fragments[:, :32, :32])  # one leaf
    ids = ids[ids > 0]
    table = Contingency(ids, ids, np.ones_like(ids))
    found = list(tables_at(merge([table]), tree.merges(ids, 0.9), THRESHOLDS[:18]))
    for threshold, at in zip(THRESHOLDS[:18], found, strict=True):
        segments = tree.segments(ids, threshold)
        order = np.lexsort((ids, segments))
        assert (at.segment == segments[order]).all()
        assert (at.label == ids[order]).all()
    assert all(column.size == 0 for column in tree.merges(ids[:0], 0.9))
