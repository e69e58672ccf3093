"""Boundary voxels of volumes on disk, against the whole at once, and behind `kdseg evaluate`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import invoke
from counted_volumes import BLOCKS, OPTIONS, SHAPE, Voxels, named_components
from counted_volumes import made as made_of_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_volumes import cells, write_hdf5, write_volume

from kdseg.errors import StageError
from kdseg.evaluation import boundary_counting
from kdseg.evaluation.boundary_counting import count_boundaries, dust_labels
from kdseg.evaluation.counting import Count, count_blocks, read_rows
from kdseg.evaluation.metrics.boundaries import BoundaryCounts, VoxelSize, boundary_counts, boundary_scores
from kdseg.geometry import Roi, Triple
from kdseg.running.runner import Place
from kdseg.volumes.sources import open_source

SIZE: VoxelSize = (40.0, 4.0, 6.0)


def few_borders(seed: int) -> tuple[Voxels, Voxels, Voxels]:
    """Return segments with large ids, labels in several pieces, and a mask; most voxels are far from a border."""
    names = np.array([0, 3, 2**63 + 1, 2**63 + 2], np.uint64)
    segments = names[cells(SHAPE, 4, 2 * seed)[1] - np.uint64(1)]
    labels = cells(SHAPE, 4, 2 * seed + 1)[1] % np.uint64(3)
    return segments, labels, np.random.default_rng(seed).integers(0, 5, SHAPE).astype(np.uint64)


def made(folder: Path, seed: int, **options: object) -> Count:
    for name, voxels in zip(("segments", "labels", "mask"), few_borders(seed), strict=True):
        write_volume(folder / f"{name}.zarr", voxels)
    return made_of_files(folder, seed, **options)


def counted(what: Count, folder: Path, tolerance: float, dust: int, workers: int = 1) -> BoundaryCounts:
    components = count_blocks(what, folder / "count", folder / "a.parquet", place=Place(workers))
    small = dust_labels(read_rows(folder / "a.parquet"), dust)
    return count_boundaries(what, tolerance, small, components, folder / "count" / "boundaries", place=Place(workers))


def oracle(seed: int, what: Count, tolerance: float, dust: int) -> BoundaryCounts:
    """Count the whole volume at once."""
    segments, labels, mask = few_borders(seed)
    where = what.roi.slices()
    kept = np.isin(labels, what.ignore_labels, invert=True) & np.isin(
        segments, np.array(what.ignore_segments, np.uint64), invert=True
    )
    if what.mask is not None:
        kept &= mask != 0
    kept = kept[where]
    names = named_components(labels[where], what.per_section) if what.components else labels[where].copy()
    if what.per_section:
        names += (np.arange(what.roi.shape[0], dtype=np.uint64) * np.uint64(10**6))[:, None, None]
    for name in np.unique(names[kept]):
        if (kept & (names == name)).sum() < dust:
            kept &= names != name
    return boundary_counts(
        segments, labels, tolerance, SIZE, where, ignore_label=None, mask=kept, sections=what.per_section
    )


@pytest.mark.slow
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 9),
    block=BLOCKS,
    options=OPTIONS,
    masked=st.booleans(),
    tolerance=st.sampled_from([0.0, 4.0, 7.0, 12.0, 41.0]),
    dust=st.sampled_from([0, 5, 30]),
)
def test_blocks_change_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    block: Triple,
    options: dict[str, object],
    masked: bool,
    tolerance: float,
    dust: int,
) -> None:
    folder = tmp_path_factory.mktemp("a")
    what = made(folder, seed, block=block, voxel_size=SIZE, **options)
    what = what if masked else replace(what, mask=None)
    assert counted(what, folder, tolerance, dust) == oracle(seed, what, tolerance, dust)


def test_workers_and_a_second_run_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what = made(tmp_path, 1, block=(3, 4, 4), voxel_size=SIZE)
    expected = oracle(1, what, 7, 5)
    assert 0 < expected.found_near < expected.found
    assert counted(what, tmp_path, 7, 5, workers=2) == expected
    monkeypatch.setattr(boundary_counting, "boundary_counts", None)  # would fail if a finished block were counted again
    assert counted(what, tmp_path, 7, 5) == expected


def test_volumes_of_different_extent(tmp_path: Path) -> None:
    """A counterpart is sought as far as both reach, not beyond."""
    segments, labels, _ = few_borders(3)
    what = made(tmp_path, 3, voxel_size=SIZE, mask=None, roi=Roi((0, 1, 2), (5, 5, 4)), block=(3, 3, 3))
    write_volume(tmp_path / "part.zarr", segments[:6, :7, :7])
    part = replace(what.segmentation, source=open_source(str(tmp_path / "part.zarr")))
    both = (slice(0, 6), slice(0, 7), slice(0, 7))
    kept = labels[what.roi.slices()] != 0
    expected = boundary_counts(segments[both], labels[both], 41, SIZE, what.roi.slices(), ignore_label=None, mask=kept)
    assert counted(replace(what, segmentation=part), tmp_path, 41, 0) == expected


def test_dust_is_what_is_smaller_in_its_section() -> None:
    rows = np.array([[0, 0, 0, 4], [1, 1, 2, 1], [5, 6, 5, 5], [3, 4, 2, 4], [0, 0, 0, 0]], np.uint64)
    assert dust_labels(rows, 5).T.tolist() == [[0, 6], [4, 5]]
    assert dust_labels(rows, 4).size == 0


def test_damage_is_named(tmp_path: Path) -> None:
    what = made(tmp_path, 5, voxel_size=SIZE)
    count_blocks(what, tmp_path / "a", tmp_path / "a.parquet", place=Place(1))
    chunk = next(path for path in (tmp_path / "labels.zarr" / "0").rglob("*") if path.is_file() and "c" in path.parts)
    chunk.write_bytes(chunk.read_bytes()[:-7])
    none = np.empty((2, 0), np.uint64)
    with pytest.raises(StageError, match=r"boundaries: .*labels\.zarr.*damaged"):
        count_boundaries(what, 4, none, None, tmp_path / "b", place=Place(1))


def evaluate(*arguments: object) -> Any:
    return invoke("evaluate", *map(str, arguments))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    segments, labels, _ = few_borders(2)
    write_volume(tmp_path / "labels.zarr", labels, SIZE)
    write_hdf5(tmp_path / "segments.h5", segments, "a", resolution=SIZE, offset=(0, 0, 0))
    return f"{tmp_path}/segments.h5:/a", f"{tmp_path}/labels.zarr"


def test_the_command_says_them(pair: tuple[str, str], tmp_path: Path) -> None:
    segments, labels, _ = few_borders(2)
    everything = tuple(slice(0, n) for n in SHAPE)
    for more, sections, ignored in (([], False, 0), (["--per-section", "--ignore-label", "none"], True, None)):
        done = evaluate(*pair, "--boundaries", 7, *more, "--block", 4, 4, 4, "--json", tmp_path / "a.json")
        assert done.exit_code == 0, done.output
        found = json.loads((tmp_path / "a.json").read_text())["boundaries"]
        expected = boundary_counts(
            segments,
            labels,
            7,
            SIZE,
            everything,
            ignore_label=ignored,
            sections=sections,  # type: ignore[arg-type]
        )
        assert found["counts"] == expected._asdict()
        scores = {f"boundary_{name}": value for name, value in boundary_scores(expected)._asdict().items()}
        assert found["scores"] == scores
        assert found["conventions"].keys() == scores.keys()
        assert found["tolerance_nm"] == 7
        for name, value in scores.items():
            assert f"{name:19}{value:7.4f}  " in done.output
        assert f"within 7 nm: {expected.found_near} of {expected.found} of the segmentation" in done.output
    assert "boundar" not in evaluate(*pair).output


def test_a_folder_knows_whether_boundaries_were_asked_for(pair: tuple[str, str], tmp_path: Path) -> None:
    assert evaluate(*pair, tmp_path / "out").exit_code == 0
    done = evaluate(*pair, tmp_path / "out", "--boundaries", 7)
    assert done.exit_code == 1
    assert "options.boundaries was none, is 7.0" in done.output
    assert evaluate(*pair, tmp_path / "out", "--boundaries", 7, "--overwrite").exit_code == 0
    assert "options.boundaries was 7.0, is 8.0" in evaluate(*pair, tmp_path / "out", "--boundaries", 8).output


def test_what_makes_no_sense_is_refused(pair: tuple[str, str], tmp_path: Path) -> None:
    done = evaluate(*pair, "--boundaries", 7, "--ignore-border", 4)
    assert (done.exit_code, "leaves out the voxels that --boundaries scores" in done.output) == (1, True)
    for wrong in ("-1", "inf", "nan"):
        done = evaluate(*pair, f"--boundaries={wrong}")
        assert (done.exit_code, "the tolerance must be 0 nm or more, got" in done.output) == (1, True)
    segments, labels, _ = few_borders(2)
    paths = [write_hdf5(tmp_path / "raw.h5", voxels, name) for name, voxels in (("a", segments), ("b", labels))]
    done = evaluate(*paths, "--boundaries", 7)
    assert "a distance in nm needs voxels of a known size" in done.output
    assert evaluate(*paths, "--boundaries", 7, "--voxel-size", *SIZE).exit_code == 0
