"""Distillation of affinities."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from kdseg.config.terms import SoftAffinityOptions
from kdseg.networks.models import Batch, Outputs
from kdseg.training.losses.base import Context, Term, balance, weighted_mean


class SoftAffinityTerm(Term):
    """Divergence of the student's affinities from the teacher's, in every voxel, labelled or not.

    Hinton et al. 2015 for independent two-way decisions: per offset and voxel, the Kullback-Leibler divergence
    between Bernoulli variables with the logits divided by the temperature, times its square. It is the cross
    entropy less the teacher's own entropy, so that it is 0 where the two agree. Or the squared error of the
    probabilities. Balanced, the pairs that the teacher would cut count as much as those that it would join:
    boundaries are few and decide everything.
    """

    def __init__(self, options: SoftAffinityOptions, context: Context) -> None:
        super().__init__()
        self.criterion, self.temperature, self.balanced = options.criterion, options.temperature, options.balanced

    def value(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the term; see `Term`."""
        ours = student.logits["affinities"].float() / self.temperature
        theirs = teacher.logits["affinities"].detach().float() / self.temperature
        p = torch.sigmoid(theirs)
        known = torch.ones_like(p, dtype=torch.bool) if teacher.known is None else teacher.known
        weights = balance(p > 0.5, known) if self.balanced else known.float()
        if self.criterion == "mse":
            return weighted_mean((torch.sigmoid(ours) - p) ** 2, weights, len(p))
        return self.temperature**2 * weighted_mean(bernoulli_divergence(ours, theirs), weights, len(p))


def bernoulli_divergence(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the divergence of two-way decisions, ``KL(theirs | ours)``, one per element.

    It is the cross entropy less the entropy of ``theirs``.

    Args:
        ours: logits, float32, any shape.
        theirs: the same shape.

    Returns:
        float32, the same shape; not negative but for rounding.
    """
    p = torch.sigmoid(theirs)
    entropy = -(p * logsigmoid(theirs) + (1 - p) * logsigmoid(-theirs))
    return binary_cross_entropy_with_logits(ours, p, reduction="none") - entropy
