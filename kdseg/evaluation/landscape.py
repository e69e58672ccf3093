"""Scores of many ways to segment one part of a volume, in memory, and the best of them over several parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.config import EdgesOptions
from kdseg.errors import DataError
from kdseg.evaluation.candidates import Candidate
from kdseg.evaluation.grains import edges_of, fragments_of, grains
from kdseg.evaluation.metrics.contingency import (
    Contingency,
    block_contingency,
    by_section,
    drop_small_labels,
    own_background,
    relabel,
)
from kdseg.evaluation.metrics.scores import scores
from kdseg.evaluation.thresholds import tables_at
from kdseg.geometry import Offsets, Roi, VoxelSize, in_sections
from kdseg.segmentation.agglomeration.linkage import agglomerate
from kdseg.segmentation.graph.details import channels_used, detailed_edges

SCORES = ("voi_split", "voi_merge", "voi", "arand")
"""Columns of a landscape: bits, bits, bits, adapted Rand error; 0 is best."""
_ROUNDING = 1e-9  # bits that sums of logarithms are rounded by, at most


class Part(NamedTuple):
    """A part of a labelled volume, in memory; it is segmented as if it were a volume.

    Attributes:
        affinities: uint8 (c, z, y, x), in 1/255, all channels.
        offsets: one ``(z, y, x)`` step in voxels per channel.
        labels: integers (z, y, x), ground truth; 0 is left out of the scores.
        tissue: bool (z, y, x), False where there is none; None: all of it.
        voxel_size: nm.
    """

    affinities: NDArray[np.uint8]
    offsets: Offsets
    labels: NDArray[np.integer]
    tissue: NDArray[np.bool_] | None
    voxel_size: VoxelSize


class Best(NamedTuple):
    """A choice from landscapes.

    Attributes:
        candidate: number of it.
        threshold: number of it.
        value: bits; the mean, or the worst, of its VOI over the parts.
    """

    candidate: int
    threshold: int
    value: float


def score_candidates(
    part: Part, tried: Sequence[Candidate], thresholds: Sequence[float], *, long_range: bool, dust: int
) -> NDArray[np.float64]:
    """Return the scores of candidates that share a flooding: those of the stages, run on the part alone.

    All that is counted voxel by voxel is counted once, of `grains`: overlaps with labels and the region graph. Those of
    fragments are sums of these rows, once for candidates of equal fragments; the agglomeration is done for each. About
    70 bytes per voxel.

    Args:
        part: what to segment.
        tried: of one of `candidates.groups`.
        thresholds: scores in 0..1, ascending.
        long_range: of `edges`.
        dust: labels of fewer voxels of the part are left out.

    Returns:
        float64 (candidates, 1 + thresholds, `SCORES`); first of the fragments, before any merge.

    Raises:
        DataError: if no voxel is left to score.
    """
    options = [one.fragments for one in tried]
    ids, found = grains(part.affinities, part.offsets, options, part.tissue, part.voxel_size)
    flat = in_sections(part.offsets)
    labels = by_section(part.labels) if flat else part.labels
    overlaps = drop_small_labels(block_contingency(ids, labels), dust)
    if not overlaps.count.size:
        raise DataError(f"no label of {dust} voxels or more in a part of {part.labels.shape}: take another part")
    how = EdgesOptions(long_range=long_range, histograms=any(one.percent is not None for one in tried))
    channels = channels_used(part.offsets, how)
    offsets = tuple(part.offsets[c] for c in channels)
    owned = Roi((0, 0, 0), ids.shape).slices()
    edges, details = detailed_edges(ids, part.affinities[channels], offsets, owned, how)
    del ids
    out = np.empty((len(tried), 1 + len(thresholds), len(SCORES)))
    for one in dict.fromkeys(options):
        fragment = fragments_of(found, edges, details and details.touch, one)
        table = relabel(overlaps, found.name, fragment)
        if flat:
            table = _own_background(table, labels)
        own, more = edges_of(found, edges, details, fragment)
        for k in (k for k, other in enumerate(options) if other == one):
            merges = agglomerate(own, thresholds[-1], details=more, percent=tried[k].percent)
            out[k] = [_row(at) for at in (table, *tables_at(table, merges, thresholds))]
    return out


def _own_background(table: Contingency, labels: NDArray[np.integer]) -> Contingency:
    """Return the table with a background of its own in each section; ``labels`` are those of `by_section`."""
    section = np.zeros(int(labels.max(initial=0)) + 1, np.int64)
    section[labels.ravel()] = np.repeat(np.arange(len(labels)), labels[0].size)
    segment = own_background(table.segment, section[table.label])
    order = np.lexsort((table.label, segment))
    return Contingency(segment[order], table.label[order], table.count[order])


def choose(landscape: NDArray[np.float64], by: Literal["mean", "worst"]) -> Best:
    """Return the candidate and the threshold of least VOI over the parts.

    Of those that rounding cannot tell apart, it is the first.

    Args:
        landscape: float64 (parts, candidates, thresholds, `SCORES`).
        by: the mean over the parts, each counting alike, or the worst of them.
    """
    voi = landscape[..., SCORES.index("voi")]
    over = voi.mean(axis=0) if by == "mean" else voi.max(axis=0)
    first = int(np.flatnonzero(over <= over.min() + _ROUNDING)[0])
    candidate, threshold = divmod(first, over.shape[1])
    return Best(candidate, threshold, float(over[candidate, threshold]))


def _row(table: Contingency) -> list[float]:
    found = scores(table)
    return [float(getattr(found, name)) for name in SCORES]
