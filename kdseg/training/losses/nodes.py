"""Nodes and edges of the graph of a crop: which instances count, which pairs, and how they are averaged."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kdseg.config.terms import GraphRelationOptions
from kdseg.geometry import Offsets, pair_slices
from kdseg.training.losses.base import EPSILON, balance, crop_sum, weighted_mean
from kdseg.training.losses.instances import faces, owners


class Nodes(NamedTuple):
    """The instances of a batch that are nodes, numbered from 1 by crop and, in a crop, from the largest on.

    Attributes:
        ids: int64 (n, z, y, x), the node of each voxel; 0 is none.
        crop: int64 (nodes,), where each is.
        rank: int64 (nodes,), its number in its crop, from 0.
        weights: float32 (nodes,), how it counts.
        most: nodes of the crop that has most.
        crops: number that sums over crops are divided by; see `Batch.instanced`.
    """

    ids: Tensor
    crop: Tensor
    rank: Tensor
    weights: Tensor
    most: int
    crops: float | None = None

    @property
    def number(self) -> int:
        """Nodes in all."""
        return len(self.crop)

    def padded(self, values: Tensor) -> Tensor:
        """Return values of nodes, (nodes, ...), by crop, (n, most, ...), filled up with 0."""
        n = len(self.ids)
        filled = values.new_zeros(n * self.most, *values.shape[1:])
        slot = self.crop * self.most + self.rank
        return filled.index_add(0, slot, values).reshape(n, self.most, *values.shape[1:])

    def mean(self, values: Tensor, weights: Tensor) -> Tensor:
        """Return the mean over crops of the weighted mean of their nodes; see `crop_mean`.

        Args:
            values: float (nodes,).
            weights: float (nodes,), not negative.
        """
        return crop_mean(self.padded(values), self.padded(weights), self.crops)


def select_nodes(instances: Tensor, options: GraphRelationOptions, crops: float | None = None) -> Nodes:
    """Return the instances that are large enough, of each crop the largest ones (of equal size, by their number).

    Args:
        instances: int64 (n, z, y, x), numbered from 1 over the batch; 0 is none.
        options: `min_size`, `max_nodes`, `size_weight`.
        crops: number that sums over crops are divided by; see `Batch.instanced`.
    """
    count = int(instances.max()) if instances.numel() else 0
    flat, device = instances.reshape(-1), instances.device
    sizes, owner = torch.bincount(flat, minlength=count + 1)[1:], owners(instances, count)
    kept = (sizes >= options.min_size).nonzero()[:, 0]
    kept = kept[sizes[kept].argsort(descending=True, stable=True)]
    kept = kept[owner[kept].argsort(stable=True)]
    crop = owner[kept]
    first = torch.searchsorted(crop, torch.arange(len(instances), device=device))
    rank = torch.arange(len(kept), device=device) - first[crop]
    few = rank < options.max_nodes
    kept, crop, rank = kept[few], crop[few], rank[few]
    number = torch.zeros(count + 1, dtype=torch.int64, device=device)
    number[kept + 1] = torch.arange(1, len(kept) + 1, device=device)
    ids = number.index_select(0, flat).view(instances.shape)
    size = sizes[kept].float()
    weights = {"none": torch.ones_like(size), "sqrt": size.sqrt(), "linear": size}[options.size_weight]
    return Nodes(ids, crop, rank, weights, int(rank.max()) + 1 if len(rank) else 0, crops)


def contact_areas(nodes: Nodes) -> Tensor:
    """Return the voxel faces that the nodes of a crop share, float32 (n, most, most), symmetric."""
    n, most = len(nodes.ids), nodes.most
    a, b = (side - 1 for side in faces(nodes.ids))
    pair = (nodes.crop[a] * most + nodes.rank[a]) * most + nodes.rank[b]
    area = torch.bincount(pair, minlength=n * most * most).reshape(n, most, most).float()
    return area + area.transpose(1, 2)


def edge_distance(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    area: Tensor | None,
    options: GraphRelationOptions,
    crops: float | None = None,
) -> Tensor:
    """Return the mean squared difference of edges, the cosines of node pairs of a crop.

    Args:
        student: float (n, m, c), nodes, with gradient.
        teacher: float (n, m, d); d may differ from c.
        weights: float (n, m), not negative; 0 for what is not a node. A pair counts by the product.
        area: float (n, m, m), contact areas, for `rag` and `mixed`.
        options: `graph`, `neighbours`.
        crops: number that the sum over crops is divided by; see `Batch.instanced`.

    Returns:
        Scalar: mean over crops, without the diagonal; 0, with a gradient of 0, where there is no pair.
    """
    ours, theirs = normalize(student, dim=-1, eps=EPSILON), normalize(teacher, dim=-1, eps=EPSILON)
    target = theirs @ theirs.transpose(1, 2)
    error = (ours @ ours.transpose(1, 2) - target) ** 2
    pairs = weights[:, :, None] * weights[:, None, :]
    pairs = pairs * ~torch.eye(pairs.shape[1], dtype=torch.bool, device=pairs.device)
    if options.graph == "knn":
        return crop_mean(error, pairs * _nearest(target, pairs, options.neighbours), crops)
    if options.graph == "full" or area is None:
        return crop_mean(error, pairs, crops)
    touching = crop_mean(error, pairs * area, crops)
    return touching if options.graph == "rag" else (touching + crop_mean(error, pairs, crops)) / 2


def contact_distance(student: Tensor, teacher: Tensor, known: Tensor, nodes: Nodes, offsets: Offsets) -> Tensor:
    """Return the mean squared difference of the mean affinities over contacts, weighted by their area.

    Where a teacher has no embedding, a contact of two nodes is an edge: the mean affinity of the voxel pairs that
    it parts.

    Args:
        student: float32 (n, c, z, y, x), logits, with gradient.
        teacher: float32 (n, c, z, y, x), logits.
        known: bool (n, c, z, y, x), which of the teacher's count.
        nodes: of the crops.
        offsets: of the first channels, one voxel long each.

    Returns:
        Scalar: mean over crops; 0, with a gradient of 0, where nothing touches.
    """
    where, low, high = [], [], []
    for channel, offset in enumerate(offsets):
        here, there = pair_slices((nodes.ids.shape[1], nodes.ids.shape[2], nodes.ids.shape[3]), offset)
        a, b = nodes.ids[(slice(None), *here)], nodes.ids[(slice(None), *there)]
        n, z, y, x = ((a != b) & (a > 0) & (b > 0) & known[(slice(None), channel, *here)]).nonzero().unbind(1)
        low.append(torch.minimum(a[n, z, y, x], b[n, z, y, x]))
        high.append(torch.maximum(a[n, z, y, x], b[n, z, y, x]))
        where.append((n, torch.full_like(n, channel), z + here[0].start, y + here[1].start, x + here[2].start))
    index = tuple(torch.cat(parts) for parts in zip(*where, strict=True))
    pair, inverse, area = torch.unique(
        torch.cat(low) * (nodes.number + 1) + torch.cat(high), return_inverse=True, return_counts=True
    )
    difference = torch.sigmoid(student[index]) - torch.sigmoid(teacher[index])
    edges = difference.new_zeros(len(pair)).index_add(0, inverse, difference) / area
    first, second = pair // (nodes.number + 1) - 1, pair % (nodes.number + 1) - 1
    weights = area * nodes.weights[first] * nodes.weights[second]
    sums = edges.new_zeros(2, len(nodes.ids)).index_add(
        1, nodes.crop[first], torch.stack([weights * edges**2, weights.to(edges.dtype)])
    )
    return crop_sum(sums[0] / sums[1].clamp_min(EPSILON), sums[1] > 0, nodes.crops)


def probability_distance(
    student: Tensor, teacher: Tensor, known: Tensor, offsets: Offsets, *, balanced: bool = True
) -> Tensor:
    """Return the mean squared difference of probabilities, of pairs inside the crop.

    Args:
        student: float32 (n, c, z, y, x), logits, with gradient.
        teacher: float32 (n, c, z, y, x), logits.
        known: bool (n, c, z, y, x), which of the teacher's count.
        offsets: of the first channels.
        balanced: whether the pairs that the teacher cuts count as much as those that it joins; else all alike.
    """
    inside = torch.zeros_like(known[:, : len(offsets)])
    z, y, x = known.shape[2:]
    for channel, offset in enumerate(offsets):
        inside[(slice(None), channel, *pair_slices((z, y, x), offset)[0])] = True
    inside &= known[:, : len(offsets)]
    target = torch.sigmoid(teacher[:, : len(offsets)])
    error = (torch.sigmoid(student[:, : len(offsets)]) - target) ** 2
    return weighted_mean(error, balance(target > 0.5, inside) if balanced else inside.float(), len(error))


def crop_mean(values: Tensor, weights: Tensor, crops: float | None = None) -> Tensor:
    """Return the mean over crops of each one's weighted mean, of those that have any weight.

    Args:
        values: float (n, ...).
        weights: float (n, ...), not negative.
        crops: number to divide the sum over crops by; default: those that have any weight.

    Returns:
        Scalar; 0, with a gradient of 0, where all weights are 0.
    """
    total = weights.flatten(1).sum(1)
    mean = (values * weights).flatten(1).sum(1) / total.clamp_min(EPSILON)
    return crop_sum(mean, total > 0, crops)


def _nearest(cosines: Tensor, pairs: Tensor, neighbours: int) -> Tensor:
    """Return 1 for the pairs (i, j) of which j is among the nearest of i, else 0."""
    count = min(neighbours, max(cosines.shape[-1] - 1, 0))
    best = cosines.masked_fill(pairs <= 0, -torch.inf).topk(count, dim=-1).indices
    return torch.zeros_like(cosines).scatter_(-1, best, 1.0)
