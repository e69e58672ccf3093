"""Lookup tables, against flood filling of the pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdseg.errors import DataError, ShapeError
from kdseg.segmentation.lut import apply, lut


def ids(*values: int) -> NDArray[np.uint64]:
    return np.array(values, np.uint64)


def oracle(fragments: list[int], pairs: list[tuple[int, int]]) -> list[int]:
    """Spread the smallest id over the pairs until nothing changes."""
    segment = {fragment: fragment for fragment in fragments}
    changed = True
    while changed:
        changed = False
        for a, b in pairs:
            least = min(segment[a], segment[b])
            changed |= segment[a] != least or segment[b] != least
            segment[a] = segment[b] = least
    return [segment[fragment] for fragment in fragments]


@settings(deadline=None, max_examples=50)
@given(fragments=st.sets(st.integers(1, 2**64 - 1), min_size=1, max_size=12), data=st.data())
def test_equals_spreading_the_smallest_id(fragments: set[int], data: st.DataObject) -> None:
    known = st.sampled_from(sorted(fragments))
    pairs = data.draw(st.lists(st.tuples(known, known), max_size=12))
    a, b = ids(*(a for a, _ in pairs)), ids(*(b for _, b in pairs))
    table = lut(ids(*sorted(fragments)), a, b)
    assert table.tolist() == oracle(sorted(fragments), pairs)
    voxels = data.draw(st.lists(st.sampled_from([0, *sorted(fragments)]), min_size=8, max_size=8))
    mapped = apply(ids(*voxels).reshape(2, 2, 2), ids(*sorted(fragments)), table)
    assert mapped.shape == (2, 2, 2)
    expected = {0: 0, **dict(zip(sorted(fragments), table.tolist(), strict=True))}
    assert mapped.ravel().tolist() == [expected[voxel] for voxel in voxels]


def test_long_chains_have_one_end() -> None:
    fragments = np.arange(1, 100_001, dtype=np.uint64)
    assert lut(fragments, fragments[:-1], fragments[1:]).max() == 1
    assert lut(fragments, fragments[:0:-1], fragments[-2::-1]).max() == 1


def test_apply_leaves_its_input_and_takes_views() -> None:
    fragments = np.arange(1, 25, dtype=np.uint64).reshape(2, 3, 4)
    kept = fragments.copy()
    doubled = apply(fragments[:, ::2, 1:], np.arange(1, 25, dtype=np.uint64), np.arange(2, 50, 2, dtype=np.uint64))
    assert np.array_equal(doubled, 2 * kept[:, ::2, 1:])
    assert np.array_equal(fragments, kept)


@pytest.mark.parametrize("unknown", [1, 4, 9])
def test_refuses_unknown_fragments(unknown: int) -> None:
    with pytest.raises(DataError, match=f"fragment {unknown} "):
        apply(ids(0, 3, unknown), ids(3, 5), ids(3, 3))
    with pytest.raises(DataError, match=f"fragment {unknown} "):
        lut(ids(3, 5), ids(3), ids(unknown))


def test_refuses_tables_that_are_none() -> None:
    with pytest.raises(DataError, match="ascend"):
        apply(ids(1), ids(2, 1), ids(1, 1))
    with pytest.raises(DataError, match="ascend"):
        lut(ids(1, 1), ids(), ids())
    with pytest.raises(DataError, match="int64"):
        apply(np.array([1]), ids(1), ids(1))
    with pytest.raises(ShapeError):
        apply(ids(1), ids(1, 2), ids(1))
    with pytest.raises(ShapeError):
        lut(ids(1, 2), ids(1), ids())
