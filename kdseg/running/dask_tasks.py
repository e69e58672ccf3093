"""Blocks as tasks of Dask: handed out, taken back from workers that are lost or say nothing any more.

A worker is one process that computes one block at a time. It has a second thread, or on a GPU a third, that reads
the next block and writes the last one meanwhile: see `kdseg.running.attempt`.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any

from distributed import Client, Future, KilledWorker

from kdseg.errors import StageError
from kdseg.geometry import Block
from kdseg.running.attempt import WORKER_ENDED, Do, Finished, Outcome, Patience
from kdseg.running.cluster import LOOK_S, RESTART_S, Workers

log = logging.getLogger(__name__)

AHEAD = 2
"""Tasks in flight per thread of a worker: enough that none waits, few enough that the scheduler's memory is flat."""
BATCH_S = 0.5
"""Seconds that a task should last, if its items are short."""
_BATCH = 64
"""Items of one task, at most."""
_BARREN = 10
"""Jobs that may be submitted for lost ones, beyond all that ran, without a task that was finished, before a cluster is
given up."""
_FETCH_S = 30.0
"""Seconds within which the result of a task that has ended, some kB, is here; else it is lost."""
_LOGS = "see the logs of the workers; finished blocks are kept; fix the cause and rerun"


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
                future = done.get(timeout=LOOK_S)
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
        return time.monotonic() - self.looked >= LOOK_S

    def look(self, mine: set[Any]) -> None:
        """See whether there are workers, and whether they say anything.

        Args:
            mine: keys of the tasks that are in flight.

        Raises:
            StageError: if there have been none for too long, or jobs end as soon as they start.
        """
        # if this process was stopped itself, its workers are not to blame
        self._end_silent(min(time.monotonic() - self.looked, 2 * LOOK_S), mine)
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
        client.restart_workers([address], timeout=RESTART_S / 4, raise_for_error=False)
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
