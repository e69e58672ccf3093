"""Roles of the models, and the models that each is compared with."""

from __future__ import annotations

from typing import Literal

from kdseg.config import Config

Role = Literal["teacher", "student alone", "distilled student", "pretrained", "baseline"]

_MAY_DIFFER = {
    "teacher",
    "teaching",
    "distil",
    "terms",
    "normalise",
    "unlabelled",
    "unlabelled_fraction",
    "seed",
    "loader_workers",
    "checkpoint_every",
}
"""Options of training that belong to distillation, or do not favour one of two models."""


def role(config: Config, model: str) -> Role:
    """Return what a model is in this run; one that is taught and teaches counts as a distilled student."""
    if model in config.models and config.models[model].train.teachers:
        return "distilled student"
    if any(model in other.train.teachers for other in config.models.values()):
        return "teacher"
    return "pretrained" if model in config.pretrained else "student alone"


def alone_of(config: Config, student: str) -> str | None:
    """Return the scored model of the same network that was trained without a teacher, if there is one.

    A model that teaches nobody goes before one that does, one of the same seed before others.
    """
    options = config.models[student]
    same = [
        name
        for name in config.evaluate.models
        if name in config.models
        and config.models[name].network == options.network
        and not config.models[name].train.teachers
    ]
    return min(
        same,
        key=lambda name: (
            role(config, name) == "teacher",
            config.models[name].train.seed != options.train.seed,
        ),
        default=None,
    )


def reference_of(config: Config, model: str) -> str | None:
    """Return the teacher that a model's cost is compared with: its own first one, or that of its distilled twin."""
    teachers = config.models[model].train.teachers if model in config.models else ()
    if teachers or role(config, model) == "teacher":
        return (*teachers, model)[0]
    if model in config.pretrained:
        return None
    network = config.models[model].network
    twins = (other.train.teachers for other in config.models.values() if other.network == network)
    return next((names[0] for names in twins if names), None)


def unlike(config: Config, student: str, alone: str) -> list[str]:
    """Return in what two models were trained differently beside distillation, e.g. ``"steps 100 vs 200"``."""
    ours, theirs = config.models[student], config.models[alone]
    mine, other = ours.train.model_dump(exclude=_MAY_DIFFER), theirs.train.model_dump(exclude=_MAY_DIFFER)
    found = [f"{key} {mine[key]} vs {other[key]}" for key in mine if mine[key] != other[key]]
    return found + (["heads"] if ours.heads != theirs.heads else [])
