"""Memory and CPU time that a process has, and has had."""

from __future__ import annotations

import resource
from pathlib import Path


def peak_mb() -> float:
    """Return the largest resident memory that this process or one of its finished children had, in MB."""
    usage = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(usage) / 1024


_told = 0.0
"""CPU seconds that were told of already, of this process."""


def cpu_seconds() -> float:
    """Return the CPU seconds, of user and system, of this process and its finished children since it was asked last.

    Of the first stage of a process they are all, its imports among them.
    """
    global _told
    usage = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    before, _told = _told, sum(one.ru_utime + one.ru_stime for one in usage)
    return _told - before


def resident_mb() -> float:
    """Return the memory that this process has now, in MB; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * resource.getpagesize() / 2**20
