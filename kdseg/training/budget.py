"""Number of steps that fit into a time, from the first steps' pace."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import mean

import torch
import torch.distributed as dist

from kdseg.config.networks import TIMED_STEPS
from kdseg.errors import ConfigError
from kdseg.training.run import Run


class Pace:
    """Seconds that the last steps and the last validation took."""

    def __init__(self) -> None:
        self.steps = deque[float](maxlen=TIMED_STEPS)
        self.validated = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time a step, the body."""
        begun = time.monotonic()
        yield
        self.steps.append(time.monotonic() - begun)

    @contextmanager
    def validation(self) -> Iterator[None]:
        """Time a validation, the body."""
        begun = time.monotonic()
        yield
        self.validated = time.monotonic() - begun


def fixed_steps(run: Run, pace: Pace) -> int:
    """Return the number of steps of a run that is given ``train.seconds``, the same on all processes.

    Args:
        run: after its timed steps and a validation.
        pace: of these.
    """
    found = torch.zeros(1, dtype=torch.int64, device=run.ranks.device)
    if run.ranks.first:
        train = run.options.train
        found[0] = fitting((train.seconds or 0) - run.seconds, mean(pace.steps), pace.validated, train.validate_every)
    if run.ranks.ranks > 1:
        dist.broadcast(found, 0)
    return run.step + int(found)


def fitting(left: float, step: float, validation: float, validate_every: int) -> int:
    """Return how many steps, with a validation every so often and a last one, fit into the seconds that are left.

    Args:
        left: seconds, after the timed steps.
        step: seconds of each.
        validation: seconds of each.
        validate_every: steps from one validation to the next.

    Raises:
        ConfigError: if not one does.
    """
    steps = int((left - validation) / (step + validation / validate_every))
    if steps < 1:
        raise ConfigError(
            f"train.seconds is too short: {left:.3g} s are left after the timed steps and a validation, but a step "
            f"takes {step:.3g} s and a validation {validation:.3g}: give at least {step + validation - left:.1f} s more"
        )
    return steps
