"""A U-Net for tiles: without padding, each level computes only what the tile depends on.

A tile is predicted from itself and a halo, and what comes out over the halo is thrown away. Here it is never
computed: going backwards from the tile, each convolution widens the voxels that are needed by its radius, each
upsampling divides them, each pooling multiplies them. No convolution pads, so the first one can take grey values as
they are: it has absorbed their normalisation.

Vector units have 16 lanes or more, and a student has 4 channels. Along x, ``group`` neighbours therefore count as
channels: a convolution from c to w channels with kernel 3 is one from ``group * c`` to ``group * w`` channels with
kernel 2, over the same memory. Many of its weights are 0, and it is still up to eight times faster.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from math import gcd, prod
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdseg.geometry import Triple, triple
from kdseg.networks.models.unet import Block, UNet

LANES = 16
"""Channels up to which neighbours along x are grouped."""


class Span(NamedTuple):
    """Voxels ``low`` to ``high``, (z, y, x), of one level, counted from the first voxel of the tile."""

    low: Triple
    high: Triple

    @property
    def shape(self) -> Triple:
        """Extent in voxels."""
        return _each(lambda low, high: high - low, self.low, self.high)

    def hull(self, other: Span) -> Span:
        """Return the smallest span that holds both."""
        return Span(_each(min, self.low, other.low), _each(max, self.high, other.high))

    def finer(self, step: Triple) -> Span:
        """Return the same voxels, one level up."""
        return Span(_each(lambda n, s: n * s, self.low, step), _each(lambda n, s: n * s, self.high, step))

    def coarser(self, step: Triple) -> Span:
        """Return the voxels, one level down, that hold these."""
        return Span(_each(lambda n, s: n // s, self.low, step), _each(lambda n, s: -(-n // s), self.high, step))

    def cut(self, values: Tensor, inner: Span) -> Tensor:
        """Return the part over ``inner``, a view, of values (z, y, x, ...) over this span."""
        for axis, (start, low, n) in enumerate(zip(self.low, inner.low, inner.shape, strict=True)):
            values = values.narrow(axis, low - start, n)
        return values


class Convolution:
    """A convolution without padding that takes ``group`` neighbours along x for channels."""

    def __init__(self, weight: Tensor, bias: Tensor, group: int, dtype: torch.dtype) -> None:
        self.group = group
        self.kernel: Triple = (weight.shape[2], weight.shape[3], weight.shape[4])
        self.weight = _grouped(weight, group).to(dtype).contiguous(memory_format=torch.channels_last_3d)
        self.bias = bias.repeat(group).to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Return (z', y', x', width) of (z, y, x, channels), both contiguous, x a multiple of the group."""
        z, y, n, channels = x.shape
        groups = x.view(1, z, y, n // self.group, self.group * channels).permute(0, 4, 1, 2, 3)
        out = functional.conv3d(groups, self.weight, self.bias).permute(0, 2, 3, 4, 1)[0]
        z, y, n, channels = out.shape
        return out.reshape(z, y, n * self.group, channels // self.group)

    def gives(self, needed: Span) -> Span:
        """Return the outputs that are computed where some are needed: whole groups."""
        z, y, x = needed.shape
        return _span(needed.low, (z, y, _rounded(x, self.group)))

    def reads(self, given: Span) -> Span:
        """Return the inputs of whole groups of outputs: whole groups, too."""
        low = _each(lambda n, k: n - k // 2, given.low, self.kernel)
        (z, y, x), (depth, height, width) = given.shape, self.kernel
        return _span(low, (z + depth - 1, y + height - 1, x + _rounded(width - 1, self.group)))


class Piece:
    """A `Block` for the outputs that are ``needed``: it takes what it ``reads`` and yields what it ``gives``."""

    def __init__(self, block: Block, needed: Span, dtype: torch.dtype, *, grey: bool = False) -> None:
        first, second = _weights(block.first), _weights(block.second)
        group = max(1, LANES // len(second[1]))
        self.first = Convolution(*(_for_grey(*first) if grey else first), group, dtype)
        self.second = Convolution(*second, group, dtype)
        self.residual = block.shortcut is not None
        self.projection: Convolution | None = None
        if block.shortcut is not None and (grey or not isinstance(block.shortcut, nn.Identity)):
            identity = isinstance(block.shortcut, nn.Identity)
            third = _one_channel(second[0]) if identity else _weights(block.shortcut)
            self.projection = Convolution(*(_for_grey(*third) if grey else third), group, dtype)
        self.gives = self.second.gives(needed)
        self.reads = self.first.reads(self.second.reads(self.gives))

    def __call__(self, x: Tensor) -> Tensor:
        """Return (z', y', x', width) over ``gives`` of (z, y, x, channels) over ``reads``, both contiguous."""
        shortcut = self.reads.cut(x, self.gives)
        if self.projection is not None:  # not later: it would lie where what the first one gave was
            shortcut = shortcut.contiguous()
        y = self.second(torch.relu_(self.first(x)))
        if self.residual:
            y += shortcut if self.projection is None else self.projection(shortcut)
        return torch.relu_(y)


class Level:
    """The blocks of one level, on the way down or up."""

    def __init__(self, blocks: nn.Module, needed: Span, dtype: torch.dtype, *, grey: bool = False) -> None:
        self.pieces: list[Piece] = []
        self.reads = needed
        for number, block in reversed(list(enumerate(blocks.children()))):
            self.pieces.insert(0, Piece(cast(Block, block), self.reads, dtype, grey=grey and number == 0))
            self.reads = self.pieces[0].reads
        self.gives = self.pieces[-1].gives

    def __call__(self, x: Tensor) -> Tensor:
        """Return (z', y', x', width) over ``gives`` of (z, y, x, channels) over ``reads``."""
        x = x.contiguous()
        for piece in self.pieces:  # all of a level have the same groups: what one gives is what the next one reads
            x = piece(x)
        return x


class Upsampling:
    """A transposed convolution whose kernel is its stride: a product with a matrix, and its values put in place.

    They come to lie beside the channels that the encoder left: neither is moved again.
    """

    def __init__(self, module: nn.ConvTranspose3d, needed: Span, dtype: torch.dtype) -> None:
        weight, bias = module.weight, cast(Tensor, module.bias)
        self.step: Triple = (weight.shape[2], weight.shape[3], weight.shape[4])
        self.channels = weight.shape[1]
        self.matrix = weight.permute(0, 2, 3, 4, 1).reshape(len(weight), -1).to(dtype)
        self.bias = bias.repeat(prod(self.step)).to(dtype)
        self.needed, self.reads = needed, needed.coarser(self.step)
        self.fine = self.reads.finer(self.step)

    def beside(self, skip: Tensor) -> Tensor:
        """Return room (z', y', x', c' + c) over ``fine`` that holds ``skip``, (z, y, x, c) over ``needed``."""
        room = skip.new_empty(*self.fine.shape, self.channels + skip.shape[-1])
        unit = gcd(self.channels, skip.shape[-1])
        if skip.stride(-1) != 1:  # small convolutions do not come channels last
            skip = skip.contiguous()
        source = _words(skip, unit)
        self.fine.cut(_words(room, unit), self.needed)[..., -source.shape[-1] :] = source
        return room

    def __call__(self, x: Tensor, room: Tensor) -> Tensor:
        """Return ``room``, over ``needed``, with what comes of ``x``, (z, y, x, d) over ``reads``."""
        unit = gcd(self.channels, room.shape[-1] - self.channels)
        values = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.matrix)
        cells = _words(values.view(*self.reads.shape, *self.step, -1), unit).permute(0, 3, 1, 4, 2, 5, 6)
        (z, y, x_), (sz, sy, sx) = self.reads.shape, self.step
        _words(room, unit).view(z, sz, y, sy, x_, sx, -1)[..., : cells.shape[-1]] = cells
        return self.fine.cut(room, self.needed)


class Unpadded:
    """The finest features of a U-Net over a tile, from the tile and its halo; all spans are planned beforehand."""

    def __init__(self, network: UNet, tile: Triple, dtype: torch.dtype) -> None:
        """Plan the spans and make the weights ready.

        Args:
            network: folded, on the device that it is to run on.
            tile: voxels that one forward pass yields, (z, y, x), a multiple of the network's stride.
            dtype: of weights and features.
        """
        self.tile, self.halo, self.dtype = _span((0, 0, 0), tile), network.halo, dtype
        needed, self.ups, self.decoders = self.tile, [], []
        for up, blocks in zip(network.ups, network.decoders, strict=True):
            self.decoders.append(Level(blocks, needed, dtype))
            self.ups.append(Upsampling(cast(nn.ConvTranspose3d, up), self.decoders[-1].reads, dtype))
            needed = self.ups[-1].reads
        *above, last = network.encoders
        self.bottom = Level(last, needed, dtype)
        self.encoders: list[Level] = []
        self.reads = self.bottom.reads
        for number, blocks in reversed(list(enumerate(above))):
            both = self.reads.finer(self.ups[number].step).hull(self.ups[number].needed)
            self.encoders.insert(0, Level(blocks, both, dtype, grey=number == 0))
            self.reads = self.encoders[0].reads

    def __call__(self, raw: Tensor) -> Tensor:
        """Return the features (z, y, x, c) of a tile; ``raw`` is uint8 (z, y, x), the tile and its halo."""
        x = self._grey(raw)
        rooms = []
        for encoder, up, below in zip(self.encoders, self.ups, [*self.encoders[1:], self.bottom], strict=True):
            x = encoder(x)
            # a view would keep all of the level in memory until the decoder comes back to it
            rooms.append(up.beside(encoder.gives.cut(x, up.needed)))
            x = _pooled(encoder.gives.cut(x, below.reads.finer(up.step)), up.step)
        x, given = self.bottom(x), self.bottom.gives
        for up, decoder in zip(reversed(self.ups), reversed(self.decoders), strict=True):
            x = decoder(up(given.cut(x, up.reads), rooms.pop()))
            given = decoder.gives
        return given.cut(x, self.tile)

    def _grey(self, raw: Tensor) -> Tensor:
        """Return grey values less 128 over what the first level reads; 0 beyond the halo, which nothing depends on."""
        z, y, x = self.halo
        there = Span((-z, -y, -x), _each(lambda n, h: n + h, self.tile.high, self.halo))
        both = Span(_each(max, there.low, self.reads.low), _each(min, there.high, self.reads.high))
        grey = torch.zeros(self.reads.shape, dtype=self.dtype, device=raw.device)
        self.reads.cut(grey, both).copy_(there.cut(raw, both).bitwise_xor(128).view(torch.int8))
        return grey[..., None]


def _words(x: Tensor, channels: int) -> Tensor:
    """Return the channels of each voxel, (..., c), as few numbers, a view: fewer things to move.

    Args:
        x: contiguous along the channels.
        channels: that the numbers must not straddle, a divisor of c.
    """
    size, types = channels * x.element_size(), (torch.complex128, torch.int64, torch.int32, torch.int16)
    fits = (dtype for dtype in types if size % dtype.itemsize == 0)
    return x.view(next(fits, x.dtype))


def _pooled(x: Tensor, step: Triple) -> Tensor:
    """Return the maxima over cells of ``step`` voxels of (z, y, x, c); ten times faster than max_pool3d on a CPU."""
    for axis, s in enumerate(step):
        x = reduce(torch.maximum, (x[(slice(None),) * axis + (slice(i, None, s),)] for i in range(s)))
    return x


def _weights(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a folded `ConvNorm`."""
    convolution = cast(nn.Conv3d, module.get_submodule("0"))
    return convolution.weight, cast(Tensor, convolution.bias)


def _one_channel(like: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the identity of one channel, where ``like`` is."""
    return like.new_ones(1, 1, 1, 1, 1), like.new_zeros(1)


def _for_grey(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias for grey values less 128, instead of value / 127.5 - 1 = (grey - 128 + 0.5) / 127.5."""
    return weight / 127.5, bias + weight.sum((1, 2, 3, 4)) / 255


def _grouped(weight: Tensor, group: int) -> Tensor:
    """Return the weight of the same convolution over groups of voxels along x.

    Args:
        weight: (out, in, z, y, x).
        group: voxels g; their channels follow each other.

    Returns:
        (g * out, g * in, z, y, x'): output voxel i of a group reads from the group's first input voxel on, i further.
    """
    out, channels, z, y, x = weight.shape
    groups = 1 + -(-(x - 1) // group)
    wide = weight.new_zeros(group, out, z, y, groups * group, channels)
    for i in range(group):
        wide[i, :, :, :, i : i + x] = weight.permute(0, 2, 3, 4, 1)
    wide = wide.view(group * out, z, y, groups, group * channels)
    return wide.permute(0, 4, 1, 2, 3)


def _each(function: Callable[[int, int], int], first: Triple, second: Triple) -> Triple:
    return triple(map(function, first, second))


def _span(low: Triple, shape: Triple) -> Span:
    return Span(low, _each(lambda start, n: start + n, low, shape))


def _rounded(n: int, unit: int) -> int:
    return -(-n // unit) * unit
