"""Terms that compare features, or their distribution, directly."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, mse_loss, normalize, softplus

from kdseg.config.terms import AttentionOptions, CwdOptions, FitNetsOptions, VidOptions
from kdseg.networks.models import Batch, Outputs
from kdseg.training.losses.base import EPSILON, Context, Term
from kdseg.training.losses.taps import aligned, both, projector, same_affinities, tapped, widths

NOWHERE = -1e30
"""A logit that no softmax sees; finite, so that differences of two are 0."""


class FitNetsTerm(Term):
    """Mean squared error of features (Romero et al. 2015), after a linear map where widths differ."""

    def __init__(self, options: FitNetsOptions, context: Context) -> None:
        super().__init__()
        self.level = options.level
        ours, theirs = widths(context, options.level, "fitnets")
        self.projector = projector(ours, theirs)

    def value(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the term; see `Term`."""
        ours, theirs = both(student, teacher, self.level)
        return mse_loss(self.projector(ours), theirs)


class AttentionTerm(Term):
    """Attention transfer (Zagoruyko & Komodakis 2017), the mean over levels and crops.

    The attention of a voxel is the mean square of its channels. Of the attention as a unit vector over the voxels
    of a crop, the squared distance of the two: the mean of squares that the published code takes depends on the
    number of voxels, which this does not. Numbers of channels may differ; of levels of another stride, the
    attention is resampled, not the features.
    """

    def __init__(self, options: AttentionOptions, context: Context) -> None:
        super().__init__()
        self.levels = options.levels
        for level in options.levels:
            widths(context, level, "at")

    def value(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the term; see `Term`."""
        found = []
        for level in self.levels:
            ours = tapped(student, level).square().mean(1, keepdim=True)
            theirs = aligned(tapped(teacher, level).detach().square().mean(1, keepdim=True), ours)
            s, t = (normalize(energy.flatten(1), dim=1, eps=EPSILON) for energy in (ours, theirs))
            found.append((s - t).square().sum(1).mean())
        return torch.stack(found).mean()


class CwdTerm(Term):
    """Channel-wise distillation (Shu et al. 2021): each channel a distribution over the voxels of a crop.

    The Kullback-Leibler divergence of the student's softmax over voxels from the teacher's, times the square of
    the temperature, the mean over channels and crops. A linear map brings the student's channels to the
    teacher's number where they differ. Affinities that the teacher did not predict take no part, nor do vectors of 0.
    """

    def __init__(self, options: CwdOptions, context: Context) -> None:
        super().__init__()
        self.tap, self.temperature = options.tap, options.temperature
        ours, theirs = widths(context, options.tap, "cwd")
        if options.tap == "affinities":
            same_affinities(context, "cwd")
        self.projector = projector(ours, theirs, bias=False)  # the softmax takes a bias away again

    def value(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the term; see `Term`."""
        ours, theirs = both(student, teacher, self.tap)
        known = teacher.known if self.tap == "affinities" else None
        if self.tap == "embedding":  # stored ones are 0 where a voxel shows nothing
            known = theirs.any(1, keepdim=True).expand_as(theirs)
        divergence = channel_divergence(self.projector(ours) / self.temperature, theirs / self.temperature, known)
        return self.temperature**2 * divergence


def channel_divergence(ours: Tensor, theirs: Tensor, known: Tensor | None = None) -> Tensor:
    """Return the divergence of channels as distributions over voxels, ``KL(theirs | ours)``.

    Args:
        ours: logits, float32 (n, c, z, y, x).
        theirs: the same shape.
        known: bool (n, c, z, y, x), the voxels that count; None is all.

    Returns:
        The mean over crops of that over the channels that have a known voxel, 0 in crops without; not negative.
    """
    some = torch.ones_like(ours[:, :, 0, 0, 0])
    if known is not None:
        ours, theirs = (values.masked_fill(~known, NOWHERE) for values in (ours, theirs))
        some = known.flatten(2).any(2).float()
    q, p = (log_softmax(values.flatten(2), dim=2) for values in (ours, theirs))
    divergence = (p.exp() * (p - q)).sum(2)
    return ((divergence * some).sum(1) / some.sum(1).clamp_min(1)).mean()


class VidTerm(Term):
    """Variational information distillation (Ahn et al. 2019): how likely the student makes the teacher's features.

    ``log v / 2 + (t - m(s))^2 / (2 v)``, the mean over channels and voxels, with ``m`` a linear map where widths
    differ and one learned variance ``v`` per channel. Where the student is good and ``v`` small, it is negative.
    """

    FLOOR = 1e-3
    """Of a variance: a channel that never changes would else drive the term to minus infinity."""

    def __init__(self, options: VidOptions, context: Context) -> None:
        super().__init__()
        self.level = options.level
        ours, theirs = widths(context, options.level, "vid")
        self.projector = projector(ours, theirs)
        # the softplus of it is 1 at the start
        self.spread = nn.Parameter(torch.full((theirs,), math.log(math.e - 1)))

    def value(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the term; see `Term`."""
        ours, theirs = both(student, teacher, self.level)
        variance: Tensor = (softplus(self.spread) + self.FLOOR)[:, None, None, None]
        mapped: Tensor = self.projector(ours)
        return (variance.log() / 2 + (theirs - mapped) ** 2 / (2 * variance)).mean()
