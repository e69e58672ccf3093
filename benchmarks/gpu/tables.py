"""Tables of what the jobs `rates` and `training_rates` measured, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

NOT_MEASURED = "not measured"
STUDENT = "4,8,16"
BARE, STAGE, OF_BARE = 1000, 278, 0.9
"""Targets of the student: Mvox/s of bare tiles and of the stage, and the stage's share of the bare tiles."""


def rates_table(rows: Sequence[Row]) -> str:
    """Return limits of the card, targets, bare tiles and stages.

    Args:
        rows: of results.jsonl; those of other jobs are left out.
    """
    ours = [row for row in rows if row["job"] == "rates"]
    limits = [row for row in ours if row["key"] in ("limits", "disk")]
    tiles = [row for row in ours if row["key"].startswith("tile/")]
    stages = [row for row in ours if row["key"].startswith(("predict/", "fuse/"))]
    parts = [
        table(("limit", "measured"), [line for row in limits for line in _limits(row)]),
        table(("target of the student", "asked for", "measured"), _targets(tiles, stages)),
        table(
            ("tile", "Mvox/s", "ms", "ms of features", "least ms", "of it", "over PCIe, ms", "GFLOP, done", "peak MB"),
            [_line(row, _tile) for row in tiles],
        ),
        table(
            ("stage", "Mvox/s", "of bare", "first block, s", "read, wait, compute, write, s", "CPU s", "MB over PCIe"),
            [_line(row, _stage) for row in stages],
        ),
    ]
    return "\n\n".join(parts)


def training_table(rows: Sequence[Row]) -> str:
    """Return the times of training steps, and how long they wait for crops.

    Args:
        rows: of results.jsonl; those of other jobs are left out.
    """
    ours = [row for row in rows if row["job"] == "training_rates"]
    steps = [row for row in ours if row["key"].startswith("step/")]
    alone = {_size(row): row["ms"] for row in steps if row.get("case") == "student alone" and "/any" not in row["key"]}
    waits = [row for row in ours if row["key"].startswith("loader/")]

    def step(row: Row) -> list[str]:
        base = alone.get(_size(row))
        of_alone = NOT_MEASURED if base is None else _said(row["ms"] / base)
        return [_said(row["ms"]), of_alone, *(_said(row[name]) for name in ("mvox_per_s", "peak_mb"))]

    return "\n\n".join([
        table(("step", "ms", "of the student alone", "Mvox/s", "peak MB"), [_line(row, step) for row in steps]),
        table(
            ("loader", "crops/s", "Mvox/s per core", "step, ms", "both, ms", "share that the card waits"),
            [_line(row, _wait) for row in waits],
        ),
    ])  # fmt: skip


def _limits(row: Row) -> list[list[str]]:
    if "error" in row:
        return [[row["key"], row["error"]]]
    return [[name, _said(value)] for name, value in row.items() if name not in ("job", "key", "at")]


def _targets(tiles: Iterable[Row], stages: Iterable[Row]) -> list[list[str]]:
    """Return what was asked for beside the best that was measured as the product does it."""
    speeds = [r["mvox_per_s"] for r in tiles if r.get("network") == STUDENT and r["how"] == "product"]
    predicted = [r for r in stages if r["key"].startswith("predict/") and "error" not in r]
    found = [[r[name] for r in predicted if r[name] is not None] for name in ("mvox_per_s", "of_bare")]
    asked = (("bare tiles, Mvox/s", BARE, speeds), ("stage, Mvox/s", STAGE, found[0]), ("of bare", OF_BARE, found[1]))
    return [[name, f"at least {least:g}", _said(max(values, default=None))] for name, least, values in asked]


def _tile(row: Row) -> list[str]:
    floor, share = row.get("roofline_ms"), row.get("roofline_share")
    least = NOT_MEASURED if floor is None else f"{_said(floor)} ({row['roofline_of']})"
    return [
        *(_said(row[name]) for name in ("mvox_per_s", "ms", "features_ms")),
        least,
        _said(share),
        _said(row.get("pcie_ms")),
        f"{_said(row['gflop'])}, {_said(row['gflop_done'])}",
        _said(row["peak_mb"]),
    ]


def _stage(row: Row) -> list[str]:
    seconds = ", ".join(_said(value) for value in row["worker_seconds"].values())
    sent, fetched = (_said(value) for value in row["pcie_mb"])
    return [
        *(_said(row[name]) for name in ("mvox_per_s", "of_bare", "first_block_s")),
        seconds,
        _said(row["cpu_s"]),
        f"{sent} in, {fetched} out",
    ]


def _wait(row: Row) -> list[str]:
    names = ("crops_per_s", "mvox_per_s_per_core", "step_ms", "loop_ms", "wait_share")
    return [_said(row[name]) for name in names]


def _size(row: Row) -> tuple[Any, Any]:
    return row.get("batch"), row.get("crop")


def _line(row: Row, cells: Callable[[Row], list[str]]) -> list[str]:
    """Return a line that begins with the row's key, or its error beside it."""
    name = row["key"].partition("/")[2] if row["key"].startswith(("tile/", "step/", "loader/")) else row["key"]
    return [name, row["error"]] if "error" in row else [name, *cells(row)]


def _said(value: Any) -> str:
    if value is None:
        return NOT_MEASURED
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table; a line that is too short is filled up, and one without lines says that nothing was measured."""
    filled = [[*line, *[""] * (len(head) - len(line))] for line in lines or [[NOT_MEASURED]]]
    rows = [head, ["---"] * len(head), *filled]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)
