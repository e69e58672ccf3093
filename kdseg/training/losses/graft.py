"""Distillation of affinities across sections, between the embeddings of two networks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kdseg.config.terms import CadOptions
from kdseg.geometry import Offsets, in_sections, nearest_count, pair_slices
from kdseg.networks.models import Batch, Outputs
from kdseg.training.losses.base import EPSILON, Context, Term, balance, weighted_mean
from kdseg.training.losses.supervised import pair_products, true_pairs
from kdseg.training.losses.taps import both, projector, widths
from kdseg.training.targets import boundary_axes

_CUT = 0.5
"""Affinity below which a pair counts as cut."""


class CadTerm(Term):
    """Cross-dimension affinity distillation (Liu et al., CVPR 2024), of one 3-D network from another.

    The affinity of two voxels is the cosine of their vectors, negative ones cut to 0. Two parts, each the weighted
    mean over pairs inside the crop, with as much weight on those that the target cuts as on those that it joins
    (`base.balance`), then over offsets and crops::

        affinity   (u_p^S.u_p+o^S - u_p^T.u_p+o^T)^2
        graft      (u_p^S.u_p+o^T - y)^2  and  (u_p^T.u_p+o^S - y)^2, offsets along z alone

    The second grafts sections of the student between those of the teacher (feature grafting interaction): ``y`` is
    the affinity of the ground truth, where there is one, or with ``target: teacher`` the teacher's own. A linear
    map brings the student's vectors to the teacher's width for it where they differ.
    """

    def __init__(self, options: CadOptions, context: Context) -> None:
        super().__init__()
        self.weights = {part: weight for part in ("affinity", "graft") if (weight := getattr(options, part))}
        self.tap, self.labelled = options.tap, options.target == "labels"
        count = len(context.offsets) if options.offsets == "all" else nearest_count(context.offsets)
        self.offsets = context.offsets[:count]
        self.sections = tuple(o for o in context.offsets if o[0] and not (o[1] or o[2]))
        self.boundary = boundary_axes(options.boundary, context.voxel_size, sections=in_sections(context.offsets))
        ours, theirs = widths(context, options.tap, "cad")
        if "graft" in self.weights:
            self.projector = projector(ours, theirs)

    def values(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return the parts ``affinity`` and ``graft``, those that have a weight; see `Term`."""
        ours, theirs = both(student, teacher, self.tap)
        taught = normalize(theirs, dim=1, eps=EPSILON)
        found = {}
        if "affinity" in self.weights:
            unit = normalize(ours, dim=1, eps=EPSILON)
            target = pair_products(taught, taught, self.offsets).relu()
            error = (pair_products(unit, unit, self.offsets).relu() - target) ** 2
            weights = balance(target > _CUT, shown_pairs(taught, self.offsets))
            found["affinity"] = weighted_mean(error, weights, len(error))
        if "graft" in self.weights:
            found["graft"] = self._graft(normalize(self.projector(ours), dim=1, eps=EPSILON), taught, batch)
        return found

    def _graft(self, ours: Tensor, theirs: Tensor, batch: Batch) -> Tensor:
        """Return the part ``graft`` of unit vectors."""
        crops: float | None = len(theirs)
        if self.labelled:
            joined, known = true_pairs(batch, self.sections, self.boundary)
            target, crops = joined.float(), batch.labelled
        else:
            target = pair_products(theirs, theirs, self.sections).relu()
            joined, known = target > _CUT, shown_pairs(theirs, self.sections)
        grafts = [pair_products(a, b, self.sections).relu() for a, b in ((ours, theirs), (theirs, ours))]
        error = torch.stack([(graft - target) ** 2 for graft in grafts]).mean(0)
        return weighted_mean(error, balance(joined, known), crops)


def shown_pairs(vectors: Tensor, offsets: Offsets) -> Tensor:
    """Return which pairs lie in the array and have vectors other than 0, bool (n, c, z, y, x).

    Args:
        vectors: float (n, d, z, y, x), of the teacher; 0 where a voxel shows nothing that it knows.
        offsets: one (z, y, x) step in voxels per channel c.
    """
    shown = vectors.any(1)
    found = shown.new_zeros((len(vectors), len(offsets), *vectors.shape[2:]))
    z, y, x = vectors.shape[2:]
    for channel, offset in enumerate(offsets):
        here, there = ((slice(None), *cut) for cut in pair_slices((z, y, x), offset))
        found[:, channel][here] = shown[here] & shown[there]
    return found
