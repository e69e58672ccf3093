"""Targets of a network from labels: affinities, boundary voxels, local shape descriptors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import pi, sqrt

import torch
from torch import Tensor

from kdseg.config.terms.supervised import Boundary
from kdseg.errors import ShapeError
from kdseg.geometry import Offsets, Slices, Triple, VoxelSize, pair_slices

REACH = 3
"""Windows, in `sigma`, beyond which a voxel hardly counts: 0.3 % of the weight along an axis."""


def affinities(
    labels: Tensor, offsets: Offsets, *, mask: Tensor | None = None, boundary: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the affinities of labels, and which of them are known.

    Channel ``c`` at voxel ``p`` is the pair of ``p`` and ``p + offsets[c]``.

    Args:
        labels: int64 (..., z, y, x), neuron ids; 0 is not a neuron.
        offsets: one (z, y, x) step in voxels per channel, of any sign and length.
        mask: bool (..., z, y, x), voxels whose labels count; default: where the label is not 0.
        boundary: bool (..., z, y, x), voxels that count as membrane: pairs that touch one are negative.

    Returns:
        target: bool (..., c, z, y, x), true where both ends carry the same label above 0.
        known: bool (..., c, z, y, x), true where both ends lie in the array and in the mask.
    """
    if mask is None:
        mask = labels > 0
    z, y, x = labels.shape[-3:]
    shape = (*labels.shape[:-3], len(offsets), z, y, x)
    target = torch.zeros(shape, dtype=torch.bool, device=labels.device)
    known = torch.zeros_like(target)
    for channel, offset in enumerate(offsets):
        here, there = ((..., *cut) for cut in pair_slices((z, y, x), offset))
        same = (labels[here] == labels[there]) & (labels[here] > 0)
        if boundary is not None:
            same &= ~(boundary[here] | boundary[there])
        target[(..., channel, *here[1:])] = same
        known[(..., channel, *here[1:])] = mask[here] & mask[there]
    return target, known


def boundary_axes(boundary: Boundary, voxel_size: VoxelSize, *, sections: bool = False) -> str | None:
    """Return the axes of the window of `boundary_voxels` by the option ``boundary`` of a term; None for no membrane.

    Args:
        boundary: ``"auto"``, ``"none"``, ``"yx"`` or ``"zyx"``.
        voxel_size: nm, (z, y, x); ``"auto"`` leaves z out where it is coarser.
        sections: whether each is an image of its own, so that there is nothing between two.
    """
    if boundary == "none":
        return None
    if sections:
        return "yx"
    if boundary == "auto":
        return "zyx" if voxel_size[0] <= 1.5 * max(voxel_size[1:]) else "yx"
    return boundary


def boundary_voxels(labels: Tensor, axes: str, width: int = 1) -> Tensor:
    """Return the voxels whose window of ``2 * width + 1`` voxels per axis holds two different ids; 0 is not an id.

    Ground truth whose neurons touch leaves no room for the membrane that is in the image; this gives it some
    voxels on either side of each contact.

    Args:
        labels: int64 (..., z, y, x).
        axes: ``"yx"`` or ``"zyx"``, the axes of the window; the label of ``p`` itself need not be above 0.
        width: voxels on either side.

    Returns:
        bool (..., z, y, x).
    """
    low = torch.where(labels > 0, labels, torch.iinfo(labels.dtype).max)
    high = labels
    for axis in axes * width:
        dim = labels.ndim - 3 + "zyx".index(axis)
        low, high = _widen(low, dim, torch.minimum), _widen(high, dim, torch.maximum)
    return (low < high) & (high > 0)


def boundary_distance(labels: Tensor, axes: str, most: int, counted: Tensor) -> Tensor:
    """Return how far voxels are from another object: the least radius of a cube around each that holds two ids.

    Args:
        labels: int64 (..., z, y, x).
        axes: ``"yx"`` or ``"zyx"``, the axes of the cube.
        most: voxels, up to which it is looked for.
        counted: bool (..., z, y, x), voxels whose ids count, 0 as any other.

    Returns:
        uint8 (..., z, y, x), voxels from 1 on; ``most + 1`` where it is more.
    """
    limits = torch.iinfo(labels.dtype)
    low, high = torch.where(counted, labels, limits.max), torch.where(counted, labels, limits.min)
    distance = torch.full_like(labels, most + 1, dtype=torch.uint8)
    for _ in range(most):
        for axis in axes:
            dim = labels.ndim - 3 + "zyx".index(axis)
            low, high = _widen(low, dim, torch.minimum), _widen(high, dim, torch.maximum)
        distance -= (low < high).to(torch.uint8)
    return distance


