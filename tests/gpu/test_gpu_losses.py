"""Every term of the loss on a GPU: finite, as on the CPU, and the same bits each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from term_cases import CASES, CONTEXT, OURS, THEIRS, Case, described, make_batch, outputs, tensors
from torch import Tensor

from kdseg.networks.models import Batch, Outputs
from kdseg.networks.models.device import deterministic
from kdseg.training.losses import Term, make_term

ENLARGED = 4
"""Times the crops of `test_terms_share` along each axis, on a GPU: sums of few numbers are the same in any order."""


def given(seed: int, times: int) -> tuple[Outputs, Outputs, Batch]:
    """Student, teacher and batch, on the CPU."""
    generator = torch.Generator().manual_seed(seed)

    def noise(shape: tuple[int, ...]) -> Tensor:
        return 2 * torch.randn(*shape[:2], *(n * times for n in shape[2:]), generator=generator)

    small = make_batch(seed)
    raw, labels, mask, instances = (enlarged(t, times) for t in small[:4])
    batch = Batch(raw, labels, mask, instances, descriptors=described(labels))
    return outputs(seed, OURS, noise), outputs(seed + 1, THEIRS, noise), batch


def enlarged(values: Tensor, times: int) -> Tensor:
    for axis in (-3, -2, -1):
        values = values.repeat_interleave(times, dim=axis)
    return values


def moved(found: Outputs, device: torch.device) -> Outputs:
    """Outputs on a device, leaves as before."""

    def leaf(values: Tensor) -> Tensor:
        return values.detach().to(device).requires_grad_()

    return Outputs(
        {name: leaf(v) for name, v in found.logits.items()},
        tuple(map(leaf, found.features)),
        tuple(map(leaf, found.skips)),
    )


def built(options: Any, device: torch.device) -> Term:
    torch.manual_seed(0)
    made: Term = make_term(options, CONTEXT)
    return made.to(device)


def evaluated(made: Term, given: tuple[Outputs, Outputs, Batch], device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """Value and gradients of student and term, on the CPU."""
    student, teacher, batch = moved(given[0], device), moved(given[1], device), given[2].to(device)
    made.zero_grad()
    value = made(student, teacher, batch)
    value.backward()
    leaves = [*tensors(student), *(p for p in made.parameters() if p.requires_grad)]
    return value.detach().cpu(), [leaf.grad.cpu() for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.options.name}-{CASES.index(c)}")
def test_a_term_is_what_it_is_on_the_cpu(
    case: Case, gpu: bool, device: torch.device, record_property: Callable[[str, object], None]
) -> None:
    # the mask is drawn where it is used, and each device draws its own
    options = case.options.model_copy(update={"masked": 0.0}) if case.options.name == "mgd" else case.options
    times, cpu = ENLARGED if gpu else 1, torch.device("cpu")
    here, there = built(options, cpu), built(options, device)
    for seed in range(case.calls):
        evaluated(here, given(10 + seed, times), cpu)
    there.load_state_dict(here.state_dict())
    crops = given(0, times)
    with deterministic():
        expected, gradients = evaluated(here.eval(), crops, cpu)
        found, slopes = evaluated(there.eval(), crops, device)
    assert gradients
    assert len(gradients) == len(slopes)
    off = [float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in zip(slopes, gradients, strict=True)]
    record_property("value", found.item())
    record_property("value_off", abs(found.item() / expected.item() - 1))
    record_property("gradient_off", max(off))
    assert torch.isfinite(found)
    assert all(torch.isfinite(slope).all() for slope in slopes)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    assert max(off) <= 1e-4


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.options.name}-{CASES.index(c)}")
def test_a_term_learns_the_same_bits_each_time(case: Case, gpu: bool, device: torch.device) -> None:
    times = ENLARGED if gpu else 1
    first, second = (built(case.options, device) for _ in range(2))
    with deterministic():
        for seed in range(case.calls + 2):
            crops = given(seed, times)
            (one, slopes), (other, again) = (evaluated(term, crops, device) for term in (first, second))
            assert torch.isfinite(one)
            assert torch.equal(one, other)
            assert all(torch.equal(a, b) for a, b in zip(slopes, again, strict=True))
