"""Dask workers on this machine, on SLURM, or of a running scheduler. Only this module and `slurm` import distributed.

Dask runs whatever a client sends it: clusters that are started here listen with TLS and serve only who has their
credentials, which are made anew each time. Their HTTP servers, which ask for none, are closed.

A worker is one process that computes one block at a time. It has a second thread, or on a GPU a third, that reads
the next block and writes the last one meanwhile: see `kdseg.running.attempt`.
"""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing import resource_tracker
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import dask
from distributed import Client, Future, KilledWorker, LocalCluster, Scheduler, Security, Worker, WorkerPlugin

from kdseg.config.cluster import ClusterOptions, LocalOptions, SchedulerOptions, SlurmOptions, TlsOptions
from kdseg.errors import ConfigError, StageError
from kdseg.geometry import Block
from kdseg.running.attempt import WORKER_ENDED, Do, Finished, Outcome, Patience
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

AHEAD = 2
"""Tasks in flight per thread of a worker: enough that none waits, few enough that the scheduler's memory is flat."""
BATCH_S = 0.5
"""Seconds that a task should last, if its items are short."""
_BATCH = 64
"""Items of one task, at most."""
_BARREN = 10
"""Jobs that may be submitted for lost ones, beyond all that ran, without a task that was finished, before a cluster is
given up."""
_RESTART_S = 120.0
"""Seconds within which a worker of this machine that died is there again."""
_FETCH_S = 30.0
"""Seconds within which the result of a task that has ended, some kB, is here; else it is lost."""
_LOGS = "see the logs of the workers; finished blocks are kept; fix the cause and rerun"
_LOOK_S = 5.0
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
    with dask.config.set({"distributed.deploy.lost-worker-timeout": f"{_RESTART_S:.0f}s"}):
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
            yield Workers(client, _RESTART_S)


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
            client.wait_for_workers(1, timeout=min(left, _LOOK_S))
            return
    raise StageError(f"no worker appeared within {minutes:g} minutes: {advice}; then rerun")


def run_tasks(workers: Workers, patience: Patience, do: Do, items: Iterable[Block]) -> Iterator[Finished]:
    """Yield what became of each block, in the order in which they finish.

    Only a bounded window of tasks is known to the scheduler at any time, and results are released at once:
    memory does not grow with the number of blocks. A task holds several of them where these are done in less than
    `BATCH_S` together, since a task costs the scheduler some milliseconds; those that it does not come to in this time
    are handed out again. ``items`` may yield again after it was exhausted, such as an item that failed.
    """
    left = deque[Block]()
    waiting = iter(items)
    client = workers.client
    done: SimpleQueue[Future[Any]] = SimpleQueue()
    running: dict[Future[Any], list[Block]] = {}

    size = 1

    def submit(tasks: int) -> None:
        for _ in range(tasks):
            batch = [left.popleft() for _ in range(min(size, len(left)))]
            batch += islice(waiting, size - len(batch))
            if batch:
                future = client.submit(_each, do, batch, pure=False)
                running[future] = batch
                future.add_done_callback(done.put)

    watch = _Watch(workers, patience)
    submit(_window(client))
    try:
        while running:
            if watch.due():  # also while others go on: workers may have come, or be gone
                watch.look({future.key for future in running})
                submit(max(_window(client) - len(running), 0))
            try:
                future = done.get(timeout=_LOOK_S)
            except Empty:
                continue
            watch.news()
            batch = running.pop(future)
            finished, address, seconds = _finished(batch, future)
            left.extend(batch[len(finished) :])
            future.release()
            if seconds is not None:
                watch.heard(address, None if _nothing_done(finished) else seconds)
                size = max(1, min(_BATCH, int(BATCH_S * len(finished) / max(seconds, 1e-9))))
            yield from finished
            submit(1)  # not before: items may be tried again
    finally:
        client.cancel(list(running))  # of a scheduler that goes on when we have stopped


def _window(client: Client) -> int:
    """Return how many tasks may be in flight."""
    threads: int = sum(client.nthreads().values())
    return AHEAD * max(threads, 1)


_Ended = tuple[list[Finished], str, float | None]
"""Results of a task's items, the address of its worker, and the seconds that it took; None if it did not end."""