def local_shape_descriptors(
    labels: Tensor, voxel_size: VoxelSize, sigma: float, core: Slices | None = None
) -> tuple[Tensor, Tensor]:
    """Return the local shape descriptors of Sheridan et al. 2022 (Nature Methods), all in [0, 1].

    They are moments of the part of a neuron that a Gaussian window around a voxel of it sees: with weights
    ``w(q) = exp(-|q - p|^2 / 2 sigma^2)`` over the voxels ``q`` that carry the label of ``p``, the mean of
    ``q - p``, its variances and correlations, and the sum of ``w`` relative to a window full of one neuron.
    Only voxels of the array count: let it reach beyond the core by `REACH` windows.

    The window is separable, but the mask of a label is not, so each label is convolved within its bounding
    box, as products with dense Gaussian matrices, and in coordinates relative to ``p``, which float32 bears.

    Args:
        labels: int64 (z, y, x), neuron ids; 0 is not a neuron.
        voxel_size: nm, (z, y, x).
        sigma: nm, width of the window.
        core: the voxels to describe; default: all.

    Returns:
        descriptors: float32 (10, z, y, x) of the core: mean offset z, y, x (0.5 is none, 1 is 1 sigma up), variance
            z, y, x (in sigma squared, at most 1), correlation zy, zx, yx (0.5 is none), size.
        known: bool (z, y, x), where the label is not 0.

    Raises:
        ShapeError: if the labels are not 3-dimensional.
    """
    if labels.ndim != 3:
        raise ShapeError(f"labels must be (z, y, x), got the shape {tuple(labels.shape)}")
    core = core or (slice(0, labels.shape[0]), slice(0, labels.shape[1]), slice(0, labels.shape[2]))
    known = labels[core] > 0
    result = torch.zeros((10, *known.shape), device=labels.device)
    kernels = [_moments(n, v / sigma, labels.device) for n, v in zip(labels.shape, voxel_size, strict=True)]
    full = sqrt(2 * pi) ** 3 * sigma**3 / (voxel_size[0] * voxel_size[1] * voxel_size[2])
    for part, box in _boxes(labels):
        both = [(max(b.start, c.start), min(b.stop, c.stop), b, c) for b, c in zip(box, core, strict=True)]
        if any(first >= last for first, last, _, _ in both):
            continue
        # weights depend on distances alone: the box begins at 0
        cut = [
            k[:, first - b.start : last - b.start, : b.stop - b.start]
            for k, (first, last, b, _) in zip(kernels, both, strict=True)
        ]
        here = tuple(slice(first - b.start, last - b.start) for first, last, b, _ in both)
        view = result[(slice(None), *(slice(first - c.start, last - c.start) for first, last, _, c in both))]
        view += torch.where(part[here], _describe(part, cut, full), 0.0)
    return result, known


def _widen(values: Tensor, dim: int, extreme: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    out = values.clone()
    n = values.shape[dim]
    if n > 1:
        for a, b in ((0, 1), (1, 0)):
            target = out.narrow(dim, a, n - 1)
            target.copy_(extreme(target, values.narrow(dim, b, n - 1)))
    return out


def _moments(n: int, step: float, device: torch.device) -> Tensor:
    """Return (3, n, n): ``K[k, p, q]`` is the Gaussian weight of ``q`` seen from ``p``, times distance to the k."""
    position = torch.arange(n, device=device, dtype=torch.float32) * step
    distance = position[None, :] - position[:, None]
    weight = torch.exp(-(distance**2) / 2)
    return torch.stack([weight, weight * distance, weight * distance**2])


def _boxes(labels: Tensor) -> Iterator[tuple[Tensor, Slices]]:
    """Yield (bool mask within the bounding box, bounding box) of each label above 0."""
    ids, index = torch.unique(labels, return_inverse=True)
    spans = []
    for axis in range(3):
        n = labels.shape[axis]
        shape = [n if a == axis else 1 for a in range(3)]
        coordinate = torch.arange(n, device=labels.device).reshape(shape).expand_as(labels)
        present = torch.zeros((len(ids), n), dtype=torch.uint8, device=labels.device)
        present[index.flatten(), coordinate.flatten()] = 1
        first = present.argmax(dim=1)
        last = n - present.flip(1).argmax(dim=1)
        spans.append(torch.stack([first, last], dim=1).tolist())
    for number, label in enumerate(ids.tolist()):
        if label > 0:
            z, y, x = (slice(*span[number]) for span in spans)
            yield index[z, y, x] == number, (z, y, x)


def _describe(part: Tensor, kernels: list[Tensor], full: float) -> Tensor:
    in_z, in_y, in_x = kernels
    flat = part.float().reshape(part.shape[0], -1)
    moment: dict[Triple, Tensor] = {}
    for i in range(3):
        after_z = (in_z[i] @ flat).reshape(-1, *part.shape[1:])
        for j in range(3 - i):
            after_y = in_y[j] @ after_z
            for k in range(3 - i - j):
                moment[i, j, k] = after_y @ in_x[k].T
    mass = moment[0, 0, 0].clamp_min(1e-12)
    mean = torch.stack([moment[1, 0, 0], moment[0, 1, 0], moment[0, 0, 1]]) / mass
    square = torch.stack([moment[2, 0, 0], moment[0, 2, 0], moment[0, 0, 2]]) / mass
    mixed = torch.stack([moment[1, 1, 0], moment[1, 0, 1], moment[0, 1, 1]]) / mass
    variance = (square - mean**2).clamp_min(0)
    pairs = ((0, 1), (0, 2), (1, 2))  # not as a list of indices, for which a GPU would be waited for
    spread = torch.stack([variance[a] * variance[b] for a, b in pairs]).sqrt()
    covariance = mixed - torch.stack([mean[a] * mean[b] for a, b in pairs])
    # a section or a thread one voxel thick has no correlation across it
    correlation = torch.where(spread > 1e-4, covariance / spread.clamp_min(1e-4), 0.0)
    parts = [mean / 2 + 0.5, variance, correlation / 2 + 0.5, mass[None] / full]
    return torch.cat(parts).clamp(0, 1)
