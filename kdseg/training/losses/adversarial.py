"""Distillation by a discriminator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv3d, leaky_relu
from torch.nn.utils.parametrizations import spectral_norm

from kdseg.config.terms import AdversarialOptions
from kdseg.networks.models import Batch, Outputs
from kdseg.training.losses.auxiliary import Auxiliary
from kdseg.training.losses.base import Context, Term
from kdseg.training.losses.taps import both

KEYS = 1024
"""Voxels that a voxel attends to, at most; where there are more, blocks of them are averaged."""


class AdversarialTerm(Term):
    """Distance of the student's affinities from the teacher's, as a learned critic sees it (Zou et al. 2022).

    The critic is a discriminator with self-attention (Zhang et al. 2019), trained as in Gulrajani et al. 2017:
    in each batch it takes one step of its own towards a higher score for the teacher's probabilities, lower for
    the student's, and a slope of 1 in between. Then the student is to raise the score of its own. The value is
    the teacher's score less the student's: the latter alone, as published, has the same gradient but an
    arbitrary origin. Crops are apart by the root mean square of their difference, where Gulrajani et al. sum,
    so that neither value nor weight depend on the size of a crop.

    It is 0 if student and teacher are equal, but its gradient then is only as small as the critic is good.
    Affinities that the teacher does not know are hidden from the critic.
    """

    def __init__(self, options: AdversarialOptions, context: Context) -> None:
        super().__init__()
        self.penalty, self.conditioned = options.gradient_penalty, options.conditioned
        channels = len(context.offsets) + int(self.conditioned)
        self.critic = Auxiliary(Critic(channels, options.widths), options.learning_rate, options.betas)

    def value(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the term, after a step of the critic while training; see `Term`."""
        ours, theirs = both(student, teacher, "affinities")
        fake, real = torch.sigmoid(ours), torch.sigmoid(theirs)
        if teacher.known is not None:
            fake, real = fake * teacher.known, real * teacher.known

        def score(values: Tensor) -> Tensor:
            seen = torch.cat([values, batch.raw.float()], dim=1) if self.conditioned else values
            found: Tensor = self.critic(seen)
            return found

        if self.training and torch.is_grad_enabled():
            self.critic.descend(lambda: self._critic_loss(score, real, fake.detach()))
        with torch.no_grad():
            best = score(real).mean()
        return best - score(fake).mean()

    def _critic_loss(self, score: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.critic.steps)
        share = torch.rand(len(real), 1, 1, 1, 1, generator=generator).to(real.device)
        slope = gradient_penalty(score, real + share * (fake - real))
        return score(fake).mean() - score(real).mean() + self.penalty * slope


def gradient_penalty(score: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Return how far the slope of a score is from 1, squared, mean over crops (Gulrajani et al. 2017, eq. 3).

    The slope is that of the score over the root mean square of a change: the norm of the gradient times the
    root of the number of values of a crop.

    Args:
        score: maps (n, c, z, y, x) to (n).
        values: where, float32 (n, c, z, y, x).

    Returns:
        Scalar, with gradient for the parameters of the score.
    """
    values = values.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(score(values).sum(), values, create_graph=True)
    gradient = gradient.flatten(1)
    # the root has no gradient at 0
    slope = (gradient.square().sum(1) * gradient.shape[1] + 1e-12).sqrt()
    return ((slope - 1) ** 2).mean()


class Critic(nn.Module):
    """Strided convolutions with spectral norm, self-attention after the last two, a score per voxel, its mean.

    It takes crops of any size.
    """

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        """Draw random weights.

        Args:
            channels: of what it scores.
            widths: channels of the convolutions.
        """
        super().__init__()
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise((channels, *widths))):
            layers.append(_Strided(before, after))
            if number >= len(widths) - 2:
                layers.append(SelfAttention(after))
        layers.append(spectral_norm(nn.Conv3d(widths[-1], 1, 1)))
        self.layers = nn.Sequential(*layers)

    def forward(self, values: Tensor) -> Tensor:
        """Return a score per crop.

        Args:
            values: float32 (n, c, z, y, x).

        Returns:
            float32 (n).
        """
        found: Tensor = self.layers(values)
        return found.flatten(1).mean(1)


class _Strided(nn.Module):
    """Kernel 4, stride 2; along an axis of one voxel only the tap of the kernel that would see it."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.convolution = cast("nn.Conv3d", spectral_norm(nn.Conv3d(before, after, 4, stride=2, padding=1)))

    def forward(self, values: Tensor) -> Tensor:
        flat = [extent == 1 for extent in values.shape[2:]]
        taps = tuple(slice(1, 2) if one else slice(None) for one in flat)
        weight = self.convolution.weight[(slice(None), slice(None), *taps)]
        stride, padding = [1 if one else 2 for one in flat], [0 if one else 1 for one in flat]
        return leaky_relu(conv3d(values, weight, self.convolution.bias, stride, padding), 0.1)


class SelfAttention(nn.Module):
    """Self-attention of Zhang et al. 2019, whose share grows from 0.

    Each voxel asks all voxels, or the means of equal blocks of them where there are more than `KEYS`.
    """

    def __init__(self, channels: int) -> None:
        """Draw random weights.

        Args:
            channels: of what it takes and gives.
        """
        super().__init__()
        inner = max(channels // 8, 1)
        self.query, self.key = (spectral_norm(nn.Conv3d(channels, inner, 1)) for _ in range(2))
        self.value = spectral_norm(nn.Conv3d(channels, channels, 1))
        self.share = nn.Parameter(torch.zeros(1))

    def forward(self, values: Tensor) -> Tensor:
        """Return the values with what they attend to added, of the same shape."""
        pooled = blocks(values, KEYS)
        query, key = self.query(values).flatten(2), self.key(pooled).flatten(2)
        attention = torch.softmax(query.mT @ key, dim=2)
        found = self.value(pooled).flatten(2) @ attention.mT
        attended: Tensor = values + self.share * found.view_as(values)
        return attended


def blocks(values: Tensor, count: int) -> Tensor:
    """Return means of blocks, of which there are at most ``count``; the values themselves if they are so few.

    The longest axis is halved as often as needed; a block that is cut at the end of an axis is left out.

    Args:
        values: (n, c, z, y, x).
        count: of voxels.
    """
    while values[0, 0].numel() > count:
        axis = max((2, 3, 4), key=lambda a: values.shape[a])
        half = values.shape[axis] // 2
        values = torch.unflatten(values.narrow(axis, 0, 2 * half), axis, (half, 2)).mean(axis + 1)
    return values
