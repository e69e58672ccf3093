"""Maps of a teacher's channels to another number, fitted over the first batches, then fixed."""

from __future__ import annotations

from math import gcd
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from kdseg.networks.models.base import initialise
from kdseg.training.losses.auxiliary import Auxiliary, all_reduce_sum
from kdseg.training.losses.base import EPSILON

SAMPLE = 65536
"""Voxels of a batch that moments are taken over."""


class Moments(nn.Module):
    """Mean and covariance of the channels of all batches seen, by all processes; float64."""

    count: Tensor
    total: Tensor
    square: Tensor

    def __init__(self, channels: int, sample: int) -> None:
        """Start empty.

        Args:
            channels: of what will be seen.
            sample: voxels of a batch that are looked at.
        """
        super().__init__()
        self.sample = sample
        self.register_buffer("count", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("total", torch.zeros(channels, dtype=torch.float64))
        self.register_buffer("square", torch.zeros(channels, channels, dtype=torch.float64))

    def update(self, values: Tensor) -> None:
        """Add a batch.

        Args:
            values: float (n, c, z, y, x).
        """
        rows = sampled(values, self.sample).double()
        found = torch.cat([rows.new_tensor([len(rows)]), rows.sum(0), (rows.T @ rows).flatten()])
        count, total, square = torch.split(all_reduce_sum(found), [1, self.total.numel(), self.square.numel()])
        self.count += count
        self.total += total
        self.square += square.view_as(self.square)

    def mean(self) -> Tensor:
        """Return the mean of each channel, float64 (c)."""
        return self.total / self.count.clamp_min(1)

    def covariance(self) -> Tensor:
        """Return the covariance of the channels, float64 (c, c)."""
        mean = self.mean()
        return self.square / self.count.clamp_min(1) - torch.outer(mean, mean)


class Paraphraser(nn.Module):
    """A map of the teacher's channels, ``fitting`` over a number of batches.

    Attributes:
        width: channels that it makes.
    """

    def __init__(self, width: int, steps: int) -> None:
        """Note what all paraphrasers have.

        Args:
            width: channels that it makes.
            steps: batches that it is fitted to.
        """
        super().__init__()
        self.width, self.steps, self.seen = width, steps, 0

    @property
    def fitting(self) -> bool:
        """Whether it still wants batches."""
        return self.seen < self.steps

    def fit(self, values: Tensor) -> None:
        """Fit it to a further batch; the last one fixes it.

        Args:
            values: of the teacher, float32 (n, c, z, y, x).
        """
        raise NotImplementedError

    def encode(self, values: Tensor) -> Tensor:
        """Return the values in other channels, without gradient.

        Args:
            values: of the teacher, float32 (n, c, z, y, x).

        Returns:
            float32 (n, width, z, y, x).
        """
        raise NotImplementedError

    def get_extra_state(self) -> dict[str, Any]:
        """Return how many batches were seen; Python's number, since asking a GPU for it would wait for it."""
        return {"seen": self.seen}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up what `get_extra_state` returned."""
        self.seen = state["seen"]


class PrincipalAxes(Paraphraser):
    """The projection, less its mean, onto the axes of greatest variance; no training needed.

    The sign of an axis is such that its largest component is positive. Where no fewer channels are asked for
    than there are, all are kept as they are, none are invented, and there is nothing to fit.
    """

    projection: Tensor
    centre: Tensor

    def __init__(self, channels: int, width: int, steps: int, sample: int = SAMPLE) -> None:
        """Start unfitted.

        Args:
            channels: of the teacher.
            width: channels to make; not more than there are.
            steps: batches to fit to.
            sample: voxels of a batch that are looked at.
        """
        super().__init__(min(width, channels), steps if width < channels else 0)
        self.moments = Moments(channels, sample)
        self.register_buffer("projection", torch.eye(self.width, channels))
        self.register_buffer("centre", torch.zeros(channels))

    def fit(self, values: Tensor) -> None:
        """Fit it to a further batch; see `Paraphraser`."""
        self.moments.update(values)
        self.seen += 1
        if self.fitting:
            return
        # on the CPU, where all processes find the same axes
        _, axes = torch.linalg.eigh(self.moments.covariance().cpu())
        rows = axes.flip(1).T[: self.width]
        largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
        self.projection.copy_(torch.where(largest < 0, -rows, rows))
        self.centre.copy_(self.moments.mean())

    @torch.no_grad()
    def encode(self, values: Tensor) -> Tensor:
        """Return the values along the axes; see `Paraphraser`."""
        return torch.einsum("kc,nczyx->nkzyx", self.projection, values - self.centre.view(-1, 1, 1, 1))


class AutoEncoder(Paraphraser):
    """An auto-encoder trained to reconstruct the teacher's features (Kim et al. 2018, as in Zou et al. 2022).

    Three 3x3x3 convolutions to the width wanted, and their mirror image of transposed ones, with LeakyReLU (0.1)
    and no norm; the error is absolute. What it sees is standardised channel by channel, so that the scale of
    the features does not matter.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, channels: int, width: int, steps: int, sample: int = SAMPLE, rate: float = 1e-3) -> None:
        """Start with random weights.

        Args:
            channels: of the teacher.
            width: channels to make.
            steps: batches to train on, one step of Adam each.
            sample: voxels of a batch that means and variances are taken over.
            rate: learning rate of Adam.
        """
        super().__init__(width, steps)
        self.moments = Moments(channels, sample)
        self.coder = Auxiliary(_Mirror(channels, width), rate)
        self.register_buffer("shift", torch.zeros(channels, 1, 1, 1))
        self.register_buffer("scale", torch.ones(channels, 1, 1, 1))

    def fit(self, values: Tensor) -> None:
        """Do one step of training; see `Paraphraser`."""
        self.moments.update(values)
        mean, variance = self.moments.mean(), self.moments.covariance().diagonal()
        # a constant channel has nothing to say but rounding errors, which are not to be blown up
        deviation = variance.clamp_min(0).sqrt().clamp_min(EPSILON).maximum(1e-4 * mean.abs())
        self.shift.copy_(mean.view_as(self.shift))
        self.scale.copy_(deviation.view_as(self.scale))
        inputs = (values.detach() - self.shift) / self.scale
        self.coder.descend(lambda: l1_loss(self.coder(inputs), inputs))
        self.seen += 1

    @torch.no_grad()
    def encode(self, values: Tensor) -> Tensor:
        """Return what the encoder makes of the values; see `Paraphraser`."""
        found: Tensor = self.coder.network.encoder((values - self.shift) / self.scale)  # type: ignore[operator]
        return found


