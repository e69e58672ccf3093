"""Instance means, pair cosines and distances of two fields of vectors, in one pass over their voxels.

Means of instances, cosines of voxel pairs and distances in the metric of a memory share what is dear: to bring the
values to float32, to normalise them, and to write one gradient. Crops are gone through in slabs along z that fit
the cache, as rows (z, y, x, c), the memory in which networks return them::

    values, bf16 or float32 --+--> slab of rows --> sums of instances --> unit rows --> cosines, distances
                              |      ^ keeps the last planes of the slab before, for pairs along z
                              +--> gradient, once
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdseg.errors import ShapeError
from kdseg.geometry import Offsets, Slices, Triple, pair_slices
from kdseg.training.losses.base import EPSILON, balanced_squares
from kdseg.training.losses.instances import look_up, members, sums

_SLAB = 2**19
"""Numbers in a slab on a CPU: 2 MiB."""


class Compared(NamedTuple):
    """Result of `compare`, float32 (float64 if the student's values are).

    Attributes:
        student: (count, c), means of the instances, with gradient; 0 where an instance has no voxel.
        teacher: (count, d), without gradient.
        affinity: scalar, with gradient: class-balanced squared difference of the cosines of voxel pairs.
        distance: scalar, with gradient: mean over voxels of the squared distance of unit vectors in the metric.
        second: (d, d), without gradient: sum over voxels of the products of the teacher's unit vectors.
        sizes: int64 (count,), voxels of the instances.
        voxels: int64 scalar, voxels that count in the distance.
    """

    student: Tensor
    teacher: Tensor
    affinity: Tensor
    distance: Tensor
    second: Tensor
    sizes: Tensor
    voxels: Tensor


class _Plan(NamedTuple):
    """Parts of a comparison to compute: means of instances, cosines of pairs (z not above 0), distances."""

    number: int
    offsets: Offsets
    metric: Tensor | None
    balanced: bool

    @property
    def reach(self) -> int:
        return max((-z for z, _, _ in self.offsets), default=0)

    @property
    def unit(self) -> bool:
        return bool(self.offsets) or self.metric is not None


def compare(
    student: Tensor,
    teacher: Tensor,
    *,
    instances: Tensor | None = None,
    count: int = 0,
    offsets: Offsets = (),
    metric: Tensor | None = None,
    balanced: bool = True,
) -> Compared:
    """Compare two fields of vectors over the same voxels; what is not asked for is 0 or empty.

    The affinity part is, for each offset and crop, the weighted mean of ``(cos_S - cos_T)^2`` over the voxel pairs
    inside the crop, where the pairs that the teacher joins (cosine above 0.5) and those that it cuts weigh as in
    `base.balance`; then the mean over offsets and crops (affinity graph distillation, Liu et al., arXiv
    2401.06370). The distance is ``mean_p d_p' M d_p = tr(M sum_p d_p d_p') / P``, with ``d_p`` the difference of the
    unit vectors at voxel ``p`` and ``M`` the metric. Where the teacher's vector is 0, a voxel shows nothing that it
    knows: it counts neither in pairs nor in the distance.

    Args:
        student: float (n, c, z, y, x), differentiable; channels-last memory is fastest.
        teacher: float (n, d, z, y, x); d may differ from c where there is no metric.
        instances: int64 (n, z, y, x) in [0, count].
        count: of instances.
        offsets: (z, y, x) steps between the voxels of a pair, in voxels of this grid.
        metric: float (d, d), symmetric.
        balanced: whether pairs that the teacher joins and that it cuts weigh as said; else all alike.

    Raises:
        ShapeError: if the two do not cover the same voxels, or differ in width where there is a metric.
    """
    if (len(student), *student.shape[2:]) != (len(teacher), *teacher.shape[2:]):
        raise ShapeError(
            "expected vectors of student and teacher at the same voxels, "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    if metric is not None and student.shape[1] != teacher.shape[1]:
        raise ShapeError(
            f"a metric needs vectors of one width, got {student.shape[1]} channels of the student and "
            f"{teacher.shape[1]} of the teacher: project the student's first"
        )
    # A cosine is symmetric: the pair (p, p + o) is (q, q - o).
    down = [(-z, -y, -x) if z > 0 else (z, y, x) for z, y, x in offsets]
    inside = tuple(o for o in down if all(abs(d) < n for d, n in zip(o, student.shape[2:], strict=True)))
    plan = _Plan(0 if instances is None else count, inside, metric, balanced)
    found = _Compare.apply(student, teacher.detach(), instances, plan)  # type: ignore[no-untyped-call]
    return Compared(*found)


class _Window:
    """Rows of the slab of a crop that is looked at, and of as many planes before it as pairs reach."""

    def __init__(self, values: Tensor, reach: int, dtype: torch.dtype) -> None:
        c, z, y, x = values.shape
        self.values, self.reach = values, reach
        self.size = z if values.is_cuda else min(max(_SLAB // (c * y * x), 1), z)
        self.rows = torch.zeros((reach + self.size, y, x, c), dtype=dtype, device=values.device)
        self.low = self.high = 0

    def slabs(self) -> Iterator[tuple[int, int]]:
        """Yield first plane and end of each slab; the window is moved there."""
        for low in range(0, self.values.shape[1], self.size):
            self.move(low)
            yield self.low, self.high

    def move(self, low: int) -> None:
        """Move to a slab, behind the one before; its new rows are what they were."""
        if low and self.reach:
            self.rows[: self.reach] = self.rows[self.size : self.size + self.reach].clone()
        self.low, self.high = low, min(low + self.size, self.values.shape[1])

    def load(self) -> Tensor:
        """Return the rows of the slab, (z, y, x, c), filled with the values."""
        return self.planes(self.low, self.high).copy_(self.values[:, self.low : self.high].movedim(0, -1))

    def planes(self, low: int, high: int) -> Tensor:
        """Return rows of planes of the slab, or up to ``reach`` before it."""
        return self.rows[low - self.low + self.reach : high - self.low + self.reach]

    def pairs(self, offset: Triple) -> tuple[Tensor, Tensor]:
        """Return the rows of all pairs whose first voxel lies in the slab."""
        (z, *here), (_, *there) = self.cut(offset)
        return (
            self.planes(z.start, z.stop)[(slice(None), *here)],
            self.planes(z.start + offset[0], z.stop + offset[0])[(slice(None), *there)],
        )

    def cut(self, offset: Triple) -> tuple[Slices, Slices]:
        """Return where in the crop those pairs are."""
        _, z, y, x = self.values.shape
        here, there = pair_slices((z, y, x), offset)
        low = min(max(self.low, -offset[0]), self.high)
        span = slice(low, self.high)
        return (span, here[1], here[2]), (slice(low + offset[0], self.high + offset[0]), there[1], there[2])


class _Compare(torch.autograd.Function):
    """The comparison and its gradient, each one pass."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, instances: Tensor | None, plan: _Plan) -> Any:
        dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
        n, c, *space = student.shape
        d = teacher.shape[1]
        zeros = torch.zeros((), dtype=dtype, device=student.device).new_zeros
        ours, theirs, gram, second = zeros(plan.number, c), zeros(plan.number, d), zeros(d, d), zeros(d, d)
        sizes = torch.zeros(plan.number, dtype=torch.int64, device=student.device)
        scales = zeros(2, n, *space) if plan.unit else zeros(2, n, 0)
        pull, affinity = zeros(n, len(plan.offsets), *space), zeros(())
        for crop in range(n):
            s, t = (_Window(values[crop], plan.reach, dtype) for values in (student, teacher))
            joined = torch.zeros((len(plan.offsets), *space), dtype=torch.bool, device=student.device)
            t.size = s.size = min(s.size, t.size)
            for low, high in s.slabs():
                t.move(low)
                rows, target = s.load(), t.load()
                if instances is not None and plan.number:
                    voxels = members(instances[crop, low:high], plan.number)
                    sizes += voxels.sizes
                    ours += sums(rows.view(-1, c), voxels)
                    theirs += sums(target.view(-1, d), voxels)
                if plan.unit:
                    scales[0, crop, low:high] = _normalise(rows)
                    scales[1, crop, low:high] = _normalise(target)
                _cosines(s, t, plan.offsets, pull[crop], joined)
                if plan.metric is not None:
                    delta = (rows - target).mul_(_shown(scales[1, crop, low:high])[..., None]).view(-1, d)
                    gram.addmm_(delta.T, delta)
                    second.addmm_(target.view(-1, d).T, target.view(-1, d))
            shown = _shown(scales[1, crop])
            for number, offset in enumerate(plan.offsets):
                affinity += balanced_squares(pull[crop, number], joined[number], shown, offset, balanced=plan.balanced)
        ctx.plan, ctx.dtype = plan, dtype
        there = _shown(scales[1]).count_nonzero()
        ctx.cases, ctx.voxels = max(n * len(plan.offsets), 1), there.clamp_min(1)
        share = sizes.clamp_min(1).to(dtype).reciprocal()[:, None]
        distance = zeros(()) if plan.metric is None else (gram * plan.metric).sum() / ctx.voxels
        ctx.save_for_backward(student, teacher, instances, scales, pull, share)
        theirs = theirs * share
        ctx.mark_non_differentiable(theirs, second, sizes, there)
        return ours * share, theirs, affinity / ctx.cases, distance, second, sizes, there

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        student, teacher, instances, scales, pull, share = ctx.saved_tensors
        plan: _Plan = ctx.plan
        to_means, _, to_affinity, to_distance, *_ = gradients
        table = to_means * share
        if not plan.unit:
            field = look_up(table, instances) if plan.number else torch.zeros_like(student).movedim(1, -1)
            return field.to(student.dtype).movedim(-1, 1), None, None, None
        push = None if plan.metric is None else plan.metric.to(ctx.dtype) * (2 * to_distance / ctx.voxels)
        strength = to_affinity / ctx.cases
        result = torch.empty_like(student)
        for crop in range(len(student)):
            s, t, g = (_Window(values[crop], plan.reach, ctx.dtype) for values in (student, teacher, student))
            t.size = s.size = g.size = min(s.size, t.size)
            for low, high in s.slabs():
                t.move(low)
                g.move(low)
                rows = s.load().mul_(scales[0, crop, low:high, ..., None])
                slope = g.planes(low, high).zero_()
                _pull(g, s, plan.offsets, pull[crop], strength)
                if push is not None:
                    delta = rows - t.load().mul_(scales[1, crop, low:high, ..., None])
                    delta.mul_(_shown(scales[1, crop, low:high])[..., None])
                    slope.view(-1, slope.shape[-1]).addmm_(delta.view(-1, delta.shape[-1]), push)
                first, end = max(low - plan.reach, 0), high if high == student.shape[2] else high - plan.reach
                if first >= end:
                    continue
                done = _through_unit(g.planes(first, end), s.planes(first, end), scales[0, crop, first:end])
                if plan.number:
                    done += look_up(table, instances[crop, first:end])
                result[crop, :, first:end] = done.movedim(-1, 0)
        return result, None, None, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the products of rows, without the last axis."""
    product = a * b
    if product.is_cuda:
        return product.sum(-1)
    # on a CPU several times as fast as to sum rows of few numbers
    return torch.mv(product.view(-1, product.shape[-1]), product.new_ones(product.shape[-1])).view(product.shape[:-1])


def _normalise(rows: Tensor) -> Tensor:
    """Divide rows by their length, in place, and return what they were multiplied by."""
    scale = _dot(rows, rows).clamp_min_(EPSILON**2).rsqrt_()
    rows.mul_(scale[..., None])
    return scale


def _through_unit(slope: Tensor, unit: Tensor, scale: Tensor) -> Tensor:
    """Return the gradient by vectors from that by their unit vectors, in place; too short ones are only scaled."""
    along = _dot(slope, unit)
    along[scale >= 1 / EPSILON] = 0
    return slope.addcmul_(unit, along[..., None], value=-1).mul_(scale[..., None])


def _cosines(s: _Window, t: _Window, offsets: Offsets, difference: Tensor, joined: Tensor) -> None:
    """Write the differences of the cosines of the slab's pairs, and which of them the teacher joins."""
    for number, offset in enumerate(offsets):
        here = s.cut(offset)[0]
        target = _dot(*t.pairs(offset))
        joined[number][here] = target > 0.5
        difference[number][here] = _dot(*s.pairs(offset)) - target


def _pull(g: _Window, s: _Window, offsets: Offsets, pull: Tensor, strength: Tensor) -> None:
    """Add the gradient of the affinity part by the unit vectors of the slab's pairs."""
    for number, offset in enumerate(offsets):
        force = (pull[number][s.cut(offset)[0]] * strength)[..., None]
        (slope_here, slope_there), (here, there) = g.pairs(offset), s.pairs(offset)
        slope_here.addcmul_(there, force)
        slope_there.addcmul_(here, force)


def _shown(scale: Tensor) -> Tensor:
    """Return which vectors are not 0, by what they were multiplied by."""
    return scale < 0.5 / EPSILON
