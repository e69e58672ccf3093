"""The workflow on a real SLURM of one node, which is started for these tests and stopped after them."""

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from workflow import ROOT

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("cluster.sh")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "unshare")
DAEMONS = {"slurmctld", "slurmd"}
PATIENCE_S = 400
"""Time for one workflow, or for what a test waits for."""


def obstacle():
    """Return why no SLURM can be started here; empty if one can."""
    if os.geteuid() != 0:
        return "a SLURM of our own takes root"
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"{', '.join(missing)} not found: apt install munge slurmctld slurmd slurm-client"
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        return "no Snakemake plugin for SLURM: pip install 'kdseg[slurm]'"
    if DAEMONS & {Path(line.partition("\0")[0]).name for line in command_lines()}:
        return "another SLURM runs on this machine"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        return "no folder may be mounted here"
    return ""


def command_lines():
    """Yield those of all processes; of zombies they are empty."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            yield path.read_text(errors="replace")


class Cluster:
    """A SLURM that runs in a folder."""

    def __init__(self, folder):
        self.folder, self.runs = folder, []

    def command(self, *words):
        return [str(word) for word in (SCRIPT, "in", self.folder, *words)]

    def ask(self, *words):
        return subprocess.run(self.command(*words), capture_output=True, text=True, check=True).stdout

    def jobs(self, work):
        """Return state, memory [MB], minutes and comment of each job that was submitted from a folder, in order."""
        listed = self.ask("squeue", "--noheader", "--states=all", "--sort=i", "--format=%i|%T|%m|%l|%k|%Z")
        rows = [line.split("|") for line in listed.splitlines()]
        return [row[:5] for row in rows if row[5] == str(work)]

    def start(self, work, config, *arguments):
        """Start the workflow."""
        (work / "config.yaml").write_text(yaml.safe_dump(config))
        command = self.command(
            sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", work,
            "--configfile", work / "config.yaml", "--workflow-profile", ROOT / "profiles" / "default",
            "--profile", ROOT / "profiles" / "slurm", "--slurm-init-seconds-before-status-checks", "1", *arguments,
        )  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (work / "said.txt").open("w") as said:
            run = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        self.runs.append(run)
        return run

    def run(self, work, config, *arguments):
        """Return the exit status of the workflow, and what it said."""
        run = self.start(work, config, *arguments)
        return run.wait(PATIENCE_S), (work / "said.txt").read_text()


def wait_for(condition):
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.5)


@pytest.fixture(scope="module")
def cluster():
    if why := obstacle():
        pytest.skip(why)
    # not among the folders of pytest, which are closed to others: munged wants its socket where all can reach it
    with tempfile.TemporaryDirectory(prefix="kdseg-slurm-") as folder:
        subprocess.run([SCRIPT, "start", folder, "0-06:00:00"], check=True)
        running = Cluster(folder)
        yield running
        for run in running.runs:
            run.terminate()  # where a test failed: the others have ended
            run.wait()
        subprocess.run([SCRIPT, "stop", folder], check=True)


@pytest.fixture(scope="module")
def small(values):
    """config/test.yaml with one network, and no teacher."""
    teacher = values["models"]["teacher"]
    kept = {name: section for name, section in values.items() if name != "compare"}
    evaluate = {**values["evaluate"], "models": ["teacher"]}
    return {**kept, "models": {"teacher": teacher}, "evaluate": evaluate, "partitions": {"cpu": "cpu", "gpu": "gpu"}}


def trained_with(small, **changed):
    """Return a configuration whose network is trained otherwise."""
    recipe = json.loads(json.dumps(small))
    train = {**recipe["models"]["teacher"]["train"], **changed}
    recipe["models"]["teacher"]["train"] = {k: v for k, v in train.items() if v is not None}
    return recipe


@pytest.fixture(scope="module")
def converted(cluster, small, tmp_path_factory):
    """A folder with volumes and nothing else, to be copied."""
    work = tmp_path_factory.mktemp("converted")
    wanted = [f"results/test/volumes/{name}/{kind}.json" for name in ("train", "tune") for kind in ("raw", "labels")]
    status, said = cluster.run(work, small, "--", *wanted)
    assert status == 0, said
    return work


@pytest.fixture
def work(converted, tmp_path):
    shutil.copytree(converted / "results", tmp_path / "results", symlinks=True)
    return tmp_path


MODEL = "results/test/teacher/model.json"


def test_the_workflow_runs_within_the_limits_of_its_partition(cluster, small, work):
    status, said = cluster.run(work, small)
    assert status == 0, said
    assert (work / "results" / "test" / "report.html").exists()
    jobs = cluster.jobs(work)
    assert {job[1] for job in jobs} == {"COMPLETED"}
    times = {job[4].removeprefix("rule_").partition("_wildcards")[0]: job[3] for job in jobs}
    assert times == {
        "train": "1:01:00",  # what twelve steps may take
        "predict": "6:00:00",  # it might take a day: the partition does not allow more
        "fragments": "6:00:00",
        "graph_agglomerate_edges": "6:00:00",  # half of it each
        "sweep": "4:00:00",
        "segmentation_relabel_score": "6:00:00",
    }, times  # the report is made here
    moved = {**small, "partitions": {"cpu": "gpu"}}
    status, said = cluster.run(work, moved, "--dry-run")
    assert status == 0, said
    assert "Nothing to be done" in said, said


def test_a_cancelled_job_is_told_of_and_the_next_asks_for_more(cluster, small, work):
    run = cluster.start(work, trained_with(small, steps=10**6), "--retries", "1", "--", MODEL)
    for attempt in (1, 2):

        def running(attempt=attempt):
            states = [job[1] for job in cluster.jobs(work)]
            return len(states) == attempt and states[-1] == "RUNNING"

        wait_for(running)
        cluster.ask("scancel", cluster.jobs(work)[-1][0])
    assert run.wait(PATIENCE_S) != 0
    said = (work / "said.txt").read_text()
    assert said.count("SLURM status is: 'CANCELLED'") == 2, said
    first, second = (int(job[2].rstrip("M")) for job in cluster.jobs(work))
    assert second == 2 * first


def test_a_training_that_its_time_ends_goes_on_in_the_next_job(cluster, small, work):
    training = work / "results" / "test" / "teacher" / "model.training"
    curve, state = training / "curve.csv", training / "state.pt"
    # a minute by the clock on any machine: SLURM, which looks every 30 seconds, ends the job in the first half of it
    config = trained_with(small, steps=None, seconds=60, validate_every=50)
    run = cluster.start(work, config, "--", MODEL)
    wait_for(state.exists)
    # the steps before the first state; later ones may be done again
    begun = "".join(
        curve.read_text().splitlines(keepends=True)[: 1 + small["models"]["teacher"]["train"]["checkpoint_every"]]
    )
    cluster.ask("scontrol", "update", f"jobid={cluster.jobs(work)[0][0]}", "endtime=now")
    assert run.wait(PATIENCE_S) == 0, (work / "said.txt").read_text()
    assert [job[1] for job in cluster.jobs(work)] == ["TIMEOUT", "COMPLETED"]
    said = (work / "said.txt").read_text()
    assert "SLURM status is: 'TIMEOUT'" in said
    assert "DUE TO TIME LIMIT" in said
    # with the seconds of each step, which no training has twice
    assert curve.read_text().startswith(begun)


def test_a_job_of_too_much_memory_says_so_and_is_started_with_more(cluster, small, work):
    log = work / "results" / "test" / "teacher" / "logs" / "train.log"
    log.parent.mkdir(parents=True)
    log.write_text("an earlier run")
    # a set value, like all, may say what a further attempt asks for
    status, said = cluster.run(
        work, small, "--set-resources", "train:mem_mb=250 if attempt == 1 else 4000", "--", MODEL
    )
    assert status == 0, said
    failed, done = cluster.jobs(work)
    assert (failed[1], done[1]) == ("FAILED", "COMPLETED")
    assert (failed[2], done[2]) == ("250M", "4000M")
    assert "Exceeded job memory limit" in said
    assert f"job {done[0]} of SLURM" in log.read_text()
    assert "an earlier run" not in said
