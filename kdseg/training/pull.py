"""Strengths of the parts of the loss: the gradients by which they pull the student, relative to ground truth's.

With `normalise` the weight of a part means the same for all methods: 1 pulls as strongly as ground truth does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import isfinite

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdseg.training.run import Run

EVERY, AT_FIRST, YOUNG = 31, 7, 128
"""Steps between two looks, each of which takes a backward pass per part: in general, and in the first steps, in which
gradients change most. They are odd: of steps in which labelled crops alternate, all kinds are looked at."""
DECAY = 0.5
"""Of the running mean of a part's gradient norm."""
LARGEST = 1e4
"""Bound of what a part is multiplied by: one whose gradient has vanished would drown the others in its noise."""
REFERENCES = ("affinity", "dice", "embedding")
"""Parts on ground truth: the first that a training has is what the others are compared with."""


def looks(first: int, last: int) -> int:
    """Return how often all gradients are measured in the steps from ``first`` up to, not including, ``last``."""
    young, old = range(first, min(last, YOUNG)), range(max(first, YOUNG), last)
    regular = len([step for step in young if step % AT_FIRST == 0 or step in (1, 2, 4)])
    return regular + len(range(-(-old.start // EVERY) * EVERY, old.stop, EVERY))


def due(step: int, acting: Sequence[str], before: Collection[str]) -> list[str]:
    """Return the parts whose gradients are to be measured at a step: all now and then, and those that begin.

    One that has no gradient yet, since it learns first, is measured as seldom as the others.

    Args:
        step: from 0.
        acting: names of the parts that count.
        before: names of those that counted in the step before.
    """
    all_of_them = looks(step, step + 1) > 0
    return [name for name in acting if all_of_them or name not in before]


def gradients(run: Run, parts: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Return the gradients of the student's parameters by some parts, (factors, parameters); the graph is kept.

    In float16 each is computed twice: times the factor of the scaler, which suits the sum of the parts, and as it is,
    which does not overflow where one part is far stronger.

    Args:
        run: its student has been through a batch.
        parts: all of them, unweighted scalars by name.
        names: of those to measure, the same in all processes.
    """
    student = [p for p in run.objective.network.parameters() if p.requires_grad]
    factors = (run.scaler.get_scale(), 1.0) if run.scaler.is_enabled() else (1.0,)
    # Synchronised norms wait for each other on the way back too: all processes go it, even where a part found nothing.
    nothing = torch.stack(list(parts.values())).sum() * 0 if names and run.ranks.together else 0.0
    found = {}
    for name in names:
        found[name] = torch.stack([_gradient(parts[name] * factor + nothing, student) / factor for factor in factors])
    return found


def _gradient(part: Tensor, student: Sequence[nn.Parameter]) -> Tensor:
    if part.requires_grad:
        each = torch.autograd.grad(part, student, retain_graph=True, materialize_grads=True)
    else:  # it found nothing to compare
        each = tuple(torch.zeros_like(p) for p in student)
    return torch.cat([g.flatten() for g in each])


def record(run: Run, measured: Mapping[str, Tensor]) -> None:
    """Move the running norms of gradients, ``run.scales``; one of 0 says nothing.

    Args:
        run: after the batches of a step.
        measured: by name, the sum of the gradients over the batches of this process; the first that is finite counts.
    """
    for name, gradient in measured.items():
        if run.ranks.together:
            dist.all_reduce(gradient)
        norms = [norm / run.ranks.ranks / run.options.train.accumulate for norm in gradient.norm(dim=1).tolist()]
        norm = next((norm for norm in norms if isfinite(norm) and norm > 0), 0.0)
        if norm:
            run.scales[name] = DECAY * run.scales.get(name, norm) + (1 - DECAY) * norm


def pulls(scales: Mapping[str, float], acting: Sequence[str]) -> dict[str, float]:
    """Return the gradient norm of each part as a multiple of the reference's.

    The reference is the part on ground truth or, as long as it has no gradient, the first that has one.

    Args:
        scales: running norms by name, of the parts that have one.
        acting: names of the parts that count, in their order.
    """
    known = [name for name in acting if name in scales]
    if not known:
        return {}
    reference = _first(known)
    return {name: scales[name] / scales[reference] for name in known}


def factors(pulls: Mapping[str, float], acting: Sequence[str]) -> dict[str, float]:
    """Return what each part is multiplied by, for all to pull alike.

    A part whose gradient is not known yet waits for a step: at its own strength it could be a hundred times too strong.
    Where none is known, the part on ground truth goes first, or the first one.
    """
    if not pulls and acting:
        return {_first(acting): 1.0}
    return {name: min(max(1 / pull, 1 / LARGEST), LARGEST) for name, pull in pulls.items()}


def _first(names: Sequence[str]) -> str:
    """Return the part on ground truth, or the first part where there is none."""
    return next((name for name in REFERENCES if name in names), names[0])
