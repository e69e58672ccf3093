"""How tasks are handed to workers that come and go."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial

import pytest
from distributed import Client, Future, LocalCluster, get_worker

from kdseg.config.cluster import LocalOptions
from kdseg.errors import StageError
from kdseg.running import cluster, dask_tasks
from kdseg.running.attempt import Patience
from kdseg.running.cluster import Workers, workers_of
from kdseg.running.dask_tasks import BATCH_S, run_tasks


@pytest.fixture
def here():
    """A cluster whose workers are threads of this process."""
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.ERROR,
        ) as started,
        Client(started) as client,
    ):
        yield started, client


def where(_):
    time.sleep(0.3)
    return get_worker().address


def test_workers_that_come_later_have_work_while_others_go_on(here, monkeypatch):
    """News never stop, so that a look at the workers must not wait for a silence."""
    started, client = here
    monkeypatch.setattr(dask_tasks, "LOOK_S", 0.5)
    looks = []
    found = set()
    for finished in run_tasks(Workers(client, 60, lambda: looks.append(1) or 0), Patience(), where, range(40)):
        if not found:
            started.scale(3)
        found.add(finished.result)
    assert len(found) == 3
    assert len(looks) > 3


def lasting(seconds):
    time.sleep(seconds)
    return seconds


def of_task(seconds):
    return lasting(seconds), get_worker().get_current_task()


def test_short_items_do_not_make_tasks_of_long_ones(here):
    """Blocks without tissue, first, and then those that take long: what is done is known soon."""
    _, client = here
    items = [*[0.0] * 200, *[BATCH_S * 0.8] * 12]
    results = [finished.result for finished in run_tasks(Workers(client, 60), Patience(), of_task, items)]
    assert sorted(seconds for seconds, _ in results) == items
    assert len({task for seconds, task in results if not seconds}) < 100  # several of a task
    assert max(Counter(task for seconds, task in results if seconds).values()) == 2  # the first ends before `BATCH_S`


class Lost(Future):
    """A future whose result was lost with its worker between its end and its collection."""

    def __init__(self, status, error=None):
        self.is_now, self.error = status, error

    def __del__(self):
        pass

    def __repr__(self):
        return "lost"

    @property
    def status(self):
        return self.is_now

    def result(self, timeout=None):
        raise self.error


@pytest.mark.parametrize(
    "future",
    [Lost("pending"), Lost("lost"), Lost("finished", dask_tasks.KilledWorker("task", None, 0))],
    ids=["pending", "lost", "finished"],
)
def test_a_result_that_was_lost_is_had_again(future):
    ((one, two), _, seconds) = dask_tasks._finished(["one", "two"], future)
    assert (one.item, two.item) == ("one", "two")
    assert one.died
    assert seconds is None


def test_jobs_that_end_together_are_no_reason_to_give_up(here, monkeypatch):
    """Sixteen jobs have one walltime: all are lost, and submitted again, before another task is finished."""
    _, client = here
    monkeypatch.setattr(dask_tasks, "LOOK_S", 0.2)
    looks = []

    def revive():
        looks.append(32 if looks else 16)
        return looks[-1]

    results = run_tasks(Workers(client, 60, revive, jobs=16), Patience(), lasting, [2.0])
    assert [one.result for one in results] == [2.0]
    assert len(looks) > 2


def test_jobs_that_end_again_and_again_are_given_up(here, monkeypatch):
    _, client = here
    monkeypatch.setattr(dask_tasks, "LOOK_S", 0.2)
    submitted = iter(range(16, 1000, 4))
    with pytest.raises(StageError, match="28 jobs in a row ended without a finished block"):
        list(run_tasks(Workers(client, 60, lambda: next(submitted), jobs=16), Patience(), lasting, [6.0]))


def test_dask_is_silent(tmp_path):
    """What it says at the level INFO, tracebacks among it, is no news."""
    program = tmp_path / "silent.py"
    program.write_text(
        "import logging\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "from pathlib import Path\n"
        "from kdseg.running.cluster import workers_of\n"
        "from kdseg.config.cluster import LocalOptions\n"
        "if __name__ == '__main__':\n"
        "    with workers_of(LocalOptions(), 1, 1, Path()) as found:\n"
        "        assert found.client.nthreads()\n"
    )
    child = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True)
    assert "distributed" not in child.stderr
    assert "INFO" not in child.stderr


def stopped_once(folder, block):
    """Stop the whole worker at the first attempt at one item, as SIGSTOP does."""
    if block == 3 and not (folder / "met").exists():
        (folder / "met").touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(1.5 * BATCH_S)  # one item a task
    return block


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_worker_that_is_stopped_is_replaced(tmp_path, monkeypatch, processes):
    monkeypatch.setattr(Patience, "LEAST_S", 3.0)
    monkeypatch.setattr(dask_tasks, "LOOK_S", 0.5)
    monkeypatch.setattr(cluster, "RESTART_S", 40.0)
    monkeypatch.setattr(dask_tasks, "RESTART_S", 40.0)
    with workers_of(LocalOptions(), processes, 1, tmp_path) as workers:
        found = list(run_tasks(workers, Patience(), partial(stopped_once, tmp_path), iter(range(16))))
    assert (tmp_path / "met").exists()
    died = {one.item for one in found if one.died}
    assert 3 in died
    assert {one.item for one in found if not one.died} | died == set(range(16))
    assert len(died) <= 4  # what that worker had
