"""`kdseg distil`: from a network in a file and raw data to a segmentation, by one command."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from command import invoke
from pipeline import voxels
from seeing import write_seeing
from small_trainings import OFFSETS
from toy_volumes import cells, write_volume
from workflow import ROOT

from kdseg.cli import distil
from kdseg.cli.distil import configuration
from kdseg.config import load
from kdseg.config.data import SectionsOptions
from kdseg.config.questions import DistilTask
from kdseg.errors import ConfigError, KdsegError, MissingError, ShapeError
from kdseg.results.claims import clear
from kdseg.results.manifests import read

STEPS = " ".join(",".join(map(str, offset)) for offset in (OFFSETS[3], *OFFSETS[:3]))


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    raw = write_volume(tmp_path / "raw.zarr", cells((24, 32, 32), 8)[0])
    teacher = write_seeing(tmp_path / "lab.ts", (2, 1, 8, 12, 12))
    known = {"offsets": STEPS, "outputs": "logits", "voxel_size": (10.0, 10.0, 10.0), "device": "cpu"}
    return {"teacher": teacher, "raw": str(raw), "out": tmp_path / "out", "widths": (2, 4), "steps": 12, **known}


def words(given: dict[str, Any]) -> list[object]:
    found: list[object] = []
    for key, value in given.items():
        flag = f"--{key.replace('_', '-')}"
        if key == "widths":  # repeated, as there may be any number
            found += [word for width in value for word in (flag, width)]
        else:
            found += [flag, *(value if isinstance(value, tuple) else (value,))]
    return found


@pytest.mark.slow
def test_one_command_does_it_all(given: dict[str, Any]) -> None:
    done = invoke("distil", *words(given))
    assert done.exit_code == 0, done.output
    assert "nobody knows how well" in done.stdout
    assert "That is an agreement, not an accuracy" in done.stdout
    out = given["out"]
    assert load(out / "config.yaml") == configuration(DistilTask(**given))
    manifest = out / "student" / "raw" / "segmentation.json"
    segmented, weights = voxels(manifest), (out / "student" / "model.safetensors").read_bytes()
    assert segmented.shape == (24, 32, 32)
    assert segmented.any()
    assert read(manifest).stats["threshold"] == read(out / "student" / "model.json").stats["best_threshold"]
    for name in ("edges", "segmentation"):
        clear(out / "student" / "raw" / f"{name}.json")
    again = invoke("distil", *words(given))  # as after a kill
    assert again.exit_code == 0, again.output
    np.testing.assert_array_equal(voxels(manifest), segmented)
    assert (out / "student" / "model.safetensors").read_bytes() == weights
    other = invoke("distil", *words(given | {"steps": 13}))
    assert other.exit_code == 1
    assert "is of another call, or was changed: name another folder, or give --overwrite" in other.stderr


def test_the_configuration_follows_the_data(given: dict[str, Any], tmp_path: Path) -> None:
    config = configuration(DistilTask(**given))
    assert config.offsets == OFFSETS  # the nearest first
    assert config.models["student"].train.crop == (24, 32, 32)
    both = ((0, 0, 1), (-1, 0, 0), (1, 0, 0), (0, 0, -1), (0, -1, 0))  # of each axis one goes first
    assert distil._nearest_first(given["teacher"], both) == (both[1], both[4], both[0], both[2], both[3])
    flat = write_volume(tmp_path / "flat.zarr", np.zeros((9, 70, 70), np.uint8), (40.0, 8.0, 8.0))
    made = DistilTask(**given | {"raw": str(flat), "voxel_size": (40.0, 8.0, 8.0), "widths": (2, 4, 8, 8)})
    student = configuration(made).models["student"]
    assert student.network.downsample == ((1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert student.network.kernels == ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3))
    assert student.train.crop == (8, 64, 64)


def test_sections_that_are_missing(given: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for z in [*range(20), *range(21, 24)]:
        tifffile.imwrite(tmp_path / "s" / f"s{z}.tif", np.full((32, 32), 9, np.uint8))
    given["raw"] = str(tmp_path / "s")
    with pytest.raises(ShapeError, match="missing: 20"):
        configuration(DistilTask(**given))
    config = configuration(DistilTask(**given, sections=SectionsOptions(missing="fill")))
    assert config.volumes["raw"].sections == SectionsOptions(missing="fill")
    assert config.models["student"].train.crop == (24, 32, 32)


def test_the_documented_commands_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "distillation.md").read_text()
    commands = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("kdseg distil")]
    made: list[DistilTask] = []
    monkeypatch.setattr(distil, "distil", made.append)
    for command in commands:
        done = invoke(*command)
        assert done.exit_code == 0, done.output
    assert [task.teacher.name for task in made] == ["net.pt2", "net.ts"]
    assert made[1].offsets == OFFSETS[:3]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"offsets": None}, ConfigError, "does not say its offsets: give --offsets"),
        ({"offsets": "-1,0,0 0,-1,0 0,0,-3"}, ConfigError, "a step of one voxel along each axis"),
        ({"teacher": "none.ts"}, MissingError, "no teacher at none.ts"),
        ({"outputs": None}, ConfigError, "does not say its outputs"),
        ({"raw": "none.zarr"}, MissingError, "nothing at none.zarr"),
        ({"widths": (2,) * 7}, ShapeError, r"has \(24, 32, 32\) voxels, expected \[64, 64, 64\] at least"),
    ],
)
def test_bad_input_is_refused(
    given: dict[str, Any], change: dict[str, Any], error: type[KdsegError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        configuration(DistilTask(**given | change))
    assert "\n" not in str(caught.value)
