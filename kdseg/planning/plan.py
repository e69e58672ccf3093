"""The plan of a run: estimates of its jobs beside what finished ones took, as values and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdseg.planning.actual import Actual, actual
from kdseg.planning.estimate import GB, HOUR, Estimate, Prices, estimate, total
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


HEADER = ("stage", "model", "volume", "Mvox", "blocks", "CPU h", "GPU h", "wall h", "GB", "MB asked", "cost")
AGAINST = ("took h", "of plan", "took CPU h", "of plan", "took GB", "of plan", "took MB")


def table(plan: Plan) -> str:
    """Return the plan as text: a line per job, then the sums; of finished jobs what they took, and its share."""
    against = bool(plan.actuals)
    header = HEADER + (AGAINST if against else ())
    rows = [_row(plan, one, against) for one in plan.estimates]
    return _aligned([header, *rows, _total(plan, against)])


def _row(plan: Plan, one: Estimate, against: bool) -> tuple[str, ...]:
    job, found = one.job, plan.actuals.get(one.job.manifest)
    row = (
        job.stage if job.stage not in ("convert", "predict") else f"{job.stage} {Path(job.manifest).stem}",
        job.model,
        job.volume,
        f"{job.voxels / 1e6:.4g}",
        str(job.blocks),
        _hours(one.cpu_s),
        _hours(one.gpu_s),
        _hours(one.seconds),
        _figure(one.size, GB),
        str(job.mb),
        _figure(plan.prices.cost(one.cpu_s, one.gpu_s, one.size)),
    )
    if not against:
        return row
    took = found or Actual(None, None, None, 0, None, None)
    size = float(took.size) if found else None
    return (
        *row,
        *(_hours(took.seconds), _share(took.seconds, one.seconds)),
        *(_hours(took.cpu_s), _share(took.cpu_s, one.cpu_s)),
        *(_figure(size, GB), _share(size, one.size)),
        _figure(took.mb),
    )


def _total(plan: Plan, against: bool) -> tuple[str, ...]:
    summed = total(plan.estimates, plan.cores)
    hours = [_hours(summed[name]) for name in ("cpu_s", "gpu_s", "wall_s")]
    cost = plan.prices.cost(summed["cpu_s"], summed["gpu_s"], summed["bytes"])
    place = f"on {plan.cores} cores"
    row = ("total", place, "", f"{(summed['voxels'] or 0) / 1e6:.4g}", f"{summed['blocks']:.0f}", *hours)
    row += (_figure(summed["bytes"], GB), f"{summed['mb']:.0f}", _figure(cost))
    if not against:
        return row
    # of finished jobs alone, on both sides; hours by the clock do not add up where jobs run side by side
    pairs = [(one, plan.actuals[one.job.manifest]) for one in plan.estimates if one.job.manifest in plan.actuals]
    cpu = _sums([(found.cpu_s, one.cpu_s) for one, found in pairs])
    size = _sums([(float(found.size), one.size) for one, found in pairs])
    return (
        *row,
        *("-", "-"),
        *(_hours(cpu[0]), _share(*cpu)),
        *(_figure(size[0], GB), _share(*size)),
        _figure(max((found.mb or 0 for _, found in pairs), default=None)),
    )


def _sums(pairs: Sequence[tuple[float | None, float | None]]) -> tuple[float | None, float | None]:
    """Return the sums of what was measured and of what was planned, of jobs of which both are known."""
    known = [(took, planned) for took, planned in pairs if took is not None and planned is not None]
    return (sum(took for took, _ in known), sum(planned for _, planned in known)) if known else (None, None)


def _hours(seconds: float | None) -> str:
    return _figure(seconds, HOUR)


def _figure(value: float | None, unit: float = 1) -> str:
    if value is None:
        return "-"
    figure = value / unit
    return f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.3g}"


def _share(took: float | None, planned: float | None) -> str:
    return "-" if took is None or not planned else f"{100 * took / planned:.0f} %"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            f"{cell:{width}}" if at < 3 else f"{cell:>{width}}"
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
