"""Measures that match instances one to one or best to best: for organelles, nuclei and cells.

All are functions of the contingency table. Id 0 is background on both sides and no instance, but its voxels
count in the sizes of what it overlaps: such a table is counted with ``ignore_label=None``. Counted with
``ignore_label=0``, voxels without a label are as if they were not there, the "void" of Kirillov et al.: right
for ground truth that leaves instances out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import DataError
from kdseg.evaluation.metrics.contingency import Contingency, Located, sizes

IOUS = tuple(n / 100 for n in range(50, 100, 5))
"""The overlaps 0.50, 0.55 ... 0.95 that average precision is usually taken over."""


class Pairs(NamedTuple):
    """Overlapping instances, one row per pair, and the instances themselves.

    Attributes:
        segment: intp (k,), row of the segment in ``segment_id``.
        label: intp (k,), row of the label in ``label_id``.
        both: uint64 (k,), voxels that both share.
        segment_id: uint64 (s,), the segments but background.
        segment_size: uint64 (s,), their voxels in the table.
        label_id: uint64 (n,), the labels but background.
        label_size: uint64 (n,), their voxels in the table.
    """

    segment: NDArray[np.intp]
    label: NDArray[np.intp]
    both: NDArray[np.uint64]
    segment_id: NDArray[np.uint64]
    segment_size: NDArray[np.uint64]
    label_id: NDArray[np.uint64]
    label_size: NDArray[np.uint64]

    @property
    def union(self) -> NDArray[np.uint64]:
        """Voxels of each pair's union, uint64 (k,)."""
        return self.segment_size[self.segment] + self.label_size[self.label] - self.both

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each pair, float64 (k,), in 0..1."""
        return self.both / self.union

    @property
    def dice(self) -> NDArray[np.float64]:
        """Dice coefficient of each pair, float64 (k,), in 0..1."""
        return 2 * self.both / (self.segment_size[self.segment] + self.label_size[self.label])


class Matches(NamedTuple):
    """The pairs whose overlap is above a threshold: at most one per instance.

    Attributes:
        segment: uint64 (m,), ids.
        label: uint64 (m,), ids.
        iou: float64 (m,), their intersection over union.
        false_positives: segments without a label.
        false_negatives: labels without a segment.
    """

    segment: NDArray[np.uint64]
    label: NDArray[np.uint64]
    iou: NDArray[np.float64]
    false_positives: int
    false_negatives: int


class Panoptic(NamedTuple):
    """Panoptic quality of one class, all in 0..1; 1 is best.

    Attributes:
        pq: ``sq * rq``.
        sq: segmentation quality, mean intersection over union of the matches; 0 without a match.
        rq: recognition quality, the F1 score ``TP / (TP + FP / 2 + FN / 2)``.
    """

    pq: float
    sq: float
    rq: float


class Precisions(NamedTuple):
    """Average precision, in 0..1; 1 is best.

    Attributes:
        at: by threshold, in their order.
        mean: of these.
    """

    at: tuple[float, ...]
    mean: float


class Dice(NamedTuple):
    """Best Dice coefficients, in 0..1; 1 is best.

    Attributes:
        symmetric: the smaller of the two below, SBD.
        of_labels: mean over labels of the best Dice of any segment, often called mean Dice.
        of_segments: mean over segments of the best Dice of any label.
        count_difference: |DiC|, by how many the numbers of instances differ, 0 or above; 0 is best.
    """

    symmetric: float
    of_labels: float
    of_segments: float
    count_difference: int


def pairs(table: Contingency | Located) -> Pairs:
    """Return the overlapping instances of a table, which the other functions take.

    Args:
        table: of the whole volume; id 0 is background on both sides.

    Raises:
        DataError: if there are neither segments nor labels: nothing to score.
    """
    of_segment, segment_id, segment_size = sizes(table.segment, table.count)
    of_label, label_id, label_size = sizes(table.label, table.count)
    kept = (table.segment != 0) & (table.label != 0)
    # ids ascend: background, where there is any, is row 0
    s, n = int(0 in segment_id[:1]), int(0 in label_id[:1])
    if segment_id.size == s and label_id.size == n:
        raise DataError("nothing to score: neither segments nor labels but background")
    both = table.count[kept]
    return Pairs(
        of_segment[kept] - s, of_label[kept] - n, both, segment_id[s:], segment_size[s:], label_id[n:], label_size[n:]
    )


def match(instances: Pairs, iou: float = 0.5) -> Matches:
    """Return the pairs whose intersection over union is *greater* than ``iou``.

    Above one half no instance is in two such pairs (Kirillov et al. 2019, "Panoptic segmentation", section
    4.1), so that there is nothing to optimise. StarDist takes "at least" and solves an assignment: the same
    but for pairs at exactly the threshold.

    Args:
        instances: from `pairs`.
        iou: 0.5 or above, below 1.

    Raises:
        DataError: if ``iou`` is below 0.5 or not below 1: matches would not be unique, or none could be.
    """
    if not 0.5 <= iou < 1:
        raise DataError(f"matches are unique for overlaps of 0.5 or above and below 1, got {iou}")
    found = instances.iou > iou
    return Matches(
        instances.segment_id[instances.segment[found]],
        instances.label_id[instances.label[found]],
        instances.iou[found],
        instances.segment_id.size - int(found.sum()),
        instances.label_id.size - int(found.sum()),
    )


def panoptic(instances: Pairs) -> Panoptic:
    """Return the panoptic quality (Kirillov et al. 2019, eq. 1 and 2) of one class.

    Args:
        instances: from `pairs`.
    """
    found = match(instances)
    true = found.iou.size
    recognised = true / (true + found.false_positives / 2 + found.false_negatives / 2)
    quality = float(np.sort(found.iou).mean()) if true else 0.0
    return Panoptic(quality * recognised, quality, recognised)


def average_precision(instances: Pairs, ious: Sequence[float] = IOUS) -> Precisions:
    """Return ``TP / (TP + FP + FN)`` at each overlap, and the mean.

    The definition of the Data Science Bowl 2018 and StarDist (there "accuracy"; python-elf's
    `mean_segmentation_accuracy`), without scores of confidence. It is *not* COCO's area under a curve of
    precision and recall.

    Args:
        instances: from `pairs`.
        ious: thresholds, each 0.5 or above and below 1; a match is above it.

    Raises:
        DataError: if there is no threshold.
    """
    if not ious:
        raise DataError("average precision needs at least one threshold")
    found = [match(instances, iou) for iou in ious]
    at = tuple(m.iou.size / (m.iou.size + m.false_positives + m.false_negatives) for m in found)
    return Precisions(at, sum(at) / len(at))


def best_dice(instances: Pairs) -> Dice:
    """Return symmetric best Dice and the difference in counts.

    Scharr et al. (2016), "Leaf segmentation in plant phenotyping: a collation study", the measures BD, SBD and
    |DiC| of its section on evaluation. An instance that overlaps none has 0; the mean over no instances is 0.

    Args:
        instances: from `pairs`.
    """
    labels, segments = instances.label_id.size, instances.segment_id.size
    of_labels = _mean_of_best(instances.label, instances.dice, labels)
    of_segments = _mean_of_best(instances.segment, instances.dice, segments)
    return Dice(min(of_labels, of_segments), of_labels, of_segments, abs(labels - segments))


def aggregated_jaccard(instances: Pairs) -> float:
    """Return the aggregated Jaccard index AJI, in 0..1; 1 is best.

    Kumar et al. (2017), "A dataset and a technique for generalized nuclear segmentation for computational
    pathology", algorithm 1: each label takes the segment of largest intersection over union, the same one as
    often as it is that; intersections over unions, with the labels that overlap nothing and the segments
    that none took in the denominator. Of equal overlaps the smallest segment id is taken.

    Args:
        instances: from `pairs`.
    """
    order = np.lexsort((instances.segment, -instances.iou, instances.label))
    label, first = np.unique(instances.label[order], return_index=True)
    best = order[first]
    unused = np.setdiff1d(np.arange(instances.segment_id.size), instances.segment[best])
    alone = np.setdiff1d(np.arange(instances.label_id.size), label)
    missed = int(instances.segment_size[unused].sum()) + int(instances.label_size[alone].sum())
    return int(instances.both[best].sum()) / (int(instances.union[best].sum()) + missed)


def _mean_of_best(row: NDArray[np.intp], dice: NDArray[np.float64], instances: int) -> float:
    if instances == 0:
        return 0.0
    best = np.zeros(instances)
    np.maximum.at(best, row, dice)
    return float(np.sort(best).mean())
