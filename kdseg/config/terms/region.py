"""Options of the distillation of what regions have in common, and of how voxels relate to them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from kdseg.config.base import Count, Weight
from kdseg.config.terms.base import DistillationSection, Level, Tap


class ReCoKdOptions(DistillationSection):
    """Region- and context-aware distillation (Lan et al., arXiv 2601.08301), with instances as regions.

    Only its abstract was to be had: what the two parts measure is a reading of it.
    """

    term: ClassVar[str] = "kdseg.training.losses.region:ReCoKdTerm"
    name: Literal["recokd"] = "recokd"
    levels: Annotated[tuple[Level, ...], Field(min_length=1)] = (0, -1)
    """Decoder levels: 0 is the finest, -1 the bottleneck; averaged."""
    region: Weight = 1.0
    """Of the difference of the features, in which every instance counts alike, however small."""
    context: Weight = 1.0
    """Of the cosines between voxels and the means of the instances of their crop."""
    min_size: Count = 32
    """Voxels; smaller instances are left out."""

    @property
    def taps_used(self) -> tuple[Tap, ...]:
        """The levels."""
        return self.levels

    @property
    def instances_used(self) -> bool:
        """Always."""
        return True

    @model_validator(mode="after")
    def _has_a_part(self) -> Self:
        if not self.region + self.context:
            raise ValueError("neither `region` nor `context` has a weight: give one of them a weight above 0")
        return self
