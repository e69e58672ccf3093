"""The summands of the training loss. A new one: an options class that names its `Term`, and the term."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from math import ceil, cos, pi

from torch import nn

from kdseg.config.terms import TermOptions
from kdseg.errors import ConfigError
from kdseg.training.losses.base import Context, Objective, Term

__all__ = ["Context", "Objective", "Term", "active_terms", "build_terms", "make_term", "term_weight"]


def make_term(options: TermOptions, context: Context) -> Term:
    """Return the term that options describe."""
    module, _, name = options.term.partition(":")
    made: Term = getattr(import_module(module), name)(options, context)
    return made


def build_terms(options: Sequence[TermOptions], context: Context) -> nn.ModuleDict:
    """Return the terms by name, in the order of the options.

    Raises:
        ConfigError: if a term distils and there is no teacher.
    """
    for option in options:
        if option.from_teacher and context.teacher is None:
            raise ConfigError(f"the term {option.name!r} needs a teacher")
    return nn.ModuleDict({option.name: make_term(option, context) for option in options})


def active_terms(options: Sequence[TermOptions], step: int, steps: float, accumulate: int = 1) -> frozenset[str]:
    """Return the names of the terms that are computed at a step: they count, or learn just before they do.

    Args:
        options: of all terms.
        step: from 0.
        steps: of the whole run; infinite as long as it is not known.
        accumulate: batches per step.
    """

    def learns(term: TermOptions) -> bool:
        return term.weight > 0 and 0 < term.start - step <= ceil(term.late_batches / accumulate)

    return frozenset(term.name for term in options if learns(term) or term_weight(term, step, steps) > 0)


def term_weight(options: TermOptions, step: int, steps: float) -> float:
    """Return the weight of a term at a step.

    It is 0 up to ``start``, grows linearly over ``warmup`` and then, as ``decay`` says, stays or falls to 0.

    Args:
        options: of the term.
        step: from 0.
        steps: of the whole run; infinite as long as it is not known.
    """
    since = step - options.start
    if since < 0:
        return 0.0
    if since < options.warmup:
        return options.weight * since / options.warmup
    done = min((since - options.warmup) / max(steps - options.start - options.warmup, 1), 1)
    left = {"none": 1.0, "linear": 1 - done, "cosine": (1 + cos(pi * done)) / 2}[options.decay]
    return options.weight * left
