"""Training on a GPU: it learns, and goes on exactly where it was stopped, in every precision."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_trainings import KILLED, NEVER, OFFSETS, assert_same_state, numbers, options
from subjects import save
from toy_volumes import cells, write_volume

from kdseg.config import ModelOptions
from kdseg.networks.checkpoint import load
from kdseg.networks.models import build
from kdseg.results.curve import Curve, read_curve
from kdseg.results.manifests import read
from kdseg.training import Result, train

TERMS = [
    {"name": "affinity"},
    {"name": "embedding"},
    {"name": "soft_affinity"},
    {"name": "graph_relation", "min_size": 2, "memory_start": 1},
    {"name": "adversarial", "widths": [4, 8]},
    {"name": "reviewkd", "levels": [0, 1], "width": 4},
    {"name": "mgd"},
]
"""Of all kinds: with targets, instances, a memory, a critic of its own, fusions, random masks."""
Volumes = dict[str, tuple[Path, Path]]


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory, gpu: bool) -> Volumes:
    folder = tmp_path_factory.mktemp("volumes")
    raw, labels = cells((40, 72, 72) if gpu else (16, 24, 24), 40 if gpu else 8)
    return {"a": (write_volume(folder / "raw.zarr", raw), write_volume(folder / "labels.zarr", labels))}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, gpu: bool) -> Path:
    return read(save(tmp_path_factory.mktemp("teacher") / "model.json", "teacher", gpu)).result


def run(folder: Path, made: ModelOptions, volumes: Volumes, device: torch.device, **more: Any) -> Result:
    return train(
        made,
        offsets=OFFSETS,
        volumes=volumes,
        out=folder / "model.safetensors",
        folder=folder / "run",
        device=str(device),
        **more,
    )


def stopped_after(steps: int, monkeypatch: pytest.MonkeyPatch, begun: Callable[[], object]) -> None:
    """Begin a run and interrupt it."""
    append = Curve.append

    def interrupted(self: Curve, row: dict[str, Any]) -> None:
        append(self, row)
        if row["step"] == steps:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Curve, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            begun()


def distilling(gpu: bool, **changes: Any) -> ModelOptions:
    """A student of `TERMS`; crops large enough that sums are shared out over the processors of a GPU."""
    large = {"crop": [32, 48, 48], "batch": 2, "validate_shape": [32, 48, 48]}
    widths = [8, 16, 32] if gpu else [2, 3]
    values = {"teacher": "t", "terms": TERMS, "steps": 5, "validate_every": 5, **(large if gpu else {}), **changes}
    return options({"kind": "unet", "widths": widths}, heads={"embedding": 4}, **values)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stopped_run_goes_on_to_the_same_weights(
    precision: str, tmp_path: Path, volumes: Volumes, teacher: Path, gpu: bool, device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    made = distilling(gpu, precision=precision)
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    stopped_after(3, monkeypatch, lambda: run(stopped, made, volumes, device, teachers=[teacher]))
    assert load(stopped / "run" / "state.pt")["step"] == 2
    run(stopped, made, volumes, device, teachers=[teacher])
    run(whole, made, volumes, device, teachers=[teacher])
    assert_same_state(stopped, whole)
    assert numbers(stopped) == numbers(whole)


@pytest.mark.parametrize("precision", ["float32", "auto", "float16"])
def test_it_learns_one_crop_by_heart(
    precision: str, tmp_path: Path, gpu: bool, device: torch.device, record_property: Callable[[str, object], None]
) -> None:
    raw, labels = cells((16, 24, 24), 5, seed=3)
    volumes = {"a": (write_volume(tmp_path / "raw.zarr", raw), write_volume(tmp_path / "labels.zarr", labels))}
    steps = 200 if gpu else 12
    made = options(
        {"kind": "unet", "widths": [8, 16] if gpu else [4, 4]}, crop=[16, 24, 24], batch=1, steps=steps,
        validate_every=steps, checkpoint_every=steps, validate_shape=[16, 24, 24], learning_rate=1e-2, warmup=5,
        ema=0.9, augment=NEVER, precision=precision,
    )  # fmt: skip
    result = run(tmp_path, made, volumes, device)
    rows = read_curve(tmp_path / "run" / "curve.csv")
    first, last = float(rows[0]["total"]), float(rows[-1]["total"])
    record_property("loss", [first, last])
    record_property("voi", result.scores.voi)
    assert last < (0.15 if gpu else 0.9 * first)
    assert not gpu or result.scores.voi < 0.8


def test_a_step_that_overflows_in_float16_changes_nothing_but_the_scale(
    tmp_path: Path, volumes: Volumes, gpu: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = options(
        precision="float16", steps=12, checkpoint_every=1, validate_every=12, ema=0.5, warmup=6,
        terms=[{"name": "affinity", "weight": 1e4}],
    )  # fmt: skip
    stopped_after(2, monkeypatch, lambda: run(tmp_path, made, volumes, device))
    state = load(tmp_path / "run" / "state.pt")
    assert state["step"] == 1
    assert state["scaler"]["scale"] == 2**15
    assert not state["optimiser"]["state"]  # AdamW has not begun
    torch.manual_seed(made.train.seed)
    fresh = build(made.network, made.heads, OFFSETS).state_dict()
    for name, weight in fresh.items():
        if weight.is_floating_point() and "running" not in name:
            assert torch.equal(state["objective"][f"network.{name}"], weight)
            assert torch.equal(state["average"][name], weight)
    run(tmp_path, made, volumes, device)
    state = load(tmp_path / "run" / "state.pt")
    done = {int(moments["step"]) for moments in state["optimiser"]["state"].values()}
    assert done == {12 - int(torch.tensor(2**16 / state["scaler"]["scale"]).log2())}
    assert all(torch.isfinite(values).all() for values in state["average"].values())
    rates = [float(row["learning_rate"]) for row in read_curve(tmp_path / "run" / "curve.csv")]
    assert rates[:6] == pytest.approx([made.train.learning_rate * n / 6 for n in range(1, 7)], rel=1e-3)


def test_one_process_of_torchrun_takes_the_steps_of_none(
    tmp_path: Path, volumes: Volumes, device: torch.device, record_property: Callable[[str, object], None]
) -> None:
    """DistributedDataParallel, SyncBatchNorm and the reductions of terms, on NCCL (here gloo)."""
    made = options(
        heads={"embedding": 4}, terms=[{"name": "affinity"}, {"name": "embedding"}], steps=3, batch=2, accumulate=2,
        validate_every=3,
    )  # fmt: skip
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    places = {name: [str(path) for path in paths] for name, paths in volumes.items()}
    values = {"options": made.model_dump(mode="json"), "offsets": OFFSETS, "volumes": places, "folder": str(shared)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", str(script)]
    done = subprocess.run(
        [*command, "finish", json.dumps(values | {"device": device.type})],
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    run(alone, made, volumes, device)
    a, b = (load(folder / "run" / "state.pt")["objective"] for folder in (shared, alone))
    off = max(float((a[name] - b[name]).abs().max()) for name in a if a[name].is_floating_point())
    record_property("weights_off", off)
    assert a.keys() == b.keys()
    assert off < 1e-4
