"""Learning rates of the compared methods: those that were tried, and the one that was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdseg.config import Config
from kdseg.config.compare import choice, trial_name
from kdseg.report.table import MISSING
from kdseg.results.manifests import read

Choices = Mapping[str, Mapping[str, Any]]
"""``stats`` of what `kdseg.training.choose` found, by method."""


def choices(config: Config) -> Choices:
    """Return the learning rates that are chosen; none where all methods have the student's."""
    compare = config.expect_compare()
    names = compare.method_names if compare.learning_rates else ()
    paths = {name: Path(config.results) / choice(name) for name in names}
    return {name: read(path).stats for name, path in paths.items() if path.exists()}


def trial_names(config: Config, chosen: Choices, method: str) -> dict[int, str]:
    """Return the names of the trials of a method by seed; of a rate that is not chosen yet there is none."""
    rate = chosen[method]["learning_rate"] if method in chosen else None
    return {seed: trial_name(method, seed, rate) for seed in config.expect_compare().seeds}


def learning_rate(config: Config, chosen: Choices, method: str) -> float | None:
    """Return the learning rate of a method, None if it is not chosen yet."""
    compare = config.expect_compare()
    if not compare.learning_rates:
        return config.models[compare.student].train.learning_rate
    rate: float | None = chosen[method]["learning_rate"] if method in chosen else None
    return rate


def rate_sentence(config: Config) -> str:
    """Return in one sentence at which learning rates the methods are trained."""
    compare = config.expect_compare()
    if not compare.learning_rates:
        return f"All are trained at the learning rate {config.models[compare.student].train.learning_rate:g}."
    rates = ", ".join(f"{rate:g}" for rate in compare.learning_rates)
    seeds = ", ".join(str(seed) for seed in compare.seeds[: compare.rate_seeds])
    return (
        f"Each method is trained at its own learning rate: of {rates}, the one of least affinity loss on "
        f"“{config.evaluate.tune_on}” with the seeds {seeds}."
    )


def rate_table(config: Config, chosen: Choices) -> list[list[str]]:
    """Return the mean affinity loss on the tuning volume, a row per method and a column per rate, headings first.

    The chosen one is in brackets; without learning rates to try there is no row.
    """
    compare = config.expect_compare()
    if not compare.learning_rates:
        return []
    rows = [["method", *(f"{rate:g}" for rate in compare.learning_rates)]]
    for method in compare.method_names:
        found = chosen.get(method, {"tried": (), "learning_rate": None})
        tried = {one["learning_rate"]: f"{one['mean']:.4f}" for one in found["tried"]}
        if found["learning_rate"] in tried:
            tried[found["learning_rate"]] = f"[{tried[found['learning_rate']]}]"
        rows.append([method, *(tried.get(rate, MISSING) for rate in compare.learning_rates)])
    return rows


def at_the_end(config: Config, chosen: Choices) -> list[str]:
    """Return the methods whose rate is the lowest or the highest of several that were tried."""
    rates = config.expect_compare().learning_rates
    ends = {min(rates), max(rates)} if len(rates) > 1 else set()
    return [method for method, found in chosen.items() if found["learning_rate"] in ends]
