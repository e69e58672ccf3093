"""The stage `predict` on a GPU: its processes, and what it does when memory is full or a worker loses the GPU."""

from __future__ import annotations

import json
from pathlib import Path

import faults
import pytest
import torch
from faults import faulty_block, little_memory
from pipeline import STORAGE, store, voxels
from subjects import OFFSETS, grey, network_of, predicted, save

from kdseg.config import PredictOptions
from kdseg.config.tasks import PredictTask
from kdseg.errors import StageError
from kdseg.geometry import Block, Roi
from kdseg.networks.models import resolve_precision
from kdseg.prediction import stage as predict
from kdseg.prediction.tiles import predict_roi, predictor
from kdseg.results.manifests import read
from kdseg.running.attempt import attempt
from kdseg.running.telemetry import status_path

SHAPE = (32, 64, 64)
TILE = (32, 32, 32)


def test_processes_and_lost_workers_change_no_byte(
    tmp_path: Path, gpu: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes share a card; one loses it, a block has no room: the rest is kept, and one process does it."""
    raw = grey(SHAPE)
    store(tmp_path / "raw.json", raw)
    model, manifest = save(tmp_path / "model.json", "student", gpu), tmp_path / "affinities.json"
    options = PredictOptions(block=TILE, tile=TILE)
    monkeypatch.setattr(predict, "predict_block", faulty_block)

    def run(processes: int) -> None:
        count = {"gpus": processes} if gpu else {"workers": processes}
        predict.run(
            PredictTask(
                raw=tmp_path / "raw.json",
                model=model,
                manifest=manifest,
                options=options,
                storage=STORAGE,
                device=str(device),
                **count,
            )
        )

    with pytest.raises(StageError, match=r"1 of 4 blocks failed.*OutOfMemoryError: CUDA out of memory.*predict\.tile"):
        run(2)
    facts = json.loads(status_path(manifest).read_text())
    assert [tuple(failure["block"]) for failure in facts["failures"]] == [faults.NO_ROOM]
    assert facts["blocks"]["done"] == 3
    assert facts["blocks"]["retries"] >= 3  # two for want of room, one since its worker ended
    assert (tmp_path / "lost").exists()
    monkeypatch.undo()
    run(1)
    assert json.loads(status_path(manifest).read_text())["blocks"]["before"] == 3
    assert read(manifest).stats["device"] == device.type
    expected = predicted(
        predictor(network_of("student", gpu), TILE, device, resolve_precision("auto", device), offsets=OFFSETS), raw
    )
    assert (voxels(manifest) == expected).all()


def test_a_tile_that_is_too_large_gives_its_memory_back(gpu: bool, device: torch.device) -> None:
    if not gpu:
        pytest.skip("the CPU has no memory of its own that could be full")
    whole = Roi((0, 0, 0), SHAPE)
    block, raw = Block((0, 0, 0), whole), grey(SHAPE)
    small, large = (
        predictor(network_of("teacher", gpu), tile, device, torch.float32, offsets=OFFSETS)
        for tile in (TILE, (128, 128, 128))
    )

    def work(block: Block, *_: object) -> bool:
        predict_roi(large, lambda roi: raw[roi.slices()], whole, block.roi)
        return True

    predicted(small, raw)
    with little_memory(2**30):
        before = torch.cuda.memory_reserved(0)
        outcome = attempt(work, block)
        assert outcome.trouble == "transient"
        assert outcome.error.startswith("OutOfMemoryError: CUDA out of memory.")
        assert "choose a smaller predict.tile" in outcome.error
        assert "\n" not in outcome.error
        assert torch.cuda.memory_reserved(0) <= before + 2**27
        predicted(small, raw)
