"""Costs of a unit of each stage's work, as they were measured, in a file of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdseg.config import Config
from kdseg.config.base import Section
from kdseg.errors import ConfigError, MissingError, UnreadableError
from kdseg.results.claims import differences
from kdseg.results.sealed import read_sealed, write_sealed

FLAT = 2
"""Times the larger sample, up to which two samples stand for all that a stage takes although they took equally long."""
DIFFERENT, TOLD = 1.1, 1.5
"""CPU seconds of a larger sample, in those of the smaller one, that are no longer equally long, and that tell well
what a unit of work takes: starts differ by a tenth by chance."""


TIMED = {
    *("models", "pretrained", "offsets", "sections", "device", "storage"),
    *("predict", "fragments", "edges", "agglomerate", "segment", "evaluate"),
}
"""Sections of a configuration that timings depend on."""


class Timing(Section):
    """Cost of a stage: what it takes to start, and more for each unit of work, which is a voxel or a step."""

    start_s: float = 0.0
    """Seconds of a job without work: the process, its imports, compiled code, manifests."""
    start_cpu_s: float = 0.0
    """CPU seconds of the same."""
    unit_s: float = 0.0
    """Seconds of one worker per unit."""
    unit_cpu_s: float = 0.0
    """CPU seconds per unit."""
    voxel_bytes: float = 0.0
    """Bytes that are stored per voxel of the volume."""
    fixed_bytes: float = 0.0
    """Bytes that are stored whatever the volume."""
    most: float | None = None
    """Work up to which this holds: both samples took equally long, and tell only what more takes at most;
    None: as much as there is."""
    mb: float = 0.0
    """Memory of the process that was measured."""

    def holds(self, work: float) -> bool:
        """Return whether this tells what so much work takes, and not only what it takes at most."""
        return self.most is None or work <= self.most

    def at_most(self) -> Timing:
        """Return the most that any work can take: all that the larger sample took is both its start and its work.

        Either may be: it is not known, and workers share the work alone.
        """
        sampled = 1.0 if self.most is None else self.most / FLAT
        return self.model_copy(
            update={
                "unit_s": self.unit_s + self.start_s / sampled,
                "unit_cpu_s": self.unit_cpu_s + self.start_cpu_s / sampled,
            }
        )


class Timings(Section):
    """All that was timed, on one machine."""

    machine: str
    """Kind and number of its processors."""
    load: float = 0.0
    """Processes that ran on it, or waited for a core, in the minute before."""
    options: dict[str, Any]
    """Options of the configuration that was timed, as `timed_options` returns them."""
    sample: tuple[int, int, int]
    """Voxels of the largest sample, (z, y, x)."""
    timings: dict[str, Timing]
    """By the names that `Job.work` uses."""
    missing: dict[str, str]
    """Reasons by the names of what could not be timed."""


def write_timings(path: Path, timings: Timings) -> None:
    """Write timings, with a checksum."""
    write_sealed(path, timings.model_dump(mode="json"))


def timed_options(config: Config) -> dict[str, Any]:
    """Return the options that timings depend on, as JSON values: all but volumes, workers, and how long to train."""
    values = config.model_dump(mode="json", include=TIMED)
    for model in values["models"].values():
        for budget in ("steps", "seconds"):
            model["train"].pop(budget)
    return values


def read_timings(path: Path, config: Config) -> Timings:
    """Return the timings of a file, which must be those of a configuration.

    Raises:
        MissingError: if there is no such file.
        UnreadableError: if it is damaged, or something else.
        ConfigError: if other options were timed.
    """
    found = _read(path)
    if other := next(differences({"options": found.options}, {"options": timed_options(config)}), None):
        raise ConfigError(f"{path} has timings of another configuration: {other}; leave out --timings to time this one")
    return found


def _read(path: Path) -> Timings:
    hint = "name a file that `kdseg plan --save` wrote"
    try:
        return Timings.model_validate(read_sealed(path))
    except MissingError:
        raise MissingError(f"no timings at {path}: {hint}") from None
    except (UnreadableError, ValidationError) as error:
        said = error if isinstance(error, UnreadableError) else f"{path} holds no timings"
        raise UnreadableError(f"{said}; {hint}") from None


def enough(small: Mapping[str, float], large: Mapping[str, float], needed: float) -> bool:
    """Return whether two jobs, as in `of_two`, tell well what so much work takes; else a larger one should be timed."""
    return needed <= FLAT * large["work"] or _differ(small, large, TOLD)


def _differ(small: Mapping[str, float], large: Mapping[str, float], times: float) -> bool:
    return large["cpu_s"] >= times * small["cpu_s"]


def of_two(small: Mapping[str, float], large: Mapping[str, float]) -> Timing:
    """Return the cost of starting and of a unit of work, from a job with little of it and one with more.

    Args:
        small: ``work``, ``seconds``, ``cpu_s``, ``mb``, and ``bytes`` and ``voxels`` of what it stored.
        large: likewise; of as much work, all is taken for the start.
    """

    def line(name: str, amount: str) -> tuple[float, float]:
        """Return the start and the slope; of what has no start, the slope through the larger job."""
        more = large[amount] - small[amount]
        slope = max(large[name] - small[name], 0.0) / more if more > 0 else 0.0
        start = small[name] - slope * small[amount]
        return (start, slope) if start >= 0 else (0.0, large[name] / large[amount])

    (start_s, unit_s), (start_cpu_s, unit_cpu_s) = line("seconds", "work"), line("cpu_s", "work")
    if unit_s == 0 < unit_cpu_s:  # by the clock of a busy machine
        start_s, unit_s = max(small["seconds"] - unit_cpu_s * small["work"], start_cpu_s), unit_cpu_s
    fixed_bytes, voxel_bytes = 0.0, large["bytes"] / large["voxels"]
    if large["voxels"] > small["voxels"]:
        fixed_bytes, voxel_bytes = line("bytes", "voxels")
    return Timing(
        start_s=start_s,
        start_cpu_s=start_cpu_s,
        unit_s=unit_s,
        unit_cpu_s=unit_cpu_s,
        voxel_bytes=voxel_bytes,
        fixed_bytes=fixed_bytes,
        most=None if _differ(small, large, DIFFERENT) else FLAT * large["work"],
        mb=max(small["mb"], large["mb"]),
    )
