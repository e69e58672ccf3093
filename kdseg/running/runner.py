"""The blocks of a stage: tried again, isolated, given up, resumed and counted in one way on every engine.

An engine hands blocks to workers: this process, forks of it that daisy schedules, or Dask's workers here, on SLURM or
of a scheduler that runs already. What a stage computes depends on none of them.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

from kdseg.config.cluster import ClusterOptions, LocalOptions, SlurmOptions
from kdseg.config.tasks import BlockTask
from kdseg.errors import StageError
from kdseg.geometry import Block, Roi, Triple
from kdseg.running import forks
from kdseg.running.attempt import BlockWork, Clock, Do, Finished, Outcome, Patience, attempt
from kdseg.running.heartbeat import doing
from kdseg.running.progress import FinishedBlocks
from kdseg.running.telemetry import Telemetry, status_path

BlockFunction = Callable[[Block], bytes | None]
"""Does one block and writes what comes of it, idempotent; returns what `Volume.write` says of the files, if it writes a
volume. It may be sent to another process, or another machine: it
holds paths and options, not open volumes."""
Engine = Callable[[Do, Iterable[Block]], Iterator[Finished]]
"""Attempts blocks, each once; they may yield again after they were exhausted, such as one that failed."""

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Attempts at a block that meets a transient error."""
MANY = 10
"""Give up after this many failed blocks, unless they are under a tenth of those done."""


class Place(NamedTuple):
    """Processes that do the blocks of a stage, and the file that says how far it is.

    Attributes:
        workers: processes of this machine; None where that is not ours to say.
        status: the file for `kdseg status`; None keeps it to itself.
        cluster: this machine or another.
        threads: of each worker; with more than one, Dask runs those of this machine, too.
        announced_mb: memory that a worker will need.
    """

    workers: int | None = 1
    status: Path | None = None
    cluster: ClusterOptions = LocalOptions()
    threads: int = 1
    announced_mb: float = 0.0


def place_of(task: BlockTask) -> Place:
    """Return where the blocks of a stage on CPUs are done."""
    return Place(task.workers, status_path(task.manifest), task.cluster)


@contextmanager
def engine(place: Place, todo: int, folder: Path) -> Iterator[Engine]:
    """Yield what does ``todo`` blocks; its workers end with the body, and so does what they left in ``folder``."""
    here = isinstance(place.cluster, LocalOptions)
    workers = min(place.workers or 1, todo)
    if here and place.threads == 1 and workers == 1:
        yield _in_this_process
    elif here and place.threads == 1 and forks.POSSIBLE:
        from kdseg.running.local import on_forks

        yield partial(on_forks, workers, Patience())
    else:
        from kdseg.running.cluster import workers_of
        from kdseg.running.dask_tasks import run_tasks

        with workers_of(_at_most(place.cluster, todo), workers, place.threads, folder) as found:
            yield partial(run_tasks, found, Patience())


def _at_most(cluster: ClusterOptions, todo: int) -> ClusterOptions:
    """Return a cluster of no more jobs than there are blocks."""
    if not isinstance(cluster, SlurmOptions):
        return cluster
    return cluster.model_copy(update={"jobs": min(cluster.jobs, todo)})


def _in_this_process(do: Do, items: Iterable[Block]) -> Iterator[Finished]:
    for block in items:
        yield Finished(block, do(block))


def run_blocks(
    name: str, total: Roi, block: Triple, function: BlockFunction, place: Place, progress: Path
) -> Telemetry:
    """Run ``function`` on every block of a grid that is not done yet; see `run_work`."""
    return run_work(name, total, block, partial(_work, function), place, progress)


def _work(function: BlockFunction, block: Block, clock: Clock) -> bytes:
    with clock.computing():  # a worker of a cluster may have several threads
        return function(block) or b""


