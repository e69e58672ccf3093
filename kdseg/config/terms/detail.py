"""Options of the distillation of fine detail: wavelet bands and boundaries."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from kdseg.config.base import Weight
from kdseg.config.terms.base import DistillationSection, Level, Tap


class DcdOptions(DistillationSection):
    """Detail-consistent distillation (Fan et al., arXiv 2605.26382): wavelet details of all stages of the encoder."""

    term: ClassVar[str] = "kdseg.training.losses.wavelet:DcdTerm"
    name: Literal["dcd"] = "dcd"
    depth: Annotated[int, Field(ge=1)] = 3
    """Times that the coarse part is split again."""
    corner: bool = False
    """Compare also the band that is fine along all three axes, which is left out as published."""

    @property
    def taps_used(self) -> tuple[Tap, ...]:
        """The bottleneck, the last stage of the encoder."""
        return (-1,)


class BckdOptions(DistillationSection):
    """Boundary and context distillation (Zhang et al., arXiv 2401.13174).

    Only its abstract was to be had: what the two parts measure is a reading of it.
    """

    term: ClassVar[str] = "kdseg.training.losses.boundary:BckdTerm"
    name: Literal["bckd"] = "bckd"
    levels: Annotated[tuple[Level, ...], Field(min_length=1)] = (0, 1)
    """Decoder levels whose boundaries are compared: 0 is the finest, -1 the bottleneck; averaged."""
    boundary: Weight = 1.0
    """Of where the features change."""
    context: Weight = 1.0
    """Of the relations of each voxel to all others."""
    context_level: Level = -1
    """Decoder level whose voxels are related."""

    @property
    def taps_used(self) -> tuple[Tap, ...]:
        """The levels of the parts that have a weight."""
        return (*(self.levels if self.boundary else ()), *((self.context_level,) if self.context else ()))

    @model_validator(mode="after")
    def _has_a_part(self) -> Self:
        if not self.boundary + self.context:
            raise ValueError("neither `boundary` nor `context` has a weight: give one of them a weight above 0")
        return self
