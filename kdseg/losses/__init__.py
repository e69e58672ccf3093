"""The summands of the training loss. A new one: an options class, a `Term`, a line in `TERMS`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from kdseg.config.terms import TermOptions
from kdseg.losses.affinity import SoftAffinityTerm
from kdseg.losses.base import Context, Objective, Term
from kdseg.losses.supervised import AffinityTerm, EmbeddingTerm, LsdTerm

__all__ = ["TERMS", "Context", "Objective", "Term", "build_terms", "term_weight"]

TERMS: dict[str, Any] = {
    "affinity": AffinityTerm,
    "lsd": LsdTerm,
    "embedding": EmbeddingTerm,
    "soft_affinity": SoftAffinityTerm,
}
"""Term class by the name in its options; each is called with (options, context)."""


def build_terms(options: Sequence[TermOptions], context: Context) -> nn.ModuleDict:
    """Return the terms by name, in the order of the options."""
    return nn.ModuleDict({option.name: TERMS[option.name](option, context) for option in options})


def term_weight(options: TermOptions, step: int) -> float:
    """Return the weight of a term at a step: it grows linearly from 0 over the term's warm-up."""
    if step >= options.warmup:
        return options.weight
    return options.weight * step / options.warmup
