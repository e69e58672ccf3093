"""Options of the distillation of fine detail: wavelet bands and boundaries."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kdseg.config.terms.base import DistillationSection, Tap


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
