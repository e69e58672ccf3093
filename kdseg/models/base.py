"""What every network takes and gives."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from kdseg.config.networks import HeadOptions
from kdseg.errors import ShapeError
from kdseg.geometry import Offsets, Triple

N = TypeVar("N", bound=nn.Module)


class Outputs(NamedTuple):
    """What a network returns.

    Attributes:
        logits: float (n, c, z, y, x) per head: ``affinities`` (one channel per offset, sigmoid gives the
            probability), ``lsd`` (10 channels, sigmoid gives the descriptor), ``embedding`` (as it is).
        features: float (n, c, z, y, x) after each decoder level, finest first; the last one is the bottleneck.
    """

    logits: dict[str, Tensor]
    features: tuple[Tensor, ...]


class Batch(NamedTuple):
    """Crops to train on.

    Attributes:
        raw: float32 (n, 1, z, y, x) in [-1, 1].
        labels: int64 (n, z, y, x), neuron ids; 0 where no neuron is known, and in all of an unlabelled crop.
        mask: bool (n, z, y, x), voxels whose labels count.
    """

    raw: Tensor
    labels: Tensor
    mask: Tensor


class Network(nn.Module):
    """A same-padded fully convolutional network.

    Attributes:
        halo: receptive radius in voxels, (z, y, x), rounded up to a multiple of ``stride``: outputs further
            than this from the border of a tile are the outputs of any larger tile around it.
        stride: total pooling, (z, y, x); inputs must be a multiple of it, and tiles that are to agree must
            start at multiples of it.
    """

    halo: Triple
    stride: Triple

    def forward(self, raw: Tensor) -> Outputs:
        """Return the logits and features of ``raw``, float (n, 1, z, y, x) in [-1, 1].

        Raises:
            ShapeError: if the spatial shape is no multiple of ``stride``.
        """
        raise NotImplementedError

    def _check(self, raw: Tensor) -> None:
        if any(n % s for n, s in zip(raw.shape[2:], self.stride, strict=True)):
            raise ShapeError(
                f"the input is {tuple(raw.shape[2:])} voxels; this network pools by {self.stride} in all: "
                "use a multiple of it"
            )


class Heads(nn.Module):
    """One 1x1x1 convolution per prediction, on the finest features."""

    def __init__(self, channels: int, heads: HeadOptions, offsets: Offsets) -> None:
        super().__init__()
        widths = {"affinities": len(offsets)}
        if heads.lsd:
            widths["lsd"] = 10
        if heads.embedding:
            widths["embedding"] = heads.embedding
        self.convolutions = nn.ModuleDict({name: nn.Conv3d(channels, n, 1) for name, n in widths.items()})

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return the logits of each head."""
        return {name: convolution(features) for name, convolution in self.convolutions.items()}


def count_parameters(network: nn.Module) -> int:
    """Return the number of trainable numbers of a network."""
    return sum(p.numel() for p in network.parameters())


def initialise(network: nn.Module) -> None:
    """Draw the weights of all convolutions (He et al. 2015); biases and BatchNorm start neutral."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def channels_last(raw: Tensor) -> Tensor:
    """Return a batch in the memory layout that convolutions run fastest on, (n, z, y, x, c)."""
    return raw.contiguous(memory_format=torch.channels_last_3d)


def placed(network: N, device: torch.device | str) -> N:
    """Return the network, moved to a device with its weights in the layout of `channels_last`."""
    return network.to(device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload, no-any-return]
