"""Charts and table of a search for post-processing options: VOI over thresholds of all that was tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
from numpy.typing import NDArray

from kdseg.report.figures import STYLES, Figure, lines, span
from kdseg.report.results import Results
from kdseg.results.parquet import read_notes, read_parquet

CHOSEN, CONFIGURED, OTHER = "chosen", "as configured", "others"
SERIES = {OTHER: STYLES - 1, CHOSEN: 0, CONFIGURED: 1}
"""Colour numbers; the grey ones are drawn first, below the others."""
TOGETHER = "all models"
OVER = {"mean": "mean", "worst": "max"}
"""Functions of numpy by how parts are weighed up."""
MOST = 100
"""Candidates that are drawn, the best ones; more could not be told apart."""
FEW = 8
"""Candidates in the table."""
HEADS = ("options", "threshold", "VOI split", "VOI merge", "VOI, mean", "VOI, worst", "worst part")


@dataclass(frozen=True)
class Landscape:
    """A search, ready to be shown.

    Attributes:
        model: whose post-processing it is, or `TOGETHER`.
        sentence: what was chosen.
        figures: VOI over thresholds, on average over the parts and in the worst.
        rows: texts of the best candidates, in the order of `HEADS`; the bits are those at the candidate's threshold.
    """

    model: str
    sentence: str
    figures: list[Figure]
    rows: list[list[str]]


@dataclass(frozen=True)
class _Search:
    """Tables of a search: float64 (parts, candidates, thresholds), bits, and what they are of."""

    stats: Mapping[str, Any]
    thresholds: NDArray[np.float64]
    scores: Mapping[str, NDArray[np.float64]]
    parts: Sequence[Mapping[str, Any]]
    names: Sequence[str]

    def over(self, by: str) -> NDArray[np.float64]:
        """Return the VOI of all candidates and thresholds over the parts."""
        return np.asarray(getattr(np, OVER[by])(self.scores["voi"], axis=0))


def landscapes(results: Results) -> list[Landscape]:
    """Return the searches that are there, in the order of the scored models, that of all models last."""
    keys = {**{model: f"{model}/tuned" for model in results.config.evaluate.models}, TOGETHER: "tuned"}
    found = {name: results.manifests[key] for name, key in keys.items() if key in results.manifests}
    there = {name: made for name, made in found.items() if made.path.with_suffix(".parquet").exists()}
    return [_landscape(name, _read(made.table(".parquet"), made.stats)) for name, made in there.items()]


def legend() -> list[tuple[str, int]]:
    """Return the names of the lines and their colour numbers, those to look at first."""
    return [(name, SERIES[name]) for name in (CHOSEN, CONFIGURED, OTHER)]


def _read(path: Path, stats: Mapping[str, Any]) -> _Search:
    table, notes = read_parquet(path), read_notes(path)
    shape = (len(notes["parts"]), len(notes["candidates"]), -1)
    # the first row of each candidate is that of the fragments, before any merge
    columns = {name: column.reshape(shape)[:, :, 1:] for name, column in table.items()}
    tried = [_flat(fragments, score) for fragments, score in notes["candidates"]]
    differ = [key for key in tried[0] if len({str(one.get(key)) for one in tried}) > 1]
    names = [", ".join(f"{key} {one.get(key)}" for key in differ) or CONFIGURED for one in tried]
    return _Search(stats, columns["threshold"][0, 0], columns, notes["parts"], names)


def _flat(fragments: Mapping[str, Any], score: str) -> dict[str, Any]:
    """Return options by their names alone, as `tune_segmentation` has them."""
    own = {key: value for key, value in fragments.items() if key != "watershed"}
    return {**fragments["watershed"], **own, "score": score}


def _landscape(model: str, search: _Search) -> Landscape:
    chosen, own, by = search.stats["chosen"], search.stats["configured"], search.stats["by"]
    parts = "the part" if len(search.parts) == 1 else f"{len(search.parts)} parts ({by})"
    sentence = (
        f"{model}: of {len(search.names)} candidates, VOI on {parts} is least with {search.names[chosen['candidate']]} "
        f"at threshold {chosen['threshold']:g}: {chosen['voi']:.3f} bits; with the options as configured at least "
        f"{own['voi']:.3f}, at threshold {own['threshold']:g}."
    )
    shown = OVER if len(search.parts) > 1 else ("mean",)
    return Landscape(model, sentence, [_figure(model, search, over) for over in shown], [*_best(search)])


def _figure(model: str, search: _Search, by: str) -> Figure:
    voi, best = search.over(by), int(search.stats["chosen"]["candidate"])
    marks = {0: CONFIGURED, best: CHOSEN}
    others = [k for k in np.argsort(voi.min(axis=1), kind="stable")[:MOST].tolist() if k not in marks]
    rows = [row for k in others for row in _line(search, voi[k], k, OTHER, None)]
    used = {0: search.stats["configured"]["threshold"], best: search.stats["chosen"]["threshold"]}
    marked = [row for k, name in marks.items() for row in _line(search, voi[k], k, name, used[k])]
    of = f"in the worst of {len(search.parts)} parts" if by == "worst" else f"mean of {len(search.parts)} parts"
    title = f"VOI on {search.parts[0]['volume']}" if len(search.parts) == 1 else f"VOI, {of}"
    heads = {"model": "line", "options": "options", "threshold": "threshold", "value": f"{title} [bits]"}
    x = alt.X("threshold:Q", scale=span(marked, "threshold"))
    y = alt.Y("value:Q", title=heads["value"], scale=span([*rows, *marked], "value"))
    rings = "; ".join(
        f"{r['model']} at threshold {r['threshold']:g}: {r['value']:.3f} bits" for r in marked if r["used"]
    )
    description = f"{title} over thresholds, a line per candidate, of {model}. {rings}."
    table = [row for row in marked if not row["used"] and row["value"] is not None]
    return Figure(title, description, lines([*rows, *marked], SERIES, heads, x, y), heads, table)


def _line(
    search: _Search, voi: NDArray[np.float64], candidate: int, name: str, used: float | None
) -> Iterator[dict[str, Any]]:
    """Yield the points of a candidate, the one that is used a second time as a ring, and a gap behind the last."""
    point = {"model": name, "options": search.names[candidate], "dot": False, "used": False}
    for threshold, value in zip(search.thresholds.tolist(), voi.tolist(), strict=True):
        yield {**point, "threshold": threshold, "value": value}
        if threshold == used:
            yield {**point, "threshold": threshold, "value": value, "used": True}
    yield {**point, "threshold": float(search.thresholds[-1]), "value": None}


def _best(search: _Search) -> Iterator[list[str]]:
    """Yield the best candidates at their best thresholds, and the configuration."""
    voi = search.over(search.stats["by"])
    order = np.argsort(voi.min(axis=1), kind="stable").tolist()
    for k in dict.fromkeys((int(search.stats["chosen"]["candidate"]), *order[:FEW], 0)):
        at = int(voi[k].argmin())
        split, merge, total = (search.scores[name][:, k, at] for name in ("voi_split", "voi_merge", "voi"))
        worst = search.parts[int(total.argmax())]
        place = f"{worst['volume']} at {tuple(worst['offset'])}"
        bits = (split.mean(), merge.mean(), total.mean(), total.max())
        yield [
            search.names[k] + (f" ({CONFIGURED})" if k == 0 and search.names[k] != CONFIGURED else ""),
            f"{search.thresholds[at]:g}",
            *(f"{value:.3f}" for value in bits),
            place,
        ]
