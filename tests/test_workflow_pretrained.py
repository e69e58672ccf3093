"""The workflow with networks that are trained already: taught by, scored beside, and compared under one."""

import json
import shutil

import pytest
import yaml
from workflow import jobs, snakemake

from kdseg.config.shipped import cards


@pytest.mark.slow
def test_a_shipped_network_teaches_and_is_scored(tmp_path, values):
    own = shutil.copy(cards()["fib25-m"].file, tmp_path / "own.safetensors")
    del values["models"]["teacher"], values["models"]["student_alone"]
    values["pretrained"] = {"teacher": "fib25-m", "other": own.name}
    values["models"]["student"]["train"] |= {"teacher": ["teacher", "other"], "teaching": {"outputs": "stored"}}
    values["models"]["started"] = json.loads(json.dumps(values["models"]["student"]))
    values["models"]["started"]["network"]["widths"] = [8, 16, 32]
    values["models"]["started"]["train"] |= {"start_from": "fib25-m", "teaching": {"outputs": "online"}}
    values["evaluate"]["models"] = ["teacher", "student"]
    values["compare"] |= {"seeds": [0], "methods": {"kd": {"terms": [{"name": "soft_affinity"}]}}}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    wanted = ("results/test/report.html", "results/test/started/model.json", "results/test/compare.html")
    snakemake(tmp_path, config, *wanted)

    results = tmp_path / "results" / "test"
    for name in ("teacher", "other"):
        made = json.loads((results / name / "model.json").read_text())
        assert made["stage"] == "pretrained"
        assert (results / name / "model.safetensors").read_bytes() == own.read_bytes()
    inputs = json.loads((results / "student" / "model.json").read_text())["inputs"]
    assert {"teacher/train/affinities.json", "other/train/affinities.json"} <= inputs.keys()
    started = json.loads((results / "started" / "model.json").read_text())["inputs"]
    assert started["start_from"] == started["teacher/model"] == cards()["fib25-m"].sha256
    summary = (results / "report.txt").read_text()
    assert "85,249" in summary
    assert "teacher" in (results / "compare.txt").read_text()
    assert jobs(tmp_path, config) == set()

    own.write_bytes(cards()["fib25-m-distilled"].file.read_bytes())  # another network at the same place
    assert {"pretrained", "predict", "train"} <= jobs(tmp_path, config)
