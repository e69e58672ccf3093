"""Shells never read a text of the configuration as anything but a text."""

import contextlib
import json
import os
import re
import shlex
import subprocess
from functools import reduce

import pytest
import yaml
from pydantic import ValidationError
from workflow import snakemake

from kdseg.config import Config, validate
from kdseg.config.cluster import PartitionsOptions, SlurmOptions
from kdseg.errors import ConfigError
from kdseg.results.claims import claim
from kdseg.running.slurm import slurm_jobs

POISON = """x;touch canary;$(touch canary)`touch canary`&touch canary|touch canary>canary "'*~\\ #"""
SLURM = {
    "kind": "slurm", "queue": "gpu", "account": "lab", "memory": "16GB", "walltime": "04:00:00",
    "directives": ["--gres=gpu:1"], "prologue": ["module load cuda"], "interface": "ib0",
}  # fmt: skip
SCHEDULER = {"kind": "scheduler", "address": "tcp://node:8786"}
STORED = {"outputs": "stored"}
FILES = ("raw.h5", "labels.h5", "baseline.h5", "mask.h5", "a.h5", "s.h5", "edits.csv", "n.pt2", "w.pt", "m.safetensors")


@pytest.fixture
def base(values):
    """A valid configuration, but for `cluster` and `cpu_cluster`, with each option that is a text."""
    base = unshared(values)
    base["storage"]["remote"] = "s3://bucket/prefix"
    base["volumes"] |= {
        "real": {"raw": "raw.h5:/a", "labels": "labels.h5:/a", "baseline": "baseline.h5:/a", "mask": "mask.h5:/a"}
    }
    base["teachers"] = {
        "affine": {"affinities": {"real": "a.h5:/a"}, "offsets": Config.model_fields["offsets"].default},
        "segmented": {"segmentation": {"real": "s.h5:/a"}},
        "net": {"file": "n.pt2"},
        "function": {
            "module": "json:dumps", "files": ["w.pt"], "voxel_size": [10, 10, 10], "outputs": "logits",
            "offsets": Config.model_fields["offsets"].default,
        },
    }  # fmt: skip
    base["pretrained"] = {"trained": "m.safetensors"}
    base["reuse"] = "results/before"
    models = base["models"]
    models["teacher"]["train"]["start_from"] = "m.safetensors"
    for teacher, teaching in (("affine", STORED), ("segmented", STORED), ("net", {}), ("function", {})):
        student = unshared(models["student"])
        student["train"] |= {"teacher": teacher, "teaching": teaching, "volumes": ["real"], "unlabelled": ["real"]}
        models[f"of-{teacher}"] = student
    several = unshared(models["student"])
    several["train"]["teacher"] = ["teacher", "student_alone"]
    models["of-several"] = several
    base["agglomerate"] |= {"score": "mean", "edits": "edits.csv"}
    base["evaluate"] |= {"models": ["student"], "volumes": ["tune", "real"]}
    base["compare"]["volumes"] = ["tune"]
    base["tune_segmentation"] = {"regions": [{"volume": "tune"}], "score": ["mean"], "apply": "none"}
    base["partitions"] = {"cpu": "long", "gpu": "gpu"}
    return base | {"results": "made/it", "title": "Title", "device": "cpu"}


def unshared(values):
    """Return a deep copy in which nothing is there twice."""
    return json.loads(json.dumps(values))


