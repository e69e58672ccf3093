"""Interface of the terms of the loss, and the objective that sums them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from kdseg.errors import ConfigError
from kdseg.geometry import Offsets, Triple, VoxelSize, pair_slices
from kdseg.networks.models import Batch, Network, Outputs, Widths, autocast

EPSILON = 1e-6
"""Least length that a vector, and least weight that a mean, is divided by."""


class Context(NamedTuple):
    """Facts of the run that terms depend on.

    Attributes:
        offsets: one affinity channel each.
        voxel_size: nm, (z, y, x).
        student: channels of the student's outputs.
        teacher: channels of the teacher's; no features if it is stored. None without a teacher.
    """

    offsets: Offsets
    voxel_size: VoxelSize
    student: Widths | None = None
    teacher: Widths | None = None


class Term(nn.Module):
    """One summand of the loss, of one or several parts; subclasses define `value`, or `values` and `weights`.

    A term may own parameters, e.g. a projector: all that take a gradient are trained with the student. What a
    term learns in another way it keeps in buffers or its extra state, so that a continued run has it.
    """

    weights: Mapping[str, float] = MappingProxyType({"": 1.0})
    """Weight of each part by its name; a term of one part calls it ``""``."""

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the weighted sum of the parts, a float32 scalar; see `parts`."""
        found = self.parts(student, teacher, batch)
        return torch.stack([self.weights[name] * part for name, part in found.items()]).sum()

    def parts(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return the unweighted parts, float32 scalars, computed in float32 whatever the network computed in.

        Args:
            student: with gradient.
            teacher: without gradient; empty where none was given, which only terms that distil look for.
            batch: what both saw.
        """
        with torch.autocast(batch.raw.device.type, enabled=False):
            return self.values(student, teacher, batch)

    def values(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return the parts by name, the keys of `weights`; autocast is off."""
        return {"": self.value(student, teacher, batch)}

    def value(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the only part of a term; autocast is off."""
        raise NotImplementedError


class Objective(nn.Module):
    """The student and its terms: one module, so that distributed training sees every parameter."""

    def __init__(
        self,
        network: Network,
        terms: nn.ModuleDict,
        dtype: torch.dtype,
        margin: Triple = (0, 0, 0),
        *,
        features: bool = True,
    ) -> None:
        """Join a student and its terms.

        Args:
            network: the student.
            terms: by name.
            dtype: what the student's convolutions compute in.
            margin: voxels (z, y, x) at the border of crops that no term sees.
            features: whether a term looks at features, of which a margin may be no whole number.
        """
        super().__init__()
        self.network, self.terms, self.dtype, self.margin, self.features = network, terms, dtype, margin, features

    def forward(self, batch: Batch, teacher: Outputs | None, active: frozenset[str] | None = None) -> dict[str, Tensor]:
        """Return each part of each term, unweighted, by the names of `part_weights`.

        Args:
            batch: crops.
            teacher: without gradient; None if no term looks at it.
            active: names of the terms to compute; the parts of the others are 0. Default: all.
        """
        teacher = Outputs({}, ()) if teacher is None else teacher
        with autocast(self.dtype, batch.raw.device):
            student = self.network(batch.raw)
        if any(self.margin):
            if not self.features:
                student, teacher = (outputs._replace(features=(), skips=()) for outputs in (student, teacher))
            student, teacher, batch = without_margin(student, teacher, batch, self.margin)
        found: dict[str, Tensor] = {}
        idle = active is not None and not active.issuperset(self.terms)
        nothing = self._nothing() if idle else batch.raw.new_zeros(())
        for name, term in self._named_terms():
            if active is None or name in active:
                values = term.parts(student, teacher, batch)
            else:
                values = dict.fromkeys(term.weights, nothing)
            found |= {part_name(name, part): value for part, value in values.items()}
        return found

    def _nothing(self) -> Tensor:
        """Return 0 with a gradient of 0 for every parameter: distributed training waits for all of them."""
        return torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum() * 0

    def part_weights(self) -> dict[str, tuple[str, float]]:
        """Return, by the name of each part, its term and its weight within the term."""
        return {
            part_name(name, part): (name, weight)
            for name, term in self._named_terms()
            for part, weight in term.weights.items()
        }

    def _named_terms(self) -> Iterator[tuple[str, Term]]:
        yield from cast("Iterable[tuple[str, Term]]", self.terms.items())


def without_margin(student: Outputs, teacher: Outputs, batch: Batch, margin: Triple) -> tuple[Outputs, Outputs, Batch]:
    """Return what is left of outputs and crops without their border.

    Args:
        student: outputs for the batch.
        teacher: likewise, or nothing.
        batch: crops.
        margin: voxels (z, y, x) to leave out at both ends of each axis.

    Raises:
        ConfigError: if a feature map is too coarse to be cut so.
    """
    grid = batch.raw.shape[-3:]

    def cut(array: Tensor) -> Tensor:
        found = [slice(None)] * (array.ndim - 3)
        for voxels, size, border in zip(array.shape[-3:], grid, margin, strict=True):
            if border * voxels % size:
                raise ConfigError(
                    f"train.margin {margin} cannot be cut from features of a stride of {size // voxels} voxels: use a "
                    "multiple"
                )
            found.append(slice(border * voxels // size, voxels - border * voxels // size))
        return array[tuple(found)]

    def outputs(whole: Outputs) -> Outputs:
        return Outputs(
            {name: cut(logits) for name, logits in whole.logits.items()},
            tuple(map(cut, whole.features)),
            tuple(map(cut, whole.skips)),
            None if whole.known is None else cut(whole.known),
        )

    return outputs(student), outputs(teacher), batch.each(cut)


def part_name(term: str, part: str) -> str:
    """Return what a part is called in the curve: ``term`` or ``term.part``."""
    return f"{term}.{part}" if part else term


def balance(target: Tensor, known: Tensor) -> Tensor:
    """Return weights that let positive and negative pairs of each channel and crop count alike; see `class_weights`.

    Args:
        target: bool (n, c, z, y, x).
        known: bool (n, c, z, y, x).

    Returns:
        float32 (n, c, z, y, x), 0 where not known.
    """
    space = (-3, -2, -1)
    count = known.sum(space, keepdim=True).clamp_min(1)
    positive, negative = class_weights((target & known).sum(space, keepdim=True) / count)
    return torch.where(target, positive, negative) * known


def balanced_squares(difference: Tensor, joined: Tensor, shown: Tensor, offset: Triple, *, balanced: bool) -> Tensor:
    """Return the balanced mean square of differences, and turn them into its gradient, in place.

    Args:
        difference: (z, y, x), 0 where there is no pair.
        joined: bool (z, y, x), false where there is no pair.
        shown: bool (z, y, x), voxels whose pairs count.
        offset: of the pairs.
        balanced: else it is the mean of all pairs alike.
    """
    here, there = pair_slices((difference.shape[0], difference.shape[1], difference.shape[2]), offset)
    counted = shown[here] & shown[there]
    difference[here] *= counted
    pairs = counted.count_nonzero()
    positives = joined.count_nonzero().to(difference.dtype)
    share = positives / pairs.clamp_min(1)
    positive, negative = class_weights(share) if balanced else (torch.ones_like(share), torch.ones_like(share))
    total = (positive * positives + negative * (pairs - positives)).clamp_min(EPSILON)
    weighted = difference * torch.where(joined, positive, negative).to(difference.dtype)
    loss = torch.dot(weighted.view(-1), difference.reshape(-1)) / total
    torch.mul(weighted, 2 / total, out=difference)
    return loss


def class_weights(share: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights of positive and of negative pairs, the rarer ones' the ratio of the two, the others' 1.

    This is the balance of Liu et al., arXiv 2401.06370.

    Args:
        share: float, any shape, of the positive pairs among all; cut to [0.05, 0.99].
    """
    share = share.clamp(0.05, 0.99)
    return torch.where(share > 0.5, 1.0, (1 - share) / share), torch.where(share > 0.5, share / (1 - share), 1.0)


def weighted_mean(values: Tensor, weights: Tensor, crops: float | None = None) -> Tensor:
    """Return the mean over channels and crops of each one's weighted mean, of those that have any weight.

    Args:
        values: float32 (n, c, z, y, x).
        weights: float32 (n, c, z, y, x), not negative.
        crops: number to divide the sum over crops by, of the mean over a crop's channels; see `Batch.labelled`. Of what
            a teacher knows it is that of all crops: none counts more for being beside one of which it knows nothing.

    Returns:
        Scalar; 0, with a gradient of 0, where all weights are 0.
    """
    space = (-3, -2, -1)
    total = weights.sum(space)
    mean = (values * weights).sum(space) / total.clamp_min(EPSILON)
    counted = total > 0
    if crops is None:
        return mean.sum() / counted.sum().clamp_min(1)
    return crop_sum(mean.sum(1) / counted.sum(1).clamp_min(1), counted.any(1), crops)


def crop_sum(means: Tensor, counted: Tensor, crops: float | None) -> Tensor:
    """Return the sum of what crops have, divided by their number.

    Args:
        means: float (n,), 0 for crops that have nothing.
        counted: bool (n,), whether a crop has anything.
        crops: number to divide by; default: those that have anything.

    Returns:
        Scalar; 0, with a gradient of 0, where no crop has anything.
    """
    return means.sum() / (counted.sum().clamp_min(1) if crops is None else max(crops, EPSILON))
