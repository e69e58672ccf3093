"""The plan of a run: estimates of its jobs beside what finished ones took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdseg.planning.actual import Actual, actual
from kdseg.planning.estimate import Estimate, Prices, estimate, total
from kdseg.planning.jobs import Job
from kdseg.planning.timings import Timings


@dataclass(frozen=True)
class Plan:
    """Plan of a run.

    Attributes:
        estimates: of its jobs, in order.
        actuals: of those that have finished, by their manifests.
        cores: that they share.
        prices: of an hour and of storage.
    """

    estimates: Sequence[Estimate]
    actuals: Mapping[str, Actual]
    cores: int
    prices: Prices

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON values: seconds, bytes, MB; None is what is not known."""
        summed = total(self.estimates, self.cores)
        rows = [
            {
                **{key: value for key, value in asdict(one.job).items() if key != "work"},
                "wall_s": one.seconds,
                "cpu_s": one.cpu_s,
                "gpu_s": one.gpu_s,
                "bytes": one.size,
                "cost": self.prices.cost(one.cpu_s, one.gpu_s, one.size),
                "not_measured": list(one.missing),
                "at_most": list(one.bounded),
                "actual": asdict(self.actuals[one.job.manifest]) if one.job.manifest in self.actuals else None,
            }
            for one in self.estimates
        ]
        cost = self.prices.cost(summed["cpu_s"], summed["gpu_s"], summed["bytes"])
        return {"cores": self.cores, "jobs": rows, "total": {**summed, "cost": cost}}


def make_plan(jobs: Sequence[Job], timings: Timings, results: Path | None, cores: int, prices: Prices) -> Plan:
    """Return the plan of some jobs.

    Args:
        jobs: of a run, each after those that it needs.
        timings: of their kinds of work.
        results: folder of the run, for what has finished of it; None leaves that out.
        cores: that jobs share.
        prices: of an hour and of storage.
    """
    found = {} if results is None else {job.manifest: actual(results, job) for job in jobs}
    actuals = {manifest: one for manifest, one in found.items() if one is not None}
    return Plan([estimate(job, timings.timings) for job in jobs], actuals, cores, prices)
