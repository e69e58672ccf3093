"""Distillation of regions, and of how voxels relate to them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from kdseg.config.terms import ReCoKdOptions
from kdseg.networks.models import Batch, Outputs
from kdseg.training.losses.base import EPSILON, Context, Term, crop_sum
from kdseg.training.losses.instances import at_level, given, instance_means, owners
from kdseg.training.losses.similarity import gram
from kdseg.training.losses.taps import both, projector, widths


class ReCoKdTerm(Term):
    """Region- and context-aware distillation (Lan et al., arXiv 2601.08301), with instances as regions.

    Only its abstract was to be had, which names masks by class with a weight by size, and affinities on several
    levels; this is a reading of it. Each is the mean over levels and crops::

        region    mean_i mean_p in i |m(s_p) - t_p|^2 / channels
        context   mean_pi (cos(s_p, s_i) - cos(t_p, t_i))^2

    with ``i`` the instances of ``min_size`` voxels or more, counted on the full grid, ``s_i`` the mean of the
    features over one, ``p`` the voxels of the crop, and ``m`` a linear map where widths differ.
    """

    def __init__(self, options: ReCoKdOptions, context: Context) -> None:
        super().__init__()
        self.weights = {part: weight for part in ("region", "context") if (weight := getattr(options, part))}
        self.levels, self.min_size = options.levels, options.min_size
        channels = [widths(context, level, "recokd") for level in options.levels]
        if "region" in self.weights:
            self.projectors = nn.ModuleList(projector(ours, theirs) for ours, theirs in channels)

    def values(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return the parts ``region`` and ``context``, those that have a weight; see `Term`."""
        instances = given(batch, "recokd")
        sizes = torch.bincount(instances.flatten())
        large = (sizes >= self.min_size)[1:]
        owner = owners(instances, len(large))
        found: dict[str, list[Tensor]] = {part: [] for part in self.weights}
        for number, level in enumerate(self.levels):
            ours, theirs = both(student, teacher, level)
            z, y, x = ours.shape[2:]
            ids = at_level(instances, (z, y, x))
            if "region" in found:
                error = (self.projectors[number](ours) - theirs).square().mean(1, keepdim=True)
                means, voxels = instance_means(error, ids, len(large))
                kept = large & (voxels > 0)
                found["region"].append(_crop_means(means[kept, 0], owner[kept], len(ids), batch.instanced))
            if "context" in found:
                found["context"].append(_context(ours, theirs, ids, (large, owner), batch.instanced))
        return {part: torch.stack(values).mean() for part, values in found.items()}


def _context(ours: Tensor, theirs: Tensor, ids: Tensor, regions: tuple[Tensor, Tensor], crops: float | None) -> Tensor:
    """Return the mean squared difference of the cosines between voxels and the instances of their crop.

    Args:
        ours: float32 (n, c, z, y, x).
        theirs: float32 (n, d, z, y, x).
        ids: int64 (n, z, y, x), instances on this grid.
        regions: of the instances, which count, bool (count,), and in which crop each lies, int64 (count,).
        crops: number that the sum over crops is divided by; see `Batch.instanced`.
    """
    large, owner = regions
    (s, voxels), (t, _) = (instance_means(values, ids, len(large)) for values in (ours, theirs))
    kept = large & (voxels > 0)
    s, t, owner = s[kept], t[kept], owner[kept]
    squares = region_relations(ours, s, theirs, t, owner)
    counts = torch.bincount(owner, minlength=len(ids))
    means = squares / (counts * ids[0].numel()).clamp_min(1)
    return crop_sum(means.float(), counts > 0, crops)


def region_relations(ours: Tensor, means: Tensor, theirs: Tensor, targets: Tensor, owner: Tensor) -> Tensor:
    """Return the sum of squared differences of the cosines between voxels and regions of each crop, exactly.

    With the unit vectors of the voxels of a crop in the columns of ``S`` and ``T`` and those of its regions in the
    rows of ``R`` and ``Q``, it is ``|R S - Q T|^2 = <S S', R'R> + <T T', Q'Q> - 2 <S T', R'Q>``, of matrices as
    wide as the features: no map of voxels by regions is made. As in `similarity.pixel_relations`, it is a small
    difference of large numbers, made in float64; what rounding leaves below 0 is cut.

    Args:
        ours: float32 (n, c, z, y, x).
        means: float32 (regions, c), of any length.
        theirs: float32 (n, d, z, y, x).
        targets: float32 (regions, d).
        owner: int64 (regions,), the crop of each.

    Returns:
        float64 (n,).
    """
    s, t = (normalize(values.flatten(2), dim=1, eps=EPSILON) for values in (ours, theirs))
    r, q = (normalize(rows, dim=1, eps=EPSILON).double() for rows in (means, targets))

    def product(a: Tensor, b: Tensor, p: Tensor, u: Tensor) -> Tensor:
        outer = p[:, :, None] * u[:, None, :]
        within = outer.new_zeros(len(ours), *outer.shape[1:]).index_add(0, owner, outer)
        return (gram(a, b) * within).sum((1, 2))

    return (product(s, s, r, r) + product(t, t, q, q) - 2 * product(s, t, r, q)).clamp_min(0)


def _crop_means(values: Tensor, owner: Tensor, n: int, crops: float | None) -> Tensor:
    """Return the mean over crops of the mean of the values that each owns; see `crop_sum`."""
    counts = torch.bincount(owner, minlength=n)
    means = values.new_zeros(n).index_add(0, owner, values) / counts.clamp_min(1)
    return crop_sum(means, counts > 0, crops)
