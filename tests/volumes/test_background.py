"""Meaning of label 0: what a volume says of it, what it looks like, and what students learn from it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_models import NEVER
from toy_volumes import cells, write_volume

from kdseg.config import VolumeOptions
from kdseg.config.networks import TrainOptions
from kdseg.config.tasks import ConvertTask
from kdseg.errors import ClaimError, UnreadableError
from kdseg.results.manifests import read
from kdseg.training.sampling import Crops, Source
from kdseg.training.targets import affinities
from kdseg.training.validation import validation_crop
from kdseg.volumes import convert
from kdseg.volumes.background import background_of, looks_like_membrane
from kdseg.volumes.volume import open_volume

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))


def parted(labels: np.ndarray, thick: int = 1) -> np.ndarray:
    """Labels with membranes of 0 between neurons, in each section."""
    found = labels.copy()
    for axis in (1, 2):
        differs = np.diff(labels.astype(np.int64), axis=axis) != 0
        for shift in range(thick):
            index = [slice(None)] * 3
            index[axis] = slice(shift, shift + differs.shape[axis])
            part = found[tuple(index)]
            part[differs[tuple(slice(0, n) for n in part.shape)]] = 0
    return found


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return cells((12, 64, 64), 12, seed=4)[1].astype(np.uint64)


def test_membranes_are_told_from_what_nobody_labelled(labels: np.ndarray) -> None:
    assert looks_like_membrane(labels) == ""
    assert "of its voxels are 0, nearly all within" in looks_like_membrane(parted(labels, 2))
    sections = labels.copy()
    sections[::2] = 0  # every other section is labelled
    assert looks_like_membrane(sections) == ""
    assert looks_like_membrane(parted(sections)) == ""
    outside = labels.copy()
    outside[:, :30] = 0
    assert looks_like_membrane(outside) == ""
    assert looks_like_membrane(np.where(parted(labels) > 0, 7, 0)) == ""  # one neuron: a mask
    assert looks_like_membrane(np.zeros((3, 4, 5), int)) == ""


def test_what_a_volume_says_is_honoured_or_refused() -> None:
    assert background_of({}, "a") == "unknown"
    assert background_of({"background": "object"}, "a") == "object"
    with pytest.raises(UnreadableError, match="a says that label 0 is 'glia', expected one of"):
        background_of({"background": "glia"}, "a")


def converted(folder: Path, labels: np.ndarray, name: str = "made", **options: Any) -> Path:
    raw = np.zeros(labels.shape, np.uint8)
    if not (folder / "raw.zarr").exists():
        write_volume(folder / "raw.zarr", raw)
        write_volume(folder / "labels.zarr", labels)
    given = VolumeOptions(raw=f"{folder}/raw.zarr", labels=f"{folder}/labels.zarr", **options)
    convert.run(ConvertTask(kind="labels", manifest=folder / f"{name}.json", options=given))
    return read(folder / f"{name}.json").result


def test_conversion_notes_it_and_warns(tmp_path: Path, labels: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        made = converted(tmp_path, parted(labels))
    assert open_volume(made).attributes["background"] == "unknown"
    assert "set `background: boundary` for this volume if it is membrane" in caplog.text
    with pytest.raises(ClaimError, match=r'options\.background was "unknown", is "boundary"'):
        converted(tmp_path, parted(labels), background="boundary")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        made = converted(tmp_path, parted(labels), "other", background="boundary")
    assert open_volume(made).attributes["background"] == "boundary"
    assert "label 0 is taken for boundary" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.slow
@pytest.mark.parametrize("background", ["unknown", "boundary", "object"])
def test_students_learn_what_it_means(tmp_path: Path, labels: np.ndarray, background: str) -> None:
    """The oracle: pairs of voxels, one by one; beyond the labels nothing is known."""
    truth = parted(labels)[:, 8:56]
    raw = write_volume(tmp_path / "raw.zarr", np.zeros(labels.shape, np.uint8))
    at = write_volume(tmp_path / "labels.zarr", truth, offset=(0.0, 80.0, 0.0), attributes={"background": background})
    source = Source("a", raw, at)
    crop = source.crop(source.raw.roi, supervised=True)
    target, known = affinities(torch.from_numpy(crop.labels), OFFSETS, mask=torch.from_numpy(crop.mask))
    ids = np.full(labels.shape, -1, np.int64)
    ids[:, 8:56] = truth
    for channel, offset in enumerate(OFFSETS):
        for p in np.ndindex(*labels.shape):
            q = tuple(a + b for a, b in zip(p, offset, strict=True))
            inside = min(q) >= 0
            a, b = int(ids[p]), int(ids[q]) if inside else -1
            counts = inside and min(a, b) >= (1 if background == "unknown" else 0)
            joined = counts and a == b and (a > 0 or background == "object")
            assert bool(known[(channel, *p)]) == counts
            assert bool(target[(channel, *p)] & known[(channel, *p)]) == joined
    scored = validation_crop(source, (8, 32, 32))
    assert not scored.labels[ids[scored.roi.slices()] == 0].any()  # scores leave it out, whatever students learn
    made = TrainOptions.model_validate(
        {"volumes": ("a",), "validate_on": "a", "crop": (6, 16, 16), "steps": 5, "augment": NEVER}
    )
    batch = Crops(made, {"a": (raw, at)})[0]
    assert bool((batch.mask & (batch.labels == 0)).any()) == (background == "boundary")