def _each(do: Do, items: list[Block]) -> _Ended:
    """Do items on a worker, all or as many as `BATCH_S` suffices for."""
    from distributed import get_worker

    started, out = time.monotonic(), list[Finished]()
    for item in items:
        if out and time.monotonic() - started > BATCH_S:
            break
        try:
            out.append(Finished(item, do(item)))
        except Exception as error:  # noqa: BLE001 - what it is, is for the caller to say
            out.append(Finished(item, None, f"{type(error).__name__}: {error}"))
    return out, get_worker().address, time.monotonic() - started


def _finished(items: list[Block], future: Future[Any]) -> _Ended:
    """Return how a task ended."""
    error: BaseException | None = None
    try:
        if future.status == "finished":
            ended: _Ended = future.result(_FETCH_S)  # it may have been lost with its worker
            return ended
        error = future.exception() if future.status == "error" else None
    except (KilledWorker, CancelledError, TimeoutError) as gone:
        error = gone
    # a result may be lost with its worker before it is fetched: then the future is pending, or lost, again
    died = error is None or isinstance(error, KilledWorker | CancelledError | TimeoutError)
    said = WORKER_ENDED if died else f"{type(error).__name__}: {error}"
    return [Finished(item, None, said, died) for item in items], "", None


class _Watch:
    """Brings lost jobs back, ends workers that are heard of no more, and gives up where that does not help."""

    def __init__(self, workers: Workers, patience: Patience) -> None:
        self.workers = workers
        self.since = self.looked = time.monotonic()
        self.submitted = 0
        self.patience = patience
        self.busy: dict[str, float] = {}
        self.news()

    def news(self) -> None:
        """Note that a task was finished."""
        self.since = time.monotonic()
        self.fresh = True

    def heard(self, address: str, seconds: float | None) -> None:
        """Note that a worker finished a task, and how long that took; None if there was nothing to do."""
        if seconds is not None:
            self.patience.took(seconds)
        self.busy[address] = 0.0

    def _end_silent(self, seconds: float, mine: set[Any]) -> None:
        """End workers that have had blocks for much longer than others need: they are stopped, or hang.

        Those that do something for other clients, too, are left alone.
        """
        client = self.workers.client
        tasks = {address for address, keys in client.processing().items() if keys and mine.issuperset(keys)}
        self.busy = {address: self.busy.get(address, 0.0) + seconds for address in tasks}
        for address in [address for address, lasted in self.busy.items() if self.patience.ends(lasted)]:
            log.warning("the worker %s says nothing any more and is replaced: its blocks go to others", address)
            del self.busy[address]
            self.patience.ended()
            _replace(client, address)

    def due(self) -> bool:
        """Return whether it is time to look."""
        return time.monotonic() - self.looked >= _LOOK_S

    def look(self, mine: set[Any]) -> None:
        """See whether there are workers, and whether they say anything.

        Args:
            mine: keys of the tasks that are in flight.

        Raises:
            StageError: if there have been none for too long, or jobs end as soon as they start.
        """
        # if this process was stopped itself, its workers are not to blame
        self._end_silent(min(time.monotonic() - self.looked, 2 * _LOOK_S), mine)
        self.looked = time.monotonic()
        if self.workers.client.nthreads():
            self.since = time.monotonic()
        elif time.monotonic() - self.since > self.workers.patience:
            raise StageError(f"there has been no worker for {self.workers.patience:.0f} s: {_LOGS}")
        if self.workers.revive is None:
            return
        submitted = self.workers.revive()
        if self.fresh:
            self.submitted, self.fresh = submitted, False
        elif submitted > self.submitted + self.workers.jobs + _BARREN:
            raise StageError(f"{submitted - self.submitted} jobs in a row ended without a finished block: {_LOGS}")


def _replace(client: Client, address: str) -> None:
    """Have a worker's nanny start it again; if it has none, or that is stopped with it, hand its tasks to others."""

    async def forget(dask_scheduler: Any) -> None:  # here, to be sent by value: the scheduler need not have kdseg
        await dask_scheduler.remove_worker(address, stimulus_id="silent")

    with suppress(OSError, TimeoutError, ValueError, KeyError):  # none, no answer, no nanny, gone meanwhile
        client.restart_workers([address], timeout=_RESTART_S / 4, raise_for_error=False)
    if address in client.nthreads():
        client.run_on_scheduler(forget)


def _nothing_done(finished: list[Finished]) -> bool:
    return all(isinstance(one.result, Outcome) and one.result.skipped for one in finished)


def worker_number() -> int | None:
    """Return the number of this process among the workers of this machine, from 0; None elsewhere."""
    from distributed import get_worker

    try:
        name = get_worker().name
    except ValueError:  # no worker
        return None
    return name if isinstance(name, int) else None
