"""Targets against loops that are their definition."""

from __future__ import annotations

from itertools import product
from math import exp, pi, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from kdseg.errors import ShapeError
from kdseg.training.targets import affinities, boundary_voxels, local_shape_descriptors

SHAPES = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5)
STEP = st.integers(-6, 6)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, tuple[tuple[int, int, int], ...]]:
    shape = draw(SHAPES)
    labels = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 3)))
    mask = draw(hnp.arrays(bool, shape))
    boundary = draw(hnp.arrays(bool, shape))
    offsets = draw(st.lists(st.tuples(STEP, STEP, STEP), min_size=1, max_size=4))
    return torch.from_numpy(labels), torch.from_numpy(mask), torch.from_numpy(boundary), tuple(offsets)


@settings(deadline=None, max_examples=50)
@given(cases())
def test_affinities_are_those_of_the_loop(
    case: tuple[Tensor, Tensor, Tensor, tuple[tuple[int, int, int], ...]],
) -> None:
    labels, mask, boundary, offsets = case
    target, known = affinities(labels, offsets, mask=mask, boundary=boundary)
    plain, plain_known = affinities(labels, offsets)
    for channel, offset in enumerate(offsets):
        for p in product(*(range(n) for n in labels.shape)):
            q = tuple(a + o for a, o in zip(p, offset, strict=True))
            inside = all(0 <= a < n for a, n in zip(q, labels.shape, strict=True))
            same = inside and bool(labels[p] == labels[q]) and bool(labels[p] > 0)
            assert plain[(channel, *p)] == same
            assert plain_known[(channel, *p)] == (inside and bool(labels[p] > 0) and bool(labels[q] > 0))
            assert target[(channel, *p)] == (same and not boundary[p] and not boundary[q])
            assert known[(channel, *p)] == (inside and bool(mask[p]) and bool(mask[q]))


def test_length_of_z_offsets_counts() -> None:
    """Published code compares z with z - 1 whatever the offset; sections that alternate tell the difference."""
    labels = (1 + torch.arange(8) % 2)[:, None, None].expand(8, 3, 3)
    target, known = affinities(labels, ((-1, 0, 0), (-2, 0, 0), (-3, 0, 0), (-4, 0, 0)))
    for channel, length in enumerate((1, 2, 3, 4)):
        assert not known[channel, :length].any()
        assert known[channel, length:].all()
        assert (target[channel, length:] == (length % 2 == 0)).all()


def test_affinities_of_a_batch_are_those_of_its_crops() -> None:
    labels = torch.randint(0, 4, (3, 4, 5, 6))
    target, known = affinities(labels, ((-1, 0, 0), (0, 2, -1)))
    for crop, t, k in zip(labels, target, known, strict=True):
        one = affinities(crop, ((-1, 0, 0), (0, 2, -1)))
        assert torch.equal(t, one[0])
        assert torch.equal(k, one[1])


@settings(deadline=None, max_examples=50)
@given(
    hnp.arrays(np.int64, SHAPES, elements=st.sampled_from([0, 1, 2, 2**40])),
    st.sampled_from(["yx", "zyx", "x"]),
    st.integers(1, 3),
)
def test_boundary_voxels_are_those_of_the_loop(labels: np.ndarray, axes: str, width: int) -> None:
    found = boundary_voxels(torch.from_numpy(labels), axes, width).numpy()
    reach = [width * (axis in axes) for axis in "zyx"]
    for p in np.ndindex(labels.shape):
        window = labels[tuple(slice(max(a - r, 0), a + r + 1) for a, r in zip(p, reach, strict=True))]
        assert found[p] == (len(set(window[window > 0])) > 1)


def brute_force_descriptors(labels: np.ndarray, voxel_size: tuple[float, ...], sigma: float) -> np.ndarray:
    result = np.zeros((10, *labels.shape))
    for p in np.ndindex(labels.shape):
        if labels[p] == 0:
            continue
        weights, distances = [], []
        for q in np.argwhere(labels == labels[p]):
            d = (q - p) * voxel_size / sigma
            weights.append(exp(-(d @ d) / 2))
            distances.append(d)
        w, d = np.array(weights), np.array(distances)
        mean = (w[:, None] * d).sum(0) / w.sum()
        c = np.einsum("k,ki,kj->ij", w, d - mean, d - mean) / w.sum()
        pairs = [(0, 1), (0, 2), (1, 2)]
        spread = [sqrt(c[i, i] * c[j, j]) for i, j in pairs]
        correlation = [c[i, j] / s if s > 1e-4 else 0 for (i, j), s in zip(pairs, spread, strict=True)]
        full = sqrt(2 * pi) ** 3 * sigma**3 / np.prod(voxel_size)
        result[(slice(None), *p)] = [
            *(mean / 2 + 0.5),
            *np.diag(c),
            *(np.array(correlation) / 2 + 0.5),
            w.sum() / full,
        ]
    return result.clip(0, 1)


@settings(deadline=None, max_examples=25)
@given(
    hnp.arrays(np.int64, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6), elements=st.integers(0, 3)),
    st.sampled_from([(10.0, 10.0, 10.0), (40.0, 8.0, 4.0)]),
    st.sampled_from([15.0, 40.0]),
)
def test_descriptors_are_those_of_the_loop(labels: np.ndarray, voxel_size: tuple[float, ...], sigma: float) -> None:
    found, known = local_shape_descriptors(torch.from_numpy(labels), voxel_size, sigma)
    expected = brute_force_descriptors(labels, voxel_size, sigma)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-3)
    np.testing.assert_array_equal(known.numpy(), labels > 0)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_descriptors_of_a_part_are_those_of_the_whole(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 7)] * 3))
    labels = torch.from_numpy(data.draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 3))))
    first = [data.draw(st.integers(0, n - 1)) for n in shape]
    core = tuple(slice(a, data.draw(st.integers(a + 1, n))) for a, n in zip(first, shape, strict=True))
    whole, known = local_shape_descriptors(labels, (40.0, 8.0, 4.0), 20.0)
    found = local_shape_descriptors(labels, (40.0, 8.0, 4.0), 20.0, core)  # type: ignore[arg-type]
    torch.testing.assert_close(found[0], whole[(slice(None), *core)], atol=2e-5, rtol=0)
    assert torch.equal(found[1], known[core])


def test_descriptors_do_not_depend_on_ids() -> None:
    labels = torch.randint(0, 4, (6, 7, 8))
    renamed = torch.tensor([0, 2**50, 7, 3])[labels]
    a, b = (local_shape_descriptors(ids, (10.0, 10.0, 10.0), 30.0)[0] for ids in (labels, renamed))
    torch.testing.assert_close(a, b)


def test_descriptors_of_nothing_are_zero() -> None:
    found, known = local_shape_descriptors(torch.zeros(3, 4, 5, dtype=torch.int64), (1.0, 1.0, 1.0), 2.0)
    assert not found.any()
    assert not known.any()


def test_descriptors_take_one_crop() -> None:
    with pytest.raises(ShapeError, match=r"\(z, y, x\)"):
        local_shape_descriptors(torch.zeros(1, 3, 4, 5, dtype=torch.int64), (1.0, 1.0, 1.0), 2.0)
