"""Relations across crops: softmaxes by loops, and memories of what the teacher showed before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from kdseg.config.terms import CirkdOptions
from kdseg.networks.models import Batch, Outputs, Widths
from kdseg.training.losses import Context, Term, make_term

OURS, THEIRS = Widths({}, (4, 6), (4,)), Widths({}, (5, 6), (5,))
CONTEXT = Context(((-1, 0, 0), (0, -1, 0), (0, 0, -1)), (10.0, 10.0, 10.0), student=OURS, teacher=THEIRS)
SHAPE = (2, 4, 4)
TEMPERATURE = 0.3


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def outputs(seed: int, widths: Widths) -> Outputs:
    grids = [SHAPE, tuple(n // 2 for n in SHAPE)]
    return Outputs({}, tuple(noise(seed + i, 2, c, *grids[i]).requires_grad_() for i, c in enumerate(widths.features)))


def make_batch() -> Batch:
    """Two instances in the first crop and a small one, one in the second; the rest is none."""
    ids = torch.zeros(2, *SHAPE, dtype=torch.int64)
    ids[0, :, :, :2], ids[0, :, :2, 2:], ids[0, 0, 3, 3] = 1, 2, 3
    ids[1, 1:] = 4
    return Batch(torch.zeros(2, 1, *SHAPE), ids, ids > 0, ids)


def options(**changes: Any) -> CirkdOptions:
    values = {"tokens": 64, "min_size": 3, "memory": 2, "memory_start": 1, "temperature": TEMPERATURE}
    return CirkdOptions.model_validate({"name": "cirkd", **values, **changes})


def term(given: CirkdOptions, context: Context = CONTEXT) -> Term:
    torch.manual_seed(0)
    made = make_term(given, context)
    assert isinstance(made, Term)
    return made


def unit(values: Any) -> NDArray[Any]:
    rows = np.asarray(values, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def voxels(values: Tensor) -> NDArray[Any]:
    """Vectors of all voxels of all crops."""
    return values.detach().movedim(1, -1).flatten(0, 3).double().numpy()


def divergence(s: NDArray[Any], t: NDArray[Any], others: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Mean over rows of the divergence of their relations to others, for the student and for the teacher."""
    found = []
    for one, target in zip(s, t, strict=True):
        p, q = np.exp(theirs @ target / TEMPERATURE), np.exp(others @ one / TEMPERATURE)
        p, q = p / p.sum(), q / q.sum()
        found.append((p * np.log(p / q)).sum())
    return float(np.mean(found))


def test_relations_within_a_batch_are_a_softmax_for_each_crop() -> None:
    student, teacher = outputs(0, OURS), outputs(50, THEIRS)
    s, t = (unit(voxels(o.features[0])) for o in (student, teacher))
    crops = np.split(np.arange(len(s)), 2)
    expected = np.mean([divergence(s, t, s[crop], t[crop]) for crop in crops])
    made = term(options(pixel=0, region=0))
    assert not list(made.parameters())
    assert not options(pixel=0, region=0).instances_used
    found = made.parts(student, teacher, make_batch()._replace(instances=None))
    assert list(found) == ["batch"]
    assert found["batch"].item() == pytest.approx(expected, rel=1e-4)


def test_relations_to_earlier_batches_are_to_voxels_and_means_of_instances() -> None:
    made = term(options())
    batch = make_batch()
    assert batch.instances is not None
    seen = [outputs(seed, THEIRS) for seed in (10, 20, 30)]
    for number, one in enumerate(seen):
        found = made.parts(outputs(5, OURS), one, batch)
        assert (found["pixel"] == 0) == (found["region"] == 0) == (number == 0)
    student, teacher = outputs(0, OURS), outputs(50, THEIRS)
    s = unit(made.projector(torch.from_numpy(voxels(student.features[0])).float()).detach())
    t = unit(voxels(teacher.features[0]))
    # the memory holds two batches, as float16
    pixels = np.concatenate([unit(voxels(one.features[0])) for one in seen[1:]]).astype(np.float16)
    ids = batch.instances.flatten().numpy()
    means = [[voxels(one.features[0])[ids == i].mean(0) for i in (1, 2, 4)] for one in seen[1:]]
    regions = unit(np.concatenate(means)).astype(np.float16)
    found = made.eval().parts(student, teacher, batch)
    assert found["pixel"].item() == pytest.approx(divergence(s, t, pixels, pixels), rel=1e-4)
    assert found["region"].item() == pytest.approx(divergence(s, t, regions, regions), rel=1e-4)
    assert made.parts(student, teacher, batch) == found, "without training nothing is remembered"


def test_the_gradient_is_that_of_the_value() -> None:
    made, student, teacher = term(options()), outputs(0, OURS), outputs(50, THEIRS)
    made(student, outputs(10, THEIRS), make_batch())
    made.eval()
    made(student, teacher, make_batch()).backward()
    slope = student.features[0].grad
    assert slope is not None
    step = 1e-2 * noise(9, *slope.shape)
    ends = [
        made(Outputs({}, (student.features[0].detach() + sign * step, student.features[1])), teacher, make_batch())
        for sign in (1, -1)
    ]
    assert (ends[0] - ends[1]).item() == pytest.approx(2 * (slope * step).sum().item(), rel=2e-2)
    assert all(f.grad is None for f in teacher.features)


def test_equal_networks_differ_in_nothing() -> None:
    made, student = term(options(level=1), CONTEXT._replace(teacher=OURS)), outputs(0, OURS)
    made(student, outputs(10, OURS), make_batch())
    student = outputs(0, OURS)
    value = made(student, outputs(0, OURS), make_batch())
    value.backward()
    assert value.abs() < 1e-6
    assert student.features[1].grad is not None
    assert student.features[1].grad.abs().max() < 1e-6


def test_no_part_is_refused() -> None:
    with pytest.raises(ValidationError, match="none of `batch`, `pixel` and `region`"):
        options(batch=0, pixel=0, region=0)
