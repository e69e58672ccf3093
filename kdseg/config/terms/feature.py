"""Options of the distillation of features."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kdseg.config.base import Count, Positive, Probability
from kdseg.config.terms.base import DistillationSection, Level, Tap


class _AtLevel(DistillationSection):
    level: Level = 0
    """Decoder level: 0 is the finest, -1 the bottleneck."""

    @property
    def taps_used(self) -> tuple[Tap, ...]:
        """The level."""
        return (self.level,)


class _AtLevels(DistillationSection):
    levels: Annotated[tuple[Level, ...], Field(min_length=1)] = (0, -1)
    """Decoder levels: 0 is the finest, -1 the bottleneck; averaged."""

    @property
    def taps_used(self) -> tuple[Tap, ...]:
        """The levels."""
        return self.levels


class FitNetsOptions(_AtLevel):
    """Squared error between features, after a learned linear map (Romero et al. 2015)."""

    term: ClassVar[str] = "kdseg.training.losses.feature:FitNetsTerm"
    name: Literal["fitnets"] = "fitnets"


class AttentionOptions(_AtLevels):
    """Attention transfer (Zagoruyko & Komodakis 2017): the normalised energy of the features over space."""

    term: ClassVar[str] = "kdseg.training.losses.feature:AttentionTerm"
    name: Literal["at"] = "at"


class CwdOptions(DistillationSection):
    """Channel-wise distillation (Shu et al. 2021): each channel as a distribution over space."""

    term: ClassVar[str] = "kdseg.training.losses.feature:CwdTerm"
    name: Literal["cwd"] = "cwd"
    tap: Tap = "affinities"
    temperature: Positive = 4.0

    @property
    def taps_used(self) -> tuple[Tap, ...]:
        """The tap."""
        return (self.tap,)


class ReviewKdOptions(_AtLevels):
    """Knowledge review (Chen et al. 2021): fused levels of the student against each level of the teacher."""

    term: ClassVar[str] = "kdseg.training.losses.generation:ReviewKdTerm"
    name: Literal["reviewkd"] = "reviewkd"
    levels: Annotated[tuple[Level, ...], Field(min_length=2)] = (0, 1, 2)
    """From fine to coarse."""
    width: Count = 16
    """Channels of the fused features."""


class VidOptions(_AtLevel):
    """Variational information distillation (Ahn et al. 2019): likelihood of the teacher's features."""

    term: ClassVar[str] = "kdseg.training.losses.feature:VidTerm"
    name: Literal["vid"] = "vid"


class FactorOptions(_AtLevel):
    """Factor transfer (Kim et al. 2018): normalised factors of a paraphraser and a translator."""

    term: ClassVar[str] = "kdseg.training.losses.factor:FactorTransferTerm"
    name: Literal["ft"] = "ft"
    power: Literal[1, 2] = 1
    """Of the distance between the factors."""
    width: Count = 8
    """Channels of a factor."""
    fit: Count = 50
    """Batches at the start over which the paraphraser is trained and the term is 0."""

    @property
    def idle_batches(self) -> int:
        """Those of the fit."""
        return self.fit


class MgdOptions(_AtLevel):
    """Masked generative distillation (Yang et al. 2022): features of the teacher from masked ones of the student."""

    term: ClassVar[str] = "kdseg.training.losses.generation:MgdTerm"
    name: Literal["mgd"] = "mgd"
    masked: Probability = 0.65
    """Share of voxels that are masked."""
