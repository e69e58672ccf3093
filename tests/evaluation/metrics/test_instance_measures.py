"""Instance measures, against their definitions on sets of voxels and against python-elf's numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worked_example import (
    ELF_ACCURACIES,
    ELF_MATCHING,
    ELF_MEAN_ACCURACY,
    ELF_SYMMETRIC_BEST_DICE,
    LABELS,
    SEGMENTATION,
)

from kdseg.errors import DataError
from kdseg.evaluation.metrics.contingency import block_contingency
from kdseg.evaluation.metrics.instances import (
    IOUS,
    aggregated_jaccard,
    average_precision,
    best_dice,
    match,
    pairs,
    panoptic,
)

Sets = dict[int, set[int]]
"""The voxels of each instance."""


@st.composite
def volumes(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Labels in runs, and a segmentation that is mostly the same under other names."""
    runs = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 8)), min_size=1, max_size=8))
    labels = [name for name, length in runs for _ in range(length)]
    noise = draw(st.lists(st.integers(0, 20), min_size=len(labels), max_size=len(labels)))
    return [10 * n if k > 5 else k for n, k in zip(labels, noise, strict=True)], labels


def sets(ids: list[int]) -> Sets:
    return {name: {k for k, other in enumerate(ids) if other == name} for name in set(ids) - {0}}


def iou(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b)


@settings(deadline=None, max_examples=150)
@given(volume=volumes())
def test_equals_the_definitions_on_voxels(volume: tuple[list[int], list[int]]) -> None:
    segments, labels = sets(volume[0]), sets(volume[1])
    table = block_contingency(np.array(volume[0]), np.array(volume[1]), None)
    if not segments and not labels:
        with pytest.raises(DataError, match="nothing to score"):
            pairs(table)
        return
    got = pairs(table)
    for threshold, precision in zip(IOUS, average_precision(got).at, strict=True):
        hits = {(s, n): iou(segments[s], labels[n]) for s in segments for n in labels}
        hits = {pair: value for pair, value in hits.items() if value > threshold}
        matches = match(got, threshold)
        assert dict(zip(zip(matches.segment, matches.label, strict=True), matches.iou, strict=True)) == hits
        assert matches.false_positives == len(set(segments) - {s for s, _ in hits})
        assert matches.false_negatives == len(set(labels) - {n for _, n in hits})
        assert precision == len(hits) / (len(segments) + len(labels) - len(hits))
        if threshold == 0.5:
            quality = panoptic(got)
            assert quality.pq == pytest.approx(2 * sum(hits.values()) / (len(segments) + len(labels)))
            assert quality.rq == pytest.approx(2 * len(hits) / (len(segments) + len(labels)))
            assert quality.sq == pytest.approx(sum(hits.values()) / len(hits) if hits else 0)
    assert best_dice(got).count_difference == abs(len(segments) - len(labels))
    assert best_dice(got).of_labels == pytest.approx(mean_best_dice(labels, segments))
    assert best_dice(got).of_segments == pytest.approx(mean_best_dice(segments, labels))
    assert aggregated_jaccard(got) == jaccard(segments, labels)


def mean_best_dice(ours: Sets, others: Sets) -> float:
    best = [max((2 * len(a & b) / (len(a) + len(b)) for b in others.values()), default=0) for a in ours.values()]
    return sum(best) / len(best) if best else 0


def jaccard(segments: Sets, labels: Sets) -> float:
    intersection = union = 0
    used = set()
    for label in labels.values():
        best = max(sorted(segments), key=lambda s: iou(segments[s], label), default=None)
        if best is None or not segments[best] & label:
            union += len(label)
            continue
        used.add(best)
        intersection += len(segments[best] & label)
        union += len(segments[best] | label)
    return intersection / (union + sum(len(voxels) for s, voxels in segments.items() if s not in used))


def test_equals_python_elf() -> None:
    got = pairs(block_contingency(SEGMENTATION, LABELS, None))
    precisions = average_precision(got)
    assert precisions.at == pytest.approx(ELF_ACCURACIES, abs=1e-12)
    assert precisions.mean == pytest.approx(ELF_MEAN_ACCURACY, abs=1e-12)
    assert panoptic(got).rq == pytest.approx(ELF_MATCHING["f1"], abs=1e-12)
    assert best_dice(got).symmetric == pytest.approx(ELF_SYMMETRIC_BEST_DICE, abs=1e-7)


def test_a_label_that_is_half_a_segment_does_not_match() -> None:
    """An overlap of exactly one half could be that of two labels with one segment."""
    got = pairs(block_contingency(np.array([7, 7]), np.array([1, 2])))
    assert match(got).label.tolist() == []
    assert (match(got).false_positives, match(got).false_negatives) == (1, 2)
    for threshold in (0.49, 1.0):
        with pytest.raises(DataError, match="unique"):
            match(got, threshold)
    with pytest.raises(DataError, match="at least one"):
        average_precision(got, ())


def test_background_is_no_instance_but_counts_in_sizes() -> None:
    labels, segmentation = np.array([1, 1, 1, 0]), np.array([5, 5, 5, 5])
    assert match(pairs(block_contingency(segmentation, labels, None))).iou.tolist() == [3 / 4]
    assert match(pairs(block_contingency(segmentation, labels, 0))).iou.tolist() == [1]
