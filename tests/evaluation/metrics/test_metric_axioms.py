"""What must hold of any measure of partitions, whatever its formula."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdseg.evaluation.metrics.boundaries import BoundaryCounts, boundary_counts
from kdseg.evaluation.metrics.contingency import Contingency, block_contingency, block_located, merge
from kdseg.evaluation.metrics.instances import aggregated_jaccard, average_precision, best_dice, pairs, panoptic
from kdseg.evaluation.metrics.objects import worst_merges, worst_splits
from kdseg.evaluation.metrics.scores import cremi_score, rand, scores, variation_of_information


@st.composite
def partitions(draw: st.DrawFn, n: int) -> tuple[np.ndarray, ...]:
    """Three partitions of the same voxels, all ids above 0."""
    voxels = draw(st.integers(1, 40))
    ids = st.lists(st.integers(1, 6), min_size=voxels, max_size=voxels)
    return tuple(np.array(draw(ids), np.uint64) for _ in range(n))


def voi(a: np.ndarray, b: np.ndarray) -> float:
    return variation_of_information(block_contingency(a, b)).total


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(((a[:, None] == a) == (b[:, None] == b)).all())


@settings(deadline=None, max_examples=150)
@given(three=partitions(3))
def test_variation_of_information_is_a_metric(three: tuple[np.ndarray, ...]) -> None:
    a, b, c = three
    there, back = variation_of_information(block_contingency(a, b)), variation_of_information(block_contingency(b, a))
    assert (there.split, there.merge) == (back.merge, back.split)
    assert voi(a, c) <= voi(a, b) + voi(b, c) + 1e-12
    assert (voi(a, b) == 0) == same_partition(a, b)
    assert voi(a, a) == 0
    assert 0 <= voi(a, b) <= np.log2(a.size) * 2


@settings(deadline=None, max_examples=150)
@given(two=partitions(2))
def test_rand_and_dice_are_symmetric_and_perfect_only_for_the_same_partition(two: tuple[np.ndarray, ...]) -> None:
    a, b = two
    for kind in ("different", "all"):
        there = rand(block_contingency(a, b), pairs=kind)  # type: ignore[arg-type]
        back = rand(block_contingency(b, a), pairs=kind)  # type: ignore[arg-type]
        assert (there.precision, there.recall) == (back.recall, back.precision)
        assert (there.error, there.rand_index) == (back.error, back.rand_index)
        assert (there.error == 0) == same_partition(a, b)
    there, back = pairs(block_contingency(a, b)), pairs(block_contingency(b, a))
    assert panoptic(there) == panoptic(back)
    assert best_dice(there).symmetric == best_dice(back).symmetric
    assert (panoptic(there).pq == 1) == same_partition(a, b)
    assert (best_dice(there).symmetric == 1) == same_partition(a, b)
    assert (aggregated_jaccard(there) == 1) == same_partition(a, b)


@settings(deadline=None, max_examples=100)
@given(two=partitions(2), names=st.permutations(range(1, 7)), others=st.permutations(range(2**64 - 6, 2**64)))
def test_names_do_not_matter(two: tuple[np.ndarray, ...], names: list[int], others: list[int]) -> None:
    """To the last bit: else two runs of one segmentation could rank differently."""
    a, b = two
    table = block_contingency(a, b)
    renamed = block_contingency(np.array([0, *names], np.uint64)[a], np.array([0, *others], np.uint64)[b])
    assert scores(table) == scores(renamed)
    assert cremi_score(table) == cremi_score(renamed)
    assert rand(table, pairs="all") == rand(renamed, pairs="all")
    assert panoptic(pairs(table)) == panoptic(pairs(renamed))
    assert average_precision(pairs(table)) == average_precision(pairs(renamed))
    assert best_dice(pairs(table)) == best_dice(pairs(renamed))
    splits = [(fault.size, fault.parts) for fault in worst_splits(renamed, 9)]
    assert sorted(splits) == sorted((fault.size, fault.parts) for fault in worst_splits(table, 9))
    assert len(worst_merges(table, 9)) == len(worst_merges(renamed, 9))


@settings(deadline=None, max_examples=60)
@given(two=partitions(2), cuts=st.lists(st.integers(0, 40), max_size=6), order=st.randoms())
def test_blocks_and_their_order_do_not_matter(two: tuple[np.ndarray, ...], cuts: list[int], order: Random) -> None:
    a, b = (ids.reshape(-1, 1, 1) for ids in two)
    bounds = sorted({0, a.size, *(cut for cut in cuts if cut < a.size)})
    tables = [block_located(a[i:j], b[i:j], (i, 0, 0), a.shape) for i, j in pairwise(bounds)]
    order.shuffle(tables)
    middle = order.randrange(len(tables))
    whole = block_located(a, b, (0, 0, 0), a.shape)
    for merged in (
        merge(tables),
        merge([merge(tables[middle:]), *tables[:middle]] if middle < len(tables) else tables),
    ):
        assert all(np.array_equal(x, y) for x, y in zip(merged, whole, strict=True))
    plain = merge(Contingency(*table[:3]) for table in tables)
    assert all(np.array_equal(x, y) for x, y in zip(plain, block_contingency(a, b), strict=True))


def test_more_errors_score_worse() -> None:
    """A label cut in two, then in four: every measure of splits must notice."""
    labels = np.repeat(np.arange(1, 5), 16).reshape(4, 4, 4)
    cut = labels * 10 + (np.arange(64).reshape(4, 4, 4) // 8) % 2
    more = cut * 10 + (np.arange(64).reshape(4, 4, 4) // 4) % 2
    once, twice = block_contingency(cut, labels), block_contingency(more, labels)
    assert (variation_of_information(once).split, variation_of_information(twice).split) == (1, 2)
    assert rand(once).recall > rand(twice).recall
    assert panoptic(pairs(once)).pq == panoptic(pairs(twice)).pq == 0
    assert best_dice(pairs(once)).symmetric == pytest.approx(2 / 3)
    assert best_dice(pairs(twice)).symmetric == pytest.approx(2 / 5)
    everything = (slice(None), slice(None), slice(None))
    assert boundary_counts(labels, labels, 0, (1, 1, 1), everything) == BoundaryCounts(64, 64, 64, 64)
