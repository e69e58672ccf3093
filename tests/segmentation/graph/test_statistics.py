"""Size, box and centre of fragments, against a look at every voxel, and block by block."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdseg.errors import DataError, ShapeError
from kdseg.geometry import Roi, Slices, Triple, blocks
from kdseg.segmentation.graph.statistics import Statistics, block_statistics, by_segment, centroid, merge

shapes = st.tuples(*[st.integers(1, 9)] * 3)
seeds = st.integers(0, 2**32 - 1)


def random_ids(seed: int, shape: Triple, count: int) -> NDArray[np.uint64]:
    rng = np.random.default_rng(seed)
    # ids as far apart as in a large volume; runs along x, as in fragments
    names = np.concatenate(([0], rng.integers(1, 2**63, count, dtype=np.uint64))).astype(np.uint64)
    picked = rng.integers(0, count + 1, shape)
    again = rng.random(shape) < 0.5
    for x in range(1, shape[2]):
        picked[..., x] = np.where(again[..., x], picked[..., x - 1], picked[..., x])
    return names[picked]


def oracle(ids: NDArray[np.uint64], origin: Triple) -> list[tuple[object, ...]]:
    """The definition, id by id."""
    rows: list[tuple[object, ...]] = []
    for name in sorted(int(i) for i in np.unique(ids) if i):
        places = np.argwhere(ids == np.uint64(name)) + origin
        first, last, total = places.min(axis=0), places.max(axis=0) + 1, [sum(map(int, c)) for c in places.T]
        rows.append((name, len(places), tuple(first), tuple(last), tuple(total)))
    return rows


def as_rows(statistics: Statistics) -> list[tuple[object, ...]]:
    name, size, begin, end, total = (column.tolist() for column in statistics)
    return list(zip(name, size, map(tuple, begin), map(tuple, end), map(tuple, total), strict=True))


def whole(shape: tuple[int, ...]) -> Slices:
    z, y, x = shape
    return slice(0, z), slice(0, y), slice(0, x)


@settings(deadline=None, max_examples=40)
@given(
    seed=seeds, shape=shapes, count=st.integers(1, 6), origin=st.tuples(*[st.integers(0, 10**6)] * 3), data=st.data()
)
def test_equals_a_look_at_every_voxel(
    seed: int, shape: Triple, count: int, origin: Triple, data: st.DataObject
) -> None:
    ids = random_ids(seed, shape, count)
    start = [data.draw(st.integers(0, n)) for n in shape]
    z, y, x = (slice(a, data.draw(st.integers(a, n))) for a, n in zip(start, shape, strict=True))
    found = block_statistics(ids, (z, y, x), origin)
    moved = (origin[0] + start[0], origin[1] + start[1], origin[2] + start[2])
    assert as_rows(found) == oracle(ids[z, y, x], moved)
    assert [column.dtype for column in found] == [np.uint64, np.uint64, np.int64, np.int64, np.uint64]


def test_equals_it_where_the_table_must_grow_and_ids_lie_in_another_order() -> None:
    ids = np.asfortranarray(random_ids(0, (20, 20, 20), 5000))
    assert as_rows(block_statistics(ids, whole(ids.shape), (0, 0, 0))) == oracle(ids, (0, 0, 0))


@settings(deadline=None, max_examples=40)
@given(seed=seeds, shape=shapes, block=st.tuples(*[st.integers(1, 5)] * 3), order=st.randoms(use_true_random=False))
def test_blocks_add_up_to_the_volume(seed: int, shape: Triple, block: Triple, order: object) -> None:
    ids = random_ids(seed, shape, 4)
    tables = []
    for cell in blocks(Roi((0, 0, 0), shape), block):
        read = cell.roi.grow((1, 1, 1)).intersect(Roi((0, 0, 0), shape))
        tables.append(block_statistics(ids[read.slices()], cell.roi.slices(within=read), read.offset))
    order.shuffle(tables)  # type: ignore[attr-defined]
    half = len(tables) // 2
    assert as_rows(merge([merge(tables[:half]), merge(tables[half:])])) == oracle(ids, (0, 0, 0))


@settings(deadline=None, max_examples=30)
@given(seed=seeds, shape=shapes)
def test_segments_are_the_sums_of_their_fragments(seed: int, shape: Triple) -> None:
    ids = random_ids(seed, shape, 6)
    names = np.unique(ids[ids > 0])
    rng = np.random.default_rng(seed)
    segments = rng.integers(0, 4, names.size, dtype=np.uint64) * np.uint64(2**61)
    found = by_segment(block_statistics(ids, whole(shape), (5, 0, 7)), names, segments)
    painted = np.zeros(shape, np.uint64)
    for name, segment in zip(names, segments, strict=True):
        painted[ids == name] = segment
    assert as_rows(found) == oracle(painted, (5, 0, 7))


def test_centroid_is_the_mean_voxel() -> None:
    ids = np.zeros((3, 4, 5), np.uint64)
    ids[1, 1:3, 0:3] = 9
    found = centroid(block_statistics(ids, whole(ids.shape), (100, 0, 0)))
    np.testing.assert_array_equal(found, [[101.0, 1.5, 1.0]])
    assert found.dtype == np.float64


def test_merge_of_nothing_is_empty() -> None:
    empty = block_statistics(np.zeros((2, 2, 2), np.uint64), whole((2, 2, 2)), (0, 0, 0))
    for found in (merge([]), merge([empty, merge([])]), by_segment(empty, empty.fragment, empty.fragment)):
        assert as_rows(found) == []
        assert [column.shape for column in found] == [(0,), (0,), (0, 3), (0, 3), (0, 3)]
    assert centroid(empty).shape == (0, 3)


def row(size: int, total: int) -> Statistics:
    box = np.zeros((1, 3), np.int64)
    sums = np.array([[0, 0, total]], np.uint64)
    return Statistics(np.array([3], np.uint64), np.array([size], np.uint64), box, box + 1, sums)


@settings(deadline=None, max_examples=100)
@given(parts=st.lists(st.integers(0, 2**64 - 1) | st.integers(2**63 - 2, 2**63 + 2), min_size=1, max_size=3))
def test_sums_are_refused_exactly_where_they_do_not_fit(parts: list[int]) -> None:
    tables = [row(1, part) for part in parts]
    if sum(parts) >= 2**64:
        with pytest.raises(DataError, match=r"of 3 add up to 2\*\*64"):
            merge(tables)
    else:
        assert merge(tables).total.tolist() == [[0, 0, sum(parts)]]


@settings(deadline=None, max_examples=100)
@given(voxels=st.integers(3, 9), below=st.integers(-2, 6))
def test_coordinates_of_a_block_likewise(voxels: int, below: int) -> None:
    start = 2**64 // voxels - below
    ids, total = np.ones((1, 1, voxels), np.uint64), sum(start + k for k in range(voxels))
    if total >= 2**64:
        with pytest.raises(DataError, match=r"of 1 add up to 2\*\*64"):
            block_statistics(ids, whole(ids.shape), (0, 0, start))
    else:
        assert block_statistics(ids, whole(ids.shape), (0, 0, start)).total.tolist() == [[0, 0, total]]


def test_sums_are_exact_up_to_the_largest_integer_and_refused_above() -> None:
    found = merge([row(1, 2**63 - 1), row(2**40, 2**62 + 1)])
    assert as_rows(found)[0][1] == 2**40 + 1
    assert found.total[0, 2] == 2**63 + 2**62
    with pytest.raises(DataError, match=r"2\*\*64"):
        merge([row(1, 2**63), row(1, 2**63)])
    with pytest.raises(DataError, match=r"2\*\*64"):
        block_statistics(np.ones((1, 1, 4), np.uint64), whole((1, 1, 4)), (0, 0, 2**62))


def test_refuses_what_does_not_fit() -> None:
    ids = np.ones((3, 4, 5), np.uint64)
    with pytest.raises(ShapeError, match="owned"):
        block_statistics(ids, whole((3, 4, 6)), (0, 0, 0))
    with pytest.raises(ShapeError, match="negative"):
        block_statistics(ids, whole((3, 4, 5)), (0, -1, 0))
    with pytest.raises(DataError, match="int32"):
        block_statistics(ids.astype(np.int32), whole((3, 4, 5)), (0, 0, 0))  # type: ignore[arg-type]
    found = block_statistics(ids, whole((3, 4, 5)), (0, 0, 0))
    with pytest.raises(DataError, match="fragment 1 is not in the lookup table"):
        by_segment(found, found.fragment + np.uint64(1), found.fragment)
