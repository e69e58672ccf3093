"""The report of results that the stages themselves made: intervals, and thresholds that were chosen on a part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pipeline import NEAREST, FragmentsOptions, perfect_affinities, run_fragments, run_rest, store, voxels
from report_page import Page, configuration
from toy_volumes import cells

from kdseg.config.segmentation import WatershedOptions
from kdseg.config.tasks import ReportTask, ScoreTask, SweepTask
from kdseg.evaluation import score, sweep
from kdseg.evaluation.measures import measure
from kdseg.evaluation.metrics.contingency import block_contingency
from kdseg.geometry import Roi
from kdseg.report import stage as report
from kdseg.results.manifests import read
from kdseg.segmentation.agglomeration.store import Tree

BLOCK = (32, 32, 32)
PART = Roi((0, 0, 0), (20, 40, 17))
FOLDER = "heavy/tune"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[np.uint64]]:
    """Results of one model on one volume, on whose left part the threshold was chosen, and the report of it."""
    results = tmp_path_factory.mktemp("results")
    folder = results / FOLDER
    folder.mkdir(parents=True)
    labels = cells((20, 40, 36), 12)[1]
    clean = perfect_affinities(labels).astype(float)
    noise = np.random.default_rng(4).normal(30, 40, clean.shape)
    affinities = np.clip(0.6 * clean + noise, 0, 255).astype(np.uint8)
    source = store(folder / "affinities.json", affinities, offsets=[list(offset) for offset in NEAREST])
    options = FragmentsOptions(block=BLOCK, halo=(8, 8, 8), watershed=WatershedOptions(seed_distance=4))
    run_rest(folder, source, run_fragments(folder, source, options), block=BLOCK, chunk=BLOCK)
    truth = results / "volumes" / "tune" / "labels.json"
    truth.parent.mkdir(parents=True)
    store(truth, labels)
    config = configuration(
        results,
        evaluate={
            "volumes": ["tune"],
            "tune_on": "tune",
            "models": ["heavy"],
            "block": (16, 16, 16),
            "bootstrap": 50,
            "tune_roi": {"offset": PART.offset, "shape": PART.shape},
        },
    )
    sweep.run(
        SweepTask(
            fragments=folder / "fragments.json",
            agglomeration=folder / "agglomeration.json",
            labels=truth,
            manifest=folder / "sweep.json",
            options=config.evaluate,
            part=True,
        )
    )
    score.run(
        ScoreTask(
            segmentation=folder / "segmentation.json",
            labels=truth,
            manifest=folder / "scores.json",
            options=config.evaluate,
            sweep=folder / "sweep.json",
            model="heavy",
            volume="tune",
        )
    )
    report.run(ReportTask(config=config, out=results / "report.html"))
    return results, labels


def test_intervals_stand_beside_the_scores(made: tuple[Path, NDArray[np.uint64]]) -> None:
    results, _ = made
    stats = read(results / FOLDER / "scores.json").stats
    cells = Page((results / "report.html").read_text()).cells
    for name in ("voi_split", "voi_merge", "voi", "arand", "arand_precision", "arand_recall"):
        low, high = stats["intervals"][name]
        assert low < high
        text = f"{stats['scores'][name]:.3f} {low:.3f} to {high:.3f}"
        assert cells["heavy", "tune", name] == text
    line = (results / "report.txt").read_text().split("\n\n")[1].splitlines()[1]
    low, high = stats["intervals"]["arand"]
    assert f"{stats['scores']['arand']:.3f} ({low:.3f} to {high:.3f})" in line
    assert json.loads((results / "summary.json").read_text())["rows"][0]["intervals"] == stats["intervals"]


def test_the_part_and_the_rest_are_shown(made: tuple[Path, NDArray[np.uint64]]) -> None:
    results, labels = made
    stats = read(results / FOLDER / "sweep.json").stats
    page = Page((results / "report.html").read_text())
    expected = of_part_and_rest(results, labels, stats["best"])
    summary = json.loads((results / "summary.json").read_text())["tuned"]
    text = (results / "report.txt").read_text().split("chosen on a part\n")[1].splitlines()[1:]
    assert [row["volume"] for row in summary] == ["tune: the part", "tune: the rest"]
    for row, line, scores in zip(summary, text, expected, strict=True):
        assert {name: row[name] for name in scores} == pytest.approx(scores, abs=1e-12)
        assert row["threshold"] == stats["best"]
        for name, value in scores.items():
            assert page.cells["heavy", row["volume"], name] == f"{value:.3f}"
        assert line.split()[:2] == ["heavy", "teacher"]
        assert [f"{value:.3f}" for value in scores.values()] == line.split()[-7:-1]
    assert "20 × 40 × 17 voxels from 0, 0, 0" in (results / "report.html").read_text()


def of_part_and_rest(results: Path, labels: NDArray[np.uint64], threshold: float) -> list[dict[str, float]]:
    """Score the voxels of the part, and all others, of the fragments relabelled at a threshold."""
    fragments = voxels(results / FOLDER / "fragments.json")
    ids = np.unique(fragments[fragments > 0])
    segments = np.append(Tree(results / FOLDER / "agglomeration.json").segments(ids, threshold), np.uint64(0))
    relabelled = segments[np.where(fragments > 0, np.searchsorted(ids, fragments), ids.size)]
    inside = np.zeros(labels.shape, np.bool_)
    inside[PART.slices()] = True
    return [measure(block_contingency(relabelled[kept], labels[kept])) for kept in (inside, ~inside)]


def test_a_part_s_least_voi_is_not_the_volume_s(made: tuple[Path, NDArray[np.uint64]]) -> None:
    results, _ = made
    assert read(results / FOLDER / "scores.json").stats["best_possible"] is None
    whole = (results / "report.html").read_text()
    assert "tune (dots: the part that thresholds were chosen on)" in whole


def test_voi_over_thresholds_is_that_of_the_sweep(made: tuple[Path, NDArray[np.uint64]]) -> None:
    results, _ = made
    stats: dict[str, Any] = read(results / FOLDER / "sweep.json").stats
    specs = {spec["description"]: spec for spec in Page((results / "report.html").read_text()).specs}
    for name, title in (("voi", "VOI sum"), ("voi_split", "VOI split"), ("voi_merge", "VOI merge")):
        best = next(row[name] for row in stats["sweep"] if row["threshold"] == stats["best"])
        wanted = f"{title} over thresholds on tune. Used: heavy at threshold {stats['best']:g}: {best:.3f} bits."
        (drawn,) = specs[wanted]["datasets"].values()
        values = [(row["threshold"], row[name]) for row in stats["sweep"]]
        assert len(values) > 2
        found = [(row["threshold"], row["value"]) for row in drawn if not row["used"]]
        np.testing.assert_allclose(found, values, rtol=1e-5)
        assert [row["threshold"] for row in drawn if row["used"]] == [stats["best"]]
