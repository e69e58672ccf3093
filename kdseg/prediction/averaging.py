"""Test-time augmentation: affinities averaged over mirror images and quarter turns of what the network sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from kdseg.geometry import Offsets, Triple, pair_slices
from kdseg.networks.models import Network, Outputs
from kdseg.networks.models.base import channels_last
from kdseg.networks.symmetry import Symmetry, channel_plan, symmetries


def averaged_over(average: Literal["none", "flips", "all"], shape: Triple, *, cubic: bool) -> tuple[Symmetry, ...]:
    """Return the symmetries to average over, the identity first.

    Args:
        average: nothing; the eight mirror images; or these with quarter turns.
        shape: of the crop or tile; axes of different length are never exchanged.
        cubic: whether quarter turns may leave the section plane.
    """
    rotate: Literal["none", "yx", "zyx"] = "none" if average != "all" else "zyx" if cubic else "yx"
    return tuple(symmetries(shape, average != "none", rotate))


def tta_mean(network: Network, raw: Tensor, offsets: Offsets, group: Sequence[Symmetry]) -> tuple[Tensor, Outputs]:
    """Return the mean over symmetries of the probabilities that a network gives, and its outputs as they are.

    Each image of the input is predicted, and its affinities are brought back to the voxels and pairs that they
    belong to; a pair whose reference left the array in an image is averaged over the others.

    Args:
        network: gives affinities, one channel per offset.
        raw: float32 (n, 1, z, y, x) in [-1, 1].
        offsets: one (z, y, x) step in voxels per channel.
        group: the symmetries, the identity first.

    Returns:
        float32 (n, c, z, y, x) in [0, 1], and what the network returns for ``raw`` itself.
    """
    plain: Outputs = network(raw)
    total = torch.sigmoid(plain.logits["affinities"].float())
    count = torch.ones_like(total)
    for symmetry in group[1:]:
        outputs: Outputs = network(channels_last(turned(raw, symmetry)))
        back, known = returned(torch.sigmoid(outputs.logits["affinities"].float()), offsets, symmetry.inverse)
        total += back
        count += known
    return total / count, plain


def turned(values: Tensor, symmetry: Symmetry) -> Tensor:
    """Return the last three axes of a tensor transformed, as `Symmetry.apply` does for arrays."""
    lead = values.ndim - 3
    moved = values.permute(*range(lead), *(lead + axis for axis in symmetry.axes))
    return moved.flip([lead + axis for axis, flip in enumerate(symmetry.flip) if flip])


def returned(values: Tensor, offsets: Offsets, symmetry: Symmetry) -> tuple[Tensor, Tensor]:
    """Return affinities after a symmetry, and 1 where they are known; see `kdseg.networks.symmetry.channel_plan`.

    Args:
        values: float32 (n, c, z, y, x).
        offsets: one (z, y, x) step in voxels per channel.
        symmetry: by which the voxels move.

    Returns:
        float32 (n, c, z', y', x') twice; where the pair's old reference lay outside of the array, both are 0.
    """
    channels, known = [], []
    for channel, step in channel_plan(offsets, symmetry):
        value, seen = values[:, channel], torch.ones_like(values[:, channel])
        if step is not None:
            _, _, z, y, x = values.shape
            here, there = ((slice(None), *cut) for cut in pair_slices((z, y, x), step))
            moved, seen = torch.zeros_like(value), torch.zeros_like(value)
            moved[here], seen[here] = value[there], 1
            value = moved
        channels.append(turned(value, symmetry))
        known.append(turned(seen, symmetry))
    return torch.stack(channels, dim=1), torch.stack(known, dim=1)
