"""One attempt of a worker at one block, timed and with its errors sorted: read, compute one at a time, write.

A worker has more threads than it computes with, so that one block is read and another is written while a third
is computed. `Clock.computing` is held by one thread at a time, the device is never shared, and at most as many
blocks as there are threads are in memory.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal, NamedTuple

from kdseg.errors import KdsegError, masked
from kdseg.geometry import Block
from kdseg.results.usage import peak_mb

log = logging.getLogger(__name__)

Trouble = Literal["transient", "permanent", "disk_full"]
"""Kinds of errors: transient: retry; permanent: give the block up; disk_full: stop the run."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk that has no room, or none for this user."""
_NO_ROOM = "OutOfMemoryError"
"""Torch's error when the memory of a GPU is full."""
_LOST = "AcceleratorError"
"""Torch's error from a GPU's driver. All that its process asks of the GPU from then on may fail."""
_LONGEST = 4000
"""Letters of an error, which is told in one message."""
_computing = threading.Lock()


@dataclass
class Clock:
    """Seconds that one block took, by what was done.

    Attributes:
        read: reading and decoding.
        wait: for the block before to be computed.
        compute: on the device, copies to and from it included.
        write: encoding and writing.
    """

    read: float = 0.0
    wait: float = 0.0
    compute: float = 0.0
    write: float = 0.0

    @contextmanager
    def __call__(self, what: Literal["read", "wait", "compute", "write"]) -> Iterator[None]:
        """Add the time of the body to what is being done."""
        started = monotonic()
        try:
            yield
        finally:
            setattr(self, what, getattr(self, what) + monotonic() - started)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Hold the device of this process while the body runs."""
        with self("wait"):
            _computing.acquire()
        try:
            with self("compute"):
                yield
        finally:
            _computing.release()


@dataclass(frozen=True)
class Outcome:
    """Result of one attempt at a block; small, sent back by the worker.

    Attributes:
        worker: host and process.
        clock: seconds.
        peak_mb: most memory that the process has had.
        gpu_mb: likewise of its GPU; None on a CPU.
        skipped: there was nothing to do.
        reused: the block was not computed, but taken from an earlier result.
        written: what `kdseg.volumes.volume.Volume.write` says of the files of this block.
        trouble: kind of error; None if the block is done.
        error: in words.
    """

    worker: str
    clock: Clock = field(default_factory=Clock)
    peak_mb: float = 0.0
    gpu_mb: float | None = None
    skipped: bool = False
    reused: bool = False
    written: bytes = b""
    trouble: Trouble | None = None
    error: str = ""


class Reused(NamedTuple):
    """A block that was not computed, but taken from an earlier result, see `kdseg.volumes.reuse`.

    Attributes:
        written: what `kdseg.volumes.volume.Volume.write` says of its files.
    """

    written: bytes


BlockWork = Callable[[Block, Clock], bytes | Reused | None]
"""Does one block and writes what comes of it, idempotent and pickled; returns what `Volume.write` says of the files,
nothing of other results, None if there was nothing to do."""
Do = Callable[[Block], Outcome]
"""One attempt at a block, on a worker."""


WORKER_ENDED = "its worker ended: it was killed, or ran out of memory"
"""Why a block of a worker that died has no outcome."""


class Finished(NamedTuple):
    """Result of one attempt, as an engine tells it.

    Attributes:
        item: the block.
        result: its outcome, None if there is an error.
        error: why there is no outcome, in words.
        died: a worker ended while it had this block, and perhaps others.
    """

    item: Block
    result: Outcome | None
    error: str | None = None
    died: bool = False


class Patience:
    """For how long a block is waited for: much longer than the longest of those that are done.

    Each time that a worker is ended for it, twice as long: long blocks may come after many short ones.
    """

    LEAST_S, TIMES = 120.0, 20.0

    def __init__(self) -> None:
        self.longest: float | None = None
        self.factor = 1.0

    def took(self, seconds: float) -> None:
        """Note how long a block took."""
        self.longest = max(seconds, self.longest or 0.0)

    def ends(self, seconds: float) -> bool:
        """Return whether a block that has been worked at for so long is not waited for any more."""
        return self.longest is not None and seconds > self.factor * max(self.LEAST_S, self.TIMES * self.longest)

    def ended(self) -> None:
        """Note that a worker was ended."""
        self.factor *= 2


def attempt(work: BlockWork, block: Block) -> Outcome:
    """Do one block on this worker; errors are sorted here, where their causes are still known."""
    clock, trouble, said, no_room = Clock(), None, "", False
    made: bytes | Reused | None = b""
    try:
        made = work(block, clock)
    except Exception as error:
        log.debug("block %s", block.index, exc_info=True)
        if _name(error) == _LOST or _gpu_lost():
            log.error("block %s: %s: the worker ends, another one takes its place", block.roi, error)
            logging.shutdown()
            os._exit(1)  # the blocks that it holds are tried again, as those of any worker that died
        trouble, said = trouble_of(error), _in_words(error)
        no_room = _name(error) == _NO_ROOM
    if no_room:  # not above, where the error still holds the tensors of the tile
        said = _make_room(said)
    where = f"{os.uname().nodename}:{os.getpid()}"
    written = made.written if isinstance(made, Reused) else made or b""
    facts = clock, peak_mb(), _gpu_mb(), made is None, isinstance(made, Reused)
    return Outcome(where, *facts, written, trouble, said)


def _in_words(error: Exception) -> str:
    said = str(error) if isinstance(error, KdsegError) else f"{_name(error)}: {error}"
    return masked(said)[:_LONGEST]


def trouble_of(error: BaseException) -> Trouble:
    """Return the kind of an error, by its causes."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL:
            return "disk_full"
        seen = seen.__cause__ or seen.__context__
    transient = isinstance(error, OSError | MemoryError) or _name(error) == _NO_ROOM
    return "transient" if transient else "permanent"


def _make_room(said: str) -> str:
    """Give back what torch keeps of the GPU's memory for the next attempt; return what to do if that does not help."""
    import torch

    torch.cuda.empty_cache()
    first = said.partition("\n")[0]
    return f"{first}; choose a smaller predict.tile (kdseg tune lists what fits), or free the GPU of other programs"


def _name(error: BaseException) -> str:
    return type(error).__name__


def _gpu_lost() -> bool:
    """Return whether the GPU of this process answers it no more; cuDNN and cuBLAS say so in words of their own."""
    try:
        for device in _gpus():
            import torch

            if torch.cuda.memory_reserved(device):
                torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def _gpu_mb() -> float | None:
    most = None
    for device in _gpus():  # a process has one GPU, which need not be the first, the present device of its threads
        import torch

        most = max(most or 0, torch.cuda.max_memory_allocated(device))
    return None if most is None else round(most / 2**20, 1)


def _gpus() -> range:
    """Return the numbers of the GPUs that this process sees, none if it uses none."""
    if "torch" not in sys.modules:
        return range(0)
    import torch

    used = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return range(torch.cuda.device_count() if used else 0)
