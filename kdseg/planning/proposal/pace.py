"""Steps of a training that a machine does in minutes: some are timed."""

from __future__ import annotations

import os
from typing import NamedTuple

from kdseg.config import Config
from kdseg.planning.extents import read_extents
from kdseg.planning.jobs import jobs
from kdseg.planning.timings import Timing
from kdseg.planning.units import time_text

VALIDATIONS = 10
"""Of a training."""
_BUSY = 0.5
"""Other processes from which on a machine is busy."""


class Budget(NamedTuple):
    """Length of a training.

    Attributes:
        seconds: that it may take, unless that is fewer steps than `least`.
        least: steps without which it is not worth it.
        most: steps from which on it learns little.
    """

    seconds: float
    least: int
    most: int


NEW = Budget(1800, 500, 5000)
"""From random weights: the networks of docs/results.md had 2,500 to 5,200 steps."""
ADAPTED = Budget(600, 200, 1000)
"""Of a network that is trained already: it has little to learn."""


class Pace(NamedTuple):
    """Steps of a training.

    Attributes:
        steps: a multiple of `VALIDATIONS`.
        said: how long they take, in words.
    """

    steps: int
    said: str


def untimed(budget: Budget, why: str = "not timed") -> Pace:
    """Return the steps of a machine of which nothing is known."""
    return Pace(budget.most // 2, f"{why}; `kdseg plan` says how long they take")


def timed(config: Config, model: str, budget: Budget) -> Pace:
    """Time the training of a model, with validations, and return as many steps as fit into a budget.

    Args:
        config: of the run; how many steps it says does not matter.
        model: its name.
        budget: of the training.
    """
    from kdseg.planning.measure import measure  # loads torch

    cores = len(os.sched_getaffinity(0))
    extents = read_extents(config)
    training = [job for job in jobs(config, extents) if job.manifest == f"{model}/model.json"]
    found = measure(config, extents, training, cores)
    names = (f"train {model}", f"validate {model}")
    if any(name not in found.timings for name in names):
        return untimed(budget, next((why for name, why in found.missing.items() if name in names), "not timed"))
    step, validation = (found.timings[name] for name in names)
    busy = f", beside {found.load:.0f} other processes" if found.load > _BUSY else ""
    return fitting(budget, step, validation, f"{found.machine}{busy}")


def fitting(budget: Budget, step: Timing, validation: Timing, machine: str) -> Pace:
    """Return as many steps, in hundreds, as fit into a budget with their validations.

    Args:
        budget: of the training.
        step: cost of its start and of a step.
        validation: cost of a validation.
        machine: that both were timed on, in words.
    """
    left = budget.seconds - VALIDATIONS * validation.unit_s
    steps = min(max(int(left / step.unit_s) // 100 * 100, budget.least), budget.most)
    takes = step.start_s + steps * step.unit_s + VALIDATIONS * validation.unit_s
    return Pace(steps, f"about {time_text(takes)} on this machine ({machine}), {step.unit_s:.3g} s per step")
