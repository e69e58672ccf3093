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
PARTS = {"voi": "VOI sum", "voi_split": "VOI split", "voi_merge": "VOI merge"}
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


def threshold_panels(results: Results) -> list[Panel]:
    """Return charts of VOI sum, split and merge over thresholds, the one used marked.

    Of each scored volume, and of the one that thresholds were chosen on.
    """
    evaluate = results.config.evaluate
    volumes = dict.fromkeys((*evaluate.volumes, evaluate.tune_on))
    panels = (_threshold_panel(results, volume, key) for volume in volumes for key in PARTS)
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
    evaluate = results.config.evaluate
    of_part = volume == evaluate.tune_on and evaluate.tune_roi is not None
    return Panel(f"{volume} (dots: the part that thresholds were chosen on)" if of_part else volume, svg)


def _threshold_panel(results: Results, volume: str, key: str) -> Panel | None:
    style, series = styles(results), []
    for model in results.config.evaluate.models:
        rows = results.stats(f"{model}/{volume}/sweep").get("sweep") or ()
        pairs = [(finite(row.get("threshold")), finite(row.get(key))) for row in rows]
        points = [(t, value) for t, value in pairs if t is not None and value is not None]
        used = _used(results, model)
        marks = [(t, v, f"{model} at threshold {t:g}: {v:.3f} bits") for t, v in points if t == used]
        if points:
            series.append(Series(model, style[model], points, marks=marks))
    if not series:
        return None
    marked = "; ".join(label for s in series for _, _, label in s.marks) or "none of these thresholds was used"
    alt = f"{PARTS[key]} over thresholds on {volume}. Used: {marked}."
    svg = chart(series, x="threshold", y=f"{PARTS[key]} [bits]", alt=alt)
    return Panel(f"{PARTS[key]} on {volume}", svg)


def _used(results: Results, model: str) -> float | None:
    """Return the threshold that a model's volumes are segmented with, None where it is not chosen yet."""
    fixed = results.config.segment.threshold
    return results.number(f"{model}/{results.config.evaluate.tune_on}/sweep", "best") if fixed is None else fixed


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
