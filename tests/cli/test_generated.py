"""Flags and JSON become one validated task; what is wrong with them is one line, exit code 2."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import tifffile
import zarr
from command import invoke
from pydantic import ValidationError
from small_trainings import options

from kdseg.cli.generated import _in_flags
from kdseg.cli.stages import STAGES
from kdseg.config import FragmentsOptions, PredictOptions, StorageOptions, questions, tasks
from kdseg.config.base import Section
from kdseg.config.cluster import SlurmOptions
from kdseg.config.data import RoiOptions
from kdseg.config.questions import EvaluateTask
from kdseg.config.segmentation import MutexOptions
from kdseg.config.tasks import FragmentsTask, PredictTask, TrainTask, VolumeInputs
from kdseg.evaluation import evaluate

PREDICT = ("--raw", "r.json", "--model", "m.json", "--manifest", "a.json")
HEAVY = ("torch", "zarr", "numba", "scipy", "dask", "numpy")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Section]:
    """Catch the tasks that stages are given."""
    found: list[Section] = []
    for module in (*(module for _, module in STAGES.values()), "kdseg.segmentation.adopt"):
        monkeypatch.setattr(import_module(module), "run", found.append)
    monkeypatch.setattr(evaluate, "run", lambda task: found.append(task) or sys.exit(0))  # before it prints
    return found


def task(made: list[Section], *words: object) -> Section:
    done = invoke(*words)
    assert done.exit_code == 0, done.stderr
    return made.pop()


def test_nested_options_are_flags_or_json_or_both(made: list[Section]) -> None:
    expected = PredictTask(
        raw="r.json",
        model="m.json",
        manifest="a.json",
        options=PredictOptions(tile=(64, 64, 64), block=(64, 64, 128)),
        storage=StorageOptions(levels=2),
    )
    nested = ("--options.block", 64, 64, 128, "--storage.levels", 2)
    assert task(made, "predict", *PREDICT, "--options.tile", 64, 64, 64, *nested) == expected
    assert task(made, "predict", *PREDICT, "--options", '{"tile": [64, 64, 64]}', *nested) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("predict", *PREDICT, "--options.fused"), "got options.fused, but a prediction is stored"),
        (
            ("fragments", "--manifest", "f.json", "--affinities", "a.json", "--predict.tile", 8, 8, 8),
            "got options of `predict`, but affinities that are stored",
        ),
    ],
)
def test_options_without_an_effect_are_refused(made: list[Section], words: tuple[object, ...], message: str) -> None:
    done = invoke(*words)
    assert (done.exit_code, made) == (2, [])
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_is_not_given_is_the_default(made: list[Section]) -> None:
    assert task(made, "predict", *PREDICT) == PredictTask(raw="r.json", model="m.json", manifest="a.json")


def test_flags_come_on_top_of_a_task(made: list[Section]) -> None:
    given = PredictTask(raw="r.json", model="m.json", manifest="a.json", storage=StorageOptions(levels=2))
    text = given.model_dump_json(include=given.model_fields_set)
    slurm = {"kind": "slurm", "jobs": 3}
    how = ("--workers", 5, "--overwrite", "--cluster", json.dumps(slurm), "--storage.remote", "s3://bucket/x")
    assert task(made, "predict", "--task", text, *how) == given.model_copy(
        update={
            "workers": 5,
            "overwrite": True,
            "cluster": SlurmOptions(kind="slurm", jobs=3),
            "storage": StorageOptions(levels=2, remote="s3://bucket/x"),
        }
    )
    assert task(made, "predict", f"--task={text}") == given


def test_a_task_of_every_kind_of_field_travels_whole(made: list[Section]) -> None:
    given = TrainTask(
        manifest="m.json",
        name="student",
        options=options(heads={"embedding": 4}, terms=[{"name": "affinity"}, {"name": "embedding", "weight": 0.25}]),
        offsets=((-1, 0, 0), (0, -1, 0), (0, 0, -1)),
        volumes={"a": VolumeInputs(raw="r.json", labels="l.json"), "b": VolumeInputs(raw="s.json")},
        stored={"heavy": {"a": {"affinities": "x.json", "embedding": "y.json"}}},
        fragments=FragmentsOptions(watershed=MutexOptions(bias=0.1), premerge=0.3),
    )
    assert task(made, "train", "--task", given.model_dump_json()) == given


def test_values_in_words(made: list[Section]) -> None:
    found: Any = task(made, "predict", *PREDICT, "--roi", "1:3,0:4,2:7")
    assert found.roi == RoiOptions(offset=(1, 0, 2), shape=(2, 4, 5))
    found = task(
        made,
        "fragments",
        "--affinities",
        "a",
        "--manifest",
        "m.json",
        "--options",
        '{"watershed": {"method": "mutex"}}',
    )
    assert found == FragmentsTask(affinities="a", manifest="m.json", options=FragmentsOptions(watershed=MutexOptions()))
    found = task(
        made, "evaluate", "a", "b", "out", "--ignore-label", 0, "--ignore-label", 7, "--ignore-segment", "none"
    )
    assert found == EvaluateTask(segmentation="a", labels="b", out="out", ignore_labels=(0, 7), ignore_segments=())
    assert task(made, "evaluate", "a", "b") == EvaluateTask(segmentation="a", labels="b")
    assert task(made, "evaluate", "--task", found.model_dump_json(), "--dust", 5) == found.model_copy(
        update={"dust": 5}
    )


WRONG = {
    "unknown flag": ((*PREDICT, "--tile", "3"), r"--tile"),
    "unknown nested flag": ((*PREDICT, "--options.til", "3", "3", "3"), r"--options\.til"),
    "two of three": ((*PREDICT, "--options.tile", "64", "64"), r"--options\.tile.* 3 .*2"),
    "no number": ((*PREDICT, "--workers", "x"), r"--workers.*\"x\".*int"),
    "too small": ((*PREDICT, "--workers", "0"), r"workers: .*greater than or equal to 1 \(got 0\)"),
    "missing": (("--raw", "r.json", "--model", "m.json"), r"--manifest"),
    "device": ((*PREDICT, "--device", "gpu"), r"device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
    "manifest": ((*PREDICT[:-1], "a"), r"manifest: expected a path that ends in \.json.*name a\.json \(got 'a'\)"),
    "region": ((*PREDICT, "--roi", "1:1,0:4,0:4"), r"roi: expected z0:z1,y0:y1,x0:x1.*'1:1,0:4,0:4'"),
    "sections that do not fit": (
        (*PREDICT, "--options.tile", "60", "64", "64"),
        r"must be a multiple of predict\.tile",
    ),
    "bad JSON of options": ((*PREDICT, "--options", '{"tile": [3,'), r"--options.*JSON"),
    "unknown key of options": ((*PREDICT, "--options", '{"til": [3, 3, 3]}'), r"--options.*til"),
    "bad JSON of a task": (("--task", '{"raw": '), r"--task: expected JSON, got .*raw"),
    "no task": (("--task", "[1]"), r"--task: expected the fields of a task as JSON, got \[1\]"),
    "unknown key of a task": (("--task", '{"row": 1}'), r"row: unknown key"),
    "missing in a task": (("--task", '{"raw": "r.json"}'), r"model: Field required"),
    "wrong in a task": (
        ("--task", '{"raw": "r", "model": "m", "manifest": "a.json", "gpus": 0}'),
        r"gpus: .*1 \(got 0\)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_understood_is_told_in_a_line(made: list[Section], case: str) -> None:
    words, message = WRONG[case]
    done = invoke("predict", *words)
    assert done.exit_code == 2
    assert done.stderr.startswith("kdseg predict: ")
    assert done.stderr.count("\n") == 1
    assert re.search(message, done.stderr), done.stderr
    assert not made


def test_every_command_that_writes_a_manifest_has_it_end_in_json() -> None:
    sections = [one for module in (questions, tasks) for one in vars(module).values() if isinstance(one, type)]
    writing = {one for one in sections if issubclass(one, Section) and "manifest" in one.model_fields}
    assert len(writing) > 15
    for task_type in writing:
        with pytest.raises(ValidationError, match=r"expected a path that ends in \.json"):
            task_type(manifest="a")


def test_an_unknown_command_is_told() -> None:
    done = invoke("segmentt")
    assert done.exit_code == 2
    assert re.fullmatch(r"kdseg segmentt: .*segmentt.*\n", done.stderr)


def test_the_environment_changes_nothing(made: list[Section], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("OVERWRITE", "1"), ("CLUSTER", '{"kind": "slurm"}'), ("REMOTE", "s3://bucket/x")):
        monkeypatch.setenv(f"KDSEG_{name}", value)
    found: Any = task(made, "predict", *PREDICT)
    assert (found.overwrite, found.cluster.kind, found.storage.remote) == (False, "local", None)


def test_help_is_grouped_and_light() -> None:
    program = f"""
