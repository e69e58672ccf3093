"""Factor transfer."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdseg.config.terms import FactorOptions
from kdseg.errors import ConfigError
from kdseg.networks.models import Batch, Outputs, Widths
from kdseg.training.losses import Context, build_terms
from kdseg.training.losses.factor import FactorTransferTerm

SHAPE = (4, 6, 6)
LABELS = torch.zeros(2, *SHAPE, dtype=torch.int64)
BATCH = Batch(torch.zeros(2, 1, *SHAPE), LABELS, LABELS > 0)


def context(student: int, teacher: int) -> Context:
    sides = (Widths({"affinities": 1}, (width, 2 * width), (width,)) for width in (student, teacher))
    return Context(((-1, 0, 0),), (10.0, 10.0, 10.0), *sides)


def features(seed: int, width: int, shape: tuple[int, ...] = SHAPE) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    coarse = [max(extent // 2, 1) for extent in shape]
    drawn = (torch.randn(2, w, *s, generator=generator) for w, s in ((width, shape), (2 * width, coarse)))
    return Outputs({}, tuple(each.requires_grad_() for each in drawn))


def term(options: FactorOptions, student: int = 3, teacher: int = 4) -> FactorTransferTerm:
    torch.manual_seed(0)
    made = build_terms([options], context(student, teacher))["ft"]
    assert isinstance(made, FactorTransferTerm)
    return made


def fitted(options: FactorOptions, student: int = 3, teacher: int = 4) -> FactorTransferTerm:
    made = term(options, student, teacher)
    for step in range(options.fit):
        made(features(step, student), features(50 + step, teacher), BATCH)
    return made


def same_maps(made: FactorTransferTerm) -> FactorTransferTerm:
    """Let the translator be the encoder, for features that need no standardising."""
    made.translator.load_state_dict(made.paraphraser.coder.network.encoder.state_dict())  # type: ignore[union-attr]
    made.paraphraser.shift.zero_()
    made.paraphraser.scale.fill_(1.0)
    return made


@pytest.mark.parametrize("power", [1, 2])
def test_a_student_that_is_its_teacher_is_right(power: Any) -> None:
    made = same_maps(fitted(FactorOptions(fit=1, width=2, power=power), 4, 4))
    student = features(1, 4)
    value = made(student, Outputs({}, tuple(f.detach().clone() for f in student.features)), BATCH)
    value.backward()
    assert value.item() == 0
    assert not student.features[0].grad.any()
    assert made(student, features(2, 4), BATCH) > 0.1


@pytest.mark.parametrize("power", [1, 2])
def test_the_term_is_that_of_the_loop(power: Any) -> None:
    made, student, teacher = fitted(FactorOptions(fit=1, width=2, power=power)), features(1, 3), features(2, 4)
    found = made(student, teacher, BATCH)
    ours = made.translator(student.features[0]).detach().double().numpy()
    theirs = made.paraphraser.encode(teacher.features[0]).double().numpy()
    errors = []
    for a, b in zip(ours, theirs, strict=True):
        difference = a / np.linalg.norm(a) - b / np.linalg.norm(b)  # as published
        errors.append((np.abs(difference) ** power).mean() * a.size ** (power / 2))
    assert found.item() == pytest.approx(np.mean(errors), rel=1e-4)


def test_the_translator_learns_with_the_student_and_the_paraphraser_does_not() -> None:
    made, student, teacher = fitted(FactorOptions(fit=1, width=2)), features(1, 3), features(2, 4)
    trained = [p for p in made.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in made.translator.parameters()}
    optimiser = torch.optim.Adam([*trained, student.features[0]], lr=0.03)
    first = made(student, teacher, BATCH).item()
    made(student, teacher, BATCH).backward()
    assert all(p.grad.any() for p in trained)
    assert student.features[0].grad.any()
    assert teacher.features[0].grad is None
    for _ in range(25):
        optimiser.zero_grad()
        made(student, teacher, BATCH).backward()
        optimiser.step()
    assert made(student, teacher, BATCH).item() < 0.7 * first


def test_the_term_is_zero_while_the_paraphraser_is_trained() -> None:
    made = term(FactorOptions(fit=2, width=2))
    for step in range(2):
        student = features(step, 3)
        value = made(student, features(9 + step, 4), BATCH)
        value.backward()
        assert value.item() == 0
        # taking part, as distributed training demands, without being moved
        assert all(p.grad is not None and not p.grad.any() for p in made.translator.parameters())
        assert not student.features[0].grad.any()
    before = [p.clone() for p in made.paraphraser.parameters()]
    assert made(features(1, 3), features(2, 4), BATCH) > 0
    assert all(map(torch.equal, before, made.paraphraser.parameters()))


def test_a_continued_run_equals_an_uninterrupted_one() -> None:
    options = FactorOptions(fit=3, width=2)
    whole, begun, continued = (term(options) for _ in range(3))

    def run(made: FactorTransferTerm, steps: range) -> list[float]:
        return [made(features(1, 3), features(step, 4), BATCH).item() for step in steps]

    expected, found = run(whole, range(5)), run(begun, range(2))
    file = io.BytesIO()
    torch.save(begun.state_dict(), file)
    file.seek(0)
    continued.load_state_dict(torch.load(file, weights_only=True))
    assert found + run(continued, range(2, 5)) == expected


def test_networks_of_other_strides_are_compared() -> None:
    made, student, teacher = fitted(FactorOptions(fit=1, width=2)), features(1, 3), features(2, 4, (4, 12, 12))
    value = made(student, teacher, BATCH)
    value.backward()
    assert value.item() > 0
    assert student.features[0].grad.any()


def test_the_bottleneck_and_flat_crops_work() -> None:
    made = fitted(FactorOptions(fit=1, width=2, level=-1))
    flat, taught = features(1, 3, (1, 6, 6)), features(2, 4, (1, 6, 6))
    made(flat, taught, BATCH).backward()
    assert flat.features[1].grad.any()
    assert flat.features[0].grad is None


@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_silent_features_stay_finite(side: str) -> None:
    def silent(o: Outputs) -> Outputs:
        return Outputs({}, tuple(torch.zeros_like(f).requires_grad_() for f in o.features))

    student, teacher = features(1, 3), features(2, 4)
    if side != "teacher":
        student = silent(student)
    if side != "student":
        teacher = silent(teacher)
    made = term(FactorOptions(fit=2, width=2))
    for _ in range(3):
        value = made(student, teacher, BATCH)
        value.backward()
        assert torch.isfinite(value)
    assert torch.isfinite(student.features[0].grad).all()


def test_order_of_crops_does_not_matter() -> None:
    made, student, teacher = fitted(FactorOptions(fit=1, width=2)), features(1, 3), features(2, 4)
    turned = [Outputs({}, tuple(f.flip(0) for f in o.features)) for o in (student, teacher)]
    assert made(*turned, BATCH).item() == pytest.approx(made(student, teacher, BATCH).item(), rel=1e-5)


def test_bfloat16_features_are_compared_in_float32() -> None:
    made, student, teacher = fitted(FactorOptions(fit=1, width=2)), features(1, 3), features(2, 4)
    exact = made(student, teacher, BATCH)
    halved = [Outputs({}, tuple(map(Tensor.bfloat16, o.features))) for o in (student, teacher)]
    with torch.autocast("cpu", torch.bfloat16):
        rough = made(*halved, BATCH)
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=1e-2)


def test_stored_teachers_are_refused() -> None:
    known = context(3, 4)
    with pytest.raises(ConfigError, match="not stored"):
        build_terms([FactorOptions()], known._replace(teacher=Widths({"affinities": 1}, (), ())))
