"""Terms that compare features: their formulas against plain ones, and that what they learn is learned."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d, kl_div

from kdseg.config.terms import (
    AttentionOptions,
    CwdOptions,
    FitNetsOptions,
    MgdOptions,
    ReviewKdOptions,
    VidOptions,
)
from kdseg.errors import ConfigError
from kdseg.networks.models import Batch, Outputs, Widths
from kdseg.training.losses import Context, Term, make_term
from kdseg.training.losses.feature import channel_divergence
from kdseg.training.losses.generation import adaptive_mean, context_loss

OURS = Widths({"affinities": 3, "embedding": 4}, (4, 5, 6), (4, 5))
THEIRS = Widths({"affinities": 3, "embedding": 6}, (5, 7, 6), (5, 7))
CONTEXT = Context(((-1, 0, 0), (0, -1, 0), (0, 0, -1)), (10.0, 10.0, 10.0), student=OURS, teacher=THEIRS)
SHAPE = (4, 8, 12)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def outputs(seed: int, widths: Widths, known: Tensor | None = None) -> Outputs:
    grids = [tuple(n // 2**level for n in SHAPE) for level in range(3)]
    features = tuple(noise(seed + i, 2, c, *grids[i]).requires_grad_() for i, c in enumerate(widths.features))
    logits = {k: (2 * noise(seed + 9, 2, c, *SHAPE)).requires_grad_() for k, c in widths.logits.items()}
    return Outputs(logits, features, (), known)


BATCH = Batch(torch.zeros(2, 1, *SHAPE), torch.ones(2, *SHAPE, dtype=torch.int64), torch.ones(2, *SHAPE) > 0)


def term(options: Any, context: Context = CONTEXT) -> Term:
    made = make_term(options, context)
    assert isinstance(made, Term)
    return made


def copied(student: Outputs) -> Outputs:
    return Outputs(
        {k: v.detach().clone() for k, v in student.logits.items()}, tuple(f.detach().clone() for f in student.features)
    )


LEARNED = [
    FitNetsOptions(),
    CwdOptions(tap=1),
    CwdOptions(tap="embedding"),
    ReviewKdOptions(),
    VidOptions(level=1),
    MgdOptions(),
]


@pytest.mark.parametrize("options", LEARNED, ids=str)
def test_all_that_is_learned_takes_a_gradient_and_lowers_the_term(options: Any) -> None:
    torch.manual_seed(0)
    made, student, teacher = term(options), outputs(0, OURS), outputs(50, THEIRS)
    before = made(student, teacher, BATCH)
    before.backward()
    parameters = list(made.parameters())
    assert parameters
    assert all(p.grad is not None and p.grad.any() for p in parameters)
    assert all(v.grad is None for v in (*teacher.features, *teacher.logits.values()))
    optimiser = torch.optim.Adam(parameters, 0.05)
    for _ in range(10):
        optimiser.zero_grad()
        made(student, teacher, BATCH).backward()
        optimiser.step()
    assert made(student, teacher, BATCH) < before


@pytest.mark.parametrize(
    "options", [FitNetsOptions(level=2), AttentionOptions(), CwdOptions(), CwdOptions(tap=2)], ids=str
)
def test_equal_networks_differ_in_nothing(options: Any) -> None:
    student = outputs(0, OURS)
    value = term(options, CONTEXT._replace(teacher=OURS))(student, copied(student), BATCH)
    value.backward()
    assert value.abs() < 1e-6
    gradients = [v.grad for v in (*student.features, *student.logits.values()) if v.grad is not None]
    assert gradients
    assert all(g.abs().max() < 1e-7 for g in gradients)


def test_fitnets_is_the_squared_error_of_mapped_features() -> None:
    made, student, teacher = term(FitNetsOptions(level=1)), outputs(0, OURS), outputs(50, THEIRS)
    weight, bias = made.projector.weight[:, :, 0, 0, 0], made.projector.bias
    mapped = torch.einsum("dc,nczyx->ndzyx", weight, student.features[1]) + bias[:, None, None, None]
    expected = (mapped - teacher.features[1]).square().mean()
    assert made(student, teacher, BATCH).item() == pytest.approx(expected.item(), rel=1e-5)


def test_attention_is_the_distance_of_normalised_energies() -> None:
    student, teacher = outputs(0, OURS), outputs(50, THEIRS)
    losses = []
    for level in (0, 2):
        for n in range(2):
            maps = [(o.features[level][n].detach().double().numpy() ** 2).sum(0) for o in (student, teacher)]
            s, t = (m / np.linalg.norm(m) for m in maps)
            losses.append(((s - t) ** 2).sum())
    made = term(AttentionOptions(levels=(0, -1)))
    assert made(student, teacher, BATCH).item() == pytest.approx(np.mean(losses), rel=1e-5)
    # a teacher of another stride: its energy is averaged, so that signs do not cancel
    fine = teacher._replace(features=(*teacher.features[:2], noise(7, 2, 6, *(n // 2 for n in SHAPE))))
    coarse = fine._replace(
        features=(*teacher.features[:2], adaptive_avg_pool3d(fine.features[2] ** 2, (1, 2, 3)).sqrt())
    )
    assert made(student, fine, BATCH).item() == pytest.approx(made(student, coarse, BATCH).item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_cwd_is_the_divergence_of_channels_over_space(temperature: float) -> None:
    student, teacher = outputs(0, OURS), outputs(50, THEIRS)
    s, t = (
        torch.softmax(o.logits["affinities"].detach().double().flatten(2) / temperature, 2) for o in (student, teacher)
    )
    expected = temperature**2 * kl_div(s.log(), t, reduction="sum") / (2 * 3)
    made = term(CwdOptions(temperature=temperature))
    assert made(student, teacher, BATCH).item() == pytest.approx(expected.item(), rel=1e-5)
    assert not list(made.parameters())


def test_cwd_leaves_out_what_the_teacher_did_not_predict() -> None:
    known = torch.ones(2, 3, *SHAPE, dtype=torch.bool)
    known[:, :, :, 5:] = False
    known[1, 2] = False
    student, teacher = outputs(0, OURS), outputs(50, THEIRS, known)
    value = term(CwdOptions())(student, teacher, BATCH)
    value.backward()
    assert not student.logits["affinities"].grad[~known].any()
    found = [
        np.mean([
            channel_divergence(
                *(o.logits["affinities"][n : n + 1, c : c + 1, :, :5] / 4 for o in (student, teacher))
            ).item()
            for c in range(3)
            if known[n, c].any()
        ])
        for n in range(2)
    ]  # fmt: skip
    assert value.item() == pytest.approx(16 * np.mean(found), rel=1e-5)
    nothing = term(CwdOptions())(student, teacher._replace(known=torch.zeros_like(known)), BATCH)
    assert nothing == 0
    assert nothing.requires_grad


def test_cwd_compares_features_that_are_0() -> None:
    """A voxel whose features a network cut off at 0 is one that it says something about."""
    made, student, teacher = term(CwdOptions(tap=1)), outputs(0, OURS), outputs(50, THEIRS)
    theirs, ours = (one.features[1].detach().clone() for one in (teacher, student))
    theirs[..., 0] = 0
    teacher = teacher._replace(features=(teacher.features[0], theirs, *teacher.features[2:]))
    before = made(student, teacher, BATCH)
    ours[..., 0] += 9
    after = made(student._replace(features=(student.features[0], ours, *student.features[2:])), teacher, BATCH)
    assert after.item() != pytest.approx(before.item(), rel=1e-3)


def test_cwd_survives_a_million_voxels_and_certain_networks() -> None:
    ours = torch.zeros(1, 1, 100, 100, 100).requires_grad_()
    theirs = torch.zeros(1, 1, 100, 100, 100)
    theirs[..., 0] = 60000
    value = channel_divergence(ours, theirs)
    value.backward()
    # all of the teacher's weight lies on one hundredth of the voxels
    assert value.item() == pytest.approx(np.log(100), rel=1e-4)
    assert torch.isfinite(ours.grad).all()


def test_vid_is_the_likelihood_of_the_teacher() -> None:
    made, student, teacher = term(VidOptions(level=2)), outputs(0, OURS), outputs(50, THEIRS)
    with torch.no_grad():
        made.spread += noise(3, 6)
    variance = torch.log1p(made.spread.exp()) + made.FLOOR
    expected = -torch.distributions.Normal(
        student.features[2], variance.sqrt()[None, :, None, None, None].expand_as(student.features[2])
    ).log_prob(teacher.features[2])
    value = made(student, teacher, BATCH)
    assert value.item() == pytest.approx(expected.mean().item() - np.log(2 * np.pi) / 2, rel=1e-5)


def test_vid_learns_the_variance_of_each_channel() -> None:
    made, student, teacher = term(VidOptions(level=2)), outputs(0, OURS), outputs(50, THEIRS)
    optimiser = torch.optim.Adam(made.parameters(), 0.05)
    for _ in range(300):
        optimiser.zero_grad()
        made(student, teacher, BATCH).backward()
        optimiser.step()
    found = torch.nn.functional.softplus(made.spread.detach()) + made.FLOOR
    expected = (teacher.features[2] - student.features[2]).square().mean((0, 2, 3, 4))
    assert torch.allclose(found, expected, rtol=2e-2)


@pytest.mark.parametrize("shape", [(5, 8, 12), (2, 9, 30), (4, 4, 4), (1, 1, 1), (3, 2, 1)])
def test_context_loss_is_that_of_the_paper(shape: tuple[int, int, int]) -> None:
    ours, theirs = noise(0, 2, 3, *shape), noise(1, 2, 3, *shape)
    expected, weight, total = (ours - theirs).square().mean(), 1.0, 1.0
    for pool in (4, 2, 1):
        size = tuple(min(pool, n) for n in shape)
        if size == shape:
            continue
        weight, pooled = weight / 2, [adaptive_avg_pool3d(v, size) for v in (ours, theirs)]
        assert torch.allclose(adaptive_mean(ours, pool), pooled[0], atol=1e-6)
        expected, total = expected + weight * (pooled[0] - pooled[1]).square().mean(), total + weight
    assert context_loss(ours, theirs).item() == pytest.approx((expected / total).item(), rel=1e-5)
    assert context_loss(ours, ours) == 0


def test_review_carries_coarse_levels_to_fine_ones() -> None:
    made, student, teacher = term(ReviewKdOptions()), outputs(0, OURS), outputs(50, THEIRS)
    seen: dict[int, Tensor] = {}
    for i, fusion in enumerate(made.fusions):
        fusion.make.register_forward_hook(lambda _, inputs, made, i=i: seen.__setitem__(i, made))
    value = made(student, teacher, BATCH)
    expected = torch.stack([context_loss(seen[i], teacher.features[i]) for i in range(3)]).mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    (coarse,) = torch.autograd.grad(seen[0].sum(), student.features[2], retain_graph=True)
    assert coarse.any()
    (fine,) = torch.autograd.grad(seen[2].sum(), student.features[0], allow_unused=True)
    assert fine is None
    # the fusion of the finest level is a sum, with learned shares, of it and of the fused coarser ones
    finest = made.fusions[0]
    level, coarser = noise(5, 1, 4, *SHAPE), noise(6, 1, 16, *(n // 2 for n in SHAPE))
    with torch.no_grad():
        finest.attention.weight.zero_()
        finest.attention.bias.copy_(torch.tensor([50.0, -50.0]))
        assert torch.equal(finest(level, coarser)[0], finest.reduce(level))
        finest.attention.bias.copy_(torch.tensor([-50.0, 50.0]))
        upsampled = coarser.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
        assert torch.allclose(finest(level, coarser)[0], upsampled)


def test_review_refuses_levels_out_of_order() -> None:
    with pytest.raises(ConfigError, match="fine to coarse"):
        term(ReviewKdOptions(levels=(2, 0)))
    shallow = THEIRS._replace(features=THEIRS.features[:2])
    with pytest.raises(ConfigError, match="of the teacher"):
        term(ReviewKdOptions(levels=(1, -1)), CONTEXT._replace(teacher=shallow))


def test_masks_of_mgd_differ_from_call_to_call_and_go_on_after_a_restart() -> None:
    made, student, teacher = term(MgdOptions(masked=0.5)), outputs(0, OURS), outputs(50, THEIRS)
    seen: list[Tensor] = []
    made.generator.register_forward_hook(lambda _, inputs, made: seen.append((inputs[0] != 0).detach()))
    state = torch.get_rng_state()
    first = made(student, teacher, BATCH)
    saved = deepcopy(made.state_dict())
    second = made(student, teacher, BATCH)
    assert torch.equal(torch.get_rng_state(), state)
    assert first != second
    masks = torch.stack(seen)
    # whole voxels are masked
    assert torch.equal(masks.all(2), masks.any(2))
    assert masks.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0, 0], masks[0, 1])
    again = term(MgdOptions(masked=0.5))
    again.load_state_dict(saved)
    assert again(student, teacher, BATCH) == second


def test_mgd_sees_nothing_of_what_is_masked() -> None:
    made, student, teacher = term(MgdOptions(masked=1.0)), outputs(0, OURS), outputs(50, THEIRS)
    made(student, teacher, BATCH).backward()
    assert not student.features[0].grad.any()
    assert all(p.grad is not None for p in made.parameters())


@pytest.mark.parametrize(
    "options",
    [FitNetsOptions(), AttentionOptions(), CwdOptions(tap=0), ReviewKdOptions(), VidOptions(), MgdOptions()],
    ids=lambda o: o.name,
)
def test_features_of_stored_teachers_are_refused(options: Any) -> None:
    with pytest.raises(ConfigError, match="online"):
        term(options, CONTEXT._replace(teacher=Widths({"affinities": 3}, (), ())))


def test_cwd_refuses_other_offsets() -> None:
    with pytest.raises(ConfigError, match="same offsets"):
        term(CwdOptions(), CONTEXT._replace(teacher=THEIRS._replace(logits={"affinities": 4})))
