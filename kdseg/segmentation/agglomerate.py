"""Greedy agglomeration of a region graph by mean affinity, exact and independent of the order of the edges.

The best edge is merged until none is left above the threshold; edges of the merged region to a common
neighbour are added up, as in waterz. Here the order is *strict*: edges are compared by their mean affinity
as a fraction of integers, and equal ones by the smallest original pair of fragments that the edge contains.
A sum of two edges is never better than the better one of them (the linkage is *reducible*), hence scores of
successive merges never fall, and stopping early is the same as a stricter threshold.

waterz itself, for a volume in one block, is called from here too, and from nowhere else.
"""

from __future__ import annotations

import ctypes
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import ConfigError, DataError, ShapeError
from kdseg.geometry import Offsets
from kdseg.segmentation.contraction import Keys, build, merge_all, reaches
from kdseg.segmentation.links import nearest_links
from kdseg.segmentation.rag import Edges

_DENOMINATOR = 10**6  # thresholds are decimals: 0.3 is 3/10, not the nearest binary number


class Dendrogram(NamedTuple):
    """Merges in the order in which they were made; scores ``1 - affinity_sum / (255 * contact)`` never fall.

    Attributes:
        a: uint64 (m,), smallest fragment id of the region that is kept; the merged region's name.
        b: uint64 (m,), smallest fragment id of the other region; ``a < b``.
        affinity_sum: uint64 (m,), summed affinities of all voxel pairs between both, in 1/255.
        contact: uint64 (m,), number of these pairs.
    """

    a: NDArray[np.uint64]
    b: NDArray[np.uint64]
    affinity_sum: NDArray[np.uint64]
    contact: NDArray[np.uint64]


def agglomerate(edges: Edges, threshold: float) -> Dendrogram:
    """Merge regions, best mean affinity first, while the score is at most ``threshold``.

    The score of an edge is ``1 - affinity_sum / (255 * contact)``; it is compared exactly, with the
    threshold rounded to the simplest fraction (denominators up to a million). Memory is about 100 bytes
    per edge. Equals waterz' one-shot ``OneMinus<MeanAffinity>`` up to the order of equal scores.

    Args:
        edges: the region graph; rows in any order.
        threshold: largest score that is merged, in 0..1.

    Returns:
        The merges. The same for every order of the rows.

    Raises:
        ConfigError: if the threshold is not in 0..1.
        DataError: if an edge joins a fragment to itself, repeats, or has more affinity than its contact
            allows.
    """
    numerator, denominator = _least_mean(threshold)
    order = np.lexsort((edges.v, edges.u))
    u, v, sums, contacts = (np.ascontiguousarray(column[order]) for column in edges)
    _check(u, v, sums, contacts)
    names = np.unique(np.concatenate((u, v)))
    ends = np.stack((np.searchsorted(names, u), np.searchsorted(names, v)), axis=1)
    best_first = np.argsort(-(sums / contacts), kind="stable")
    heap = best_first[reaches(sums[best_first], contacts[best_first], numerator, denominator)]
    keys = Keys(sums / contacts, sums.copy(), contacts.copy(), np.arange(u.size))
    graph = build(ends, sums, contacts, names.size)
    merges, merged_sums, merged_contacts = merge_all(graph, keys, heap, numerator, denominator)
    return Dendrogram(names[merges[:, 0]], names[merges[:, 1]], merged_sums, merged_contacts)


