"""Dask workers on this machine, on SLURM, or of a running scheduler.

Dask runs whatever a client sends it: clusters that are started here listen with TLS and serve only who has their
credentials, which are made anew each time. Their HTTP servers, which ask for none, are closed.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import NamedTuple

import dask
from distributed import Client, LocalCluster, Scheduler, Security, Worker, WorkerPlugin

from kdseg.config.cluster import ClusterOptions, LocalOptions, SchedulerOptions, SlurmOptions, TlsOptions
from kdseg.errors import ConfigError, StageError
from kdseg.running.slurm import ON_LOOPBACK, slurm_jobs

log = logging.getLogger(__name__)
# Its import has set it to INFO: every coming and going of workers, here and in the workers, which import this, too.
logging.getLogger("distributed").setLevel(logging.WARNING)
# It warns of workers that it has to kill: those that Ctrl-C meets while they begin. What a lost one means is said here.
logging.getLogger("distributed.nanny").setLevel(logging.ERROR)
# Workers tell with a traceback that their scheduler, which Ctrl-C has ended, takes no heartbeat; then they end, too.
logging.getLogger("distributed.worker").addFilter(
    lambda record: "with scheduler during heartbeat" not in record.getMessage()
)
# The scheduler tells of a connection that an ending worker has just begun. Who comes without credentials is still told.
logging.getLogger("distributed.comm.tcp").addFilter(
    lambda record: "EOF occurred in violation of protocol" not in record.getMessage()
)

RESTART_S = 120.0
"""Seconds within which a worker of this machine that died is there again."""
LOOK_S = 5.0
"""Seconds between two counts of the workers."""
_SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
"""More processes, not more threads: the same arithmetic everywhere. One heap for the threads of a process: what one
frees, the next one uses."""


class Workers(NamedTuple):
    """A client, and what keeps its workers alive.

    Attributes:
        client: of the scheduler.
        patience: seconds that may pass without any worker.
        revive: submits jobs that are gone again, and returns how many were submitted in all; None where that is not
            ours to do.
        jobs: how many of them run at a time; these may all be lost at once, at the end of their walltime.
    """

    client: Client
    patience: float
    revive: Callable[[], int] | None = None
    jobs: int = 0


@contextmanager
def workers_of(cluster: ClusterOptions, workers: int, threads: int, folder: Path) -> Iterator[Workers]:
    """Yield the workers that a configuration names; those that were started here end with the body.

    Args:
        cluster: which.
        workers: processes, where they are ours to start on this machine; SLURM is told how many jobs.
        threads: of each process; a scheduler that runs already has its own.
        folder: what jobs of SLURM find on all machines, for their credentials.

    Raises:
        ConfigError: if what the cluster needs is not installed, or its scheduler does not answer.
        StageError: if no worker appears in time.
    """
    settings = {
        # a task whose worker dies is handed back: who knows the tasks knows which of them to run alone
        "distributed.scheduler.allowed-failures": 0,
        "distributed.worker.daemon": False,
        # compiled code may hold a worker for minutes; that of a dead one closes its connection
        "distributed.scheduler.worker-ttl": None,
        "distributed.comm.timeouts.connect": "60s",
        "distributed.nanny.pre-spawn-environ": _SINGLE_THREADED,
    }
    with dask.config.set(settings):
        if isinstance(cluster, LocalOptions):
            started = _local(cluster, workers, threads)
        elif isinstance(cluster, SlurmOptions):
            started = _slurm(cluster, threads, folder)
        else:
            started = _running(cluster)
        with started as found:
            yield found


@contextmanager
def _local(cluster: LocalOptions, workers: int, threads: int) -> Iterator[Workers]:
    """Start fresh processes (no fork) that listen on the loopback only."""
    # a busy machine takes longer to start a worker again than the 15 s after which its nanny would be ended
    with dask.config.set({"distributed.deploy.lost-worker-timeout": f"{RESTART_S:.0f}s"}):
        with _deaf_to_interruptions():
            starting = LocalCluster(
                n_workers=workers,
                threads_per_worker=threads,
                processes=True,
                dashboard_address=ON_LOOPBACK,
                scheduler_kwargs={"dashboard": cluster.dashboard},
                host="127.0.0.1",
                protocol="tls",
                security=Security.temporary(),  # other users reach the loopback, too
                memory_limit=None,
                silence_logs=logging.ERROR,
            )
        with starting as started, Client(started) as client:
            _close_http(client, started.scheduler, cluster.dashboard)
            yield Workers(client, RESTART_S)


@contextmanager
def _deaf_to_interruptions() -> Iterator[None]:
    """Begin threads, and their processes, that never hear Ctrl-C: the workers, who all get it, would print tracebacks.

    This thread hears one that comes meanwhile.
    """
    resource_tracker.ensure_running()  # else who begins a process begins it, too, and hears Ctrl-C again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _WithoutHttp(WorkerPlugin):
    """Closes the HTTP server of a worker, which Dask opens without a dashboard, too."""

    def setup(self, worker: Worker) -> None:
        """Do it as soon as the worker is known."""
        worker.http_server.stop()


def _close_http(client: Client, scheduler: Scheduler, dashboard: bool) -> None:
    """Close the HTTP servers of workers, and the scheduler's unless it is wanted."""
    client.register_plugin(_WithoutHttp())
    if dashboard:
        log.info("Dask's dashboard is at http://127.0.0.1:%d/status", scheduler.services["dashboard"].port)
    else:
        client.sync(_stop_http, scheduler)


