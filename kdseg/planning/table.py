"""A plan as text: a line per job, the sums, what finished jobs took, and why figures are missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from kdseg.planning.actual import Actual
from kdseg.planning.estimate import Estimate, known_part, total
from kdseg.planning.plan import Plan
from kdseg.planning.timings import FLAT, Timings
from kdseg.planning.units import bytes_text, count_text, figure_text, time_text
from kdseg.running.resources import MB

UNKNOWN, AT_MOST, AT_LEAST = "?", "<=", ">="
_NAMES = ("stage", "model", "volume")
_PLANNED = (*_NAMES, "voxels", "blocks", "CPU", "GPU", "wall", "stored", "asks for", "cost")
_TOOK = (*_NAMES, "took CPU", "of plan", "took wall", "of plan", "stored", "of plan", "memory", "of asked")
_EMPTY = ("", "0 s")
"""Cells of a column that nobody misses."""


def table(plan: Plan) -> str:
    """Return the plan as text: a line per job, then the sums; columns of nothing, as of GPUs, are left out."""
    return _aligned([_PLANNED, *(_planned(plan, one) for one in plan.estimates), _total(plan)])


def took_table(plan: Plan) -> str:
    """Return what finished jobs took, and its share of what was planned, as text."""
    return _aligned(
        [_TOOK, *(_took(one, plan.actuals[one.job.manifest]) for one in _finished(plan)), _took_total(plan)]
    )


def notes(plan: Plan, timings: Timings) -> list[str]:
    """Return sentences below the tables: how was timed, and why each figure that is missing is."""
    reasons = dict[str, list[str]]()
    for name in dict.fromkeys(name for one in plan.estimates for name in one.missing):
        reasons.setdefault(_why(name, timings), []).append(name)
    found = [f"timed on {timings.machine}, with samples of up to {' x '.join(map(str, timings.sample))} voxels"]
    if timings.load > 0.5:
        found.append(
            f"{timings.load:.1f} other processes shared these cores: wall times are those of a machine as busy, "
            "CPU times suffer less"
        )
    found += [f"{UNKNOWN} of {', '.join(names)}: {why}" for why, names in reasons.items()]
    elsewhere = dict.fromkeys(one.job.stage for one in plan.estimates if one.job.workers is None)
    if elsewhere:
        found.append(f"{UNKNOWN} of {', '.join(elsewhere)}: nobody knows how many workers the Dask scheduler has")
    for name, most in dict.fromkeys(
        (name, timings.timings[name].most or 0.0) for one in plan.estimates for name in one.bounded
    ):
        found.append(
            f"{AT_MOST} of {name}: a sample of {count_text(most / FLAT)} voxels took about as long as a smaller one, "
            f"which does not tell what more than {count_text(most)} take; all that it took is taken for its voxels, too"
        )
    if reasons or elsewhere:
        found.append(f"{AT_LEAST} sums what is known")
    if any(one.seconds is None for one in plan.actuals.values()):
        found.append(f"{UNKNOWN} of a finished job's wall time: Snakemake left no benchmark of it")
    return found


def _why(name: str, timings: Timings) -> str:
    """Return why nobody knows what some work takes."""
    if name in timings.missing:
        return timings.missing[name]
    return "it is not in these timings; leave out --timings to time it"


def _stage(one: Estimate) -> str:
    job = one.job
    return job.stage if job.stage not in ("convert", "predict") else f"{job.stage} {Path(job.manifest).stem}"


def _or_unknown(value: float | None, text: Callable[[float], str], bounded: bool = False) -> str:
    return UNKNOWN if value is None else ("" if not bounded or value == 0 else AT_MOST) + text(value)


def _planned(plan: Plan, one: Estimate) -> tuple[str, ...]:
    job = one.job
    cost = plan.prices.cost(one.cpu_s, one.gpu_s, one.size)
    return (
        *(_stage(one), job.model, job.volume),
        *(count_text(job.voxels), f"{job.blocks:,}"),
        *(_or_unknown(seconds, time_text, bool(one.bounded)) for seconds in (one.cpu_s, one.gpu_s, one.seconds)),
        *(_or_unknown(one.size, bytes_text), bytes_text(job.mb * MB)),
        _or_unknown(cost, figure_text, bool(one.bounded)) if plan.prices.given else "",
    )


def _total(plan: Plan) -> tuple[str, ...]:
    """Return the sums; of what is known alone where something is not, or at most; marked as such."""
    everything, known = (total(some, plan.cores) for some in (plan.estimates, known_part(plan.estimates)))
    bounded = any(one.bounded for one in plan.estimates)

    def summed(name: str, text: Callable[[float], str]) -> str:
        if (found := everything[name]) is None:
            return AT_LEAST + text(known[name] or 0.0)
        return _or_unknown(found, text, bounded and name.endswith("_s"))

    sums = {name: everything[name] for name in ("cpu_s", "gpu_s", "bytes")}
    some = None in sums.values()
    cost = plan.prices.cost(**{name.replace("bytes", "size"): (known if some else sums)[name] for name in sums})
    return (
        *("total", f"on {plan.cores} cores", ""),
        *(count_text(known["voxels"] or 0), f"{known['blocks'] or 0:,.0f}"),
        *(summed(name, time_text) for name in ("cpu_s", "gpu_s", "wall_s")),
        *(summed("bytes", bytes_text), bytes_text((known["mb"] or 0) * MB)),
        "" if cost is None else (AT_LEAST if some else AT_MOST if bounded else "") + figure_text(cost),
    )


def _finished(plan: Plan) -> list[Estimate]:
    return [one for one in plan.estimates if one.job.manifest in plan.actuals]


def _took(one: Estimate, found: Actual) -> tuple[str, ...]:
    job, mb = one.job, found.mb
    return (
        *(_stage(one), job.model, job.volume),
        *(_or_unknown(found.cpu_s, time_text), _share(found.cpu_s, one.cpu_s)),
        *(_or_unknown(found.seconds, time_text), _share(found.seconds, one.seconds)),
        *(bytes_text(found.size), _share(found.size, one.size)),
        *(_or_unknown(mb and mb * MB, bytes_text), _share(mb, job.mb)),
    )


def _took_total(plan: Plan) -> tuple[str, ...]:
    """Return the sums over finished jobs alone, on both sides; wall times do not add up where jobs run side by side."""
    pairs = [(one, plan.actuals[one.job.manifest]) for one in _finished(plan)]
    cpu = _sums([(found.cpu_s, one.cpu_s) for one, found in pairs])
    size = _sums([(float(found.size), one.size) for one, found in pairs])
    most = max((found.mb or 0 for _, found in pairs), default=0)
    return (
        *("total", f"of {len(pairs)} jobs", ""),
        *(time_text(cpu[0]), _share(*cpu)),
        *("", ""),
        *(bytes_text(size[0]), _share(*size)),
        *(bytes_text(most * MB), _share(most, max((one.job.mb for one, _ in pairs), default=0))),
    )


def _sums(pairs: Sequence[tuple[float | None, float | None]]) -> tuple[float, float]:
    """Return the sums of what was measured and of what was planned, of jobs of which both are known."""
    known = [(took, planned) for took, planned in pairs if took is not None and planned is not None]
    return sum(took for took, _ in known), sum(planned for _, planned in known)


def _share(took: float | None, planned: float | None) -> str:
    return UNKNOWN if took is None or planned is None else "" if planned == 0 else f"{100 * took / planned:.0f} %"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows in columns: names to the left, figures to the right, without columns of nothing."""
    columns = [column for column in zip(*rows, strict=True) if any(cell not in _EMPTY for cell in column[1:])]
    names = sum(column[0] in _NAMES for column in columns)
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in zip(*columns, strict=True):
        cells = [
            f"{cell:{width}}" if at < names else f"{cell:>{width}}"
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
