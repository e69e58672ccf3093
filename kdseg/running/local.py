"""Blocks over forks of this process, scheduled by daisy. The only module that knows daisy.

daisy schedules the *numbers* of blocks: which voxels they hold is said by `kdseg.geometry`, halos are the business of
the block function, and two blocks never write the same voxel. What becomes of a block is told to the stage over a
socket that its forks inherit: its messages stay whole whoever is killed, and no lock is held while one is sent.

Blocks are handed to daisy in rounds, so that blocks that failed can be tried again in a later one.
"""

from __future__ import annotations

import logging
import mmap
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import daisy

from kdseg.errors import StageError
from kdseg.geometry import Block
from kdseg.running import forks
from kdseg.running.attempt import WORKER_ENDED, Do, Finished, Patience

ROUND = 4096
"""Blocks that daisy knows of at a time."""
STOPPED_S = 30.0
"""Seconds for which a worker may be stopped, as by SIGSTOP, before it is killed."""
_LOOK_S = 0.2
"""Seconds between two looks at the workers while none says anything."""
_START_S = 0.01
"""Seconds between two looks while daisy starts, which takes Ctrl-C for itself then."""
_RESTARTS = 8
"""Workers that may be killed in a round, beside one each, before the blocks that are left wait for the next round."""
_DAY = 24 * 3600.0
_NOBODY = 0
_GONE = ("", "Z", "X")
"""States of processes that have ended."""
_LONGEST = 1 << 17
"""Bytes of what is told of a block; of one that has so many files that this is too short, its attempt fails."""
_CONTEXT = "DAISY_CONTEXT"
"""Variable in which daisy tells a worker where its server is."""


def on_forks(workers: int, patience: Patience, do: Do, items: Iterable[Block]) -> Iterator[Finished]:
    """Yield what became of each block, in the order in which they finish.

    Args:
        workers: forks of this process.
        patience: for how long blocks are waited for.
        do: attempts one block, in a fork.
        items: the blocks; may yield again after it was exhausted, such as a block that failed.

    Raises:
        StageError: if no worker starts.
    """
    waiting = iter(items)
    left: list[Block] = []
    while left := [*left, *islice(waiting, ROUND - len(left))]:
        this = _Round(left, do, patience)
        yield from this.run(min(workers, len(left)))
        left = this.untried()


