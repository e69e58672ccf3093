"""Every threshold of a dendrogram, from one table of fragments: no voxel is relabelled, and no row sorted twice.

From one threshold to the next only the rows of segments that merge are touched; the others stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import ConfigError
from kdseg.evaluation.metrics.contingency import Contingency, Located
from kdseg.segmentation.agglomeration.linkage import Dendrogram, cut
from kdseg.segmentation.lut import lut


def tables_at(table: Contingency | Located, merges: Dendrogram, thresholds: Sequence[float]) -> Iterator[Contingency]:
    """Yield the table of the segmentation at each threshold: that of the relabelled voxels, row by row.

    Args:
        table: of fragments; 0 is background and stays 0.
        merges: all merges between these fragments, up to the last threshold at least, in any order.
        thresholds: scores in 0..1, ascending.

    Raises:
        ConfigError: if thresholds do not ascend.
    """
    if any(a >= b for a, b in pairwise(thresholds)):
        raise ConfigError(f"thresholds must ascend without repeats, got {list(thresholds)}")
    every = np.sort(np.concatenate((table.segment, merges.a, merges.b)))  # faster than numpy's hashing
    new = np.ones(every.size, np.bool_)
    new[1:] = every[1:] != every[:-1]
    known = every[new]
    labels, column = np.unique(table.label, return_inverse=True)
    bits = np.uint64(max(labels.size - 1, 0).bit_length())
    # where a row belongs in the table: by rank of segment, then of label; both fit, being rows in memory
    place = (np.searchsorted(known, table.segment).astype(np.uint64) << bits) | column.astype(np.uint64)
    count, names = table.count, np.arange(known.size, dtype=np.uint64)
    into = names.copy()
    numbers = np.arange(merges.a.size, dtype=np.uint64)
    left = np.ones(merges.a.size, np.bool_)
    for threshold in thresholds:
        reached, _ = cut(Dendrogram(numbers, numbers, merges.affinity_sum, merges.contact), threshold)
        fresh = reached[left[reached]]
        left[reached] = False
        a, b = (names[np.searchsorted(known, ends[fresh])] for ends in (merges.a, merges.b))
        touched = np.zeros(known.size, np.bool_)  # sorting their names would take longer
        touched[a] = touched[b] = True
        joined = np.flatnonzero(touched).astype(np.uint64)
        into[joined] = lut(joined, a, b)
        place, count = _moved(place, count, bits, into)
        names = into[names]
        yield Contingency(known[place >> bits], labels[place & _low(bits)], count)


def _moved(
    place: NDArray[np.uint64], count: NDArray[np.uint64], bits: np.uint64, into: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Move the rows of segments that merged into others, and add up rows that meet."""
    row = place >> bits
    target = into[row]
    moving = target != row
    new, inverse = np.unique((target[moving] << bits) | (place[moving] & _low(bits)), return_inverse=True)
    added = np.zeros(new.size, np.uint64)
    np.add.at(added, inverse, count[moving])
    place, count = place[~moving], count[~moving]
    at = np.searchsorted(place, new)
    meets = at < place.size
    meets[meets] = place[at[meets]] == new[meets]
    count[at[meets]] += added[meets]
    return np.insert(place, at[~meets], new[~meets]), np.insert(count, at[~meets], added[~meets])


def _low(bits: np.uint64) -> np.uint64:
    return (np.uint64(1) << bits) - np.uint64(1)
