"""Our own U-Net (Cicek et al. 2016), plain for students and residual for teachers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdseg.config.networks import HeadOptions, UNetOptions
from kdseg.geometry import Offsets, Triple
from kdseg.networks.models.base import Heads, Network, Outputs, initialise
from kdseg.networks.models.receptive import Level, halo_and_stride, pooling, same


class ConvNorm(nn.Sequential):
    """A convolution that keeps the shape, and its BatchNorm, which `fold` merges into it."""

    def __init__(self, channels: int, width: int, kernel: Triple) -> None:
        padding = same(kernel).padding
        super().__init__(nn.Conv3d(channels, width, kernel, padding=padding, bias=False), nn.BatchNorm3d(width))


class Block(nn.Module):
    """Two convolutions with ReLU; residual: the input, projected if need be, is added before the last ReLU."""

    def __init__(self, channels: int, width: int, kernel: Triple, residual: bool) -> None:
        super().__init__()
        self.first = ConvNorm(channels, width, kernel)
        self.second = ConvNorm(width, width, kernel)
        self.shortcut: nn.Module | None = None
        if residual:
            self.shortcut = nn.Identity() if channels == width else ConvNorm(channels, width, (1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (n, width, z, y, x)."""
        y = self.second(torch.relu_(self.first(x)))
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        return torch.relu_(y)


class UNet(Network):
    """Max-pooling down, transposed convolutions with kernel = stride up, skips by concatenation."""

    def __init__(self, options: UNetOptions, heads: HeadOptions, offsets: Offsets) -> None:
        super().__init__()
        widths, kernels, steps = options.widths, options.level_kernels, options.steps
        self.halo, self.stride = halo_and_stride(_levels(options))

        def blocks(channels: int, level: int) -> nn.Sequential:
            first = [Block(channels, widths[level], kernels[level], options.residual)]
            more = [
                Block(widths[level], widths[level], kernels[level], options.residual) for _ in range(options.blocks - 1)
            ]
            return nn.Sequential(*first, *more)

        self.encoders = nn.ModuleList(blocks(w, level) for level, w in enumerate((1, *widths[:-1])))
        self.pools = nn.ModuleList(nn.MaxPool3d(step) for step in steps)
        self.ups = nn.ModuleList(
            nn.ConvTranspose3d(coarse, fine, step, step)
            for fine, coarse, step in zip(widths[:-1], widths[1:], steps, strict=True)
        )
        self.decoders = nn.ModuleList(blocks(2 * w, level) for level, w in enumerate(widths[:-1]))
        self.heads = Heads(widths[0], heads, offsets)
        initialise(self)

    def forward(self, raw: Tensor) -> Outputs:
        """Return the logits and features of ``raw``; see `Network`."""
        self._check(raw)
        x = self.encoders[0](raw)
        skips = [x]
        for pool, encoder in zip(self.pools, self.encoders[1:], strict=True):
            x = encoder(pool(x))
            skips.append(x)
        features = [skips.pop()]
        for level in reversed(range(len(self.ups))):
            x = self.decoders[level](torch.cat([self.ups[level](x), skips[level]], dim=1))
            features.append(x)
        return Outputs(self.heads(x), tuple(reversed(features)), tuple(skips))


def _levels(options: UNetOptions) -> list[Level]:
    last = len(options.widths) - 1
    levels = []
    for level, kernel in enumerate(options.level_kernels):
        convolutions = [same(kernel)] * (2 * options.blocks)
        down = [pooling(options.steps[level - 1])] if level else []
        if level == last:
            levels.append(Level([*down, *convolutions]))
        else:
            levels.append(Level([*down, *convolutions], convolutions, options.steps[level]))
    return levels
