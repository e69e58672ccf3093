"""Greedy agglomeration of a region graph by mean affinity or a quantile, exact and independent of the edges' order.

The best edge is merged until none is left above the threshold; edges of the merged region to a common
neighbour are added up, as in waterz. Here the order is *strict*: edges are compared by their score as a
fraction of integers, and equal ones by the largest original pair of fragments that the edge contains
(the edge whose largest pair is smaller comes first: a sum never comes before both of its parts then).
A sum of two edges is never better than the better one of them (the linkage is *reducible*), hence scores of
successive merges never fall, and stopping early is the same as a stricter threshold.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import ConfigError, DataError
from kdseg.segmentation.agglomeration.contraction import (
    CANNOT,
    MUST,
    TOUCH,
    Bins,
    Rows,
    build,
    descending,
    gather,
    merge_all,
    reaches,
    undecided,
)
from kdseg.segmentation.graph.details import Details, any_of_pair
from kdseg.segmentation.graph.edge_table import join, take
from kdseg.segmentation.graph.histograms import Histograms, totals
from kdseg.segmentation.graph.rag import Edges
from kdseg.segmentation.threshold import least_mean

_LARGEST = 2.0**64 * (1 - 1e-9)
"""Of sums over all edges: a little less than overflows, since this is compared with a sum in floats."""


class Dendrogram(NamedTuple):
    """Merges, best first, those of equal score by ``(a, b)``; scores are ``1 - affinity_sum / (255 * contact)``.

    Where the score is a quantile, this is the ``affinity_sum`` of a ``contact`` of 1.

    Attributes:
        a: uint64 (m,), smallest fragment id of the region that is kept; the merged region's name.
        b: uint64 (m,), smallest fragment id of the other region; ``a < b``.
        affinity_sum: uint64 (m,), summed affinities of all voxel pairs between both, in 1/255; 1 for a
            must-link.
        contact: uint64 (m,), number of these pairs; 0 for a must-link.
    """

    a: NDArray[np.uint64]
    b: NDArray[np.uint64]
    affinity_sum: NDArray[np.uint64]
    contact: NDArray[np.uint64]


def agglomerate(
    edges: Edges, threshold: float, *, details: Details | None = None, percent: int | None = None
) -> Dendrogram:
    """Merge regions, best first, while the score is at most ``threshold``.

    The score of an edge is ``1 - affinity_sum / (255 * contact)``, or ``1 - q / 255`` with the smallest
    affinity ``q`` up to which more than ``percent`` of 100 of the voxel pairs lie. It is compared exactly,
    with the threshold as the fraction that it means (`config.base.exact`). Memory is about 150
    bytes per edge, and 30 per entry of a histogram. Equals waterz' one-shot ``OneMinus<MeanAffinity>`` or
    ``OneMinus<HistogramQuantileAffinity>`` (without its initial maximum) up to the order of equal scores.

    Args:
        edges: the region graph; rows in any order, those of one pair are added up.
        threshold: largest score that is merged, in 0..1.
        details: of the edges, where they are not of nearest neighbours only, or for quantiles.
        percent: which quantile is the score, in 0..99; default: the mean.

    Returns:
        The merges. The same for every order of the rows.
    """
    merges, _ = contract(rows_of(edges, details), np.empty(0, np.uint64), threshold, percent)
    return sort_merges([merges])


def rows_of(
    edges: Edges,
    details: Details | None = None,
    *,
    must: NDArray[np.uint64] | None = None,
    cannot: NDArray[np.uint64] | None = None,
) -> Rows:
    """Return edges, and a user's links, as rows to contract.

    Args:
        edges: a contact of 0 says that another table counts the voxels of the pair.
        details: of the edges; without, all are of nearest neighbours. Where only long offsets link two
            fragments, the edge is left out: what does not touch is not merged.
        must: uint64 (m, 2), ``u < v``, pairs that are merged first, whether they touch or not.
        cannot: uint64 (n, 2), ``u < v``, pairs that never come into one segment.

    Raises:
        DataError: if an edge joins a fragment to itself, or has more affinity than its contact allows, or not
            as many pairs of voxels in its histogram; if sums could need more than 64 bits.
    """
    histograms = details and details.histograms
    u, v, sums, contacts = edges
    if np.any(u >= v):
        raise DataError("edges must have u < v; build them with rag.block_edges")
    if np.any(sums > np.uint64(255) * contacts) or np.any(totals(histograms, contacts) != contacts):
        raise DataError(
            "edges must have at most 255 of affinity per contact, and as many contacts as their histograms: the table "
            "is damaged or of another kind"
        )
    if max(float(part.sum(dtype=np.float64)) for part in (sums, contacts)) >= _LARGEST:
        raise DataError("the affinities of all edges add up to more than 64 bits hold: the table is damaged")
    touch = np.ones(u.size, np.bool_) if details is None else details.touch
    rows = Rows(u, v, sums, contacts, u, v, np.where(touch, TOUCH, 0).astype(np.uint8), histograms)
    if not touch.all():
        rows = take(rows, any_of_pair(edges, touch))
    linked = [
        _links(pairs, flag, histograms is not None)
        for pairs, flag in ((must, MUST), (cannot, CANNOT))
        if pairs is not None and len(pairs)
    ]
    return join([rows, *linked]) if linked else rows


def _links(pairs: NDArray[np.uint64], flag: int, with_histograms: bool) -> Rows:
    """Return a user's links as rows without voxels."""
    none, u, v = np.zeros(len(pairs), np.uint64), pairs[:, 0], pairs[:, 1]
    empty = Histograms(np.zeros(len(pairs) + 1, np.int64), np.empty(0, np.uint8), np.empty(0, np.uint64))
    return Rows(u, v, none, none, u, v, np.full(len(pairs), flag, np.uint8), empty if with_histograms else None)