def run_work(name: str, total: Roi, block: Triple, work: BlockWork, place: Place, progress: Path) -> Telemetry:
    """Do every block of a grid that is not done yet.

    An attempt that met a transient error is repeated. A block that fails for good is listed in the status and the
    others go on, unless the disk is full or most blocks fail.

    Args:
        name: of the stage, for messages and progress.
        total: voxels to cover.
        block: grid cell in voxels; the grid is anchored at voxel 0.
        work: does one block.
        place: where.
        progress: folder of the list of finished blocks; keep one per options and inputs.

    Returns:
        What was counted.

    Raises:
        StageError: if a block failed; what is done stays done.
    """
    progress.mkdir(parents=True, exist_ok=True)
    grid = FinishedBlocks(progress / f"{name}.txt", total, block)
    before = int(grid.finished.sum())
    todo = grid.finished.size - before
    log.info("%s: %d blocks to do, %d done before", name, todo, before)
    telemetry = Telemetry(
        place.status,
        name,
        blocks=grid.finished.size,
        before=before,
        reused=int(grid.reused.sum()),
        voxels=total.size - grid.voxels(),
        announced_mb=place.announced_mb,
    )
    with telemetry, doing(telemetry.line):
        if todo:
            with engine(place, todo, progress) as found:
                _Run(name, found, grid, telemetry).all(partial(attempt, work))
        missing = grid.finished.size - int(grid.finished.sum())
        if missing:
            listed = "" if place.status is None else f", listed in {place.status}"
            raise StageError(
                f"{name}: {missing} of {grid.finished.size} blocks failed{listed}; the first: {_first(telemetry)}"
            )
    return telemetry


class _Queue:
    """The blocks that are left; when it was empty it may fill again.

    Attributes:
        again: blocks to be tried next.
        later: blocks to be tried when all others were.
    """

    def __init__(self, blocks: Iterator[Block]) -> None:
        self.blocks, self.again, self.later = blocks, deque[Block](), deque[Block]()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Block:
        if self.again:
            return self.again.popleft()
        block = next(self.blocks, None)
        if block is None and self.later:
            block = self.later.popleft()
        if block is None:
            raise StopIteration
        return block


class _Run:
    """One run over the blocks that are missing."""

    def __init__(self, name: str, found: Engine, grid: FinishedBlocks, telemetry: Telemetry) -> None:
        from tqdm import tqdm

        self.name, self.engine, self.grid, self.telemetry = name, found, grid, telemetry
        self.attempts, self.alone = Counter[Triple](), deque[Block]()
        total, before, quiet = telemetry.blocks, telemetry.before, not sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=before, desc=name, unit="block", disable=quiet)

    def all(self, do: Do) -> None:
        """Do what is missing: first all blocks, then one by one those that workers have died under again and again."""
        with self.bar, doing(self._said):
            self._some(do, _Queue(self.grid.missing()), isolated=False)
            for block in self.alone:
                self._some(do, _Queue(iter([block])), isolated=True)

    def _said(self) -> str:
        if self.bar.disable:
            return self.telemetry.line()
        self.bar.refresh()  # by itself it moves only when a block ends
        return ""

    def _some(self, do: Do, queue: _Queue, *, isolated: bool) -> None:
        # closed, or its workers would go on while an error is on its way
        with closing(self.engine(do, queue)) as found:  # type: ignore[type-var]
            for finished in found:
                self._record(finished, queue, isolated)

    def _record(self, finished: Finished, queue: _Queue, isolated: bool) -> None:
        block, outcome = finished.item, finished.result or Outcome("", trouble="permanent", error=finished.error or "")
        self.attempts[block.index] += 1
        tried = self.attempts[block.index]
        if finished.result is not None:
            self.telemetry.add(block, outcome)
        if outcome.trouble is None:
            self.grid.add(block.index, outcome.written, reused=outcome.reused)
            del self.attempts[block.index]
            self.bar.update()
        elif outcome.trouble == "disk_full":
            raise StageError(f"{self.name}: {outcome.error}; finished blocks are kept; make room and rerun")
        elif finished.died and isolated:
            self._give_up(block, outcome.error, ATTEMPTS + tried)
        elif tried < ATTEMPTS and (finished.died or outcome.trouble == "transient"):
            log.warning("%s: block %s will be tried again: %s", self.name, block.roi, outcome.error)
            self.telemetry.retry()
            (queue.later if finished.died else queue.again).append(block)
        elif finished.died:  # it may be the one beside it that ends workers
            self.alone.append(block)
            del self.attempts[block.index]
        else:
            self._give_up(block, outcome.error, tried + isolated * ATTEMPTS)

    def _give_up(self, block: Block, error: str, attempts: int) -> None:
        self.telemetry.give_up(block, error, attempts)
        failed, done = len(self.telemetry.failures), self.telemetry.done
        if failed >= MANY and failed > done / MANY:
            raise StageError(
                f"{self.name}: {failed} blocks failed and {done} did not, so that the rest was not tried; the first: "
                f"{_first(self.telemetry)}"
            )


def _first(telemetry: Telemetry) -> str:
    first = telemetry.failures[0]
    return f"block {first['region']}: {first['error']}; finished blocks are kept; fix the cause and rerun"
