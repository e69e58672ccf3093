"""Options of the terms that compare the student with ground truth."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kdseg.config.base import Count
from kdseg.config.terms.base import Level, Tap, TermSection

Boundary = Literal["auto", "none", "yx", "zyx"]


class PairsSection(TermSection):
    """Options of a term on pairs of voxels of the ground truth."""

    boundary: Boundary = "auto"
    """Ground truth of touching neurons has no membrane: voxels whose 3x3 (`yx`) or 3x3x3 (`zyx`) window holds
    two neurons count as one, and pairs that touch it as negative. `auto`: `zyx`, or `yx` where z is coarser."""
    boundary_width: Count = 1
    """Voxels of it on either side of a contact: neurons are eroded by as many. The loss that validation reports has
    one, whatever is trained, so that it can be compared."""


class AffinityOptions(PairsSection):
    """Binary cross entropy on the affinities of the ground truth."""

    term: ClassVar[str] = "kdseg.training.losses.supervised:AffinityTerm"
    name: Literal["affinity"] = "affinity"
    balanced: bool = True
    """Pairs within neurons and pairs between count alike, in each channel and crop; off: all pairs count alike."""


class DiceOptions(PairsSection):
    """Soft Dice loss of the affinities of the ground truth, of pairs within neurons and of those between."""

    term: ClassVar[str] = "kdseg.training.losses.supervised:DiceTerm"
    name: Literal["dice"] = "dice"


class DeepSupervisionOptions(PairsSection):
    """The balanced loss of the term `affinity` on affinities that coarser decoder levels predict, in training alone."""

    term: ClassVar[str] = "kdseg.training.losses.supervised:DeepSupervisionTerm"
    name: Literal["deep_supervision"] = "deep_supervision"
    levels: Annotated[tuple[Level, ...], Field(min_length=1)] = (1,)
    """Decoder levels, each with a linear map to affinities of its own."""

    @property
    def taps_used(self) -> tuple[Tap, ...]:
        """Outputs of the student that the term looks at."""
        return self.levels


class LsdOptions(TermSection):
    """Mean squared error on local shape descriptors of the ground truth."""

    term: ClassVar[str] = "kdseg.training.losses.supervised:LsdTerm"
    name: Literal["lsd"] = "lsd"


class EmbeddingOptions(PairsSection):
    """Class-balanced squared error between embedding cosines and the affinities of the ground truth."""

    term: ClassVar[str] = "kdseg.training.losses.supervised:EmbeddingTerm"
    name: Literal["embedding"] = "embedding"
    reduction: Literal["mean", "published"] = "mean"
    """`published`: the sum over offsets of the weighted errors per voxel, as in Liu et al., arXiv 2401.06370;
    `mean` is independent of the number of offsets and of the size of the crop."""

    @property
    def taps_used(self) -> tuple[Tap, ...]:
        """The embedding."""
        return ("embedding",)
