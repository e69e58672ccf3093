"""Fragments: flooding against its definition, invariances, and what clean affinities must give."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

from kdseg.config.segmentation import MutexOptions, WatershedOptions, WaterzOptions
from kdseg.errors import ConfigError, DataError, ShapeError
from kdseg.evaluation.metrics.contingency import block_contingency
from kdseg.evaluation.metrics.scores import scores
from kdseg.geometry import Offsets, Triple, pair_slices
from kdseg.segmentation.fragments.flood import flood, levels, seed_rest, strength
from kdseg.segmentation.fragments.heights import distance, smooth
from kdseg.segmentation.fragments.seeds import basins, joined
from kdseg.segmentation.fragments.watershed import clean, drop_weak, fragments, seeded_grains

NEAREST: Offsets = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
LONG: Offsets = (*NEAREST, (-3, 0, 0), (0, -3, 0), (0, 0, -3))
METHODS = [WatershedOptions(), MutexOptions(), WaterzOptions()]
Bools = NDArray[np.bool_]


def from_labels(labels: NDArray[np.uint64], offsets: Offsets) -> NDArray[np.uint8]:
    """Perfect affinities."""
    out = np.zeros((len(offsets), *labels.shape), np.uint8)
    z, y, x = labels.shape
    for channel, offset in zip(out, offsets, strict=True):
        here, there = pair_slices((z, y, x), offset)
        channel[here] = 255 * (labels[here] == labels[there])
    return out


def cells(seed: int, shape: Triple, count: int) -> NDArray[np.uint64]:
    """A Voronoi diagram, ids 1..count."""
    points = np.random.default_rng(seed).uniform(0, 1, (count, 3)) * shape
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    nearest: NDArray[np.intp] = ((voxels[..., None, :] - points) ** 2).sum(-1).argmin(-1)
    return (nearest + 1).astype(np.uint64)


def blurred(seed: int, shape: Triple, offsets: Offsets = NEAREST) -> NDArray[np.uint8]:
    """Affinities of cells with boundaries about two voxels wide, and noise."""
    rng = np.random.default_rng(seed)
    out = np.empty((len(offsets), *shape), np.uint8)
    for channel, perfect in zip(out, from_labels(cells(seed, shape, 12), offsets), strict=True):
        boundary = np.minimum(gaussian_filter(1 - perfect / 255, 1) / 0.36, 1)
        channel[:] = np.clip(255 * (1 - boundary) + rng.normal(0, 25, shape), 0, 255)
    return out


def neighbours(p: Triple, links: NDArray[np.uint8], mask: Bools) -> list[tuple[Triple, int]]:
    found = []
    for axis in range(3):
        for sign in (-1, 1):
            q = list(p)
            q[axis] += sign
            if 0 <= q[axis] < mask.shape[axis] and mask[tuple(q)]:
                z, y, x = q
                found.append(((z, y, x), int(links[(axis, *(p if sign < 0 else q))])))
    return found


def strongest_paths(source: Bools, links: NDArray[np.uint8], mask: Bools) -> NDArray[np.int64]:
    """The weakest link on the best path from the source, by relaxing until nothing changes; -1: no path."""
    strength = np.where(source & mask, 255, -1)
    changed = True
    while changed:
        changed = False
        for p in np.ndindex(*mask.shape):
            if mask[p] and strength[p] >= 0:
                for q, link in neighbours(p, links, mask):
                    if min(strength[p], link) > strength[q]:
                        strength[q] = min(strength[p], link)
                        changed = True
    return strength


def random_graph(seed: int, shape: Triple) -> tuple[NDArray[np.uint8], Bools]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (3, *shape), dtype=np.uint8), rng.random(shape) < 0.8


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), shape=st.tuples(*[st.integers(1, 4)] * 3), first=st.integers(0, 1))
def test_strength_is_the_weakest_axis(seed: int, shape: Triple, first: int) -> None:
    links, mask = random_graph(seed, shape)
    got = strength(links, mask, first)
    records = levels(links, got, mask)
    for p in np.ndindex(*shape):
        along: list[list[int]] = [[], [], []]
        for q, link in neighbours(p, links, mask):
            (axis,) = np.flatnonzero(np.subtract(p, q))
            along[axis].append(link)
            if p > q:
                blend = int(link / 4 + 3 * (int(got[p]) + int(got[q])) / 8)
                assert records[p[0] + 1, p[1] + 1, p[2] + 1, axis] == 1 + blend // 8
        means = [sum(values) // len(values) for values in along[first:] if values]
        assert got[p] == (min(means) if means and mask[p] else 0)
    open_voxels = np.zeros(records.shape[:3], bool)
    open_voxels[1:-1, 1:-1, 1:-1] = mask
    assert np.array_equal(records[..., 3], np.where(open_voxels, 0, 255))


def flooded_plainly(start: NDArray[np.int32], links: NDArray[np.uint8], mask: Bools, first: int) -> NDArray[np.int32]:
    """The definition: of all that are met, the strongest link first, then the one met first."""
    label, met = start.copy(), np.zeros(start.shape, int)
    waiting: list[tuple[int, int, Triple, int]] = []

    def meet(p: Triple, level: int) -> None:
        at = neighbours(p, links, mask)
        for q, link in at:
            if (q[0] == p[0] or first == 0) and start[q] == 0 and min(link, level) > met[q]:
                met[q] = min(link, level)
                waiting.append((-met[q], len(order), q, int(label[p])))
                order.append(0)

    order: list[int] = []
    for p in np.ndindex(*start.shape):
        if start[p]:
            meet((p[0], p[1], p[2]), 32)
    while waiting:
        waiting.sort()
        level, _, q, new = waiting.pop(0)
        if label[q] == 0:
            label[q] = new
            meet(q, -level)
    return label


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    count=st.integers(0, 4),
    first=st.integers(0, 1),
    most=st.sampled_from([2, 32]),
)
def test_flooding_takes_the_strongest_link_first(seed: int, shape: Triple, count: int, first: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    links, mask = rng.integers(1, most + 1, (3, *shape), dtype=np.uint8), rng.random(shape) < 0.8
    start = np.zeros(shape, np.int32)
    start.ravel()[rng.choice(start.size, min(count, start.size), replace=False)] = 1 + np.arange(min(count, start.size))
    start[~mask] = 0
    records = np.full((*(n + 2 for n in shape), 4), 255, np.uint8)
    records[1:-1, 1:-1, 1:-1, :3] = np.moveaxis(links, 0, 3)
    records[1:-1, 1:-1, 1:-1, 3] = np.where(mask, 0, 255)
    padded = np.pad(start, 1)
    flood(padded, records, first)
    filled = padded[1:-1, 1:-1, 1:-1]
    assert np.array_equal(filled, flooded_plainly(start, links, mask, first))
    if first == 0:
        # whatever the order of equals: all that can be reached is, and nothing better from another seed
        best = strongest_paths(start > 0, links, mask)
        assert np.array_equal(filled > 0, best >= 0)
        for one in np.unique(start[start > 0]):
            inside_own = strongest_paths(start == one, links, filled == one)
            assert np.array_equal(inside_own[(filled == one) & (start == 0)], best[(filled == one) & (start == 0)])


def test_flooding_grows_its_queues() -> None:
    rng = np.random.default_rng(0)
    shape = (40, 60, 60)  # all the first chunks are full several times over
    records = np.full((*(n + 2 for n in shape), 4), 255, np.uint8)
    records[1:-1, 1:-1, 1:-1] = rng.integers(1, 33, (*shape, 4))
    records[1:-1, 1:-1, 1:-1, 3] = 0
    start = np.zeros(shape, np.int32)
    start[20, 30, 30], start[3, 3, 3] = 1, 2
    padded = np.pad(start, 1)
    links = np.ascontiguousarray(np.moveaxis(records[1:-1, 1:-1, 1:-1, :3], 3, 0))
    flood(padded, records, 0)
    assert set(np.unique(padded[1:-1, 1:-1, 1:-1])) == {1, 2}
    met = records[1:-1, 1:-1, 1:-1, 3]
    for axis in range(3):
        here, there = pair_slices(shape, (-int(axis == 0), -int(axis == 1), -int(axis == 2)))
        a, b = met[here].astype(int), met[there].astype(int)
        # a voxel's level is that of its strongest path: no link leads to a better one
        link = links[axis][here]
        assert np.all(np.minimum(np.minimum(a, 32), link) <= b)
        assert np.all(np.minimum(np.minimum(b, 32), link) <= a)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    smallest=st.integers(1, 4),
    first=st.integers(0, 1),
)
def test_every_large_component_gets_a_seed(seed: int, shape: Triple, smallest: int, first: int) -> None:
    rng = np.random.default_rng(seed)
    links = rng.choice(np.array([0, 127, 128, 255], np.uint8), (3, *shape), p=[0.5, 0.2, 0.1, 0.2])
    mask = rng.random(shape) < 0.9
    before = np.where((rng.random(shape) < 0.1) & mask, rng.integers(1, 4, shape), 0).astype(np.int32)
    padded = np.pad(before, 1)
    seed_rest(padded, links, mask, 127, smallest, first)
    after = padded[1:-1, 1:-1, 1:-1]
    binary = np.where(links > 127, 255, 0).astype(np.uint8)
    binary[:first] = 0
    given_ids = set(before.ravel().tolist())
    new_ids = []
    todo = mask & (before == 0)
    # voxels without a seed hang together, and touch seeded ones: those are walls here, and make a component seeded
    while todo.any():
        where = np.zeros(shape, bool)
        where.ravel()[todo.ravel().argmax()] = True
        component = strongest_paths(where, binary, mask & (before == 0)) == 255
        todo &= ~component
        touched = {
            q for p in np.argwhere(component) for q, link in neighbours((p[0], p[1], p[2]), binary, mask) if link == 255
        }
        if any(before[q] for q in touched) or component.sum() < smallest:
            assert not after[component].any()
        else:
            (new,) = np.unique(after[component])
            new_ids.append(new)
    assert np.array_equal(after[before > 0], before[before > 0])
    assert len(set(new_ids)) == len(new_ids)
    assert not set(new_ids) & given_ids
    assert not after[~mask].any()


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    spacing=st.sampled_from([(1.0, 1.0, 1.0), (4.0, 1.0, 1.0), (1.0, 2.0, 1.5)]),
    first=st.integers(0, 1),
)
def test_distance_is_that_of_scipy(seed: int, shape: Triple, spacing: tuple[float, float, float], first: int) -> None:
    inside = np.random.default_rng(seed).random(shape) < 0.95
    got = distance(inside, spacing, first)
    parts = [inside] if first == 0 else list(inside[:, None])
    # scipy has no distance where there is no boundary
    expected = [
        distance_transform_edt(part, sampling=spacing) if not part.all() else np.full(part.shape, 16.0)
        for part in parts
    ]
    assert np.allclose(got, np.minimum(np.concatenate(expected), 16))


def test_distance_ends_at_its_reach_and_smoothing_keeps_the_sum() -> None:
    inside = np.ones((3, 4, 50), bool)
    inside[:, :, 0] = False
    got = distance(inside, (1.0, 1.0, 1.0), 0)
    assert np.array_equal(got[1, 1], np.minimum(np.arange(50), 16))
    spike = np.zeros((9, 9, 9), np.float32)
    spike[4, 4, 4] = 1
    smoothed = smooth(spike.copy(), (2.0, 1.0, 1.0), 0)
    assert smoothed.sum() == pytest.approx(1)
    place = np.arange(9) - 4
    assert [float((smoothed.sum(others) * place**2).sum()) for others in ((1, 2), (0, 2), (0, 1))] == [0.25, 1, 1]
    assert np.array_equal(smooth(spike.copy(), (2.0, 1.0, 1.0), 1)[4] > 0, smoothed[4] > 0)
    assert not smooth(spike.copy(), (2.0, 1.0, 1.0), 1)[3].any()


def test_peaks_that_see_each_other_are_one_basin() -> None:
    height = np.zeros((1, 3, 12), np.float32)
    height[0, 1] = [1, 3, 1, 1, 5, 1, 1, 1, 1, 1, 4, 1]
    links = np.full((3, 5, 14, 3), 9, np.uint8)

    def found() -> list[list[bool]]:
        """Return whether the left and the right peak lie with the middle one, with windows of 2, 3 and 6 voxels."""
        labels, peaks = basins(height, links, 8, 0)
        windows = np.array([[0, w, w] for w in (2, 3, 6)])
        into = joined(height, links, 8, windows, labels, peaks)
        alone = [joined(height, links, 8, one[None], labels, peaks)[0] for one in windows]
        assert np.array_equal(into, alone)
        left, middle, right = into[:, labels[1, 2, [2, 5, 11]]].T
        return np.stack((left == middle, right == middle), axis=1).tolist()

    assert found() == [[False, False], [True, False], [True, True]]
    links[..., 8, 2] = 8  # cut, where the right peak looks to the highest
    assert found()[2] == [True, False]
    links[...] = 9
    height[:, :, 7] = -1
    assert found()[2] == [True, False]


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 8), st.integers(3, 24), st.integers(3, 24)),
    options=st.builds(
        WatershedOptions,
        boundary=st.sampled_from([0.3, 0.5, 0.7]),
        seeds=st.sampled_from(["distance", "maxima"]),
        per_section=st.booleans(),
    ),
    distances=st.sets(st.integers(1, 9), min_size=1),
    thick=st.sampled_from([1.0, 2.5]),
)
def test_grains_of_many_seed_distances_are_the_fragments_of_each(
    seed: int, shape: Triple, options: WatershedOptions, distances: set[int], thick: float
) -> None:
    rng = np.random.default_rng(seed)
    affinities = rng.integers(0, 256, (3, *shape), np.uint8) // 3 + np.uint8(120)
    mask, size = rng.random(shape) < 0.95, (thick, 1.0, 1.0)
    ascending = sorted(distances)
    found = seeded_grains(affinities, NEAREST, options, ascending, mask, size)
    assert found.fragment.shape == (len(ascending), found.ids.max() + 1)
    whole = np.s_[0 : shape[0], 0 : shape[1], 0 : shape[2]]
    for far, row in zip(ascending, found.fragment, strict=True):
        one = options.model_copy(update={"seed_distance": far})
        expected = fragments(affinities, NEAREST, one, mask, size)
        assert np.array_equal(clean(row[found.ids], whole, 0), clean(expected, whole, 0))
        assert np.array_equal(row[found.ids] == 0, expected == 0)


@pytest.mark.parametrize("options", METHODS, ids=lambda options: options.method)
def test_perfect_affinities_give_the_labels_back(options: Any) -> None:
    labels = cells(0, (24, 32, 28), 10)
    found = fragments(from_labels(labels, LONG), LONG, options)
    got = scores(block_contingency(found, labels))
    assert got.voi_merge < 0.01
    assert found.dtype == np.uint64
    if options.method != "watershed":  # which may split, at every bulge
        assert got.voi_split < 0.01


@pytest.mark.parametrize("options", METHODS, ids=lambda options: options.method)
def test_same_input_same_fragments_in_order_of_occurrence(options: Any) -> None:
    affinities = blurred(1, (20, 24, 22), LONG)
    found = fragments(affinities, LONG, options)
    assert np.array_equal(found, fragments(affinities.copy(), LONG, options))
    ids, first = np.unique(found[found > 0], return_index=True)
    assert ids.tolist() == list(range(1, ids.size + 1))
    assert ids.size > 5
    assert (np.diff(first) > 0).all()


@pytest.mark.parametrize("options", METHODS, ids=lambda options: options.method)
def test_mask_is_background_and_a_wall(options: Any) -> None:
    mask = np.ones((12, 12, 24), bool)
    mask[:, :, 11:13] = False
    found = fragments(np.full((3, 12, 12, 24), 255, np.uint8), NEAREST, options, mask)
    assert np.array_equal(found > 0, mask)
    assert not set(np.unique(found[:, :, :11])) & set(np.unique(found[:, :, 13:]))


def test_sign_of_the_offsets_does_not_matter() -> None:
    affinities = blurred(2, (16, 18, 20))
    forward = np.stack([np.roll(affinities[axis], -1, axis) for axis in range(3)])
    expected = fragments(affinities, NEAREST, WatershedOptions())
    assert np.array_equal(fragments(forward, ((1, 0, 0), (0, 1, 0), (0, 0, 1)), WatershedOptions()), expected)


def test_few_false_merges_and_all_is_filled() -> None:
    labels = cells(3, (32, 32, 32), 12)
    found = fragments(blurred(3, (32, 32, 32)), NEAREST, WatershedOptions())
    assert (found > 0).all()
    assert scores(block_contingency(found, labels)).voi_merge < 0.3


def test_one_wrong_link_opens_no_boundary() -> None:
    labels = np.ones((20, 20, 40), np.uint64)
    labels[:, :, 20:] = 2
    affinities = from_labels(labels, NEAREST)
    affinities[2, 10, 10, 20] = 255
    found = fragments(affinities, NEAREST, WatershedOptions())
    assert scores(block_contingency(found, labels)).voi_merge < 0.01


def test_a_thin_neurite_beside_a_thick_one_is_not_lost() -> None:
    labels = np.ones((20, 20, 20), np.uint64)
    labels[:, 9:11, 9] = 2  # its distance is far below that of the block around it
    found = fragments(from_labels(labels, NEAREST), NEAREST, WatershedOptions(seed_distance=8))
    assert scores(block_contingency(found, labels)).voi_merge == 0


def test_seed_distance_counts_voxels_of_the_finest_axis() -> None:
    def count(voxel_size: tuple[float, float, float], seed_distance: int) -> int:
        options = WatershedOptions(seed_distance=seed_distance)
        return int(fragments(blurred(4, (24, 40, 40)), NEAREST, options, voxel_size=voxel_size).max())

    assert count((1, 1, 1), 2) > count((1, 1, 1), 8)
    assert count((40, 4, 4), 5) > count((4, 4, 4), 5)
    assert count((4, 4, 4), 5) == count((1, 1, 1), 5)


@pytest.mark.parametrize("seeds", ["distance", "maxima"])
@pytest.mark.parametrize("voxel_size", [(1.0, 1.0, 1.0), (40.0, 4.0, 8.0), (2.0, 8.0, 8.0)])
def test_a_section_is_flooded_as_if_it_were_alone(seeds: Any, voxel_size: tuple[float, float, float]) -> None:
    affinities = blurred(5, (6, 24, 24))
    mask = np.random.default_rng(0).random((6, 24, 24)) < 0.95
    mask[:, 10:14] = False
    options = WatershedOptions(per_section=True, seeds=seeds)
    found = fragments(affinities, NEAREST, options, mask, voxel_size)
    sections = [set(np.unique(section[section > 0])) for section in found]
    assert all(section and not section & other for section, other in pairwise(sections))
    for z, section in enumerate(found):
        cut = np.s_[z : z + 1]
        alone = fragments(affinities[:, cut], NEAREST, options, mask[cut], voxel_size)
        assert np.array_equal(np.where(section > 0, section - section[section > 0].min() + 1, 0), alone[0])
    affinities[0] = 0
    assert np.array_equal(found, fragments(affinities, NEAREST, options, mask, voxel_size))
    assert np.array_equal(clean(found, np.s_[2:4, 3:20, 3:20], 0) > 0, found[2:4, 3:20, 3:20] > 0)


def test_sections_do_not_know_how_thick_they_are() -> None:
    affinities = blurred(5, (4, 40, 40))
    options = WatershedOptions(per_section=True, seed_distance=2)
    thin, cubic = (fragments(affinities, NEAREST, options, voxel_size=(z, 8.0, 8.0)) for z in (2.0, 8.0))
    assert np.array_equal(thin, cubic)


@pytest.mark.parametrize("options", [WatershedOptions(), WatershedOptions(per_section=True)])
def test_maxima_of_the_affinity_are_seeds_too(options: WatershedOptions) -> None:
    labels = cells(2, (24, 40, 40), 12)
    affinities = blurred(2, labels.shape)  # type: ignore[arg-type]
    by_distance = fragments(affinities, NEAREST, options)
    by_maxima = fragments(affinities, NEAREST, options.model_copy(update={"seeds": "maxima"}))
    assert not np.array_equal(by_distance, by_maxima)
    assert scores(block_contingency(by_maxima, labels)).voi_merge < 0.5
    smooth_affinities = np.full((3, 9, 9, 9), 200, np.uint8)
    smooth_affinities[:, 2, 2, 2], smooth_affinities[:, 7, 7, 7] = 255, 255
    near, far = (
        fragments(smooth_affinities, NEAREST, WatershedOptions(seeds="maxima", seed_distance=d)).max() for d in (8, 2)
    )
    assert (near, far > 1) == (1, True)


@settings(deadline=None, max_examples=100)
@given(
    least=st.integers(0, 200).map(lambda k: Fraction(k, 200)), voxels=st.sampled_from([20, 40, 80, 120]), data=st.data()
)
def test_weak_fragments_are_told_exactly(least: Fraction, voxels: int, data: st.DataObject) -> None:
    """A row of voxels with the mean strength at the bound, where 255 allows it, or next to it."""
    total = min(max(math.ceil(255 * least * voxels) + data.draw(st.integers(-1, 1)), 0), 255 * voxels)
    strengths = np.full(voxels, total // voxels)
    strengths[: total % voxels] += 1
    affinities = np.zeros((3, 1, 2, voxels), np.uint8)
    affinities[1, 0, 1], affinities[2] = strengths, 255  # along y each voxel has one link, and along x strong ones
    found = np.ones((1, 2, voxels), np.uint64)
    kept = drop_weak(found, affinities, NEAREST, np.s_[0:1, 0:2, 0:voxels], float(least))
    assert kept.any() == (Fraction(total, voxels) >= 255 * least)


@settings(deadline=None, max_examples=100)
@given(
    boundary=st.fractions(0, 1, max_denominator=10**6) | st.integers(0, 255).map(lambda n: Fraction(n, 255)),
    change=st.integers(-1, 1),
)
def test_the_boundary_is_told_exactly(boundary: Fraction, change: int) -> None:
    """Two slabs joined by one link: they are one component, hence one fragment, if it is above the boundary."""
    link = min(max(math.floor(255 * boundary) + change, 0), 255)
    affinities = np.full((3, 1, 1, 24), link, np.uint8)
    found = fragments(affinities, NEAREST, WatershedOptions(boundary=float(boundary)))
    assert found.any() == (link > 255 * boundary)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), ratio=st.integers(1, 4), times=st.integers(1, 2), tenths=st.integers(1, 99))
@example(seed=0, ratio=3, times=1, tenths=7)  # 2.1 / 0.7 is a little above 3 in float64
def test_only_the_ratios_of_a_voxels_sides_matter(seed: int, ratio: int, times: int, tenths: int) -> None:
    affinities = blurred(seed, (6, 16, 16))
    options = WatershedOptions(seeds="maxima", seed_distance=ratio * times)
    scaled = fragments(affinities, NEAREST, options, voxel_size=(ratio * tenths / 10, tenths / 10, tenths / 10))
    assert np.array_equal(scaled, fragments(affinities, NEAREST, options, voxel_size=(ratio, 1, 1)))


def test_weak_fragments_are_dropped() -> None:
    affinities = np.full((3, 8, 8, 12), 255, np.uint8)
    affinities[2, :, :, 6] = 0
    affinities[:, :, :, 6:] //= 2
    found = np.repeat(np.array([1, 2], np.uint64), 4)[None, None].repeat(4, 0).repeat(4, 1)
    core = np.s_[2:6, 2:6, 2:10]
    # at the face, one of the two links along x is 0: strengths are 255, 255, 255, 127 and 63, 127, 127, 127
    for least, expected in ((0.0, {1, 2}), (0.43, {1, 2}), (0.44, {0, 1}), (0.87, {0, 1}), (0.88, {0})):
        kept = drop_weak(found, affinities, NEAREST, core, least)
        assert set(np.unique(kept)) == expected
        assert np.array_equal(kept == 1, found == 1) or least == 0.88
    mask = np.ones((8, 8, 12), bool)
    mask[:, :, :6] = False  # now the right ones have no weak link any more
    assert drop_weak(found, affinities, NEAREST, core, 0.49, mask)[0, 0, 4] == 1
    affinities[0] = 0
    assert not drop_weak(found, affinities, NEAREST, core, 0.1).any()
    assert drop_weak(found, affinities, NEAREST, core, 0.1, per_section=True).all()
    with pytest.raises(ShapeError, match="do not fill"):
        drop_weak(found[1:], affinities, NEAREST, core, 0.1)


def test_core_hardly_depends_on_a_halo_beyond_32() -> None:
    affinities = blurred(6, (72, 72, 72))
    wide = clean(fragments(affinities, NEAREST, WatershedOptions()), (slice(34, 38),) * 3, 0)
    inner = np.ascontiguousarray(affinities[:, 2:-2, 2:-2, 2:-2])
    narrow = clean(fragments(inner, NEAREST, WatershedOptions()), (slice(32, 36),) * 3, 0)
    assert scores(block_contingency(narrow, wide)).voi < 0.02


@pytest.mark.parametrize(
    "options", [WatershedOptions(), WatershedOptions(seeds="maxima"), WatershedOptions(per_section=True)]
)
def test_no_boundary_is_one_fragment_and_only_boundary_none(options: WatershedOptions) -> None:
    pieces = 9 if options.per_section else 1
    shape = (3, 9, 40, 40)
    whole = fragments(np.full(shape, 255, np.uint8), NEAREST, options)
    assert whole.max() == pieces
    assert whole.all()
    for value in (0, 60):
        assert not fragments(np.full(shape, value, np.uint8), NEAREST, options).any()
    assert clean(np.zeros((9, 9, 9), np.uint64), np.s_[0:9, 0:9, 0:9], 5).max() == 0


def test_mutex_bias_merges_and_long_affinities_cut() -> None:
    affinities = blurred(7, (16, 24, 24), LONG)
    few, many = (fragments(affinities, LONG, MutexOptions(bias=bias)).max() for bias in (0.3, -0.2))
    assert few < many
    affinities[3:] = 255  # nothing repels
    assert fragments(affinities, LONG, MutexOptions(bias=0.3)).max() == 1


@pytest.mark.parametrize("shape", [(3, 3, 4), (1, 6, 6), (1, 1, 9), (1, 1, 1), (2, 3, 2)])
def test_mutex_of_a_block_thinner_than_an_offset(shape: Triple) -> None:
    """Like the same voxels amid others that are no tissue, where all offsets fit."""
    offsets: Offsets = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (-9, 0, 0), (0, -5, 0), (0, 0, -27), (0, 3, 3))
    voxels = math.prod(shape)
    distinct = np.random.default_rng(voxels).permutation(256)[: len(offsets) * voxels].astype(np.uint8)
    affinities = distinct.reshape(len(offsets), *shape)
    options = MutexOptions(bias=0.001, strides=(1, 1, 1))  # no two links are equally strong: their order would count
    found = fragments(affinities, offsets, options)
    around = [(0, 0), *((30, 30) for _ in shape)]
    tissue = np.pad(np.ones(shape, np.bool_), around[1:])
    wide = fragments(np.pad(affinities, around), offsets, options, tissue)[tissue]
    assert found.all()
    pairs = {(a, b) for a, b in zip(found.ravel().tolist(), wide.ravel().tolist(), strict=True)}
    assert len(pairs) == len(np.unique(found)) == len(np.unique(wide))


def test_clean_splits_pieces_and_drops_dust() -> None:
    block = np.zeros((3, 3, 9), np.uint64)
    block[:, :, 0] = 4  # in the halo: joins the two pieces below
    block[1, 0, 1:4] = 4
    block[1, 2, 1:3] = 4
    block[1, 1, 4:9] = 2
    core = (slice(0, 3), slice(0, 3), slice(1, 8))
    expected = np.zeros((3, 3, 7), np.uint64)
    expected[1, 0, :3], expected[1, 1, 3:], expected[1, 2, :2] = 1, 2, 3
    assert np.array_equal(clean(block, core, 0), expected)
    expected[1, 2] = 0
    assert np.array_equal(clean(block, core, 3), expected)
    diagonal = np.eye(3, dtype=np.uint64)[None]
    assert clean(diagonal, (slice(0, 1), slice(0, 3), slice(0, 3)), 0).max() == 3
    assert clean(block, (slice(1, 1), slice(0, 3), slice(0, 3)), 0).shape == (0, 3, 3)
    with pytest.raises(ShapeError, match="core"):
        clean(block, (slice(0, 4), slice(0, 3), slice(0, 3)), 0)


def test_refuses_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    affinities = blurred(8, (8, 8, 8))
    with pytest.raises(ShapeError, match="mask"):
        fragments(affinities, NEAREST, WatershedOptions(), np.ones((8, 8, 7), bool))
    with pytest.raises(ShapeError, match="2 offsets"):
        fragments(affinities, NEAREST[:2], WatershedOptions())
    with pytest.raises(ConfigError, match="along x"):
        fragments(affinities[:2], NEAREST[:2], WatershedOptions())
    with pytest.raises(DataError, match="float64"):
        fragments(affinities / 255, NEAREST, WatershedOptions())  # type: ignore[arg-type]
    for module, options in (("mwatershed", MutexOptions()), ("waterz", WaterzOptions())):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ConfigError, match=f"pip install {module}"):
            fragments(affinities, NEAREST, options)
