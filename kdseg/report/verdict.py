"""Verdict on the distilled student against the same network trained alone: one plain sentence per volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from kdseg.config import Config
from kdseg.report.roles import alone_of, reference_of, role, unlike
from kdseg.report.table import Row

Outcome = Literal["better", "mixed", "not better", "not measured"]
METRICS = (("voi", "VOI", " bits"), ("arand", "ARAND", ""))
_WORDS = {"better": "better than", "mixed": "neither better nor worse than", "not better": "NOT better than"}


@dataclass(frozen=True)
class Verdict:
    """The answer for one distilled student on one volume.

    Attributes:
        student: name of the distilled student.
        volume: where it was scored; empty if there is no student.
        outcome: ``better`` if both VOI and ARAND fell, ``not better`` if neither did, ``mixed`` if one did.
        sentence: the answer in words.
        closures: part of the gap between the student alone and the teacher that distillation closed, per metric;
            1 is the teacher's score. Left out where it is not measured or the teacher is not ahead.
        notes: what the reader should know before believing it.
    """

    student: str
    volume: str
    outcome: Outcome
    sentence: str
    closures: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def verdicts(config: Config, table: Sequence[Row]) -> list[Verdict]:
    """Return a verdict per distilled student and volume, in the order of the table."""
    students = [name for name in config.evaluate.models if role(config, name) == "distilled student"]
    if not students:
        sentence = _best(config, table) or "This run scores no distilled student, so there is nothing to compare."
        return [Verdict("", "", "not measured", sentence)]
    at = {(row.model, row.volume): row for row in table}
    return [_verdict(config, at, name, volume) for name in students for volume in config.evaluate.volumes]


def _best(config: Config, table: Sequence[Row]) -> str:
    """Return which network is best on which volume, by VOI; empty in a run that distils, or without two to compare."""
    if any(role(config, name) == "distilled student" for name in config.models):
        return ""
    said = []
    for volume in config.evaluate.volumes:
        rows = [row for row in table if row.volume == volume and row.role != "baseline"]
        measured = sorted((float(row.voi), row.model) for row in rows if row.voi is not None)
        if len(measured) > 1:
            (least, best), (more, other) = measured[:2]
            which = "better than" if len(measured) == 2 else f"the best of {len(measured)} networks, before"
            which = "as good as" if least == more else which
            said.append(f"on {volume}, “{best}” is {which} “{other}” (VOI {least:.3f} and {more:.3f} bits)")
    sentence = "; ".join(said)
    return f"{sentence[:1].upper()}{sentence[1:]}." if sentence else ""


def headline(found: Sequence[Verdict]) -> str:
    """Return one sentence for all verdicts: the sentence of the only one, or how often distillation helped."""
    if len(found) == 1:
        return found[0].sentence
    measured = [verdict for verdict in found if verdict.outcome != "not measured"]
    if not measured:
        return f"Whether distillation helped is not measured: none of {len(found)} comparisons has its scores."
    better = sum(verdict.outcome == "better" for verdict in measured)
    counted = {len(measured): "all", 0: "none"}.get(better, str(better))
    tail = "" if len(measured) == len(found) else f"; {len(found) - len(measured)} more are not measured"
    return (
        f"The distilled student is better than the same network trained alone, in both VOI and ARAND, in {counted} "
        f"of {len(measured)} comparisons{tail}."
    )


def closure(alone: float, distilled: float, teacher: float) -> float | None:
    """Return ``(alone − distilled) / (alone − teacher)`` for a score where less is better.

    Returns:
        0 at the student alone, 1 at the teacher, negative where distillation did harm; None where the teacher
        is not ahead of the student alone.
    """
    return None if teacher >= alone else (alone - distilled) / (alone - teacher)


def compare(ours: Row, other: Row) -> Outcome:
    """Return how a row stands to another one by VOI and ARAND."""
    pairs = [(getattr(ours, key), getattr(other, key)) for key, _, _ in METRICS]
    if any(a is None or b is None for a, b in pairs):
        return "not measured"
    wins = sum(a < b for a, b in pairs)
    return ("not better", "mixed", "better")[wins]


def _verdict(config: Config, at: dict[tuple[str, str], Row], student: str, volume: str) -> Verdict:
    if not config.volumes[volume].labelled:
        sentence = f"How good {student} is on {volume} is not known: there is no ground truth."
        return Verdict(student, volume, "not measured", sentence)
    alone = alone_of(config, student)
    ours, teacher_name = at[student, volume], str(reference_of(config, student))
    if alone is None:
        sentence = (
            f"Whether distillation helped {student} cannot be told on {volume}: no scored model has the same network "
            "and no teacher."
        )
        return Verdict(student, volume, "not measured", sentence)
    outcome = compare(ours, at[alone, volume])
    if outcome == "not measured":
        rows = (at[name, volume] for name in (student, alone))
        lacking = " and ".join(row.model for row in rows if row.voi is None or row.arand is None)
        sentence = f"Whether distillation helped is not measured on {volume}: no scores of {lacking} there."
        return Verdict(student, volume, outcome, sentence)
    closures, gap = _gap(ours, at[alone, volume], at.get((teacher_name, volume)), teacher_name)
    sentence = (
        f"On {volume}, the distilled student “{student}” is {_WORDS[outcome]} the same network trained alone "
        f"(“{alone}”): "
        f"{_changes(ours, at[alone, volume])}; {gap}{_against(ours, at.get(('baseline', volume)))}."
    )
    return Verdict(student, volume, outcome, sentence, closures, _notes(config, student, alone))


def _changes(ours: Row, alone: Row) -> str:
    parts = []
    for key, name, unit in METRICS:
        before, after = float(getattr(alone, key)), float(getattr(ours, key))
        change = f", {100 * (after - before) / before:+.0f} %" if before else ""
        parts.append(f"{name} {after:.3f} instead of {before:.3f}{unit} ({after - before:+.3f}{change})")
    return ", ".join(parts).replace("-", "−")


def _gap(ours: Row, alone: Row, teacher: Row | None, name: str) -> tuple[dict[str, float], str]:
    if teacher is None or teacher.voi is None or teacher.arand is None:
        return {}, f"the teacher “{name}” has no scores there, so what part of its lead was gained is not measured"
    closures, closed, behind = {}, [], []
    for key, label, _ in METRICS:
        before, after, best = (float(getattr(row, key)) for row in (alone, ours, teacher))
        part = closure(before, after, best)
        if part is None:
            behind.append(f"{label} ({best:.3f})")
        else:
            closures[key] = part
            closed.append(f"{100 * part:.0f} % in {label}".replace("-", "−"))
    parts = []
    if closed:
        parts.append(f"of the gap to the teacher “{name}” it closes {' and '.join(closed)}")
    if behind:
        parts.append(f"the teacher “{name}” is itself NOT better than the student alone in {' and '.join(behind)}")
    return closures, "; ".join(parts)


def _against(ours: Row, baseline: Row | None) -> str:
    if baseline is None:
        return ""
    outcome = compare(ours, baseline)
    if outcome == "not measured":
        return "; the baseline has no scores there"
    return f"; it is {_WORDS[outcome]} the baseline (VOI {baseline.voi:.3f} bits, ARAND {baseline.arand:.3f})"


def _notes(config: Config, student: str, alone: str) -> tuple[str, ...]:
    notes = []
    if differences := unlike(config, student, alone):
        notes.append(f"{student} and {alone} were not trained alike: {', '.join(differences)}.")
    if config.models[student].train.seed == config.models[alone].train.seed:
        notes.append(f"One training of {student} against one of {alone}: small differences may be chance.")
    else:
        notes.append(f"{student} and {alone} were trained with different seeds.")
    return tuple(notes)
