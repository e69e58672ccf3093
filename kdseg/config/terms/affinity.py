"""Options of the distillation of affinities: soft targets, and a discriminator."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kdseg.config.base import Count, Positive, Weight
from kdseg.config.terms.base import DistillationSection, Tap


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
    gradient_penalty: Weight = 10.0
    conditioned: bool = False
    """Let the discriminator see the raw data as well."""

    @property
    def taps_used(self) -> tuple[Tap, ...]:
        """The affinities."""
        return ("affinities",)
