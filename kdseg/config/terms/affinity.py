"""Options of the distillation of affinities: soft targets, and a discriminator."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from kdseg.config.base import Count, Positive, Weight
from kdseg.config.terms.base import DistillationSection, Tap
from kdseg.config.terms.supervised import Boundary

_Beta = Annotated[float, Field(ge=0, lt=1)]


class SoftAffinityOptions(DistillationSection):
    """The teacher's affinities as soft targets.

    `kl` without balance is the distillation of Hinton et al. 2015 for independent two-way decisions, one per
    offset and voxel.
    """

    term: ClassVar[str] = "kdseg.training.losses.affinity:SoftAffinityTerm"
    name: Literal["soft_affinity"] = "soft_affinity"
    criterion: Literal["kl", "mse"] = "kl"
    """`kl`: Bernoulli cross entropy less the teacher's entropy; `mse`: squared error of the probabilities."""
    temperature: Positive = 1.0
    """Both logits are divided by it; `kl` is multiplied by its square."""
    balanced: bool = True
    """Let the pairs that the teacher cuts count as much as those that it joins."""

    @property
    def taps_used(self) -> tuple[Tap, ...]:
        """The affinities."""
        return ("affinities",)


class AdversarialOptions(DistillationSection):
    """A discriminator is to tell the student's affinities from the teacher's (Zou et al. 2022; WGAN-GP).

    Costly and unstable in 3-D: in no shipped recipe.
    """

    term: ClassVar[str] = "kdseg.training.losses.adversarial:AdversarialTerm"
    name: Literal["adversarial"] = "adversarial"
    weight: Weight = 0.1
    widths: Annotated[tuple[Count, ...], Field(min_length=2)] = (16, 32, 64)
    """Channels of the discriminator's strided convolutions; the last two are followed by self-attention."""
    learning_rate: Positive = 3e-5
    """Of the discriminator's Adam."""
    betas: tuple[_Beta, _Beta] = (0.0, 0.99)
    """Of the discriminator's Adam: no momentum, as is usual with a gradient penalty; published are 0.9 and 0.99."""
    gradient_penalty: Weight = 10.0
    conditioned: bool = False
    """Let the discriminator see the raw data as well."""

    @property
    def taps_used(self) -> tuple[Tap, ...]:
        """The affinities."""
        return ("affinities",)


class CadOptions(DistillationSection):
    """Cross-dimension affinity distillation (Liu et al., CVPR 2024): cosines of embeddings, within and across networks.

    Its student sees two sections at once, its teacher many; here both are networks in 3-D.
    """

    term: ClassVar[str] = "kdseg.training.losses.graft:CadTerm"
    name: Literal["cad"] = "cad"
    tap: Literal["embedding", 0] = "embedding"
    """The vectors of the voxels: the embedding, or the finest decoder level."""
    affinity: Weight = 1.0
    """Of the affinities of both networks."""
    graft: Weight = 1.0
    """Of the affinities between a section of the student and one of the teacher."""
    offsets: Literal["nearest", "all"] = "nearest"
    """For which offsets the affinities of both networks are compared."""
    target: Literal["labels", "teacher"] = "labels"
    """Affinities that grafted sections are to have: those of the ground truth, as published, which all `volumes` then
    need, or the teacher's."""
    boundary: Boundary = "auto"
    """Membrane of the ground truth between touching neurons, as of the term `affinity`: give both the same."""

    @property
    def taps_used(self) -> tuple[Tap, ...]:
        """The tap."""
        return (self.tap,)

    @property
    def truth_used(self) -> bool:
        """Whether grafted sections have a weight, and are to have the affinities of the ground truth."""
        return self.graft > 0 and self.target == "labels"

    @model_validator(mode="after")
    def _has_a_part(self) -> Self:
        if not self.affinity + self.graft:
            raise ValueError("neither `affinity` nor `graft` has a weight: give one of them a weight above 0")
        return self
