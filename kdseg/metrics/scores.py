"""Variation of information and adapted Rand error of a contingency table."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import DataError
from kdseg.metrics.contingency import Contingency, Located, sizes

_MOST = 1 << 48
"""Voxels in one row from which on sums of squares no longer fit into the integers used."""


class Scores(NamedTuple):
    """Agreement with the ground truth.

    Attributes:
        voi_split: conditional entropy H(segmentation | labels) in bits: false splits; 0 is best.
        voi_merge: conditional entropy H(labels | segmentation) in bits: false merges; 0 is best.
        voi: their sum.
        arand: adapted Rand error, ``1 - F`` of the two below, in 0..1; 0 is best.
        arand_precision: share of pairs of voxels of one segment that have one label: low with false merges.
        arand_recall: share of pairs of voxels of one label that have one segment: low with false splits.
    """

    voi_split: float
    voi_merge: float
    voi: float
    arand: float
    arand_precision: float
    arand_recall: float


def scores(contingency: Contingency | Located) -> Scores:
    """Return the scores of a segmentation, in the conventions of scikit-image.

    Voxels of label 0 are not to be in the table (`contingency.block_contingency` leaves them out), as in
    `skimage.metrics.adapted_rand_error`; segment 0 counts as one segment. Variation of information after
    Meila (2007), adapted Rand error after Arganda-Carreras et al. (2015), eq. 3, over pairs of *different*
    voxels. Sums of squares are exact integers. A share of no pairs at all counts as 1.

    Args:
        contingency: table of the whole volume.

    Raises:
        DataError: if the table is empty: no voxel has both a segment and a label.
    """
    if contingency.count.size == 0:
        raise DataError("nothing to score: no voxel of the segmentation has a ground-truth label")
    if int(contingency.count.max()) >= _MOST:
        raise DataError(f"an overlap of {int(contingency.count.max())} voxels is too large to score")
    count = contingency.count
    of_segment, _, segment_size = sizes(contingency.segment, count)
    of_label, _, label_size = sizes(contingency.label, count)
    voxels = int(count.sum())
    split = _entropy(count, label_size[of_label], voxels)
    merge = _entropy(count, segment_size[of_segment], voxels)
    both = _sum_of_squares(count) - voxels
    same_segment = _sum_of_squares(segment_size) - voxels
    same_label = _sum_of_squares(label_size) - voxels
    return Scores(
        voi_split=split,
        voi_merge=merge,
        voi=split + merge,
        arand=1 - _share(2 * both, same_segment + same_label),
        arand_precision=_share(both, same_segment),
        arand_recall=_share(both, same_label),
    )


def _entropy(count: NDArray[np.uint64], given: NDArray[np.uint64], voxels: int) -> float:
    """Return the conditional entropy in bits; exactly 0 where each row is all of what is given."""
    return float(np.sum(count * np.log2(given / count))) / voxels


def _sum_of_squares(values: NDArray[np.uint64]) -> int:
    """Return the exact sum of squares of values below 2**48, in halves of 24 bits."""
    total = 0
    for start in range(0, values.size, 1 << 14):  # 2**14 products of 48 bits fit into 64
        part = values[start : start + (1 << 14)]
        high, low = part >> np.uint64(24), part & np.uint64((1 << 24) - 1)
        total += (int(high @ high) << 48) + (int(high @ low) << 25) + int(low @ low)
    return total


def _share(pairs: int, of: int) -> float:
    return pairs / of if of else 1.0