import sys
from kdseg.cli import main
main(["--help"])
main(["predict", "--help"])
sys.exit(", ".join(name for name in {HEAVY} if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    places = [done.stdout.index(f"─ {group} ─") for group in ("Run", "Look", "Tools", "Stages of the workflow")]
    assert places == sorted(places)
    assert "--options.tile INT INT INT" in done.stdout
    assert re.search(r"\* +--raw PATH +Manifest of uint8 raw data", done.stdout)


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_runs_a_task(name: str) -> None:
    kind, module = STAGES[name]
    function = import_module(module).run
    (parameter,) = signature(function).parameters
    assert get_type_hints(function)[parameter] is kind


def test_commands_of_the_docs_are_understood(made: list[Section]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "segmentation.md").read_text().replace("\\\n", " ")
    commands = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("kdseg ")]
    assert [words[0] for words in commands] == [
        "adopt",
        "fragments",
        "edges",
        "agglomerate",
        "relabel",
        "tune-segmentation",
    ]
    for words in commands:
        assert task(made, *words)


def test_options_that_errors_name_are_flags_of_the_command(tmp_path: Path) -> None:
    for name, shape, place in (("a", (4, 4, 4), (8.0, 8.0, 8.0)), ("b", (2, 2, 2), None)):
        volume = zarr.create_array(tmp_path / f"{name}.zarr", data=np.ones(shape, np.uint8))
        volume.attrs.update({} if place is None else {"resolution": place})
    said = invoke("evaluate", tmp_path / "b.zarr", tmp_path / "a.zarr").stderr
    assert "give `--voxel-size Z Y X` in nm" in said
    sections = tmp_path / "sections"
    sections.mkdir()
    for z in (0, 1, 3):
        tifffile.imwrite(sections / f"s{z}.tif", np.ones((4, 4), np.uint8))
    for command in ("evaluate", "same"):
        assert "or set `--sections.missing` to leave_out" in invoke(command, sections, sections).stderr
    task = json.dumps({"kind": "raw", "options": {"raw": str(sections)}, "manifest": str(tmp_path / "raw.json")})
    assert "or set `sections.missing` to leave_out" in invoke("convert", "--task", task).stderr


def test_a_switch_is_named_as_it_is_typed() -> None:
    flags = {"overwrite", "voxel_size"}
    assert _in_flags("(or set `overwrite: true`)", flags) == "(or set `--overwrite`)"
    both = "(or set `overwrite: true`, by hand `--overwrite`)"
    assert _in_flags(both, flags) == both
    assert _in_flags("set `voxel_size: [z, y, x]`", flags) == "set `--voxel-size Z Y X`"
