"""Memory of the teacher's vectors of earlier batches: their second moment, or a queue of them.

With squared differences, the whole memory of Liu et al., arXiv 2401.06370, comes down to one small matrix. For unit
vectors ``s_i`` of the student, ``t_i`` of the teacher and ``m_j`` of the memory::

    1/n sum_j (s_i.m_j - t_i.m_j)^2 = (s_i - t_i)' G (s_i - t_i),   G = 1/n sum_j m_j m_j'

Only the relations by Kullback-Leibler divergence need the vectors themselves.
"""

from __future__ import annotations

from math import prod

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from kdseg.training.losses.base import EPSILON

_RIDGE = 1e-3
"""Share of the mean eigenvalue of a moment that is added to all: few vectors do not span the space."""


class Moment(nn.Module):
    """Running second moment ``G`` of the teacher's unit vectors, the same on all ranks.

    ``G <- b G + (1 - b) G_batch`` with ``b = 1 - 1/memory``, divided by the weight of the batches seen so far, so
    that the first one counts in full.
    """

    total: Tensor
    weight: Tensor
    seen: Tensor

    def __init__(self, width: int, memory: int, start: int) -> None:
        """Begin with nothing.

        Args:
            width: of the vectors.
            memory: batches that it remembers.
            start: batches before which it does not count.
        """
        super().__init__()
        self.decay, self.start = 1 - 1 / memory, start
        self.register_buffer("total", torch.zeros(width, width))
        self.register_buffer("weight", torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def metric(self) -> Tensor:
        """Return ``G + eta I`` with ``eta = 1e-3 tr(G) / width``, float32 (width, width).

        It is 0 before `start`. The result does not change when the moment does.
        """
        mean = self.total / self.weight.clamp_min(EPSILON)
        ridge = _RIDGE * mean.diagonal().mean() * torch.eye(len(mean), device=mean.device)
        return (mean + ridge) * (self.seen >= self.start)

    @torch.no_grad()
    def update(self, second: Tensor, count: Tensor | float) -> None:
        """Take in a batch, after its loss; batches of all ranks count as one.

        Args:
            second: float (width, width), sum of the products of the teacher's unit vectors.
            count: number of those vectors; a batch without any is not counted.
        """
        number = torch.as_tensor(count, dtype=self.total.dtype, device=second.device)
        both = torch.cat([second.to(self.total.dtype).reshape(-1), number.reshape(1)])
        if _parallel():
            dist.all_reduce(both)
        some = both[-1] > 0
        mean = (both[:-1] / both[-1].clamp_min(1)).view_as(self.total)
        share = some * (1 - self.decay)
        self.total.mul_(1 - share).add_(mean * share)
        self.weight.mul_(1 - share).add_(share)
        self.seen.add_(some)


def moment_distances(delta: Tensor, metric: Tensor) -> Tensor:
    """Return ``d_i' G d_i``, the mean squared difference of the relations to all that the moment has seen.

    Args:
        delta: float (..., width), differences of unit vectors of student and teacher.
        metric: float (width, width), symmetric; see `Moment.metric`.

    Returns:
        (...).
    """
    return ((delta @ metric) * delta).sum(-1)


class TokenQueue(nn.Module):
    """The teacher's unit vectors of the last batches, the same on all ranks.

    One slot per batch, the oldest overwritten: after ``memory`` batches it always holds as many.
    """

    vectors: Tensor
    held: Tensor
    seen: Tensor

    def __init__(self, width: int, memory: int, tokens: int, start: int) -> None:
        """Begin with nothing.

        Args:
            width: of the vectors.
            memory: batches that it holds.
            tokens: vectors that it holds of each.
            start: batches before which it does not count.
        """
        super().__init__()
        self.start = start
        self.register_buffer("vectors", torch.zeros(memory, tokens, width, dtype=torch.float16))
        self.register_buffer("held", torch.zeros(memory, tokens, dtype=torch.bool))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def divergences(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Return by how much the student's relations to the queue diverge from the teacher's.

        ``KL(softmax(t_i M' / T) || softmax(s_i M' / T))``, the teacher's the target (the published code has it the
        other way round, and a gradient into the target).

        Args:
            student: float (p, width), unit vectors, with gradient.
            teacher: float (p, width), unit vectors.
            temperature: T.

        Returns:
            (p,); 0, with a gradient of 0, before `start` and while the queue is empty.
        """
        # a copy, as the queue moves on before the gradient is taken
        bank = self.vectors.to(student.dtype, copy=True).flatten(0, 1)
        counts = self.held.flatten() & (self.seen >= self.start)

        def relations(vectors: Tensor) -> Tensor:
            # where none counts, all are alike, and nothing diverges
            return log_softmax(torch.where(counts, vectors @ bank.T / temperature, -1e4), dim=1)

        target = relations(teacher.detach())
        return kl_div(relations(student), target, reduction="none", log_target=True).sum(1)

    @torch.no_grad()
    def push(self, vectors: Tensor, valid: Tensor) -> None:
        """Take in a batch, after its loss; batches of all ranks count as one.

        If there are more vectors than a slot holds, evenly spaced ones are kept.

        Args:
            vectors: float (p, width), unit vectors of the teacher.
            valid: bool (p,), which of them count; a batch without any is not counted.
        """
        memory, tokens, _ = self.vectors.shape
        fresh, held = _thinned(vectors.half(), valid, tokens)
        if _parallel():
            fresh, held = _thinned(_gathered(fresh), _gathered(held), tokens)
        some = held.any()
        slot = (self.seen % memory).reshape(1)
        self.vectors.index_copy_(0, slot, torch.where(some, fresh, self.vectors.index_select(0, slot)))
        self.held.index_copy_(0, slot, torch.where(some, held, self.held.index_select(0, slot)))
        self.seen.add_(some)


def spread(values: Tensor, most: int) -> Tensor:
    """Return the vectors of evenly spaced voxels of each crop.

    Args:
        values: float (n, c, z, y, x), differentiable.
        most: voxels per crop, at least 1.

    Returns:
        (n p, c), p at most ``most``, float32 (float64 if the values are).
    """
    steps, extent = [1, 1, 1], values.shape[2:]
    while prod(-(-n // s) for n, s in zip(extent, steps, strict=True)) > most:
        steps[max(range(3), key=lambda axis: extent[axis] / steps[axis])] += 1
    z, y, x = (slice((n - 1) % s // 2, None, s) for n, s in zip(extent, steps, strict=True))
    picked = values[:, :, z, y, x].movedim(1, -1).reshape(-1, values.shape[1])
    return picked if values.dtype == torch.float64 else picked.float()


def _thinned(vectors: Tensor, valid: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return ``most`` vectors, evenly spaced among those that count, and which count; the rest is filled up."""
    filled = torch.cat([vectors, vectors.new_zeros(most, vectors.shape[1])])
    number = valid.count_nonzero()
    # those that count come first, in their order
    order = torch.cat([~valid, valid.new_ones(most)]).to(torch.uint8).argsort(stable=True)
    place = torch.arange(most, device=vectors.device)
    chosen = order[torch.where(number > most, place * number // most, place)]
    return filled[chosen], place < number


def _gathered(values: Tensor) -> Tensor:
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values)
    return torch.cat(parts)


def _parallel() -> bool:
    return dist.is_available() and dist.is_initialized()
