"""Teachers that were not trained here, from the files of other programs to a trained student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from pipeline import STORAGE, store, voxels
from small_trainings import NEVER, OFFSETS, numbers, options
from toy_volumes import cells

from kdseg.config.questions import AdoptTask
from kdseg.config.tasks import TrainTask, VolumeInputs
from kdseg.errors import ConfigError, KdsegError, ShapeError, VoxelSizeError
from kdseg.results.manifests import read
from kdseg.segmentation import adopt
from kdseg.training import stage
from kdseg.volumes.affinities import affinity_offsets
from kdseg.volumes.volume import open_volume

SHAPE = (20, 24, 24)
THEIRS = (OFFSETS[3], OFFSETS[0], (0, -9, 0), OFFSETS[2], OFFSETS[1])
"""Ours in another order, and one that we have not."""
ORDER = [THEIRS.index(offset) for offset in OFFSETS]
SOFT = [{"name": "affinity"}, {"name": "soft_affinity"}]


@pytest.fixture
def volume(tmp_path: Path) -> VolumeInputs:
    raw, labels = cells(SHAPE, 8)
    inputs = {"raw": raw, "labels": labels}
    return VolumeInputs(**{name: store(tmp_path / f"{name}.json", array) for name, array in inputs.items()})


def stored(shape: tuple[int, ...] = SHAPE) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(1).integers(0, 256, (len(THEIRS), *shape), dtype=np.uint8)


def adopted(manifest: Path, address: str, raw: Path, **more: Any) -> Path:
    values = {"offsets": THEIRS, "keep": OFFSETS, "raw": raw, "storage": STORAGE}
    adopt.run(AdoptTask(manifest=manifest, address=address, **values | more))
    return manifest


def train_task(manifest: Path, volume: VolumeInputs, changes: dict[str, Any], **more: Any) -> TrainTask:
    made = options(**{"terms": SOFT, "teacher": "lab", "augment": NEVER, **changes})
    values = {"offsets": OFFSETS, "volumes": {"a": volume}, "device": "cpu"}
    return TrainTask(manifest=manifest, name="m", options=made, **values | more)


def test_a_student_learns_from_affinities_of_another_program(tmp_path: Path, volume: VolumeInputs) -> None:
    """Plain zarr without a voxel size, other channels in another order: they become ours on the raw data's voxels."""
    theirs = stored()
    zarr.create_array(str(tmp_path / "lab.zarr"), data=theirs, chunks=(1, 8, 8, 8))
    manifest = adopted(tmp_path / "t.json", str(tmp_path / "lab.zarr"), volume.raw)
    found = open_volume(read(manifest).result)
    assert affinity_offsets(found) == OFFSETS
    np.testing.assert_array_equal(voxels(manifest), theirs[ORDER])
    losses = {}
    for name, taught in (("m", manifest), ("n", adopted(tmp_path / "o.json", str(tmp_path / "lab.zarr"), volume.raw,
                                                       invert=True))):  # fmt: skip
        place = tmp_path / name / "model.json"
        how = {"teaching": {"outputs": "stored"}, "steps": 2}
        stage.run(train_task(place, volume, how, stored={"lab": {"a": {"affinities": taught}}}))
        made = read(place)
        assert made.inputs["lab/a/affinities.json"] == read(taught).fingerprint
        place.with_name("model.training").rename(place.with_name("run"))
        losses[name] = float(numbers(place.parent)[0]["soft_affinity"])
    assert losses["m"] != losses["n"]


def test_affinities_that_say_where_they_lie_are_cut_to_the_volume(tmp_path: Path) -> None:
    raw = store(tmp_path / "raw.json", np.zeros(SHAPE, np.uint8), offset=(20.0, 0.0, 50.0))
    theirs = stored((25, 24, 30))
    with h5py.File(tmp_path / "lab.h5", "w") as file:
        made = file.create_dataset("affs", data=(theirs / 255).astype(np.float32))
        made.attrs.update(resolution=(10.0, 10.0, 10.0), offset=(0.0, 0.0, 0.0))
    manifest = adopted(tmp_path / "lab.json", f"{tmp_path / 'lab.h5'}:/affs", raw)
    np.testing.assert_array_equal(voxels(manifest), theirs[ORDER][:, 2:22, :, 5:29])
    assert open_volume(read(manifest).result).offset == (20.0, 0.0, 50.0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"shape": (20, 24, 25)}, ShapeError, r"expected those of .*raw\.json, \(20, 24, 24\) from .* nm: cut them"),
        ({"axes": (1, 0, 2, 3)}, ShapeError, r"has 20 channels, expected one step z,y,x for each"),
        ({"keep": (*OFFSETS, (0, 5, 0))}, ConfigError, r"lab\.h5:/affs has no channel for the offsets \[\[0, 5, 0\]\]"),
        ({"resolution": (10.0, 10.0, 12.0)}, VoxelSizeError, r"has voxels of .*12.* nm, got .*10"),
        ({"resolution": (10.0, 10.0, 10.0), "offset": (5.0, 0.0, 0.0)}, ShapeError, "cut them out"),
    ],
)
def test_affinities_that_do_not_fit_are_refused(
    tmp_path: Path, volume: VolumeInputs, change: dict[str, Any], error: type[KdsegError], message: str
) -> None:
    values = stored(change.pop("shape", SHAPE)).transpose(change.pop("axes", (0, 1, 2, 3)))
    keep = {"keep": change.pop("keep", OFFSETS)}
    with h5py.File(tmp_path / "lab.h5", "w") as file:
        file.create_dataset("affs", data=values).attrs.update(change)
    with pytest.raises(error, match=message) as caught:
        adopted(tmp_path / "lab.json", f"{tmp_path / 'lab.h5'}:/affs", volume.raw, **keep)
    assert "\n" not in str(caught.value)