def texts(node, defs, path=(), seen=()):
    """Yield the paths of all options of a JSON schema that are texts, and the keys that people choose."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        if name not in seen:
            yield from texts(defs[name], defs, path, (*seen, name))
    for member in [one for key in ("anyOf", "oneOf", "allOf") for one in node.get(key, ())]:
        yield from texts(member, defs, path, seen)
    if node.get("type") == "string" and not {"const", "enum"} & node.keys():
        yield path
    for key, member in node.get("properties", {}).items():
        yield from texts(member, defs, (*path, key), seen)
    chosen = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
    for member in [one for one in chosen if isinstance(one, dict)]:
        yield (*path, "KEY")
        yield from texts(member, defs, (*path, "*"), seen)
    for member in [*node.get("prefixItems", ()), node.get("items")]:
        if isinstance(member, dict):
            yield from texts(member, defs, (*path, "*"), seen)


def places(values, path):
    """Yield the containers and keys of a configuration that a path of the schema stands for."""
    if len(path) == 1 and path[0] in ("*", "KEY"):
        yield from ((values, key) for key in (values if isinstance(values, dict) else range(len(values))))
    elif len(path) == 1:
        yield from [(values, path[0])] if isinstance(values, dict) and path[0] in values else ()
    elif path[0] == "*":
        for member in values.values() if isinstance(values, dict) else values:
            yield from places(member, path[1:]) if isinstance(member, dict | list) else ()
    elif isinstance(values, dict) and isinstance(values.get(path[0]), dict | list):
        yield from places(values[path[0]], path[1:])


def poison(values, path, number, how):
    """Poison one of the texts at a path in place, and return whether it is one."""
    holder, key = [*places(values, path)][number]
    if path[-1] == "KEY":
        holder[how.replace("{}", key)] = unshared(holder[key])
    elif isinstance(holder[key], str):
        holder[key] = how.replace("{}", holder[key])
    return path[-1] == "KEY" or isinstance(holder[key], str)


def accepted(base):
    """Return a configuration with all the poison that is accepted, and the options that have no value."""
    schema, found, untried = Config.model_json_schema(), unshared(base), []
    for path in dict.fromkeys(texts(schema, schema["$defs"])):
        tried = 0
        for number in range(len([*places(base, path)])):
            for how in (POISON + "{}", "{}" + POISON, "{};>canary;", "{}\ntouch canary"):
                values = unshared(base)
                tried += poison(values, path, number, how)
                with contextlib.suppress(ConfigError):
                    validate(values)
                    poison(found, path, number, how)
                    break
        untried += [] if tried else [path]
    return found, untried


@pytest.mark.slow
@pytest.mark.parametrize(("cluster", "cpu_cluster"), [(SLURM, SCHEDULER), (SCHEDULER, SLURM)])
def test_no_text_of_the_configuration_is_run_by_a_shell(base, tmp_path, cluster, cpu_cluster):
    base = base | {"cluster": cluster, "cpu_cluster": cpu_cluster}
    validate(base)
    found, untried = accepted(base)
    # a path into the cluster of the other kind is one of the other case
    assert not [path for path in untried if not path[0].endswith("cluster")], "give them a value in `base`"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(found))
    for name in (*FILES, *(POISON + name for name in FILES)):
        (tmp_path / name).touch()
    with claim(tmp_path / found["reuse"] / "student" / "tune" / "fragments.json", "fragments", {}, {}):
        pass  # else there is nothing to reuse
    targets = ["report.html", "compare.html", "student/rate.json", "trained/model.json"]
    targets += [f"of-{name}/model.json" for name in ("affine", "segmented", "net", "function")]
    text = snakemake(
        tmp_path, tmp_path / "config.yaml", *(f"{found['results']}/{one}" for one in targets), "tune_segmentation",
        "--dry-run", "--printshellcmds",
    )  # fmt: skip
    commands = re.findall(r"^Shell command: (.*-m kdseg .*)$", text, re.MULTILINE)
    names = {command.split("-m kdseg ")[1].split()[0] for command in commands}
    assert {"convert", "adopt", "train", "pretrained", "predict", "agglomerate", "score", "rate", "report"} <= names
    assert sum(POISON in "".join(words(json.loads(task_of(command)))) for command in commands) > 10
    stub = tmp_path / "bin" / "python"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\necho "$#"\n')
    stub.chmod(0o700)
    environment = {"PATH": f"{stub.parent}:{os.environ['PATH']}"}
    for command in commands:
        for folder in re.findall(r"> '?(\S*)/\S+\.log", command):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, check=False)
        assert not (tmp_path / "canary").exists(), command


def task_of(command):
    """Return the task that a shell hands to a command, as JSON."""
    found = shlex.split(command)
    return found[found.index("--task") + 1]


def words(node):
    """Yield the texts in JSON values."""
    if isinstance(node, dict | list):
        for member in node.values() if isinstance(node, dict) else node:
            yield from words(member)
    elif isinstance(node, str):
        yield node


@pytest.mark.slow
def test_no_option_of_slurm_but_the_prologue_is_run_by_the_script_of_a_job(tmp_path, monkeypatch):
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setattr("sys.executable", f"{tmp_path}/py thon; touch canary; true")
    script, run = tmp_path / "job.sh", []
    for key, value in {**SLURM, "cores": "1", "jobs": "1"}.items():
        for nasty in ("{}; touch canary", "{}$(touch canary)", "{}\ntouch canary"):
            text = nasty.replace("{}", value if isinstance(value, str) else value[0])
            given = {"kind": "slurm", key: [text] if isinstance(value, list) else text}
            with contextlib.suppress(ValidationError):
                options = SlurmOptions.model_validate(given)
                run.append(key)
                with slurm_jobs(options, 1, {}, tmp_path) as jobs:
                    script.write_text(jobs.cluster.job_script())
                subprocess.run(["bash", script], cwd=tmp_path, capture_output=True, check=False)
                assert (tmp_path / "canary").exists() == (key == "prologue"), given
                (tmp_path / "canary").unlink(missing_ok=True)
    assert set(run) == {"directives", "prologue"}


@pytest.mark.parametrize("key", ["cpu", "gpu"])
def test_a_partition_is_one_word(key):
    """Snakemake's plugin puts it into a command."""
    assert PartitionsOptions.model_validate({key: "long-1"})
    for text in ("long; touch canary", "long\n", "$(id)", "-x"):
        with pytest.raises(ValidationError, match=key):
            PartitionsOptions.model_validate({key: text})


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "x\n=1"])
def test_no_name_is_a_formula_of_a_spreadsheet(values, name):
    """Tables for spreadsheets hold names as they are."""
    for path in (("volumes",), ("models",), ("compare", "methods")):
        changed = unshared(values)
        names = reduce(dict.__getitem__, path, changed)
        names[name] = next(iter(names.values()))
        with pytest.raises(ConfigError, match=r"expected letters from A to Z, digits, _ and -, the first one a letter"):
            validate(changed)
