"""The page that compares methods of distillation, and its charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from math import prod

import altair as alt

from kdseg import __version__
from kdseg.config.networks import TrainOptions
from kdseg.report.comparison import METRICS, Comparison, Entry, best_teacher
from kdseg.report.comparison_notes import notes
from kdseg.report.comparison_table import HEADS, TEXT, cells, sentence
from kdseg.report.figures import Figure, Row, data
from kdseg.report.page import config_yaml, template
from kdseg.report.rates import rate_sentence, rate_table
from kdseg.report.table import MISSING

COLOURS = {"distilled": "c0", "student alone": "c1", "control": "c7"}
"""Colour by role; the rule of the teacher is grey too."""


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
        rates=rate_table(config, comparison.choices),
        cells=cells,
        missing=MISSING,
        figures={volume: figures(comparison, volume) for volume in volumes},
        shape=" × ".join(str(n) for n in config.trial.shape),
        chance=f"{100 * 0.5 ** len(compare.seeds):.3g} %",
        teachers=len(config.compared_teachers),
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
        f"checkpoint of least VOI on the validation volume is scored. {rate_sentence(comparison.config)}"
    )


def figures(comparison: Comparison, volume: str) -> list[Figure]:
    """Return a chart per metric that is measured: a row per method, least mean VOI first."""
    return [
        _figure(comparison, volume, key, name, unit)
        for key, name, unit in METRICS
        if any(entry.scores[key] for entry in comparison.of(volume))
    ]


def _figure(comparison: Comparison, volume: str, key: str, name: str, unit: str) -> Figure:
    entries = [*comparison.methods(volume), comparison.alone(volume)]
    means = "; ".join(f"{e.name} {e.spreads[key].mean:.3f}" for e in entries if key in e.spreads)
    in_unit = f" [{unit.strip()}]" if unit else ""
    heads = {"method": "method", "role": "role", "seed": "seed", "value": name + in_unit}
    rows = [
        {"method": entry.name, "role": entry.role, "seed": seed, "value": value}
        for entry in entries
        for seed, value in entry.scores[key].items()
    ]
    x = alt.X(
        "value:Q",
        title=f"{name} on {volume}{in_unit}: less is better",
        scale=alt.Scale(zero=False, padding=12),
        axis=alt.Axis(tickCount=8),
    )
    return Figure(
        f"{name} on {volume}: a dot per seed, a bar at the mean",
        f"{name} on {volume}, a dot per seed and a bar at the mean. Means: {means}.",
        alt.LayerChart(
            layer=[*_rules(comparison, volume, key, x), *_methods(entries, rows, key, heads, x)],
            height=24 * len(entries),
        ),
        heads,
        rows,
    )


def _rules(comparison: Comparison, volume: str, key: str, x: alt.X) -> list[alt.Chart]:
    """Return vertical lines at the teacher and at the mean student alone, with their names above."""
    alone, least = comparison.alone(volume), best_teacher(comparison.teachers(volume), key)
    rules = [] if least is None else [("teacher", "c7", least)]
    if key in alone.spreads:
        rules.append(("alone, mean", COLOURS["student alone"], alone.spreads[key].mean))
    layers = []
    for k, (name, colour, value) in enumerate(rules):
        text = f"{name} {value:.3f}"
        base = alt.Chart(data([{"value": value, "text": text}])).encode(x=x, tooltip=alt.value(text))
        layers.append(base.mark_rule(strokeDash=[5, 4], strokeWidth=1.5, color=f"var(--{colour})"))
        # Each name has a line of its own, so that neighbouring rules do not write over each other.
        layers.append(base.mark_text(dy=-8 - 13 * k).encode(text="text:N", y=alt.value(0)))
    return layers


def _methods(
    entries: Sequence[Entry], rows: Sequence[Row], key: str, heads: Mapping[str, str], x: alt.X
) -> list[alt.Chart]:
    """Return the dots, the means, and on the right the time per step, or that nothing was measured."""
    names = [entry.name for entry in entries]
    y = alt.Y(
        "method:N", title=None, sort=None, scale=alt.Scale(domain=names), axis=alt.Axis(domain=False, ticks=False)
    )
    roles = [name for name in COLOURS if any(entry.role == name for entry in entries)]
    colours = alt.Scale(domain=roles, range=[f"var(--{COLOURS[name]})" for name in roles])
    role = alt.Color("role:N", scale=colours, legend=alt.Legend(orient="bottom", title=None))
    means = [{"method": e.name, "value": e.spreads[key].mean} for e in entries if key in e.spreads]
    times = [{"method": e.name, "text": _time(e) if key in e.spreads else MISSING} for e in entries]
    return [
        alt.Chart(data(rows))
        .mark_circle(size=60, opacity=0.75)
        .encode(x=x, y=y, color=role, tooltip=[alt.Tooltip(f"{name}:N", title=head) for name, head in heads.items()]),
        alt.Chart(data(means))
        .mark_tick(thickness=2, size=18, color="var(--text)")
        .encode(x=x, y=y, tooltip=[alt.Tooltip("method:N"), alt.Tooltip("value:Q", title="mean", format=".3f")]),
        alt.Chart(data(times)).mark_text(align="left", dx=8).encode(x=alt.value("width"), y=y, text="text:N"),
    ]


def _time(entry: Entry) -> str:
    """Return the time per step as a multiple of the student alone's."""
    if entry.role == "student alone" and entry.seconds_per_step is not None:
        return "1× time"
    return "" if entry.relative_time is None else f"{entry.relative_time:.2f}× time"
