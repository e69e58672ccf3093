"""Wavelet details of features: the filters from their definition, the bands by convolution, what costs and what not."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
import torch
from torch import Tensor

from kdseg.config.terms import DcdOptions
from kdseg.errors import ConfigError
from kdseg.networks.models import Batch, Outputs, Widths
from kdseg.training.losses import Context, Term, make_term
from kdseg.training.losses.wavelet import DB4, filters, split

OURS = Widths({"affinities": 3}, (4, 5, 6), (4, 5))
THEIRS = Widths({"affinities": 3}, (5, 7, 6, 9), (5, 7, 6))
CONTEXT = Context(((-1, 0, 0), (0, -1, 0), (0, 0, -1)), (10.0, 10.0, 10.0), student=OURS, teacher=THEIRS)
SHAPE = (8, 16, 20)
LABELS = torch.ones(2, *SHAPE, dtype=torch.int64)
BATCH = Batch(torch.zeros(2, 1, *SHAPE), LABELS, LABELS > 0)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def outputs(seed: int, widths: Widths) -> Outputs:
    def stage(channels: int, level: int) -> Tensor:
        return noise(seed + level, 2, channels, *(n // 2**level for n in SHAPE)).requires_grad_()

    features = tuple(stage(c, level) for level, c in enumerate(widths.features))
    return Outputs({}, features, tuple(stage(c, level) for level, c in enumerate(widths.skips)))


def term(options: DcdOptions, context: Context = CONTEXT) -> Term:
    torch.manual_seed(0)
    made = make_term(options, context)
    assert isinstance(made, Term)
    return made


def test_the_filter_is_that_of_daubechies() -> None:
    # the half of the zeros that lies within the unit circle, and a zero of order 4 at -1
    polynomial = np.zeros(7)
    for k in range(4):
        power = np.array([1.0])
        for _ in range(k):
            power = np.convolve(power, [-0.25, 0.5, -0.25])
        polynomial += comb(3 + k, k) * np.pad(power, 3 - k)
    zeros = np.roots(polynomial)
    found = np.real(np.poly([*zeros[abs(zeros) < 1], -1, -1, -1, -1]))
    found *= np.sqrt(2) / found.sum()
    assert min(abs(found - DB4).max(), abs(found[::-1] - DB4).max()) < 1e-11


@pytest.mark.parametrize("length", [16, 17])
def test_filters_are_an_orthogonal_basis_away_from_the_ends(length: int) -> None:
    rows = filters(length)
    assert rows.shape == (2, -(-length // 2), length)
    inner = rows[:, 2:-2].flatten(0, 1)
    assert torch.allclose(inner @ inner.T, torch.eye(len(inner), dtype=torch.float64), atol=1e-12)
    # what four vanishing moments mean: cubic signals have no detail
    signal = torch.arange(length, dtype=torch.float64) / length
    assert torch.allclose(rows[1, 2:-2] @ (2 - signal + 5 * signal**3), torch.zeros(1, dtype=torch.float64), atol=1e-12)


def test_bands_of_what_is_far_from_the_ends_give_it_back() -> None:
    values = torch.zeros(1, 2, 32, 32, 32)
    values[:, :, 12:20, 12:20, 12:20] = noise(0, 1, 2, 8, 8, 8)
    found = split(values)
    assert found.square().sum().item() == pytest.approx(values.square().sum().item(), rel=1e-5)
    back = found.reshape(1, 2, 32, 32, 32)
    for dim in (2, 3, 4):
        rows = filters(32).flatten(0, 1).float()
        back = (back.movedim(dim, -1) @ rows).movedim(-1, dim)
    assert torch.allclose(back, values, atol=1e-5)


def bands_of_loops(values: np.ndarray) -> dict[tuple[int, ...], np.ndarray]:
    """The bands of one channel, (z, y, x), by their fineness along each axis."""
    high = [(-1) ** k * DB4[7 - k] for k in range(8)]
    found = {(): values}
    for axis in range(3):
        split = {}
        for kind, band in found.items():
            lines = np.moveaxis(band, axis, 0)
            padded = np.pad(lines, [(16, 16), (0, 0), (0, 0)], mode="symmetric")
            for fine, taps in enumerate((DB4, high)):
                sums = [
                    sum(tap * padded[16 + k - 3 + j] for j, tap in enumerate(taps)) for k in range(0, len(lines), 2)
                ]
                split[*kind, fine] = np.moveaxis(np.array(sums), 0, axis)
        found = split
    return found


@pytest.mark.parametrize("corner", [False, True])
def test_the_term_is_the_mean_square_of_the_fine_bands(corner: bool) -> None:
    made, student, teacher = term(DcdOptions(depth=2, corner=corner)), outputs(0, OURS), outputs(50, THEIRS)
    losses = []
    ours, theirs = (*student.skips, student.features[-1]), (*teacher.skips, teacher.features[-1])
    for mapped, s, t in zip(made.projectors, ours, theirs[:3], strict=True):
        error = (mapped(s) - t).detach().double().numpy()
        for _ in range(2):
            total, coarse = 0.0, []
            for channel in error.reshape(-1, *error.shape[2:]):
                bands = bands_of_loops(channel)
                coarse.append(bands[0, 0, 0])
                total += sum((b**2).sum() for k, b in bands.items() if 0 < sum(k) < (4 if corner else 3))
            losses.append(total / error.size)
            error = np.array(coarse)[None]
    assert made(student, teacher, BATCH).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_gradient_is_that_of_the_value() -> None:
    made = term(DcdOptions(depth=2))
    student, teacher = (
        Outputs({}, tuple(f.double() for f in o.features), tuple(s.double() for s in o.skips))
        for o in (outputs(0, OURS), outputs(50, THEIRS))
    )
    stage = student.skips[0].detach().float().requires_grad_()
    made(student._replace(skips=(stage, student.skips[1])), teacher, BATCH).backward()
    step = noise(9, *stage.shape)
    ends = [
        made(student._replace(skips=(stage.detach() + sign * 0.5 * step, student.skips[1])), teacher, BATCH)
        for sign in (1, -1)
    ]
    # exact for a square but for rounding
    assert stage.grad is not None
    assert (ends[0] - ends[1]).item() == pytest.approx((stage.grad * step).sum().item(), rel=1e-3)


def test_equal_networks_and_constant_differences_cost_nothing() -> None:
    made, student = term(DcdOptions(), CONTEXT._replace(teacher=OURS)), outputs(0, OURS)
    assert not list(made.parameters())
    assert made(student, outputs(0, OURS), BATCH) == 0

    def shifted(found: Outputs, by: float) -> Outputs:
        return found._replace(
            features=tuple(f.detach() + by for f in found.features), skips=tuple(s.detach() + by for s in found.skips)
        )

    assert made(student, shifted(student, 3.0), BATCH) < 1e-10
    # and so do axes of one voxel
    thin = Outputs({}, student.features, tuple(s[:, :, :1] for s in student.skips))
    assert made(thin, shifted(thin, 3.0), BATCH) < 1e-10


def test_a_deeper_teacher_is_compared_by_the_stages_that_both_have() -> None:
    made, student, teacher = term(DcdOptions()), outputs(0, OURS), outputs(50, THEIRS)
    # one linear map for each, and no bias, which details do not see
    assert [p.ndim for p in made.parameters()] == [5, 5]
    assert len(made.projectors) == 3
    value = made(student, teacher, BATCH).item()
    changed = teacher._replace(features=(*teacher.features[:-1], noise(7, 2, 9, 1, 2, 2)))
    assert made(student, changed, BATCH).item() == value
    other = teacher._replace(skips=(*teacher.skips[:-1], 2 * teacher.skips[-1]))
    assert made(student, other, BATCH).item() != value


def test_a_stored_teacher_is_refused() -> None:
    with pytest.raises(ConfigError, match="features are not stored"):
        term(DcdOptions(), CONTEXT._replace(teacher=Widths({"affinities": 3}, (), ())))
