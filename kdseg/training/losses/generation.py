"""Terms with small networks of their own, which make the teacher's features from the student's."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, mse_loss

from kdseg.config.terms import MgdOptions, ReviewKdOptions
from kdseg.errors import ConfigError
from kdseg.networks.models import Batch, Outputs
from kdseg.training.losses.base import Context, Term
from kdseg.training.losses.taps import both, projector, widths

POOLS = (4, 2, 1)
"""Voxels along each axis of what features are pooled to, for the context loss."""


class ReviewKdTerm(Term):
    """Knowledge review (Chen et al. 2021): coarse levels of the student help to make fine ones of the teacher.

    From coarse to fine, each level of the student is fused with what was fused before it and made the teacher's
    level by a convolution, which the hierarchical context loss compares; the mean over levels. The published
    fusion has batch normalisation, left out here: its statistics would be of a few crops.
    """

    def __init__(self, options: ReviewKdOptions, context: Context) -> None:
        super().__init__()
        channels = [widths(context, level, "reviewkd") for level in options.levels]
        for side, network in (("student", context.student), ("teacher", context.teacher)):
            depths = [level % len(network.features) for level in options.levels] if network else []
            if any(fine >= coarse for fine, coarse in pairwise(depths)):
                raise ConfigError(
                    f"the term 'reviewkd' needs levels from fine to coarse, got {options.levels}, which are {depths} "
                    f"of the {side}'s"
                )
        self.levels = options.levels
        self.fusions = nn.ModuleList(
            Fusion(ours, options.width, theirs, alone=i == len(channels))
            for i, (ours, theirs) in enumerate(channels, 1)
        )

    def value(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the term; see `Term`."""
        fused: Tensor | None = None
        found = []
        for level, module in reversed(list(zip(self.levels, self.fusions, strict=True))):
            ours, theirs = both(student, teacher, level)
            fused, made = cast("Fusion", module)(ours, fused)
            found.append(context_loss(made, theirs))
        return torch.stack(found).mean()


class Fusion(nn.Module):
    """Attention-based fusion of a level with coarser ones (Chen et al. 2021, figure 3a)."""

    def __init__(self, channels: int, width: int, made: int, alone: bool) -> None:
        """Draw the weights.

        Args:
            channels: of the level.
            width: of what is fused.
            made: channels of the teacher's level.
            alone: whether the level is the coarsest, with nothing to fuse.
        """
        super().__init__()
        self.reduce = nn.Conv3d(channels, width, 1)
        self.attention = None if alone else nn.Conv3d(2 * width, 2, 1)
        self.make = nn.Conv3d(width, made, 3, padding=1)

    def forward(self, level: Tensor, coarser: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what is fused, float32 (n, width, z, y, x), and what is made of it, (n, made, z, y, x).

        Args:
            level: float32 (n, channels, z, y, x).
            coarser: what was fused before, float32 (n, width, z', y', x'); None for the coarsest level.
        """
        fused = self.reduce(level)
        if self.attention is not None and coarser is not None:
            coarser = interpolate(coarser, size=fused.shape[2:], mode="nearest")
            share = torch.sigmoid(self.attention(torch.cat([fused, coarser], dim=1)))
            fused = fused * share[:, :1] + coarser * share[:, 1:]
        return fused, self.make(fused)


def context_loss(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the hierarchical context loss (Chen et al. 2021).

    The mean squared error of the features, and of the features pooled to 4, 2 and 1 voxels along each axis, with
    weights 1, 1/2, 1/4 and 1/8 over their sum. An axis shorter than that is not pooled; a pool that would pool
    no axis is skipped, and takes no weight.

    Args:
        ours: float32 (n, c, z, y, x).
        theirs: the same shape.

    Returns:
        Scalar, not negative.
    """
    # of the difference: pooling is linear
    error = ours - theirs
    found, weight, total = error.square().mean(), 1.0, 1.0
    for pool in POOLS:
        if pool >= max(error.shape[2:]):
            continue
        weight /= 2
        total += weight
        found = found + weight * adaptive_mean(error, pool).square().mean()
    return found / total


def adaptive_mean(values: Tensor, extent: int) -> Tensor:
    """Return adaptive average pooling to ``extent`` voxels along each axis that is longer.

    By a small matrix along each axis: the gradient of torch's own on CUDA is not deterministic.

    Args:
        values: float32 (n, c, z, y, x).
        extent: in voxels.

    Returns:
        float32 (n, c, z', y', x').
    """
    for dim in (2, 3, 4):
        length = values.shape[dim]
        if length <= extent:
            continue
        rows = torch.zeros(extent, length)
        for i in range(extent):
            start, stop = i * length // extent, -((i + 1) * length // -extent)
            rows[i, start:stop] = 1 / (stop - start)
        values = (values.movedim(dim, -1) @ rows.to(values).mT).movedim(-1, dim)
    return values


class MgdTerm(Term):
    """Masked generative distillation (Yang et al. 2022): the teacher's features from a part of the student's.

    Voxels of the student, mapped to the teacher's width where it differs, are set to 0 at random, and two
    convolutions with a ReLU between them make the teacher's features; mean squared error. The mask is drawn
    afresh at each call, from the number of the call.
    """

    def __init__(self, options: MgdOptions, context: Context) -> None:
        super().__init__()
        self.level, self.masked = options.level, options.masked
        ours, theirs = widths(context, options.level, "mgd")
        self.projector = projector(ours, theirs)
        self.generator = nn.Sequential(
            nn.Conv3d(theirs, theirs, 3, padding=1), nn.ReLU(), nn.Conv3d(theirs, theirs, 3, padding=1)
        )
        self.calls = 0

    def value(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the term; see `Term`."""
        ours, theirs = both(student, teacher, self.level)
        draw = torch.Generator(ours.device).manual_seed(self.calls)
        self.calls += 1
        mapped = self.projector(ours)
        shape = (len(mapped), 1, *mapped.shape[2:])
        kept = torch.rand(shape, generator=draw, device=ours.device) >= self.masked
        return mse_loss(self.generator(mapped * kept), theirs)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the number of calls; Python's number, since asking a GPU for it would wait for it."""
        return {"calls": self.calls}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up what `get_extra_state` returned."""
        self.calls = state["calls"]
