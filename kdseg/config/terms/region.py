"""Options of the distillation of what regions have in common, and of how voxels relate to them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from kdseg.config.base import Count, Positive, Weight
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


class CirkdOptions(DistillationSection):
    """Cross-image relational distillation (Yang et al., CVPR 2022), with instances as regions.

    Relations are rows of a softmax over the cosines between voxels, of the crops of a batch, and to what the
    teacher showed in earlier batches: voxels, and means of instances.
    """

    term: ClassVar[str] = "kdseg.training.losses.crossing:CirkdTerm"
    name: Literal["cirkd"] = "cirkd"
    level: Level = 0
    """Decoder level: 0 is the finest, -1 the bottleneck."""
    batch: Weight = 1.0
    """Of the relations between the voxels of all crops of a batch; of processes that train together, each relates its
    own crops."""
    pixel: Weight = 0.1
    """Of the relations to voxels of earlier batches."""
    region: Weight = 0.1
    """Of the relations to instances of earlier batches."""
    temperature: Positive = 0.1
    """Cosines are divided by it."""
    tokens: Count = 256
    """Voxels of a crop that are related, and of a batch that are remembered."""
    regions: Count = 64
    """Instances of a batch that are remembered."""
    memory: Count = 32
    """Batches that are remembered."""
    memory_start: Annotated[int, Field(ge=0)] = 50
    """Batches seen before the relations to earlier ones count."""
    min_size: Count = 32
    """Voxels; smaller instances are not remembered."""

    @property
    def taps_used(self) -> tuple[Tap, ...]:
        """The level."""
        return (self.level,)

    @property
    def idle_batches(self) -> int:
        """Those that are seen before relations to earlier ones count, if there are no others."""
        return 0 if self.batch else self.memory_start

    @property
    def late_batches(self) -> int:
        """Those that are seen before the relations to earlier ones count."""
        return self.memory_start if self.pixel or self.region else 0

    @property
    def instances_used(self) -> bool:
        """Whether the relations to instances have a weight."""
        return self.region > 0

    @model_validator(mode="after")
    def _has_a_part(self) -> Self:
        if not self.batch + self.pixel + self.region:
            raise ValueError("none of `batch`, `pixel` and `region` has a weight: give one of them a weight above 0")
        return self
