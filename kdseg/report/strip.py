"""A dot per seed and a bar at the mean, a row per method: inline SVG, or a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from kdseg.report.chart import ticks

WIDTH, LEFT, RIGHT = 760, 190, 90
TOP, ROW, BOTTOM = 34, 24, 44
STYLE = """
svg { font-family: system-ui, sans-serif; }
text { fill: #5c656e; font-size: 11px; } .name, .head { fill: #1c2024; }
.grid { stroke: #eceff1; } .dot { fill-opacity: .75; } .dot.ours { fill: #0072b2; } .dot.alone { fill: #d55e00; }
.dot.control { fill: #5c656e; } .mean { stroke: #1c2024; stroke-width: 2; }
.rule { stroke-width: 1.5; stroke-dasharray: 5 4; }
.rule.teacher { stroke: #5c656e; } .rule.alone { stroke: #d55e00; }
"""
"""Of a file of its own, with plain colours, since editors know no CSS variables; a page brings its own style."""


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        name: shown at the left.
        kind: ``ours``, ``alone`` or ``control``; gives the colour.
        values: by seed.
        mean: of the values; None where there is none.
        note: shown at the right, e.g. the cost.
    """

    name: str
    kind: str
    values: Mapping[int, float]
    mean: float | None
    note: str = ""


def strip(rows: Sequence[Row], rules: Sequence[tuple[str, str, float]], *, x: str, alt: str, head: str = "") -> Markup:
    """Return the chart as an SVG element.

    Args:
        rows: from top to bottom.
        rules: vertical lines: kind (``teacher`` or ``alone``), name, value.
        x: name and unit of the axis.
        alt: what the chart shows, for readers who do not see it.
        head: heading of the notes at the right.
    """
    height = TOP + ROW * len(rows) + BOTTOM
    return Markup(
        f'<svg class="strip" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(alt)}">'
        f"{_body(rows, rules, x, head)}</svg>"
    )


def standalone(charts: Sequence[Markup]) -> str:
    """Return charts below each other as one SVG file with a style of its own."""
    parts, top = [], 0
    for chart in charts:
        height = int(chart.split('viewBox="0 0 ')[1].split('"')[0].split()[1])
        placed = str(chart).replace("<svg ", f'<svg y="{top}" width="{WIDTH}" height="{height}" ', 1)
        parts.append(placed)
        top += height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}">'
        f'<style>{STYLE}</style><rect width="{WIDTH}" height="{top}" fill="#ffffff"/>'
        f"{''.join(parts)}</svg>\n"
    )


def _body(rows: Sequence[Row], rules: Sequence[tuple[str, str, float]], x: str, head: str) -> str:
    values = [value for row in rows for value in row.values.values()] + [value for _, _, value in rules]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.5
    low, high = max(low - margin, 0.0) if low >= 0 else low - margin, high + margin
    end = TOP + ROW * len(rows)

    def at(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    parts = []
    for tick in ticks(low, high, 6):
        parts.append(f'<path class="grid" d="M{at(tick):.1f} {TOP}V{end}"/>')
        parts.append(f'<text x="{at(tick):.1f}" y="{end + 15}" text-anchor="middle">{tick:g}</text>')
    for k, (kind, name, value) in enumerate(rules):
        label = escape(f"{name} {value:.3f}")
        # Two lines of names, so that neighbouring rules do not write over each other.
        where = f'x="{at(value):.1f}" y="{12 + 13 * (k % 2)}" text-anchor="middle"'
        parts.append(f'<path class="rule {kind}" d="M{at(value):.1f} {TOP - 6}V{end}"><title>{label}</title></path>')
        parts.append(f"<text {where}>{label}</text>")
    for k, row in enumerate(rows):
        parts.append(_row(row, TOP + ROW * k + ROW / 2, at))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="name" x="{middle}" y="{end + 36}" text-anchor="middle">{escape(x)}</text>')
    parts.append(f'<text x="{WIDTH - 4}" y="{TOP - 8}" text-anchor="end">{escape(head)}</text>')
    return "".join(parts)


def _row(row: Row, y: float, at: Callable[[float], float]) -> str:
    parts = [f'<text class="head" x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(row.name)}</text>']
    if row.mean is None:
        parts.append(f'<text x="{LEFT + 8}" y="{y + 4}">not measured</text>')
    else:
        title = f"<title>{escape(row.name)}, mean {row.mean:.3f}</title>"
        parts.append(f'<path class="mean" d="M{at(row.mean):.1f} {y - 8}v16">{title}</path>')
    for seed, value in row.values.items():
        title = f"<title>{escape(row.name)}, seed {seed}: {value:.3f}</title>"
        parts.append(f'<circle class="dot {row.kind}" cx="{at(value):.1f}" cy="{y}" r="4">{title}</circle>')
    parts.append(f'<text x="{WIDTH - 4}" y="{y + 4}" text-anchor="end">{escape(row.note)}</text>')
    return f"<g>{''.join(parts)}</g>"
