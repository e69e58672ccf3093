"""Two segmentations of the same voxels: which id of one is which id of the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from kdseg.evaluation.metrics.contingency import Contingency, Located


def best_matching(table: Contingency | Located) -> NDArray[np.bool_]:
    """Match ids one to one so that as many voxels as possible have matching ids.

    0 is background in both: it matches 0 and nothing else. Segments that overlap one segment only, which overlaps no
    other, are matched at once; for the rest an assignment problem is solved, whose time grows with how much differs.

    Args:
        table: overlaps of both, nothing left out; its two columns of ids are the two segmentations.

    Returns:
        bool (k,), the rows whose ids match. All rows match if and only if both are the same but for names.
    """
    matched: NDArray[np.bool_] = (table.segment == 0) & (table.label == 0)
    rows = np.flatnonzero((table.segment > 0) & (table.label > 0))
    _, a, times_a = np.unique(table.segment[rows], return_inverse=True, return_counts=True)
    _, b, times_b = np.unique(table.label[rows], return_inverse=True, return_counts=True)
    alone = (times_a[a] == 1) & (times_b[b] == 1)
    matched[rows[alone]] = True
    rest = rows[~alone]
    if rest.size:
        matched[rest[_assigned(table.segment[rest], table.label[rest], table.count[rest])]] = True
    return matched


def _assigned(segment: NDArray[np.uint64], label: NDArray[np.uint64], count: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Return the rows of a matching of most voxels.

    Not every id has a partner, but the solver matches all: so each id may be matched to a stand-in of its own, and the
    stand-ins of two ids to each other where the ids might be. All weights are 1 larger, since 0 would mean no edge.
    """
    _, a = np.unique(segment, return_inverse=True)
    _, b = np.unique(label, return_inverse=True)
    n, m = int(a.max()) + 1, int(b.max()) + 1
    own_a, own_b = np.arange(n), np.arange(m)
    left = np.concatenate((a, own_a, n + own_b, n + b))
    right = np.concatenate((b, m + own_a, own_b, m + a))
    weight = np.concatenate((count.astype(np.float64), np.zeros(n + m + a.size))) + 1
    edges = coo_array((weight, (left, right)), shape=(n + m, n + m)).tocsr()
    partner = min_weight_full_bipartite_matching(edges, maximize=True)[1]
    return np.flatnonzero(partner[a] == b)
