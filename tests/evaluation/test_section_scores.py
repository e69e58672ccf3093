"""Scores of stacks of images: each section as if it were alone, in any block, and what all of them are together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pipeline import FragmentsOptions, perfect_affinities, run_fragments, run_rest, store, voxels
from toy_volumes import cells

from kdseg.config import EvaluateOptions, StorageOptions
from kdseg.config.tasks import ScoreTask, SweepTask
from kdseg.evaluation import score, sweep
from kdseg.evaluation.candidates import Candidate
from kdseg.evaluation.landscape import SCORES, Part, score_candidates
from kdseg.evaluation.measures import instances, measure
from kdseg.evaluation.metrics.contingency import block_contingency, by_section
from kdseg.results.manifests import read

SHAPE = (4, 20, 18)
INSTANCES = {"pq", "sq", "rq", "ap_50", "ap", "sbd", "count_difference", "aji"}


def stack(seed: int) -> NDArray[np.uint64]:
    """Return cells that are numbered from 1 in each section, in a background of 0."""
    found = np.stack([cells((1, *SHAPE[1:]), 7, seed=10 * seed + z)[1][0] for z in range(SHAPE[0])])
    found[:, :, :4] = 0
    return found


def run(folder: Path, segments: NDArray[Any], labels: NDArray[Any], block: int = 32, **options: Any) -> Any:
    folder.mkdir()
    segmentation = store(folder / "segmentation.json", segments)
    truth = store(folder / "labels.json", labels, background=options.pop("background", "boundary"))
    how = EvaluateOptions(volumes=("a",), models=("a",), block=(block, 16, 32), **options)
    task = {"segmentation": segmentation, "labels": truth, "options": how, "model": "a", "volume": "a"}
    score.run(ScoreTask(manifest=folder / "scores.json", sections=True, **task))
    return read(folder / "scores.json").stats


def alone(segments: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """Return the numbers of one section, by brute force."""
    return {
        **measure(block_contingency(segments, labels, ignore_label=0)),
        **instances(block_contingency(segments, labels, ignore_label=None)),
    }


def test_each_section_is_scored_as_if_it_were_alone(tmp_path):
    labels, segments = stack(0), stack(1)
    segments[1] = labels[1]
    deep = run(tmp_path / "deep", segments, labels)
    thin = run(tmp_path / "thin", segments, labels, block=1)
    assert deep["sections"] == thin["sections"]
    assert deep["scores"] == thin["scores"]
    found = deep["sections"]
    expected = [alone(segments[z], labels[z]) for z in range(SHAPE[0])]
    assert found["count"] == 4
    for z, one in enumerate(expected):
        assert found["each"][str(z)] == pytest.approx(one, abs=1e-12)
    assert found["mean"] == pytest.approx({name: np.mean([one[name] for one in expected]) for name in expected[0]})
    assert found["mean"].keys() >= INSTANCES
    assert found["each"]["1"]["ap"] == 1
    weights = (labels > 0).sum((1, 2))
    for name in ("voi", "voi_split", "voi_merge"):
        mean = np.average([one[name] for one in expected], weights=weights)
        assert deep["scores"][name] == pytest.approx(mean, abs=1e-12)
    assert deep["labels"] == sum(len(np.unique(section)) - 1 for section in labels)


def test_what_nobody_looked_at_counts_nowhere(tmp_path):
    labels, segments = stack(0), stack(1)
    labels[2] = 0
    found = run(tmp_path / "unknown", segments, labels, background="unknown")["sections"]
    assert found["count"] == 3
    assert "2" not in found["each"]
    table = block_contingency(segments[0], labels[0], ignore_label=0)
    assert found["each"]["0"]["aji"] == pytest.approx(instances(table)["aji"])
    known = run(tmp_path / "boundary", segments, labels)["sections"]
    assert known["each"]["2"].keys() == INSTANCES  # false positives, and no label to compare with
    assert known["each"]["2"]["ap"] == 0
    assert known["mean"]["voi"] == pytest.approx(np.mean([known["each"][z]["voi"] for z in "013"]))


def test_intervals_are_of_what_has_labels(tmp_path):
    labels, segments = stack(0), stack(1)
    found = run(tmp_path / "a", segments, labels, block=1, bootstrap=50)
    low, high = found["intervals"]["voi"]
    assert low < found["scores"]["voi"] < high
    unknown = run(tmp_path / "b", segments, labels, block=1, bootstrap=50, background="unknown")
    assert unknown["intervals"] == found["intervals"]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 99), most=st.integers(0, 5))
def test_ids_of_sections_are_their_own(seed, most):
    labels = np.random.default_rng(seed).integers(0, most + 1, (3, 4, 5))
    found = by_section(labels)
    pairs = {(z, int(one)): set() for z in range(3) for one in np.unique(labels[z])}
    for z, y, x in np.ndindex(labels.shape):
        pairs[z, int(labels[z, y, x])].add(int(found[z, y, x]))
    assert all(len(ids) == 1 for ids in pairs.values())
    objects = [ids.pop() for (_, one), ids in sorted(pairs.items()) if one]
    assert objects == list(range(1, len(objects) + 1))
    assert ((found == 0) == (labels == 0)).all()


def test_the_sweep_takes_equal_labels_of_two_sections_for_two_objects(tmp_path):
    flat = ((0, -1, 0), (0, 0, -1))
    labels = stack(3)
    rng = np.random.default_rng(0)
    clean = perfect_affinities(labels, flat).astype(float)
    noisy = np.clip(0.7 * clean + rng.normal(30, 40, clean.shape), 0, 255).astype(np.uint8)
    source = store(tmp_path / "affinities.json", noisy, offsets=[list(offset) for offset in flat])
    truth = store(tmp_path / "labels.json", labels, background="boundary")
    # of several blocks per section, so that ids do not ascend from section to section
    storage = StorageOptions(chunk=(4, 16, 16), shard=(4, 16, 16))
    fragment = run_fragments(tmp_path, source, FragmentsOptions(block=(4, 16, 16), dust=10), storage=storage)
    run_rest(tmp_path, source, fragment, block=(32, 32, 32), threshold=0.5, storage=storage)
    how = EvaluateOptions(volumes=("a",), tune_on="a", models=("a",), block=(32, 16, 32))
    inputs = {"fragments": fragment, "agglomeration": tmp_path / "agglomeration.json", "labels": truth}
    sweep.run(SweepTask(manifest=tmp_path / "sweep.json", options=how, sections=True, **inputs))
    stats = read(tmp_path / "sweep.json").stats
    row = next(row for row in stats["sweep"] if row["threshold"] == 0.5)
    assert stats["narrowest"] == min(labels.shape[1:]) > labels.shape[0]  # of a section, not of their number
    segments = voxels(tmp_path / "segmentation.json")
    assert all((section[labels[z] > 0] == 0).any() for z, section in enumerate(segments))  # of its own in each section
    expected = measure(block_contingency(by_section(segments + np.uint64(1)), by_section(labels), ignore_label=0))
    assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert measure(block_contingency(segments, labels, ignore_label=0)) != expected


def test_options_are_tuned_by_what_each_section_is_alone():
    flat, labels = ((0, -1, 0), (0, 0, -1)), stack(3)
    rng = np.random.default_rng(0)
    clean = perfect_affinities(labels, flat).astype(float)
    noisy = np.clip(0.7 * clean + rng.normal(30, 40, clean.shape), 0, 255).astype(np.uint8)
    tried = [Candidate(FragmentsOptions(block=(32, 32, 32), dust=dust), "mean") for dust in (0, 30)]

    def voi(part: slice) -> NDArray[np.float64]:
        one = Part(np.ascontiguousarray(noisy[:, part]), flat, labels[part], None, (10.0, 10.0, 10.0))
        return score_candidates(one, tried, (0.3, 0.6), long_range=False, dust=0)[..., SCORES.index("voi")]

    alone = [voi(slice(z, z + 1)) for z in range(SHAPE[0])]
    weights = (labels > 0).sum((1, 2))
    np.testing.assert_allclose(voi(slice(None)), np.average(alone, axis=0, weights=weights), atol=1e-9)
