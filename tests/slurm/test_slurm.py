"""The workflow and two users on a real SLURM of two nodes, which is started for these tests and stopped after them."""

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
from typing import NamedTuple

import numpy as np
import psutil
import pytest
import yaml
from listening import try_as_another_user
from pipeline import NEAREST, bytes_of_stages, store
from workflow import ROOT, snakemake

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("cluster.sh")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "unshare", "setpriv", "pkill")
NODES = ("first", "second")
USERS = {"ann": 64001, "bob": 64002}
STAGES = Path(__file__).with_name("stages.py")
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

    def as_user(self, user, *words):
        return [str(word) for word in (SCRIPT, "as", self.folder, user, *words)]

    def switch(self, node, how):
        """Turn a node on, or off."""
        subprocess.run([SCRIPT, how, self.folder, node], check=True)

    def state(self, node):
        return self.ask("sinfo", "--noheader", "--partition=cpu", f"--nodes={node}", "--format=%t").strip()

    def node_of(self, job):
        return self.ask("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%N").strip()

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


def wait_for(condition, every=0.5):
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(every)


@pytest.fixture(scope="module")
def cluster():
    if why := obstacle():
        pytest.skip(why)
    # not among the folders of pytest, which are closed to others: munged wants its socket where all can reach it
    with tempfile.TemporaryDirectory(prefix="kdseg-slurm-") as folder:
        programs = dict.fromkeys((sys.base_prefix, sys.prefix, str(ROOT)))
        subprocess.run([SCRIPT, "start", folder, "0-06:00:00", *programs], check=True)
        running = Cluster(folder)
        yield running
        for run in running.runs:
            run.terminate()  # where a test failed: the others have ended
            run.wait()
        subprocess.run([SCRIPT, "stop", folder], check=True)


@pytest.fixture(scope="module")
def small():
    """config/test.yaml with one network, and no teacher."""
    values = yaml.safe_load((ROOT / "config" / "test.yaml").read_text())
    teacher = values["models"]["teacher"]
    kept = {name: section for name, section in values.items() if name != "compare"}
    evaluate = {**values["evaluate"], "models": ["teacher"]}
    predict = {**values["predict"], "tile": [8, 8, 8]}  # more work, so that it can be caught at it
    partitions = {"cpu": "cpu", "gpu": "gpu"}
    return {
        **kept, "models": {"teacher": teacher}, "predict": predict, "evaluate": evaluate, "partitions": partitions
    }  # fmt: skip


def trained_with(small, **changed):
    """Return a configuration whose network is trained otherwise."""
    recipe = json.loads(json.dumps(small))
    train = {**recipe["models"]["teacher"]["train"], **changed}
    recipe["models"]["teacher"]["train"] = {k: v for k, v in train.items() if v is not None}
    return recipe


VOLUMES, MODEL, TUNE = "results/test/volumes", "results/test/teacher/model.json", "results/test/teacher/tune"


@pytest.fixture(scope="module")
def local(small, tmp_path_factory):
    """A folder where the workflow went as far as a segmentation, on this machine."""
    work = tmp_path_factory.mktemp("local")
    (work / "config.yaml").write_text(yaml.safe_dump(small))
    snakemake(work, work / "config.yaml", "--", f"{TUNE}/segmentation.json")
    return work


@pytest.fixture
def work(local, tmp_path):
    """A folder with the volumes and nothing else."""
    shutil.copytree(local / VOLUMES, tmp_path / VOLUMES, symlinks=True)
    return tmp_path


@pytest.fixture
def trained(local, work):
    """A folder with the volumes and the network."""
    model = Path(MODEL)
    shutil.copytree(
        local / model.parent, work / model.parent, symlinks=True, ignore=shutil.ignore_patterns("tune", "*.training")
    )
    return work


