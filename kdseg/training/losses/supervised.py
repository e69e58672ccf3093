"""Terms that compare the student with ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate, normalize

from kdseg.config.terms import AffinityOptions, DeepSupervisionOptions, EmbeddingOptions, LsdOptions
from kdseg.config.terms.supervised import PairsSection
from kdseg.errors import ConfigError
from kdseg.geometry import Offsets, in_sections, pair_slices
from kdseg.networks.models import Batch, Outputs
from kdseg.training.losses.base import EPSILON, Context, Term, balance, crop_sum, weighted_mean
from kdseg.training.losses.taps import tapped, width
from kdseg.training.targets import affinities, boundary_axes, boundary_voxels


class PairsTerm(Term):
    """A term on pairs of voxels of the ground truth."""

    def __init__(self, options: PairsSection, context: Context) -> None:
        super().__init__()
        self.offsets, self.width = context.offsets, options.boundary_width
        self.boundary = boundary_axes(options.boundary, context.voxel_size, sections=in_sections(context.offsets))

    def truth(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the affinities of the ground truth, and which are known; see `true_pairs`."""
        return true_pairs(batch, self.offsets, self.boundary, self.width)


class AffinityTerm(PairsTerm):
    """Binary cross entropy on affinities, by default class-balanced."""

    def __init__(self, options: AffinityOptions, context: Context) -> None:
        super().__init__(options, context)
        self.balanced = options.balanced

    def value(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the term; see `Term`."""
        target, known = self.truth(batch)
        weights = balance(target, known) if self.balanced else known.float()
        return _cross_entropy(student.logits["affinities"].float(), target, weights, batch)


class DiceTerm(PairsTerm):
    """Soft Dice loss of affinities (Milletari et al. 2016, "V-Net", Section 3).

    ``1 - 2 sum(p t) / (sum(p^2) + sum(t^2))`` over the known pairs of a channel and crop, the mean of that of pairs
    within neurons and that of pairs between neurons, where there are any: of the former there are so many that they
    alone would say little.
    """

    def value(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the term; see `Term`."""
        predicted = torch.sigmoid(student.logits["affinities"].float())
        target, known = self.truth(batch)
        space, found, there = (-3, -2, -1), [], []
        for p, t in ((predicted, target & known), (1 - predicted, ~target & known)):
            share = (p * t).sum(space) * 2 / ((p.square() * known).sum(space) + t.sum(space)).clamp_min(EPSILON)
            any_of_it = t.any(-1).any(-1).any(-1)
            found.append((1 - share) * any_of_it)
            there.append(any_of_it)
        losses, counted = torch.stack(found, -1).flatten(1), torch.stack(there, -1).flatten(1)
        return crop_sum(losses.sum(1) / counted.sum(1).clamp_min(1), counted.any(1), batch.labelled)


class DeepSupervisionTerm(PairsTerm):
    """Affinities that coarser decoder levels predict, against ground truth (Lee et al. 2015, "Deeply-supervised nets").

    Each level has a linear map of its features to affinities, which are interpolated to the crop's voxels; the loss is
    that of the term `affinity`, the mean over the levels.
    """

    def __init__(self, options: DeepSupervisionOptions, context: Context) -> None:
        super().__init__(options, context)
        self.levels = options.levels
        channels = [width(context, "student", level, "deep_supervision") for level in options.levels]
        self.maps = nn.ModuleList(nn.Conv3d(found, len(context.offsets), 1) for found in channels)

    def value(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the term; see `Term`."""
        target, known = self.truth(batch)
        losses = []
        for level, linear in zip(self.levels, self.maps, strict=True):
            logits = _interpolated(linear(tapped(student, level)), target.shape[2:])
            losses.append(_cross_entropy(logits, target, balance(target, known), batch))
        return torch.stack(losses).mean()


class LsdTerm(Term):
    """Mean squared error on local shape descriptors, in all voxels of known neurons."""

    def __init__(self, options: LsdOptions, context: Context) -> None:
        super().__init__()

    def value(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the term; see `Term`."""
        predicted = torch.sigmoid(student.logits["lsd"].float())
        if batch.descriptors is None:
            raise ConfigError("the term 'lsd' needs descriptors, and the crops carry none (Batch.descriptors)")
        known = (batch.mask & (batch.labels > 0))[:, None].expand_as(predicted)
        return weighted_mean((predicted - batch.descriptors) ** 2, known.float(), batch.labelled)


class EmbeddingTerm(PairsTerm):
    """Class-balanced squared error between the cosines of voxel embeddings and affinities.

    The cosine of two voxels of one neuron is to be 1, of two neurons 0 (Liu et al., arXiv 2401.06370). As
    published, errors are summed over offsets and divided by the voxels of the crops, known or not.
    """

    def __init__(self, options: EmbeddingOptions, context: Context) -> None:
        super().__init__(options, context)
        self.published = options.reduction == "published"

    def value(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the term; see `Term`."""
        cosine = embedding_affinities(student.logits["embedding"].float(), self.offsets)
        target, known = self.truth(batch)
        error, weights = (cosine - target.float()) ** 2, balance(target, known)
        if self.published:
            return (error * weights).sum() / batch.labels.numel()
        return weighted_mean(error, weights, batch.labelled)


def embedding_affinities(embedding: Tensor, offsets: Offsets) -> Tensor:
    """Return the cosines of all pairs, float32 (n, c, z, y, x) in [-1, 1]; 0 where a pair leaves the array.

    Args:
        embedding: float32 (n, d, z, y, x).
        offsets: one (z, y, x) step in voxels per channel.
    """
    unit = normalize(embedding, dim=1, eps=EPSILON)
    return pair_products(unit, unit, offsets)


def pair_products(first: Tensor, second: Tensor, offsets: Offsets) -> Tensor:
    """Return the inner products of all pairs, float32 (n, c, z, y, x); 0 where a pair leaves the array.

    Args:
        first: float32 (n, d, z, y, x), the vectors of voxels ``p``.
        second: the same shape, those of ``p + offset``.
        offsets: one (z, y, x) step in voxels per channel.
    """
    found: Tensor = _PairProducts.apply(first, second, offsets)  # type: ignore[no-untyped-call]
    return found


class _PairProducts(torch.autograd.Function):
    """Inner products of pairs, with a gradient that is added up in place: slices make a whole array for each."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, offsets: Offsets) -> Tensor:
        ctx.save_for_backward(first, second)
        ctx.offsets = offsets
        found = first.new_zeros((len(first), len(offsets), *first.shape[2:]))
        for channel, (here, there) in enumerate(_ends(first, offsets)):
            found[:, channel][here] = (first.movedim(1, -1)[here] * second.movedim(1, -1)[there]).sum(-1)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        first, second = ctx.saved_tensors
        slopes = [
            torch.zeros_like(v) if wanted else None
            for v, wanted in zip((first, second), ctx.needs_input_grad[:2], strict=True)
        ]
        for channel, (here, there) in enumerate(_ends(first, ctx.offsets)):
            slope = gradients[0][:, channel][here][..., None]
            for found, one, place, other in (
                (slopes[0], here, there, second),
                (slopes[1], there, here, first),
            ):
                if found is not None:
                    found.movedim(1, -1)[one].addcmul_(other.movedim(1, -1)[place], slope)
        return slopes[0], slopes[1], None


def _ends(values: Tensor, offsets: Offsets) -> list[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Return where the voxels of all pairs of each offset are, in (n, z, y, x)."""
    z, y, x = values.shape[2:]
    found = [pair_slices((z, y, x), offset) for offset in offsets]
    return [((slice(None), *here), (slice(None), *there)) for here, there in found]


def _interpolated(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Return values, (n, c, z, y, x), interpolated linearly along each axis.

    By products with matrices: the gradient of PyTorch's own on a GPU adds up in no fixed order.
    """
    for axis, size in enumerate(shape, 2):
        n = values.shape[axis]
        if n != size:
            unit = torch.eye(n, device=values.device)[None]
            weights = interpolate(unit, size=size, mode="linear", align_corners=False)[0]
            values = (values.movedim(axis, -1) @ weights).movedim(-1, axis)
    return values


def _cross_entropy(logits: Tensor, target: Tensor, weights: Tensor, batch: Batch) -> Tensor:
    loss = binary_cross_entropy_with_logits(logits, target.float(), reduction="none")
    return weighted_mean(loss, weights, batch.labelled)


def true_pairs(batch: Batch, offsets: Offsets, boundary: str | None, width: int = 1) -> tuple[Tensor, Tensor]:
    """Return the affinities of the ground truth, and which are known; see `targets.affinities`.

    Args:
        batch: crops.
        offsets: one (z, y, x) step in voxels per channel.
        boundary: of `boundary_axes`.
        width: voxels of it on either side of a contact.
    """
    edge = None if boundary is None else boundary_voxels(batch.labels, boundary, width)
    return affinities(batch.labels, offsets, mask=batch.mask, boundary=edge)
