"""Contingency tables, against counting voxel by voxel, and block by block."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdseg.errors import DataError, ShapeError
from kdseg.geometry import Roi, Triple, blocks
from kdseg.metrics.contingency import Contingency, block_contingency, drop_small_labels, merge, relabel


def random_pair(seed: int, shape: Triple) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    names = np.concatenate(([0], rng.integers(1, 2**63, 5, dtype=np.uint64))).astype(np.uint64)
    return names[rng.integers(0, 6, shape)], rng.integers(0, 5, shape)


def oracle(segmentation: NDArray[np.uint64], labels: NDArray[np.int64], ignored: int) -> list[tuple[int, ...]]:
    pairs = zip(segmentation.ravel().tolist(), labels.ravel().tolist(), strict=True)
    return sorted((s, n, count) for (s, n), count in Counter(pairs).items() if n != ignored)


def as_rows(table: Contingency) -> list[tuple[int, ...]]:
    assert all(column.dtype == np.uint64 for column in table)
    return [tuple(int(value) for value in row) for row in zip(*table, strict=True)]


SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.tuples(*[st.integers(0, 7)] * 3)


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, shape=SHAPES, ignored=st.integers(0, 5))
def test_equals_counting_voxels(seed: int, shape: Triple, ignored: int) -> None:
    segmentation, labels = random_pair(seed, shape)
    assert as_rows(block_contingency(segmentation, labels, ignored)) == oracle(segmentation, labels, ignored)


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, shape=SHAPES, block=st.tuples(*[st.integers(1, 5)] * 3))
def test_blocks_add_up_to_the_volume(seed: int, shape: Triple, block: Triple) -> None:
    segmentation, labels = random_pair(seed, shape)
    cuts = [cell.roi.slices() for cell in blocks(Roi((0, 0, 0), shape), block)]
    table = merge(block_contingency(segmentation[cut], labels[cut]) for cut in reversed(cuts))
    assert as_rows(table) == as_rows(block_contingency(segmentation, labels))


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, shape=SHAPES)
def test_relabelling_the_table_equals_relabelling_voxels(seed: int, shape: Triple) -> None:
    fragments, labels = random_pair(seed, shape)
    lut_from = np.unique(np.append(fragments, np.uint64(77)))
    lut_from = lut_from[lut_from > 0]
    lut_to = np.random.default_rng(seed).choice(lut_from, lut_from.size)
    mapping = {0: 0, **dict(zip(lut_from.tolist(), lut_to.tolist(), strict=True))}
    voxels = np.array([mapping[f] for f in fragments.ravel().tolist()], np.uint64).reshape(shape)
    table = relabel(block_contingency(fragments, labels), lut_from, lut_to)
    assert as_rows(table) == as_rows(block_contingency(voxels, labels))


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, shape=SHAPES, dust=st.integers(0, 40))
def test_dropping_small_labels_equals_ignoring_them(seed: int, shape: Triple, dust: int) -> None:
    segmentation, labels = random_pair(seed, shape)
    sizes = Counter(labels.ravel().tolist())
    kept = np.where(np.vectorize(lambda n: sizes[n] >= dust, otypes=[bool])(labels), labels, 0)
    table = drop_small_labels(block_contingency(segmentation, labels), dust)
    assert as_rows(table) == as_rows(block_contingency(segmentation, kept))


def test_a_label_of_just_enough_voxels_is_kept() -> None:
    labels = np.array([1, 1, 2, 2, 2])
    table = block_contingency(np.array([5, 6, 5, 6, 6], np.uint64), labels)
    assert as_rows(drop_small_labels(table, 2)) == as_rows(table)
    assert as_rows(drop_small_labels(table, 3)) == [(5, 2, 1), (6, 2, 2)]


def test_refuses_what_cannot_be_counted() -> None:
    segmentation, labels = random_pair(0, (2, 3, 4))
    with pytest.raises(ShapeError):
        block_contingency(segmentation[1:], labels)
    with pytest.raises(DataError, match="-1"):
        block_contingency(segmentation, labels - 1 - labels.min())
    with pytest.raises(DataError, match="float64"):
        block_contingency(segmentation, labels.astype(float))
    known = np.unique(segmentation)[1:-1]
    with pytest.raises(DataError, match=str(segmentation.max())):
        relabel(block_contingency(segmentation, labels), known, known)


def test_background_needs_no_row_in_the_lut() -> None:
    none = np.empty(0, np.uint64)
    background = block_contingency(np.zeros((2, 2, 2), np.uint64), np.ones((2, 2, 2), np.uint8))
    assert as_rows(relabel(background, none, none)) == [(0, 1, 8)]
    assert as_rows(merge([])) == []
