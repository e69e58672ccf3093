"""Predictions elsewhere: on a real SLURM, and on a Dask scheduler that runs already; the bytes are the same."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import psutil
import pytest
from command import invoke
from distributed import Security
from listening import asks_for_credentials, listening, try_as_another_user
from pipeline import STORAGE, results_of_stages, store, voxels
from toy_models import save

from kdseg.config import PredictOptions
from kdseg.config.cluster import SlurmOptions
from kdseg.config.tasks import PredictTask
from kdseg.errors import ConfigError, StageError
from kdseg.prediction import stage as predict
from kdseg.running import slurm
from kdseg.running.attempt import Patience
from kdseg.running.cluster import workers_of
from kdseg.running.dask_tasks import run_tasks

pytestmark = pytest.mark.slow  # schedulers and SLURM, with workers of their own

SHAPE = (64, 64, 160)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cluster")
    store(path / "raw.json", np.random.default_rng(2).integers(0, 256, SHAPE, dtype=np.uint8))
    save(path / "model.json")
    return path


def run(folder, name, where, device="cpu"):
    manifest = folder / name / "affinities.json"
    options = PredictOptions(block=(32, 32, 32), tile=(16, 16, 16), precision="float32")
    model, raw = folder / "model.json", folder / "raw.json"
    predict.run(
        PredictTask(
            raw=raw,
            model=model,
            manifest=manifest,
            options=options,
            storage=STORAGE,
            device=device,
            cluster=json.loads(where),
        )
    )
    return voxels(manifest)


@pytest.fixture(scope="module")
def reference(folder):
    return run(folder, "here", '{"kind": "local"}')


@contextmanager
def started(tmp_path, *more):
    """Start a scheduler and a worker of Dask as a user does, and yield the address."""
    file = tmp_path / "scheduler.json"
    commands = (
        ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)],
        [
            "worker",
            "--scheduler-file",
            str(file),
            "--nthreads",
            "2",
            "--no-dashboard",
            "--local-directory",
            str(tmp_path),
        ],
    )
    running = []
    try:
        for command in commands:
            program = [sys.executable, "-m", "distributed.cli.dask_" + command[0], *command[1:], *more]
            running.append(subprocess.Popen(program))
            while not file.exists():
                time.sleep(0.1)
        yield json.loads(file.read_text())["address"]
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(20)


@pytest.fixture
def scheduler(tmp_path):
    with started(tmp_path) as address:
        yield address


def credentials(folder):
    """Write credentials into a new folder and return the section of the configuration that names them."""
    folder.mkdir()
    made, section = Security.temporary(), {}
    for option, text in (("ca_file", made.tls_ca_file), ("cert", made.tls_client_cert), ("key", made.tls_client_key)):
        path = folder / f"{option}.pem"
        path.write_text(text)
        section[option] = str(path)
    return section


def test_a_scheduler_that_runs_already(folder, reference, scheduler):
    found = run(folder, "there", f'{{"kind": "scheduler", "address": "{scheduler}"}}')
    assert (found == reference).all()


def test_a_scheduler_that_asks_for_credentials(folder, reference, tmp_path):
    ours, others = credentials(tmp_path / "ours"), credentials(tmp_path / "others")
    flags = [text for option, path in ours.items() for text in (f"--tls-{option.replace('_', '-')}", path)]
    with started(tmp_path, "--protocol", "tls", *flags) as address:
        cluster = {"kind": "scheduler", "address": address}
        assert (run(folder, "secured", json.dumps({**cluster, "tls": ours})) == reference).all()
        for problem, tls in (
            (
                "no Dask scheduler answers at tls://.* to the credentials of `tls`: TLS certificate does not match",
                others,
            ),
            (
                "no Dask scheduler answers at tls://.* to the credentials of `tls`: ",
                {**others, "ca_file": ours["ca_file"]},
            ),
            (r"the files of `tls` .*gone\.pem.* cannot be used: .*No such file", {**ours, "cert": "gone.pem"}),
        ):
            with pytest.raises(ConfigError, match=problem):
                run(folder, "strange", json.dumps({**cluster, "tls": tls}))


def segmented(folder, name, where='{"kind": "local"}'):
    return results_of_stages(folder / name, folder / "here" / "affinities.json", (32, 32, 32), json.loads(where))


@pytest.fixture(scope="module")
def segments(folder, reference):
    found = segmented(folder, "segmented")
    assert len(found) > 30
    return found


def test_stages_on_a_scheduler_that_runs_already(folder, segments, scheduler):
    assert segmented(folder, "segmented there", f'{{"kind": "scheduler", "address": "{scheduler}"}}') == segments
    for stage in ("fragments", "edges", "agglomeration", "segmentation"):
        workers = json.loads((folder / "segmented there" / f"{stage}.status.json").read_text())["workers"]
        assert workers
        assert not any(name.endswith(f":{os.getpid()}") for name in workers)


def test_a_scheduler_that_is_not_there(folder):
    with pytest.raises(ConfigError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        run(folder, "nowhere", '{"kind": "scheduler", "address": "tcp://127.0.0.1:9", "wait_minutes": 0.02}')


def test_what_workers_elsewhere_have_is_not_guessed(folder):
    with pytest.raises(ConfigError, match="say `device: cuda` or `cpu`"):
        run(folder, "nowhere", '{"kind": "scheduler", "address": "tcp://127.0.0.1:9"}', device="auto")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"kind": "slurm", "walltime": "soon"}', "walltime"),
        ('{"kind": "pbs"}', "kind"),
        ('{"jobs": 3}', "cluster: 'kind' is missing"),
        ('{"kind": "slurm", "memory": "16"}', "memory"),
        (
            '{"kind": "scheduler", "address": "tls://login1:8786"}',
            r"tls://login1:8786 needs credentials: add `tls: {ca_",
        ),
        (
            '{"kind": "scheduler", "address": "tcp://login1:8786", "tls": {"ca_file": "a", "cert": "b"}}',
            "`tls` is for an address that begins with tls://, got tcp://login1:8786",
        ),
        ('{"kind": "slurm", "walltime": 43200}', "walltime: expected text: put it in quotes"),
        ('{"kind": "slurm", "directives": "--gres=gpu:1"}', r"directives: expected a list, `\[a, b, c\]`"),
    ],
)
def test_sections_that_are_not_understood(text, problem):
    done = invoke("predict", "--raw", "r.json", "--model", "m.json", "--manifest", "a.json", "--cluster", text)
    assert done.exit_code == 2
    assert re.search(problem, done.stderr), done.stderr


needs_slurm = pytest.mark.skipif(
    not shutil.which("sbatch") or subprocess.run(["sinfo"], capture_output=True, check=False).returncode != 0,
    reason="no SLURM here: sbatch is missing or sinfo fails",
)
SLURM = '{"kind": "slurm", "jobs": 2, "queue": "cpu", "cores": 1, "memory": "1GB", "walltime": "00:10:00"}'


def begun(program, folder):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", program, str(folder)], env=environment)


@needs_slurm
def test_slurm(folder, reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (run(folder, "slurm", SLURM) == reference).all()
    assert not _jobs()


@needs_slurm
def test_stages_on_slurm_while_a_job_is_cancelled_and_a_worker_is_stopped(folder, segments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = (
        "import sys; from pathlib import Path; import test_cluster as t\n"
        "from kdseg.running import attempt, dask_tasks\n"
        "attempt.Patience.LEAST_S, dask_tasks.LOOK_S = 10.0, 1.0\n"
        "t.segmented(Path(sys.argv[1]), 'on slurm', t.SLURM)"
    )
    child = begun(program, folder)
    place = folder / "on slurm"

    def wait_for(listed):
        while not (listed.exists() and listed.read_text().count("\n") >= 2):
            assert child.poll() is None, "the stage ended too early"
            time.sleep(0.02)

    wait_for(place / ".fragments" / "32x32x32" / "fragments.txt")
    subprocess.run(["scancel", _jobs()[0]], check=True)
    wait_for(place / ".edges" / "32x32x32" / "edges.txt")
    stopped = [p.pid for p in psutil.process_iter() if "distributed" in " ".join(p.cmdline()) and p.ppid() != child.pid]
    os.kill(stopped[-1], signal.SIGSTOP)
    assert child.wait(400) == 0
    assert segmented(folder, "on slurm") == segments  # it is all there: nothing is done again


@needs_slurm
def test_a_job_that_is_cancelled_is_submitted_again(folder, reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = (
        "import sys, time; from pathlib import Path; import test_cluster as t; "
        "t.run(Path(sys.argv[1]), 'cancelled', t.SLURM.replace('\"jobs\": 2', '\"jobs\": 1'))"
    )
    child = begun(program, folder)
    list_of_done = folder / "cancelled" / ".affinities" / "32x32x32" / "predict.txt"
    while not list_of_done.exists():
        assert child.poll() is None
        time.sleep(0.05)
    (first,) = _jobs()
    subprocess.run(["scancel", first], check=True)
    assert child.wait(300) == 0
    assert (voxels(folder / "cancelled" / "affinities.json") == reference).all()


@needs_slurm
def test_jobs_that_slurm_refuses_are_not_waited_for(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StageError, match=r"SLURM refuses the jobs: .*[Ii]nvalid partition"):
        run(folder, "refused", SLURM.replace('"cpu"', '"nowhere"'))


@needs_slurm
def test_an_interface_that_is_not_there(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="'nowhere0' is not a valid network interface"):
        run(folder, "interface", SLURM.replace('"cores"', '"interface": "nowhere0", "cores"'))


@needs_slurm
def test_jobs_that_end_at_once_are_not_submitted_for_ever(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cluster = SLURM.replace('"cores"', '"prologue": ["exit 3"], "wait_minutes": 0.5, "cores"')
    with pytest.raises(StageError, match=r"no worker appeared within 0\.5 minutes"):
        run(folder, "barren", cluster)


def _jobs():
    """Jobs that wait or run; those that were cancelled are listed for a while, as completing."""
    return subprocess.run(
        ["squeue", "-h", "-t", "PENDING,RUNNING", "-o", "%i"], capture_output=True, text=True, check=True
    ).stdout.split()


@needs_slurm
def test_jobs_that_all_end_before_a_worker_came(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm, "ASK_S", 4.0)
    with pytest.raises(StageError, match=r"all 2 jobs ended before a worker of theirs came: see slurm-\d+\.out, slurm"):
        run(folder, "ended", SLURM.replace('"cores"', '"prologue": ["exit 3"], "cores"'))


@needs_slurm
def test_jobs_that_all_end_and_others_that_are_refused(folder, tmp_path, monkeypatch):
    """A limit lets SLURM take some of the jobs only; when these are gone, there is nothing to wait for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm, "ASK_S", 4.0)
    limited = tmp_path / "bin" / "sbatch"
    limited.parent.mkdir()
    limited.write_text(f'#!/bin/sh\nmkdir {tmp_path}/taken || exit 1\nexec {shutil.which("sbatch")} "$@"\n')
    limited.chmod(0o755)
    monkeypatch.setenv("PATH", str(limited.parent), prepend=":")
    with pytest.raises(StageError, match=r"all 1 jobs ended before a worker of theirs came: see slurm-\d+\.out,"):
        run(folder, "limited", SLURM.replace('"cores"', '"prologue": ["exit 3"], "wait_minutes": 1, "cores"'))


