"""Charts of training, and of scores over thresholds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from kdseg.report.chart import Point, Series, chart, thin
from kdseg.report.results import Results, finite

TITLES = {
    "total": "total loss",
    "voi": "VOI on the validation crop [bits]",
    "arand": "ARAND on the validation crop",
}
ZOOM = 2.5
"""Scores over thresholds are shown up to so many times the VOI that matters."""


@dataclass(frozen=True)
class Panel:
    """One chart under its title."""

    title: str
    svg: Markup


def styles(results: Results) -> dict[str, int]:
    """Return the colour number of each model, scored ones first; the baseline's is the last."""
    names = dict.fromkeys((*results.config.evaluate.models, *results.config.models, "baseline"))
    return {name: k for k, name in enumerate(names)}


def training_panels(results: Results) -> list[Panel]:
    """Return a chart per quantity of the training curves: total loss, each term, validation."""
    terms = dict.fromkeys(term.name for model in results.curves for term in results.config.models[model].train.terms)
    there = {name for curve in results.curves.values() for name in curve}
    return [_training_panel(results, name) for name in ("total", *terms, "voi", "arand") if name in there]


def sweep_panels(results: Results) -> list[Panel]:
    """Return a chart per scored volume: VOI split against merge over thresholds, the chosen one marked."""
    panels = (_sweep_panel(results, volume) for volume in results.config.evaluate.volumes)
    return [panel for panel in panels if panel is not None]


def _training_panel(results: Results, name: str) -> Panel:
    style, series = styles(results), []
    for model, curve in results.curves.items():
        if name in curve:
            series.append(Series(model, style[model], thin(curve[name])))
    values = [y for s in series for _, y in s.points]
    title = TITLES.get(name, f"term {name}")
    ends = ", ".join(f"{s.name} ends at {s.points[-1][1]:.3g}" for s in series)
    log_y = min(values) > 0 and max(values) / min(values) > 20
    return Panel(title, chart(series, x="step", y=title, alt=f"Curve of {title} over steps: {ends}.", log_y=log_y))


def _sweep_panel(results: Results, volume: str) -> Panel | None:
    series = [*_sweeps(results, volume)]
    points = [p for s in series for p in s.points]
    if not points:
        return None
    matter = [a + b for s in series for a, b, _ in s.marks] + [min(a + b for a, b in points)]
    limit = min(ZOOM * max(matter), max(max(p) for p in points) * 1.05) or 1.0
    marked = "; ".join(label for s in series for _, _, label in s.marks) or "no threshold was chosen"
    svg = chart(
        series,
        x="VOI split [bits]: too many pieces →",
        y="VOI merge [bits]: too few →",
        alt=f"VOI split against VOI merge over thresholds on {volume}. Chosen: {marked}.",
        limits=((0.0, limit), (0.0, limit)),
    )
    return Panel(volume, svg)


def _sweeps(results: Results, volume: str) -> Iterator[Series]:
    style = styles(results)
    for model in results.config.evaluate.models:
        points, labels = _sweep_points(results, model, volume)
        marks = _chosen(results, f"{model}/{volume}/scores", model)
        if points or marks:
            yield Series(model, style[model], points, labels, marks)
    marks = _chosen(results, f"baseline/{volume}/scores", "baseline")
    if marks:
        yield Series("baseline", style["baseline"], marks=marks)


def _sweep_points(results: Results, model: str, volume: str) -> tuple[list[Point], list[str]]:
    points, labels = [], []
    for row in results.stats(f"{model}/{volume}/sweep").get("sweep") or ():
        split, merge = finite(row.get("voi_split")), finite(row.get("voi_merge"))
        if split is not None and merge is not None:
            points.append((split, merge))
            labels.append(f"{model}, threshold {row.get('threshold')}: split {split:.3f}, merge {merge:.3f}")
    return points, labels


def _chosen(results: Results, key: str, name: str) -> list[tuple[float, float, str]]:
    stats = results.stats(key)
    scores, threshold = stats.get("scores") or {}, finite(stats.get("threshold"))
    split, merge = finite(scores.get("voi_split")), finite(scores.get("voi_merge"))
    if split is None or merge is None:
        return []
    at = "" if threshold is None else f" at threshold {threshold:g}"
    return [(split, merge, f"{name}{at}: split {split:.3f}, merge {merge:.3f}")]
