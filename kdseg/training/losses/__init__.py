"""The summands of the training loss. A new one: an options class, a `Term`, a line in `TERMS`."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi
from typing import Any

from torch import nn

from kdseg.config.terms import TermOptions
from kdseg.errors import ConfigError
from kdseg.training.losses.adversarial import AdversarialTerm
from kdseg.training.losses.affinity import SoftAffinityTerm
from kdseg.training.losses.base import Context, Objective, Term
from kdseg.training.losses.factor import FactorTransferTerm
from kdseg.training.losses.feature import AttentionTerm, CwdTerm, FitNetsTerm, VidTerm
from kdseg.training.losses.flow import GraphFlowTerm
from kdseg.training.losses.generation import MgdTerm, ReviewKdTerm
from kdseg.training.losses.graph import GraphRelationTerm
from kdseg.training.losses.relation import CpkdTerm, DistTerm, IfvdTerm, SkdTerm, SpkdTerm
from kdseg.training.losses.supervised import AffinityTerm, EmbeddingTerm, LsdTerm

__all__ = ["TERMS", "Context", "Objective", "Term", "build_terms", "term_weight"]

TERMS: dict[str, Any] = {
    "affinity": AffinityTerm,
    "lsd": LsdTerm,
    "embedding": EmbeddingTerm,
    "soft_affinity": SoftAffinityTerm,
    "adversarial": AdversarialTerm,
    "graph_relation": GraphRelationTerm,
    "graph_flow": GraphFlowTerm,
    "ft": FactorTransferTerm,
    "cpkd": CpkdTerm,
    "dist": DistTerm,
    "spkd": SpkdTerm,
    "skd": SkdTerm,
    "ifvd": IfvdTerm,
    "fitnets": FitNetsTerm,
    "at": AttentionTerm,
    "cwd": CwdTerm,
    "reviewkd": ReviewKdTerm,
    "vid": VidTerm,
    "mgd": MgdTerm,
}
"""Term class by the name in its options; each is called with (options, context)."""


def build_terms(options: Sequence[TermOptions], context: Context) -> nn.ModuleDict:
    """Return the terms by name, in the order of the options.

    Raises:
        ConfigError: if a term distils and there is no teacher.
    """
    for option in options:
        if option.from_teacher and context.teacher is None:
            raise ConfigError(f"the term {option.name!r} needs a teacher")
    return nn.ModuleDict({option.name: TERMS[option.name](option, context) for option in options})


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
