"""Options of the summands of the training loss; one class per term, named by `name`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kdseg.config.terms.affinity import AdversarialOptions, SoftAffinityOptions
from kdseg.config.terms.base import DistillationSection, Level, Tap, TermSection
from kdseg.config.terms.feature import (
    AttentionOptions,
    CwdOptions,
    FactorOptions,
    FitNetsOptions,
    MgdOptions,
    ReviewKdOptions,
    VidOptions,
)
from kdseg.config.terms.graph import GraphFlowOptions, GraphRelationOptions
from kdseg.config.terms.relation import CpkdOptions, DistOptions, IfvdOptions, SkdOptions, SpkdOptions
from kdseg.config.terms.supervised import AffinityOptions, EmbeddingOptions, LsdOptions

__all__ = [
    "AdversarialOptions",
    "AffinityOptions",
    "AttentionOptions",
    "CpkdOptions",
    "CwdOptions",
    "DistOptions",
    "DistillationSection",
    "EmbeddingOptions",
    "FactorOptions",
    "FitNetsOptions",
    "GraphFlowOptions",
    "GraphRelationOptions",
    "IfvdOptions",
    "Level",
    "LsdOptions",
    "MgdOptions",
    "ReviewKdOptions",
    "SkdOptions",
    "SoftAffinityOptions",
    "SpkdOptions",
    "Tap",
    "TermOptions",
    "TermSection",
    "VidOptions",
]

TermOptions = Annotated[
    AffinityOptions
    | LsdOptions
    | EmbeddingOptions
    | SoftAffinityOptions
    | GraphRelationOptions
    | GraphFlowOptions
    | AdversarialOptions
    | CpkdOptions
    | DistOptions
    | SpkdOptions
    | SkdOptions
    | IfvdOptions
    | FitNetsOptions
    | AttentionOptions
    | CwdOptions
    | ReviewKdOptions
    | VidOptions
    | FactorOptions
    | MgdOptions,
    Field(discriminator="name"),
]
