"""Number of steps that fit into a time, from the first steps' pace."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import mean

import torch
import torch.distributed as dist

from kdseg.config.networks import TIMED_STEPS
from kdseg.errors import ConfigError
from kdseg.training.pull import looks
from kdseg.training.run import Run

_MOST = 1 << 40


class Pace:
    """Seconds that the last steps and the last validation took."""

    def __init__(self) -> None:
        self.steps = deque[tuple[bool, float]](maxlen=TIMED_STEPS)
        self.validated = 0.0

    @contextmanager
    def step(self, *, looking: bool) -> Iterator[None]:
        """Time a step, the body; ``looking`` at the gradients of all parts takes longer."""
        begun = time.monotonic()
        yield
        self.steps.append((looking, time.monotonic() - begun))

    def seconds(self) -> tuple[float, float]:
        """Return the seconds of a step, and those that looking at the gradients adds to one."""
        plain, looking = ([took for looked, took in self.steps if looked is which] for which in (False, True))
        return mean(plain), mean(looking) - mean(plain) if looking else 0.0

    @contextmanager
    def validation(self) -> Iterator[None]:
        """Time a validation, the body."""
        begun = time.monotonic()
        yield
        self.validated = time.monotonic() - begun


def expect_time(run: Run) -> None:
    """Refuse to go on with the steps that are timed when the time is over.

    Raises:
        ConfigError: if it is.
    """
    given, timed = run.options.train.seconds or 0, run.options.train.full_rate_steps
    if run.seconds >= given:
        raise ConfigError(
            f"train.seconds is too short: {given:g} s are over after {run.step} of the {timed} steps that warm up or "
            f"are timed: give more than {run.seconds * timed / run.step:.1f} s"
        )


def fixed_steps(run: Run, pace: Pace) -> int:
    """Return the number of steps of a run that is given ``train.seconds``, the same on all processes.

    Args:
        run: after its timed steps and a validation.
        pace: of these.
    """
    found = torch.zeros(1, dtype=torch.int64, device=run.ranks.device)
    if run.ranks.first:
        train = run.options.train
        step, look = pace.seconds()

        def cost(steps: int) -> float:
            # gradients are looked at less often later on: how often they were while steps were timed says nothing
            looking = look * looks(run.step, run.step + steps)
            return steps * step + looking + (steps / train.validate_every + 1) * pace.validated

        found[0] = fitting((train.seconds or 0) - run.seconds, cost)
    if run.ranks.ranks > 1:
        dist.broadcast(found, 0)
    return run.step + int(found)


def fitting(left: float, cost: Callable[[int], float]) -> int:
    """Return how many steps fit into the seconds that are left.

    Args:
        left: seconds, after the timed steps.
        cost: seconds of so many steps with their validations, the last one included; grows with the steps.

    Raises:
        ConfigError: if not one does.
    """
    steps = bisect_right(range(_MOST), left, key=cost) - 1
    if steps < 1:
        raise ConfigError(
            f"train.seconds is too short: {left:.3g} s are left after the timed steps and a validation, but a step and "
            f"the last validation take {cost(1):.3g} s: give at least {cost(1) - left:.1f} s more"
        )
    return steps