class _Mirror(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.encoder = encoder(channels, width)
        self.decoder = nn.Sequential(
            nn.ConvTranspose3d(width, width, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.ConvTranspose3d(width, channels, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.ConvTranspose3d(channels, channels, 3, padding=1),
        )
        initialise(self)

    def forward(self, values: Tensor) -> Tensor:
        found: Tensor = self.decoder(self.encoder(values))
        return found


def encoder(channels: int, width: int) -> nn.Sequential:
    """Return 3x3x3 convolutions of random weights with LeakyReLU, as paraphraser and translator of Kim et al. 2018."""
    made = nn.Sequential(
        nn.Conv3d(channels, channels, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.Conv3d(channels, width, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.Conv3d(width, width, 3, padding=1),
        nn.LeakyReLU(0.1),
    )
    initialise(made)
    return made


def paraphraser(
    kind: Literal["pca", "autoencoder"], channels: int, width: int, steps: int, sample: int = SAMPLE
) -> Paraphraser:
    """Return a paraphraser of one kind.

    Args:
        kind: principal axes or auto-encoder.
        channels: of the teacher.
        width: channels to make.
        steps: batches to fit to.
        sample: voxels of a batch that moments are taken over.
    """
    made = PrincipalAxes if kind == "pca" else AutoEncoder
    return made(channels, width, steps, sample)


def sampled(values: Tensor, count: int) -> Tensor:
    """Return evenly spaced voxels as rows.

    Args:
        values: float (n, c, z, y, x).
        count: at most so many voxels.

    Returns:
        (voxels, c) of the same type, without gradient.
    """
    flat = values.detach().flatten(2)
    n, _, voxels = flat.shape
    stride = -(-n * voxels // count)
    # else the stride might be a multiple of an extent, and visit only some planes
    while gcd(stride, n * voxels) > 1 and stride < n * voxels:
        stride += 1
    places = torch.arange(0, n * voxels, stride, device=values.device)
    return flat[places // voxels, :, places % voxels]
