"""Distillation of relations across crops, of the same batch and of earlier ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, normalize

from kdseg.config.terms import CirkdOptions
from kdseg.networks.models import Batch, Outputs
from kdseg.training.losses.base import EPSILON, Context, Term
from kdseg.training.losses.instances import at_level, given, instance_means
from kdseg.training.losses.memory import TokenQueue, spread
from kdseg.training.losses.taps import both, widths


class CirkdTerm(Term):
    """Cross-image relational distillation (Yang et al., CVPR 2022), with instances as regions.

    Of each crop, ``tokens`` evenly spaced voxels are looked at, as unit vectors of one decoder level. Each part is
    the divergence of the student's relations from the teacher's, ``KL(softmax(t.m / T) | softmax(s.m / T))``, the
    mean over voxels; they differ in what a voxel is related to:

    * ``batch``: the voxels of each crop of the batch, its own and every other, a softmax for each; each network by
      its own vectors, whose widths may differ. Processes that train together relate each their own crops;
    * ``pixel``: voxels that the teacher showed in earlier batches, to which a linear map brings the student's;
    * ``region``: likewise means of instances.
    """

    def __init__(self, options: CirkdOptions, context: Context) -> None:
        super().__init__()
        parts = ("batch", "pixel", "region")
        self.weights = {part: weight for part in parts if (weight := getattr(options, part))}
        self.options = options
        ours, theirs = widths(context, options.level, "cirkd")
        self.pixels = self._memory(theirs, options.tokens) if "pixel" in self.weights else None
        self.regions = self._memory(theirs, options.regions) if "region" in self.weights else None
        remembering = self.pixels is not None or self.regions is not None
        self.projector = nn.Linear(ours, theirs) if remembering and ours != theirs else nn.Identity()

    def _memory(self, channels: int, tokens: int) -> TokenQueue:
        return TokenQueue(channels, self.options.memory, tokens, self.options.memory_start)

    def values(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return the parts that have a weight; see `Term`."""
        ours, theirs = both(student, teacher, self.options.level)
        temperature, found = self.options.temperature, {}
        rows = [spread(values, self.options.tokens) for values in (ours, theirs)]
        targets = normalize(rows[1], dim=1, eps=EPSILON)
        if "batch" in self.weights:
            found["batch"] = batch_relations(normalize(rows[0], dim=1, eps=EPSILON), targets, len(ours), temperature)
        mapped = normalize(self.projector(rows[0]), dim=1, eps=EPSILON)
        if self.pixels is not None:
            found["pixel"] = self.pixels.divergences(mapped, targets, temperature).mean()
            if self.training:
                self.pixels.push(targets, torch.ones(len(targets), dtype=torch.bool, device=targets.device))
        if self.regions is not None:
            found["region"] = self.regions.divergences(mapped, targets, temperature).mean()
            if self.training:
                self.regions.push(*self._regions(theirs, given(batch, "cirkd")))
        return found

    def _regions(self, theirs: Tensor, instances: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means of the instances as unit vectors, (count, d), and which are large enough, bool (count,)."""
        z, y, x = theirs.shape[2:]
        large = (torch.bincount(instances.flatten()) >= self.options.min_size)[1:]
        means, voxels = instance_means(theirs, at_level(instances, (z, y, x)), len(large))
        return normalize(means, dim=1, eps=EPSILON), large & (voxels > 0)


def batch_relations(ours: Tensor, theirs: Tensor, crops: int, temperature: float) -> Tensor:
    """Return by how much the student's relations between the voxels of a batch diverge from the teacher's.

    Args:
        ours: float32 (crops * p, c), unit vectors, with gradient.
        theirs: float32 (crops * p, d), unit vectors; d may differ from c.
        crops: number of crops.
        temperature: cosines are divided by it.

    Returns:
        Scalar, not negative: the mean over voxels and over the crops whose voxels they are related to.
    """
    target, relations = (
        log_softmax((unit @ unit.T / temperature).reshape(len(unit), crops, -1), dim=2) for unit in (theirs, ours)
    )
    return kl_div(relations, target, reduction="none", log_target=True).sum(2).mean()
