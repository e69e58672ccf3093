"""Prediction, segmentation, evaluation and the report."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kdseg.config.addresses import Address
from kdseg.config.base import Count, Extent, Probability, Section
from kdseg.config.data import RoiOptions


class PredictOptions(Section):
    """Affinities of a volume, block by block."""

    block: Extent = (256, 256, 256)
    """Voxels that one task predicts and writes; a multiple of the shard. Does not change the result. With `fused` it
    is `fragments.block`."""
    tile: Extent = (128, 128, 128)
    """Voxels that one forward pass yields, on a grid anchored at the origin; the block is a multiple. `kdseg tune`
    finds the fastest for a network and a memory; another tile may change the last bits."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    average: Literal["none", "flips", "all"] = "none"
    """Test-time augmentation: affinities are the mean over a tile's 8 mirror images, or these with quarter turns (16,
    or 48 where voxels are cubes): better, and more than so many times slower."""
    fused: bool = False
    """Make the fragments of a block while its affinities are in memory, and never store these: saves a byte per
    voxel and offset, and costs the prediction of the fragments' halos. Same fragments and edges, to the byte."""

    @model_validator(mode="after")
    def _whole_tiles(self) -> Self:
        if any(b % t for b, t in zip(self.block, self.tile, strict=True)):
            raise ValueError(f"predict.block {self.block} must be a multiple of predict.tile {self.tile}")
        return self


class WatershedOptions(Section):
    """Seeded watershed on the nearest affinities."""

    method: Literal["watershed"] = "watershed"
    boundary: Probability = 0.5
    """Voxels whose mean affinity to both neighbours along an axis is at or below this are boundary."""
    seeds: Literal["distance", "maxima"] = "distance"
    """Maxima of the distance to the next boundary voxel, or of the smoothed mean affinity."""
    seed_distance: Count = 5
    """Smallest distance between two seeds that see each other, in voxels of the finest axis."""
    per_section: bool = False
    """Flood each section alone (coarse z): fragments are flat, and no halo along z is read."""


class MutexOptions(Section):
    """Mutex watershed (Wolf et al. 2018): nearest affinities attract, longer ones repel."""

    method: Literal["mutex"] = "mutex"
    strides: Extent = (1, 1, 1)
    """Repulsive edges are used at every such voxel only."""
    bias: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """Added to the attractive affinities: more merges above 0."""


class WaterzOptions(Section):
    """waterz's own watershed on the nearest affinities."""

    method: Literal["waterz"] = "waterz"
    low: Probability = 0.0001
    high: Probability = 0.9999


Watershed = Annotated[WatershedOptions | MutexOptions | WaterzOptions, Field(discriminator="method")]


class FragmentsOptions(Section):
    """Supervoxels per block of a canonical grid."""

    block: Extent = (128, 128, 128)
    """Grid cell in voxels; a multiple of the shard. Fragments are a function of it."""
    halo: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (16, 16, 16)
    """Voxels read around a cell, so that its fragments continue across its faces."""
    watershed: Watershed = WatershedOptions()
    premerge: Probability | None = None
    """Merge the fragments of a block, with its halo, by mean affinity (waterz) up to this score: fewer of them."""
    dust: Annotated[int, Field(ge=0)] = 0
    """Fragments of fewer voxels are dropped."""
    least_mean: Probability = 0.0
    """Fragments whose voxels' mean affinity is lower are dropped; a voxel counts with its weakest axis."""


class EdgesOptions(Section):
    """The region graph: affinity sums and contact counts between fragments."""

    block: Extent = (128, 128, 128)
    """Voxels per task and table; `agglomerate.chunk` is a multiple. Does not change the segmentation."""
    histograms: bool = False
    """Count the affinities of each edge by value, too, for scores that are quantiles."""
    long_range: bool = False
    """Add up the affinities of all offsets between fragments that touch, instead of the nearest ones."""


_NOT_REDUCIBLE = {
    "sum": "a sum of affinities",
    "contact": "the number of contacts",
    "size": "a score that depends on the size of the regions",
    "top": "the mean of the best affinities only",
}
"""Scores known from elsewhere that no blockwise agglomeration can be exact with."""


