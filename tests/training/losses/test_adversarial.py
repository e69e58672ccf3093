"""The critic of the adversarial term, and what is learned beside the student in general."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdseg.config.terms import AdversarialOptions, FactorOptions, GraphFlowOptions
from kdseg.networks.models import Batch, Outputs, Widths
from kdseg.training.losses import Context, Objective, Term, build_terms
from kdseg.training.losses.adversarial import AdversarialTerm, Critic, SelfAttention, blocks, gradient_penalty
from kdseg.training.losses.auxiliary import Auxiliary

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
WIDTHS = Widths({"affinities": 3}, (3, 3), (3,))
CONTEXT = Context(OFFSETS, (10.0, 10.0, 10.0), WIDTHS, WIDTHS)
SHAPE = (4, 6, 8)
SMALL = AdversarialOptions(widths=(4, 8), learning_rate=1e-2)


def logits(seed: int, mean: float = 0.0, scale: float = 2.0, n: int = 2, shape: tuple[int, ...] = SHAPE) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    drawn = mean + scale * torch.randn(n, 3, *shape, generator=generator)
    return Outputs({"affinities": drawn.requires_grad_()}, ())


def batch(n: int = 2, shape: tuple[int, ...] = SHAPE) -> Batch:
    labels = torch.zeros(n, *shape, dtype=torch.int64)
    raw = torch.rand(n, 1, *shape, generator=torch.Generator().manual_seed(7)) * 2 - 1
    return Batch(raw, labels, labels > 0)


def term(options: AdversarialOptions = SMALL, seed: int = 0) -> AdversarialTerm:
    torch.manual_seed(seed)
    made = build_terms([options], CONTEXT)["adversarial"]
    assert isinstance(made, AdversarialTerm)
    return made


def weights(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def reloaded(module: nn.Module, into: nn.Module) -> None:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    into.load_state_dict(torch.load(file, weights_only=True))


def test_the_critic_takes_the_momentum_that_options_say() -> None:
    assert term().critic.optimiser.defaults["betas"] == (0.0, 0.99)
    assert term(AdversarialOptions(betas=(0.9, 0.99))).critic.optimiser.defaults["betas"] == (0.9, 0.99)


def test_the_critic_learns_to_tell_two_distributions_apart() -> None:
    made = term()
    first = made(logits(0, -1.5, 0.5), logits(100, 1.5, 0.5), batch()).item()
    for step in range(1, 80):
        made(logits(step, -1.5, 0.5), logits(100 + step, 1.5, 0.5), batch())
    made.eval()
    student, teacher = logits(200, -1.5, 0.5), logits(201, 1.5, 0.5)
    value = made(student, teacher, batch()).item()
    distance = torch.sigmoid(teacher.logits["affinities"]) - torch.sigmoid(student.logits["affinities"])
    # with a slope of 1, the score moves at most by as much as the probabilities do, here about 0.6
    assert abs(first) < 0.1
    assert 0.1 < value < 1.2 * distance.square().mean().sqrt().item()


def test_the_gradient_leads_the_student_to_the_teacher() -> None:
    made = term()
    student, teacher = logits(1, mean=-1.5, scale=0.5), logits(2, mean=1.5, scale=0.5)
    free = student.logits["affinities"]
    optimiser = torch.optim.Adam([free], lr=0.2)

    def apart() -> float:
        return (torch.sigmoid(free).mean() - torch.sigmoid(teacher.logits["affinities"]).mean()).abs().item()

    before = apart()
    for _ in range(60):
        optimiser.zero_grad()
        made(student, teacher, batch()).backward()
        optimiser.step()
    assert apart() < 0.6 * before
    assert teacher.logits["affinities"].grad is None


def test_equals_are_no_distance_apart() -> None:
    student = logits(1)
    teacher = Outputs({"affinities": student.logits["affinities"].detach().clone()}, ())
    assert term()(student, teacher, batch()).item() == pytest.approx(0, abs=1e-6)


def test_the_penalty_of_a_linear_score_is_that_of_its_slope() -> None:
    w = torch.randn(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    values = torch.randn(2, 3, *SHAPE, dtype=torch.float64)
    found = gradient_penalty(lambda v: (v * w).flatten(1).sum(1), values)
    expected = (w.norm() * w.numel() ** 0.5 - 1) ** 2
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(found, w, retain_graph=True)
    (analytic,) = torch.autograd.grad(expected, w)
    torch.testing.assert_close(gradient, analytic, rtol=1e-6, atol=0)
    flat = torch.zeros_like(w).requires_grad_()
    nothing = gradient_penalty(lambda v: (v * flat).flatten(1).sum(1), values)
    (gradient,) = torch.autograd.grad(nothing, flat)
    assert nothing.item() == pytest.approx(1, rel=1e-4)
    assert torch.isfinite(gradient).all()
    # a mean has a slope of 1: it moves by as much as all values do
    assert gradient_penalty(lambda v: v.flatten(1).mean(1), values) < 1e-9


def test_the_penalty_of_a_critic_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    critic = Critic(2, (3, 4)).double().eval()
    for layer in critic.layers:
        if isinstance(layer, SelfAttention):
            nn.init.constant_(layer.share, 0.7)
    values = torch.randn(1, 2, 2, 4, 4, dtype=torch.float64)
    steps = 1e-5 * torch.eye(values.numel(), dtype=torch.float64).view(-1, *values.shape[1:])
    with torch.no_grad():
        slopes = (critic(values + steps) - critic(values - steps)) / 2e-5
    expected = (slopes.norm() * values.numel() ** 0.5 - 1) ** 2
    assert gradient_penalty(critic, values).item() == pytest.approx(expected.item(), rel=1e-6)


def test_only_its_own_step_changes_the_critic() -> None:
    made, student, teacher = term(), logits(1), logits(2)
    assert not any(p.requires_grad for p in made.parameters())
    before = weights(made)
    made.eval()
    made(student, teacher, batch())
    made.train()
    with torch.no_grad():
        made(student, teacher, batch())
    assert all(map(torch.equal, before, weights(made)))
    value = made(student, teacher, batch())
    stepped = weights(made)
    assert not all(map(torch.equal, before, stepped))
    assert not any(p.requires_grad or p.grad is not None for p in made.parameters())
    kept = {name: b.clone() for name, b in made.named_buffers()}
    torch.optim.AdamW(made.parameters(), lr=1.0, weight_decay=0.5)  # an optimiser of all that it finds
    value.backward()
    assert student.logits["affinities"].grad.any()
    assert all(p.grad is None for p in made.parameters())
    assert all(map(torch.equal, stepped, weights(made)))
    made(student, teacher, batch())
    assert any(not torch.equal(b, kept[name]) for name, b in made.named_buffers())


def test_scoring_does_not_iterate_the_spectral_norm() -> None:
    made = term()
    made.train()
    kept = {name: b.clone() for name, b in made.named_buffers()}
    with torch.no_grad():  # no step of the critic, only scores
        made(logits(1), logits(2), batch())
    assert kept
    assert all(torch.equal(b, kept[name]) for name, b in made.named_buffers())


def test_a_continued_run_equals_an_uninterrupted_one() -> None:
    options = AdversarialOptions(widths=(4, 8), learning_rate=1e-2, conditioned=True)
    whole, begun, continued = term(options), term(options), term(options, seed=1)

    def run(made: Term, steps: range) -> list[float]:
        return [made(logits(step), logits(50 + step, 1.0), batch()).item() for step in steps]

    expected = run(whole, range(6))
    found = run(begun, range(3))
    reloaded(begun, continued)
    torch.manual_seed(99)
    assert found + run(continued, range(3, 6)) == expected
    assert all(map(torch.equal, weights(whole), weights(continued)))
    interpolated = term(options)
    run(interpolated, range(3))
    assert interpolated.critic.steps == 3


@pytest.mark.parametrize("conditioned", [False, True])
def test_the_critic_sees_the_raw_data_if_it_is_to(conditioned: bool) -> None:
    made = term(AdversarialOptions(widths=(4, 8), conditioned=conditioned))
    made.eval()
    values = [made(logits(1), logits(2), each).item() for each in (batch(), batch()._replace(raw=-batch().raw))]
    assert (values[0] != values[1]) is conditioned


def test_affinities_that_the_teacher_does_not_know_are_hidden() -> None:
    known = torch.rand(2, 3, *SHAPE, generator=torch.Generator().manual_seed(0)) < 0.5
    student, teacher = logits(1), logits(2)._replace(known=known)
    made = term()
    made.eval()
    value = made(student, teacher, batch())
    value.backward()
    assert not student.logits["affinities"].grad[~known].any()
    other = {"affinities": torch.where(known, teacher.logits["affinities"], 9.0)}
    assert torch.equal(made(student, teacher._replace(logits=other), batch()), value)
    none = teacher._replace(known=torch.zeros_like(known))
    assert made(student, none, batch()) == 0


@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_certain_networks_stay_finite(logit: float) -> None:
    def certain(value: float) -> Outputs:
        return Outputs({"affinities": torch.full((2, 3, *SHAPE), value).requires_grad_()}, ())

    made, student = term(), certain(logit)
    for _ in range(3):
        value = made(student, certain(-logit), batch())
        value.backward()
        assert torch.isfinite(value)
    assert torch.isfinite(student.logits["affinities"].grad).all()
    same = made(student, certain(logit), batch())  # the slope of equal crops
    assert torch.isfinite(same)
    assert all(torch.isfinite(w).all() for w in weights(made))


@pytest.mark.parametrize("shape", [(1, 12, 12), (1, 1, 1), (2, 3, 5), (9, 7, 33)])
def test_crops_of_any_size_are_scored(shape: tuple[int, int, int]) -> None:
    student = logits(1, shape=shape)
    value = term(AdversarialOptions(widths=(3, 4, 5)))(student, logits(2, shape=shape), batch(shape=shape))
    value.backward()
    assert torch.isfinite(value)
    assert student.logits["affinities"].grad.any()


def test_a_flat_crop_is_scored_as_one_within_nothing() -> None:
    torch.manual_seed(0)
    critic = Critic(2, (3, 4)).eval()
    values = torch.randn(1, 2, 1, 12, 12)
    strided = critic.layers[0]
    padded = torch.cat([values, torch.zeros_like(values)], dim=2)
    torch.testing.assert_close(strided(values), strided(padded), rtol=1e-5, atol=1e-6)


def test_the_value_depends_neither_on_the_order_nor_on_the_number_of_crops() -> None:
    made, student, teacher = term(), logits(1), logits(2)
    made.eval()

    def value(order: list[int]) -> float:
        chosen = [Outputs({k: v[order] for k, v in o.logits.items()}, ()) for o in (student, teacher)]
        return made(*chosen, batch(len(order))).item()

    assert value([1, 0]) == pytest.approx(value([0, 1]), rel=1e-4, abs=1e-7)
    assert value([0, 0, 1, 1]) == pytest.approx(value([0, 1]), rel=1e-4, abs=1e-7)


def test_attention_is_that_of_the_loop() -> None:
    torch.manual_seed(0)
    layer = SelfAttention(8).double().eval()
    values = torch.randn(1, 8, 2, 2, 3, dtype=torch.float64)
    assert torch.equal(layer(values), values)  # its share grows from 0
    nn.init.constant_(layer.share, 0.5)
    rows = values.flatten(2)[0].T
    query, key, value = (
        rows @ m.weight.flatten(1).T + m.bias
        for m in (layer.query, layer.key, layer.value)  # type: ignore[operator]
    )
    for i in range(12):
        share = torch.softmax(torch.stack([query[i] @ key[j] for j in range(12)]), 0)
        expected = rows[i] + 0.5 * sum(share[j] * value[j] for j in range(12))
        torch.testing.assert_close(layer(values).flatten(2)[0, :, i], expected, rtol=1e-6, atol=1e-9)


def test_many_voxels_are_attended_to_in_blocks() -> None:
    values = torch.arange(4 * 5 * 16.0).view(1, 1, 4, 5, 16)
    assert blocks(values, 320) is values
    found = blocks(values, 80)
    assert found.shape == (1, 1, 4, 5, 4)
    torch.testing.assert_close(found[0, 0, 1, 2], values[0, 0, 1, 2].view(4, 4).mean(1))
    assert blocks(values, 1).shape == (1, 1, 1, 1, 1)
    assert SelfAttention(8)(torch.randn(1, 8, 4, 24, 24)).shape == (1, 8, 4, 24, 24)


def test_bfloat16_logits_are_compared_in_float32() -> None:
    made, student, teacher = term(), logits(1, -1.0), logits(2, 1.0)
    made.eval()
    exact = made(student, teacher, batch())
    halved = [Outputs({k: v.bfloat16() for k, v in o.logits.items()}, ()) for o in (student, teacher)]
    with torch.autocast("cpu", torch.bfloat16):
        rough = made(*halved, batch())
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=1e-2)


# several processes


class Toy(nn.Module):
    """One level above a bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv3d(channels, 3, 3, padding=1) for channels in (1, 3))

    def forward(self, raw: Tensor) -> Outputs:
        first = self.one(raw)
        second = self.two(first)
        return Outputs({"affinities": second}, (second, first), (first,))


