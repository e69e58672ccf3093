"""Affinities across two networks: loops over pairs, what is known, and what equal networks cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from kdseg.config.terms import CadOptions
from kdseg.geometry import Offsets
from kdseg.networks.models import Batch, Outputs, Widths
from kdseg.training.losses import Context, Term, make_term
from kdseg.training.losses.base import class_weights
from kdseg.training.losses.supervised import pair_products

OFFSETS: Offsets = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (2, 0, 0), (-1, 3, 0))
SECTIONS: Offsets = ((-1, 0, 0), (2, 0, 0))
OURS, THEIRS = Widths({"embedding": 4}, (4,), ()), Widths({"embedding": 5}, (5,), ())
CONTEXT = Context(OFFSETS, (40.0, 10.0, 10.0), student=OURS, teacher=OURS)
SHAPE = (4, 5, 6)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def outputs(seed: int, channels: int = 4) -> Outputs:
    return Outputs(
        {"embedding": noise(seed, 2, channels, *SHAPE).requires_grad_()}, (noise(seed, 2, channels, *SHAPE),)
    )


def make_batch(labelled: float | None = None) -> Batch:
    labels = torch.ones(2, *SHAPE, dtype=torch.int64)
    labels[:, :, :, 3:] = 2
    labels[0, :2, 0] = 0
    mask = labels > 0
    mask[1, 3] = False
    return Batch(torch.zeros(2, 1, *SHAPE), labels, mask, labelled=labelled)


def term(options: CadOptions, context: Context = CONTEXT) -> Term:
    torch.manual_seed(0)
    made = make_term(options, context)
    assert isinstance(made, Term)
    return made


def unit(found: Outputs) -> NDArray[Any]:
    values = found.logits["embedding"].detach().double().numpy()
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def pairs(n: int, offset: tuple[int, int, int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    there = {p: tuple(a + b for a, b in zip(p, offset, strict=True)) for p in np.ndindex(*SHAPE)}
    return [((n, *p), (n, *q)) for p, q in there.items() if all(0 <= v < e for v, e in zip(q, SHAPE, strict=True))]


def weighted(found: list[tuple[float, bool]]) -> float:
    """The mean of errors of pairs, the rarer of joined and cut ones heavier."""
    share = torch.tensor(np.mean([joined for _, joined in found]), dtype=torch.float64)
    positive, negative = (float(w) for w in class_weights(share))
    weights = [positive if joined else negative for _, joined in found]
    return float(np.average([error for error, _ in found], weights=weights))


def cosine(a: NDArray[Any], p: tuple[int, ...], b: NDArray[Any], q: tuple[int, ...]) -> float:
    return max(float(a[p[0], :, p[1], p[2], p[3]] @ b[q[0], :, q[1], q[2], q[3]]), 0.0)


@pytest.mark.parametrize("chosen", ["nearest", "all"])
def test_affinities_are_those_of_loops(chosen: Any) -> None:
    student, teacher = outputs(0), outputs(1)
    s, t = unit(student), unit(teacher)
    means = []
    for n in range(2):
        for offset in OFFSETS if chosen == "all" else OFFSETS[:3]:
            both = [(cosine(s, p, s, q), cosine(t, p, t, q)) for p, q in pairs(n, offset)]
            means.append(weighted([((a - b) ** 2, b > 0.5) for a, b in both]))
    found = term(CadOptions(offsets=chosen, graft=0)).parts(student, teacher, make_batch())
    assert list(found) == ["affinity"]
    assert found["affinity"].item() == pytest.approx(np.mean(means), rel=1e-5)


@pytest.mark.parametrize("labelled", [None, 4.0])
def test_grafts_have_the_affinities_of_the_labels(labelled: float | None) -> None:
    student, teacher, batch = outputs(0), outputs(1), make_batch(labelled)
    s, t, total = unit(student), unit(teacher), 0.0
    ids, mask = batch.labels.numpy(), batch.mask.numpy()
    # a voxel beside another neuron is membrane: those at x = 2 and 3, in sections alone as z is coarse
    edge = np.zeros(ids.shape, dtype=bool)
    edge[..., 2:4] = True
    for n in range(2):
        means = []
        for offset in SECTIONS:
            rows = []
            for p, q in (pq for pq in pairs(n, offset) if mask[pq[0]] and mask[pq[1]]):
                joined = bool(ids[p] == ids[q] and not edge[p] and not edge[q])
                rows += [((cosine(a, p, b, q) - joined) ** 2, joined) for a, b in ((s, t), (t, s))]
            means.append(weighted(rows))
        total += float(np.mean(means))
    found = term(CadOptions(affinity=0)).parts(student, teacher, batch)
    assert list(found) == ["graft"]
    assert found["graft"].item() == pytest.approx(total / (labelled or 2), rel=1e-5)


def test_grafts_have_the_affinities_of_the_teacher() -> None:
    student, teacher = outputs(0), outputs(1)
    s, t = unit(student), unit(teacher)
    means = []
    for n in range(2):
        for offset in SECTIONS:
            rows = []
            for p, q in pairs(n, offset):
                target = cosine(t, p, t, q)
                rows += [((cosine(a, p, b, q) - target) ** 2, target > 0.5) for a, b in ((s, t), (t, s))]
            means.append(weighted(rows))
    found = term(CadOptions(target="teacher")).parts(student, teacher, make_batch())["graft"]
    assert found.item() == pytest.approx(np.mean(means), rel=1e-5)


def test_the_gradient_is_that_of_the_value() -> None:
    made, teacher = term(CadOptions(offsets="all"), CONTEXT._replace(teacher=THEIRS)), outputs(1, 5)
    student = outputs(0)
    values = student.logits["embedding"]
    made(student, teacher, make_batch()).backward()
    assert values.grad is not None
    step = 1e-3 * noise(9, *values.shape)
    ends = [made(Outputs({"embedding": values.detach() + sign * step}, ()), teacher, make_batch()) for sign in (1, -1)]
    assert (ends[0] - ends[1]).item() == pytest.approx(2 * (values.grad * step).sum().item(), rel=2e-2)
    assert teacher.logits["embedding"].grad is None
    assert all(p.grad is not None and p.grad.any() for p in made.parameters())


@pytest.mark.parametrize("same", [False, True])
def test_products_of_pairs_have_their_gradient(same: bool) -> None:
    first, second = (noise(seed, 2, 3, *SHAPE).double().requires_grad_() for seed in (0, 1))
    second = first if same else second
    found, strength = pair_products(first, second, OFFSETS), noise(2, 2, len(OFFSETS), *SHAPE).double()
    naive = torch.zeros((), dtype=torch.float64)
    for channel, offset in enumerate(OFFSETS):
        for n in range(2):
            for p, q in pairs(n, offset):
                product = (first[(n, slice(None), *p[1:])] * second[(n, slice(None), *q[1:])]).sum()
                assert found[(n, channel, *p[1:])].item() == pytest.approx(product.item(), abs=1e-12)
                naive = naive + product * strength[(n, channel, *p[1:])]
    leaves = (first,) if same else (first, second)
    slopes = torch.autograd.grad((found * strength).sum(), leaves)
    for slope, expected in zip(slopes, torch.autograd.grad(naive, leaves), strict=True):
        assert torch.allclose(slope, expected, atol=1e-12)


def test_equal_networks_differ_in_nothing() -> None:
    student = outputs(0)
    value = term(CadOptions(target="teacher", offsets="all"))(student, outputs(0), make_batch())
    value.backward()
    assert value.item() == 0
    assert student.logits["embedding"].grad is not None
    assert not student.logits["embedding"].grad.any()


def test_scales_do_not_matter_and_sections_without_labels_have_no_graft() -> None:
    student, teacher, batch = outputs(0), outputs(1), make_batch()
    louder = Outputs({"embedding": 7 * student.logits["embedding"]}, ())
    value = term(CadOptions())(student, teacher, batch).item()
    assert term(CadOptions())(louder, teacher, batch).item() == pytest.approx(value, rel=1e-5)
    nothing = batch._replace(mask=torch.zeros_like(batch.mask))
    found = term(CadOptions()).parts(student, teacher, nothing)
    assert found["graft"].item() == 0
    assert found["affinity"].item() > 0


def test_no_part_is_refused() -> None:
    with pytest.raises(ValidationError, match="neither `affinity` nor `graft`"):
        CadOptions(affinity=0, graft=0)
