"""Sums over the instances of a batch: one pass over the voxels, no loop over instances.

Instances are numbered from 1 over the whole batch, each in one crop; 0 is none (`models.Batch.instances`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from kdseg.errors import ConfigError, ShapeError
from kdseg.geometry import Triple, pair_slices
from kdseg.networks.models import Batch

_CHUNK = 1024
"""Most voxels that are added one after the other: longer sums lose digits in float32."""


class Members(NamedTuple):
    """The voxels of each instance, as `members` finds them.

    Attributes:
        order: int64 (voxels,), positions of all voxels sorted by instance, those of none first.
        bounds: int64 (count + 2,), where in ``order`` each instance starts, 0 for those of none, and the end.
    """

    order: Tensor
    bounds: Tensor

    @property
    def sizes(self) -> Tensor:
        """Voxels of each instance, int64 (count,)."""
        return self.bounds.diff()[1:]


def given(batch: Batch, term: str) -> Tensor:
    """Return the instances of a batch, int64 (n, z, y, x).

    Raises:
        ConfigError: if there are none.
    """
    if batch.instances is None:
        raise ConfigError(
            f"the term {term!r} needs the instances of each crop, and the batch has none: let the loader number "
            "them (Batch.instances), as it does for terms whose options say `instances_used`"
        )
    return batch.instances


def members(instances: Tensor, count: int) -> Members:
    """Return which voxels belong to each instance.

    Args:
        instances: int64 (...) in [0, count].
        count: number of instances.
    """
    # A radix sort of short keys costs a third of one of int64.
    narrow = torch.int16 if count < 2**15 - 1 else torch.int32
    keys, order = instances.reshape(-1).to(narrow).sort(stable=True)
    first = torch.arange(count + 2, dtype=narrow, device=instances.device)
    return Members(order, torch.searchsorted(keys, first))


def sums(rows: Tensor, voxels: Members) -> Tensor:
    """Return the sum of the rows of each instance, (count, c), without gradient.

    Args:
        rows: float32 or float64 (voxels, c).
        voxels: of each instance.
    """
    order, bounds = voxels
    count = len(bounds) - 2
    total = rows.new_zeros(count + 1, rows.shape[1])
    if not len(order) or not count:
        return total[1:]
    chunks = torch.arange(0, len(order), _CHUNK, device=rows.device)
    # A chunk ends where the next one starts, so that of equal starts only the last one holds anything.
    starts = torch.cat([bounds[:-1], chunks]).sort().values
    owner = torch.searchsorted(bounds[1:-1], starts, right=True)
    return total.index_add_(0, owner, embedding_bag(order, rows, starts, mode="sum"))[1:]


def instance_means(values: Tensor, instances: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the mean of each instance and its size (Liu et al., arXiv 2401.06370: the nodes v_i of a graph).

    Voxels are sorted by instance, once, and added in rows (z, y, x, c), fastest where the values are in
    channels-last memory, as networks return them. The gradient looks up the instance of each voxel.

    Args:
        values: float (n, c, z, y, x), differentiable.
        instances: int64 (n, z, y, x) in [0, count]; 0 is none.
        count: number of instances.

    Returns:
        means: float32 (count, c), or float64 if the values are; 0 where an instance has no voxel.
        sizes: int64 (count,), voxels.

    Raises:
        ShapeError: if the two do not cover the same voxels.
    """
    if (len(values), *values.shape[2:]) != tuple(instances.shape):
        raise ShapeError(
            "expected values (n, c, z, y, x) and instances (n, z, y, x) of the same voxels, "
            f"got {tuple(values.shape)} and {tuple(instances.shape)}"
        )
    if values.dtype != torch.float64:
        values = values.float()
    voxels = members(instances, count)
    means: Tensor = _Means.apply(values, instances, voxels)  # type: ignore[no-untyped-call]
    return means, voxels.sizes


