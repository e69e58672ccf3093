"""Tables and model files from the results of one or several pieces of the GPU programme.

    python benchmarks/gpu/collect.py RESULTS [RESULTS ...] [--into benchmarks/README.md] [--models FOLDER]

Prints the tables as Markdown. `--into` replaces what stands between two marks of a file; `--models` writes each network
that came back as `NAME.safetensors`, with its curve as `NAME.csv`.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from job import RESULTS, read_rows
from tables import rates_table, table, training_table
from weights import names, read_weights

from kdseg.networks.checkpoint import save_model

MARKS = ("<!-- gpu: begin -->", "<!-- gpu: end -->")
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="folders, the latest last")
    parser.add_argument("--into", type=Path, help="a file with two marks")
    parser.add_argument("--models", type=Path, help="folder for model files")
    given = parser.parse_args()
    rows = [row for folder in given.results for row in read_rows(folder / RESULTS)]
    if not rows:
        sys.exit(f"no results in {', '.join(map(str, given.results))}: expected a file {RESULTS}")
    text = report(rows)
    print(text)
    if given.into is not None:
        given.into.write_text(between_marks(given.into.read_text(), text, given.into))
    if given.models is not None:
        write_models(given.results, given.models, rows)


def report(rows: Sequence[Row]) -> str:
    """Return all tables; what was not measured says so."""
    of = {job: [row for row in rows if row["job"] == job] for job in ("run", "guard", "tests", "teacher", "students")}
    parts = [
        machines_table(of["run"]),
        "### Self-test of conv3d\n\n" + guard_table(of["guard"]),
        "### Tests on the card\n\n" + tests_table(of["tests"]),
        "### Rates\n\n" + rates_table([row for row in rows if row["job"] == "rates"]),
        "### Training steps\n\n" + training_table([row for row in rows if row["job"] == "training_rates"]),
        "### Trainings\n\n" + trainings_table([*of["teacher"], *of["students"]]),
    ]
    return "\n\n".join(parts) + "\n"


def machines_table(rows: Sequence[Row]) -> str:
    """Return where and when, and how each job ended."""
    machines = [row for row in rows if "card" in row]
    lines = [
        f"{row['at'][:10]}: {row['card']}, driver {row.get('driver')}, torch {row['torch']}, cuDNN {row.get('cudnn')}, "
        f"Python {row['python']}, {row['cores']} cores, commit {row['commit']}"
        + (" (**rehearsal on the CPU, tiny sizes: the figures mean nothing**)" if row["rehearsal"] else "")
        for row in machines
    ]
    ended = {row["of"]: row for row in rows if "of" in row}
    told = [[name, row["outcome"], f"{row['seconds']:.0f} s", row["said"]] for name, row in ended.items()]
    return "\n".join(dict.fromkeys(lines)) + "\n\n" + table(["job", "outcome", "took", "said"], told)


def guard_table(rows: Sequence[Row]) -> str:
    """Return the largest differences of each convolution, of its largest value."""
    cells = [
        [row["key"], " × ".join(map(str, row["extent"])), f"{row['pieces']:.1e}", f"{row['exact']:.1e}", _verdict(row)]
        for row in rows
        if "pieces" in row
    ]
    text = table(["convolution", "input", "from pieces", "from float64", ""], cells)
    took = [row["seconds"] for row in rows if row["key"] == "product"]
    return text + (f"\n\nAs predictors and trainers run it: {took[-1]:.2f} s." if took else "")


def _verdict(row: Row) -> str:
    return "**wrong**" if row["wrong"] else "right"


def tests_table(rows: Sequence[Row]) -> str:
    """Return for each test how many of its cases passed and the largest numbers they recorded; then what did not."""
    last = {row["key"]: row for row in rows}
    cells = []
    for name, cases in groupby(last.values(), key=lambda row: row["key"].partition("[")[0]):
        group = list(cases)
        passed = sum(row["outcome"] == "passed" for row in group)
        took = sum(row.get("seconds", 0.0) for row in group)
        cells.append([f"`{name}`", f"{passed} of {len(group)}", f"{took:.1f} s", ", ".join(_largest(group))])
    text = table(["test", "passed", "took", "largest"], cells)
    bad = [
        f"- `{key}` {row['outcome']}: {row.get('message')}" for key, row in last.items() if row["outcome"] != "passed"
    ]
    return "\n\n".join([text, *(["\n".join(bad)] if bad else [])])


def _largest(rows: Sequence[Row]) -> list[str]:
    """Return the largest of each number that tests recorded."""
    found: dict[str, float] = {}
    for row in rows:
        for key, value in row.items():
            if key != "seconds" and isinstance(value, int | float):
                found[key] = max(found.get(key, value), value)
    return [f"{key} {value:.2g}" for key, value in found.items() if key != "value"]


def trainings_table(rows: Sequence[Row]) -> str:
    """Return the best validation of each training."""
    cells = [
        [
            row["key"],
            f"{row['parameters']:,}",
            f"{row['kmac_per_voxel']:.1f}",
            f"{row['steps']:,}" + ("" if row["finished"] else " (cut off)"),
            f"{row['seconds']:.0f} s",
            f"{row['best']['step']:,}",
            f"{row['best']['scores']['voi']:.3f}",
            f"{row['best']['scores']['arand']:.3f}",
        ]
        for row in rows
    ]
    columns = ["network", "parameters", "kMAC/voxel", "steps", "time", "best step", "VOI [bits]", "ARAND"]
    return table(columns, cells) + ("\n\nVOI and ARAND of the validation crop, at its best threshold." if cells else "")


def between_marks(text: str, inside: str, path: Path) -> str:
    """Return a text with what stands between its marks replaced."""
    begin, end = MARKS
    if text.count(begin) != 1 or text.count(end) != 1:
        sys.exit(f"{path} needs the marks {begin} and {end}, once each, on lines of their own")
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n{inside}{end}{rest.partition(end)[2]}"


def write_models(results: Sequence[Path], folder: Path, rows: Sequence[Row]) -> None:
    """Write the networks that came back; of equal names the latest."""
    curves = {row["key"]: row["curve"] for row in rows if "curve" in row}
    folder.mkdir(parents=True, exist_ok=True)
    for result in results:
        for name in names(result):
            save_model(folder / f"{name}.safetensors", read_weights(result, name), half=True)
            if curve := curves.get(name):
                with (folder / f"{name}.csv").open("w", newline="") as file:
                    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in curve for key in row)))
                    writer.writeheader()
                    writer.writerows(curve)


if __name__ == "__main__":
    main()
