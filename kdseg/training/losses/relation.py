"""Terms that compare relations: between channels, voxels, samples, and voxels and their instance."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kdseg.config.terms import CpkdOptions, DistOptions, IfvdOptions, SkdOptions, SpkdOptions
from kdseg.networks.models import Batch, Outputs
from kdseg.training.losses.affinity import bernoulli_divergence
from kdseg.training.losses.base import EPSILON, Context, Term, weighted_mean
from kdseg.training.losses.instances import at_level, given, instance_means
from kdseg.training.losses.similarity import (
    block_mean,
    channel_relations,
    pearson_relations,
    pixel_relations,
    sample_relations,
    samples,
)
from kdseg.training.losses.taps import both, projector, same_affinities, widths


class CpkdTerm(Term):
    """Channel- and pixel-wise relational distillation (Xiong & Yu, Proc. SPIE 13213, 1321311, 2024).

    Only the abstract is public, which names relations between channels and between pixels; both forms are
    readings of it. ``gram``: squared differences of the cosines between channels, and between voxels, of one
    decoder level; channels need the same number in both networks, to which a learned linear map brings the
    student's, voxels do not and are compared unmapped. ``pearson``: that of DIST, see `DistTerm`.
    """

    def __init__(self, options: CpkdOptions, context: Context) -> None:
        super().__init__()
        self.weights = {"channel": options.channel, "pixel": options.pixel}
        self.level, self.temperature, self.gram = options.level, options.temperature, options.reading == "gram"
        if self.gram:
            ours, theirs = widths(context, options.level, "cpkd")
            self.projector = projector(ours, theirs)
        else:
            same_affinities(context, "cpkd")

    def values(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return the parts ``channel`` and ``pixel``; see `Term`."""
        if not self.gram:
            inter, intra = _pearson(student, teacher, self.temperature)
            return {"channel": intra, "pixel": inter}
        ours, theirs = both(student, teacher, self.level)
        return {
            "channel": channel_relations(self.projector(ours), theirs),
            "pixel": pixel_relations(ours, theirs),
        }


class DistTerm(Term):
    """DIST (Huang et al. 2022) for dense affinities: one minus the correlation of predictions.

    Classes are offsets, and the sigmoid of the logits over the temperature takes the place of the softmax. Both
    parts are multiplied by the square of the temperature, as in the published code. Correlations forgive any
    scale and shift: inside a neuron, where all affinities of the teacher are nearly 1, the inter-class part
    compares small differences as strictly as large ones at a boundary.
    """

    def __init__(self, options: DistOptions, context: Context) -> None:
        super().__init__()
        self.weights = {"inter": options.inter, "intra": options.intra}
        self.temperature = options.temperature
        same_affinities(context, "dist")

    def values(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return the parts ``inter`` and ``intra``; see `Term`."""
        inter, intra = _pearson(student, teacher, self.temperature)
        return {"inter": inter, "intra": intra}


class SpkdTerm(Term):
    """Similarity-preserving distillation (Tung & Mori 2019), with parts of crops as samples.

    The similarity of two samples is the inner product of their features, channels and voxels alike; each row of
    similarities is a unit vector. Numbers of channels may differ. Samples are those of all crops of the batch.
    """

    def __init__(self, options: SpkdOptions, context: Context) -> None:
        super().__init__()
        self.level, self.cut = options.level, options.parts
        widths(context, options.level, "spkd")

    def value(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the term; see `Term`."""
        ours, theirs = both(student, teacher, self.level)
        return sample_relations(samples(ours, self.cut), samples(theirs, self.cut))


class SkdTerm(Term):
    """Structured knowledge distillation (Liu et al. 2019): pixel-wise and pair-wise.

    ``pixel`` is the divergence of affinities, each offset and voxel a two-way decision, over all that the teacher
    predicted; ``pair`` the squared difference of the cosines of all pairs of voxels, after average pooling.
    """

    def __init__(self, options: SkdOptions, context: Context) -> None:
        super().__init__()
        self.weights = {"pixel": options.pixel, "pair": options.pair}
        self.level, self.pool = options.level, options.pool
        same_affinities(context, "skd")
        widths(context, options.level, "skd")

    def values(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return the parts ``pixel`` and ``pair``; see `Term`."""
        ours, theirs = both(student, teacher, "affinities")
        divergence = bernoulli_divergence(ours, theirs)
        weights = torch.ones_like(divergence) if teacher.known is None else teacher.known.float()
        ours, theirs = both(student, teacher, self.level)
        pair = pixel_relations(block_mean(ours, self.pool), block_mean(theirs, self.pool))
        return {"pixel": weighted_mean(divergence, weights, len(weights)), "pair": pair}


class IfvdTerm(Term):
    """Intra-class feature variation distillation (Wang et al. 2020), with instances as classes.

    The prototype of an instance is the mean of its features, and the variation of a voxel its cosine to the
    prototype of its own instance. Of the squared differences between the networks, the mean over crops of that over the
    voxels of all instances of ``min_size`` voxels or more, counted on the full grid. Numbers of channels may differ.
    """

    def __init__(self, options: IfvdOptions, context: Context) -> None:
        super().__init__()
        self.level, self.min_size = options.level, options.min_size
        widths(context, options.level, "ifvd")

    def value(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the term; see `Term`."""
        ours, theirs = both(student, teacher, self.level)
        instances = given(batch, "ifvd")
        sizes = torch.bincount(instances.flatten())
        large = sizes >= self.min_size
        large[0] = False
        z, y, x = ours.shape[2:]
        ids = at_level(instances, (z, y, x))
        count = len(sizes) - 1
        error = (variation(ours, ids, count) - variation(theirs, ids, count)) ** 2
        return weighted_mean(error[:, None], large[ids][:, None].float(), batch.instanced)


def variation(values: Tensor, instances: Tensor, count: int) -> Tensor:
    """Return the cosine of each voxel's features to the mean of its instance, float32 (n, z, y, x) in [-1, 1].

    It is 0 where there is no instance.

    Args:
        values: float32 (n, c, z, y, x).
        instances: int64 (n, z, y, x), ids from 1 to ``count`` over the batch, 0 is none.
        count: number of instances.
    """
    means, _ = instance_means(values, instances, count)
    prototypes = normalize(means, dim=1, eps=EPSILON)
    prototypes = torch.cat([prototypes.new_zeros(1, values.shape[1]), prototypes])
    unit = normalize(values, dim=1, eps=EPSILON)
    return (unit.movedim(1, -1) * prototypes[instances]).sum(-1)


def _pearson(student: Outputs, teacher: Outputs, temperature: float) -> tuple[Tensor, Tensor]:
    ours, theirs = both(student, teacher, "affinities")
    found = pearson_relations(torch.sigmoid(ours / temperature), torch.sigmoid(theirs / temperature), teacher.known)
    return temperature**2 * found[0], temperature**2 * found[1]
