"""Memory and CPU time that a process has, and has had."""

from __future__ import annotations

import resource
from pathlib import Path


def peak_mb() -> float:
    """Return the largest resident memory that this process or one of its finished children had, in MB."""
    usage = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(usage) / 1024


def cpu_seconds() -> float:
    """Return the CPU seconds, of user and system, that this process and its finished children have had."""
    usage = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in usage)


def resident_mb() -> float:
    """Return the memory that this process has now, in MB; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * resource.getpagesize() / 2**20
