"""Boundaries and context of features: closed forms against loops, and what costs nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from kdseg.config.terms import BckdOptions
from kdseg.networks.models import Batch, Outputs, Widths
from kdseg.training.losses import Context, Term, make_term
from kdseg.training.losses.boundary import boundaries

OURS, THEIRS = Widths({}, (4, 5, 6), (4, 5)), Widths({}, (5, 7, 3), (5, 7))
CONTEXT = Context(((-1, 0, 0), (0, -1, 0), (0, 0, -1)), (10.0, 10.0, 10.0), student=OURS, teacher=THEIRS)
SHAPE = (4, 8, 12)
LABELS = torch.ones(2, *SHAPE, dtype=torch.int64)
BATCH = Batch(torch.zeros(2, 1, *SHAPE), LABELS, LABELS > 0)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def outputs(seed: int, widths: Widths) -> Outputs:
    grids = [tuple(n // 2**level for n in SHAPE) for level in range(3)]
    return Outputs({}, tuple(noise(seed + i, 2, c, *grids[i]).requires_grad_() for i, c in enumerate(widths.features)))


def term(options: BckdOptions, context: Context = CONTEXT) -> Term:
    made = make_term(options, context)
    assert isinstance(made, Term)
    return made


def test_boundaries_are_what_the_mean_around_takes_away() -> None:
    values = noise(0, 2, 3, 4, 5, 1)
    padded = np.pad(values.double().numpy(), [(0, 0), (0, 0), (1, 1), (1, 1), (1, 1)], mode="edge")
    found = boundaries(values)
    assert found.shape == (2, 1, 4, 5, 1)
    for n, z, y, x in np.ndindex(2, 4, 5, 1):
        box = padded[n, :, z : z + 3, y : y + 3, x : x + 3]
        expected = ((box[:, 1, 1, 1] - box.mean((1, 2, 3))) ** 2).mean()
        assert found[n, 0, z, y, x].item() == pytest.approx(expected, rel=1e-4)


def test_the_boundary_part_is_the_distance_of_unit_strengths() -> None:
    student, teacher = outputs(0, OURS), outputs(50, THEIRS)
    losses = []
    for level in (0, 1):
        for n in range(2):
            s, t = (boundaries(o.features[level].detach())[n].double().numpy() for o in (student, teacher))
            losses.append(((s / np.linalg.norm(s) - t / np.linalg.norm(t)) ** 2).sum())
    found = term(BckdOptions(context=0)).parts(student, teacher, BATCH)
    assert list(found) == ["boundary"]
    assert found["boundary"].item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_context_part_is_the_divergence_of_relations() -> None:
    student, teacher = outputs(0, OURS), outputs(50, THEIRS)
    losses = []
    for n in range(2):
        rows = []
        for found in (student, teacher):
            vectors = found.features[1][n].detach().double().flatten(1).T.numpy()
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            relations = np.exp(vectors @ vectors.T / 0.5)
            rows.append(relations / relations.sum(1, keepdims=True))
        losses += [(t * np.log(t / s)).sum() for s, t in zip(*rows, strict=True)]
    made = term(BckdOptions(boundary=0, context_level=1))
    found = made.parts(student, teacher, BATCH)
    assert list(found) == ["context"]
    assert found["context"].item() == pytest.approx(np.mean(losses), rel=1e-4)


def test_the_gradient_is_that_of_the_value() -> None:
    made, student, teacher = term(BckdOptions()), outputs(0, OURS), outputs(50, THEIRS)
    made(student, teacher, BATCH).backward()
    for level in range(3):
        slope = student.features[level].grad
        assert slope is not None
        step = 1e-2 * noise(9, *slope.shape)
        ends = []
        for sign in (1, -1):
            moved = [f.detach() + sign * step if i == level else f for i, f in enumerate(student.features)]
            ends.append(made(Outputs({}, tuple(moved)), teacher, BATCH))
        assert (ends[0] - ends[1]).item() == pytest.approx(2 * (slope * step).sum().item(), rel=2e-2)
    assert all(f.grad is None for f in teacher.features)


def test_equal_networks_differ_in_nothing_and_scale_and_shift_have_no_boundary() -> None:
    made, student = term(BckdOptions(), CONTEXT._replace(teacher=OURS)), outputs(0, OURS)
    value = made(student, outputs(0, OURS), BATCH)
    value.backward()
    assert value.abs() < 1e-6
    assert all(f.grad is not None and f.grad.abs().max() < 1e-7 for f in student.features)
    assert boundaries(torch.full((1, 2, 3, 4, 5), 7.0)).abs().max() < 1e-10
    other = Outputs({}, tuple(5 * f.detach() - 2 for f in student.features))
    assert made.parts(other, outputs(0, OURS), BATCH)["boundary"] < 1e-6


def test_a_teacher_of_another_stride_is_resampled_by_its_boundaries() -> None:
    made, student, teacher = term(BckdOptions(levels=(1,), context=0)), outputs(0, OURS), outputs(50, THEIRS)
    fine = teacher._replace(features=(teacher.features[0], noise(7, 2, 7, *SHAPE), teacher.features[2]))
    blocks = boundaries(fine.features[1]).reshape(2, 1, 2, 2, 4, 2, 6, 2).mean((3, 5, 7))
    s, t = (v.detach().flatten(1) for v in (boundaries(student.features[1]), blocks))
    expected = (s / s.norm(dim=1, keepdim=True) - t / t.norm(dim=1, keepdim=True)).square().sum(1).mean()
    assert made(student, fine, BATCH).item() == pytest.approx(expected.item(), rel=1e-5)


def test_no_part_is_refused() -> None:
    with pytest.raises(ValidationError, match="neither `boundary` nor `context`"):
        BckdOptions(boundary=0, context=0)
