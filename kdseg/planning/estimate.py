"""Jobs and timings → what each job takes, what all of them take, and what they cost."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kdseg.planning.jobs import Job
from kdseg.planning.timings import Timing
from kdseg.planning.units import HOUR

GB = 10**9


@dataclass(frozen=True)
class Estimate:
    """Prediction for one job; None: not measured, or by how many workers it is shared is not known.

    Attributes:
        job: of the run.
        seconds: from its start to its end.
        cpu_s: CPU seconds of all its processes.
        gpu_s: seconds that it holds GPUs, times their number.
        size: bytes that it stores.
        missing: names of what was not timed.
        bounded: names of what was timed on too little to tell more than what it takes at most: so are the seconds.
    """

    job: Job
    seconds: float | None
    cpu_s: float | None
    gpu_s: float | None
    size: float | None
    missing: tuple[str, ...] = ()
    bounded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prices:
    """Prices in any one currency; None: not given."""

    cpu_hour: float | None = None
    gpu_hour: float | None = None
    gb_month: float | None = None

    @property
    def given(self) -> bool:
        """Whether any price is known."""
        return any(price is not None for price in (self.cpu_hour, self.gpu_hour, self.gb_month))

    def cost(self, cpu_s: float | None, gpu_s: float | None, size: float | None) -> float | None:
        """Return the price of hours and of a month of storage; None where none is given, or an amount is unknown."""
        amounts = ((self.cpu_hour, cpu_s, HOUR), (self.gpu_hour, gpu_s, HOUR), (self.gb_month, size, GB))
        given = [(price, amount, unit) for price, amount, unit in amounts if price is not None]
        if not given or any(amount is None for _, amount, _ in given):
            return None
        return sum(price * (amount or 0) / unit for price, amount, unit in given)


def estimate(job: Job, timings: Mapping[str, Timing]) -> Estimate:
    """Return what one job takes.

    It starts once, however many kinds of work it has; workers share the work as far as there are blocks for them, and
    a training has one process, which was timed with the threads that it gets. Starts of jobs that a stage submits to
    SLURM, and their waiting, are not in it.
    """
    missing = tuple(name for name in job.work if name not in timings)
    bounded = tuple(name for name, amount in job.work.items() if name in timings and not timings[name].holds(amount))
    known = {
        name: timings[name].at_most() if name in bounded else timings[name] for name in job.work if name in timings
    }
    main = timings.get(next(iter(job.work), ""))
    size = job.size if job.size is not None or main is None else main.fixed_bytes + main.voxel_bytes * job.voxels
    if missing:
        return Estimate(job, None, None, 0.0 if job.gpus == 0 else None, size, missing, bounded)
    work = sum(amount * known[name].unit_s for name, amount in job.work.items())
    cpu = sum(amount * known[name].unit_cpu_s for name, amount in job.work.items())
    starts = known.values()
    start = max((one.start_s for one in starts), default=0.0)
    sharing = _sharing(job)
    seconds = None if sharing is None else start + work / sharing
    cpu_s = max((one.start_cpu_s for one in starts), default=0.0) + cpu
    gpu_s = 0.0 if job.gpus == 0 else None if job.gpus is None or seconds is None else seconds * job.gpus
    return Estimate(job, seconds, cpu_s, gpu_s, size, bounded=bounded)


def _sharing(job: Job) -> int | None:
    """Return how many workers share the work of a job; None if nobody knows."""
    if job.stage == "train" or job.blocks <= 1:
        return 1
    return None if job.workers is None else max(min(job.workers, job.blocks), 1)


def makespan(estimates: Sequence[Estimate], cores: int) -> float | None:
    """Return the seconds from the first start to the last end, where jobs share cores as Snakemake lets them.

    Each job starts as soon as what it needs is there and its threads are free; it has at most all cores. None if the
    time of one is not known.

    Args:
        estimates: each after those that it needs.
        cores: to share.
    """
    if any(one.seconds is None for one in estimates):
        return None
    waiting, done = list(estimates), set[str]()
    running: list[tuple[float, str, int]] = []
    now, free = 0.0, cores
    while waiting or running:
        for one in list(waiting):
            threads = min(max(one.job.cores, 1), cores)
            if threads <= free and done.issuperset(one.job.needs):
                waiting.remove(one)
                free -= threads
                heapq.heappush(running, (now + (one.seconds or 0), one.job.manifest, threads))
        now, manifest, threads = heapq.heappop(running)
        done.add(manifest)
        free += threads
    return now


def known_part(estimates: Sequence[Estimate]) -> list[Estimate]:
    """Return the estimates with nothing in the place of what is not known, or known at most."""

    def known(one: Estimate) -> Estimate:
        seconds, cpu_s, gpu_s = (0.0, 0.0, 0.0) if one.bounded else (one.seconds, one.cpu_s, one.gpu_s)
        return replace(one, seconds=seconds or 0.0, cpu_s=cpu_s or 0.0, gpu_s=gpu_s or 0.0, size=one.size or 0.0)

    return [known(one) for one in estimates]


def total(estimates: Sequence[Estimate], cores: int) -> dict[str, float | None]:
    """Return the sums over all jobs, the wall time on a number of cores, and the largest memory of a job in MB."""

    def added(name: str) -> float | None:
        values = [getattr(one, name) for one in estimates]
        return None if any(value is None for value in values) else float(sum(values))

    return {
        "wall_s": makespan(estimates, cores),
        "cpu_s": added("cpu_s"),
        "gpu_s": added("gpu_s"),
        "bytes": added("size"),
        "mb": float(max((one.job.mb for one in estimates), default=0)),
        "voxels": float(sum(one.job.voxels for one in estimates)),
        "blocks": float(sum(one.job.blocks for one in estimates)),
    }