class _Means(torch.autograd.Function):
    """Means of rows, whose gradient is a look-up."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, instances: Tensor, voxels: Members) -> Tensor:
        scale = voxels.sizes.clamp_min(1).to(values.dtype).reciprocal()[:, None]
        ctx.save_for_backward(instances, scale)
        return sums(values.movedim(1, -1).reshape(-1, values.shape[1]), voxels) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        instances, scale = ctx.saved_tensors
        return look_up(gradients[0] * scale, instances).movedim(-1, 1), None, None


def look_up(table: Tensor, instances: Tensor) -> Tensor:
    """Return what a table says of the instance of each voxel, 0 for those of none.

    Args:
        table: (count, c).
        instances: int64 (...) in [0, count].

    Returns:
        (..., c).
    """
    full = torch.cat([table.new_zeros(1, table.shape[1]), table])
    return full.index_select(0, instances.reshape(-1)).reshape(*instances.shape, table.shape[1])


def owners(instances: Tensor, count: int) -> Tensor:
    """Return the number of the crop that each instance lies in, int64 (count,); -1 for those without a voxel.

    Args:
        instances: int64 (n, z, y, x) in [0, count], no instance in two crops.
        count: number of instances.
    """
    n = len(instances)
    crop = torch.arange(n, device=instances.device).repeat_interleave(instances[0].numel())
    found = torch.full((count + 1,), -1, dtype=torch.int64, device=instances.device)
    return found.scatter_(0, instances.reshape(-1), crop)[1:]


def faces(instances: Tensor) -> tuple[Tensor, Tensor]:
    """Return the instances on the two sides of each voxel face that parts two of them.

    Args:
        instances: int64 (n, z, y, x); 0 is none.

    Returns:
        Two of int64 (faces,), above 0.
    """
    ids = instances.reshape(-1)
    y, x = instances.shape[2:]
    ends, starts = [], []
    for axis, step in enumerate((y * x, x, 1)):
        differ = torch.zeros_like(instances, dtype=torch.bool)
        here, there = _neighbours(instances)[axis]
        torch.ne(here, there, out=_neighbours(differ)[axis][0])
        # few faces lie between two ids: all else is done for those alone
        at = differ.reshape(-1).nonzero()[:, 0]
        ends.append(ids[at])
        starts.append(ids[at - step])
    end, start = torch.cat(ends), torch.cat(starts)
    both = (end > 0) & (start > 0)
    return end[both], start[both]


def contacts(instances: Tensor, count: int) -> Tensor:
    """Return the contact areas of all pairs of instances, int64 (count, count), symmetric, diagonal 0.

    Args:
        instances: int64 (n, z, y, x) in [0, count]; 0 touches nothing.
        count: number of instances.

    Returns:
        Number of voxel faces that two instances share.
    """
    end, start = faces(instances)
    area = torch.bincount((end - 1) * count + start - 1, minlength=count * count).reshape(count, count)
    return area + area.T


def core(instances: Tensor) -> Tensor:
    """Return the instances without the voxels that have a neighbour, of the six, that belongs to no or another one.

    Args:
        instances: int64 (n, z, y, x). A voxel at the border of the crop is judged by the neighbours it has.

    Returns:
        int64 (n, z, y, x), 0 where a voxel was taken off.
    """
    inner = torch.ones_like(instances, dtype=torch.bool)
    for (here, there), (a, b) in zip(_neighbours(instances), _neighbours(inner), strict=True):
        same = here == there
        a &= same
        b &= same
    return torch.where(inner, instances, 0)


def at_level(instances: Tensor, shape: Triple) -> Tensor:
    """Return the instances on a coarser grid over the same field of view: those at the middle of its voxels.

    Args:
        instances: int64 (n, z, y, x).
        shape: of the coarser grid; divides that of the instances.

    Returns:
        int64 (n, *shape).

    Raises:
        ShapeError: if it does not divide.
    """
    if any(n % s for n, s in zip(instances.shape[1:], shape, strict=True)):
        raise ShapeError(f"instances of {tuple(instances.shape[1:])} voxels cannot be put on a grid of {tuple(shape)}")
    z, y, x = (n // s for n, s in zip(instances.shape[1:], shape, strict=True))
    return instances[:, z // 2 :: z, y // 2 :: y, x // 2 :: x]


def _neighbours(values: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return views of all pairs of voxels that share a face, by axis."""
    z, y, x = values.shape[1:]
    cuts = [pair_slices((z, y, x), offset) for offset in ((-1, 0, 0), (0, -1, 0), (0, 0, -1))]
    return [(values[(slice(None), *here)], values[(slice(None), *there)]) for here, there in cuts]
