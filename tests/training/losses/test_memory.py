"""What is remembered of earlier batches: the running moment, the queue, and that ranks agree on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor
from torch.nn.functional import normalize

from kdseg.config.terms import GraphRelationOptions
from kdseg.networks.models import Batch, Outputs, Widths
from kdseg.training.losses import Context, Term, build_terms
from kdseg.training.losses.memory import Moment, TokenQueue, moment_distances, spread

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))


def units(seed: int, number: int, width: int = 4) -> Tensor:
    return normalize(torch.randn(number, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_the_moment_is_a_running_mean_without_the_current_batch() -> None:
    moment = Moment(3, memory=4, start=2)
    batches = [normalize(torch.randn(7, 3), dim=1) for _ in range(5)]
    expected, weight = torch.zeros(3, 3), 0.0
    for number, rows in enumerate(batches):
        before = moment.metric()
        if number < 2:
            assert not before.any()
        else:
            mean = expected / weight
            assert torch.allclose(before, mean + 1e-3 * mean.trace() / 3 * torch.eye(3), atol=1e-6)
        moment.update(rows.T @ rows, len(rows))
        moment.update(torch.zeros(3, 3), 0)  # a batch without vectors changes nothing
        expected, weight = 0.75 * expected + 0.25 * rows.T @ rows / 7, 0.75 * weight + 0.25
    assert moment.seen == 5
    forgetful = Moment(3, memory=1, start=0)
    for rows in batches:
        forgetful.update(rows.T @ rows, len(rows))
    assert torch.allclose(forgetful.total, batches[-1].T @ batches[-1] / 7, atol=1e-6)


def test_the_metric_gives_the_mean_over_all_pairs() -> None:
    rows, ours, theirs = units(0, 50).double(), units(1, 6).double(), units(2, 6).double()
    expected = ((ours @ rows.T - theirs @ rows.T) ** 2).mean(1)
    found = moment_distances(ours - theirs, rows.T @ rows / 50)
    assert torch.allclose(found, expected, rtol=1e-9)


def test_the_queue_holds_the_last_batches_and_always_as_many() -> None:
    queue = TokenQueue(4, memory=3, tokens=5, start=0)
    batches = [units(seed, 5) for seed in range(31)]
    for number, rows in enumerate(batches):
        assert queue.held.sum() == 5 * min(number, 3)
        expected = torch.cat(batches[max(number - 3, 0) : number] or [torch.zeros(0, 4)])
        held = queue.vectors[queue.held]
        assert sorted(held.tolist()) == sorted(expected.half().tolist())
        queue.push(rows, torch.ones(5, dtype=torch.bool))
        queue.push(rows, torch.zeros(5, dtype=torch.bool))  # a batch without vectors does not count
    assert queue.seen == 31


def test_a_slot_takes_evenly_spaced_vectors_or_has_room_left() -> None:
    queue = TokenQueue(4, memory=2, tokens=4, start=0)
    rows, valid = units(0, 10), torch.arange(10) != 3
    queue.push(rows, valid)
    left = rows[valid].half()
    assert torch.equal(queue.vectors[0], left[[0, 2, 4, 6]])
    queue.push(rows, torch.arange(10) > 7)
    assert queue.held[1].tolist() == [True, True, False, False]
    assert torch.equal(queue.vectors[1, :2], rows[8:].half())
    empty = TokenQueue(4, memory=2, tokens=4, start=0)
    empty.push(torch.zeros(0, 4), torch.zeros(0, dtype=torch.bool))
    assert not empty.held.any()


def test_divergences_are_those_of_the_softmax_with_the_teacher_as_target() -> None:
    queue = TokenQueue(4, memory=2, tokens=5, start=1)
    ours, theirs = units(1, 3).requires_grad_(), units(2, 3)
    before = queue.divergences(ours, theirs, 0.5)
    assert not before.any()
    before.sum().backward()
    assert ours.grad is not None
    assert not ours.grad.any()
    queue.push(units(3, 4), torch.ones(4, dtype=torch.bool))
    bank = units(3, 4).half().float()
    expected = []
    for s, t in zip(ours, theirs, strict=True):
        p, q = torch.softmax(bank @ t / 0.5, 0), torch.softmax(bank @ s / 0.5, 0)
        expected.append((p * (p / q).log()).sum())
    found = queue.divergences(ours, theirs, 0.5)
    assert torch.allclose(found, torch.stack(expected), atol=1e-6)
    (one,) = torch.autograd.grad(found.sum(), ours)
    (two,) = torch.autograd.grad(torch.stack(expected).sum(), ours)
    assert torch.allclose(one, two, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "most"), [((4, 6, 8), 20), ((4, 6, 8), 1), ((4, 6, 8), 1000), ((1, 3, 50), 7), ((3, 4, 4), 6)]
)
def test_evenly_spaced_voxels_are_at_most_as_many_as_asked_for(shape: tuple[int, int, int], most: int) -> None:
    values = torch.arange(2.0 * 3 * shape[0] * shape[1] * shape[2]).reshape(2, 3, *shape)
    picked = spread(values, most)
    assert min(most, values[0, 0].numel()) / 4 < len(picked) / 2 <= most
    assert len(picked.unique(dim=0)) == len(picked)
    assert torch.equal(picked[:, 1] - picked[:, 0], torch.full((len(picked),), values[0, 0].numel()))


def term(inter: str) -> Term:
    heads = Widths({"affinities": 3, "embedding": 4}, (), ())
    options = GraphRelationOptions(inter=inter, memory=3, memory_start=0, min_size=1, tokens=6)
    made = build_terms([options], Context(OFFSETS, (10.0, 10.0, 10.0), heads, heads))["graph_relation"]
    assert isinstance(made, Term)
    return made


def seen(crops: list[int], step: int) -> tuple[Outputs, Outputs, Batch]:
    """Outputs for some crops; their instances are numbered over those crops."""
    fields, ids = [], []
    for crop in crops:
        generator = torch.Generator().manual_seed(10 * step + crop)
        fields.append(torch.randn(2, 4, 3, 4, 4, generator=generator))
        # one crop has more nodes than the other, and once none
        ids.append(torch.randint(1, 4 + 3 * crop, (3, 4, 4), generator=generator) * (step != 2 or crop == 0))
    numbers = torch.stack(ids) + 100 * torch.arange(len(crops))[:, None, None, None] * (torch.stack(ids) > 0)
    numbers = torch.cat([torch.zeros(1, dtype=torch.int64), numbers.flatten()]).unique(return_inverse=True)[1][1:]
    instances = numbers.view(len(crops), 3, 4, 4)
    student, teacher = (Outputs({"embedding": torch.stack([f[i] for f in fields])}, ()) for i in (0, 1))
    student.logits["embedding"].requires_grad_()
    return student, teacher, Batch(torch.zeros(len(crops), 1, 3, 4, 4), instances, instances > 0, instances)


def taught(inter: str, crops: list[int]) -> dict[str, Tensor]:
    made = term(inter)
    for step in range(5):
        made(*seen(crops, step)).backward()
    return made.state_dict()


def on_a_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save({inter: taught(inter, [rank]) for inter in ("moment", "kl")}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_remember_what_one_process_does(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(on_a_rank, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    alone = taught("moment", [0, 1])
    assert {k.split(".")[-2] for k in alone} == {"nodes", "voxels"}
    for name, value in alone.items():
        for rank in ranks:
            assert torch.allclose(rank["moment"][name].double(), value.double(), atol=1e-6), name
    for name, value in ranks[0]["kl"].items():
        assert torch.equal(value, ranks[1]["kl"][name]), name
    assert ranks[0]["kl"]["links.embedding.voxels.held"].all()
    # both crops are in every slot: vectors that only one of the ranks has seen
    slot = ranks[0]["kl"]["links.embedding.voxels.vectors"][4 % 3].float()
    for rank in (0, 1):
        own = normalize(spread(seen([rank], 4)[1].logits["embedding"], 6), dim=1).half().float()
        assert (torch.cdist(slot, own) < 1e-3).any()
