"""Line charts as inline SVG; colours come from the page's style sheet, for light and dark."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

STYLES = 8
"""Colours in the style sheet (classes s0 … s7); further series get dashes."""
WIDTH, HEIGHT = 420, 290
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 44

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: for tooltips.
        style: number of its colour, the same for one model in all charts.
        points: (x, y) in the order of the line.
        labels: tooltip of each point, which is then drawn as a dot; empty draws the line alone.
        marks: points (x, y, tooltip) to emphasise.
        line: whether the points are joined.
    """

    name: str
    style: int
    points: Sequence[Point] = ()
    labels: Sequence[str] = ()
    marks: Sequence[tuple[float, float, str]] = ()
    line: bool = True


def chart(
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    alt: str,
    log_y: bool = False,
    limits: tuple[Point, Point] | None = None,
) -> Markup:
    """Return a chart as an SVG element.

    Args:
        series: what to draw; points outside of ``limits`` are cut off.
        x: name and unit of the horizontal axis.
        y: the same for the vertical one.
        alt: what the chart shows, for readers who do not see it.
        log_y: logarithmic vertical axis; needs positive values.
        limits: ((x low, x high), (y low, y high)); default: the range of the data.
    """
    x_range, y_range = limits or _limits(series, log_y)
    to_x = _scale(x_range, LEFT, WIDTH - RIGHT, log=False)
    to_y = _scale(y_range, HEIGHT - BOTTOM, TOP, log=log_y)
    clip = f"clip-{zlib.crc32((x + y + alt).encode()):x}"
    body = "".join(_series(s, to_x, to_y) for s in series)
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(alt)}">'
        f'<clipPath id="{clip}"><rect x="{LEFT}" y="{TOP - 6}" width="{WIDTH - LEFT - RIGHT + 6}" '
        f'height="{HEIGHT - TOP - BOTTOM + 6}"/></clipPath>'
        f"{_axes(x_range, y_range, to_x, to_y, log_y)}{_names(x, y)}"
        f'<g clip-path="url(#{clip})">{body}</g></svg>'
    )


def style_class(style: int) -> str:
    """Return the style sheet's classes of a colour number: eight colours, then the same dashed."""
    return f"s{style % STYLES}" + (" dashed" if style // STYLES % 2 else "")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers from ``low`` to ``high``, in steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw * 0.999)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def thin(points: Sequence[Point], count: int = 200) -> list[Point]:
    """Return at most ``count`` points, each the mean of a run of neighbours."""
    size = -(-len(points) // count) or 1
    groups = (points[k : k + size] for k in range(0, len(points), size))
    return [(sum(p[0] for p in g) / len(g), sum(p[1] for p in g) / len(g)) for g in groups]


def _series(series: Series, to_x: Callable[[float], float], to_y: Callable[[float], float]) -> str:
    placed = [(to_x(a), to_y(b)) for a, b in series.points]
    parts = [f'<g class="{style_class(series.style)}">']
    if series.line and placed:
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in placed)
        parts.append(f'<polyline class="line" points="{path}"><title>{escape(series.name)}</title></polyline>')
    for (a, b), label in zip(placed, series.labels, strict=False):
        parts.append(f'<circle class="dot" cx="{a:.1f}" cy="{b:.1f}" r="2.5"><title>{escape(label)}</title></circle>')
    for a, b, label in series.marks:
        parts.append(
            f'<circle class="mark" cx="{to_x(a):.1f}" cy="{to_y(b):.1f}" r="6"><title>{escape(label)}</title></circle>'
        )
    return "".join(parts) + "</g>"


def _axes(
    x_range: Point, y_range: Point, to_x: Callable[[float], float], to_y: Callable[[float], float], log_y: bool
) -> str:
    parts = []
    for value in ticks(*x_range):
        at = to_x(value)
        parts.append(f'<path class="grid" d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{value:g}</text>')
    for value in _log_ticks(*y_range) if log_y else ticks(*y_range):
        at = to_y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>')
    return "".join(parts)


def _names(x: str, y: str) -> str:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return (
        f'<text class="name" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x)}</text>'
        f'<text class="name" transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{escape(y)}</text>'
    )


def _limits(series: Sequence[Series], log_y: bool) -> tuple[Point, Point]:
    points = [p for s in series for p in (*s.points, *((a, b) for a, b, _ in s.marks))] or [(0.0, 0.0)]
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    low, high = min(ys), max(ys)
    if log_y:
        return _wide(min(xs), max(xs)), (low / 1.05, high * 1.05)
    margin = 0.05 * (high - low)
    return _wide(min(xs), max(xs)), _wide(low - margin if low < 0 else max(low - margin, 0.0), high + margin)


def _wide(low: float, high: float) -> Point:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _scale(limits: Point, start: float, end: float, *, log: bool) -> Callable[[float], float]:
    bend: Callable[[float], float] = math.log if log else float
    low, high = bend(limits[0]), bend(limits[1])
    return lambda value: start + (bend(value) - low) / (high - low) * (end - start)


def _log_ticks(low: float, high: float) -> list[float]:
    if high / low < 4:
        return ticks(low, high)
    return [value for value in _log_grid(low, high) if low <= value <= high]


def _log_grid(low: float, high: float) -> Iterator[float]:
    factors = (1, 2, 5) if high / low < 1000 else (1,)
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        yield from (factor * 10.0**power for factor in factors)
