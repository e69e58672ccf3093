"""`kdseg segment`: from raw data and a trained network to neurons, by one command."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from command import invoke
from pipeline import voxels
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from toy_volumes import write_volume
from workflow import ROOT, jobs

from kdseg.cli.chain import begin
from kdseg.cli.segment import configuration
from kdseg.config import VolumeOptions, load, validate
from kdseg.config.data import SectionsOptions
from kdseg.config.questions import NeuronsTask
from kdseg.config.segmentation import WatershedOptions
from kdseg.config.shipped import Card, cards
from kdseg.config.tasks import ConvertTask
from kdseg.networks.checkpoint import load_model
from kdseg.prediction.tiles import predict_roi, predictor
from kdseg.report.roles import role
from kdseg.results.manifests import read
from kdseg.segmentation.agglomeration.linkage import cut
from kdseg.training.validation import agglomerated
from kdseg.volumes import convert
from kdseg.volumes.volume import open_volume


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a phantom, small enough that its fragments are made in one block."""
    folder = tmp_path_factory.mktemp("raw")
    options = VolumeOptions.model_validate({"phantom": {"shape": [40, 72, 72], "seed": 3}})
    convert.run(ConvertTask(kind="raw", manifest=folder / "raw.json", options=options))
    return folder


def written(out: Path) -> dict[Path, int]:
    """Return when each file of the volumes was written."""
    return {path: path.stat().st_mtime_ns for path in out.rglob("*.zarr/**/c/**/*") if path.is_file()}


