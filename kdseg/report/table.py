"""One row per model and scored volume: what it costs and how good it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from kdseg.report.results import Results, finite
from kdseg.report.roles import Role, reference_of, role

MISSING = "not measured"


@dataclass(frozen=True)
class Row:
    """One model on one volume; None is what was not measured.

    Attributes:
        model: its name, or ``"baseline"``.
        role: what it is in this run.
        volume: name of the scored volume.
        voi_split: bits.
        voi_merge: bits.
        voi: bits, the sum of the two.
        arand: adapted Rand error, 0 to 1.
        arand_precision: 0 to 1.
        arand_recall: 0 to 1.
        threshold: at which it was segmented.
        best_voi: bits, least VOI over all thresholds on this very volume.
        best_threshold: the threshold of ``best_voi``.
        parameters: of the network.
        parameters_percent: of the teacher's.
        kmac: thousand multiply-accumulates per output voxel.
        kmac_percent: of the teacher's.
        mvox_per_s: predicted million voxels per second; with `predict.fused` fragments are made within.
        time_percent: time to predict a voxel, of the teacher's, where device and workers are the same.
        peak_mb: peak memory of prediction.
        intervals: lower and upper end of the 95 % interval of a score, by name; empty without a bootstrap.
    """

    model: str
    role: Role
    volume: str
    voi_split: float | None = None
    voi_merge: float | None = None
    voi: float | None = None
    arand: float | None = None
    arand_precision: float | None = None
    arand_recall: float | None = None
    threshold: float | None = None
    best_voi: float | None = None
    best_threshold: float | None = None
    parameters: float | None = None
    parameters_percent: float | None = None
    kmac: float | None = None
    kmac_percent: float | None = None
    mvox_per_s: float | None = None
    time_percent: float | None = None
    peak_mb: float | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """Presentation of one field of a row.

    Attributes:
        key: name of the field.
        header: its heading.
        unit: of its values, empty for none.
        digits: decimals; None shows text as it is, -1 three significant digits.
        note: name of the field that is shown in small beside it, with ``note_format``.
        note_format: how, with one ``{}``.
    """

    key: str
    header: str
    unit: str = ""
    digits: int | None = 3
    note: str = ""
    note_format: str = "{}"


COLUMNS = (
    Column("model", "model", digits=None),
    Column("role", "role", digits=None),
    Column("volume", "volume", digits=None),
    Column("voi_split", "VOI split", "bits"),
    Column("voi_merge", "VOI merge", "bits"),
    Column("voi", "VOI sum", "bits", note="best_voi", note_format="best {}"),
    Column("arand", "ARAND"),
    Column("arand_precision", "precision"),
    Column("arand_recall", "recall"),
    Column("threshold", "threshold", digits=2, note="best_threshold", note_format="best {}"),
    Column("parameters", "parameters", digits=0, note="parameters_percent", note_format="{} %"),
    Column("kmac", "cost", "kMAC/voxel", digits=-1, note="kmac_percent", note_format="{} %"),
    Column("mvox_per_s", "prediction", "Mvox/s", digits=-1, note="time_percent", note_format="time {} %"),
    Column("peak_mb", "peak memory", "MB", digits=0),
)

TUNED_COLUMNS = COLUMNS[: [column.key for column in COLUMNS].index("parameters")]
"""Of the table of the part that thresholds were chosen on."""

_TEXT = {"model", "role", "volume"}
_PERCENT = {"parameters_percent", "kmac_percent", "time_percent"}


def rows(results: Results) -> list[Row]:
    """Return a row per volume and model, volumes first, in the order of ``evaluate``; the baseline comes last."""
    config, table = results.config, []
    for volume in config.evaluate.volumes:
        table += [_row(results, model, volume) for model in config.evaluate.models]
        if config.volumes[volume].baseline or f"baseline/{volume}/scores" in results.manifests:
            table.append(Row("baseline", "baseline", volume, **_scores(results, f"baseline/{volume}/scores")))
    return table


def tuned_rows(results: Results) -> list[Row]:
    """Return two rows per model whose threshold was chosen on a part of a volume: of this part, and of the rest.

    Both are scores at the chosen threshold; the part flatters it, the rest does not.
    """
    volume, table = results.config.evaluate.tune_on, []
    for model in results.config.evaluate.models if volume else ():
        stats = results.stats(f"{model}/{volume}/sweep")
        part = next((row for row in stats.get("sweep") or () if row.get("threshold") == stats.get("best")), None)
        for name, found in (("the part", part), ("the rest", stats.get("rest"))) if "rest" in stats else ():
            numbers: dict[str, Any] = {key: finite((found or {}).get(key)) for key in (*_scored(), "threshold")}
            table.append(Row(model, role(results.config, model), f"{volume}: {name}", **numbers))
    return table


def cell(row: Row, key: str) -> str:
    """Return one field of a row as text; what was not measured says so."""
    value = getattr(row, key)
    if value is None:
        return "–" if row.role == "baseline" and key not in _scored() else MISSING
    if key in _TEXT:
        return str(value)
    digits = next((column.digits for column in COLUMNS if column.key == key), None)
    if key in _PERCENT:
        return significant(value, 2)
    if key in ("best_voi", "best_threshold"):
        digits = 3 if key == "best_voi" else 2
    return significant(value, 3) if digits in (None, -1) else f"{value:,.{digits}f}"


def notes(row: Row, column: Column) -> list[str]:
    """Return what is shown in small beside a cell; empty where there is nothing to say."""
    found = []
    if column.note and getattr(row, column.note) is not None:
        found.append(column.note_format.format(cell(row, column.note)))
    if column.key in row.intervals:
        low, high = row.intervals[column.key]
        found.append(f"{low:.{column.digits}f} to {high:.{column.digits}f}")
    return found


def least(table: Sequence[Row], key: str) -> dict[str, float]:
    """Return the least value of a score per volume, baseline included."""
    found: dict[str, float] = {}
    for row in table:
        value = getattr(row, key)
        if value is not None:
            found[row.volume] = min(value, found.get(row.volume, value))
    return found


def table_text(table: Sequence[Row], columns: Sequence[Column] = COLUMNS) -> str:
    """Return the table as aligned plain text, one line per row under a line of headings."""
    heads = [f"{c.header} [{c.unit}]" if c.unit else c.header for c in columns]
    lines = [heads]
    for row in table:
        lines.append([" ".join([cell(row, c.key), *map("({})".format, notes(row, c))]) for c in columns])
    widths = [max(len(line[k]) for line in lines) for k in range(len(columns))]
    ragged = (
        "  ".join(
            text.ljust(width) if column.key in _TEXT else text.rjust(width)
            for text, width, column in zip(line, widths, columns, strict=True)
        )
        for line in lines
    )
    return "\n".join(line.rstrip() for line in ragged) + "\n"


def significant(value: float, digits: int) -> str:
    """Return a number with at least so many significant digits, never in powers of ten."""
    decimals = next((d for d in range(7) if abs(value) * 10**d >= 10 ** (digits - 1)), 6) if value else 0
    return f"{value:,.{decimals}f}"


def _row(results: Results, model: str, volume: str) -> Row:
    config, here = results.config, results.prediction(model, volume)
    teacher = reference_of(config, model)
    there = results.prediction(teacher, volume) if teacher else ""
    parameters, kmac = (results.number(f"{model}/model", key) for key in ("parameters", "kmac_per_voxel"))
    theirs = [results.number(f"{teacher}/model", key) for key in ("parameters", "kmac_per_voxel")]
    rate, their_rate = results.rate(here), results.rate(there)
    alike = all(results.stats(here).get(key) == results.stats(there).get(key) for key in ("device", "workers"))
    return Row(
        model,
        role(config, model),
        volume,
        **_scores(results, f"{model}/{volume}/scores"),
        parameters=parameters,
        parameters_percent=_percent(parameters, theirs[0]),
        kmac=kmac,
        kmac_percent=_percent(kmac, theirs[1]),
        mvox_per_s=rate,
        # Time per voxel is the inverse of the rate, and holds for resumed predictions too.
        time_percent=_percent(their_rate, rate) if alike else None,
        peak_mb=results.number(here, "peak_mb"),
    )


def _scores(results: Results, key: str) -> dict[str, Any]:
    stats = results.stats(key)
    scores, best = stats.get("scores") or {}, stats.get("best_possible") or {}
    return {
        **{name: finite(scores.get(name)) for name in _scored()},
        "threshold": finite(stats.get("threshold")),
        "best_voi": finite(best.get("voi")),
        "best_threshold": finite(best.get("threshold")),
        "intervals": {name: tuple(ends) for name, ends in (stats.get("intervals") or {}).items() if name in _scored()},
    }


def _scored() -> list[str]:
    names = [field.name for field in fields(Row)]
    return names[names.index("voi_split") : names.index("threshold")]


def _percent(value: float | None, whole: float | None) -> float | None:
    return None if value is None or not whole else 100 * value / whole