@needs_slurm
def test_a_job_that_ends_before_its_worker_came_is_submitted_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm, "ASK_S", 4.0)
    options = SlurmOptions.model_validate_json(
        SLURM.replace('"cores"', '"prologue": ["mkdir tried && exit 3"], "cores"')
    )
    with workers_of(options, 2, 1, tmp_path) as workers:
        for _ in run_tasks(workers, Patience(), time.sleep, [0.5] * 600):
            if len(workers.client.nthreads()) == 2:
                break
        else:
            pytest.fail("the second worker never came")


@needs_slurm
def test_nobody_else_reaches_the_jobs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a folder"
    folder.mkdir()
    before = listening(psutil.Process())
    with workers_of(SlurmOptions.model_validate_json(SLURM), 2, 1, folder) as workers:
        (private,) = folder.iterdir()
        assert private.stat().st_mode & 0o777 == 0o700
        assert [one.result for one in run_tasks(workers, Patience(), abs, [-1])] == [1]
        worker, nanny = next(iter(workers.client.run(lambda: (os.getpid(), os.getppid())).values()))
        for found in listening(psutil.Process()) - before, listening(*map(psutil.Process, (worker, nanny))):
            assert found
            assert all(asks_for_credentials(*one) for one in found), found
        assert try_as_another_user(workers.client.scheduler.address, tmp_path / "mark") == ["refused", "refused"]
    assert not (tmp_path / "mark").exists()
    assert not list(folder.iterdir())
