"""Post-processing options by search: candidates against the stages run on their part, the choice, kills, bad input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pipeline
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pipeline import STORAGE, store
from pydantic import ValidationError
from toy_volumes import cells

from kdseg.config import AgglomerateOptions, EdgesOptions, EvaluateOptions, FragmentsOptions, TuneSegmentationOptions
from kdseg.config.segmentation import MutexOptions, WatershedOptions
from kdseg.config.tasks import AgglomerateTask, EdgesTask, FragmentsTask, SweepTask, TunedVolume, TuneSegmentationTask
from kdseg.errors import ClaimError, ConfigError, DataError, KdsegError, ShapeError
from kdseg.evaluation import sweep, tune_segmentation
from kdseg.evaluation.candidates import Candidate, as_options, as_yaml, candidates, groups
from kdseg.evaluation.landscape import SCORES, Part, choose, score_candidates
from kdseg.evaluation.metrics.contingency import block_contingency, drop_small_labels
from kdseg.evaluation.metrics.scores import scores
from kdseg.geometry import Roi, blocks, grid_shape, pair_slices
from kdseg.results.manifests import read
from kdseg.results.parquet import read_notes, read_parquet
from kdseg.segmentation.agglomeration import stage as agglomerate_stage
from kdseg.segmentation.agglomeration.linkage import agglomerate, cut
from kdseg.segmentation.fragments import stage as fragments_stage
from kdseg.segmentation.fragments.block import cell_fragments, channels_used, halo_roi, unique_ids
from kdseg.segmentation.graph import details
from kdseg.segmentation.graph import stage as edges_stage
from kdseg.segmentation.graph.details import detailed_edges
from kdseg.segmentation.lut import apply, lut

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, -3))
SIZE = (10.0, 10.0, 10.0)
SHAPE = (20, 40, 36)
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


def noisy(shape: tuple[int, int, int], seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
    """Return affinities of cells, blurred and with noise, and the labels."""
    rng = np.random.default_rng(seed)
    _, labels = cells(shape, 12, seed)
    affinities = np.zeros((len(OFFSETS), *shape), np.uint8)
    for c, offset in enumerate(OFFSETS):
        here, there = pair_slices(shape, offset)
        affinities[(c, *here)] = np.where(labels[here] == labels[there], 215, 60)
    return (affinities + rng.normal(0, 45, affinities.shape)).clip(0, 255).astype(np.uint8), labels


def search(**changes: Any) -> TuneSegmentationOptions:
    values = {"regions": [{"volume": "a"}], "thresholds": THRESHOLDS, "least_side": 8, **changes}
    return TuneSegmentationOptions.model_validate(values)


def by_voxel(
    part: Part, one: Candidate, thresholds: tuple[float, ...], *, long_range: bool, dust: int
) -> list[list[float]]:
    """Return the scores of a candidate, with everything counted from its own voxels, as the stages do."""
    options, volume = one.fragments, Roi((0, 0, 0), part.labels.shape)
    used = channels_used(options, part.offsets)
    ids = np.empty(volume.shape, np.uint64)
    for block in blocks(volume, options.block):
        read_roi = halo_roi(options, block.roi, volume)
        here, core = read_roi.slices(), block.roi.slices(read_roi)
        links = np.ascontiguousarray(part.affinities[(slice(None), *here)][used])
        offsets, tissue = tuple(part.offsets[c] for c in used), None if part.tissue is None else part.tissue[here]
        pieces = cell_fragments(links, offsets, options, core, tissue, part.voxel_size)
        ids[block.roi.slices()] = unique_ids(
            pieces, block.index, grid_shape(volume.shape, options.block), options.block
        )
    how = EdgesOptions(long_range=long_range, histograms=True)
    channels = details.channels_used(part.offsets, how)
    offsets = tuple(part.offsets[c] for c in channels)
    edges, more = detailed_edges(ids, part.affinities[channels], offsets, volume.slices(), how)
    merges = agglomerate(edges, 1.0, details=more, percent=one.percent)
    every, out = np.unique(ids[ids > 0]), []
    for threshold in (None, *thresholds):
        joined = ids if threshold is None else apply(ids, every, lut(every, *cut(merges, threshold)))
        found = scores(drop_small_labels(block_contingency(joined, part.labels), dust))
        out.append([getattr(found, name) for name in SCORES])
    return out


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(4, 14)] * 3),
    watershed=st.fixed_dictionaries(
        {
            "boundary": st.sampled_from([0.2, 0.5, 0.8]),
            "seeds": st.sampled_from(["distance", "maxima"]),
            "per_section": st.booleans(),
        }
    ),
    distances=st.sets(st.integers(1, 7), min_size=1, max_size=3),
    filters=st.sampled_from([{"dust": [0]}, {"dust": [5, 2]}, {"least_mean": [0.5, 0.7], "dust": [0, 3]}]),
    scoring=st.sampled_from([["mean"], ["quantile0", "mean"], ["quantile50"], ["quantile90"]]),
    block=st.sampled_from([(6, 7, 8), (14, 14, 14)]),
    long_range=st.booleans(),
)
def test_a_candidate_scores_as_its_voxels(
    seed: int,
    shape: tuple[int, int, int],
    watershed: dict[str, Any],
    distances: set[int],
    filters: dict[str, Any],
    scoring: list[str],
    block: tuple[int, int, int],
    long_range: bool,
) -> None:
    affinities, labels = noisy(shape, seed)
    rng = np.random.default_rng(seed)
    labels[rng.random(shape) < 0.2] = 0
    labels[0, 0, 0] = 1
    options = search(seed_distance=sorted(distances), score=scoring, **filters)
    configured = FragmentsOptions(block=block, halo=(2, 3, 2), watershed=WatershedOptions(**watershed))
    tried = candidates(options, configured, AgglomerateOptions())
    part = Part(affinities, OFFSETS, labels, rng.random(shape) < 0.97, (20.0, 10.0, 10.0))
    (group,) = groups(tried)
    found = score_candidates(part, [tried[k] for k in group], THRESHOLDS, long_range=long_range, dust=1)
    for k, rows in zip(group, found, strict=True):
        assert rows.tolist() == by_voxel(part, tried[k], THRESHOLDS, long_range=long_range, dust=1)


@pytest.mark.parametrize("watershed", [MutexOptions(), WatershedOptions()], ids=lambda one: one.method)
def test_other_methods_and_merged_fragments_have_grains_of_their_own(watershed: Any) -> None:
    affinities, labels = noisy((12, 16, 16), 4)
    premerge = 0.3 if watershed.method == "watershed" else None
    configured = FragmentsOptions(block=(8, 16, 16), halo=(2, 2, 2), watershed=watershed, premerge=premerge)
    lists = {"dust": [0, 4], **({"seed_distance": [2, 5]} if premerge else {})}
    tried = candidates(search(**lists), configured, AgglomerateOptions())
    part = Part(affinities, OFFSETS, labels, None, SIZE)
    assert len(groups(tried)) == (2 if premerge else 1)
    for group in groups(tried):
        found = score_candidates(part, [tried[k] for k in group], THRESHOLDS, long_range=False, dust=0)
        for k, rows in zip(group, found, strict=True):
            assert rows.tolist() == by_voxel(part, tried[k], THRESHOLDS, long_range=False, dust=0)


@pytest.fixture
def volumes(tmp_path: Path) -> dict[str, TunedVolume]:
    """Two labelled volumes; the labels of the second lie inside of its affinities, which have a mask."""
    found = {}
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        affinities, labels = noisy(SHAPE, seed)
        inner = labels[2:] if name == "b" else labels
        mask = np.ones(SHAPE, np.uint8)
        mask[:, :6] = 0
        found[name] = TunedVolume(
            affinities=store(tmp_path / name / "affinities.json", affinities, offsets=OFFSETS),
            labels=store(tmp_path / name / "labels.json", inner, offset=(20.0 if name == "b" else 0.0, 0.0, 0.0)),
            mask=store(tmp_path / name / "mask.json", mask) if name == "b" else None,
        )
    return found


def task(volumes: dict[str, TunedVolume], folder: Path, **changes: Any) -> TuneSegmentationTask:
    fields = {"options": search(), "fragments": FragmentsOptions(block=(32, 32, 32), halo=(8, 8, 8)), **changes}
    return TuneSegmentationTask(manifest=folder / "tuned.json", volumes=volumes, **fields)


def staged(
    folder: Path, volume: TunedVolume, one: Candidate, *, long_range: bool, dust: int
) -> tuple[list[dict[str, float]], Path]:
    """Return the sweep of the stages."""
    folder.mkdir()
    fragment, edge, tree, swept = (folder / f"{name}.json" for name in ("fragments", "edges", "tree", "sweep"))
    affinities = volume.affinities
    fragments_stage.run(
        FragmentsTask(
            affinities=affinities, mask=volume.mask, manifest=fragment, options=one.fragments, storage=STORAGE
        )
    )
    histograms = one.percent is not None
    how = EdgesOptions(block=(32, 32, 32), histograms=histograms, long_range=long_range)
    edges_stage.run(EdgesTask(affinities=affinities, fragments=fragment, manifest=edge, options=how))
    merging = AgglomerateOptions(score=one.score, thresholds=THRESHOLDS, chunk=(64, 64, 64))
    agglomerate_stage.run(AgglomerateTask(fragments=fragment, edges=edge, manifest=tree, options=merging))
    scoring = EvaluateOptions(volumes=("a",), tune_on="a", models=("a",), dust=dust)
    sweep.run(SweepTask(fragments=fragment, agglomeration=tree, labels=volume.labels, manifest=swept, options=scoring))
    return list(read(swept).stat("sweep")), swept


@pytest.mark.slow
@pytest.mark.parametrize("long_range", [False, True])
def test_candidates_score_as_the_stages_on_the_whole_volume(
    volumes: dict[str, TunedVolume], tmp_path: Path, long_range: bool
) -> None:
    options = search(
        regions=[{"volume": "a"}], seeds=["maxima"], dust=[0, 30], least_mean=[0.0, 0.4], score=["mean", "quantile25"]
    )
    made = task(volumes, tmp_path, options=options, edges=EdgesOptions(long_range=long_range), dust=40)
    tune_segmentation.run(made)
    table = read_parquet(tmp_path / "tuned.parquet")
    tried = candidates(options, made.fragments, made.agglomerate)
    assert len(tried) == 9  # the configuration has other seeds
    for k in (0, 1, 4, 8):
        rows, _ = staged(tmp_path / str(k), volumes["a"], tried[k], long_range=long_range, dust=40)
        mine = (table["candidate"] == k) & ~np.isnan(table["threshold"])
        for name in SCORES:
            assert table[name][mine].tolist() == [row[name] for row in rows], (k, name)


def test_labels_and_mask_of_a_part_are_placed(volumes: dict[str, TunedVolume], tmp_path: Path) -> None:
    made = task(volumes, tmp_path, options=search(regions=[{"volume": "b"}]))
    tune_segmentation.run(made)
    (facts,) = read_notes(tmp_path / "tuned.parquet")["parts"]
    assert facts == {"volume": "b", "offset": [2, 0, 0], "shape": [18, 40, 36]}
    # the same part, cut out by hand
    affinities, labels = noisy(SHAPE, 2)
    tissue = np.ones(SHAPE, np.bool_)
    tissue[:, :6] = False
    part = Part(affinities[:, 2:], OFFSETS, labels[2:], tissue[2:], SIZE)
    tried = candidates(made.options, made.fragments, made.agglomerate)
    expected = score_candidates(part, tried, THRESHOLDS, long_range=False, dust=0)
    assert (
        read_parquet(tmp_path / "tuned.parquet")["voi"].tolist() == expected[..., SCORES.index("voi")].ravel().tolist()
    )


def test_parts_lie_where_they_are_said_to(volumes: dict[str, TunedVolume], tmp_path: Path) -> None:
    parts = [
        {"volume": "b", "shape": [10, 60, 20]},
        {"volume": "b", "offset": [1, 2, 3], "shape": [12, 20, 20]},
    ]
    tune_segmentation.run(task(volumes, tmp_path, options=search(regions=parts)))
    assert read_notes(tmp_path / "tuned.parquet")["parts"] == [
        {"volume": "b", "offset": [6, 0, 8], "shape": [10, 40, 20]},
        {"volume": "b", "offset": [3, 2, 3], "shape": [12, 20, 20]},
    ]


SEARCHED = {
    "regions": [{"volume": "a"}, {"volume": "b"}],
    "boundary": [0.3, 0.4, 0.5, 0.6, 0.7, 0.8],
    "seed_distance": [3, 5],
    "score": ["mean", "quantile50"],
}


def outcome(folder: Path) -> tuple[bytes, dict[str, Any]]:
    stats = dict(read(folder / "tuned.json").stats)
    for name in ("seconds", "cpu_s", "peak_mb"):
        del stats[name]
    return (folder / "tuned.parquet").read_bytes(), stats


def test_the_number_of_workers_changes_nothing(volumes: dict[str, TunedVolume], tmp_path: Path) -> None:
    for workers in (1, 2):
        tune_segmentation.run(task(volumes, tmp_path / str(workers), options=search(**SEARCHED), workers=workers))
    assert outcome(tmp_path / "1") == outcome(tmp_path / "2")


@pytest.mark.slow
def test_a_killed_search_goes_on_to_the_same_bytes(volumes: dict[str, TunedVolume], tmp_path: Path) -> None:
    tune_segmentation.run(task(volumes, tmp_path / "whole", options=search(**SEARCHED)))
    killed = task(volumes, tmp_path / "killed", options=search(**SEARCHED))
    command = [sys.executable, "-m", "kdseg", "tune-segmentation", "--task", killed.model_dump_json()]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    done = tmp_path / "killed" / ".tuned" / "1x1x1" / "tune-segmentation.txt"
    while process.poll() is None and not (done.exists() and done.read_text().count("\n") >= 2):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in done.parent.glob("*.npz")}
    assert 2 <= len(kept) < 12
    finished = done.read_text().splitlines()
    tune_segmentation.run(killed)
    for line in finished:
        path = done.parent / f"{'_'.join(line.split()[:3])}.npz"
        assert path.stat().st_mtime_ns == kept[path]
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "killed")


def test_the_manifest_says_what_to_write_into_the_configuration(
    volumes: dict[str, TunedVolume], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        tune_segmentation.run(task(volumes, tmp_path, options=search(**SEARCHED)))
    stats = read(tmp_path / "tuned.json").stats
    chosen, own = stats["chosen"], stats["configured"]
    table = read_parquet(tmp_path / "tuned.parquet")
    merged = ~np.isnan(table["threshold"])
    voi = table["voi"][merged].reshape(2, stats["candidates"], len(THRESHOLDS)).mean(axis=0)
    assert chosen["voi"] == voi.min() == voi[chosen["candidate"], THRESHOLDS.index(chosen["threshold"])]
    assert own["candidate"] == 0
    assert own["voi"] == voi[0].min() > chosen["voi"]
    assert stats["gain"] == own["voi"] - chosen["voi"]
    assert [part["volume"] for part in chosen["parts"]] == ["a", "b"]
    assert np.mean([part["voi"] for part in chosen["parts"]]) == chosen["voi"]
    assert all(part["fragments"]["voi_merge"] <= part["voi_merge"] for part in chosen["parts"])
    assert yaml.safe_load(stats["configuration"]) == chosen["options"]
    assert stats["configuration"] in caplog.text


def test_yaml_is_the_candidate() -> None:
    one = Candidate(FragmentsOptions(dust=7, watershed=WatershedOptions(boundary=0.3, seeds="maxima")), "quantile50")
    sections = yaml.safe_load(as_yaml(as_options(one, 0.46, long_range=True)))
    assert FragmentsOptions.model_validate(sections["fragments"]) == one.fragments
    assert sections["agglomerate"] == {"score": "quantile50"}
    assert sections["edges"] == {"histograms": True, "long_range": True}
    assert sections["segment"] == {"threshold": 0.46}
    plain = Candidate(FragmentsOptions(), "mean")
    assert "edges" not in as_options(plain, 0.5, long_range=False)
    assert as_options(plain, 0.5, long_range=True)["edges"] == {"histograms": False, "long_range": True}


def test_the_choice_by_the_mean_and_by_the_worst_part() -> None:
    voi = np.array([[[3.0, 2.0], [1.0, 4.0]], [[3.0, 2.5], [3.2, 4.0]]])
    landscape = np.stack([np.zeros_like(voi), np.zeros_like(voi), voi, np.zeros_like(voi)], axis=-1)
    assert choose(landscape, "mean") == (1, 0, 2.1)
    assert choose(landscape, "worst") == (0, 1, 2.5)
    voi[:] = 1.0
    voi[0, 1, 1] -= 1e-12  # rounding
    assert choose(np.stack([voi] * 4, axis=-1), "mean")[:2] == (0, 0)


def test_few_combinations_are_all_tried_and_many_are_drawn() -> None:
    lists = {
        "boundary": [0.3, 0.4, 0.5, 0.6],
        "seed_distance": [3, 5, 7],
        "dust": [0, 9],
        "score": ["mean", "quantile50"],
    }
    base = (FragmentsOptions(), AgglomerateOptions())
    whole = candidates(search(**lists, candidates=48), *base)
    assert len(whole) == len({one.fragments.model_dump_json() + one.score for one in whole}) == 48
    assert whole[0] == Candidate(*base[:1], "mean")
    assert sorted(map(len, groups(whole))) == [12] * 4  # one flooding for each boundary
    assert [whole[group[0]].fragments.watershed.boundary for group in groups(whole)] == [0.6, 0.5, 0.4, 0.3]
    some = candidates(search(**lists, candidates=20), *base)
    assert set(map(str, some)) <= set(map(str, whole))
    assert len(some) in (20, 21)  # five watersheds, and the configuration if it is not among them
    assert some == candidates(search(**lists, candidates=20), *base)
    assert some != candidates(search(**lists, candidates=20, seed=1), *base)
    assert len(candidates(search(), *base)) == 1


def test_thresholds_reach_as_far_as_the_dendrogram() -> None:
    short = AgglomerateOptions(thresholds=(0.3, 0.5))
    assert search(thresholds=None).tried_thresholds(short) == tuple(k / 50 for k in range(1, 26))
    assert search().tried_thresholds(short) == THRESHOLDS
    with pytest.raises(ValueError, match=r"reaches to the last of agglomerate.thresholds, 0.5"):
        search().expect_possible(FragmentsOptions(), short)


BAD: dict[str, tuple[dict[str, Any], type[KdsegError], str]] = {
    "an unknown volume": ({"regions": [{"volume": "c"}]}, ConfigError, r"no manifests of the volume 'c'.*\['a', 'b'\]"),
    "a thin strip": ({"least_side": 50}, DataError, "'a' is too small to tune on: labels reach over 20 voxels along z"),
    "a part outside": (
        {"regions": [{"volume": "b", "offset": [0, 0, 0], "shape": [19, 9, 9]}]},
        ShapeError,
        r"'b' is not inside of the \(18, 40, 36\) voxels",
    ),
    "all labels too small": ({}, DataError, "no label of 100000 voxels or more"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_parts_are_refused(volumes: dict[str, TunedVolume], tmp_path: Path, case: str) -> None:
    changes, kind, message = BAD[case]
    dust = 100000 if case == "all labels too small" else 0
    with pytest.raises(KdsegError, match=message) as raised:
        tune_segmentation.run(task(volumes, tmp_path, options=search(**changes), dust=dust))
    assert dust or raised.type is kind
    assert not (tmp_path / "tuned.json").exists()


def test_a_part_with_few_labels_is_as_small_as_these(volumes: dict[str, TunedVolume], tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, np.uint64)
    for thick, message in ((0, "has no labels"), (7, "7 voxels along y, expected at least 8")):
        labels[:, :thick] = 1
        sparse = TunedVolume(affinities=volumes["a"].affinities, labels=store(tmp_path / f"{thick}.json", labels))
        with pytest.raises(DataError, match=message):
            tune_segmentation.run(task({"a": sparse}, tmp_path))


def test_coarse_sections_count_for_as_many_voxels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """36 voxels along x are the least of 20, 40 and 36 where sections are twice as high as voxels are wide."""
    labels, affinities = np.ones(SHAPE, np.uint64), np.full((3, *SHAPE), 200, np.uint8)
    for height, side, axis in ((10.0, 20, "z"), (20.0, 36, "x")):
        monkeypatch.setattr(pipeline, "VOXEL_SIZE", (height, 10.0, 10.0))
        folder = tmp_path / f"{height:g}"
        made = {
            "affinities": store(folder / "a.json", affinities, offsets=[list(offset) for offset in pipeline.NEAREST])
        }
        given = {"a": TunedVolume(labels=store(folder / "l.json", labels), **made)}
        for least in (side, side + 1):
            one = task(given, tmp_path, options=search(least_side=least))
            if least == side:
                assert tune_segmentation._place(one, one.options.regions[0]).roi.shape == SHAPE
            else:
                with pytest.raises(DataError, match=f"{side} voxels along {axis}, expected at least {side + 1}"):
                    tune_segmentation._place(one, one.options.regions[0])


def test_options_of_another_method_or_engine_are_refused(volumes: dict[str, TunedVolume], tmp_path: Path) -> None:
    mutex = FragmentsOptions(watershed=MutexOptions())
    with pytest.raises(ValidationError, match=r"boundary is an option of the method `watershed`.*'mutex'"):
        task(volumes, tmp_path, options=search(boundary=[0.5]), fragments=mutex)
    with pytest.raises(ValidationError, match=r"tries the engine `exact`, but agglomerate\.engine is 'waterz'"):
        task(volumes, tmp_path, options=search(boundary=[0.5]), agglomerate=AgglomerateOptions(engine="waterz"))
    with pytest.raises(ValidationError, match=r"tune_segmentation.score: .*not reducible"):
        task(volumes, tmp_path, options=search(score=["sum"]))


def test_another_search_is_refused_until_it_is_cleared(volumes: dict[str, TunedVolume], tmp_path: Path) -> None:
    tune_segmentation.run(task(volumes, tmp_path))
    with pytest.raises(ClaimError, match="boundary"):
        tune_segmentation.run(task(volumes, tmp_path, options=search(boundary=[0.4])))
