"""Dask workers for prediction: one process per GPU, or per CPU core. The only module that knows Dask's scheduler."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import dask
from distributed import Client, LocalCluster, as_completed

from kdseg.errors import KdsegError, StageError

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)

WINDOW = 4
"""Tasks in flight per worker: enough that none waits, few enough that the scheduler's memory is flat."""
_DEATHS = 3
"""Workers that may die under one task before it is given up."""


@contextmanager
def local_client(workers: int) -> Iterator[Client]:
    """Yield a client of ``workers`` fresh processes of this machine, one task at a time each.

    They start from nothing (no fork), listen on the loopback only, and end with the body.
    """
    settings = {
        "distributed.scheduler.allowed-failures": _DEATHS,
        "distributed.worker.daemon": False,
        # compiled code may hold a worker for minutes; that of a dead one closes its connection
        "distributed.scheduler.worker-ttl": None,
        "distributed.comm.timeouts.connect": "60s",
        # A single thread per process: more processes, not more threads, and the same arithmetic everywhere.
        "distributed.nanny.pre-spawn-environ": {
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "MALLOC_TRIM_THRESHOLD_": 65536,
        },
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            host="127.0.0.1",
            memory_limit=None,
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def run_tasks(client: Client, function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Yield each item with its result, in the order in which they finish.

    Only a bounded window of tasks is known to the scheduler at any time, and results are released at once:
    memory does not grow with the number of items. A task whose worker dies runs again elsewhere, so
    ``function`` must be idempotent.

    Raises:
        StageError: at the first item that fails, with its cause; what is in flight is cancelled.
    """
    waiting = iter(items)
    workers = max(len(client.scheduler_info(n_workers=-1)["workers"]), 1)
    running = {client.submit(function, item, pure=False): item for item in islice(waiting, WINDOW * workers)}
    finished = as_completed(list(running))
    for future in finished:
        item = running.pop(future)
        if future.status != "finished":
            cause = future.exception()
            client.cancel(list(running))
            message = str(cause) if isinstance(cause, KdsegError) else f"{type(cause).__name__}: {cause}"
            raise StageError(f"block {item}: {message}; finished blocks are kept: mend it and rerun")
        result = future.result()
        future.release()
        for following in islice(waiting, 1):
            submitted = client.submit(function, following, pure=False)
            running[submitted] = following
            finished.add(submitted)
        yield item, result


def worker_number() -> int:
    """Return the number of this process among the workers of `local_client`, from 0."""
    from distributed import get_worker

    return int(get_worker().name)
