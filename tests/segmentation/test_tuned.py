"""Options that a search chose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline import NEAREST, STORAGE, perfect_affinities, store, voxels
from toy_volumes import cells

from kdseg.config import AgglomerateOptions, EdgesOptions, FragmentsOptions, SegmentOptions
from kdseg.config.segmentation import WatershedOptions
from kdseg.config.tasks import AgglomerateTask, EdgesTask, FragmentsTask, SegmentTask
from kdseg.errors import DataError
from kdseg.results.claims import claim
from kdseg.results.manifests import read
from kdseg.segmentation.agglomeration import stage as agglomerate
from kdseg.segmentation.fragments import stage as fragments
from kdseg.segmentation.graph import stage as edges
from kdseg.segmentation.segments import stage as segments
from kdseg.segmentation.tuned import with_tuned_options

BLOCK = (32, 32, 32)
CHOSEN = {
    "fragments": {"block": BLOCK, "halo": (8, 8, 8), "watershed": {"method": "watershed", "seed_distance": 3}},
    "edges": {"histograms": True, "long_range": False},
    "agglomerate": {"score": "quantile75"},
    "segment": {"threshold": 0.35},
}


def searched(path: Path, chosen: dict[str, Any]) -> Path:
    with claim(path, "tune-segmentation", {}, {}) as held:
        held.stats["chosen"] = {"options": chosen}
    return path


def segmented(folder: Path, source: Path, how: dict[str, dict[str, Any]]) -> np.ndarray[Any, Any]:
    """Run all stages, each with its own options and keywords."""
    made = {name: folder / f"{name}.json" for name in ("affinities", "fragments", "edges", "agglomeration")}
    made["affinities"] = source
    stored = {"storage": STORAGE}
    fragments.run(FragmentsTask(manifest=made["fragments"], affinities=source, **stored, **how["fragments"]))
    named = {name: made[name] for name in ("affinities", "fragments")}
    edges.run(EdgesTask(manifest=made["edges"], **named, **how["edges"]))
    named["edges"] = made["edges"]
    agglomerate.run(AgglomerateTask(manifest=made["agglomeration"], **named, **how["agglomerate"]))
    tree = {name: made[name] for name in ("fragments", "edges", "agglomeration")}
    segments.run(SegmentTask(manifest=folder / "segmentation.json", **tree, **stored, **how["segment"]))
    return voxels(folder / "segmentation.json")


def test_stages_take_what_a_search_chose(tmp_path: Path) -> None:
    clean = perfect_affinities(cells((32, 32, 64), 8)[1]).astype(float)
    noisy = np.clip(0.6 * clean + np.random.default_rng(4).normal(30, 40, clean.shape), 0, 255).astype(np.uint8)
    source = store(tmp_path / "affinities.json", noisy, offsets=[list(offset) for offset in NEAREST])
    search = searched(tmp_path / "tuned.json", CHOSEN)
    tuned: dict[str, dict[str, Any]] = {name: {"tuned": search} for name in CHOSEN}
    tuned["edges"]["options"] = EdgesOptions(block=BLOCK)
    tuned["agglomerate"]["options"] = AgglomerateOptions(chunk=BLOCK)
    tuned["segment"]["options"] = SegmentOptions(block=BLOCK)
    said = {
        "fragments": FragmentsOptions(block=BLOCK, halo=(8, 8, 8), watershed=WatershedOptions(seed_distance=3)),
        "edges": EdgesOptions(block=BLOCK, histograms=True),
        "agglomerate": AgglomerateOptions(chunk=BLOCK, score="quantile75"),
        "segment": SegmentOptions(block=BLOCK, threshold=0.35),
    }
    found = segmented(tmp_path / "tuned", source, tuned)
    expected = segmented(tmp_path / "said", source, {name: {"options": one} for name, one in said.items()})
    np.testing.assert_array_equal(found, expected)
    assert read(tmp_path / "tuned" / "segmentation.json").stats["threshold"] == 0.35
    other = {**said, "fragments": said["fragments"].model_copy(update={"watershed": WatershedOptions()})}
    differs = segmented(tmp_path / "other", source, {name: {"options": one} for name, one in other.items()})
    assert not np.array_equal(found, differs)


def test_only_a_search_is_taken(tmp_path: Path) -> None:
    task = EdgesTask(manifest=tmp_path / "edges.json", fragments=tmp_path / "f.json", options=EdgesOptions(block=BLOCK))
    assert with_tuned_options(task, "edges") is task
    mean = searched(tmp_path / "mean.json", {"segment": {"threshold": 0.5}})
    kept = with_tuned_options(task.model_copy(update={"tuned": mean}), "edges")
    assert kept.options == task.options
    with claim(tmp_path / "edges.json", "edges", {}, {}):
        pass
    with pytest.raises(DataError, match="is a result of `kdseg edges`, expected one of `kdseg tune-segmentation`"):
        with_tuned_options(task.model_copy(update={"tuned": tmp_path / "edges.json"}), "edges")