def test_one_command_makes_neurons(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    words = ("segment", raw / "raw.zarr", out, "--model", "fib25-m", "--device", "cpu", "--workers", 2)
    done = invoke(*words)
    assert done.exit_code == 0, done.output
    manifest = out / "fib25-m" / "raw" / "segmentation.json"
    found = voxels(manifest)
    assert f"{read(manifest).stats['segments']} neurons: {out}/fib25-m/raw/segmentation.zarr" in done.stdout

    # the same in one piece, by other ways
    loaded, card = load_model(cards()["fib25-m"].file), cards()["fib25-m"]
    volume = open_volume(raw / "raw.zarr")
    dtype = getattr(torch, read(out / "fib25-m" / "raw" / "affinities.json").options["precision"])
    made = predictor(loaded.network, card.tile, torch.device("cpu"), dtype, offsets=loaded.offsets)
    affinities = predict_roi(made, volume.read, volume.roi, volume.roi)
    pieces, tree = agglomerated(affinities, loaded.offsets, WatershedOptions(), (10.0, 10.0, 10.0))
    merged, count = cut(tree, card.threshold), int(pieces.max()) + 1
    joined = coo_array((np.ones(len(merged[0])), merged), shape=(count, count))
    expected = connected_components(joined)[1][pieces]
    assert found.shape == (40, 72, 72)
    pairs = np.unique(np.stack([found.ravel(), expected.ravel()]), axis=1).shape[1]
    assert pairs == len(np.unique(found)) == len(np.unique(expected)) > 5

    config = out / "config.yaml"
    given = NeuronsTask(raw=str(raw / "raw.zarr"), out=out, model="fib25-m", device="cpu", workers=2)
    assert load(config) == configuration(given)
    assert jobs(tmp_path, config) <= {"all", "report"}  # the workflow goes on from here
    before, files = read(manifest), written(out)
    assert invoke(*words[:-1], 1).exit_code == 0  # on a machine with fewer cores
    assert written(out) == files  # nothing was made again
    monkeypatch.chdir(raw)  # another place, and the same by another path
    relative = ("segment", "raw.zarr", os.path.relpath(out), *words[3:])
    assert invoke(*relative).exit_code == 0
    assert written(out) == files
    other = invoke(*words, "--threshold", 0.5)
    assert other.exit_code == 1
    assert "is of another call, or was changed: name another folder, or give --overwrite" in other.stderr
    assert invoke(*words, "--threshold", 0.98, "--overwrite").exit_code == 0  # beyond what others are merged up to
    assert read(manifest).stats["segments"] < before.stats["segments"]
    assert invoke(*words, "--threshold", 0.5, "--overwrite").exit_code == 0
    assert read(manifest).stats["threshold"] == 0.5
    assert read(manifest).stats["segments"] > before.stats["segments"]


def test_a_folder_with_something_else_is_left_alone(raw: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("a: b\n")
    for more in ((), ("--overwrite",)):
        done = invoke("segment", raw / "raw.zarr", tmp_path, "--model", "fib25-m", *more)
        assert done.exit_code == 1
        assert f"{path} is no configuration that this command wrote: name another folder" in done.stderr
    assert path.read_text() == "a: b\n"


def test_a_part_and_a_file_of_ones_own(raw: Path, tmp_path: Path) -> None:
    own = shutil.copy(cards()["fib25-m"].file, tmp_path / "my net.safetensors")
    words = (
        "segment",
        raw / "raw.zarr",
        tmp_path / "out",
        "--model",
        own,
        "--roi",
        "0:32,8:40,16:48",
        "--device",
        "cpu",
    )
    refused = invoke(*words)
    assert refused.exit_code == 1
    assert "my net.safetensors: give --threshold, between 0 and 1; its own validation found 0.9 best" in refused.stderr
    assert not (tmp_path / "out").exists()
    done = invoke(*words, "--threshold", 0.4)
    assert done.exit_code == 0, done.output
    assert voxels(tmp_path / "out" / "my-net" / "raw" / "segmentation.json").shape == (32, 32, 32)
    manifest = tmp_path / "out" / "my-net" / "model.json"
    given = NeuronsTask(raw=str(raw / "raw.zarr"), out=tmp_path / "again", model=str(manifest), threshold=0.4)
    assert configuration(given).pretrained == {"model": str(manifest.with_suffix(".safetensors"))}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "fib25-x"}, "no network 'fib25-x' comes with kdseg: expected one of"),
        ({"model": "none.safetensors"}, "no model file at none.safetensors"),
        ({"raw": "none.zarr"}, "nothing at none.zarr"),
        ({"raw": "floats.zarr"}, "floats.zarr holds float32, whose range says nothing: set `--intensity LOW HIGH` to"),
        ({"raw": "sizeless.npy"}, "does not say how large its voxels are: set `--voxel-size Z Y X` in nm"),
        ({"raw": "deep.zarr"}, "deep.zarr holds uint16, few of whose values may be used: give --intensity LOW HIGH"),
        ({"roi": "0:41,0:72,0:72"}, "raw.zarr"),
        ({"out": "out put"}, "/out put': expected a path of letters, digits and ./_+=,@-"),
        ({"out": "."}, "RAW coarse.zarr lies below OUT ."),
        ({"device": "cuda:9"}, "cuda:9"),
        ({"raw": "coarse.zarr"}, r"fib25-m knows voxels of (10.0, 10.0, 10.0) nm, coarse.zarr has (40.0, 8.0, 8.0) nm"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_volume(tmp_path / "coarse.zarr", np.zeros((8, 16, 16), np.uint8), (40.0, 8.0, 8.0))
    write_volume(tmp_path / "floats.zarr", np.zeros((8, 16, 16), np.float32))
    write_volume(tmp_path / "deep.zarr", np.zeros((8, 16, 16), np.uint16))
    np.save(tmp_path / "sizeless.npy", np.zeros((8, 16, 16), np.uint8))
    given = {"raw": str(raw / "raw.zarr"), "out": "out", "model": "fib25-m", "roi": "0:8,0:16,0:16"} | change
    given["raw"] = "coarse.zarr" if given["out"] == "." else given["raw"]
    before = sorted(tmp_path.iterdir())
    options = [word for key in ("model", "roi", "device") if key in given for word in (f"--{key}", given[key])]
    done = invoke("segment", given["raw"], given["out"], *options)
    assert done.exit_code == 1
    assert message in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_sections_that_are_missing(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for z in (0, 1, 3):
        tifffile.imwrite(tmp_path / "s" / f"s{z}.tif", np.full((16, 16), 9, np.uint8))
    words = ("segment", tmp_path / "s", tmp_path / "out", "--model", "fib25-m", "--voxel-size", 10, 10, 10)
    refused = invoke(*words)
    assert refused.exit_code == 1
    assert "has 3 of the 4 sections 0 to 3; missing: 2. Add them, or set `--sections.missing`" in refused.stderr
    given = {"raw": str(tmp_path / "s"), "out": tmp_path / "out", "model": "fib25-m", "voxel_size": (10, 10, 10)}
    config = configuration(NeuronsTask.model_validate(given | {"sections": {"missing": "fill"}}))
    assert config.volumes["raw"].sections == SectionsOptions(missing="fill")
    begin(config, tmp_path / "config.yaml", overwrite=False)
    assert load(tmp_path / "config.yaml") == config


def test_what_was_tuned_for_a_network_is_used(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = cards()["fib25-m"].model_dump(exclude_unset=True) | {
        "fragments": {"watershed": {"method": "watershed", "boundary": 0.7}},
        "agglomerate": {"score": "quantile75"},
        "edges": {"histograms": True},
    }
    monkeypatch.setitem(cards(), "fib25-m", Card.model_validate(card))
    config = configuration(NeuronsTask(raw=str(raw / "raw.zarr"), out=tmp_path, model="fib25-m"))
    assert config.fragments.watershed == WatershedOptions(boundary=0.7)
    assert config.agglomerate.percent == 75
    assert config.segment.threshold == 0.9
    begin(config, tmp_path / "config.yaml", overwrite=False)
    assert load(tmp_path / "config.yaml") == config


def test_the_documented_commands_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join((ROOT / path).read_text() for path in ("docs/models.md", "README.md"))
    lines = [shlex.split(line, comments=True) for line in text.splitlines() if re.match("kdseg (segment|models)", line)]
    made: list[NeuronsTask] = []
    monkeypatch.setattr("kdseg.cli.segment.segment", made.append)
    for line in lines:
        done = invoke(*line[1:])
        assert done.exit_code == 0, done.output
    assert [task.model for task in made] == ["fib25-m"] * 4
    assert made[1].threshold == 0.8
    assert made[2].intensity == (0, 4095)
    configured = re.search(r"```yaml\n(pretrained:.*?)```", text, re.DOTALL)
    assert configured is not None
    values = yaml.safe_load((ROOT / "config" / "test.yaml").read_text()) | yaml.safe_load(configured[1])
    values["pretrained"]["other"] = "fib25-m"
    values["evaluate"]["models"] = ["teacher", "student", "other"]
    del values["compare"]
    config = validate(values)
    assert role(config, "teacher") == "teacher"
    assert role(config, "student") == "distilled student"
    assert role(config, "other") == "pretrained"
