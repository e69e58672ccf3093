"""Learning rate range test: losses of a training whose rate rises from step to step.

Smith 2017 ("Cyclical Learning Rates for Training Neural Networks", section 3.3) lets the rate rise linearly. fastai's
`lr_find` (Gugger 2018, "How Do You Find A Good Learning Rate") lets it rise exponentially, ends where the loss has
grown to four times its least, and advises the rate of the steepest fall; so is it here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.config import ModelOptions
from kdseg.config.segmentation import WatershedOptions
from kdseg.errors import ConfigError, StageError
from kdseg.geometry import Offsets
from kdseg.networks.models.device import deterministic, joined, keep_memory
from kdseg.running.heartbeat import doing
from kdseg.training.loop import scheduled, step, weighed
from kdseg.training.pull import AT_FIRST
from kdseg.training.run import Data, prepare
from kdseg.training.sampling import loader

DIVERGED = 4.0
"""Multiple of the least smoothed loss at which the test ends."""
SMOOTHED = 20
"""Part of the steps on either side over which the loss is averaged: one in twenty."""
LEFT_OUT = 10
"""Part of the first steps that say nothing: the averages of the optimiser and of the network are young."""
WEIGHED = 2 * AT_FIRST + 1
"""Steps at the lowest rate before, in which `normalise` weighs the parts of the loss."""


class Advice(NamedTuple):
    """Reading of a range test.

    Attributes:
        steepest: rate at which the smoothed loss falls the fastest per decade.
        least: rate of the least smoothed loss, from which on the training no longer gains.
        diverged: rate at which the loss had grown to four times its least, or was not finite; None if it did not.
    """

    steepest: float
    least: float
    diverged: float | None


def rising(low: float, high: float, steps: int) -> list[float]:
    """Return rates that rise by the same factor from step to step, from ``low`` to ``high``."""
    return [low * (high / low) ** (k / (steps - 1)) for k in range(steps)]


def losses(options: ModelOptions, offsets: Offsets, data: Data, rates: Sequence[float], device: str) -> list[float]:
    """Return the total loss of a step at each rate, up to the one at which it diverges; that may be infinite.

    Terms act at their full weight from the first of these steps on: those that learn or remember first do so in steps
    at the lowest rate before. What `normalise` multiplies a part by goes on moving in the training, but is that of the
    first rate in all that is returned: else a loss would rise because its gradient falls.

    Args:
        options: network, heads and training.
        offsets: one affinity channel each.
        data: where volumes and teachers lie.
        rates: of each step.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """
    given, active = options.train, options.train.active_terms
    before = max(-(-term.late_batches // given.accumulate) for term in active)
    before = max(before, WEIGHED) if given.normalise else before
    terms = [{**term.model_dump(), "start": 0, "warmup": 0, "decay": "none"} for term in active]
    train = given.model_dump() | {"steps": before + len(rates), "seconds": None, "terms": terms}
    if not given.distil:
        train |= {"teacher": None, "unlabelled": ()}
    made = ModelOptions.model_validate({**options.model_dump(), "train": train})
    with joined(device) as ranks, deterministic():
        if ranks.device.type == "cpu":
            keep_memory()
        run = prepare(made, offsets, data, "", ranks, WatershedOptions())
        batches = iter(loader(run.crops, 0, rank=ranks.rank, ranks=ranks.ranks))
        for _ in range(before):
            step(run, batches, rates[0])
        weights = weighed(run, scheduled(run, run.step))
        rows = (step(run, batches, rate) for rate in rates)
        with doing(lambda: f"rate: step {run.step - before} of {len(rates)}"):
            return _until_it_diverges(sum(weights[name] * row[name] for name in weights) for row in rows)


def smooth(losses: Sequence[float], steps: int) -> NDArray[np.float64]:
    """Return the mean of each loss and its neighbours, as many on either side, fewer at the ends.

    Args:
        losses: finite.
        steps: of the whole test, which the number of neighbours follows from.
    """
    values, reach = np.asarray(losses, np.float64), max(steps // SMOOTHED, 1)
    near = [min(reach, k, len(values) - 1 - k) for k in range(len(values))]
    return np.array([values[k - n : k + n + 1].mean() for k, n in enumerate(near)])


def advice(rates: Sequence[float], losses: Sequence[float]) -> Advice:
    """Return what a range test says.

    Args:
        rates: of the whole test.
        losses: at the first of these; fewer if it diverged.

    Raises:
        ConfigError: if the loss never falls.
    """
    finite = [loss for loss in losses if np.isfinite(loss)]
    first = len(rates) // LEFT_OUT
    if len(finite) < first + 2:
        raise ConfigError(f"the loss diverges at the rate {rates[len(losses) - 1]:g}: begin with a lower rate")
    smoothed = smooth(finite, len(rates))[first:]
    tried = np.asarray(rates[first : len(finite)])
    slopes = np.gradient(smoothed, np.log10(tried))
    steepest = int(slopes[: smoothed.argmin() + 1].argmin())  # what falls later only makes up for a rise
    if slopes[steepest] >= 0:
        raise ConfigError(
            f"the loss does not fall between the rates {tried[0]:g} and {tried[-1]:g}: begin with a lower one"
        )
    ended = len(losses) < len(rates) or len(finite) < len(losses)
    return Advice(float(tried[steepest]), float(tried[smoothed.argmin()]), rates[len(losses) - 1] if ended else None)


def _until_it_diverges(losses: Iterable[float]) -> list[float]:
    found: list[float] = []
    least, recent = np.inf, 5
    try:
        for loss in losses:
            found.append(loss)
            mean = float(np.mean(found[-recent:]))
            # a loss may be negative
            if len(found) > recent and mean > least + (DIVERGED - 1) * abs(least):
                break
            least = min(least, mean) if len(found) >= recent else least
    except StageError:  # neither the loss nor its gradient is finite
        found.append(np.inf)
    return found