class AgglomerateOptions(Section):
    """Merging fragments, best first; the score of an edge is 1 − mean affinity, or 1 − a quantile of them."""

    engine: Literal["exact", "waterz"] = "exact"
    """`exact`: our own, on the region graph, any volume; `waterz`: one-shot, the volume in one block."""
    score: str = "mean"
    """`mean`, or `quantile50` for the median, up to `quantile99`; `quantile0` is the least affinity. Quantiles need
    `edges.histograms`."""
    thresholds: Annotated[tuple[Probability, ...], Field(min_length=1)] = tuple(
        round(0.05 * k, 2) for k in range(1, 20)
    )
    """Scores that the sweep tries; the dendrogram reaches up to the last one."""
    chunk: Extent = (512, 512, 512)
    """Leaf of the agglomeration tree in voxels, a multiple of `fragments.block` and `edges.block`, or at least the
    volume. Does not change the segmentation; memory is about 300 bytes per edge of a leaf."""
    edits: Address | None = None
    """CSV file of a user's merges and splits, applied whenever the stage runs; see docs/proofreading.md."""

    @property
    def percent(self) -> int | None:
        """Quantile that is the score; none: the mean."""
        return int(self.score.removeprefix("quantile")) if self.score != "mean" else None

    @model_validator(mode="after")
    def _reducible(self) -> Self:
        kind = self.score.lower().split("_")[0].rstrip("0123456789")
        if kind in _NOT_REDUCIBLE:
            raise ValueError(
                f"agglomerate.score {self.score!r}: {_NOT_REDUCIBLE[kind]} may make an edge better by merging "
                "elsewhere (it is not reducible), so that no part of a volume can be decided without the rest; use "
                "`mean` or a quantile, e.g. `quantile50`"
            )
        if self.score != "mean" and not re.fullmatch(r"quantile\d{1,2}", self.score):
            raise ValueError(f"agglomerate.score is `mean`, or `quantile0` to `quantile99`; got {self.score!r}")
        if self.score != "mean" and self.engine == "waterz":
            raise ValueError(f"agglomerate.engine waterz takes the mean, not the score {self.score!r}: use `exact`")
        return self

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        expect_ascending(self.thresholds)
        return self


class SegmentOptions(Section):
    """The segmentation at one threshold, as a volume."""

    block: Extent = (128, 128, 128)
    """Voxels per task; a multiple of the shard. Does not change the result."""
    threshold: Probability | None = None
    """Fixed threshold; default: the one of least VOI on `evaluate.tune_on`, or in validation where that is left out."""


VALIDATED = tuple(round(0.05 * k, 2) for k in range(1, 20))
"""Thresholds of which validation takes the best, by the mean of the nearest affinities."""


class EvaluateOptions(Section):
    """Scores against ground truth."""

    volumes: tuple[str, ...]
    """Names of the volumes to score on; one without labels is segmented alone, and how well is not known."""
    tune_on: str | None = None
    """Name of the labelled volume on which each model's threshold is chosen; default: on its validation crop, by its
    training."""
    models: tuple[str, ...]
    """Names of the models to score, in the order of the report."""
    dust: Annotated[int, Field(ge=0)] = 0
    """Ground-truth objects of fewer voxels are left out."""
    thresholds: Annotated[tuple[Probability, ...], Field(min_length=1)] | None = None
    """Scores that the sweep tries, ascending, up to the last one of `agglomerate.thresholds`; default: those."""
    tune_roi: RoiOptions | None = None
    """Part of the labels of `tune_on`, in voxels from their first one: the threshold is chosen on it, and the sweep
    scores the rest of the volume at it, too. Default: all of the volume."""
    bootstrap: Annotated[int, Field(ge=0)] = 0
    """Resamples of blocks for 95 % intervals of the scores; 0: none."""
    block: Extent = (128, 128, 128)
    """Voxels per task, and per unit of the bootstrap. Does not change the scores."""

    @property
    def tuned(self) -> tuple[str, ...]:
        """Name of the volume that thresholds are chosen on, if there is one."""
        return () if self.tune_on is None else (self.tune_on,)

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        expect_ascending(self.thresholds or ())
        if self.tune_roi is not None and self.tune_on is None:
            raise ValueError("evaluate.tune_roi is a part of the volume `tune_on`: name that, too")
        return self


def expect_ascending(thresholds: tuple[float, ...]) -> None:
    """Refuse thresholds in another order, or twice.

    Raises:
        ValueError: if they do not ascend.
    """
    if any(a >= b for a, b in pairwise(thresholds)):
        raise ValueError(f"thresholds must ascend without repeats, got {list(thresholds)}")
