"""The page that compares methods of distillation, and its charts."""

from __future__ import annotations

from datetime import datetime
from math import prod

from markupsafe import Markup

from kdseg import __version__
from kdseg.config.networks import TrainOptions
from kdseg.report.chart import STYLES
from kdseg.report.comparison import METRICS, Comparison, Entry, best_teacher
from kdseg.report.comparison_table import HEADS, TEXT, cells, notes, sentence
from kdseg.report.page import config_yaml, template
from kdseg.report.strip import Row, strip
from kdseg.report.table import MISSING

KINDS = {"student alone": "alone", "distilled": "ours", "control": "control"}


def page(comparison: Comparison, made: datetime) -> str:
    """Return one HTML document that refers to nothing outside of itself."""
    config = comparison.config
    volumes = config.trial.volumes
    compare = config.expect_compare()
    return template("compare.html").render(
        config=config,
        comparison=comparison,
        volumes=volumes,
        sentences={volume: sentence(comparison, volume) for volume in volumes},
        notes=notes(comparison),
        budget=budget(comparison),
        heads=HEADS,
        text_keys=TEXT,
        cells=cells,
        missing=MISSING,
        charts={volume: charts(comparison, volume) for volume in volumes},
        shape=" × ".join(str(n) for n in config.trial.shape),
        chance=f"{100 * 0.5 ** len(compare.seeds):.3g} %",
        teachers=len(config.compared_teachers),
        style_count=STYLES,
        yaml=config_yaml(config),
        version=__version__,
        made=made,
    )


def budget(comparison: Comparison) -> str:
    """Return in one sentence what all trials have in common."""
    compare = comparison.config.expect_compare()
    model = comparison.config.models[compare.student]
    train: TrainOptions = model.train
    shape = " × ".join(str(n) for n in train.crop)
    seeds = ", ".join(str(seed) for seed in compare.seeds)
    widths = ", ".join(str(n) for n in model.network.widths)
    crops = train.batch * train.accumulate
    duration = f"{train.seconds:g} s in steps" if train.steps is None else f"{train.steps:,} steps"
    return (
        f"Equal budget: each trial trains the network of “{compare.student}” ({model.network.kind}, widths "
        f"{widths}) for {duration} of {crops} crops of {shape} voxels ({crops * prod(train.crop):,} voxels "
        f"per step), with the seeds {seeds}. Equal seeds see equal crops, as far as they draw from equal volumes; the "
        "checkpoint of least VOI on the validation volume is scored."
    )


def charts(comparison: Comparison, volume: str) -> list[Markup]:
    """Return a chart per metric that is measured: a row per method, least mean VOI first."""
    return [
        _chart(comparison, volume, key, name, unit)
        for key, name, unit in METRICS
        if any(entry.scores[key] for entry in comparison.of(volume))
    ]


def _chart(comparison: Comparison, volume: str, key: str, name: str, unit: str) -> Markup:
    alone, teachers = comparison.alone(volume), comparison.teachers(volume)
    rules = []
    if (least := best_teacher(teachers, key)) is not None:
        rules.append(("teacher", "teacher", least))
    if key in alone.spreads:
        rules.append(("alone", "alone, mean", alone.spreads[key].mean))
    entries = [*comparison.methods(volume), alone]
    means = "; ".join(f"{e.name} {e.spreads[key].mean:.3f}" for e in entries if key in e.spreads)
    return strip(
        [_row(entry, key) for entry in entries],
        rules,
        x=f"{name} on {volume}{f' [{unit.strip()}]' if unit else ''}: less is better",
        alt=f"{name} on {volume}, a dot per seed and a bar at the mean. Means: {means}.",
        head="time per step",
    )


def _row(entry: Entry, key: str) -> Row:
    mean = entry.spreads.get(key)
    note = "" if entry.relative_time is None else f"{entry.relative_time:.2f}×"
    if entry.role == "student alone" and entry.seconds_per_step is not None:
        note = "1×"
    return Row(entry.name, KINDS[entry.role], entry.scores[key], None if mean is None else mean.mean, note)
