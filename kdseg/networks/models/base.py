"""Interface of all networks, and the tensors they take and return."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from kdseg.config.networks import HeadOptions
from kdseg.errors import ShapeError
from kdseg.geometry import Offsets, Triple

N = TypeVar("N", bound=nn.Module)


class Outputs(NamedTuple):
    """Outputs of a network.

    Attributes:
        logits: float (n, c, z, y, x) per head: ``affinities`` (one channel per offset, sigmoid gives the
            probability), ``lsd`` (10 channels, sigmoid gives the descriptor), ``embedding`` (as it is).
        features: float (n, c, z, y, x) after each decoder level, finest first; the last one is the bottleneck.
        skips: float (n, c, z, y, x) after each encoder level above the bottleneck, finest first; of the shape of
            the features of its level.
        known: bool (n, c, z, y, x), which affinities were predicted; None is all of them. Stored ones leave out
            pairs that reach beyond the volume.
    """

    logits: dict[str, Tensor]
    features: tuple[Tensor, ...]
    skips: tuple[Tensor, ...] = ()
    known: Tensor | None = None


class Widths(NamedTuple):
    """Channels of the outputs of a network; see `Outputs`."""

    logits: dict[str, int]
    features: tuple[int, ...]
    skips: tuple[int, ...]


class Taught(NamedTuple):
    """Stored predictions of teachers for crops.

    Attributes:
        affinities: uint8 (n, teachers, c, z, y, x) in 1/255.
        known: bool (n, c, z, y, x), which of them lie in the volume.
        embedding: float16 (n, d, z, y, x), those of all teachers one after the other, as unit vectors if there
            are several; d may be 0. A vector of 0 stands for nothing: the voxel shows nothing of the volume, and no
            term compares it.
    """

    affinities: Tensor
    known: Tensor
    embedding: Tensor


class Batch(NamedTuple):
    """Crops to train on.

    Attributes:
        raw: float32 (n, 1, z, y, x) in [-1, 1].
        labels: int64 (n, z, y, x), neuron ids; 0 where no neuron is known. In an unlabelled crop they are the
            teacher's own segmentation, or all 0.
        mask: bool (n, z, y, x), voxels whose labels are ground truth; no others count in supervised terms.
        instances: int64 (n, z, y, x), the connected pieces of the neurons of all crops, numbered from 1 to their
            number over the whole batch; 0 is none. None where no term asks for them.
        taught: what stored teachers say; None where there are none.
        descriptors: float32 (n, 10, z, y, x), local shape descriptors of the labels in the mask; None where no term
            asks for them.
        labelled: crops with ground truth in the step's mean batch, over all processes and accumulated batches, which a
            mean over those crops is divided by: so that none counts more where it has fewer beside it. None where
            this batch is all there is.
        instanced: likewise, crops that may have instances.
    """

    raw: Tensor
    labels: Tensor
    mask: Tensor
    instances: Tensor | None = None
    taught: Taught | None = None
    descriptors: Tensor | None = None
    labelled: float | None = None
    instanced: float | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with a function of each of its tensors in their place."""
        return self._replace(
            raw=change(self.raw),
            labels=change(self.labels),
            mask=change(self.mask),
            instances=None if self.instances is None else change(self.instances),
            taught=None if self.taught is None else Taught(*map(change, self.taught)),
            descriptors=None if self.descriptors is None else change(self.descriptors),
        )


class Network(nn.Module):
    """A same-padded fully convolutional network.

    Attributes:
        halo: receptive radius in voxels, (z, y, x), rounded up to a multiple of ``stride``: outputs further
            than this from the border of a tile are the outputs of any larger tile around it.
        stride: total pooling, (z, y, x); inputs must be a multiple of it, and tiles that are to agree must
            start at multiples of it.
        channels: of what it returns, where that is known without running it.
    """

    halo: Triple
    stride: Triple
    channels: Widths | None = None

    def forward(self, raw: Tensor) -> Outputs:
        """Return the logits and features of ``raw``, float (n, 1, z, y, x) in [-1, 1]."""
        raise NotImplementedError

    def head(self, name: str) -> tuple[Tensor, Tensor]:
        """Return weight (d, c, 1, 1, 1) and bias (d,) that lead from the finest features to a head's logits."""
        convolution = cast(nn.Conv3d, self.get_submodule(f"heads.convolutions.{name}"))
        return convolution.weight, cast(Tensor, convolution.bias)

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
        widths = {"affinities": len(offsets)} if heads.affinities else {}
        if heads.lsd:
            widths["lsd"] = 10
        if heads.embedding:
            widths["embedding"] = heads.embedding
        self.convolutions = nn.ModuleDict({name: nn.Conv3d(channels, n, 1) for name, n in widths.items()})

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return the logits of each head."""
        return {name: convolution(features) for name, convolution in self.convolutions.items()}


def widths(network: Network) -> Widths:
    """Return the channels of all that a network returns, found by running it once on its smallest input."""
    if network.channels is not None:
        return network.channels
    training = network.training
    parameter = next(network.parameters())
    with torch.no_grad():
        found = network.eval()(torch.zeros(1, 1, *network.stride, device=parameter.device))
    network.train(training)
    return Widths(
        {name: logits.shape[1] for name, logits in found.logits.items()},
        tuple(features.shape[1] for features in found.features),
        tuple(skip.shape[1] for skip in found.skips),
    )


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
