"""Held-out affinity loss: how far predicted affinities are from ground truth that was not trained on.

It tells networks apart with far less noise than scores of a segmentation, where one false merge decides.
"""

from __future__ import annotations

from math import fsum, log
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdseg.config.terms.supervised import Boundary
from kdseg.geometry import Offsets, VoxelSize
from kdseg.training.augment import Crop
from kdseg.training.losses.base import class_weights
from kdseg.training.targets import affinities, boundary_axes, boundary_voxels

LEAST = 0.25 / 255
"""Probability that 0 stands for: the middle of what is rounded to it. 255 stands for 1 less this."""


class Truth(NamedTuple):
    """Ground truth of a crop, with a membrane of one voxel on either side of a contact, if there is any.

    Attributes:
        labels: int64 (z, y, x).
        known: bool (z, y, x), voxels whose labels count.
        boundary: bool (z, y, x), voxels that count as membrane; None for none.
    """

    labels: Tensor
    known: Tensor
    boundary: Tensor | None


def truth(crop: Crop, boundary: Boundary, voxel_size: VoxelSize, *, sections: bool = False) -> Truth:
    """Return the ground truth of a crop.

    Args:
        crop: labelled.
        boundary: the option of the term `affinity`.
        voxel_size: nm, (z, y, x).
        sections: whether each is an image of its own, so that there is no boundary between two.
    """
    labels, axes = torch.from_numpy(crop.labels.copy()), boundary_axes(boundary, voxel_size, sections=sections)
    edge = None if axes is None else boundary_voxels(labels, axes)
    return Truth(labels, torch.from_numpy(crop.mask), edge)


def affinity_loss(predicted: NDArray[np.uint8], truth: Truth, offsets: Offsets) -> float:
    """Return the class-balanced binary cross entropy of affinities: the term `affinity` by default, on a held-out crop.

    Each channel is balanced by itself; channels without a known pair are left out of the mean. The 256 values of a
    channel are counted, which is exact: the loss depends on no order.

    Args:
        predicted: uint8 (c, z, y, x), 255 is 1.
        truth: of the same voxels.
        offsets: one per channel.

    Returns:
        nat, not negative, at most 6.93; NaN where no pair is known.
    """
    means = []
    for channel, offset in zip(predicted, offsets, strict=True):
        target, known = affinities(truth.labels, (offset,), mask=truth.known, boundary=truth.boundary)
        values = torch.from_numpy(channel)
        positive, negative = (
            torch.bincount(values[pairs[0]], minlength=256) for pairs in (target & known, known & ~target)
        )
        if bool((positive + negative).any()):
            means.append(_mean(positive.tolist(), negative.tolist()))
    return fsum(means) / len(means) if means else float("nan")


def _mean(positive: list[int], negative: list[int]) -> float:
    """Return the weighted mean of the cross entropy, of the number of pairs by value."""
    joined, cut = sum(positive), sum(negative)
    weights = class_weights(torch.tensor(joined / (joined + cut), dtype=torch.float64))
    up, down = (weight.item() for weight in weights)
    p = [min(max(value / 255, LEAST), 1 - LEAST) for value in range(256)]
    costs = fsum(-up * n * log(q) for n, q in zip(positive, p, strict=True))
    costs += fsum(-down * n * log(1 - q) for n, q in zip(negative, p, strict=True))
    return costs / (up * joined + down * cut)
