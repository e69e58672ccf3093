"""The Snakemake workflow: whole, resumable, and reruns only what its own options change."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from kdseg.manifests import store_of
from kdseg.volume import open_volume

ROOT = Path(__file__).parents[1]
FINAL = "student/tune/segmentation.json"


def snakemake(folder, config, *arguments, check=True):
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder, "--cores", "2",
        "--configfile", config, "--workflow-profile", ROOT / "profiles" / "default", *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, check=False)
    logs = "\n".join(path.read_text() for path in folder.rglob("*.log") if ".snakemake" not in path.parts)
    if check:
        assert done.returncode == 0, done.stderr[-3000:] + logs[-3000:]
    return done.stdout + done.stderr + logs


def jobs(folder, config):
    """Return the rules that would run now."""
    text = snakemake(folder, config, "--dry-run")
    return {line.split()[1].rstrip(":") for line in text.splitlines() if line.startswith(("rule ", "localrule "))}


@pytest.fixture(scope="module")
def values():
    return yaml.safe_load((ROOT / "config" / "test.yaml").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory, values):
    """A finished run of config/test.yaml: its folder and its configuration."""
    folder = tmp_path_factory.mktemp("workflow")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    snakemake(folder, config)
    return folder, config


def voxels(folder):
    volume = open_volume(store_of(folder / "results" / "test" / FINAL))
    return volume.read(volume.roi)


def test_the_run_ends_with_a_scored_report(finished):
    folder, config = finished
    results = folder / "results" / "test"
    assert "<html" in (results / "report.html").read_text()
    for model in ("teacher", "student_alone", "student"):
        stats = json.loads((results / model / "tune" / "scores.json").read_text())["stats"]
        assert stats["scores"]["voi"] >= 0
        assert stats["model"] == model
    assert len(np.unique(voxels(folder))) > 1
    assert jobs(folder, config) == set()


@pytest.mark.parametrize(
    ("section", "key", "value", "first", "spared"),
    [
        ("agglomerate", "thresholds", [0.2, 0.5], {"agglomerate", "sweep", "segment", "report"}, {"predict", "edges"}),
        ("evaluate", "dust", 3, {"sweep", "evaluate", "report"}, {"agglomerate", "predict"}),
    ],
)
def test_only_what_an_option_concerns_runs_again(finished, tmp_path, values, section, key, value, first, spared):
    folder, _ = finished
    changed = json.loads(json.dumps(values))
    changed[section][key] = value
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(changed))
    found = jobs(folder, config)
    assert first <= found
    assert not spared & found


def test_a_changed_option_is_refused_until_it_is_cleared_or_overwritten(finished, tmp_path, values):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder, symlinks=True)
    changed = json.loads(json.dumps(values))
    changed["evaluate"]["dust"] = 3
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(changed))
    text = snakemake(folder, config, check=False)
    assert "options.dust was 0, is 3" in text
    assert "kdseg clear" in text
    changed["overwrite"] = True
    config.write_text(yaml.safe_dump(changed))
    snakemake(folder, config)
    stats = json.loads((folder / "results" / "test" / "student" / "tune" / "scores.json").read_text())
    assert stats["options"]["dust"] == 3


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_bytes(finished, tmp_path, values):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", tmp_path, "--cores", "2",
        "--configfile", config, "--workflow-profile", ROOT / "profiles" / "default", "--nolock",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # One kill in each stage: as soon as its claim is there, the stage is at work.
    work = tmp_path / "results" / "test"
    claims = ["volumes/train/.raw", "teacher/.model", "student/.model"]
    claims += [f"student/tune/.{stage}" for stage in ("affinities", "fragments", "edges", "agglomeration")]
    claims += [f"student/tune/.{stage}" for stage in ("sweep", "segmentation", "scores")]
    for claim in claims:
        run = subprocess.Popen(
            list(map(str, command)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        while not (work / claim / "claim.json").exists() and run.poll() is None:
            time.sleep(0.01)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    snakemake(tmp_path, config, "--nolock")
    assert (voxels(tmp_path) == voxels(finished[0])).all()
