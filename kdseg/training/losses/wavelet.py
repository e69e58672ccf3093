"""Distillation of the details of features, in a basis of wavelets."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from kdseg.config.terms import DcdOptions
from kdseg.networks.models import Batch, Outputs, Widths
from kdseg.training.losses.base import Context, Term
from kdseg.training.losses.taps import Side, aligned, projector, width

DB4 = (
    0.23037781330885523,
    0.7148465705525415,
    0.6308807679295904,
    -0.02798376941698385,
    -0.18703481171888114,
    0.030841381835986965,
    0.032883011666982945,
    -0.010597401784997278,
)
"""Low-pass filter of the orthogonal wavelet of Daubechies with four vanishing moments (Daubechies 1988)."""


class DcdTerm(Term):
    """Detail-consistent distillation (Fan et al., arXiv 2605.26382): details of every stage of the encoder.

    The features of a stage, the student's mapped linearly to the teacher's width where it differs, are split by
    the wavelet db4 along the three axes into eight bands, and their coarse band again, ``depth`` times. Of the six
    bands that are fine along one or two axes (seven with ``corner``) the squared difference per voxel of what was
    split; the mean over splits and stages. The coarse bands are not compared, so that a difference that changes
    slowly over space costs little, and a constant one nothing. Stages are counted from the finest, the bottleneck
    is the last; those that only one network has are left out.
    """

    def __init__(self, options: DcdOptions, context: Context) -> None:
        super().__init__()
        self.depth, self.corner = options.depth, options.corner
        ours, theirs = _stages(context, "student"), _stages(context, "teacher")
        # details do not see a bias
        self.projectors = nn.ModuleList(projector(s, t, bias=False) for s, t in zip(ours, theirs, strict=False))

    def value(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the term; see `Term`."""
        found = []
        for mapped, ours, theirs in zip(self.projectors, _encoded(student), _encoded(teacher), strict=False):
            error = mapped(ours) - aligned(theirs.detach(), ours)
            for _ in range(self.depth):
                energy, coarse = details(error, corner=self.corner)
                found.append(energy / error.numel())
                error = coarse
        return torch.stack(found).mean()


def details(values: Tensor, *, corner: bool) -> tuple[Tensor, Tensor]:
    """Return how much of an array is fine, and what is coarse.

    Args:
        values: float32 (n, c, z, y, x).
        corner: whether the band that is fine along all three axes counts.

    Returns:
        energy: scalar, the sum of the squares of the bands that are fine along some axis.
        coarse: float32 (n, c, z', y', x'), the band that is fine along none; ``z' = ceil(z / 2)``.
    """
    bands = split(values)
    squares = bands.square().sum((0, 1, 3, 5, 7))
    counted = torch.ones_like(squares)
    counted[0, 0, 0] = 0
    counted[1, 1, 1] = float(corner)
    return (squares * counted).sum(), bands[:, :, 0, :, 0, :, 0]


def split(values: Tensor) -> Tensor:
    """Return the wavelet bands of an array, float32 (n, c, 2, z', 2, y', 2, x'), coarse before fine on each axis.

    By one small matrix along each axis: a strided convolution on CUDA would not be deterministic.

    Args:
        values: float32 (n, c, z, y, x).
    """
    for dim in (2, 3, 4):
        rows = filters(values.shape[dim]).flatten(0, 1).to(values)
        values = (values.movedim(dim, -1) @ rows.mT).movedim(-1, dim)
    z, y, x = (extent // 2 for extent in values.shape[2:])
    return values.reshape(*values.shape[:2], 2, z, 2, y, 2, x)


def filters(length: int) -> Tensor:
    """Return the low-pass and the high-pass filter at every second place of a signal, float64 (2, ceil(n / 2), n).

    Filters that reach over an end see the signal mirrored there, so that a constant has no detail. All others
    are orthogonal to each other and of length 1.

    Args:
        length: of the signal, n.
    """
    low = torch.tensor(DB4, dtype=torch.float64)
    both = torch.stack([low, low.flip(0) * torch.tensor([1.0, -1.0]).repeat(len(DB4) // 2)])
    starts = torch.arange(0, length, 2) - (len(DB4) // 2 - 1)
    places = (starts[:, None] + torch.arange(len(DB4))) % (2 * length)
    places = torch.where(places < length, places, 2 * length - 1 - places)
    found = torch.zeros(2, len(starts), length, dtype=torch.float64)
    return found.scatter_add_(2, places.expand(2, -1, -1), both[:, None].expand(-1, len(starts), -1))


def _encoded(outputs: Outputs) -> tuple[Tensor, ...]:
    """Return what the stages of the encoder made, finest first."""
    return tuple(stage.float() for stage in (*outputs.skips, outputs.features[-1]))


def _stages(context: Context, side: Side) -> tuple[int, ...]:
    """Return the channels of the stages of an encoder, finest first."""
    bottleneck = width(context, side, -1, "dcd")
    found = cast("Widths", context.student if side == "student" else context.teacher)
    return (*found.skips, bottleneck)
