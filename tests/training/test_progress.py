"""A training as people see it: status, log and a picture, none of which changes what comes of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from small_trainings import OFFSETS, assert_same_state, numbers, options
from toy_volumes import cells, write_volume

from kdseg.geometry import Roi
from kdseg.results.sealed import read_sealed
from kdseg.running.status import Standing, described
from kdseg.training import loop, progress, train
from kdseg.training.picture import middle, picture
from kdseg.training.sampling import Source
from kdseg.training.validation import Validation, validation_crop

SIDE, DEPTH = 24, 20


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("volumes")
    raw, labels = cells((DEPTH, SIDE, SIDE), 8)
    return {"a": (write_volume(folder / "raw.zarr", raw), write_volume(folder / "labels.zarr", labels))}


def run(folder: Path, volumes: Any, **changes: Any) -> None:
    out = folder / "model.safetensors"
    made = options(**changes)
    train(made, offsets=OFFSETS, volumes=volumes, out=out, folder=folder / "run", device="cpu", name="n")


def shown(folder: Path) -> NDArray[np.uint8]:
    with Image.open(folder / "run" / progress.PICTURE) as image:
        return np.asarray(image)


def facts(folder: Path) -> dict[str, Any]:
    return read_sealed(folder / "model.status.json")


@pytest.fixture
def crop(volumes: Any) -> Validation:
    return validation_crop(Source("a", *volumes["a"]), (8, 16, 12))


def test_a_picture_has_the_middle_planes_of_raw_labels_and_affinities(crop: Validation) -> None:
    affinities = np.random.default_rng(0).integers(0, 256, (4, 8, 16, 12), dtype=np.uint8)
    raw = crop.source.raw.read(crop.roi)
    mean = affinities[:3].mean(axis=0).round()
    found = picture(crop, affinities, OFFSETS)[::16, ::16]  # pixels are 256 // 16 wide and high, gaps 4 wide
    plain = picture(crop, affinities, OFFSETS)
    width, height = 12 * 16, 16 * 16
    assert plain.shape == (height + 4 + 8 * 16, 3 * width + 2 * 4, 3)
    assert (found[:16, :12, 0] == raw[4]).all()
    third = plain[:height:16, 2 * (width + 4) :: 16]
    assert (third == mean[4][..., None]).all()
    below = plain[height + 4 :: 16]
    assert (below[:, :width:16] == raw[:, 8, :, None]).all()
    assert (below[:, 2 * (width + 4) :: 16] == mean[:, 8, :, None]).all()
    coloured = plain[:height:16, width + 4 : 2 * width + 4 : 16].astype(int)
    inside = coloured[1:-1, 1:-1][(crop.labels[4, 1:-1, 1:-1] > 0)]
    assert np.ptp(inside, axis=1).max() > 20  # raw data have no colours
    assert (plain[:height, width : width + 4] == 255).all()


def test_a_section_has_no_other_plane(crop: Validation) -> None:
    one = middle(crop)
    assert (one.roi, one.labels.shape) == (Roi((10, 4, 6), (1, 16, 12)), (1, 16, 12))
    assert (one.labels[0] == crop.labels[4]).all()
    assert picture(one, None, OFFSETS).shape == (256, 2 * 192 + 4, 3)
    flat = ((0, -1, 0), (0, 0, -1))
    assert picture(crop, None, flat).shape == (256, 2 * 192 + 4, 3)


def test_before_the_first_step_there_is_a_picture_of_raw_data_and_labels(
    tmp_path: Path, volumes: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, volumes)
    first = shown(tmp_path)
    assert f"training n: raw data and labels that are validated on: {tmp_path}/run/validation.png" in caplog.text
    assert facts(tmp_path)["state"] == "failed"
    run(tmp_path, volumes)
    assert shown(tmp_path).shape[1] > first.shape[1]
    assert "validated after step 3, the best so far; picture:" in caplog.text


def test_what_is_seen_early_changes_nothing(
    tmp_path: Path, volumes: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run(tmp_path / "plain", volumes)
    assert "what it predicts after step" not in caplog.text
    monkeypatch.setattr(progress, "EARLY_S", 0.0)
    run(tmp_path / "early", volumes)
    assert "training n: what it predicts after step 1: " in caplog.text
    assert_same_state(tmp_path / "plain", tmp_path / "early")
    assert numbers(tmp_path / "plain") == numbers(tmp_path / "early")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "early")]
    assert weights[0] == weights[1]
    assert (shown(tmp_path / "plain") == shown(tmp_path / "early")).all()


def test_a_picture_that_cannot_be_written_ends_no_training(
    tmp_path: Path, volumes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run" / progress.PICTURE / "x").mkdir(parents=True)
    run(tmp_path, volumes)
    assert "the picture is not up to date: cannot write" in caplog.text
    assert (tmp_path / "model.safetensors").exists()


def test_the_status_says_step_loss_speed_and_what_is_left(tmp_path: Path, volumes: Any) -> None:
    run(tmp_path, volumes)
    found = facts(tmp_path)
    assert (found["stage"], found["state"], found["steps"]) == ("train", "finished", {"done": 6, "total": 6})
    last = numbers(tmp_path)[-1]
    assert found["loss"] == pytest.approx(float(last["total"]), rel=1e-5)
    assert set(found["best"]) == {"voi"}
    going = {**found, "steps": {"done": 3, "total": 9}, "steps_per_s_now": 0.5, "eta_s": 12, "best": {"voi": 1.5}}
    line = described(Standing("model", "train", "running", {**going, "loss": 0.25}))
    assert line.split("running")[1].split("  ")[2:] == [
        "step 3 of 9", "loss 0.25", "voi 1.5", "0.5 steps/s", "12 s left"
    ]  # fmt: skip
    unknown = {**going, "steps": {"done": 3, "total": None}, "loss": None, "best": {}, "steps_per_s_now": None}
    line = described(Standing("model", "train", "stopped", unknown))
    assert line.split("stopped")[1].split("  ")[2:] == ["step 3"]
