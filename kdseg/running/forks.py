"""Worker processes that start in milliseconds: forks of a process that has loaded everything already.

A process of its own would import the libraries and wake numba's compiler first, 4 s of CPU per worker and stage.
daisy starts such processes only, for a server with threads cannot fork. So the stage forks once before the server
runs, and that fork makes the workers::

    stage ── daisy ── python, one per worker: `ask`
      │                  │ asks, with daisy's context
      └─ fork ◄──────────┘
          └─ worker: does what was asked, on what the stage has loaded
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from kdseg.errors import StageError

POSSIBLE = sys.platform == "linux"
"""Elsewhere the libraries of the system do not survive a fork."""
_DONE, _FAILED, _END = b"done", b"failed", b"end"
_LONGEST = 1 << 16

Ask = Callable[[str], None]


@contextmanager
def forks(function: Callable[[str], None]) -> Iterator[Ask]:
    """Offer forks of this process while the body runs.

    Args:
        function: what a fork does, with the text it was asked with.

    Yields:
        A function that can be sent to any process of this machine. It runs ``function`` in a fork and waits for it.
        It raises `StageError` if the fork failed, or was killed.
    """
    _wake()
    with tempfile.TemporaryDirectory(prefix="kdseg-", dir=_short_folder()) as folder:
        address = Path(folder) / "forks"
        with _socket() as listening:
            listening.bind(str(address))
            listening.listen()
            server = _start(_serve, listening, os.getpid(), function, address)
        try:
            yield _ask(str(address))
        except BaseException:
            server.kill()  # its workers end with it
            raise
        else:
            with _socket() as one, suppress(OSError):  # it was killed, perhaps
                one.connect(str(address))
                one.sendall(_END)
        finally:
            server.join()


def _short_folder() -> str:
    """Return where temporary files go, or /tmp where its name is too long for the address of a socket (108 bytes)."""
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder)) < 80 else "/tmp"


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # keeps messages apart


def _ask(address: str) -> Ask:
    def ask(text: str) -> None:
        with _socket() as one:
            one.connect(address)
            one.sendall(text.encode())
            answer = one.recv(_LONGEST)
        if answer == _FAILED:
            raise StageError("a block failed in a worker")
        if answer != _DONE:
            raise StageError("a worker was killed: by hand, or because memory ran out")

    return ask


def _start(target: Callable[..., None], *arguments: object) -> BaseProcess:
    process = get_context("fork").Process(target=target, args=arguments)
    with warnings.catch_warnings():
        # Python 3.12 warns of forks of a process with threads: zarr's, which it starts anew after a fork
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    return process


def _serve(listening: socket.socket, parent: int, function: Callable[[str], None], address: Path) -> None:
    """Fork for everyone who asks, until the stage says it is over; then wait for the forks.

    If the stage is killed, nobody else is left to remove the folder of the socket.
    """

    def end(_number: int, _frame: FrameType | None) -> None:
        address.unlink(missing_ok=True)
        with suppress(OSError):
            address.parent.rmdir()
        os._exit(1)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the stage decides what an interruption ends
    die_with_parent(parent, signal.SIGTERM)
    workers = []
    while True:
        asked, _ = listening.accept()
        with asked:
            text = asked.recv(_LONGEST)
            if text == _END:
                break
            workers.append(_start(_work, asked, listening, os.getpid(), function, text.decode()))
    for worker in workers:
        worker.join()


def _work(
    asked: socket.socket, listening: socket.socket, parent: int, function: Callable[[str], None], text: str
) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent(parent)
    listening.close()
    try:
        function(text)
    except BaseException:
        asked.sendall(_FAILED)
        raise
    asked.sendall(_DONE)


def one_heap() -> None:
    """Let all threads of this process, and of its forks, allocate from one heap: each heap keeps what it frees.

    Works for threads that have not allocated yet: call it before there are any. Nothing without glibc.
    """
    m_arena_max = -8
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(m_arena_max, 1)


def die_with_parent(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Let this process get a signal when its parent ends, also by a kill: an orphan must not go on writing (Linux)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, by)
        if os.getppid() != parent:
            os.kill(os.getpid(), by)


def _wake() -> None:
    """Call a compiled function, if this process uses any: numba's first call takes 0.8 s, which forks are spared."""
    if "numba" in sys.modules:
        from kdseg.running.compiled import compiled

        compiled(_nothing)()


def _nothing() -> None:
    pass
