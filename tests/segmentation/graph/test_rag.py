"""The region graph, against a loop over voxels, and block by block."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdseg.errors import DataError, ShapeError
from kdseg.geometry import Offsets, Roi, Slices, Triple, blocks, offsets_reach
from kdseg.segmentation.graph.rag import Edges, block_edges, merge

MIXED: Offsets = ((-1, 0, 0), (0, 1, 0), (0, 0, -1), (0, -2, 3), (-3, 0, 0))


def oracle(
    fragments: NDArray[np.uint64], affinities: NDArray[np.uint8], offsets: Offsets, owned: Slices
) -> list[tuple[int, int, int, int]]:
    """The definition, voxel by voxel."""
    rows: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
    for p in np.ndindex(*fragments.shape):
        for c, offset in enumerate(offsets):
            q = tuple(i + o for i, o in zip(p, offset, strict=True))
            if not all(0 <= i < n for i, n in zip(q, fragments.shape, strict=True)):
                continue
            a, b = int(fragments[p]), int(fragments[q])
            p_owned, q_owned = (all(s.start <= i < s.stop for i, s in zip(v, owned, strict=True)) for v in (p, q))
            if a == b or a == 0 or b == 0 or not (p_owned or q_owned):
                continue
            pair = rows[min(a, b), max(a, b)]
            if p_owned:  # else another block counts it
                pair[0] += int(affinities[(c, *p)])
                pair[1] += 1
    return [(*pair, rows[pair][0], rows[pair][1]) for pair in sorted(rows)]


def random_block(seed: int, shape: Triple, ids: int, offsets: Offsets) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    # ids as far apart as in a large volume, where 32 bits and float64 are too few
    names = np.concatenate(([0], rng.integers(1, 2**63, ids, dtype=np.uint64)))
    fragments = names[rng.integers(0, ids + 1, shape)].astype(np.uint64)
    return fragments, rng.integers(0, 256, (len(offsets), *shape), dtype=np.uint8)


def as_rows(edges: Edges) -> list[tuple[int, ...]]:
    return [tuple(int(value) for value in row) for row in zip(*edges, strict=True)]


def whole(shape: tuple[int, ...]) -> Slices:
    z, y, x = shape
    return slice(0, z), slice(0, y), slice(0, x)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    ids=st.integers(1, 6),
    data=st.data(),
)
def test_equals_the_loop_over_voxels(seed: int, shape: Triple, ids: int, data: st.DataObject) -> None:
    fragments, affinities = random_block(seed, shape, ids, MIXED)
    start = [data.draw(st.integers(0, n)) for n in shape]
    z, y, x = (slice(a, data.draw(st.integers(a, n))) for a, n in zip(start, shape, strict=True))
    edges = block_edges(fragments, affinities, MIXED, (z, y, x))
    assert as_rows(edges) == oracle(fragments, affinities, MIXED, (z, y, x))
    assert all(column.dtype == np.uint64 for column in edges)


def test_equals_the_loop_where_the_table_must_grow() -> None:
    fragments, affinities = random_block(0, (24, 24, 24), 13_000, MIXED)
    edges = block_edges(fragments, affinities, MIXED, whole(fragments.shape))
    assert as_rows(edges) == oracle(fragments, affinities, MIXED, whole(fragments.shape))


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    block=st.tuples(*[st.integers(1, 5)] * 3),
    order=st.randoms(use_true_random=False),
)
def test_blocks_add_up_to_the_volume(seed: int, shape: Triple, block: Triple, order: object) -> None:
    fragments, affinities = random_block(seed, shape, 4, MIXED)
    reach = tuple(max(pair) for pair in zip(*offsets_reach(MIXED), strict=True))
    volume = Roi((0, 0, 0), shape)
    tables = []
    for cell in blocks(volume, block):
        read = cell.roi.grow(reach).intersect(volume)
        cut = read.slices()
        tables.append(block_edges(fragments[cut], affinities[(slice(None), *cut)], MIXED, cell.roi.slices(within=read)))
    order.shuffle(tables)  # type: ignore[attr-defined]
    expected = block_edges(fragments, affinities, MIXED, whole(shape))
    assert as_rows(merge(tables)) == as_rows(expected)


def test_merge_of_nothing_is_empty() -> None:
    assert as_rows(merge([])) == []
    assert as_rows(merge([merge([]), merge([])])) == []


def test_refuses_what_does_not_fit() -> None:
    fragments, affinities = random_block(0, (3, 4, 5), 3, MIXED)
    owned = whole(fragments.shape)
    with pytest.raises(ShapeError, match="5 offsets"):
        block_edges(fragments, affinities[:4], MIXED, owned)
    with pytest.raises(ShapeError, match="owned"):
        block_edges(fragments, affinities, MIXED, (slice(0, 4), *owned[1:]))
    with pytest.raises(DataError, match="float32"):
        block_edges(fragments, affinities.astype(np.float32), MIXED, owned)
