"""Sums over instances, against loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdseg.errors import ConfigError, ShapeError
from kdseg.networks.models import Batch
from kdseg.training.losses.instances import at_level, contacts, core, given, instance_means, look_up, owners

SHAPE = (5, 6, 7)


def numbered(seed: int = 0, n: int = 2, per_crop: int = 6) -> tuple[Tensor, int]:
    """Boxes of instances, numbered over the whole batch in no particular order, with gaps of 0."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, per_crop + 1, (n, 3, 3, 4), generator=generator)
    for axis in (1, 2, 3):
        ids = ids.repeat_interleave(2, dim=axis)
    ids = ids[:, :5, :6, :7]
    ids = torch.where(ids > 0, ids + per_crop * torch.arange(n)[:, None, None, None], 0)
    found = ids.unique()
    found = found[found > 0]
    names = torch.zeros(n * per_crop + 1, dtype=torch.int64)
    names[found] = 1 + torch.randperm(len(found), generator=generator)
    return names[ids], len(found)


def looped_means(values: Tensor, ids: Tensor, count: int) -> Tensor:
    rows = values.movedim(1, -1)
    return torch.stack([rows[ids == i].mean(0) for i in range(1, count + 1)])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_means_and_their_gradient_are_those_of_a_loop(layout: torch.memory_format, dtype: torch.dtype) -> None:
    ids, count = numbered()
    values = torch.randn(2, 4, *SHAPE, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    expected = looped_means(values, ids, count)
    means, sizes = instance_means(values, ids, count)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert torch.allclose(means, expected, rtol=tolerance, atol=tolerance)
    assert sizes.tolist() == [int((ids == i).sum()) for i in range(1, count + 1)]
    pull = torch.randn_like(means)
    (ours,) = torch.autograd.grad(means, values, pull)
    (theirs,) = torch.autograd.grad(expected, values, pull)
    assert torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def test_long_sums_keep_their_digits_and_chunks_do_not_mix() -> None:
    ids = torch.zeros(1, 20, 30, 40, dtype=torch.int64)
    ids[:, 3:, :, :17], ids[:, 3:, :, 17:] = 2, 1
    values = 1000 + torch.randn(1, 3, 20, 30, 40, generator=torch.Generator().manual_seed(0))
    means, _ = instance_means(values, ids, 2)
    assert torch.allclose(means.double(), looped_means(values.double(), ids, 2), rtol=3e-7)


def test_means_of_absent_instances_are_0_and_no_instances_are_none() -> None:
    values = torch.randn(1, 3, 2, 2, 2, requires_grad=True)
    ids = torch.zeros(1, 2, 2, 2, dtype=torch.int64)
    ids[0, 0, 0, 0] = 2
    means, sizes = instance_means(values, ids, 3)
    assert sizes.tolist() == [0, 1, 0]
    assert not means[[0, 2]].any()
    means.sum().backward()
    assert values.grad is not None
    assert values.grad.sum() == 3
    none, empty = instance_means(values, torch.zeros_like(ids), 0)
    assert none.shape == (0, 3)
    assert empty.shape == (0,)
    none.sum().backward()
    assert instance_means(values.bfloat16(), ids, 3)[0].dtype == torch.float32


def test_more_instances_than_short_numbers_hold() -> None:
    ids = torch.arange(40_000).reshape(1, 40, 40, 25)
    values = torch.arange(40_000.0).reshape(1, 1, 40, 40, 25)
    means, sizes = instance_means(values, ids, 39_999)
    assert torch.equal(means[:, 0], torch.arange(1.0, 40_000))
    assert sizes.min() == sizes.max() == 1


def test_owners_and_look_up() -> None:
    ids, count = numbered(1, n=3)
    crops = owners(ids, count + 1)
    assert crops[-1] == -1
    for i in range(count):
        assert (ids[crops[i]] == i + 1).any()
    seen = look_up(crops[:, None] + 1, ids)[..., 0]
    assert torch.equal(seen, torch.where(ids > 0, torch.arange(1, 4)[:, None, None, None], 0))


def test_contacts_are_those_of_a_loop() -> None:
    ids, count = numbered(2)
    expected = torch.zeros(count, count, dtype=torch.int64)
    for crop in ids.tolist():
        for z in range(5):
            for y in range(6):
                for x in range(7):
                    for u, v, w in ((z + 1, y, x), (z, y + 1, x), (z, y, x + 1)):
                        if u < 5 and v < 6 and w < 7:
                            a, b = crop[z][y][x], crop[u][v][w]
                            if a and b and a != b:
                                expected[a - 1, b - 1] += 1
                                expected[b - 1, a - 1] += 1
    assert expected.any()
    assert torch.equal(contacts(ids, count), expected)


def test_core_is_what_six_equal_neighbours_surround() -> None:
    ids, _ = numbered(3)
    expected = torch.zeros_like(ids)
    for b in range(2):
        for z in range(5):
            for y in range(6):
                for x in range(7):
                    around = [(z - 1, y, x), (z + 1, y, x), (z, y - 1, x), (z, y + 1, x), (z, y, x - 1), (z, y, x + 1)]
                    inside = [(u, v, w) for u, v, w in around if 0 <= u < 5 and 0 <= v < 6 and 0 <= w < 7]
                    if all(ids[b, u, v, w] == ids[b, z, y, x] for u, v, w in inside):
                        expected[b, z, y, x] = ids[b, z, y, x]
    assert expected.any()
    assert torch.equal(core(ids), expected)


def test_a_coarser_grid_takes_the_voxel_in_the_middle() -> None:
    ids = torch.arange(4 * 6 * 6).reshape(1, 4, 6, 6)
    coarse = at_level(ids, (2, 3, 2))
    assert coarse.shape == (1, 2, 3, 2)
    assert coarse[0, 1, 1, 1] == ids[0, 3, 3, 4]
    with pytest.raises(ShapeError, match="cannot be put"):
        at_level(ids, (3, 3, 2))


def test_what_does_not_fit_is_refused() -> None:
    ids, count = numbered()
    with pytest.raises(ShapeError, match="same voxels"):
        instance_means(torch.zeros(2, 3, 5, 6, 8), ids, count)
    raw = torch.zeros(2, 1, *SHAPE)
    with pytest.raises(ConfigError, match="needs the instances"):
        given(Batch(raw, ids, ids > 0), "graph_relation")
    assert given(Batch(raw, ids, ids > 0, ids), "graph_relation") is ids