def train(rank: int, ranks: int, out: str) -> None:
    """Train on crops of which each process has its share; write the state of the first and last process."""
    torch.set_num_threads(1)
    if ranks > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{out}.meet", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    taught = Widths({"affinities": 3}, (5, 5), (5,))
    options = [SMALL, GraphFlowOptions(fit=2, sample=10**6), FactorOptions(fit=2, width=2)]
    objective = Objective(Toy(), build_terms(options, CONTEXT._replace(teacher=taught)), torch.float32)  # type: ignore[arg-type]
    trained: nn.Module = objective
    if ranks > 1:
        trained = nn.parallel.DistributedDataParallel(objective)
    optimiser = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        raw = torch.rand(2, 1, *SHAPE, generator=generator)
        theirs = torch.randn(2, 5, *SHAPE, generator=generator) * torch.arange(1, 6).view(-1, 1, 1, 1)
        mine = slice(None) if ranks == 1 else slice(rank, rank + 1)
        teacher = Outputs({"affinities": theirs[mine, :3]}, (theirs[mine],) * 2, (theirs[mine].flip(1),))
        labels = torch.zeros(len(raw[mine]), *SHAPE, dtype=torch.int64)
        optimiser.zero_grad()
        parts = trained(Batch(raw[mine], labels, labels > 0), teacher)
        torch.stack(list(parts.values())).sum().backward()
        optimiser.step()
    torch.save(objective.state_dict(), f"{out}.{rank}.pt")
    if ranks > 1:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_learn_the_same_as_one(tmp_path: Path) -> None:
    out = str(tmp_path / "state")
    torch.multiprocessing.spawn(train, (2, out), nprocs=2)
    both = [torch.load(f"{out}.{rank}.pt", weights_only=True) for rank in range(2)]
    threads = torch.get_num_threads()
    train(0, 1, out)
    torch.set_num_threads(threads)
    alone = torch.load(f"{out}.0.pt", weights_only=True)
    for name, value in both[0].items():
        assert_same(value, both[1][name], exact=True)
        # the student differs: a critic draws another share for each crop of a process, the same on all processes
        if "paraphraser" in name:
            assert_same(value, alone[name], exact=False)


def assert_same(a: Any, b: Any, *, exact: bool) -> None:
    if isinstance(a, Tensor):
        torch.testing.assert_close(a, b, **({"rtol": 0, "atol": 0} if exact else {"rtol": 1e-3, "atol": 1e-4}))
    elif isinstance(a, dict):
        for key in a:
            assert_same(a[key], b[key], exact=exact)
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y, exact=exact)
    else:
        assert a == b


def test_a_network_apart_descends_its_own_loss() -> None:
    torch.manual_seed(0)
    made = Auxiliary(nn.Linear(2, 1), 0.1)
    made.train()
    assert not made.network.training
    values = torch.randn(8, 2)
    before = made(values).square().mean().item()
    modes = []

    def loss() -> Tensor:
        modes.append(made.network.training)
        return made(values).square().mean()

    with torch.no_grad():
        for _ in range(10):
            made.descend(loss)
    assert made(values).square().mean().item() < before
    assert all(modes)
    assert made.steps == 10
