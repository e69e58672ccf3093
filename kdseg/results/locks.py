"""Locks on results: one run writes at a time, on one host or on several."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from kdseg.errors import ClaimError, UnreadableError

log = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
STALE_S = 120.0
"""A lock of another host is taken over when its heartbeat is older than this."""


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
        said, seen = path.read_text(errors="replace"), path.stat().st_mtime
    except OSError:
        return None
    if not said:
        return None
    if time.time() - seen > STALE_S:  # on this host, too: after a reboot the number may be another process's
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
        seen = os.fstat(handle).st_mtime
        while time.time() - seen < STALE_S:
            time.sleep(min(1.0, STALE_S))
            if os.fstat(handle).st_mtime != seen:
                raise ClaimError(_in_use(path, said))
    me = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    os.truncate(handle, 0)
    os.pwrite(handle, json.dumps(me).encode(), 0)


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
    return f"{path.parent} is being written by another run ({holder or 'unknown'}): wait for it or stop it, then rerun"
