"""Distillation of boundaries in features, and of the context of each voxel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, normalize

from kdseg.config.terms import BckdOptions
from kdseg.networks.models import Batch, Outputs
from kdseg.training.losses.base import EPSILON, Context, Term
from kdseg.training.losses.memory import spread
from kdseg.training.losses.taps import aligned, both, tapped, widths


class BckdTerm(Term):
    """Boundary and context distillation (Zhang et al., arXiv 2401.13174).

    Only its abstract was to be had, which names boundaries extracted from features of several levels, and the
    self-relations of voxels as a bridge for context; this is a reading of it. ``boundary`` is the squared distance
    of the strengths of `boundaries` as unit vectors over the voxels of a crop, the mean over levels and crops, in
    [0, 2]. ``context`` is the divergence of each voxel's relations to all voxels of its crop, the mean over voxels
    and crops: ``KL(softmax(cos(t_p, t_q) / T) | softmax(cos(s_p, s_q) / T))`` over ``q``, with ``T = 1/2``. Of a
    level of more than 1024 voxels evenly spaced ones are related. Numbers of channels may differ in both parts.
    """

    TEMPERATURE = 0.5
    VOXELS = 1024

    def __init__(self, options: BckdOptions, context: Context) -> None:
        super().__init__()
        self.weights = {part: weight for part in ("boundary", "context") if (weight := getattr(options, part))}
        self.levels, self.context_level = options.levels, options.context_level
        for tap in options.taps_used:
            widths(context, tap, "bckd")

    def values(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return the parts ``boundary`` and ``context``, those that have a weight; see `Term`."""
        found = {}
        if "boundary" in self.weights:
            found["boundary"] = torch.stack([self._boundary(student, teacher, level) for level in self.levels]).mean()
        if "context" in self.weights:
            target, relations = (
                self._relations(values) for values in reversed(both(student, teacher, self.context_level))
            )
            found["context"] = kl_div(relations, target, reduction="none", log_target=True).sum(2).mean()
        return found

    def _boundary(self, student: Outputs, teacher: Outputs, level: int) -> Tensor:
        ours = boundaries(tapped(student, level))
        # the strengths are resampled, not the features, whose boundaries would be blurred
        theirs = aligned(boundaries(tapped(teacher, level).detach()), ours)
        s, t = (normalize(strength.flatten(1), dim=1, eps=EPSILON) for strength in (ours, theirs))
        return (s - t).square().sum(1).mean()

    def _relations(self, values: Tensor) -> Tensor:
        rows = spread(values, self.VOXELS).reshape(len(values), -1, values.shape[1])
        unit = normalize(rows, dim=2, eps=EPSILON)
        return log_softmax(unit @ unit.mT / self.TEMPERATURE, dim=2)


def boundaries(values: Tensor) -> Tensor:
    """Return how strongly features change around each voxel, float32 (n, 1, z, y, x), not negative.

    It is the mean square, over channels, of what the mean over the 3x3x3 voxels around takes away. Beyond the
    border, the outermost voxel goes on.

    Args:
        values: float32 (n, c, z, y, x).
    """
    smooth = values
    # sums of slices: the gradient of torch's pooling on CUDA would not be deterministic
    for dim in (2, 3, 4):
        length = smooth.shape[dim]
        padded = torch.cat([smooth.narrow(dim, 0, 1), smooth, smooth.narrow(dim, length - 1, 1)], dim=dim)
        smooth = (padded.narrow(dim, 0, length) + smooth + padded.narrow(dim, 2, length)) / 3
    return (values - smooth).square().mean(1, keepdim=True)