async def _stop_http(scheduler: Scheduler) -> None:
    scheduler.http_server.stop()


@contextmanager
def _slurm(cluster: SlurmOptions, threads: int, folder: Path) -> Iterator[Workers]:
    with slurm_jobs(cluster, threads, _SINGLE_THREADED, folder) as jobs, Client(jobs.cluster) as client:
        _close_http(client, jobs.cluster.scheduler, cluster.dashboard)
        log.info("submitted %d jobs to SLURM, waiting for the first to start", cluster.jobs)
        _expect_worker(client, cluster.wait_minutes, "squeue says what the jobs wait for", jobs.check)
        yield Workers(client, cluster.wait_minutes * 60, lambda: jobs.revive(_names(client)), cluster.jobs)


def _names(client: Client) -> set[str]:
    """Return the names of the workers that the scheduler knows."""
    return {str(worker["name"]) for worker in client.scheduler_info(n_workers=-1)["workers"].values()}


@contextmanager
def _running(cluster: SchedulerOptions) -> Iterator[Workers]:
    security = None if cluster.tls is None else _security(cluster.tls)
    try:
        client = Client(cluster.address, timeout=min(30.0, cluster.wait_minutes * 60), security=security)
    except (OSError, TimeoutError, ValueError) as error:
        how = "" if cluster.tls is None else " to the credentials of `tls`"
        raise ConfigError(f"no Dask scheduler answers at {cluster.address}{how}: {error}") from error
    with client:
        _expect_worker(client, cluster.wait_minutes, "start one by: dask worker ADDRESS --nthreads 2")
        yield Workers(client, cluster.wait_minutes * 60)


def _security(tls: TlsOptions) -> Security:
    security = Security(
        require_encryption=True, tls_ca_file=tls.ca_file, tls_client_cert=tls.cert, tls_client_key=tls.key
    )
    try:
        security.get_connection_args("client")
    except OSError as error:  # an `ssl.SSLError`, too
        raise ConfigError(
            f"the files of `tls` ({tls.ca_file}, {tls.cert}, {tls.key}) cannot be used: {error}"
        ) from error
    return security


def _expect_worker(client: Client, minutes: float, advice: str, check: Callable[[], None] = lambda: None) -> None:
    until = time.monotonic() + minutes * 60
    while (left := until - time.monotonic()) > 0:
        check()
        with suppress(TimeoutError):
            client.wait_for_workers(1, timeout=min(left, LOOK_S))
            return
    raise StageError(f"no worker appeared within {minutes:g} minutes: {advice}; then rerun")
