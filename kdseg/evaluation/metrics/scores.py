"""Variation of information, Rand scores and the CREMI score of a contingency table.

The functions do not know what the table left out: `contingency.block_contingency` decides that. scikit-image's
adapted Rand error leaves out ground-truth label 0 by default and its variation of information does not; CREMI
leaves it out of both. All results are the same, to the last bit, for any naming of the segments and labels.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import DataError
from kdseg.evaluation.metrics.contingency import Contingency, Located, sizes

_MOST = 1 << 48
"""Voxels in one object from which on sums of squares no longer fit into the integers used."""


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


class Information(NamedTuple):
    """Variation of information.

    Attributes:
        split: H(segmentation | labels), 0 or above: what false splits add; 0 is best.
        merge: H(labels | segmentation), 0 or above: what false merges add; 0 is best.
        total: their sum, at most the entropy of both together.
    """

    split: float
    merge: float
    total: float


class Rand(NamedTuple):
    """Scores of pairs of voxels, all in 0..1.

    Attributes:
        error: adapted Rand error, ``1 - F`` of precision and recall; 0 is best.
        precision: of the pairs in one segment, the share with one label; low with false merges, and called
            "Rand merge" where the score is named after the error it shows (Arganda-Carreras, waterz).
        recall: of the pairs with one label, the share in one segment; low with false splits; "Rand split".
        rand_index: Rand (1971): share of all pairs that both agree on; near 1 with many small objects.
    """

    error: float
    precision: float
    recall: float
    rand_index: float


class Cremi(NamedTuple):
    """The ranking of the CREMI challenge.

    Attributes:
        voi_split: in bits.
        voi_merge: in bits.
        arand: adapted Rand error over all pairs.
        score: geometric mean of the sum of the first two and the third; 0 is best.
    """

    voi_split: float
    voi_merge: float
    arand: float
    score: float


def scores(contingency: Contingency | Located) -> Scores:
    """Return the scores of a segmentation, in the conventions of scikit-image.

    Variation of information in bits, and adapted Rand error over pairs of *different* voxels; segment 0 counts
    as one segment. scikit-image leaves out label 0, as `contingency.block_contingency` does by default.

    Args:
        contingency: table of the whole volume.
    """
    _refuse_empty(contingency)
    objects = _objects(contingency)
    information, pairs = _information(contingency, objects, 1.0), _rand(contingency, objects, 1, None)
    return Scores(*information, pairs.error, pairs.precision, pairs.recall)


def variation_of_information(
    contingency: Contingency | Located, *, unit: Literal["bits", "nats"] = "bits"
) -> Information:
    """Return the variation of information between segmentation and labels.

    Meila (2007), "Comparing clusterings: an information based distance", as the sum of the two conditional
    entropies. A metric on partitions: symmetric (but for the names of the two parts), 0 only for the same
    partition.

    Args:
        contingency: table of the whole volume, not empty.
        unit: bits as scikit-image, python-elf and waterz; nats as the article's natural logarithm.
    """
    _refuse_empty(contingency)
    return _information(contingency, _objects(contingency), 1.0 if unit == "bits" else math.log(2))


def rand(
    contingency: Contingency | Located,
    *,
    pairs: Literal["different", "all"] = "different",
    background: int | None = None,
) -> Rand:
    """Return the Rand scores; sums over pairs are exact integers.

    Arganda-Carreras et al. (2015), "Crowdsourcing the creation of image segmentation algorithms for
    connectomics", the Rand F-score, split score and merge score of its methods. Two forms are in use, which
    differ in the sixth digit on volumes of a few million voxels:

    - ``pairs="different"``: pairs of two voxels, n (n - 1); scikit-image's `adapted_rand_error`, which names
      precision and recall the other way round than its documentation does.
    - ``pairs="all"``: each voxel also with itself, n²; sums of squares of p_ij as in the article's formulas,
      SNEMI3D, CREMI, python-elf and waterz. CREMI's script besides takes segment 0 for background: its voxels
      are in no pair of a segment, though they count in their labels. That is ``background=0``, up to a term
      of less than one pair that the script adds.

    A share of no pairs at all counts as 1.

    Args:
        contingency: table of the whole volume, not empty; objects of fewer than 2**48 voxels.
        pairs: which pairs.
        background: segment whose voxels belong together with no other; None if every id is an object.
    """
    _refuse_empty(contingency)
    return _rand(contingency, _objects(contingency), 1 if pairs == "different" else 0, background)


def cremi_score(
    contingency: Contingency | Located, *, background: int | None = 0, of: Contingency | Located | None = None
) -> Cremi:
    """Return the score that the CREMI challenge ranks by: ``sqrt(voi * arand)``.

    cremi.org, "neuron segmentation metrics". The challenge leaves out label 0, and the voxels near a border of
    the labels: `boundaries.away_from_borders` is that mask.

    Args:
        contingency: table of the whole volume.
        background: see `rand`; 0 as the challenge's script; None as python-elf's `cremi_score`.
        of: table for the variation of information, where ids of background are one more segment per section; default:
            the same.
    """
    information = variation_of_information(contingency if of is None else of)
    arand = rand(contingency, pairs="all", background=background).error
    return Cremi(information.split, information.merge, arand, math.sqrt(information.total * arand))


class _Objects(NamedTuple):
    """Segments and labels of a table: rows of its rows, ids, numbers of voxels."""

    of_segment: NDArray[np.intp]
    segment: NDArray[np.uint64]
    segment_size: NDArray[np.uint64]
    of_label: NDArray[np.intp]
    label_size: NDArray[np.uint64]


def _objects(contingency: Contingency | Located) -> _Objects:
    of_label, _, label_size = sizes(contingency.label, contingency.count)
    return _Objects(*sizes(contingency.segment, contingency.count), of_label, label_size)


def _information(contingency: Contingency | Located, objects: _Objects, size: float) -> Information:
    """Return the variation of information; ``size`` is that of a bit."""
    split = _entropy(contingency.count, objects.label_size[objects.of_label])
    merge = _entropy(contingency.count, objects.segment_size[objects.of_segment])
    return Information(split * size, merge * size, split * size + merge * size)


def _rand(contingency: Contingency | Located, objects: _Objects, self_pairs: int, background: int | None) -> Rand:
    count, segment_size = contingency.count, objects.segment_size
    joined = count
    if background is not None:
        joined = count[contingency.segment != np.uint64(background)]
        segment_size = segment_size[objects.segment != np.uint64(background)]
    both, of_segment, of_label = (
        _sum_of_squares(n) - self_pairs * int(n.sum()) for n in (joined, segment_size, objects.label_size)
    )
    voxels = int(count.sum())
    every = voxels * (voxels - self_pairs)
    return Rand(
        error=1 - _share(2 * both, of_segment + of_label),
        precision=_share(both, of_segment),
        recall=_share(both, of_label),
        rand_index=_share(every - of_segment - of_label + 2 * both, every),
    )


def _refuse_empty(contingency: Contingency | Located) -> None:
    if contingency.count.size == 0:
        raise DataError("nothing to score: no voxel of the segmentation has a ground-truth label")


def _entropy(count: NDArray[np.uint64], given: NDArray[np.uint64]) -> float:
    """Return the conditional entropy in bits; exactly 0 where each row is all of what is given."""
    # sorted, since sums of floats depend on the order and the order of rows on the names of the objects
    return float(np.sum(np.sort(count * np.log2(given / count)))) / int(count.sum())


def _sum_of_squares(values: NDArray[np.uint64]) -> int:
    """Return the exact sum of squares of values below 2**48, in halves of 24 bits."""
    most = int(values.max(initial=0))
    if most >= _MOST:
        raise DataError(f"an object of {most} voxels is too large to score")
    total = 0
    for start in range(0, values.size, 1 << 14):  # 2**14 products of 48 bits fit into 64
        part = values[start : start + (1 << 14)]
        high, low = part >> np.uint64(24), part & np.uint64((1 << 24) - 1)
        total += (int(high @ high) << 48) + (int(high @ low) << 25) + int(low @ low)
    return total


def _share(pairs: int, of: int) -> float:
    return pairs / of if of else 1.0