def contract(
    rows: Rows, frozen: NDArray[np.uint64], threshold: float, percent: int | None = None
) -> tuple[Dendrogram, Rows]:
    """Make all merges that are certain whatever lies outside, and return what is left to decide.

    A frozen region has contacts that are not among the rows, so its best partner is not known. The best edge
    is merged where neither end is frozen; where one is, the other one waits, too. Every merge that is made
    so is of two regions of which each is the other's best partner, and these are merged in any order of
    doing things, since merging elsewhere never makes an edge better (the linkage is *reducible*; see also
    Lu, Zlateski & Seung 2021, arXiv 2106.10795).

    Args:
        rows: edges between the regions of a part of the volume. Left as they are.
        frozen: uint64, ascending, regions with contacts outside of the part.
        threshold: largest score that is merged, in 0..1.
        percent: which quantile of the affinities is the score, in 0..99; default: the mean.

    Returns:
        The merges, and the rows between regions that are not finished, each pair once.

    Raises:
        ConfigError: if the threshold or the quantile is out of range.
        DataError: if an edge has no contact though all rows of its pair are here, or the rows have no
            histograms to compute a quantile from.
    """
    numerator, denominator = least_mean(threshold)
    if rows.u.size >= 2**30:
        raise DataError(f"{rows.u.size} edges in one part: at most 2**30; use smaller agglomerate.chunk")
    bins, start = _bins(rows, percent)
    graph = build(rows._replace(histograms=None), frozen, bins, start)
    edges, name = graph.edges, graph.nodes["name"]
    alone = (edges["flags"] & TOUCH > 0) & (edges["contact"] == 0)
    if alone.any():
        u, v = rows.u[alone][0], rows.v[alone][0]
        raise DataError(
            f"no voxels are counted between the fragments {u} and {v}: a table of edges is missing or stale"
        )
    merges = merge_all(graph, rows._replace(histograms=None), numerator, denominator, bins, percent or 0)
    left = edges[undecided(graph)]
    a, b = name[left["a"]], name[left["b"]]
    residual = Rows(
        np.minimum(a, b),
        np.maximum(a, b),
        left["affinity_sum"].copy(),
        left["contact"].copy(),
        rows.last_u[left["last"]],
        rows.last_v[left["last"]],
        left["flags"].copy(),
        None if bins is None else Histograms(*gather(left, bins)),
    )
    return Dendrogram(*merges), residual


def _bins(rows: Rows, percent: int | None) -> tuple[Bins | None, NDArray[np.int32] | None]:
    """Return the histograms as lists to join, and the first entry of each."""
    if percent is None:
        return None, None
    if not 0 <= percent <= 99:
        raise ConfigError(f"a quantile is a percentage in 0..99, got {percent}")
    if rows.histograms is None:
        raise DataError("the edges have no histograms to compute quantiles from: make them with edges.histograms: true")
    start, affinity, pairs = rows.histograms
    if affinity.size >= 2**31:
        raise DataError(f"{affinity.size} entries of histograms in one part: use smaller agglomerate.chunk")
    follow = np.arange(1, affinity.size + 1, dtype=np.int32)
    filled = start[1:] > start[:-1]
    follow[start[1:][filled] - 1] = -1
    return Bins(affinity, pairs.copy(), follow), np.where(filled, start[:-1], -1).astype(np.int32)


def sort_merges(parts: Iterable[Dendrogram]) -> Dendrogram:
    """Return all merges as one dendrogram in its canonical order."""
    a, b, sums, contacts = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((b, a))
    order = order[descending(sums[order], contacts[order])]
    return Dendrogram(a[order], b[order], sums[order], contacts[order])


def cut(dendrogram: Dendrogram, threshold: float) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the merges up to ``threshold``, as the two columns of ids that `lut.lut` joins.

    For a threshold at most that of the agglomeration, the result is the one of agglomerating with it.

    Args:
        dendrogram: merges in order.
        threshold: largest score that is merged, in 0..1.
    """
    numerator, denominator = least_mean(threshold)
    merged = reaches(dendrogram.affinity_sum, dendrogram.contact, numerator, denominator)
    return dendrogram.a[merged], dendrogram.b[merged]
