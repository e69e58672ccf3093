"""Boundaries, against distances between all pairs of voxels, and block by block."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdseg.errors import DataError, ShapeError, VoxelSizeError
from kdseg.evaluation.metrics.boundaries import (
    BoundaryCounts,
    VoxelSize,
    away_from_borders,
    boundary,
    boundary_counts,
    boundary_scores,
    halo,
)
from kdseg.geometry import Roi, Triple, blocks

SIZE: VoxelSize = (40.0, 4.0, 6.0)
SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
TOLERANCES = st.sampled_from([0.0, 4.0, 7.0, 8.0, 12.0, 18.0, 41.0])


def random_pair(seed: int, shape: Triple) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Blobs, and the same with some voxels changed."""
    rng = np.random.default_rng(seed)
    z, y, x = shape
    labels = rng.integers(0, 3, (2, 3, 3)).repeat(2, 0).repeat(3, 1).repeat(3, 2)[:z, :y, :x]
    return np.where(rng.random(shape) < 0.9, np.roll(labels, 1, rng.integers(3)), 7), labels


def brute_boundary(ids: NDArray[np.int64], sections: bool) -> set[Triple]:
    found = set()
    for p in np.ndindex(*ids.shape):
        for axis, step in product(range(1 if sections else 0, 3), (-1, 1)):
            q = list(p)
            q[axis] += step
            if 0 <= q[axis] < ids.shape[axis] and ids[p] != ids[tuple(q)]:
                found.add(p)
    return found


def near(p: Triple, others: set[Triple], tolerance: float, sections: bool) -> bool:
    """Squares of whole nm, so that nothing is rounded."""
    return any(
        sum(((a - b) * int(s)) ** 2 for a, b, s in zip(p, q, SIZE, strict=True)) <= int(tolerance) ** 2
        for q in others
        if not sections or p[0] == q[0]
    )


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 999),
    shape=SHAPES,
    tolerance=TOLERANCES,
    sections=st.booleans(),
    ignored=st.sampled_from([None, 0]),
)
def test_equals_all_pairs_of_voxels(
    seed: int, shape: Triple, tolerance: float, sections: bool, ignored: int | None
) -> None:
    segmentation, labels = random_pair(seed, shape)
    everything = (slice(None), slice(None), slice(None))
    got = boundary_counts(segmentation, labels, tolerance, SIZE, everything, ignore_label=ignored, sections=sections)
    ours, truth = brute_boundary(segmentation, sections), brute_boundary(labels, sections)
    found = {p for p in ours if labels[p] != ignored}
    true = {p for p in truth if labels[p] != ignored}
    assert got == (
        len(found),
        sum(near(p, truth, tolerance, sections) for p in found),
        len(true),
        sum(near(p, ours, tolerance, sections) for p in true),
    )
    away = away_from_borders(labels, tolerance, SIZE, sections=sections)
    assert {p for p in np.ndindex(*shape) if not away[p]} == {
        p for p in np.ndindex(*shape) if near(p, truth, tolerance, sections)
    }


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 999),
    shape=SHAPES,
    block=st.tuples(*[st.integers(1, 5)] * 3),
    tolerance=TOLERANCES,
    sections=st.booleans(),
)
def test_blocks_add_up_to_the_volume(seed: int, shape: Triple, block: Triple, tolerance: float, sections: bool) -> None:
    segmentation, labels = random_pair(seed, shape)
    total = Roi((0, 0, 0), shape)
    margin = halo(tolerance, SIZE, sections=sections)
    counts = BoundaryCounts(0, 0, 0, 0)
    for cell in blocks(total, block):
        read = cell.roi.grow(margin).intersect(total)
        owned = cell.roi.shift((-read.offset[0], -read.offset[1], -read.offset[2])).slices()
        cut = read.slices()
        counts = counts.plus(boundary_counts(segmentation[cut], labels[cut], tolerance, SIZE, owned, sections=sections))
        away = away_from_borders(labels[cut], tolerance, SIZE, sections=sections)[owned]
        whole = away_from_borders(labels, tolerance, SIZE, sections=sections)[cell.roi.slices()]
        assert np.array_equal(away, whole)
    assert counts == boundary_counts(segmentation, labels, tolerance, SIZE, total.slices(), sections=sections)


def test_scores_by_hand() -> None:
    assert boundary_scores(BoundaryCounts(10, 5, 4, 4)) == (2 * 0.5 / 1.5, 0.5, 1)
    assert boundary_scores(BoundaryCounts(0, 0, 0, 0)) == (1, 1, 1)
    assert boundary_scores(BoundaryCounts(3, 0, 3, 0)) == (0, 0, 0)


def test_a_border_moved_within_the_tolerance_is_forgiven() -> None:
    labels = np.arange(10).reshape(1, 1, 10) // 5 + 1
    moved = (np.arange(10).reshape(1, 1, 10) + 2) // 5 + 1
    assert boundary(labels).ravel().nonzero()[0].tolist() == [4, 5]
    everything = (slice(None), slice(None), slice(None))
    # its borders are at 2, 3 and 7, 8; of these 8 is three voxels of 6 nm away
    assert boundary_counts(moved, labels, 12, SIZE, everything) == (4, 3, 2, 2)
    assert boundary_counts(moved, labels, 11, SIZE, everything) == (4, 1, 2, 1)


@pytest.mark.parametrize("sections", [False, True])
def test_one_label_has_no_border(sections: bool) -> None:
    one, two = np.ones((2, 3, 4), np.int64), np.arange(24).reshape(2, 3, 4)
    everything = (slice(None), slice(None), slice(None))
    assert away_from_borders(one, 1000, SIZE, sections=sections).all()
    assert boundary_counts(two, one, 1000, SIZE, everything, sections=sections) == (24, 0, 0, 0)


def test_refuses_what_does_not_fit() -> None:
    ids = np.ones((2, 3, 4), np.int64)
    owned = (slice(None), slice(None), slice(None))
    with pytest.raises(ShapeError):
        boundary_counts(ids, ids[1:], 1, SIZE, owned)
    with pytest.raises(ShapeError):
        away_from_borders(ids[0], 1, SIZE)
    with pytest.raises(DataError, match="-1"):
        boundary_counts(ids, ids, -1, SIZE, owned)
    with pytest.raises(VoxelSizeError):
        halo(1, (4, 0, 4))
