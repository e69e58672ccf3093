"""Ids in PyChunkedGraph's layout: put together bit by bit as its documentation says, and back."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdseg.errors import ConfigError, DataError
from kdseg.geometry import Triple, block_number
from kdseg.segmentation.proofreading.supervoxels import fragment_ids, least_spatial_bits, pychunkedgraph_ids

grids = st.tuples(*[st.integers(1, 700)] * 3)
sizes = st.tuples(*[st.integers(1, 200)] * 3)


def documented(index: Triple, local: int, spatial_bits: int) -> int:
    """PyChunkedGraph's layout as text: fields from the highest bit to the lowest."""
    z, y, x = index
    rest = 64 - 8 - 3 * spatial_bits
    fields = [(1, 8), (x, spatial_bits), (y, spatial_bits), (z, spatial_bits), (local, rest)]
    return int("".join(f"{value:0{width}b}" for value, width in fields), 2)


@settings(deadline=None, max_examples=60)
@given(grid=grids, block=sizes, more=st.integers(0, 1), data=st.data())
def test_equals_the_documented_layout_and_back(grid: Triple, block: Triple, more: int, data: st.DataObject) -> None:
    bits = least_spatial_bits(grid) + more
    most = min(prod(block), 2 ** (56 - 3 * bits) - 1)
    axis = [data.draw(st.lists(st.integers(0, n - 1), min_size=4, max_size=4)) for n in grid]
    indices: list[Triple] = list(zip(*axis, strict=True))
    locals_ = [data.draw(st.integers(1, most)) for _ in indices]
    named = [block_number(i, grid) * prod(block) + k for i, k in zip(indices, locals_, strict=True)]
    ids = np.array([0, *named], np.uint64)
    found = pychunkedgraph_ids(ids, grid, block, bits)
    assert found.tolist() == [0, *(documented(i, k, bits) for i, k in zip(indices, locals_, strict=True))]
    assert found.dtype == np.uint64
    np.testing.assert_array_equal(fragment_ids(found, grid, block, bits), ids)
    if not more:
        np.testing.assert_array_equal(pychunkedgraph_ids(ids, grid, block), found)
        np.testing.assert_array_equal(fragment_ids(found, grid, block), ids)


def test_all_ids_of_a_volume_are_distinct_and_grow_within_a_chunk() -> None:
    grid, block = (3, 2, 5), (2, 3, 2)
    ids = np.arange(1, prod(grid) * prod(block) + 1, dtype=np.uint64).reshape(prod(grid), prod(block))
    found = pychunkedgraph_ids(ids, grid, block, 10)
    assert np.unique(found).size == ids.size
    assert (np.diff(found.astype(np.int64), axis=1) == 1).all()
    chunk = found[:, 0] >> np.uint64(26)
    x_slowest = chunk.reshape(grid).transpose(2, 1, 0).ravel()
    assert (np.diff(x_slowest.astype(np.int64)) > 0).all()


@pytest.mark.parametrize(("grid", "bits"), [((1, 1, 1), 1), ((2, 1, 1), 1), ((1, 3, 2), 2), ((4, 4, 256), 8)])
def test_the_fewest_bits_hold_the_longest_axis(grid: Triple, bits: int) -> None:
    assert least_spatial_bits(grid) == bits


def test_refuses_what_does_not_fit() -> None:
    grid, block = (2, 3, 40), (64, 64, 64)
    one = np.array([7], np.uint64)
    with pytest.raises(ConfigError, match=r"5 spatial bits.*at least 6"):
        pychunkedgraph_ids(one, grid, block, 5)
    with pytest.raises(ConfigError, match="at most 18"):
        fragment_ids(one, grid, block, 19)
    with pytest.raises(DataError, match="beyond a grid"):
        pychunkedgraph_ids(one + np.uint64(prod(grid) * prod(block)), grid, block)
    with pytest.raises(DataError, match=r"number 4 of its block.*leave 2 bits"):
        pychunkedgraph_ids(np.array([3, 4], np.uint64), grid, block, 18)
    with pytest.raises(DataError, match="uint64"):
        pychunkedgraph_ids(one.astype(np.int64), grid, block)  # type: ignore[arg-type]


def test_refuses_ids_that_are_no_fragments() -> None:
    grid, block = (2, 3, 40), (4, 4, 4)
    with pytest.raises(DataError, match="layer 2"):
        fragment_ids(np.array([2 << 56 | 1], np.uint64), grid, block)
    for index, local in (((2, 0, 0), 1), ((0, 3, 0), 1), ((0, 0, 40), 1), ((0, 0, 0), 0), ((0, 0, 0), 65)):
        with pytest.raises(DataError, match="not a fragment"):
            fragment_ids(np.array([documented(index, local, 6)], np.uint64), grid, block)
