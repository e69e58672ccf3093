"""`kdseg evaluate` on volumes of any origin: the numbers of scikit-image, and a clear line for bad input."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from command import invoke
from numpy.typing import NDArray
from scipy import ndimage
from skimage.metrics import adapted_rand_error, variation_of_information
from toy_volumes import cells, write_hdf5, write_volume, write_zarr
from workflow import ROOT

from kdseg.evaluation.counting import COLUMNS
from kdseg.evaluation.measures import conventions
from kdseg.results.parquet import read_parquet

SHAPE = (10, 24, 20)
LABELS = cells(SHAPE, 14)[1] % 5  # a label is two or three cells, some are unlabelled
SEGMENTS = cells(SHAPE, 9, seed=1)[1]
NM = (30.0, 8.0, 8.0)


def kdseg(*arguments: object) -> Any:
    return invoke("evaluate", *map(str, arguments))


def answer(folder: Path, *arguments: object) -> dict[str, Any]:
    done = kdseg(*arguments, "--json", folder / "answer.json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads((folder / "answer.json").read_text())
    return found


def theirs(segments: NDArray[Any], labels: NDArray[Any], kept: NDArray[np.bool_]) -> dict[str, float]:
    """Return what scikit-image says of the voxels that are kept."""
    _, s = np.unique(segments[kept], return_inverse=True)
    _, t = np.unique(labels[kept], return_inverse=True)
    split, merge = variation_of_information(t, s)
    error, recall, precision = adapted_rand_error(t + 1, s + 1)  # names the two the other way round
    voi = {"voi_split": split, "voi_merge": merge}
    return voi | {"arand": error, "arand_precision": precision, "arand_recall": recall}


def expect(scores: dict[str, float], expected: dict[str, float]) -> None:
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_volume(tmp_path / "labels.zarr", LABELS, NM, (300.0, 80.0, 0.0))
    write_hdf5(tmp_path / "segments.h5", SEGMENTS.astype(np.int32), "a", resolution=NM, offset=(300, 80, 0))
    return tmp_path


def test_axes_in_another_order_and_places_in_voxels(folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as file:
        file["a"] = SEGMENTS.transpose(2, 1, 0)[..., None]
        file["a"].attrs.update({"voxel_size": [1, 1, 3], "offset": [0, 10, 30], "units": "pixel"})
        for axis, name in enumerate("xyzc"):
            file["a"].dims[axis].label = name
    expected = answer(folder, f"{folder}/segments.h5:/a", folder / "labels.zarr", "--block", 4, 8, 16)
    found = answer(folder, f"{folder}/other.h5:/a", folder / "labels.zarr", "--block", 8, 8, 8)
    assert found["scores"] == expected["scores"]
    assert found["what"]["region"] == expected["what"]["region"]


def test_a_voxel_size_that_is_given_gives_places_in_voxels_a_meaning(folder: Path) -> None:
    part = SEGMENTS[2:].astype(np.int32)
    known = write_hdf5(folder / "known.h5", part, "a", resolution=NM, offset=(360, 80, 0))
    other = write_hdf5(folder / "other.h5", part, "a", voxel_size=(1, 1, 1), offset=(12, 10, 0), units="pixel")
    assert "no units of length" in kdseg(other, folder / "labels.zarr").output
    expected = answer(folder, known, folder / "labels.zarr")
    found = answer(folder, other, folder / "labels.zarr", "--voxel-size", *NM)
    assert found["scores"] == expected["scores"]
    assert found["what"]["region"] == expected["what"]["region"]


def test_details_and_the_worst_objects(folder: Path) -> None:
    addresses = (f"{folder}/segments.h5:/a", folder / "labels.zarr")
    found = answer(folder, *addresses, "--block", 4, 8, 16)
    details, scores = found["details"], found["scores"]
    assert details["voi_split_nats"] == pytest.approx(scores["voi_split"] * np.log(2))
    assert details["cremi_score"] == pytest.approx((scores["voi"] * details["arand_all"]) ** 0.5)
    assert details["count_difference"] == abs(np.unique(SEGMENTS[LABELS > 0]).size - np.unique(LABELS).size + 1)
    ious = [
        (both & (LABELS > 0)).sum() / ((t == LABELS) | ((s == SEGMENTS) & (LABELS > 0))).sum()
        for t in np.unique(LABELS[LABELS > 0])
        for s in np.unique(SEGMENTS)
        for both in [(t == LABELS) & (s == SEGMENTS)]
    ]
    matched = [iou for iou in ious if iou > 0.5]
    objects = np.unique(SEGMENTS[LABELS > 0]).size + np.unique(LABELS).size - 1
    assert details["pq"] == pytest.approx(sum(matched) / (objects / 2))
    worst = found["worst"]["splits"]
    assert sum(fault["bits"] for fault in worst) == pytest.approx(scores["voi_split"])
    for fault in worst:
        for overlap in fault["overlaps"]:
            both = (fault["id"] == LABELS) & (overlap["id"] == SEGMENTS)
            assert overlap["voxels"] == both.sum()
            assert overlap["at"] == np.argwhere(both)[0].tolist()
    assert "false merges: " in kdseg(*addresses).output
    assert "false merges: " not in kdseg(*addresses, "--worst", 0).output


@pytest.mark.slow
@pytest.mark.parametrize("border", [0, 8, 17])
def test_voxels_near_borders_are_left_out(folder: Path, border: float) -> None:
    """Whatever the blocks; borders are those of the whole labels, distances within the section."""
    addresses = (f"{folder}/segments.h5:/a", folder / "labels.zarr")
    kept = LABELS > 0
    for z, section in enumerate(LABELS):
        padded = np.pad(section, 1, mode="edge")
        near = [padded[1 + a : -1 + a or None, 1 + b : -1 + b or None] for a, b in ((-1, 0), (1, 0), (0, -1), (0, 1))]
        marked = np.argwhere(np.any([one != section for one in near], axis=0)) * NM[1]
        places = np.argwhere(np.ones(section.shape)) * NM[1]
        distance = np.linalg.norm(places[:, None] - marked[None], axis=-1).min(axis=1)
        kept[z] &= (distance > border).reshape(section.shape)
    for block in ((10, 24, 20), (4, 5, 7)):
        found = answer(folder, *addresses, "--ignore-border", border, "--block", *block)
        assert found["what"]["scored_voxels"] == kept.sum()
        expect(found["scores"], theirs(SEGMENTS, LABELS, kept))
    roi = answer(folder, *addresses, "--ignore-border", border, "--roi", "voxels:2:9,3:20,1:18")
    assert roi["what"]["scored_voxels"] == kept[2:9, 3:20, 1:18].sum()


def test_nothing_but_background_has_details(folder: Path) -> None:
    write_volume(folder / "empty.zarr", np.zeros(SHAPE, np.uint8), NM, (300.0, 80.0, 0.0))
    found = answer(folder, folder / "empty.zarr", folder / "labels.zarr")
    assert found["details"]["pq"] == 0
    assert found["details"]["sbd"] == 0


def test_formats_types_and_the_table(folder: Path) -> None:
    addresses = (f"{folder}/segments.h5:/a", folder / "labels.zarr")
    found = answer(folder, *addresses)
    expect(found["scores"], theirs(SEGMENTS, LABELS, LABELS > 0))
    assert found["what"]["scored_voxels"] == (LABELS > 0).sum()
    assert found["conventions"].keys() == found["scores"].keys() | found["details"].keys() == conventions().keys()
    text = kdseg(*addresses).output
    assert re.search(rf"voi_split +{found['scores']['voi_split']:.4f}  bits; H\(segmentation \| labels\)", text)
    assert "left out      label 0\ndust          labels of all sizes count; --dust N leaves small ones out" in text
    tifffile.imwrite(folder / "s.tif", SEGMENTS.astype(np.uint16))
    assert answer(folder, folder / "s.tif", folder / "labels.zarr")["scores"] == found["scores"]


def test_places_regions_and_masks(folder: Path) -> None:
    write_hdf5(folder / "part.h5", SEGMENTS[2:, 4:, 3:], "a", resolution=NM, offset=(360, 112, 24))
    mask = np.random.default_rng(0).integers(0, 2, (8, 24, 20)).astype(bool)
    write_hdf5(folder / "mask.h5", mask, "a", resolution=NM, offset=(300, 80, 0))
    kept = np.zeros(SHAPE, bool)
    kept[2:, 4:, 3:] = LABELS[2:, 4:, 3:] > 0
    part = f"{folder}/part.h5:/a"
    expect(answer(folder, part, folder / "labels.zarr")["scores"], theirs(SEGMENTS, LABELS, kept))
    kept[:3] = kept[8:] = False
    inside = ["--roi", "nm:390:540,112:272,24:160"]
    found = answer(folder, part, folder / "labels.zarr", *inside)
    expect(found["scores"], theirs(SEGMENTS, LABELS, kept))
    voxels = ["--roi", "voxels:3:8,4:24,3:20"]
    assert answer(folder, part, folder / "labels.zarr", *voxels)["scores"] == found["scores"]
    kept[:8] &= mask
    found = answer(folder, part, folder / "labels.zarr", *inside, "--mask", f"{folder}/mask.h5:/a")
    expect(found["scores"], theirs(SEGMENTS, LABELS, kept))


def test_a_coarser_segmentation_is_repeated(folder: Path) -> None:
    write_hdf5(folder / "half.h5", SEGMENTS[:, ::2, ::2], "a", resolution=(30, 16, 16), offset=(300, 80, 0))
    found = answer(folder, f"{folder}/half.h5:/a", folder / "labels.zarr")
    expect(found["scores"], theirs(SEGMENTS[:, ::2, ::2].repeat(2, 1).repeat(2, 2), LABELS, LABELS > 0))
    assert "nearest coarse voxel" in found["what"]["sampling"]
    assert found["what"]["volumes"]["segmentation"]["ratio"] == [1, 2, 2]


def test_what_is_left_out(folder: Path) -> None:
    both = (f"{folder}/segments.h5:/a", folder / "labels.zarr")
    found = answer(folder, *both, "--ignore-label", "none")
    expect(found["scores"], theirs(SEGMENTS, LABELS, LABELS >= 0))
    found = answer(folder, *both, "--ignore-label", 0, "--ignore-label", 3, "--ignore-segment", 2)
    expect(found["scores"], theirs(SEGMENTS, LABELS, (LABELS > 0) & (LABELS != 3) & (SEGMENTS != 2)))
    sizes = np.bincount(LABELS.ravel())
    found = answer(folder, *both, "--dust", np.sort(sizes[1:])[1])
    expect(found["scores"], theirs(SEGMENTS, LABELS, (LABELS > 0) & (1 + sizes[1:].argmin() != LABELS)))
    for wrong in (["none", "1"], ["-1"], [str(2**64)]):
        done = kdseg(*both, *[part for one in wrong for part in ("--ignore-label", one)])
        assert done.exit_code == 2
        assert "or `none` alone" in done.output


def test_sections_and_components(folder: Path) -> None:
    both = (f"{folder}/segments.h5:/a", folder / "labels.zarr")
    sections = (np.arange(10, dtype=np.uint64) * 100)[:, None, None]
    found = answer(folder, *both, "--per-section")
    expect(found["scores"], theirs(SEGMENTS + sections, LABELS + sections, LABELS > 0))
    pieces = np.zeros(SHAPE, np.int64)
    for label in range(1, 5):
        one, _ = ndimage.label(label == LABELS)
        pieces += np.where(one > 0, one + pieces.max(), 0)
    assert pieces.max() > 4, "nothing is split"
    found = answer(folder, *both, "--components", "--block", 4, 8, 8, "--workers", 2)
    expect(found["scores"], theirs(SEGMENTS, pieces, LABELS > 0))


def test_intervals_of_a_loop(folder: Path) -> None:
    both = (f"{folder}/segments.h5:/a", folder / "labels.zarr", folder / "out", "--block", 10, 8, 10)
    found = answer(folder, *both, "--bootstrap", 40)
    cuts = [(slice(None), slice(y, y + 8), slice(x, x + 10)) for y in (0, 8, 16) for x in (0, 10)]
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(40):
        times = rng.multinomial(6, np.full(6, 1 / 6))
        chosen = [cut for cut, n in zip(cuts, times.tolist(), strict=True) for _ in range(n)]
        segments, labels = (np.concatenate([a[cut].ravel() for cut in chosen]) for a in (SEGMENTS, LABELS))
        drawn.append(theirs(segments, labels, labels > 0))
    for name in drawn[0]:
        ends = np.quantile([one[name] for one in drawn], (0.025, 0.975))
        assert found["intervals"][name] == pytest.approx(ends, abs=1e-9)
    assert "95 % of 40 resamples of blocks, seed 0" in kdseg(*both, "--bootstrap", 40).output
    done = kdseg(*both[:2], "--bootstrap", 4)
    assert "an interval needs" in done.output


@pytest.mark.slow
def test_a_killed_run_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = np.tile(SEGMENTS, (4, 3, 3))
    write_volume(folder / "a.zarr", big)
    write_volume(folder / "b.zarr", np.tile(LABELS, (4, 3, 3)))
    command = ["evaluate", "a.zarr", "b.zarr", "out", "--block", "4", "4", "4", "--workers", "2"]
    process = subprocess.Popen([sys.executable, "-m", "kdseg", *command], cwd=folder, stderr=subprocess.DEVNULL)
    tables = folder / "out" / ".evaluation" / "4x4x4"
    until = time.monotonic() + 60
    while len(list(tables.glob("*.npz"))) < 20:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "out" / "evaluation.json").exists()
    before = {path: path.stat().st_mtime_ns for path in tables.glob("*.npz")}
    monkeypatch.chdir(folder)  # the address is a part of the question
    while "being written by another run" in (done := kdseg(*command[1:])).output:
        time.sleep(0.1)  # its workers hold the lock until they notice
    assert done.exit_code == 0, done.output
    assert len([path for path, at in before.items() if path.stat().st_mtime_ns == at]) >= len(before) - 2
    found = json.loads((folder / "out" / "evaluation.json").read_text())["stats"]
    expect(found["scores"], theirs(big, np.tile(LABELS, (4, 3, 3)), np.tile(LABELS, (4, 3, 3)) > 0))
    assert sorted(read_parquet(folder / "out" / "evaluation.parquet")) == sorted(column.name for column in COLUMNS)
    done = kdseg(*command[1:], "--dust", 7)
    assert done.exit_code == 1
    assert "options.dust was 0, is 7" in done.output


def test_another_volume_of_the_same_file_is_another_question(folder: Path) -> None:
    write_hdf5(folder / "two.h5", LABELS, "a", resolution=NM)
    with h5py.File(folder / "two.h5", "a") as file:
        file["b"] = LABELS[::-1]
    segments, out = f"{folder}/segments.h5:/a", folder / "out"
    assert kdseg(segments, f"{folder}/two.h5:/a", out).exit_code == 0
    assert kdseg(segments, f"{folder}/two.h5:a", out).exit_code == 0
    done = kdseg(segments, f"{folder}/two.h5:/b", out)
    assert done.exit_code == 1
    assert 'options.members.labels was "a", is "b"' in done.output


def test_background_of_sections_is_background(folder: Path) -> None:
    """The numbers of a section do not depend on where it lies, nor means over equal sections on how many there are."""
    segments, labels = (np.repeat(ids[4:5] * (ids[4:5] > 1), 3, axis=0) for ids in (SEGMENTS, LABELS))
    write_hdf5(folder / "s.h5", segments, "a", resolution=NM)
    write_hdf5(folder / "l.h5", labels, "a", resolution=NM)
    for ignored in ("0", "none"):
        asked = [f"{folder}/s.h5:/a", f"{folder}/l.h5:/a", "--per-section", "--ignore-label", ignored, "--dust", 9]
        one, other, both = (
            answer(folder, *asked, "--roi", f"voxels:{z},0:24,0:20")["details"] for z in ("0:1", "1:2", "1:3")
        )
        assert other == one
        means = ("cremi_score", "pq", "sq", "rq", "ap_50", "ap", "sbd", "aji")
        assert {name: both[name] for name in means} == pytest.approx({name: one[name] for name in means}, abs=0.01)
        assert both["count_difference"] == 2 * one["count_difference"]


BAD = {
    "shapes that differ": ("short.h5:/a", r"short\.h5:/a of \(10, 24, 19\) voxels does not say where it lies.*offset"),
    "negative": ("negative.h5:/a", "negative id -2, expected ids of 0 or above"),
    "float": ("float.h5:/a", r"hold float32, expected integer ids"),
    "elsewhere": ("far.h5:/a", "do not overlap. Are they of one volume"),
    "no multiple": ("odd.h5:/a", r"1\.25.*times the finest.*resample"),
    "truncated": ("cut.zarr", r"cut\.zarr.*damaged"),
    "missing": ("none.zarr", r"nothing at .*none\.zarr; expected path\.zarr"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(folder: Path, case: str) -> None:
    write_hdf5(folder / "short.h5", SEGMENTS[:, :, :19], "a", resolution=NM)
    at = {"resolution": NM, "offset": (300, 80, 0)}
    write_hdf5(folder / "negative.h5", SEGMENTS.astype(np.int64) - 3, "a", **at)
    write_hdf5(folder / "float.h5", SEGMENTS.astype(np.float32), "a", **at)
    write_hdf5(folder / "far.h5", SEGMENTS, "a", resolution=NM, offset=(3000, 80, 0))
    write_hdf5(folder / "odd.h5", SEGMENTS, "a", resolution=(30, 10, 8), offset=(300, 80, 0))
    write_volume(folder / "cut.zarr", SEGMENTS, NM, (300.0, 80.0, 0.0))
    for path in (folder / "cut.zarr" / "0" / "c").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-9])
    address, message = BAD[case]
    done = kdseg(folder / address, folder / "labels.zarr")
    assert done.exit_code == 1
    last = done.output.strip().splitlines()[-1]
    assert last.startswith("kdseg evaluate: ")
    assert re.search(message, last), last


def test_what_a_file_does_not_say_can_be_given(folder: Path) -> None:
    write_zarr(folder / "short.zarr", 3, SEGMENTS[:, :, 1:])
    place = ["--segmentation-offset", 300, 80, 8]
    done = kdseg(folder / "short.zarr", folder / "labels.zarr", *place)
    assert "does not say how large its voxels are" in done.output
    kept = LABELS > 0
    kept[:, :, 0] = False
    found = answer(folder, folder / "short.zarr", folder / "labels.zarr", *place, "--voxel-size", *NM)
    expect(found["scores"], theirs(SEGMENTS, LABELS, kept))
    done = kdseg(folder / "short.zarr", folder / "labels.zarr", *place, "--voxel-size", 30, 8, 9)
    assert "the option is for files that do not say" in done.output


def test_a_place_that_would_move_both_is_refused(folder: Path) -> None:
    segments = write_hdf5(folder / "a.h5", SEGMENTS, "a", resolution=NM)
    labels = write_hdf5(folder / "b.h5", LABELS, "a", resolution=NM)
    place = ["--segmentation-offset", 30, 8, 0]
    done = kdseg(segments, labels, *place)
    assert done.exit_code == 1
    assert "b.h5:/a does not say where it lies and would be put at the same place: give the offset" in done.output
    kept = LABELS[1:, 1:] > 0
    found = answer(folder, segments, labels, *place, "--labels-offset", 0, 0, 0)
    expect(found["scores"], theirs(SEGMENTS[:-1, :-1], LABELS[1:, 1:], kept))


NONSENSE = {
    "--voxel-size 0 1 1": r"voxel size \(0\.0, 1\.0, 1\.0\) nm, expected positive",
    "--voxel-size -1 1 1": "expected positive",
    "--voxel-size nan 1 1": "expected positive",
    "--voxel-size 1 1 1 --labels-offset nan 0 0": "expected finite",
    "--voxel-size 1 1 1 --ignore-border -1": "tolerance must be 0 nm or more",
    "--roi voxels:nan:3,0:2,0:2": "a region is voxels",
    "--roi voxels:0:inf,0:2,0:2": "a region is voxels",
}


@pytest.mark.parametrize("options", NONSENSE)
def test_numbers_that_are_none_are_refused_in_one_line(folder: Path, options: str) -> None:
    write_zarr(folder / "a.zarr", 3, SEGMENTS)
    done = kdseg(folder / "a.zarr", folder / "a.zarr", *options.split())
    assert done.exit_code == 1
    (line,) = done.output.strip().splitlines()
    assert re.search(NONSENSE[options], line), line


def test_all_ignored_is_said(folder: Path) -> None:
    done = kdseg(f"{folder}/segments.h5:/a", folder / "labels.zarr", *(f"--ignore-label={n}" for n in range(5)))
    assert done.exit_code == 1
    assert "nothing to score: every voxel of the region is ignored" in done.output


def test_ids_above_2_63_are_kept_apart(folder: Path) -> None:
    """As floats, or as signed integers, they would be one, or negative."""
    segments = np.where(SEGMENTS > 4, np.uint64(2**63 + 1), np.uint64(2**63 + 2))
    write_volume(folder / "a.zarr", segments, NM, (300.0, 80.0, 0.0))
    found = answer(folder, folder / "a.zarr", folder / "labels.zarr", "--ignore-segment", 2**63 + 2)
    expect(found["scores"], theirs(segments, LABELS, (LABELS > 0) & (SEGMENTS > 4)))
    expect(answer(folder, folder / "a.zarr", folder / "labels.zarr")["scores"], theirs(segments, LABELS, LABELS > 0))


def test_the_commands_of_the_readme_and_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_volume(Path("mine.zarr"), SEGMENTS, NM)
    write_volume(Path("theirs.zarr"), SEGMENTS * np.uint64(3), NM)
    write_volume(Path("tissue.zarr"), (LABELS > 1).astype(np.uint8), NM)
    write_hdf5(Path("truth.h5"), LABELS, "labels", resolution=NM, offset=(0, 0, 0))
    tifffile.imwrite("stack.tif", SEGMENTS[:, 4:].astype(np.uint16))
    for name in ("README.md", "docs/evaluation.md"):
        text = (ROOT / name).read_text().replace("\\\n", "")
        lines = [line.split("#")[0].split() for line in text.splitlines() if line.startswith("kdseg ")]
        commands = [line for line in lines if line[1] in ("evaluate", "same")]
        assert {line[1] for line in commands} == {"evaluate", "same"}
        for command in commands:
            done = invoke(*command[1:])
            assert done.exit_code == 0, (command, done.output)
    table = read_parquet(Path("scored") / "evaluation.parquet")
    assert sum(table["count"].tolist()) == (LABELS > 0).sum()


def test_the_python_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_volume(Path("mine.zarr"), SEGMENTS, NM)
    write_hdf5(Path("truth.h5"), LABELS, "labels", resolution=NM, offset=(0, 0, 0))
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "evaluation.md").read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    exec(snippet, found)
    expected = answer(tmp_path, "mine.zarr", "truth.h5:/labels", "--dust", 50)["scores"]
    assert found["scores"] == expected


def test_conventions_are_documented() -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text()
    for name in conventions():
        assert f"| `{name}` |" in text


def test_grey_values_as_labels_are_warned_of(tmp_path: Path) -> None:
    raw, labels = cells((4, 64, 64), 9)
    write_volume(tmp_path / "raw.zarr", raw)
    write_volume(tmp_path / "labels.zarr", labels)
    done = subprocess.run(
        [sys.executable, "-m", "kdseg", "evaluate", tmp_path / "labels.zarr", tmp_path / "raw.zarr"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.count("looks like") == 1
    assert "raw.zarr looks like grey values, not like ids of neurons" in done.stderr
