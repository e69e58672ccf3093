"""Options of the terms that compare the student with ground truth."""

from __future__ import annotations

from typing import ClassVar, Literal

from kdseg.config.terms.base import Tap, TermSection

Boundary = Literal["auto", "none", "yx", "zyx"]


class _Pairs(TermSection):
    boundary: Boundary = "auto"
    """Ground truth of touching neurons has no membrane: voxels whose 3x3 (`yx`) or 3x3x3 (`zyx`) window holds
    two neurons count as one, and pairs that touch it as negative. `auto`: `zyx`, or `yx` where z is coarser."""


class AffinityOptions(_Pairs):
    """Class-balanced binary cross entropy on the affinities of the ground truth."""

    term: ClassVar[str] = "kdseg.training.losses.supervised:AffinityTerm"
    name: Literal["affinity"] = "affinity"


class LsdOptions(TermSection):
    """Mean squared error on local shape descriptors of the ground truth."""

    term: ClassVar[str] = "kdseg.training.losses.supervised:LsdTerm"
    name: Literal["lsd"] = "lsd"


class EmbeddingOptions(_Pairs):
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
