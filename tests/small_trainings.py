"""Trainings of seconds, and what is left of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdseg.config import ModelOptions
from kdseg.networks.checkpoint import load
from kdseg.results.curve import read_curve

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, -3))
NEVER = {
    "flip": False, "rotate": "none", "elastic": 0, "intensity": 0,
    "noise": 0, "blur": 0, "missing_section": 0, "misaligned_section": 0,
}  # fmt: skip


def options(network: dict[str, Any] | None = None, heads: dict[str, Any] | None = None, **changes: Any) -> ModelOptions:
    values = {
        "volumes": ["a"],
        "validate_on": "a",
        "steps": 6,
        "crop": [8, 12, 12],
        "validate_every": 3,
        "validate_shape": [12, 16, 16],
        "checkpoint_every": 2,
        "warmup": 2,
        "precision": "float32",
    }
    return ModelOptions.model_validate(
        {"network": network or {"kind": "unet", "widths": [2, 3]}, "heads": heads or {}, "train": values | changes}
    )


def numbers(folder: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_curve(folder / "run" / "curve.csv")]


def assert_same_state(one: Path, two: Path) -> None:
    a, b = load(one / "run" / "state.pt"), load(two / "run" / "state.pt")
    for part in a.keys() - {"seconds"}:
        assert same(a[part], b[part]), part


KILLED = """
import os, signal, sys
from kdseg.config import ModelOptions
from kdseg.results.curve import Curve
append = Curve.append
def last_words(self, row):
    append(self, row)
    if row["step"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "kill":
    Curve.append = last_words
import json, torch
from pathlib import Path
from kdseg.training import train
torch.set_num_threads(1)
job = json.loads(sys.argv[2])
train(
    ModelOptions.model_validate(job["options"]), offsets=tuple(map(tuple, job["offsets"])), volumes=job["volumes"],
    out=Path(job["folder"]) / "model.safetensors", folder=Path(job["folder"]) / "run", device=job.get("device", "cpu"),
    teachers=[Path(path) for path in job.get("teachers", [])],
)
"""


def same(a: Any, b: Any) -> bool:
    """Whether states are equal to the bit: tensors and numbers, in dicts and lists."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
