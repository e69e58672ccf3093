"""Base of the options of all terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from kdseg.config.base import Section, Weight

Tap = Literal["embedding", "affinities"] | int
"""Output of a network that a term looks at: a head, or a decoder level counted from the finest (0) or from the
bottleneck (-1)."""
Level = int
"""A decoder level: 0 is the finest, -1 the bottleneck."""


class TermSection(Section):
    """Weight and schedule of one summand of the loss."""

    if TYPE_CHECKING:
        name: str
    term: ClassVar[str]
    """Module and class of the term: `package.module:Class`; imported when it is trained."""
    from_teacher: ClassVar[bool] = False
    """Whether the term compares with a teacher."""
    weight: Weight = 1.0
    start: Annotated[int, Field(ge=0)] = 0
    """Steps before which the weight is 0."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps, after `start`, over which the weight grows linearly from 0."""
    decay: Literal["none", "linear", "cosine"] = "none"
    """Fall of the weight, from the end of the warm-up to 0 at the last step."""

    @property
    def taps_used(self) -> tuple[Tap, ...]:
        """Outputs of both networks that the term looks at."""
        return ()

    @property
    def truth_used(self) -> bool:
        """Whether the term compares with ground truth."""
        return not self.from_teacher

    @property
    def instances_used(self) -> bool:
        """Whether the term needs the connected pieces of neurons in a crop."""
        return False

    @property
    def idle_batches(self) -> int:
        """Batches that pass before the term begins to act, whatever its weight."""
        return 0

    @property
    def late_batches(self) -> int:
        """Batches that pass before all of its parts act."""
        return self.idle_batches

    @property
    def features_used(self) -> bool:
        """Whether the term needs features, which a stored teacher does not have."""
        return any(isinstance(tap, int) for tap in self.taps_used)


class DistillationSection(TermSection):
    """Options of a term that compares the student with a teacher."""

    from_teacher: ClassVar[bool] = True
