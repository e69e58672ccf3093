"""Programs with all of their processes, measured: what the benchmarks of whole commands share."""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import time
from typing import NamedTuple

import psutil

_EVERY_S = 0.05


class Measured(NamedTuple):
    """Resources that a program took.

    Attributes:
        wall: seconds.
        cpu: seconds of all processes.
        peak: bytes of all processes together, shared pages counted once.
        text: what it printed.
    """

    wall: float
    cpu: float
    peak: int
    text: str


def measured(command: list[str]) -> Measured:
    """Run a command, one thread per process, and measure it; a failure ends the benchmark."""
    before, start, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as out:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        run = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        while run.poll() is None:
            peak = max(peak, _memory(run.pid))
            time.sleep(_EVERY_S)
        wall = time.perf_counter() - start
        out.seek(0)
        text = out.read()
    if run.returncode:
        raise SystemExit(f"{command} failed with {run.returncode}:\n{text[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(wall, used, peak, text)


def _memory(pid: int) -> int:
    """Return the proportional memory of a process and of all below it, in bytes."""
    total = 0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for one in family:
        try:
            total += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total
