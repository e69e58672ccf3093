"""The comparison of methods in words and figures: table, sentences, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from kdseg.report.comparison import METRICS, Comparison, Entry, Gain, Spread, best_teacher
from kdseg.report.table import MISSING

NO_GAP = "no gap"
NOTHING = "–"
HEADS = {
    "name": "method",
    "terms": "adds",
    "rate": "learning rate",
    "voi": "VOI [bits]",
    "arand": "ARAND",
    "affinity_loss": "affinity loss [nat]",
    "voi_closure": "gap closed, VOI [%]",
    "arand_closure": "gap closed, ARAND [%]",
    "affinity_loss_closure": "gap closed, loss [%]",
    "voi_wins": "wins, VOI",
    "arand_wins": "wins, ARAND",
    "affinity_loss_wins": "wins, loss",
    "voi_difference": "VOI − alone, 95 % interval [bits]",
    "affinity_loss_difference": "loss − alone, 95 % interval [nat]",
    "steps": "steps",
    "time": "ms per step",
    "memory": "peak memory [MB]",
    "seeds": "seeds",
}
"""Headings of the table, by the key of a cell."""
TEXT = {"name", "terms"}


def cells(entry: Entry) -> dict[str, str]:
    """Return one row of the table, ready to be shown; what was not measured says so."""
    row = {"name": entry.name, "terms": entry.terms or NOTHING}
    for key, _, _ in METRICS:
        row[key] = plus_minus(entry.spreads.get(key), 3)
        row[f"{key}_closure"] = _closure(entry, key)
        gain = entry.gains.get(key)
        row[f"{key}_wins"] = _wins(entry, gain)
        row[f"{key}_difference"] = _interval(gain) if gain else (MISSING if _is_method(entry) else NOTHING)
    row["rate"] = MISSING if entry.learning_rate is None else f"{entry.learning_rate:g}"
    row["steps"], row["time"], row["memory"] = _steps(entry), _time(entry), _memory(entry)
    row["seeds"] = NOTHING if entry.role == "teacher" else f"{entry.count} of {entry.expected}"
    return {key: row[key] for key in HEADS}


def plus_minus(value: Spread | None, decimals: int, factor: float = 1) -> str:
    """Return ``mean ± sd``, the mean alone where there is one value, or that nothing was measured."""
    if value is None:
        return MISSING
    mean = _signed(value.mean * factor, decimals)
    return mean if value.sd is None else f"{mean} ± {value.sd * factor:.{decimals}f}"


def table_text(comparison: Comparison, volume: str) -> str:
    """Return the table of a volume as aligned plain text."""
    lines = [list(HEADS.values()), *([*cells(entry).values()] for entry in comparison.of(volume))]
    return aligned(lines, [key in TEXT for key in HEADS])


def aligned(lines: Sequence[Sequence[str]], text: Sequence[bool]) -> str:
    """Return rows as plain text in columns.

    Args:
        lines: of equally many cells.
        text: whether a column stands on the left, as text does, or on the right, as numbers.
    """
    widths = [max(len(line[k]) for line in lines) for k in range(len(text))]
    found = (
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, text, strict=True)
        )
        for line in lines
    )
    return "\n".join(line.rstrip() for line in found) + "\n"


def sentence(comparison: Comparison, volume: str) -> str:
    """Return the answer for one volume in plain words."""
    alone, teachers = comparison.alone(volume), comparison.teachers(volume)
    distilled = [e for e in comparison.methods(volume) if e.role == "distilled"]
    measured = [entry for entry in distilled if "voi" in entry.gains]
    if not measured:
        return f"On {volume}, no method can be compared with the student alone: their trials are not measured."
    best = measured[0]
    gain = best.gains["voi"]
    mean = gain.difference.mean
    least = f"“{best.name}” has the least mean VOI of {_methods(len(measured))}"
    if mean >= 0:
        answer = f"On {volume}, NO method is better than the student alone by mean VOI; {least}"
    else:
        answer = f"On {volume}, {least}"
    answer += (
        f": {plus_minus(best.spreads['voi'], 3)} bits, the student alone {plus_minus(alone.spreads['voi'], 3)} bits; "
        f"“{best.name}” is better in {gain.wins} of {gain.difference.count} seeds"
    )
    answer += _gap_words(gain, best_teacher(teachers, "voi"), teachers)
    always = sum(e.gains["voi"].wins == e.gains["voi"].difference.count == e.expected for e in measured)
    behind = len(distilled) - len(measured)
    rest = f" {_methods(behind)} not measured." if behind else ""
    answer += f". In VOI, {always} of {_methods(len(measured))} beat the student alone with every seed"
    certain = (f"{name} {_certain(measured, key)}" for key, name, _ in METRICS if key != "arand")
    return f"{answer}; better with 95 % confidence: in {', in '.join(certain)}.{rest}"


def table_csv(comparison: Comparison) -> str:
    """Return the table with unrounded numbers, a row per volume and method; empty cells were not measured."""
    rows = []
    for entry in comparison.entries:
        row: dict[str, object] = {"volume": entry.volume, "method": entry.name, "role": entry.role}
        row |= {"terms": entry.terms, "learning_rate": entry.learning_rate}
        row |= {"seeds": entry.count, "seeds_expected": entry.expected}
        for key, _, _ in METRICS:
            mean, gain = entry.spreads.get(key), entry.gains.get(key)
            row |= {f"{key}_mean": mean and mean.mean, f"{key}_sd": mean and mean.sd}
            row |= {f"{key}_closure_mean": gain and gain.closure and gain.closure.mean}
            row |= {f"{key}_closure_sd": gain and gain.closure and gain.closure.sd}
            row |= {f"{key}_difference": gain and gain.difference.mean, f"{key}_interval": gain and gain.interval}
            row |= {f"{key}_wins": gain and gain.wins, f"{key}_ties": gain and gain.ties}
        row |= {"steps_least": min(entry.steps.values(), default=None)}
        row |= {"steps_most": max(entry.steps.values(), default=None)}
        row |= {"seconds_per_step": entry.seconds_per_step, "relative_time": entry.relative_time}
        row |= {"peak_mb": entry.peak_mb, "gpu_peak_mb": entry.gpu_peak_mb}
        rows.append(row)
    return _csv(rows)


def trials_csv(comparison: Comparison) -> str:
    """Return a row per volume, method and seed, for statistics of one's own."""
    rows: list[dict[str, object]] = []
    for entry in comparison.entries:
        for seed in entry.scores["voi"]:
            scores = {key: values.get(seed) for key, values in entry.scores.items()}
            row = {"volume": entry.volume, "method": entry.name, "role": entry.role, "seed": seed}
            rows.append({**row, "learning_rate": entry.learning_rate, "steps": entry.steps.get(seed), **scores})
    return _csv(rows)