def files(tune, *names):
    """Return the bytes of volumes."""
    found = [path for name in names for path in (tune / f"{name}.zarr").rglob("*")]
    return {path.relative_to(tune): path.read_bytes() for path in found if path.is_file() and path.suffix != ".json"}


def test_the_workflow_runs_within_the_limits_of_its_partition(cluster, small, local, trained):
    status, said = cluster.run(trained, small)
    assert status == 0, said
    assert (trained / "results" / "test" / "report.html").exists()
    made = ("affinities", "fragments", "segmentation")
    assert files(trained / TUNE, *made) == files(local / TUNE, *made)
    jobs = cluster.jobs(trained)
    assert {job[1] for job in jobs} == {"COMPLETED"}
    times = {job[4].removeprefix("rule_").partition("_wildcards")[0]: job[3] for job in jobs}
    assert times == {
        "predict": "6:00:00",  # it might take a day: the partition does not allow more
        "fragments": "6:00:00",
        "graph_agglomerate_edges": "6:00:00",  # half of it each
        "sweep": "4:00:00",
        "segmentation_relabel_score": "6:00:00",
    }, times  # the report is made here
    moved = {**small, "partitions": {"cpu": "gpu"}}
    status, said = cluster.run(trained, moved, "--dry-run")
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
    # by the clock on any machine: SLURM, which looks every 30 seconds, ends the job before that
    config = trained_with(small, steps=None, seconds=50, validate_every=50)
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
    assert failed[3] == "1:01:00"  # what twelve steps may take
    assert "Exceeded job memory limit" in said
    assert f"job {done[0]} of SLURM" in log.read_text()
    assert "an earlier run" not in said


@pytest.fixture
def nodes(cluster):
    """Both nodes; they are made to work again."""
    yield NODES
    for node in NODES:
        if cluster.state(node) != "idle":
            cluster.switch(node, "on")
            wait_for(lambda node=node: not cluster.state(node).endswith("*"))  # it has said that it is there
            cluster.ask("scontrol", "update", f"nodename={node}", "state=undrain")
            wait_for(lambda node=node: cluster.state(node) == "idle")


