"""Locks on results: one run writes at a time, on one host or on several."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kdseg.errors import ClaimError, UnreadableError

log = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
STALE_S = 120.0
"""A lock of another host is taken over when its heartbeat is older than this, by the clock of the file system."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder while the body runs: the kernel's on one host, a heartbeat between hosts.

    Raises:
        ClaimError: if another run holds it.
    """
    path = folder / "lock"
    handle = _open_lock(path)
    try:
        _take(handle, path)
        beat = threading.Event()
        thread = threading.Thread(target=_heartbeat, args=(path, beat), daemon=True)
        thread.start()
        try:
            yield
        finally:
            beat.set()
            thread.join()
            os.truncate(handle, 0)
    finally:
        os.close(handle)


def holder(folder: Path) -> str | None:
    """Return who holds the lock of a folder, as JSON, without touching it; None if nobody who is alive does."""
    path = folder / "lock"
    try:
        said = path.read_text(errors="replace")
        seen = path.stat().st_mtime
    except OSError:
        return None
    if not said:
        return None
    try:
        now = _now(folder)
    except OSError:  # somebody else's folder, perhaps
        now = time.time()
    if now - seen > STALE_S:  # on this host, too: after a reboot the number may be another process's
        return None
    if _host_of(said) != socket.gethostname():
        return said
    try:
        os.kill(int(json.loads(said)["pid"]), 0)
    except (ValueError, KeyError, ProcessLookupError):
        return None
    except PermissionError:  # somebody else's, and alive
        return said
    return said


def _open_lock(path: Path) -> int:
    """Return a handle of the lock file, with the kernel's lock on it where the file system has one."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UnreadableError(f"cannot write to {path.parent}: {error}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            said = _holder(handle)
            os.close(handle)
            raise ClaimError(_in_use(path, said)) from None
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS):
                os.close(handle)
                raise
        # Somebody who cleared the folder may have removed the file between opening and locking it.
        if path.exists() and path.stat().st_ino == os.fstat(handle).st_ino:
            return handle
        os.close(handle)


def _take(handle: int, path: Path) -> None:
    """Write our name into the lock, unless a holder on another host is alive.

    A holder elsewhere that was killed leaves a fresh heartbeat: it is waited for, until it beats again or is
    stale. That is how long the second attempt of a cluster job waits for the first one to be dead.
    """
    said = _holder(handle)
    if said and _host_of(said) != socket.gethostname():
        _wait_for_silence(handle, path, said)
    me = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        os.truncate(handle, 0)
        os.pwrite(handle, json.dumps(me).encode(), 0)
    except OSError as error:
        raise UnreadableError(f"cannot write {path}: {error}") from error


def _wait_for_silence(handle: int, path: Path, said: str) -> None:
    seen = os.fstat(handle).st_mtime
    age = max(0.0, _now(path.parent) - seen)  # a time to come is of a clock that was put back since
    left = STALE_S - age
    if left <= 0:
        return
    log.warning(
        "%s is held by %s, who gave the last sign of life %.0f s ago: it is waited for until %s, then taken over",
        path,
        _shown(said),
        age,
        (datetime.now().astimezone() + timedelta(seconds=left)).isoformat(" ", "seconds"),
    )
    ends = time.monotonic() + left
    while (rest := ends - time.monotonic()) > 0:
        time.sleep(min(1.0, rest))
        if os.fstat(handle).st_mtime != seen:
            raise ClaimError(_in_use(path, said))


def _now(folder: Path) -> float:
    """Return the time by the clock that heartbeats are written with, which may be a server's, in seconds."""
    with tempfile.TemporaryFile(dir=folder) as file:
        os.utime(file.fileno())
        return os.fstat(file.fileno()).st_mtime


def _holder(handle: int) -> str:
    return os.pread(handle, 4096, 0).decode(errors="replace")


def _heartbeat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        try:
            os.utime(path)
        except OSError as error:
            log.warning("cannot renew the lock %s: %s", path, error)


def _host_of(holder: str) -> str | None:
    try:
        values = json.loads(holder)
    except ValueError:
        return None
    return values.get("host") if isinstance(values, dict) else None


def _in_use(path: Path, holder: str) -> str:
    return f"{path.parent} is being written by another run ({_shown(holder)}): wait for it or stop it, then rerun"


def _shown(holder: str) -> str:
    """Return what a lock says in one line, be it what kdseg writes or not."""
    if not holder:
        return "unknown"
    return holder if _host_of(holder) else f"unknown, it says {holder!r:.100}"
