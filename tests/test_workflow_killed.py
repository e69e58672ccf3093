"""The Snakemake workflow, killed in each of its stages."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from workflow import ROOT, snakemake, voxels


def progress(work, claim):
    """Return whether a stage has something to resume, or is done."""
    folder, name = (work / claim).parent, Path(claim).name.removeprefix(".")
    begun = [*folder.glob(f".{name}/[0-9]*x*/*"), *folder.glob(f"{name}.training/state.pt")]
    return bool(begun) or (folder / f"{name}.json").exists()


@pytest.mark.slow
def test_killed_in_each_stage_it_ends_with_the_same_bytes(finished, tmp_path, values):
    config = tmp_path / "config.yaml"
    changed = json.loads(json.dumps(values))
    changed["workers"] = 2  # the other run has one: their number changes nothing
    # two models suffice to be killed side by side
    changed["models"] = {name: changed["models"][name] for name in ("teacher", "student")}
    changed["evaluate"]["models"] = ["teacher", "student"]
    config.write_text(yaml.safe_dump(changed))
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", tmp_path, "--cores", "2",
        "--configfile", config, "--workflow-profile", ROOT / "profiles" / "default",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    work = tmp_path / "results" / "test"
    claims = ["volumes/train/.raw", "teacher/.model", "student/.model"]
    claims += [f"student/tune/.{stage}" for stage in ("affinities", "fragments", "edges", "agglomeration")]
    claims += [f"student/tune/.{stage}" for stage in ("sweep", "segmentation", "scores")]
    for claim in claims:
        log = tmp_path / "log.txt"
        with log.open("w") as file:
            run = subprocess.Popen(
                list(map(str, command)), stdout=file, stderr=file, env=environment, start_new_session=True
            )
        while not progress(work, claim):
            assert run.poll() is None, f"it ended before {claim}:\n{log.read_text()}"
            time.sleep(0.01)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    snakemake(tmp_path, config)
    for name in ("labels", "affinities", "fragments", "segmentation"):
        path = Path("volumes/tune" if name == "labels" else "student/tune") / f"{name}.json"
        one, other = (voxels(folder, path) for folder in (tmp_path, finished[0]))
        assert (one == other).all(), name
    for name in ("edges", "agglomeration"):
        one, other = (folder / "results/test/student/tune" / f"{name}.tables" for folder in (tmp_path, finished[0]))
        assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
        assert all(path.read_bytes() == (other / path.name).read_bytes() for path in one.iterdir()), name
