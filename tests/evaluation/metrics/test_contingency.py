"""Contingency tables, against counting voxel by voxel, and block by block."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdseg.errors import DataError, ShapeError
from kdseg.evaluation.metrics.contingency import (
    Contingency,
    Located,
    block_contingency,
    block_located,
    drop_small_labels,
    merge,
    relabel,
)
from kdseg.geometry import Roi, Triple, blocks


def random_pair(seed: int, shape: Triple) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    names = np.concatenate(([0], rng.integers(1, 2**63, 5, dtype=np.uint64))).astype(np.uint64)
    return names[rng.integers(0, 6, shape)], rng.integers(0, 5, shape)


def oracle(segmentation: NDArray[np.uint64], labels: NDArray[np.int64], ignored: int) -> list[tuple[int, ...]]:
    pairs = zip(segmentation.ravel().tolist(), labels.ravel().tolist(), strict=True)
    return sorted((s, n, count) for (s, n), count in Counter(pairs).items() if n != ignored)


def as_rows(table: Contingency | Located) -> list[tuple[int, ...]]:
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


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, shape=SHAPES, label=st.none() | st.integers(0, 5), segment=st.none() | st.integers(0, 5))
def test_what_is_ignored_or_masked_is_not_counted(
    seed: int, shape: Triple, label: int | None, segment: int | None
) -> None:
    segmentation, labels = random_pair(seed, shape)
    names = np.unique(np.append(segmentation, np.uint64(0)))
    name = None if segment is None else int(names[segment % names.size])
    mask = np.random.default_rng(seed).random(shape) < 0.7
    counted = mask.copy()
    if label is not None:
        counted &= labels != label
    if name is not None:
        counted &= segmentation != name
    pairs = zip(segmentation[counted].tolist(), labels[counted].tolist(), strict=True)
    want = sorted((s, n, count) for (s, n), count in Counter(pairs).items())
    assert as_rows(block_contingency(segmentation, labels, label, ignore_segment=name, mask=mask)) == want


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, shape=SHAPES, block=st.tuples(*[st.integers(1, 5)] * 3), order=st.randoms())
def test_places_are_the_first_voxels_of_the_volume(seed: int, shape: Triple, block: Triple, order: Random) -> None:
    segmentation, labels = random_pair(seed, shape)
    tables = []
    for cell in blocks(Roi((0, 0, 0), shape), block):
        cut = cell.roi.slices()
        tables.append(block_located(segmentation[cut], labels[cut], cell.roi.offset, shape))
    order.shuffle(tables)
    found = merge(tables)
    want: dict[tuple[int, ...], list[int]] = {}
    for at, pair in enumerate(zip(segmentation.ravel().tolist(), labels.ravel().tolist(), strict=True)):
        if pair[1]:
            want.setdefault(pair, [0, at])[0] += 1
    assert as_rows(found) == sorted((*pair, *rest) for pair, rest in want.items())


def test_places_survive_relabelling_and_dust() -> None:
    segmentation, labels = np.array([[[7, 5, 5, 3, 3]]], np.uint64), np.array([[[1, 1, 1, 1, 2]]])
    table = block_located(segmentation, labels, (0, 0, 0), (1, 1, 5))
    lut = np.array([3, 5, 7], np.uint64), np.array([3, 3, 7], np.uint64)
    assert as_rows(relabel(table, *lut)) == [(3, 1, 3, 1), (3, 2, 1, 4), (7, 1, 1, 0)]
    assert as_rows(drop_small_labels(relabel(table, *lut), 2)) == [(3, 1, 3, 1), (7, 1, 1, 0)]
    with pytest.raises(DataError, match="places"):
        merge([table, block_contingency(segmentation, labels)])  # type: ignore[type-var]


@pytest.mark.parametrize("kind", ["u1", "<i2", ">i4", "<u4", ">u8", "<i8"])
def test_any_integer_type_counts_the_same(kind: str) -> None:
    segmentation, labels = np.random.default_rng(0).integers(0, 100, (2, 5, 6, 7))
    turned = segmentation.astype(kind).transpose(2, 0, 1), labels.astype(kind).transpose(2, 0, 1)
    assert as_rows(block_contingency(*turned)) == oracle(segmentation, labels, 0)


def test_ids_of_64_bits_are_exact() -> None:
    """Neighbours in the last bit; floats of 64 bits would make them one."""
    names = np.array([2**64 - 1, 2**64 - 2, 2**63, 2**63 + 1], np.uint64)
    segmentation, labels = names.repeat(4), np.tile(names, 4)
    rows = [(s, n, 1) for s in sorted(names.tolist()) for n in sorted(names.tolist())]
    assert as_rows(block_contingency(segmentation, labels)) == rows
    without = block_contingency(segmentation, labels, 2**64 - 1, ignore_segment=2**63)
    assert as_rows(without) == [(s, n, 1) for s, n, _ in rows if s != 2**63 and n != 2**64 - 1]


def test_more_pairs_than_the_table_starts_with() -> None:
    ids = np.arange(30_000, dtype=np.uint64)
    table = block_contingency(ids[::-1], ids)
    assert as_rows(table) == [(s, 29_999 - s, 1) for s in range(29_999)]
    assert as_rows(merge([table, table])) == [(s, 29_999 - s, 2) for s in range(29_999)]


@pytest.mark.parametrize("voxels", [8191, 8192, 8193, 16384, 16385, 20_000])
def test_runs_longer_than_the_kernel_looks_at_once(voxels: int) -> None:
    rng = np.random.default_rng(voxels)
    segmentation = rng.integers(1, 9, voxels // 900 + 1).repeat(900)[:voxels]
    labels = rng.integers(0, 9, voxels // 2500 + 1).repeat(2500)[:voxels]
    mask = rng.integers(0, 2, voxels // 3000 + 1).repeat(3000)[:voxels] == 1
    assert as_rows(block_contingency(segmentation, labels)) == oracle(segmentation, labels, 0)
    inside = block_contingency(segmentation, labels, mask=mask)
    assert as_rows(inside) == oracle(segmentation[mask], labels[mask], 0)


def test_merging_reads_one_table_at_a_time() -> None:
    """A generator of tables that would not fit into memory together."""
    alive: list[weakref.ref[NDArray[np.uint64]]] = []

    def tables() -> Iterator[Contingency]:
        for _ in range(20):
            assert sum(ref() is not None for ref in alive) <= 1
            count = np.ones(1000, np.uint64)
            alive.append(weakref.ref(count))
            yield Contingency(np.arange(1000, dtype=np.uint64), np.ones(1000, np.uint64), count)
            del count

    assert as_rows(merge(tables())) == [(s, 1, 20) for s in range(1000)]


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
    with pytest.raises(DataError, match="-1"):
        block_contingency(segmentation, labels, -1)
    with pytest.raises(DataError, match="ignore_segment"):
        block_contingency(segmentation, labels, ignore_segment=2**64)
    with pytest.raises(ShapeError, match="uint8"):
        block_contingency(segmentation, labels, mask=np.ones(labels.shape, np.uint8))  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="does not lie"):
        block_located(segmentation, labels, (0, 0, 1), labels.shape)
    known = np.unique(segmentation)[1:-1]
    with pytest.raises(DataError, match=str(segmentation.max())):
        relabel(block_contingency(segmentation, labels), known, known)


def test_background_needs_no_row_in_the_lut() -> None:
    none = np.empty(0, np.uint64)
    background = block_contingency(np.zeros((2, 2, 2), np.uint64), np.ones((2, 2, 2), np.uint8))
    assert as_rows(relabel(background, none, none)) == [(0, 1, 8)]
    assert as_rows(merge([])) == []
