"""Search for the options of the post-processing that suit a network and a tissue best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from kdseg.config.base import Count, Extent, Probability, Section, Step
from kdseg.config.segmentation import AgglomerateOptions, FragmentsOptions, expect_ascending

NO_TUNING = """the configuration has no section `tune_segmentation`: add one that names parts of labelled volumes, e.g.
tune_segmentation:
  regions: [{ volume: tune }]
  boundary: [0.3, 0.5, 0.7]
  score: [mean, quantile50]
docs/segmentation.md says more"""
"""Message to a user who asks for the search without having configured one."""

SEEDED = ("boundary", "seeds", "seed_distance")
"""Options of the seeded watershed alone."""
_STEP = 0.02
"""Between thresholds, where none are given."""

Least = Annotated[int, Field(ge=0)]
LEAST_SIDE = 64
"""Voxels along each axis below which the best threshold of a part is largely a matter of luck."""


class TuneRegionOptions(Section):
    """A part of a labelled volume that is segmented and scored by itself."""

    volume: str
    """Name of a labelled volume."""
    offset: Step | None = None
    """First voxel, counted from the first labelled one; default: the part lies in the middle."""
    shape: Extent | None = None
    """Extent in voxels, without `offset` cut to what is labelled; default: all that is labelled."""

    @model_validator(mode="after")
    def _whole_box(self) -> Self:
        if self.offset is not None and self.shape is None:
            raise ValueError(f"the part of {self.volume!r} has an offset but no shape: give both, or the shape alone")
        return self


class TuneSegmentationOptions(Section):
    """Post-processing options to try; a list that is left out keeps what the configuration says.

    All combinations are tried, each at every threshold, and the configuration as it is in any case.
    """

    regions: Annotated[tuple[TuneRegionOptions, ...], Field(min_length=1)]
    """Parts of labelled volumes, several if possible, as large as possible."""
    boundary: tuple[Probability, ...] = ()
    """Values of `fragments.watershed.boundary`."""
    seeds: tuple[Literal["distance", "maxima"], ...] = ()
    """Values of `fragments.watershed.seeds`."""
    seed_distance: tuple[Count, ...] = ()
    """Values of `fragments.watershed.seed_distance`."""
    halo: tuple[tuple[Least, Least, Least], ...] = ()
    """Values of `fragments.halo`; matters for parts of more than one `fragments.block`."""
    dust: tuple[Least, ...] = ()
    """Values of `fragments.dust`."""
    least_mean: tuple[Probability, ...] = ()
    """Values of `fragments.least_mean`."""
    score: tuple[str, ...] = ()
    """Values of `agglomerate.score`."""
    thresholds: Annotated[tuple[Probability, ...], Field(min_length=1)] | None = None
    """Thresholds to score, ascending, up to the last one of `agglomerate.thresholds`; default: every 0.02 up to it."""
    by: Literal["mean", "worst"] = "mean"
    """Choose what has the least VOI on average over the parts, or the least in the worst of them."""
    candidates: Count = 64
    """Combinations to try. Of more, watersheds are drawn by `seed`, one at least, each with all of `dust`, `least_mean`
    and `score`, which cost little; the configuration as it is comes besides."""
    seed: Least = 0
    """Of the draw."""
    apply: Literal["none", "own", "shared"] = "none"
    """Options that segmentations are made with: those of the configuration; for each model those that suit it best; or
    for all models those that suit all of `evaluate.models` best, taken together."""
    least_side: Count = LEAST_SIDE
    """Voxels of the finest axis over which the labels of a part reach at least, along each axis. The best threshold of
    a small part is that of a few neurons, and rather too high for a large volume, in which merges spread: see
    docs/segmentation.md. Lower it only where no larger part is labelled."""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        expect_ascending(self.thresholds or ())
        return self

    @model_validator(mode="after")
    def _once(self) -> Self:
        for name in ("regions", "boundary", "seeds", "seed_distance", "halo", "dust", "least_mean", "score"):
            values = getattr(self, name)
            if any(one in values[:k] for k, one in enumerate(values)):
                raise ValueError(f"each value of {name} may be given once, got {list(values)}")
        return self

    def expect_possible(self, fragments: FragmentsOptions, agglomerate: AgglomerateOptions) -> None:
        """Refuse values that do not go with the rest of the configuration.

        Raises:
            ValueError: if a list is of another method than the configuration's, a score cannot be, or the dendrogram
                does not reach the thresholds.
        """
        if agglomerate.engine != "exact":
            raise ValueError(
                f"tune_segmentation tries the engine `exact`, but agglomerate.engine is {agglomerate.engine!r}: set it "
                "to exact"
            )
        given = [name for name in SEEDED if getattr(self, name)]
        method = fragments.watershed.method
        if given and method != "watershed":
            raise ValueError(
                f"tune_segmentation.{given[0]} is an option of the method `watershed`, but fragments.watershed.method "
                f"is {method!r}: leave it out"
            )
        for score in self.score:
            try:
                AgglomerateOptions.model_validate({**agglomerate.model_dump(), "score": score})
            except ValidationError as error:
                problem = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f"tune_segmentation.score: {problem}") from None
        tried, last = self.tried_thresholds(agglomerate), agglomerate.thresholds[-1]
        if not tried or tried[-1] > last:
            raise ValueError(
                f"tune_segmentation.thresholds are {list(tried)}, the dendrogram reaches to the last of "
                f"agglomerate.thresholds, {last}: change one of them"
            )

    def expect_large(self, shapes: Mapping[str, Extent | None]) -> None:
        """Refuse parts that are too small, as far as the configuration tells.

        Args:
            shapes: extents of volumes, by name; None where only the file knows.

        Raises:
            ValueError: if one is.
        """
        for region in self.regions:
            shape = region.shape or shapes.get(region.volume)
            # how coarse z is, only the data tell
            if shape is not None and min(shape[1:]) < self.least_side:
                raise ValueError(
                    f"tune_segmentation.regions has a part of {region.volume!r} of {shape} voxels, less than "
                    f"least_side {self.least_side}: take a larger part, or lower it if there is none"
                )

    def tried_thresholds(self, agglomerate: AgglomerateOptions) -> tuple[float, ...]:
        """Return the thresholds to score."""
        steps = int(agglomerate.thresholds[-1] / _STEP + 1e-6)
        return self.thresholds or tuple(round(_STEP * k, 2) for k in range(1, steps + 1))
