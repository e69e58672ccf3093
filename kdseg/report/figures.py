"""Charts as Vega-Lite: on the page, where they can be explored, or as a file of their own."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import vl_convert

INK = {
    "text": ("#1c2024", "#e4e7ea"),
    "soft": ("#5c656e", "#9aa4ad"),
    "card": ("#ffffff", "#1b1f23"),
    "grid": ("#e4e8eb", "#2b3238"),
    "c0": ("#0072b2", "#56b4e9"),
    "c1": ("#d55e00", "#f28e4b"),
    "c2": ("#009e73", "#2fc79b"),
    "c3": ("#b5569a", "#e08cc6"),
    "c4": ("#9a7d00", "#e5cf4a"),
    "c5": ("#1e8dc6", "#8ecbff"),
    "c6": ("#6b4fa0", "#b39ae6"),
    "c7": ("#5c656e", "#b3bcc4"),
}
"""Colours on light and on dark pages: CSS variables, so that charts follow the page without being drawn again."""
STYLES = 8
"""Colours of series (c0 … c7); further series get dashes."""
CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--soft)",
        "titleColor": "var(--text)",
        "gridColor": "var(--grid)",
        "domainColor": "var(--soft)",
        "tickColor": "var(--soft)",
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 220,
    },
    "legend": {"labelColor": "var(--text)", "labelFontSize": 12},
    "text": {"color": "var(--soft)", "fontSize": 11},
}
_FILE_WIDTH = 520

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """One chart, and the same for readers who do not see it.

    Attributes:
        title: shown above it.
        description: what it shows, in words.
        chart: without a width.
        heads: heading by field of ``rows``, in the order of the table's columns.
        rows: what is drawn; None is a gap.
    """

    title: str
    description: str
    chart: alt.LayerChart
    heads: Mapping[str, str]
    rows: Sequence[Row]

    @property
    def spec(self) -> dict[str, Any]:
        """The chart as a Vega-Lite specification that fills the width it is given."""
        chart = self.chart.properties(width="container", description=self.description)
        spec: dict[str, Any] = chart.properties(autosize=alt.AutoSizeParams(type="fit-x", contains="padding")).to_dict()
        return spec

    def cells(self) -> Iterator[list[str]]:
        """Yield the rows of the table, ready to be shown."""
        for row in self.rows:
            yield [_shown(row[name]) for name in self.heads]


def lines(
    rows: Sequence[Row], styles: Mapping[str, int], heads: Mapping[str, str], x: alt.X, y: alt.Y
) -> alt.LayerChart:
    """Return a line per model, which can be moved, zoomed and, by the parameter ``hidden``, left out.

    Args:
        rows: with ``model``, the fields named by ``heads``, and the flags ``dot`` (the point is drawn) and ``used``
            (it is drawn as a ring, and no part of a line). A line runs in the order of the rows and breaks at None.
        styles: number of the colour by model.
        heads: names of the fields.
        x: horizontal axis.
        y: vertical axis.
    """
    numbered = [{**row, "order": k} for k, row in enumerate(rows)]
    colours = alt.Scale(domain=[*styles], range=[f"var(--c{k % STYLES})" for k in styles.values()])
    dashes = alt.Scale(domain=[*styles], range=[[5, 4] if k // STYLES % 2 else [1, 0] for k in styles.values()])
    colour = alt.Color("model:N", scale=colours, legend=None)
    base = alt.Chart(data(numbered)).transform_filter("indexof(hidden, datum.model) < 0").encode(x=x, y=y, color=colour)
    dotted = base.encode(tooltip=[alt.Tooltip(f"{name}:N", title=head) for name, head in heads.items()])
    line = base.transform_filter("!datum.used").mark_line(clip=True, strokeWidth=1.8, strokeJoin="round")
    line = line.encode(order="order:Q", strokeDash=alt.StrokeDash("model:N", scale=dashes, legend=None))
    # Points that are not drawn are there to be pointed at.
    dots = dotted.transform_filter("!datum.used").mark_circle(clip=True, size=30)
    dots = dots.encode(opacity=alt.condition("datum.dot", alt.value(1), alt.value(0)))
    rings = dotted.transform_filter("datum.used").mark_point(clip=True, size=130, strokeWidth=2.5, fill="transparent")
    # The wheel alone belongs to the page.
    zoom = alt.selection_interval(name="zoom", bind="scales", zoom="wheel![event.shiftKey]")
    layers = alt.LayerChart(layer=[line.properties(name="lines").add_params(zoom), dots, rings], height=230)
    return layers.add_params(alt.param(name="hidden", value=[]))


def span(rows: Sequence[Row], name: str) -> alt.Scale:
    """Return the scale of a field over the range of its values; a single value, which has none, is shown over 0."""
    return alt.Scale(zero=len({row[name] for row in rows} - {None}) < 2, padding=8)


def data(rows: Sequence[Row]) -> alt.InlineData:
    """Return rows for a chart, numbers with six digits: more would be neither seen nor read."""
    short = [{k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    return alt.InlineData(values=short)


def standalone(charts: Sequence[alt.LayerChart]) -> str:
    """Return charts below each other as one SVG file with the colours of a light page, which every editor reads."""
    # Editors have other fonts than were measured: the padding leaves room for theirs.
    spec = alt.vconcat(
        *(chart.properties(width=_FILE_WIDTH) for chart in charts), background="white", padding=30
    ).to_dict()
    svg = vl_convert.vegalite_to_svg(spec, config=CONFIG)
    return re.sub(r"var\(--(\w+)\)", lambda found: INK[found[1]][0], svg) + "\n"


@functools.cache
def library() -> str:
    """Return the JavaScript that draws the charts, fit for a ``<script>`` element."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value.is_integer() or abs(value) >= 1000 else f"{value:.4g}"
