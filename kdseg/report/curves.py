"""Charts of training, and of scores over thresholds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

import altair as alt

from kdseg.report.figures import Figure, Row, lines, span
from kdseg.report.results import VALIDATED, Points, Results, finite

TITLES = {
    "total": "total loss",
    "voi": "VOI on the validation crop [bits]",
    "arand": "ARAND on the validation crop",
    "affinity_loss": "affinity loss on the validation crop [nat]",
    "agreement_voi": "VOI from the teacher on the validation crop: agreement [bits]",
    "agreement_arand": "ARAND from the teacher on the validation crop: agreement",
    "agreement_affinity_loss": "affinity loss against the teacher on the validation crop: agreement [nat]",
}
PARTS = {"voi": "VOI sum", "voi_split": "VOI split", "voi_merge": "VOI merge"}
NOTHING = "–"
ZOOM = 2.5
"""Scores over thresholds are shown up to so many times the VOI that matters."""
FEW = 30
"""Points up to which each is drawn as a dot."""


def styles(results: Results) -> dict[str, int]:
    """Return the colour number of each model, scored ones first; the baseline's is the last."""
    names = dict.fromkeys((*results.config.evaluate.models, *results.config.models, "baseline"))
    return {name: k for k, name in enumerate(names)}


def training_figures(results: Results) -> list[Figure]:
    """Return a chart per quantity of the training curves: total loss, each term or part of it, validation."""
    terms = [term.name for model in results.curves for term in results.config.models[model].train.terms]
    there = dict.fromkeys(name for curve in results.curves.values() for name in curve)
    parts = [name for term in dict.fromkeys(terms) for name in there if name.partition(".")[0] == term]
    return [_training_figure(results, name) for name in ("total", *parts, *VALIDATED) if name in there]


def sweep_figures(results: Results) -> list[Figure]:
    """Return a chart per scored volume: VOI split against merge over thresholds, the chosen one marked."""
    figures = (_sweep_figure(results, volume) for volume in results.config.evaluate.volumes)
    return [figure for figure in figures if figure is not None]


def threshold_figures(results: Results) -> list[Figure]:
    """Return charts of VOI sum, split and merge over thresholds, the one used marked.

    Of each scored volume, and of the one that thresholds were chosen on.
    """
    evaluate = results.config.evaluate
    volumes = dict.fromkeys((*evaluate.volumes, *evaluate.tuned))
    figures = (_threshold_figure(results, volume, key) for volume in volumes for key in PARTS)
    return [figure for figure in figures if figure is not None]


