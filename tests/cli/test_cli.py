"""What a user sees of bad input: one clear line, exit code 1, and no result that looks complete."""

import json
import re
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
import yaml
from command import invoke
from workflow import ROOT

from kdseg.results.claims import claim
from kdseg.results.sealed import write_sealed
from kdseg.volumes.volume import open_volume


def kdseg(*arguments, cwd):
    command = [sys.executable, "-m", "kdseg", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=120)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["raw"] = np.arange(20 * 20 * 20, dtype=np.uint8).reshape(20, 20, 20)
        file["raw"].attrs["resolution"] = (10, 10, 10)
        file["nosize"] = np.zeros((20, 20, 20), np.uint8)
        file["line"] = np.zeros(20, np.uint8)
        file["empty"] = np.zeros((0, 20, 20), np.uint8)
        file["complex"] = np.zeros((20, 20, 20), np.complex64)
        nan = np.zeros((20, 20, 20), np.float32)
        nan[3, 3, 3] = np.nan
        file["nan"] = nan
        for name in ("line", "empty", "complex", "nan"):
            file[name].attrs["resolution"] = (10, 10, 10)
    (tmp_path / "cut.h5").write_bytes(path.read_bytes()[:3000])
    return tmp_path


CONVERT = {
    "missing file": ({"raw": "b.h5:/raw"}, r"b\.h5"),
    "missing dataset": ({"raw": "a.h5:/rav"}, r"rav.*raw"),
    "truncated file": ({"raw": "cut.h5:/raw"}, r"cut\.h5"),
    "missing voxel size": ({"raw": "a.h5:/nosize"}, r"voxel_size"),
    "wrong voxel size": ({"raw": "a.h5:/raw", "voxel_size": [8, 8, 8]}, r"8.*10|10.*8"),
    "one axis": ({"raw": "a.h5:/line"}, r"\(20,\)"),
    "empty": ({"raw": "a.h5:/empty"}, r"0, 20, 20"),
    "type": ({"raw": "a.h5:/complex"}, r"complex64"),
    "NaN": ({"raw": "a.h5:/nan", "intensity": [0, 1]}, r"NaN"),
    "region": ({"raw": "a.h5:/raw", "roi": {"offset": [10, 0, 0], "shape": [20, 20, 20]}}, r"20"),
}


@pytest.mark.parametrize("case", CONVERT)
def test_bad_data(source, case):
    options, message = CONVERT[case]
    done = kdseg("convert", "--kind", "raw", "--manifest", "raw.json", "--options", json.dumps(options), cwd=source)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("kdseg convert: ")
    assert re.search(message, last)
    if case != "NaN":  # found within a block: the log above the last line says where
        assert "Traceback" not in done.stderr
    assert not (source / "raw.json").exists()


def test_good_data(source):
    options = json.dumps({"raw": "a.h5:/raw"})
    done = kdseg("convert", "--kind", "raw", "--manifest", "raw.json", "--options", options, cwd=source)
    assert done.returncode == 0, done.stderr
    assert (source / "raw.json").exists()
    again = kdseg("convert", "--kind", "raw", "--manifest", "raw.json", "--options", '{"raw": "a.h5:/rav"}', cwd=source)
    assert again.returncode == 1
    cleared = kdseg("clear", "raw.json", cwd=source)
    assert cleared.returncode == 0
    assert sorted(path.name for path in source.iterdir()) == ["a.h5", "cut.h5"]


def test_a_typo_in_the_configuration(tmp_path):
    (tmp_path / "c.yaml").write_text("volumez: {}\n")
    done = kdseg("check", "c.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert "volumez: unknown key" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(tmp_path):
    write_sealed(tmp_path / "model.json", {"fingerprint": "a", "store": "model.safetensors"})
    write_sealed(tmp_path / "raw.json", {"fingerprint": "a", "store": "raw.zarr"})
    arguments = ["--raw", "raw.json", "--model", "model.json", "--manifest", "a.json", "--options", "{}"]
    done = kdseg("predict", *arguments, "--device", "cuda", cwd=tmp_path)
    assert done.returncode == 1
    assert "no CUDA here: use 'cpu' or 'auto'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_input(tmp_path):
    done = kdseg("fragments", "--affinities", "none.json", "--manifest", "f.json", "--options", "{}", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip() == "kdseg fragments: no manifest at none.json: run the stage that makes it"


def test_a_phantom_can_be_used_as_a_source(tmp_path):
    done = kdseg("phantom", "p", "--shape", 16, 20, 24, "--seed", 3, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    options = json.dumps({"raw": "p/raw.zarr", "labels": "p/labels.zarr"})
    for kind in ("raw", "labels"):
        done = kdseg("convert", "--kind", kind, "--manifest", f"{kind}.json", "--options", options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert open_volume(tmp_path / "labels.zarr").shape == (16, 20, 24)


def test_help_lists_every_command(tmp_path):
    text = kdseg("--help", cwd=tmp_path).stdout
    for command in (
        "phantom",
        "convert",
        "train",
        "predict",
        "fragments",
        "edges",
        "relabel",
        "segment",
        "models",
        "score",
        "evaluate",
        "report",
    ):
        assert command in text


def test_a_device_that_is_not_known(tmp_path):
    found = kdseg("tune", "model.json", "--device", "cuad", cwd=tmp_path)
    assert found.returncode == 2
    assert "expected auto, cpu, cuda or cuda:N, got 'cuad'" in found.stderr


def test_a_command_ends_without_a_search_for_garbage():
    said = "import atexit, gc; atexit.register(lambda: print('kept', gc.get_freeze_count())); "
    run = [sys.executable, "-c", f"{said}from kdseg.cli import main; main(['models'])"]
    text = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert int(text.split("kept ")[1]) > 10_000


def test_the_first_help_says_where_to_begin():
    assert re.search(r"New here\?\W+kdseg init .*kdseg check .*kdseg run", invoke().stdout, re.DOTALL)


def test_a_model_that_is_not_named_is_said_where_to_find():
    done = invoke("segment", "raw.zarr", "out")
    assert done.exit_code == 2
    assert done.stderr.rstrip().endswith("requires an argument. `kdseg models` lists the networks that come with kdseg")


def test_the_status_of_a_configuration_is_that_of_its_results(tmp_path):
    example = yaml.safe_load((ROOT / "config" / "test.yaml").read_text())
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**example, "results": str(tmp_path / "results")}))
    assert "no folder at" in invoke("status", tmp_path / "c.yaml").stderr
    with claim(tmp_path / "results" / "a.json", "convert", {}, {}):
        pass
    done = invoke("status", tmp_path / "c.yaml")
    assert done.exit_code == 0
    assert done.stdout == "1 finished; voxels were not read: `kdseg verify` does that\n"
