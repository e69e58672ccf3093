"""Scores, against scikit-image and against hand-made cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage import metrics as skimage
from worked_example import (
    ELF_CREMI,
    ELF_RAND_ERROR,
    ELF_RAND_INDEX,
    ELF_VOI_BITS,
    ELF_VOI_NATS,
    LABELS,
    SEGMENTATION,
    WATERZ,
)

from kdseg.errors import DataError
from kdseg.evaluation.metrics.contingency import Contingency, block_contingency
from kdseg.evaluation.metrics.scores import cremi_score, rand, scores, variation_of_information


def random_pair(seed: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """A ground truth with unlabelled voxels and a segmentation with splits, merges and background."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 8, (6, 4, 4)).repeat(3, 0).repeat(4, 1).repeat(4, 2).astype(np.uint64)
    segmentation = np.where(rng.random(labels.shape) < 0.1, rng.integers(0, 9, labels.shape), labels // 2 * 2)
    segmentation[:9] += np.uint64(20) * (segmentation[:9] > 0)
    return segmentation.astype(np.uint64), labels


@pytest.mark.parametrize("seed", range(3))
def test_equals_scikit_image(seed: int) -> None:
    segmentation, labels = random_pair(seed)
    got = scores(block_contingency(segmentation, labels))
    labelled = labels > 0
    split, merge = skimage.variation_of_information(labels[labelled], segmentation[labelled])
    assert got.voi_split == pytest.approx(split, abs=1e-9)
    assert got.voi_merge == pytest.approx(merge, abs=1e-9)
    assert got.voi == got.voi_split + got.voi_merge
    # scikit-image returns the share of the *label's* pairs as precision, against its documentation
    error, recall, precision = skimage.adapted_rand_error(labels.astype(int), segmentation.astype(int))
    assert got.arand == pytest.approx(error, abs=1e-12)
    assert got.arand_precision == pytest.approx(precision, abs=1e-12)
    assert got.arand_recall == pytest.approx(recall, abs=1e-12)
    assert 0 < got.arand_precision != got.arand_recall


@settings(deadline=None, max_examples=30)
@given(labels=st.lists(st.integers(1, 5), min_size=1, max_size=40), names=st.permutations(range(100, 106)))
def test_same_partition_is_exactly_zero(labels: list[int], names: list[int]) -> None:
    truth = np.array(labels)
    got = scores(block_contingency(np.array(names, np.uint64)[truth], truth))
    assert got == (0, 0, 0, 0, 1, 1)
    assert all(math.copysign(1, value) == 1 for value in got)


def test_a_split_and_a_merge_are_told_apart() -> None:
    one, two = np.ones(8, np.uint64), np.arange(8, dtype=np.uint64) // 4 + 1
    split = scores(block_contingency(two, one))
    assert (split.voi_split, split.voi_merge) == (1, 0)
    assert (split.arand_precision, split.arand_recall) == (1, 24 / 56)
    merge = scores(block_contingency(one, two))
    assert (merge.voi_split, merge.voi_merge) == (0, 1)
    assert (merge.arand_precision, merge.arand_recall) == (24 / 56, 1)
    assert merge.arand == split.arand == 1 - 48 / 80


@settings(deadline=None, max_examples=30)
@given(counts=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2**46)), min_size=1))
def test_sums_of_squares_do_not_overflow(counts: list[tuple[int, int, int]]) -> None:
    """Volumes of 10^13 voxels: squares are far beyond 64 bits and beyond exact floats."""
    rows = {(s, n): c for s, n, c in counts}
    columns = np.array([(*pair, rows[pair]) for pair in sorted(rows)], np.uint64).T
    got = scores(Contingency(*columns))

    def pairs(axis: int) -> int:
        sizes: dict[int, int] = {}
        for pair, c in rows.items():
            sizes[pair[axis]] = sizes.get(pair[axis], 0) + c
        return sum(c * (c - 1) for c in sizes.values())

    both = sum(c * (c - 1) for c in rows.values())
    assert got.arand_precision == (both / pairs(0) if pairs(0) else 1)
    assert got.arand_recall == (both / pairs(1) if pairs(1) else 1)


