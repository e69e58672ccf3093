"""What must hold for every term, whatever it compares; a new term needs a row in `CASES` and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from term_cases import (
    CASES,
    CONTEXT,
    DISTILLING,
    OURS,
    THEIRS,
    Case,
    described,
    make_batch,
    numbered,
    outputs,
    tensors,
)
from torch import Tensor

from kdseg.config.terms import term_options
from kdseg.errors import ConfigError
from kdseg.networks.models import Batch, Outputs
from kdseg.training.losses import Term, build_terms, make_term

parametrised = pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.options.name}-{CASES.index(c)}")
distilling = pytest.mark.parametrize("case", DISTILLING, ids=lambda c: f"{c.options.name}-{CASES.index(c)}")


def mapped(found: Outputs, change: Callable[[Tensor], Tensor]) -> Outputs:
    return Outputs(
        {k: change(v.detach()).requires_grad_() for k, v in found.logits.items()},
        tuple(change(v.detach()).requires_grad_() for v in found.features),
        tuple(change(v.detach()).requires_grad_() for v in found.skips),
        None if found.known is None else change(found.known),
    )


def ready(case: Case) -> Term:
    """A term that has seen as many calls as it needs."""
    torch.manual_seed(0)
    made = make_term(case.options, CONTEXT)
    assert isinstance(made, Term)
    for seed in range(case.calls):
        made(outputs(20 + seed, OURS), outputs(40 + seed, THEIRS), make_batch(seed + 1))
    return made


def value(case: Case, student: Outputs, teacher: Outputs | None, batch: Batch) -> float:
    """The value of a term that is ready, a new one for each value, since calls may teach it something."""
    return ready(case)(student, teacher, batch).item()


def gradients(student: Outputs) -> list[Tensor]:
    return [v.grad for v in tensors(student) if v.grad is not None]


def test_every_term_has_a_row() -> None:
    assert {case.options.name for case in CASES} == set(term_options())


@parametrised
def test_the_gradient_reaches_the_student_and_not_the_teacher(case: Case) -> None:
    made, student, teacher = ready(case), outputs(1, OURS), outputs(2, THEIRS)
    parts = made.parts(student, teacher, make_batch())
    assert set(parts) == set(made.weights)
    assert all(part.dtype == torch.float32 and part.shape == () for part in parts.values())
    assert all(part != 0 for part in parts.values())
    torch.stack([made.weights[name] * part for name, part in parts.items()]).sum().backward()
    for tap in case.options.taps_used:
        found = student.logits[tap] if isinstance(tap, str) else student.features[tap]
        assert found.grad is not None
        assert found.grad.any()
    assert gradients(student)
    assert all(torch.isfinite(g).all() for g in gradients(student))
    assert not gradients(teacher)


@parametrised
def test_every_parameter_of_a_term_takes_a_gradient(case: Case) -> None:
    made = ready(case)
    made(outputs(1, OURS), outputs(2, THEIRS), make_batch()).backward()
    learned = [p for p in made.parameters() if p.requires_grad]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in learned)


@pytest.mark.parametrize(
    "case", [case for case in DISTILLING if "affinities" in case.options.taps_used], ids=lambda c: c.options.name
)
def test_affinities_that_a_stored_teacher_has_not_do_not_count(case: Case) -> None:
    student, teacher = outputs(1, OURS), outputs(2, THEIRS)
    known = torch.ones(teacher.logits["affinities"].shape, dtype=torch.bool)
    known[:, 1:, :, 2:5] = False
    ready(case)(student, teacher._replace(known=known), make_batch()).backward()
    gradient = student.logits["affinities"].grad
    assert gradient is not None
    assert gradient[known].any()
    assert not gradient[~known].any()


@pytest.mark.parametrize(
    "case",
    [case for case in DISTILLING if "affinities" in case.options.taps_used and not case.not_in_order],
    ids=lambda c: f"{c.options.name}-{CASES.index(c)}",
)
def test_a_crop_counts_alike_whatever_the_teacher_knows_of_the_others(case: Case) -> None:
    student, teacher, batch = outputs(1, OURS), outputs(2, THEIRS), make_batch()
    known = torch.ones(teacher.logits["affinities"].shape, dtype=torch.bool)
    known[1] = False
    teacher = teacher._replace(known=known)

    def crops(of: slice) -> float:
        ids = batch.labels[of]
        part = batch._replace(raw=batch.raw[of], labels=ids, mask=batch.mask[of], instances=numbered(ids))
        part = part._replace(descriptors=described(ids), labelled=len(ids), instanced=len(ids))
        return value(case, *(mapped(found, lambda v: v[of]) for found in (student, teacher)), part)

    each = [crops(slice(k, k + 1)) for k in range(2)]
    assert each[0] > 0
    assert crops(slice(0, 2)) == pytest.approx(sum(each) / 2, rel=1e-5)


@distilling
def test_distilling_from_nobody_is_refused(case: Case) -> None:
    with pytest.raises(ConfigError, match="needs a teacher"):
        build_terms([case.options], CONTEXT._replace(teacher=None))


def emptied(batch: Batch, _: Outputs) -> tuple[Batch, None]:
    nothing = torch.zeros_like(batch.labels)
    return batch._replace(labels=nothing, mask=nothing > 0, instances=nothing), None


def one_instance(batch: Batch, _: Outputs) -> tuple[Batch, None]:
    whole = torch.zeros_like(batch.labels)
    whole[0] = 1
    return batch._replace(labels=whole, mask=whole > 0, instances=whole), None


def all_ignored(batch: Batch, teacher: Outputs) -> tuple[Batch, Tensor]:
    known = torch.zeros(teacher.logits["affinities"].shape, dtype=torch.bool)
    return batch._replace(mask=torch.zeros_like(batch.mask)), known


@parametrised
@pytest.mark.parametrize("crops", [emptied, one_instance, all_ignored])
@pytest.mark.parametrize("content", [None, torch.zeros, lambda shape: 60000 * (2 * torch.rand(shape) - 1)])
def test_hopeless_crops_and_networks_give_finite_values_and_gradients(
    case: Case, crops: Any, content: Callable[..., Tensor] | None
) -> None:
    made, student, teacher = ready(case), outputs(1, OURS, content), outputs(2, THEIRS, content)
    batch, known = crops(make_batch(), teacher)
    teacher = teacher._replace(known=known)
    found = made(student, teacher, batch)
    found.backward()
    assert torch.isfinite(found)
    assert gradients(student)
    assert all(torch.isfinite(g).all() for g in gradients(student))
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in made.parameters() if p.requires_grad)
    # what a term learned of such a batch must not spoil the next one
    after = made(outputs(1, OURS), outputs(2, THEIRS), make_batch())
    assert torch.isfinite(after)


@parametrised
def test_the_largest_halves_are_survived(case: Case) -> None:
    made = ready(case)
    student, teacher = (
        mapped(outputs(seed, widths), lambda v: 60000 * v.sign()) for seed, widths in ((1, OURS), (2, THEIRS))
    )
    found = made(student, teacher, make_batch())
    found.backward()
    assert torch.isfinite(found)
    assert all(torch.isfinite(g).all() for g in gradients(student))


@parametrised
def test_the_order_of_crops_does_not_matter(case: Case) -> None:
    student, teacher, batch = outputs(1, OURS), outputs(2, THEIRS), make_batch()
    ids = batch.labels.flip(0)
    swapped = Batch(batch.raw.flip(0), ids, batch.mask.flip(0), numbered(ids), descriptors=described(ids))

    def swap(found: Outputs) -> Outputs:
        return mapped(found, lambda v: v.flip(0))

    before, after = value(case, student, teacher, batch), value(case, swap(student), swap(teacher), swapped)
    if case.not_in_order:
        assert after != pytest.approx(before, rel=1e-6), f"it holds, although {case.not_in_order}"
    else:
        assert after == pytest.approx(before, rel=1e-4)


@parametrised
def test_the_names_of_ids_do_not_matter(case: Case) -> None:
    student, teacher, batch = outputs(1, OURS), outputs(2, THEIRS), make_batch()
    assert batch.instances is not None
    count = int(batch.instances.max())
    names = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(count)])
    renamed = batch._replace(
        labels=torch.tensor([0, 9, 2**40, 4, 1, 7])[batch.labels], instances=names[batch.instances]
    )
    assert value(case, student, teacher, renamed) == pytest.approx(value(case, student, teacher, batch), rel=1e-4)


@parametrised
def test_bfloat16_outputs_are_compared_in_float32(case: Case) -> None:
    student, teacher, batch = outputs(1, OURS), outputs(2, THEIRS), make_batch()
    exact = value(case, student, teacher, batch)
    rough = ready(case)
    with torch.autocast("cpu", torch.bfloat16):
        halves = [mapped(found, lambda v: v.bfloat16()) for found in (student, teacher)]
        found = rough(*halves, batch)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact, rel=0.2 if case.not_halved else 1e-2)


@parametrised
def test_a_term_goes_on_from_its_state_as_if_it_had_not_stopped(case: Case) -> None:
    made = ready(case)
    state = deepcopy(made.state_dict())
    torch.manual_seed(1)
    again = make_term(case.options, CONTEXT)
    again.load_state_dict(state)
    for seed in range(3):
        given = outputs(seed, OURS), outputs(10 + seed, THEIRS), make_batch(seed)
        assert made(*given).item() == again(*given).item()


@parametrised
def test_no_term_draws_from_the_global_generator(case: Case) -> None:
    made = ready(case)
    state = torch.get_rng_state()
    made(outputs(1, OURS), outputs(2, THEIRS), make_batch())
    assert torch.equal(torch.get_rng_state(), state)
