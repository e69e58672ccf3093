"""Distillation without labels: what stands for ground truth is the teachers' own segmentation, and is called so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline import store
from seeing import Seeing, write_seeing
from small_trainings import NEVER, OFFSETS, options
from torch import Tensor
from toy_volumes import cells, write_volume

from kdseg.config.networks import HeadOptions
from kdseg.config.segmentation import WatershedOptions
from kdseg.config.tasks import TrainTask, VolumeInputs
from kdseg.config.teachers import FileTeacher
from kdseg.errors import DataError, MissingError, ShapeError
from kdseg.geometry import Roi
from kdseg.networks.checkpoint import load_model
from kdseg.networks.models import Network, Outputs, Widths
from kdseg.networks.models.base import Heads
from kdseg.networks.models.device import Ranks
from kdseg.prediction.averaging import averaged_over
from kdseg.prediction.tiles import predict_roi, predictor
from kdseg.results.curve import read_curve
from kdseg.results.manifests import read
from kdseg.training import stage
from kdseg.training.agreement import taught_crop
from kdseg.training.run import Data, validation
from kdseg.training.sampling import Crops, Guide, Source
from kdseg.training.teaching import Teachers
from kdseg.training.validation import Validation, validate
from kdseg.volumes.volume import create_volume

SHAPE = (20, 24, 24)
CPU = torch.device("cpu")
ALONE: dict[str, Any] = {"terms": [{"name": "soft_affinity"}], "teacher": "lab", "augment": NEVER}


class Seer(Network):
    """The same as one of ours."""

    halo, stride = (3, 3, 3), (1, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.seeing, self.heads = Seeing(), Heads(len(OFFSETS), HeadOptions(), OFFSETS)
        weight, bias = self.head("affinities")
        with torch.no_grad():
            weight.copy_(torch.eye(len(OFFSETS))[..., None, None, None])
            bias.zero_()

    def forward(self, raw: Tensor) -> Outputs:
        seen = self.seeing(raw)
        return Outputs(self.heads(seen), (seen,))


@pytest.fixture
def raw() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return cells(SHAPE, 6)[0]


def judged(source: Source, teachers: Teachers, **changes: Any) -> Validation:
    made = options(**{**ALONE, "crop": [12, 12, 12], "validate_shape": [16, 20, 20], **changes}).train
    return taught_crop(source, teachers, made, OFFSETS, WatershedOptions(), Ranks(CPU))


def online(network: Network) -> Teachers:
    widths = Widths({"affinities": len(OFFSETS)}, (), ())
    return Teachers((network,), widths, OFFSETS, symmetries=averaged_over("none", SHAPE, cubic=True))


def test_a_teacher_agrees_with_itself(tmp_path: Path, raw: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """Online crop by crop, stored, and as validation segments a network in one piece: one segmentation."""
    source = Source("a", write_volume(tmp_path / "raw.zarr", raw), None)
    seer = Seer()
    crop = judged(source, online(seer))
    assert crop.agreement
    assert crop.roi == Roi((2, 2, 2), (16, 20, 20))
    assert len(np.unique(crop.labels)) > 3
    scores = validate(seer, crop, OFFSETS, torch.float32, CPU, WatershedOptions())
    assert scores.voi == pytest.approx(0, abs=1e-9)
    whole = Roi((0, 0, 0), SHAPE)
    found = predict_roi(predictor(seer, SHAPE, CPU, torch.float32), lambda roi: raw[roi.slices()], whole, whole)
    stored = create_volume(
        tmp_path / "t.zarr", shape=SHAPE, dtype=np.uint8, chunk=SHAPE, shard=SHAPE, voxel_size=(10.0,) * 3,
        channels=len(OFFSETS), attributes={"offsets": [list(offset) for offset in OFFSETS]},
    )  # fmt: skip
    stored.write(stored.roi, found)
    guided = Source("a", tmp_path / "raw.zarr", None, Guide((tmp_path / "t.zarr",)))
    again = judged(guided, Teachers((), Widths({"affinities": len(OFFSETS)}, (), ()), OFFSETS))
    np.testing.assert_array_equal(again.labels, crop.labels)


def test_what_cannot_be_judged_is_refused(tmp_path: Path, raw: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    source = Source("a", write_volume(tmp_path / "raw.zarr", raw), None)
    with pytest.raises(DataError, match=r"one object at most .* set another `teaching\.threshold`"):
        judged(source, online(Seer()), teaching={"threshold": 1.0})

    class Narrow(Seer):
        def forward(self, raw: Tensor) -> Outputs:
            outputs = super().forward(raw)
            known = torch.ones_like(outputs.logits["affinities"], dtype=torch.bool)
            known[..., :4] = False
            return outputs._replace(known=known)

    with pytest.raises(ShapeError, match="more than a quarter"):
        judged(source, online(Narrow()))


def test_what_is_stored_of_the_validation_volume_is_checked(
    tmp_path: Path, raw: np.ndarray[Any, np.dtype[np.uint8]]
) -> None:
    made = options(**ALONE | {"teaching": {"outputs": "stored"}})
    path = write_volume(tmp_path / "raw.zarr", raw)
    data = Data({"a": (path, None)}, {}, ())
    teachers = Teachers((), Widths({"affinities": len(OFFSETS)}, (), ()), OFFSETS)
    with pytest.raises(MissingError, match="affinities of 0 of the 1 teachers"):
        validation(data, made.train, teachers, OFFSETS, WatershedOptions(), Ranks(CPU))


def test_crops_without_labels(tmp_path: Path, raw: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    pair = (write_volume(tmp_path / "raw.zarr", raw), None)
    crops = Crops(options(**ALONE).train, {"a": pair})
    assert [crops.labelled(step) for step in range(3)] == [0, 0, 0]
    assert not any(crops[number].mask.any() for number in range(4))
    both = options(**{**ALONE, "terms": [{"name": "affinity"}, {"name": "soft_affinity"}]}).train
    with pytest.raises(MissingError, match="has no labels, but is trained on"):
        Crops(both, {"a": pair})


def test_a_student_is_distilled_without_a_single_label(
    tmp_path: Path, raw: np.ndarray[Any, np.dtype[np.uint8]]
) -> None:
    """It learns, its best weights are those that agree best, and nothing calls that an accuracy."""
    write_seeing(tmp_path / "lab.ts", (2, 1, 8, 12, 12))
    lab = FileTeacher(file=str(tmp_path / "lab.ts"), offsets=OFFSETS, voxel_size=(10.0,) * 3, outputs="logits")
    made = options(**ALONE, steps=60, validate_every=20, learning_rate=2e-2, ema=0.0, crop=[12, 12, 12])
    values = {"offsets": OFFSETS, "device": "cpu", "foreign": {"lab": lab}}
    volumes = {"a": VolumeInputs(raw=store(tmp_path / "raw.json", raw))}
    stage.run(TrainTask(manifest=tmp_path / "model.json", name="m", options=made, volumes=volumes, **values))
    found = read(tmp_path / "model.json")
    rows = read_curve(tmp_path / "model.training" / "curve.csv")
    assert not {"voi", "arand"} & rows[0].keys()
    agreed = {int(row["step"]): float(row["agreement_voi"]) for row in rows if row["agreement_voi"]}
    assert list(agreed) == [20, 40, 60]
    assert found.stats["best_agreement_voi"] == pytest.approx(min(agreed.values()), rel=1e-5)
    assert "best_voi" not in found.stats
    assert found.inputs.keys() == {"a/raw", "lab/file0"}
    assert load_model(found.result).meta["scores"]["agreement_voi"] == found.stats["best_agreement_voi"]
    losses = [float(row["soft_affinity"]) for row in rows]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