def _csv(rows: Sequence[dict[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0]] if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _closure(entry: Entry, key: str) -> str:
    gain = entry.gains.get(key)
    if not _is_method(entry):
        return NOTHING
    if gain is None:
        return MISSING
    if gain.closure is not None:
        return plus_minus(gain.closure, 0, 100)
    return NO_GAP if gain.teacher_known else MISSING


def _wins(entry: Entry, gain: Gain | None) -> str:
    if not _is_method(entry):
        return NOTHING
    if gain is None:
        return MISSING
    ties = f", {gain.ties} equal" if gain.ties else ""
    return f"{gain.wins} of {gain.difference.count}{ties}"


def _interval(gain: Gain) -> str:
    mean = _signed(gain.difference.mean, 3, plus=True)
    return mean if gain.interval is None else f"{mean} ± {gain.interval:.3f}"


def _certain(measured: Sequence[Entry], key: str) -> str:
    return " and ".join(f"“{entry.name}”" for entry in measured if entry.certainly_better(key)) or "none"


def _steps(entry: Entry) -> str:
    if entry.role == "teacher":
        return NOTHING
    found = sorted(set(entry.steps.values()))
    return " to ".join(f"{n:,}" for n in (found[0], found[-1])[: len(found)]) if found else MISSING


def _time(entry: Entry) -> str:
    if entry.role == "teacher":
        return NOTHING
    if entry.seconds_per_step is None:
        return MISSING
    relative = "" if entry.relative_time is None else f" ({entry.relative_time:.2f}×)"
    return f"{1000 * entry.seconds_per_step:.1f}{relative}"


def _memory(entry: Entry) -> str:
    if entry.role == "teacher":
        return NOTHING
    if entry.peak_mb is None:
        return MISSING
    return f"{entry.peak_mb:,.0f}" + ("" if entry.gpu_peak_mb is None else f", GPU {entry.gpu_peak_mb:,.0f}")


def _is_method(entry: Entry) -> bool:
    return entry.role in ("distilled", "control")


def _methods(count: int) -> str:
    return f"{count} method" if count == 1 else f"{count} methods"


def _signed(value: float, decimals: int, *, plus: bool = False) -> str:
    whole = round(value, decimals) + 0.0  # no minus before a zero
    text = f"{whole:{'+' if plus else ''}.{decimals}f}"
    return text.replace("-", "−")


def _gap_words(gain: Gain, teacher: float | None, teachers: Sequence[Entry]) -> str:
    names = " and ".join(f"“{entry.name}”" for entry in teachers)
    if not teachers:
        return "; the teacher is no model of the configuration, so what part of its lead was gained is not measured"
    if teacher is None:
        return f"; the teacher {names} has no scores there, so what part of its lead was gained is not measured"
    if gain.closure is None:
        return (
            f"; the teacher {names} ({teacher:.3f} bits) is itself NOT better than the student alone: there is no gap"
        )
    return f" and closes {plus_minus(gain.closure, 0, 100)} % of the gap to the teacher {names} ({teacher:.3f} bits)"
