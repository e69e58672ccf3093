"""Draw accuracy against cost from the table that `python benchmarks/fib25.py MODEL … --csv SCORES` wrote.

    python benchmarks/accuracy_cost.py SCORES.csv OUT.svg

A dot is a network; a name that ends in a number is a seed of the recipe before it. The lines are the least floor,
what borders of fragments leave, and a published flood-filling network on the neighbouring part of the tuning cube.
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import altair as alt

PUBLISHED = 0.96
"""VOI of Google's published flood-filling network on the part of the cube beside the tuning volume."""


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    scores, out = map(Path, sys.argv[1:])
    with scores.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if re.match(r"\d", row["VOI test"])]
    if not rows:
        sys.exit(f"{scores} has no scores of the test cube: write it without --tune-only")
    floor = min(float(row["floor test"]) for row in rows)
    dots = [
        {
            "recipe": re.sub(r"_\d+$", "", row["network"]),
            "cost": float(row["kMAC per voxel"]),
            "voi": float(row["VOI test"]),
        }
        for row in rows
    ]
    lines = [{"voi": floor, "what": "floor"}, {"voi": PUBLISHED, "what": "published FFN, another cube"}]
    x = alt.X("cost:Q", scale=alt.Scale(type="log"), title="multiplications per voxel [thousands]")
    y = alt.Y("voi:Q", scale=alt.Scale(zero=False), title="VOI on the independent cube [bits], lower is better")
    colour = alt.Color("recipe:N", title=None, legend=alt.Legend(labelLimit=400))
    networks = alt.Chart(alt.Data(values=dots)).mark_circle(opacity=0.8, size=110).encode(x=x, y=y, color=colour)
    rules = alt.Chart(alt.Data(values=lines)).mark_rule(strokeDash=[4, 4]).encode(y="voi:Q")
    names = alt.Chart(alt.Data(values=lines)).mark_text(align="left", dy=-6, x=4).encode(y="voi:Q", text="what:N")
    chart = (rules + names + networks).properties(width=520, height=300)
    chart.save(str(out))


if __name__ == "__main__":
    main()
