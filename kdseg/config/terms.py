"""Options of the summands of the training loss; one class per term, named by `name`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kdseg.config.base import Positive, Section, Weight


class _Term(Section):
    from_teacher: ClassVar[bool] = False
    """Whether the term compares with a teacher."""
    weight: Weight = 1.0
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps over which the weight grows linearly from 0."""


class _Pairs(_Term):
    boundary: Literal["auto", "none", "yx", "zyx"] = "auto"
    """Ground truth of touching neurons has no membrane: voxels whose 3x3 (`yx`) or 3x3x3 (`zyx`) window holds
    two neurons count as one, and pairs that touch it as negative. `auto`: `zyx`, or `yx` where z is coarser."""


class AffinityOptions(_Pairs):
    """Class-balanced binary cross entropy on the affinities of the ground truth."""

    name: Literal["affinity"] = "affinity"


class LsdOptions(_Term):
    """Mean squared error on local shape descriptors of the ground truth."""

    name: Literal["lsd"] = "lsd"


class EmbeddingOptions(_Pairs):
    """Class-balanced squared error between embedding cosines and the affinities of the ground truth."""

    name: Literal["embedding"] = "embedding"


class SoftAffinityOptions(_Term):
    """Bernoulli cross entropy with the teacher's affinities (Hinton et al. 2015, per offset)."""

    from_teacher: ClassVar[bool] = True
    name: Literal["soft_affinity"] = "soft_affinity"
    temperature: Positive = 1.0
    """Both logits are divided by it; the term is multiplied by its square."""
    balanced: bool = True
    """Let the pairs that the teacher cuts count as much as those that it joins."""


TermOptions = Annotated[
    AffinityOptions | LsdOptions | EmbeddingOptions | SoftAffinityOptions, Field(discriminator="name")
]
