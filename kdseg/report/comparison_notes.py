"""Notes on a comparison: what a reader should know before believing it."""

from __future__ import annotations

from collections.abc import Iterator

from kdseg.report.comparison import FEW, METRICS, Comparison, best_teacher
from kdseg.report.overlap import overlaps
from kdseg.report.rates import at_the_end

UNEVEN = 1.1
"""Ratio of most to fewest steps of a method from which on its trials had not the same time."""


def notes(comparison: Comparison) -> list[str]:
    """Return what a reader should know before believing the table."""
    config = comparison.config
    compare = config.expect_compare()
    found: list[str] = []
    lacking = [name for name in comparison.asked if name not in comparison.trials]
    if lacking:
        found.append(f"Not measured: {', '.join(lacking)}.")
    if len(compare.seeds) < FEW:
        found.append(f"Fewer than {FEW} seeds: the spread, and who wins, mean little.")
    if len(compare.methods) > 1:
        found.append("The best of several methods owes a part of its lead to chance: confirm it with new seeds.")
    if at_end := at_the_end(config, comparison.choices):
        found.append(
            f"{', '.join(at_end)}: the learning rate is the lowest or the highest of those that were tried: try more "
            "beyond it."
        )
    found += overlaps(config, compare=True)
    student = config.models[compare.student]
    found += _budget_notes(comparison, student.train.seconds)
    if student.train.active_unlabelled:
        share = student.train.unlabelled_fraction
        found.append(
            f"Methods with a teacher draw {100 * share:.0f} % of their crops from unlabelled volumes, the student "
            "alone and controls draw all from labelled ones: equal steps and voxels, and the unlabelled data are a "
            "part of what distillation gains."
        )
    headed = [name for name, method in compare.methods.items() if method.heads not in (None, student.heads)]
    if headed:
        found.append(f"{', '.join(headed)}: other heads than the student alone, so that the network differs by these.")
    done = [comparison.trials[name] for name in config.trials if name in comparison.trials]
    devices = {(stats.get("training") or {}).get("device") for stats in done}
    if len(devices) > 1:
        found.append("The trials were trained on different devices: their times and memory cannot be compared.")
    return found + [text for volume in config.trial.volumes for text in _gap_notes(comparison, volume)]


def _budget_notes(comparison: Comparison, seconds: float | None) -> Iterator[str]:
    if seconds is None:
        return
    entries = {entry.name: entry.steps.values() for entry in comparison.entries if entry.role != "teacher"}
    uneven = [name for name, steps in entries.items() if steps and max(steps) > UNEVEN * min(steps)]
    if uneven:
        yield (
            f"{', '.join(uneven)}: the steps that fitted into {seconds:g} s differ by more than a tenth between seeds: "
            "something else was computing beside some of the trials."
        )
    stored = [
        name
        for name, trial in comparison.config.trials.items()
        if trial.train.teachers and trial.train.teaching.outputs == "stored"
    ]
    if stored:
        yield f"What stored teachers predicted, once for all trials, is not in the {seconds:g} s."


def _gap_notes(comparison: Comparison, volume: str) -> Iterator[str]:
    alone = comparison.alone(volume)
    for key, name, unit in METRICS:
        mean, teacher = alone.spreads.get(key), best_teacher(comparison.teachers(volume), key)
        if mean is None or teacher is None or mean.sd is None:
            continue
        gap = mean.mean - teacher
        if 0 < gap < 2 * mean.sd:
            yield (
                f"{volume}: the gap in {name}, {gap:.3f}{unit}, is small against the spread of the student alone, "
                f"{mean.sd:.3f}{unit}: the share of it that is closed says little."
            )
