"""kdseg tune: what it tries, what it prints, and the memory that it states in advance."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from command import invoke

from kdseg.config import PredictOptions
from kdseg.config.networks import HeadOptions, UNetOptions
from kdseg.networks.checkpoint import LoadedModel, save_model
from kdseg.networks.models import build
from kdseg.prediction import tune
from kdseg.prediction.tiles import Predictor, tile_memory

OPTIONS = UNetOptions(widths=(4, 6), downsample=((1, 3, 3),))
OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("tune") / "model.safetensors"
    torch.manual_seed(0)
    save_model(path, LoadedModel(build(OPTIONS, HeadOptions(), OFFSETS), OPTIONS, HeadOptions(), OFFSETS, (8, 8, 8)))
    return path


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(tune, "EDGES", (16, 32))


def tuned(model, *more):
    result = invoke("tune", str(model), "--device", "cpu", "--seconds", "0", *more)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_fastest_comes_first_and_its_line_is_a_configuration(model, few):
    rows = json.loads(tuned(model, "--json"))
    assert {tuple(row["tile"]) for row in rows} == {(8, 18, 18), (16, 18, 18), (16, 33, 33), (32, 33, 33)}
    assert {row["precision"] for row in rows} >= {"float32"}
    speeds = [row["mvox_per_s"] for row in rows]
    assert speeds == sorted(speeds, reverse=True)
    first = tune.Trial(**{**rows[0], "tile": tuple(rows[0]["tile"])})
    options = PredictOptions.model_validate(yaml.safe_load(first.options)["predict"])
    assert list(options.tile) == rows[0]["tile"]
    assert options.precision == rows[0]["precision"]


def test_memory_bounds_what_is_tried(model, few):
    rows = json.loads(tuned(model, "--json"))
    largest = max(row["memory_mb"] for row in rows)
    fewer = json.loads(tuned(model, "--json", "--memory", str(largest * 0.99)))
    assert 0 < len(fewer) < len(rows)
    assert "no tile fits" in tuned(model, "--memory", "0.01")


def test_what_runs_out_of_memory_is_a_row(model, few, monkeypatch):
    called = Predictor.__call__

    def scarce(predict, raw):
        if predict.tile[0] == 32:
            raise torch.OutOfMemoryError("no")
        return called(predict, raw)

    monkeypatch.setattr(Predictor, "__call__", scarce)
    printed = tuned(model).splitlines()
    table = [line for line in printed if "float" in line and "predict:" not in line]
    assert any("32x33x33" in line and "out of memory" in line for line in table)
    assert "out of memory" not in table[0]
    assert "may change the last bits" in printed[-1]


PROGRAM = """
import sys, numpy as np, torch
from kdseg.config.networks import HeadOptions, UNetOptions
from kdseg.prediction.tiles import predictor
from kdseg.networks.models import build

def status(field):
    with open("/proc/self/status") as file:
        return 1024 * int(next(line for line in file if line.startswith(field)).split()[1])

torch.set_num_threads(1)
network = build(UNetOptions(widths=(4, 8, 16)), HeadOptions(), ((-1, 0, 0), (0, -1, 0), (0, 0, -1)))
for edge in (4, 96):
    predict = predictor(network, (edge,) * 3, torch.device("cpu"), torch.float32)
    raw = np.full([edge + 2 * h for h in predict.halo], 7, np.uint8)
    before = status("VmRSS:")
    predict(raw)
print(status("VmHWM:") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_a_tile_is_known_in_advance():
    network = build(UNetOptions(widths=(4, 8, 16)), HeadOptions(), OFFSETS)
    told = tile_memory(network, (96, 96, 96), torch.float32)
    took = int(subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout)
    assert 0.55 < took / told < 1.3  # 0.69 to 0.85 were seen


def test_memory_grows_with_the_tile_and_the_precision():
    network = build(OPTIONS, HeadOptions(), OFFSETS)
    small, wide = (tile_memory(network, (24, 24, 24), dtype) for dtype in (torch.bfloat16, torch.float32))
    assert 1.7 < wide / small < 2
    assert tile_memory(network, (48, 48, 48), torch.bfloat16) > 3 * small


def test_tiles_that_need_huge_blocks_are_not_advised():
    """Blocks are whole shards, too: of tiles of 160 voxels, 640 along each axis."""
    huge, small = (
        tune.Trial((160, 160, 160), "float32", 2.0, 1.5, 900),
        tune.Trial((64, 128, 128), "float32", 1.9, 2, 300),
    )
    failed = tune.Trial((32, 32, 32), "float32", None, 4, 10)
    assert tune.advised([huge, small, failed]) == small
    assert tune.advised([huge, failed]) == huge