def thin(points: Points, count: int = 200) -> Points:
    """Return at most ``count`` points, each the mean of a run of neighbours, those without a value left out."""
    size = -(-len(points) // count) or 1
    groups = (points[k : k + size] for k in range(0, len(points), size))
    return tuple((fmean(step for step, _ in group), _mean(group)) for group in groups)


def _mean(points: Points) -> float | None:
    values = [y for _, y in points if y is not None]
    return fmean(values) if values else None


def _training_figure(results: Results, name: str) -> Figure:
    title = TITLES.get(name, f"term {name}")
    rows: list[Row] = []
    ends = []
    for model, curve in results.curves.items():
        if name in curve:
            found = curve[name] if name in TITLES else _begun(curve[name])
            rows += _training_rows(model, thin(found))
            last = next((y for _, y in reversed(found) if y is not None), None)
            ends.append(f"{model} has no value yet" if last is None else f"{model} ends at {last:.3g}")
    values = [row["value"] for row in rows if row["value"] is not None]
    log_y = bool(values) and min(values) > 0 and max(values) / min(values) > 20
    heads = {"model": "model", "step": "step", "value": title}
    scale = alt.Scale(type="log", nice=False, padding=8) if log_y else span(rows, "value")
    x = alt.X("step:Q", scale=span(rows, "step"))
    chart = lines(rows, styles(results), heads, x, alt.Y("value:Q", title=title, scale=scale))
    return Figure(title, f"Curve of {title} over steps: {', '.join(ends)}.", chart, heads, rows)


def _begun(points: Points) -> Points:
    """Return the points of a term with None for 0: it had nothing to compare, or does not act yet."""
    return tuple((step, y or None) for step, y in points)


def _training_rows(model: str, points: Points) -> Iterator[Row]:
    values = [None, *(y for _, y in points), None]
    for k, (step, y) in enumerate(points):
        # A value between two gaps has no line that would show it.
        alone = values[k] is None and values[k + 2] is None
        yield {"model": model, "step": step, "value": y, "dot": alone or len(points) <= FEW, "used": False}


def _sweep_figure(results: Results, volume: str) -> Figure | None:
    evaluate = results.config.evaluate
    rows: list[dict[str, Any]] = []
    for model in evaluate.models:
        rows += _sweep_rows(results, model, volume)
        rows += _chosen(results, f"{model}/{volume}/scores", model)
    rows += _chosen(results, f"baseline/{volume}/scores", "baseline")
    points = [(row["split"], row["merge"]) for row in rows if None not in (row["split"], row["merge"])]
    if not points:
        return None
    used = [row for row in rows if row["used"]]
    matter = [row["split"] + row["merge"] for row in used] + [min(a + b for a, b in points)]
    limit = min(ZOOM * max(matter), max(max(p) for p in points) * 1.05) or 1.0
    marked = "; ".join(_label(row) for row in used) or "no threshold was chosen"
    heads = {
        "model": "model",
        "threshold": "threshold",
        "split": "VOI split [bits]",
        "merge": "VOI merge [bits]",
        "source": "from",
    }
    scale = alt.Scale(domain=[0, limit], nice=False)
    x = alt.X("split:Q", title=f"{heads['split']}: too many pieces →", scale=scale)
    y = alt.Y("merge:Q", title=f"{heads['merge']}: too few →", scale=scale)
    of_part = volume == evaluate.tune_on and evaluate.tune_roi is not None
    return Figure(
        f"{volume} (dots: the part that thresholds were chosen on)" if of_part else volume,
        f"VOI split against VOI merge over thresholds on {volume}. Chosen: {marked}.",
        lines(rows, styles(results), heads, x, y),
        heads,
        rows,
    )


def _sweep_rows(results: Results, model: str, volume: str) -> Iterator[dict[str, Any]]:
    for row in results.stats(f"{model}/{volume}/sweep").get("sweep") or ():
        scores = {"split": finite(row.get("voi_split")), "merge": finite(row.get("voi_merge"))}
        yield {
            "model": model,
            "threshold": row.get("threshold"),
            **scores,
            "source": "sweep",
            "dot": True,
            "used": False,
        }


def _chosen(results: Results, key: str, model: str) -> list[dict[str, Any]]:
    stats = results.stats(key)
    scores, threshold = stats.get("scores") or {}, finite(stats.get("threshold"))
    split, merge = finite(scores.get("voi_split")), finite(scores.get("voi_merge"))
    if split is None or merge is None:
        return []
    at = NOTHING if threshold is None else threshold
    return [
        {"model": model, "threshold": at, "split": split, "merge": merge, "source": "scores", "dot": True, "used": True}
    ]


def _label(row: Mapping[str, Any]) -> str:
    at = "" if row["threshold"] == NOTHING else f" at threshold {row['threshold']:g}"
    return f"{row['model']}{at}: split {row['split']:.3f}, merge {row['merge']:.3f}"


def _threshold_figure(results: Results, volume: str, key: str) -> Figure | None:
    rows: list[dict[str, Any]] = []
    for model in results.config.evaluate.models:
        used = _used(results, model)
        for row in results.stats(f"{model}/{volume}/sweep").get("sweep") or ():
            threshold, value = finite(row.get("threshold")), finite(row.get(key))
            point = {"model": model, "threshold": threshold, "value": value, "dot": True, "used": False}
            rows += [point] if threshold is not None else []
            rows += [{**point, "used": True}] if value is not None and threshold == used else []
    if all(row["value"] is None for row in rows):
        return None
    marks = [f"{r['model']} at threshold {r['threshold']:g}: {r['value']:.3f} bits" for r in rows if r["used"]]
    marked = "; ".join(marks) or "none of these thresholds was used"
    heads = {"model": "model", "threshold": "threshold", "value": f"{PARTS[key]} [bits]"}
    x = alt.X("threshold:Q", scale=span(rows, "threshold"))
    y = alt.Y("value:Q", title=heads["value"], scale=span(rows, "value"))
    return Figure(
        f"{PARTS[key]} on {volume}",
        f"{PARTS[key]} over thresholds on {volume}. Used: {marked}.",
        lines(rows, styles(results), heads, x, y),
        heads,
        [row for row in rows if not row["used"]],
    )


def _used(results: Results, model: str) -> float | None:
    """Return the threshold that a model's volumes are segmented with, None where it is not chosen yet."""
    fixed, tune_on = results.config.segment.threshold, results.config.evaluate.tune_on
    if fixed is not None:
        return fixed
    if results.config.tuned_options != "none":
        key = "tuned" if results.config.tuned_options == "shared" else f"{model}/tuned"
        return finite((results.stats(key).get("chosen") or {}).get("threshold"))
    if tune_on is None:
        return results.number(f"{model}/model", "best_threshold")
    return results.number(f"{model}/{tune_on}/sweep", "best")
