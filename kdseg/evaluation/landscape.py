"""Scores of many ways to segment one part of a volume, in memory, and the best of them over several parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.config import EdgesOptions, FragmentsOptions
from kdseg.errors import DataError
from kdseg.evaluation.candidates import Candidate
from kdseg.evaluation.metrics.contingency import Contingency, block_contingency, by_section, drop_small_labels
from kdseg.evaluation.metrics.scores import scores
from kdseg.evaluation.thresholds import tables_at
from kdseg.geometry import Offsets, Roi, VoxelSize, blocks, in_sections
from kdseg.segmentation.agglomeration.linkage import agglomerate
from kdseg.segmentation.fragments.block import (
    cell_watershed,
    channels_used,
    checked_grid,
    filtered,
    halo_roi,
    unique_ids,
)
from kdseg.segmentation.graph import details
from kdseg.segmentation.graph.details import detailed_edges

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
    """Return the scores of candidates that share a watershed: those of the stages, run on the part alone.

    The watershed is done once for all, the table of fragments against labels and the region graph once for those of
    equal filters, the agglomeration for each. About 60 bytes per voxel.

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
    out = np.empty((len(tried), 1 + len(thresholds), len(SCORES)))
    labels = by_section(part.labels) if in_sections(part.offsets) else part.labels
    for options, ids in _fragments(part, [one.fragments for one in tried]):
        mine = [k for k, one in enumerate(tried) if one.fragments == options]
        table = drop_small_labels(block_contingency(ids, labels), dust)
        if not table.count.size:
            raise DataError(f"no label of {dust} voxels or more in a part of {part.labels.shape}: take another part")
        how = EdgesOptions(long_range=long_range, histograms=any(tried[k].percent is not None for k in mine))
        channels = details.channels_used(part.offsets, how)
        offsets = tuple(part.offsets[c] for c in channels)
        owned = Roi((0, 0, 0), ids.shape).slices()
        edges, more = detailed_edges(ids, part.affinities[channels], offsets, owned, how)
        for k in mine:
            merges = agglomerate(edges, thresholds[-1], details=more, percent=tried[k].percent)
            out[k] = [_row(at) for at in (table, *tables_at(table, merges, thresholds))]
    return out


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


def _fragments(part: Part, wanted: Sequence[FragmentsOptions]) -> Iterator[tuple[FragmentsOptions, NDArray[np.uint64]]]:
    """Yield each of the options, which differ in filters only, with the fragments of the part."""
    shared, volume = wanted[0], Roi((0, 0, 0), part.labels.shape)
    channels = channels_used(shared, part.offsets)
    offsets = tuple(part.offsets[c] for c in channels)
    grid = checked_grid(volume.shape, shared.block)
    cells = []
    for block in blocks(volume, shared.block):
        read_roi = halo_roi(shared, block.roi, volume)
        here = read_roi.slices()
        affinities = np.ascontiguousarray(part.affinities[(slice(None), *here)][channels])
        tissue = None if part.tissue is None else part.tissue[here]
        found = cell_watershed(affinities, offsets, shared, tissue, part.voxel_size)
        cells.append((block, read_roi, affinities, tissue, found))
    for options in dict.fromkeys(wanted):
        ids = np.empty(volume.shape, np.uint64)
        for block, read_roi, affinities, tissue, found in cells:
            core = block.roi.slices(read_roi)
            pieces = filtered(found, affinities, offsets, options, core, tissue)
            ids[block.roi.slices()] = unique_ids(pieces, block.index, grid, shared.block)
        yield options, ids