def test_sum_of_squares_of_a_long_table() -> None:
    """More rows than one partial sum takes, each of the largest size."""
    rows = np.arange(1, 40_001, dtype=np.uint64)
    large = np.full(rows.size, 2**47 + 2**24 - 1, np.uint64)
    got = scores(Contingency(rows, rows, large))
    assert got == (0, 0, 0, 0, 1, 1)
    size, total = 2**47 + 2**24 - 1, 40_000 * (2**47 + 2**24 - 1)
    merged = scores(Contingency(np.ones(rows.size, np.uint64), rows, large // np.uint64(2**20)))
    size = size // 2**20
    total = 40_000 * size
    assert merged.arand_precision == 40_000 * size * (size - 1) / (total * (total - 1))


def test_refuses_an_empty_table() -> None:
    with pytest.raises(DataError, match="nothing to score"):
        scores(block_contingency(np.ones((2, 2, 2), np.uint64), np.zeros((2, 2, 2), np.uint64)))


def test_refuses_overlaps_beyond_its_integers() -> None:
    one = np.ones(1, np.uint64)
    with pytest.raises(DataError, match="too large"):
        scores(Contingency(one, one, np.array([2**48], np.uint64)))


def test_equals_python_elf_and_waterz() -> None:
    table = block_contingency(SEGMENTATION, LABELS)
    assert variation_of_information(table)[:2] == pytest.approx(ELF_VOI_BITS, abs=1e-12)
    nats = variation_of_information(table, unit="nats")
    assert nats == pytest.approx((*ELF_VOI_NATS, sum(ELF_VOI_NATS)), abs=1e-12)
    pairs = rand(table, pairs="all")
    assert (pairs.error, pairs.rand_index) == pytest.approx((ELF_RAND_ERROR, ELF_RAND_INDEX), abs=1e-12)
    assert cremi_score(table, background=None) == pytest.approx(ELF_CREMI, abs=1e-12)
    bits = variation_of_information(table)
    names = {
        "voi_split": bits.split,
        "voi_merge": bits.merge,
        "rand_split": pairs.recall,
        "rand_merge": pairs.precision,
    }
    assert names == pytest.approx(WATERZ, abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=25),
    kind=st.sampled_from(["different", "all"]),
    background=st.sampled_from([None, 0, 2]),
)
def test_rand_counts_pairs_of_voxels(pairs: list[tuple[int, int]], kind: str, background: int | None) -> None:
    """The definition: every ordered pair of voxels, looked at."""
    segment, label = zip(*pairs, strict=True)
    voxels = range(len(pairs))
    every = [(p, q) for p in voxels for q in voxels if kind == "all" or p != q]
    joined = {(p, q) for p, q in every if segment[p] == segment[q] and segment[p] != background}
    alike = {(p, q) for p, q in every if label[p] == label[q]}
    both = len(joined & alike)
    got = rand(
        block_contingency(np.array(segment), np.array(label)),
        pairs=kind,  # type: ignore[arg-type]
        background=background,
    )
    assert got.precision == (both / len(joined) if joined else 1)
    assert got.recall == (both / len(alike) if alike else 1)
    assert got.error == 1 - (2 * both / (len(joined) + len(alike)) if joined or alike else 1)
    assert got.rand_index == ((len(every) - len(joined ^ alike)) / len(every) if every else 1)


def test_background_of_cremi() -> None:
    """Against the challenge's rule as a dense matrix: its term for background is less than one pair."""
    segmentation, labels = random_pair(3)
    matrix = np.zeros((8, int(segmentation.max()) + 1))
    np.add.at(matrix, (labels.ravel(), segmentation.ravel()), 1)
    objects = matrix[1:, 1:]
    background = matrix[1:, 0].sum() / labels.size
    assert background > 0
    both, of_label = (objects**2).sum() + background, (matrix[1:].sum(1) ** 2).sum()
    of_segment = (objects.sum(0) ** 2).sum() + background
    got = cremi_score(block_contingency(segmentation, labels))
    assert got.arand == pytest.approx(1 - 2 * both / (of_segment + of_label), abs=1e-5)
    assert got.score**2 == pytest.approx((got.voi_split + got.voi_merge) * got.arand)
    assert got.arand != pytest.approx(cremi_score(block_contingency(segmentation, labels), background=None).arand)


def test_refuses_objects_beyond_its_integers() -> None:
    half = np.array([2**47, 2**47], np.uint64)
    with pytest.raises(DataError, match="too large"):
        scores(Contingency(np.ones(2, np.uint64), np.arange(2, dtype=np.uint64), half))
