"""Options of the distillation of relations between channels, pixels and samples."""

from __future__ import annotations

from typing import ClassVar, Literal

from kdseg.config.base import Count, Extent, Positive, Weight
from kdseg.config.terms.base import DistillationSection, Level, Tap


class CpkdOptions(DistillationSection):
    """Channel- and pixel-wise relational distillation (Xiong & Yu, Proc. SPIE 13213, 2024).

    Only its abstract is public: two readings are offered. `gram` compares the cosines between channels and those
    between voxels, `pearson` the correlations of predictions over offsets and over voxels.
    """

    term: ClassVar[str] = "kdseg.training.losses.relation:CpkdTerm"
    name: Literal["cpkd"] = "cpkd"
    reading: Literal["gram", "pearson"] = "gram"
    level: Level = 0
    """Decoder level to compare, for `gram`; `pearson` compares the affinities."""
    channel: Weight = 1.0
    """Of the relations between channels (`gram`), or over voxels for each channel (`pearson`, intra-class)."""
    pixel: Weight = 1.0
    """Of the relations between voxels (`gram`), or over channels at each voxel (`pearson`, inter-class)."""
    temperature: Positive = 1.0
    """Logits are divided by it, for `pearson`."""

    @property
    def taps_used(self) -> tuple[Tap, ...]:
        """The level, or the affinities."""
        return (self.level,) if self.reading == "gram" else ("affinities",)


class DistOptions(DistillationSection):
    """DIST (Huang et al. 2022): one minus the correlation of predictions over channels and over voxels.

    The `pearson` reading of `cpkd` with the weights and the temperature of its own paper.
    """

    term: ClassVar[str] = "kdseg.training.losses.relation:DistTerm"
    name: Literal["dist"] = "dist"
    inter: Weight = 2.0
    """Over the channels at each voxel."""
    intra: Weight = 2.0
    """Over the voxels for each channel."""
    temperature: Positive = 4.0

    @property
    def taps_used(self) -> tuple[Tap, ...]:
        """The affinities."""
        return ("affinities",)


class SpkdOptions(DistillationSection):
    """Similarity-preserving distillation (Tung & Mori 2019).

    It compares the similarities between samples. A batch of 3-D crops has too few: each crop is cut into parts.
    """

    term: ClassVar[str] = "kdseg.training.losses.relation:SpkdTerm"
    name: Literal["spkd"] = "spkd"
    level: Level = -1
    parts: Extent = (2, 2, 2)
    """Samples that each crop is cut into along z, y and x."""

    @property
    def taps_used(self) -> tuple[Tap, ...]:
        """The level."""
        return (self.level,)


class SkdOptions(DistillationSection):
    """Structured distillation (Liu et al. 2019): soft predictions, and the cosines between all pairs of voxels.

    Its third part is the term `adversarial`.
    """

    term: ClassVar[str] = "kdseg.training.losses.relation:SkdTerm"
    name: Literal["skd"] = "skd"
    level: Level = 0
    """Whose features are compared pair-wise."""
    pixel: Weight = 1.0
    pair: Weight = 1.0
    pool: Extent = (1, 1, 1)
    """Average pooling before voxels are compared; exact and cheap without any."""

    @property
    def taps_used(self) -> tuple[Tap, ...]:
        """The level and the affinities."""
        return (self.level, "affinities")


class IfvdOptions(DistillationSection):
    """Intra-class feature variation (Wang et al. 2020), by instance: each voxel's cosine to its instance's mean."""

    term: ClassVar[str] = "kdseg.training.losses.relation:IfvdTerm"
    name: Literal["ifvd"] = "ifvd"
    level: Level = 0
    min_size: Count = 32
    """Voxels; smaller instances are left out."""

    @property
    def taps_used(self) -> tuple[Tap, ...]:
        """The level."""
        return (self.level,)

    @property
    def instances_used(self) -> bool:
        """Always."""
        return True