def cut(dendrogram: Dendrogram, threshold: float) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the merges up to ``threshold``, as the two columns of ids that `lut.lut` joins.

    For a threshold at most that of the agglomeration, the result is the one of agglomerating with it.

    Args:
        dendrogram: merges in order.
        threshold: largest score that is merged, in 0..1.

    Raises:
        ConfigError: if the threshold is not in 0..1.
    """
    numerator, denominator = _least_mean(threshold)
    merged = reaches(dendrogram.affinity_sum, dendrogram.contact, numerator, denominator)
    return dendrogram.a[merged], dendrogram.b[merged]


def _least_mean(threshold: float) -> tuple[np.uint64, np.uint64]:
    """Return the least ``affinity_sum / contact`` that is merged, as a fraction."""
    if not 0 <= threshold <= 1:
        raise ConfigError(f"an agglomeration threshold is a score in 0..1, got {threshold}")
    least = 255 * (1 - Fraction(threshold).limit_denominator(_DENOMINATOR))
    return np.uint64(least.numerator), np.uint64(least.denominator)


def _check(
    u: NDArray[np.uint64], v: NDArray[np.uint64], sums: NDArray[np.uint64], contacts: NDArray[np.uint64]
) -> None:
    if np.any(u >= v):
        raise DataError("edges must have u < v; build them with rag.block_edges")
    if np.any((u[1:] == u[:-1]) & (v[1:] == v[:-1])):
        raise DataError("edges must name each pair of fragments once; add up tables with rag.merge")
    if np.any(contacts == 0) or np.any(sums > np.uint64(255) * contacts):
        raise DataError("edges must have a contact of at least 1 and at most 255 of affinity per contact")


def waterz_segments(
    affinities: NDArray[np.uint8],
    fragments: NDArray[np.uint64],
    offsets: Offsets,
    thresholds: Sequence[float],
) -> list[NDArray[np.uint64]]:
    """Return the segmentations of one block by waterz, ``OneMinus<MeanAffinity>``, one per threshold.

    Holds the interpreter's lock and needs about 40 bytes per voxel and per threshold 8 more.

    Args:
        affinities: uint8 (c, z, y, x), in 1/255; only the nearest ones are used.
        fragments: uint64 (z, y, x); 0 is background. Left as they are.
        offsets: one ``(z, y, x)`` step in voxels per channel.
        thresholds: scores in 0..1, in any order.

    Returns:
        uint64 (z, y, x) per threshold, in the order given; a segment's id is its smallest fragment id.

    Raises:
        ConfigError: if waterz is not installed, or a threshold is not in 0..1.
        ShapeError: if affinities and fragments differ in shape.
    """
    for threshold in thresholds:
        _least_mean(threshold)
    if affinities.shape[1:] != fragments.shape:
        raise ShapeError(f"affinities {affinities.shape} do not fit fragments {fragments.shape}")
    # waterz' memory follows the largest id
    names, local = np.unique(np.append(fragments.ravel(), np.uint64(0)), return_inverse=True)
    local = local[:-1].reshape(fragments.shape).astype(np.uint64)
    ascending = sorted(set(thresholds))
    by_threshold = {}
    results = _waterz(nearest_links(affinities, offsets), ascending, fragments=local.copy())
    for threshold, segments in zip(ascending, results, strict=True):
        # names ascend, so that the first voxel in the order of names has the smallest one
        representatives = np.zeros(names.size, np.uint64)
        representatives[local.ravel()] = segments.ravel()
        _, smallest, group = np.unique(representatives, return_index=True, return_inverse=True)
        by_threshold[threshold] = names[smallest[group]][local]
    return [by_threshold[threshold] for threshold in thresholds]


def waterz_fragments(links: NDArray[np.uint8], low: float, high: float) -> NDArray[np.uint64]:
    """Return the fragments of waterz' own watershed (Zlateski & Seung 2015, arXiv 1505.00249).

    Args:
        links: uint8 (3, z, y, x), nearest affinities in 1/255, see `links.nearest_links`.
        low: affinities below never join two voxels.
        high: affinities above always do.

    Returns:
        uint64 (z, y, x), 0 where no link of a voxel reaches ``low``.

    Raises:
        ConfigError: if waterz is not installed, or ``low`` is not below ``high``.
    """
    if not low < high:
        raise ConfigError(f"waterz needs low < high, got low = {low} and high = {high}")
    # no score is below 0: the watershed alone
    (fragments,) = _waterz(links, [-1.0], aff_threshold_low=low, aff_threshold_high=high)
    return fragments


def _waterz(links: NDArray[np.uint8], thresholds: list[float], **options: Any) -> list[NDArray[np.uint64]]:
    """Run waterz; it yields one and the same array each time, hence the copies."""
    try:
        import waterz
    except ImportError:
        raise ConfigError(
            "waterz is not installed: run `pip install waterz`, or choose the engine `exact` and the method `watershed`"
        ) from None
    with _silent():
        affinities = links.astype(np.float32) / np.float32(255)
        return [np.array(segments) for segments in waterz.agglomerate(affinities, thresholds, **options)]


@contextmanager
def _silent() -> Iterator[None]:
    """Send what Python and C code write to standard output nowhere."""
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    libc.fflush(None)
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        libc.fflush(None)  # into nowhere, before the descriptor is back
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
