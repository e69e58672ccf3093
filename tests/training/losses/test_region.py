"""Regions and how voxels relate to them: closed forms against loops, and what counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from kdseg.config.terms import ReCoKdOptions
from kdseg.errors import ConfigError
from kdseg.networks.models import Batch, Outputs, Widths
from kdseg.training.losses import Context, Term, make_term
from kdseg.training.losses.region import region_relations

OURS, THEIRS = Widths({}, (4, 6), (4,)), Widths({}, (5, 6), (5,))
CONTEXT = Context(((-1, 0, 0), (0, -1, 0), (0, 0, -1)), (10.0, 10.0, 10.0), student=OURS, teacher=THEIRS)
SHAPE = (4, 6, 8)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def outputs(seed: int, widths: Widths) -> Outputs:
    grids = [SHAPE, tuple(n // 2 for n in SHAPE)]
    return Outputs({}, tuple(noise(seed + i, 2, c, *grids[i]).requires_grad_() for i, c in enumerate(widths.features)))


def make_batch(instanced: float | None = None) -> Batch:
    """Two instances and a small one in the first crop, one large one in the second; the rest is none."""
    ids = torch.zeros(2, *SHAPE, dtype=torch.int64)
    ids[0, :, :, :2], ids[0, :, :4, 4:], ids[0, 0, 5, 5:7] = 1, 2, 3
    ids[1, 1:] = 4
    return Batch(torch.zeros(2, 1, *SHAPE), ids, ids > 0, ids, instanced=instanced)


def term(options: ReCoKdOptions, context: Context = CONTEXT) -> Term:
    torch.manual_seed(0)
    made = make_term(options, context)
    assert isinstance(made, Term)
    return made


def regions(level: int, n: int) -> list[NDArray[Any]]:
    """The voxels of each instance of a crop that counts, on the grid of a level."""
    ids = make_batch().instances
    assert ids is not None
    grid = ids[n].numpy() if level == 0 else ids[n, 1::2, 1::2, 1::2].numpy()
    return [grid == i for i in ((1, 2), (4,))[n]]


@pytest.mark.parametrize("instanced", [None, 5.0])
def test_the_parts_are_those_of_loops(instanced: float | None) -> None:
    made, student, teacher = term(ReCoKdOptions(min_size=3)), outputs(0, OURS), outputs(50, THEIRS)
    expected: dict[str, list[float]] = {"region": [], "context": []}
    for level in (0, 1):
        mapped = made.projectors[level](student.features[level]).detach().double().numpy()
        s, t = (o.features[level].detach().double().numpy() for o in (student, teacher))
        sums = {"region": 0.0, "context": 0.0}
        for n in range(2):
            found = regions(level, n)
            sums["region"] += float(np.mean([((mapped[n] - t[n])[:, r] ** 2).mean() for r in found]))
            errors = []
            for r in found:
                a, b = s[n][:, r].mean(1), t[n][:, r].mean(1)
                for p in np.ndindex(*s.shape[2:]):
                    v, w = s[(n, slice(None), *p)], t[(n, slice(None), *p)]
                    one = v @ a / np.linalg.norm(v) / np.linalg.norm(a)
                    errors.append((one - w @ b / np.linalg.norm(w) / np.linalg.norm(b)) ** 2)
            sums["context"] += float(np.mean(errors))
        for part, value in sums.items():
            expected[part].append(value / (instanced or 2))
    found = made.parts(student, teacher, make_batch(instanced))
    assert {part: value.item() for part, value in found.items()} == pytest.approx(
        {part: np.mean(values) for part, values in expected.items()}, rel=1e-5
    )


def test_relations_to_regions_and_their_gradients_are_those_of_the_whole_map() -> None:
    owner = torch.tensor([0, 1, 1])
    ours, theirs = noise(0, 2, 4, *SHAPE).double().requires_grad_(), noise(1, 2, 5, *SHAPE).double()
    means, targets = noise(2, 3, 4).double().requires_grad_(), noise(3, 3, 5).double()
    found = region_relations(ours, means, theirs, targets, owner)

    def unit(values: Tensor) -> Tensor:
        return values / values.norm(dim=1, keepdim=True)

    maps = [
        torch.einsum("kc,kcp->kp", unit(rows), unit(values.flatten(2))[owner])
        for values, rows in ((ours, means), (theirs, targets))
    ]
    squares = (maps[0] - maps[1]).square().sum(1)
    naive = torch.stack([squares[:1].sum(), squares[1:].sum()])
    assert torch.allclose(found, naive, rtol=1e-9)
    slopes = torch.autograd.grad(found.sum(), (ours, means))
    for slope, expected in zip(slopes, torch.autograd.grad(naive.sum(), (ours, means)), strict=True):
        assert torch.allclose(slope, expected, rtol=1e-6, atol=1e-9)


def test_relations_to_regions_keep_small_differences_of_large_crops() -> None:
    ours, means, owner = noise(0, 1, 8, 32, 32, 32), noise(2, 20, 8), torch.zeros(20, dtype=torch.int64)
    given = ours, means, ours + 1e-2 * noise(1, *ours.shape), means + 1e-2 * noise(3, 20, 8)
    exact = region_relations(*(values.double() for values in given), owner).item()
    assert region_relations(*given, owner).item() == pytest.approx(exact, rel=2e-3)


def test_the_gradient_of_regions_is_that_of_the_value() -> None:
    made, student, teacher = term(ReCoKdOptions(min_size=3, context=0)), outputs(0, OURS), outputs(50, THEIRS)
    made(student, teacher, make_batch()).backward()
    slope = student.features[0].grad
    assert slope is not None
    step = noise(9, *slope.shape)
    ends = [
        made(Outputs({}, (student.features[0].detach() + sign * step, student.features[1])), teacher, make_batch())
        for sign in (0.5, -0.5)
    ]
    # exact for a square but for rounding
    assert (ends[0] - ends[1]).item() == pytest.approx((slope * step).sum().item(), rel=1e-3)


def test_equal_networks_differ_in_nothing() -> None:
    made, student = term(ReCoKdOptions(min_size=3), CONTEXT._replace(teacher=OURS)), outputs(0, OURS)
    value = made(student, outputs(0, OURS), make_batch())
    value.backward()
    assert value.item() < 1e-12
    for features in student.features:
        assert features.grad is not None
        assert features.grad.abs().max() < 1e-8


def test_a_small_instance_counts_as_much_as_a_large_one() -> None:
    made = term(ReCoKdOptions(min_size=1, levels=(0,), context=0), CONTEXT._replace(teacher=OURS))
    teacher, batch = outputs(0, OURS), make_batch()
    assert batch.instances is not None
    values = []
    for one in (2, 3):
        changed = teacher.features[0] + (batch.instances == one)[:, None]
        values.append(made(Outputs({}, (changed, teacher.features[1])), teacher, batch).item())
    # each instance off by 1 in every channel: one third of a crop, of two
    assert values == pytest.approx([1 / 6, 1 / 6], rel=1e-5)


def test_one_part_alone_has_no_other_and_none_is_refused() -> None:
    made = term(ReCoKdOptions(region=0, min_size=3))
    assert list(made.parts(outputs(0, OURS), outputs(50, THEIRS), make_batch())) == ["context"]
    assert not list(made.parameters())
    with pytest.raises(ValidationError, match="neither `region` nor `context`"):
        ReCoKdOptions(region=0, context=0)
    with pytest.raises(ConfigError, match="needs the instances of each crop"):
        made(outputs(0, OURS), outputs(50, THEIRS), make_batch()._replace(instances=None))