class _Round:
    """Some blocks that daisy hands out.

    Attributes:
        blocks: by their numbers.
        begun: process and seconds of those that are being done.
        told: which have been attempted.
        why: reasons for which workers were killed, by the number of their block.
        interrupted: whether there was a Ctrl-C.
    """

    def __init__(self, blocks: list[Block], do: Do, patience: Patience) -> None:
        self.blocks, self.do, self.patience = blocks, do, patience
        self.begun: dict[int, tuple[int, float, float]] = {}
        self.told: set[int] = set()
        self.why: dict[int, str] = {}
        self.over = mmap.mmap(-1, 1)  # shared with forks, and of no file: writing to one on a full disk kills (SIGBUS)
        self.here, self.there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.failed: BaseException | None = None
        self.interrupted = False

    def untried(self) -> list[Block]:
        """Return the blocks that no worker began."""
        return [block for number, block in enumerate(self.blocks) if number not in self.told]

    def run(self, workers: int) -> Iterator[Finished]:
        """Yield what became of the blocks that were begun."""
        with self.here, self.there, forks.forks(self._work) as ask:
            scheduling = threading.Thread(target=self._schedule, args=(ask, workers), daemon=True, name="daisy")
            scheduling.start()
            try:
                with self._noting_interruptions():
                    yield from self._finished(scheduling)
            except GeneratorExit:
                self.over[0] = 1
                for _ in () if self.interrupted else self._finished(scheduling):  # what is being done: daisy waits
                    pass
                raise
        if not self.told:
            raise StageError(f"no worker began a block ({self.failed}): see the log; fix the cause and rerun")

    @contextmanager
    def _noting_interruptions(self) -> Iterator[None]:
        """Let the first Ctrl-C end the round, not what hears of a block at that moment: it would be done again."""
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(before):
            yield
            return

        def note(_number: int, _frame: FrameType | None) -> None:
            self.over[0], self.interrupted = 1, True
            signal.signal(signal.SIGINT, before)  # a second one does not wait

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
        if self.interrupted:
            raise KeyboardInterrupt

    def _finished(self, scheduling: threading.Thread) -> Iterator[Finished]:
        looked = time.monotonic()
        while True:
            going_on = scheduling.is_alive()
            _hear_interruptions()
            self.here.settimeout(_LOOK_S if self.begun or self.told else _START_S)
            try:
                number, process, outcome = pickle.loads(self.here.recv(_LONGEST))
            except TimeoutError:
                if not going_on:
                    break
            else:
                if outcome is None:
                    self.begun[number] = process, 0.0, 0.0
                else:
                    _, lasted, _ = self.begun.pop(number)
                    if not outcome.skipped:
                        self.patience.took(lasted)
                    self.told.add(number)
                    yield Finished(self.blocks[number], outcome)
            now = time.monotonic()
            if now - looked >= _LOOK_S:
                self._look(min(now - looked, 1.0))  # if this process was stopped itself, its workers are not to blame
                looked = now
        if isinstance(self.failed, KeyboardInterrupt):  # daisy has taken it from the main thread
            raise KeyboardInterrupt
        for number in self.begun:
            self.told.add(number)
            yield Finished(self.blocks[number], None, self.why.get(number, WORKER_ENDED), died=True)

    def _look(self, seconds: float) -> None:
        """Kill workers that are stopped, or take much longer than others: their blocks are tried again."""
        for number, (process, lasted, stopped) in self.begun.items():
            state = _state(process)
            if state in _GONE:  # another process may have its number soon
                self.begun[number] = _NOBODY, lasted, stopped
                continue
            lasted, stopped = lasted + seconds, stopped + seconds if state == "T" else 0.0
            self.begun[number] = process, lasted, stopped
            if stopped > STOPPED_S or self.patience.ends(lasted):
                how = f"stopped for {stopped:.0f} s" if stopped > STOPPED_S else f"at it for {lasted:.0f} s, too long"
                self.why[number] = f"its worker was {how}, and was ended"
                self.begun[number] = _NOBODY, lasted, stopped
                self.patience.ended()
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

    def _schedule(self, ask: forks.Ask, workers: int) -> None:
        """Have daisy hand out all blocks, once each."""
        # daisy's threads and processes inherit this: on Ctrl-C, which all processes get, they would print tracebacks
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        daisy.logging.set_log_basedir(None)
        unit = daisy.Roi((0,), (1,))
        task = daisy.Task(
            "blocks",
            total_roi=daisy.Roi((0,), (len(self.blocks),)),
            read_roi=unit,
            write_roi=unit,
            process_function=lambda: ask(os.environ[_CONTEXT]),
            read_write_conflict=False,
            max_workers=workers,
            max_retries=0,
            max_worker_restarts=_RESTARTS + workers,
            timeout=_DAY,
        )
        try:
            daisy.run_blockwise(task, progress=False, block_tracking=False, host="127.0.0.1", summary=False)
        except BaseException as error:  # noqa: BLE001 - an interruption, too: the main thread acts on it
            self.failed = error

    def _work(self, context: str) -> None:
        """Do blocks in a fork until the server has none left."""
        logging.getLogger("daisy").setLevel(logging.ERROR)  # it warns of a server that ended before this worker began
        os.environ[_CONTEXT] = context
        self.here.close()
        client = daisy.Client()
        while True:
            with client.acquire_block() as cell:
                if cell is None:
                    return
                if self.over[0]:
                    cell.status = daisy.BlockStatus.FAILED
                    continue
                number = int(cell.write_roi.offset[0])
                self._tell(number, None)
                self._tell(number, self.do(self.blocks[number]))

    def _tell(self, number: int, outcome: Any) -> None:
        message = pickle.dumps((number, os.getpid(), outcome))
        if len(message) > _LONGEST:
            said = f"it has {len(outcome.written)} bytes of checksums, too many: choose larger shards or smaller blocks"
            outcome = replace(outcome, written=b"", trouble="permanent", error=said)
            message = pickle.dumps((number, os.getpid(), outcome))
        self.there.sendall(message)


def _hear_interruptions() -> None:
    """Take Ctrl-C back from daisy, which would leave its workers in the middle of a message."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT))


def _state(process: int) -> str:
    """Return the letter that Linux has for the state of a process; empty if there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
