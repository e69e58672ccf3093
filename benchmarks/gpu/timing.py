"""Timing on a GPU or a CPU, and lists of measurements in which a failure does not end the others."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

import torch
from job import Job


class Timing(NamedTuple):
    """Milliseconds of some runs: the median, the least and the most."""

    ms: float
    low: float
    high: float


class Item(NamedTuple):
    """One row that is to be measured.

    Attributes:
        key: of the row.
        seconds: that it may take; it is left for the next run where fewer are left.
        measure: returns the values of the row.
    """

    key: str
    seconds: float
    measure: Callable[[], dict[str, Any]]


def measure_all(job: Job, items: Iterable[Item]) -> None:
    """Add a row for each item that has none and that there is time for; what fails has a row with its error."""
    late = []
    for key, seconds, measure in items:
        if key in job.rows:
            continue
        if job.left < seconds:
            late.append(key)
            continue
        try:
            values = measure()
        except Exception as error:  # noqa: BLE001 - the others can still be measured
            values = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        job.rows.add(key, **values)
        if not _works(job.device):
            sys.exit(f"{job.rows.job}: the GPU does nothing more for this process: run it again for the other rows")
    if late:
        print(f"{job.rows.job}: out of time, left for the next run: {', '.join(late)}", flush=True)


def _works(device: str) -> bool:
    """Return whether the GPU still does what it is asked for; give back the memory of what was measured."""
    try:
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def wait(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(function: Callable[[], Any], device: torch.device, seconds: float, most: int = 100) -> Timing:
    """Return how long runs take that follow each other without a pause.

    Args:
        function: called twice beforehand.
        device: on a GPU the time is taken by its own events.
        seconds: to go on for; there are at least three runs.
        most: runs.
    """
    for _ in range(2):
        function()
        wait(device)
    before = time.perf_counter()
    function()
    wait(device)
    runs = max(3, min(most, int(seconds / (time.perf_counter() - before))))
    found = _by_events(function, runs) if device.type == "cuda" else _by_clock(function, runs)
    return Timing(median(found), min(found), max(found))


def _by_events(function: Callable[[], Any], runs: int) -> list[float]:
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]
    marks[0].record()
    for mark in marks[1:]:
        function()
        mark.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in pairwise(marks)]


def _by_clock(function: Callable[[], Any], runs: int) -> list[float]:
    marks = [time.perf_counter()]
    for _ in range(runs):
        function()
        marks.append(time.perf_counter())
    return [1e3 * (after - before) for before, after in pairwise(marks)]


def rounded(value: float, digits: int = 4) -> float:
    """Return a number to so many digits that count."""
    return float(f"{value:.{digits}g}")
