"""Regions and grids: every voxel exactly once, wherever the region starts."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdseg.errors import ShapeError
from kdseg.geometry import Roi, block_number, blocks, grid_shape, offsets_reach, pair_slices, sides

triples = st.tuples(*[st.integers(0, 20)] * 3)
extents = st.tuples(*[st.integers(1, 9)] * 3)


@given(triples, extents, extents)
def test_blocks_tile_a_region_once(offset, shape, block):
    total = Roi(offset, shape)
    seen = np.zeros(total.end, int)
    for one in blocks(total, block):
        seen[one.roi.slices()] += 1
        # anchored at the origin: a block never crosses a multiple of its extent
        assert all(o // b == (e - 1) // b for o, e, b in zip(one.roi.offset, one.roi.end, block, strict=True))
    expected = np.zeros(total.end, int)
    expected[total.slices()] = 1
    assert (seen == expected).all()


@given(extents, extents)
def test_block_numbers_are_unique_and_in_c_order(shape, block):
    grid = grid_shape(shape, block)
    numbers = [block_number(one.index, grid) for one in blocks(Roi((0, 0, 0), shape), block)]
    assert numbers == list(range(grid[0] * grid[1] * grid[2]))


@given(st.tuples(*[st.integers(1, 5)] * 3), st.tuples(*[st.integers(-6, 6)] * 3))
def test_pair_slices_are_all_pairs_inside(shape, offset):
    array = np.arange(np.prod(shape)).reshape(shape)
    here, there = pair_slices(shape, offset)
    expected = [
        (array[p], array[tuple(np.add(p, offset))])
        for p in product(*map(range, shape))
        if all(0 <= i + o < n for i, o, n in zip(p, offset, shape, strict=True))
    ]
    assert list(zip(array[here].ravel(), array[there].ravel(), strict=True)) == expected


def test_regions():
    roi = Roi((1, 2, 3), (4, 5, 6))
    assert roi.end == (5, 7, 9)
    assert roi.size == 120
    assert roi.grow((1, 1, 1), (0, 2, 0)) == Roi((0, 1, 2), (5, 8, 7))
    assert roi.shift((-1, 0, 1)) == Roi((0, 2, 4), (4, 5, 6))
    assert roi.intersect(Roi((4, 0, 0), (9, 3, 4))) == Roi((4, 2, 3), (1, 1, 1))
    assert roi.intersect(Roi((50, 0, 0), (9, 3, 4))).size == 0
    assert roi.contains(Roi((2, 3, 4), (1, 1, 1)))
    assert not roi.contains(Roi((0, 3, 4), (1, 1, 1)))
    assert str(roi) == "[1:5, 2:7, 3:9]"


def test_slices_outside_are_refused():
    with pytest.raises(ShapeError, match="does not lie inside"):
        Roi((0, 0, 0), (3, 3, 3)).slices(Roi((1, 0, 0), (9, 9, 9)))


def test_reach_of_offsets():
    assert offsets_reach(((-1, 0, 0), (0, 9, 0), (0, -3, 2))) == ((1, 3, 0), (0, 9, 2))
    assert offsets_reach(()) == ((0, 0, 0), (0, 0, 0))


def test_the_middle_of_a_box_is_cut_to_it() -> None:
    box = Roi((10, 20, 30), (4, 5, 6))
    assert box.central((2, 9, 3)) == Roi((11, 20, 31), (2, 5, 3))
    assert box.central((4, 5, 6)) == box


def test_sides_are_counted_in_the_finest_voxels() -> None:
    assert sides((10, 20, 30), (40.0, 4.0, 8.0)) == (100, 20, 60)
    assert sides((5, 6, 7), (9.0, 9.0, 9.0)) == (5, 6, 7)
