"""Expected run length: how far one can follow a neuron before the segmentation goes wrong.

Needs skeletons of the ground truth instead of its voxels, and the segment at each of their nodes, which the
caller looks up. Skeletons are not made here from voxels: the fitting libraries are under the GPL or would be a
heavy dependency; tracings of people and the skeletons of a proof-read volume come as files.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from kdseg.errors import DataError, ShapeError


class Skeletons(NamedTuple):
    """Skeletons of any number of neurons.

    Attributes:
        position: float64 (n, 3), (z, y, x) of the nodes in nm.
        neuron: uint64 (n,), which neuron a node belongs to.
        edge: int64 (m, 2), rows of the two nodes of each edge; both of one neuron.
    """

    position: NDArray[np.float64]
    neuron: NDArray[np.uint64]
    edge: NDArray[np.int64]


class RunLengths(NamedTuple):
    """Expected run length, and what becomes of the edges. Each edge is exactly one of the four kinds.

    Attributes:
        erl: expected run length in nm, 0..``best``.
        best: the expected run length of a segmentation without errors.
        nerl: ``erl / best``, in 0..1; 1 is best.
        correct: nm of edges with both ends in one segment that does not merge.
        split: nm of edges whose ends are in different segments.
        merged: nm of edges within a segment that merges neurons.
        omitted: nm of edges with an end in background.
        neuron: uint64 (k,), the neurons that have edges, ascending.
        length: float64 (k,), of each in nm.
        run: float64 (k,), expected run length within each, in nm, 0..``length``.
        merging: uint64, the segments that merge neurons, ascending.
    """

    erl: float
    best: float
    nerl: float
    correct: float
    split: float
    merged: float
    omitted: float
    neuron: NDArray[np.uint64]
    length: NDArray[np.float64]
    run: NDArray[np.float64]
    merging: NDArray[np.uint64]


def run_lengths(
    skeletons: Skeletons,
    segments: NDArray[np.uint64],
    *,
    tolerance: int = 0,
    runs: Literal["segment", "path"] = "segment",
) -> RunLengths:
    """Return the expected run length of a segmentation.

    Januszewski et al. (2018), "High-precision automated reconstruction of neurons with flood-filling networks":
    the expected length of the correct run at a random point of the skeletons, so the sum of squared lengths of
    runs over the sum of all lengths. A segment with nodes of two neurons merges them, and all edges within it
    have a run of 0. NERL is the share of what a segmentation without errors reaches.

    Args:
        skeletons: of the ground truth.
        segments: uint64 (n,), the segment at each node; 0 is background: its edges are omitted.
        tolerance: a segment counts as being in a neuron from ``tolerance + 1`` nodes on, so that a node
            beside the membrane makes no merge. Edges of a merging segment are merged in every neuron.
        runs: what one run is. "segment": all correct edges of one neuron in one segment, also where it comes
            back after an error, as funlib.evaluate; "path": correct edges that hang together.

    Raises:
        DataError: if all edges together have no length.
    """
    _check(skeletons, segments, tolerance)
    u, v = skeletons.edge.T
    length = np.linalg.norm(skeletons.position[u] - skeletons.position[v], axis=1)
    total = float(length.sum())
    if total == 0:
        raise DataError("nothing to score: the skeletons have no length")
    merging = _merging(skeletons.neuron, segments, tolerance)
    omitted = (segments[u] == 0) | (segments[v] == 0)
    split = ~omitted & (segments[u] != segments[v])
    merged = ~omitted & ~split & np.isin(segments[u], merging)
    correct = ~omitted & ~split & ~merged
    run = _runs(skeletons, segments, correct, runs)
    neuron, of_edge = np.unique(skeletons.neuron[u], return_inverse=True)
    lengths: NDArray[np.float64] = np.bincount(of_edge, length, neuron.size).astype(np.float64)
    run_length = np.bincount(run, length[correct])
    of_run = np.zeros(run_length.size, np.intp)
    of_run[run] = of_edge[correct]
    squares = np.bincount(of_run, run_length**2, neuron.size)
    erl, best = float(squares.sum()) / total, float((lengths**2).sum()) / total
    with_length = np.where(lengths > 0, lengths, 1)
    return RunLengths(
        erl=erl,
        best=best,
        nerl=erl / best,
        correct=float(length[correct].sum()),
        split=float(length[split].sum()),
        merged=float(length[merged].sum()),
        omitted=float(length[omitted].sum()),
        neuron=neuron,
        length=lengths,
        run=squares / with_length,
        merging=merging,
    )


def join(first: Skeletons, *others: Skeletons) -> Skeletons:
    """Return skeletons as one table; nodes of the same neuron id are of one neuron."""
    parts = (first, *others)
    start = np.cumsum([0, *(len(part.neuron) for part in parts)])
    return Skeletons(
        np.concatenate([part.position for part in parts]),
        np.concatenate([part.neuron for part in parts]),
        np.concatenate([part.edge + n for part, n in zip(parts, start, strict=False)]),
    )


def _merging(neuron: NDArray[np.uint64], segments: NDArray[np.uint64], tolerance: int) -> NDArray[np.uint64]:
    """Return the segments with more than ``tolerance`` nodes in each of two neurons or more."""
    pair, nodes = np.unique(np.stack([segments, neuron], 1), axis=0, return_counts=True)
    segment, neurons = np.unique(pair[nodes > tolerance, 0], return_counts=True)
    merging: NDArray[np.uint64] = segment[(neurons > 1) & (segment != 0)]
    return merging


def _runs(
    skeletons: Skeletons, segments: NDArray[np.uint64], correct: NDArray[np.bool_], runs: str
) -> NDArray[np.intp]:
    """Return a number per correct edge that is the same for edges of one run."""
    u, v = skeletons.edge[correct].T
    if runs == "segment":
        pairs = np.stack([skeletons.neuron[u], segments[u]], 1)
        return np.asarray(np.unique(pairs, axis=0, return_inverse=True)[1].ravel(), np.intp)
    n = skeletons.neuron.size
    graph = coo_array((np.ones(u.size, np.bool_), (u, v)), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1][u], np.intp)


def _check(skeletons: Skeletons, segments: NDArray[np.uint64], tolerance: int) -> None:
    n = skeletons.neuron.size
    if skeletons.position.shape != (n, 3) or skeletons.edge.ndim != 2 or skeletons.edge.shape[1] != 2:
        raise ShapeError(
            f"skeletons need positions (n, 3), neurons (n,) and edges (m, 2), got {skeletons.position.shape}, "
            f"{skeletons.neuron.shape} and {skeletons.edge.shape}"
        )
    if segments.shape != (n,):
        raise ShapeError(f"{n} nodes need as many segments, got {segments.shape}")
    if segments.dtype != np.uint64 or skeletons.neuron.dtype != np.uint64:
        raise DataError(f"segments and neurons must be uint64, got {segments.dtype} and {skeletons.neuron.dtype}")
    if tolerance < 0:
        raise DataError(f"the tolerance must be 0 nodes or more, got {tolerance}")
    if not np.isfinite(skeletons.position).all():
        raise DataError("a skeleton has a node whose position is not finite")
    u, v = skeletons.edge.T
    if skeletons.edge.size and not (skeletons.edge.min() >= 0 and skeletons.edge.max() < n):
        raise DataError(f"an edge names a node beyond the {n} there are")
    if (skeletons.neuron[u] != skeletons.neuron[v]).any():
        raise DataError("an edge joins nodes of two neurons")
