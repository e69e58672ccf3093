"""Chart of a learning rate range test."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from kdseg.report.figures import data


def range_chart(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], marked: float
) -> alt.LayerChart:
    """Return the losses as dots over the rate, a line through their means, and a rule at one rate.

    Args:
        rates: of each step.
        losses: of each step, finite.
        smoothed: the same, smoothed.
        marked: the rate of the rule.
    """
    rows = [{"rate": r, "loss": a, "smoothed": b} for r, a, b in zip(rates, losses, smoothed, strict=True)]
    x = alt.X("rate:Q", title="learning rate", scale=alt.Scale(type="log", nice=False), axis=alt.Axis(format="~g"))
    scale = alt.Scale(zero=False)
    base = alt.Chart(data(rows)).encode(x=x)
    rule = alt.Chart(data([{"rate": marked, "text": f"steepest fall {marked:.2g}"}])).encode(x=x)
    return alt.LayerChart(
        layer=[
            base.mark_circle(size=20, opacity=0.5, color="var(--c7)").encode(
                y=alt.Y("loss:Q", title="loss", scale=scale)
            ),
            base.mark_line(strokeWidth=1.8, color="var(--c0)").encode(y=alt.Y("smoothed:Q", scale=scale)),
            rule.mark_rule(strokeDash=[5, 4], color="var(--c1)"),
            rule.mark_text(dy=-8).encode(text="text:N", y=alt.value(0)),
        ],
        height=230,
    )