def test_a_job_goes_on_elsewhere_when_its_node_is_drained_and_dies(cluster, nodes, small, local, trained):
    run = cluster.start(trained, small, "--", f"{TUNE}/fragments.json")
    wait_for(lambda: [job[1] for job in cluster.jobs(trained)] == ["RUNNING"])
    job = cluster.jobs(trained)[0][0]
    node = cluster.node_of(job)
    (other,) = set(nodes) - {node}
    cluster.ask("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    store = trained / TUNE / ".affinities"
    done = store / "32x32x32" / "predict.txt"
    wait_for(lambda: done.exists() and done.read_text().count("\n") > 1, every=0.01)  # a drained node ends no job
    cluster.switch(node, "off")
    # as if two minutes had passed: for so long a lock of another host may be held by somebody who is alive
    ago = time.time() - 150
    os.utime(store / "lock", (ago, ago))
    cluster.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    wait_for(lambda: cluster.jobs(trained)[0][1] == "PENDING")
    cluster.ask("scontrol", "update", f"jobid={job}", "starttime=now")  # else it waits for two minutes
    assert run.wait(PATIENCE_S) == 0, (trained / "said.txt").read_text()
    jobs = cluster.jobs(trained)
    assert [one[1] for one in jobs] == ["COMPLETED", "COMPLETED"]
    assert jobs[0][0] == job
    assert {cluster.node_of(one[0]) for one in jobs} == {other}
    blocks = json.loads((trained / TUNE / "affinities.status.json").read_text())["blocks"]
    assert 0 < blocks["before"] < blocks["total"]
    assert files(trained / TUNE, "affinities", "fragments") == files(local / TUNE, "affinities", "fragments")


class Shared(NamedTuple):
    """A folder that all users read.

    Attributes:
        folder: in which each has one of their own.
        affinities: to be segmented.
        environment: of all of them; what root has compiled need not be compiled again.
    """

    folder: Path
    affinities: Path
    environment: dict[str, str]


@pytest.fixture
def shared(cluster):
    with tempfile.TemporaryDirectory(prefix="kdseg-users-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        values = np.random.default_rng(2).integers(0, 256, (3, 64, 64, 128), dtype=np.uint8)
        affinities = store(folder / "affinities.json", values, offsets=[list(offset) for offset in NEAREST])
        for user, number in USERS.items():
            (folder / user).mkdir()
            os.chown(folder / user, number, number)
        places = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "NUMBA_CACHE_DIR": f"{name}/numba", "HOME": name}
        yield Shared(folder, affinities, {**os.environ, **places, "OMP_NUM_THREADS": "1"})


def as_user(cluster, shared, user, *words):
    """Start Python as another user, in their folder."""
    home = shared.folder / user
    with (home / "said.txt").open("a") as said:
        return subprocess.Popen(
            cluster.as_user(user, sys.executable, *words), cwd=home, stdout=said, stderr=said, env=shared.environment
        )


def refused(cluster, shared):
    """See what bob gets of ann, whose stage runs."""
    folder = shared.folder
    workers = (p.cmdline() for p in psutil.process_iter() if p.uids().real == USERS["ann"])
    words = next(words for words in workers if "--tls-key" in words)  # all users can see them
    (address,) = (word for word in words if word.startswith("tls://") and word != "tls://")
    assert try_as_another_user(address, folder / "ann" / "mark") == ["refused", "refused"]
    assert not (folder / "ann" / "mark").exists()
    for option in ("--tls-ca-file", "--tls-cert", "--tls-key"):
        read = cluster.as_user("bob", "cat", words[words.index(option) + 1])
        assert "Permission denied" in subprocess.run(read, capture_output=True, text=True, check=False).stderr
    theirs = folder / "ann" / "fragments.json"
    words = ("-m", "kdseg", "fragments", "--affinities", shared.affinities, "--manifest", theirs)
    assert as_user(cluster, shared, "bob", *words).wait(PATIENCE_S) == 1
    (said,) = [line for line in (folder / "bob" / "said.txt").read_text().splitlines() if "kdseg fragments: " in line]
    assert "cannot write to" in said
    assert "Permission denied" in said


def test_two_users_at_once_neither_reach_nor_disturb_each_other(cluster, shared):
    folder, affinities, environment = shared
    here = [sys.executable, STAGES, folder / "local", affinities, '{"kind": "local"}']
    subprocess.run(here, env=environment, check=True)
    subprocess.run(["chmod", "--recursive", "a+rwX", folder / "numba"], check=True)
    runs = {}
    for user, jobs, cores in (("ann", 2, 5), ("bob", 1, 1)):  # two jobs of five cores do not share a node
        where = {"kind": "slurm", "jobs": jobs, "queue": "cpu", "cores": cores, "memory": "1GB"}
        runs[user] = as_user(cluster, shared, user, STAGES, folder / user, affinities, json.dumps(where))
        cluster.runs.append(runs[user])
    wait_for(lambda: all((folder / user / "here").exists() or run.poll() is not None for user, run in runs.items()))
    assert [run.poll() for run in runs.values()] == [None, None], [(folder / u / "said.txt").read_text() for u in USERS]
    refused(cluster, shared)
    (folder / "go").touch()
    for user, run in runs.items():
        assert run.wait(PATIENCE_S) == 0, (folder / user / "said.txt").read_text()
        assert bytes_of_stages(folder / user) == bytes_of_stages(folder / "local")
    for stage in ("fragments", "edges", "agglomerate, level 0", "relabel"):
        workers = json.loads((folder / "ann" / f"{stage}.kept.json").read_text())["workers"]
        assert {name.partition(":")[0] for name, worker in workers.items() if worker["blocks"]} == set(NODES)
