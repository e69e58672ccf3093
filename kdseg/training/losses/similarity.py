"""Relations between channels, voxels and samples, and how far those of two networks are apart."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kdseg.errors import ShapeError
from kdseg.geometry import Triple
from kdseg.training.losses.base import EPSILON, weighted_mean

CHUNK = 4096
"""Voxels whose products are summed in float32."""


def channel_relations(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the mean squared difference between the cosines of all pairs of channels (CPKD).

    With each channel of a crop a unit vector over its voxels and ``R`` the C x C matrix of their cosines, it is
    ``|R_S - R_T|^2 / C^2``, the mean over crops.

    Args:
        ours: float32 (n, c, z, y, x).
        theirs: the same shape.

    Returns:
        Scalar in [0, 4].
    """
    s, t = (normalize(values.flatten(2), dim=2, eps=EPSILON) for values in (ours, theirs))
    return (s @ s.mT - t @ t.mT).square().mean()


def pixel_relations(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the mean squared difference between the cosines of all pairs of voxels (CPKD, SKD), exactly.

    With each voxel of a crop a unit vector over its channels, ``S`` and ``T`` of shape (c, P), it is
    ``|S'S - T'T|^2 / P^2``, the mean over crops. The P x P maps are never made: the squared norm is
    ``|SS'|^2 + |TT'|^2 - 2 |ST'|^2``, of c x c matrices. This is a small difference of large numbers, so that the
    matrices and all that is made of them are of float64; what rounding leaves below 0 is cut.

    Args:
        ours: float32 (n, c, z, y, x).
        theirs: float32 (n, any, z, y, x); the numbers of channels may differ.

    Returns:
        Scalar in [0, 4], float32.
    """
    s, t = (normalize(values.flatten(2), dim=1, eps=EPSILON) for values in (ours, theirs))
    within_s, within_t, between = (gram(a, b).square().sum((1, 2)) for a, b in ((s, s), (t, t), (s, t)))
    squares = (within_s + within_t - 2 * between).clamp_min(0)
    return (squares / s.shape[2] ** 2).mean().to(ours.dtype)


def gram(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a b'``, with products of float32 over 4096 voxels at a time, summed in float64.

    It is as fast as float32, and as exact as float64 for what a difference of two of them needs.

    Args:
        a: float32 (n, c, P).
        b: float32 (n, d, P).

    Returns:
        float64 (n, c, d).
    """
    chunks = a.shape[2] // CHUNK
    whole = chunks * CHUNK
    x, y = (v[..., :whole].reshape(*v.shape[:2], chunks, CHUNK).movedim(2, 1) for v in (a, b))
    rest: Tensor = a[..., whole:] @ b[..., whole:].mT
    return (x @ y.mT).double().sum(1) + rest.double()


def pearson_relations(ours: Tensor, theirs: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return one minus the correlation of two predictions, over channels and over voxels (DIST).

    It is computed as half the squared distance of the centred unit vectors, which is the same, never negative,
    and 0 without a gradient where the two agree. A vector that is constant has no direction and counts as 0:
    nothing against another such, one half against any other.

    Args:
        ours: float32 (n, c, z, y, x).
        theirs: the same shape.
        known: bool (n, c, z, y, x), what counts; None is all.

    Returns:
        Two scalars in [0, 2]: inter-class, over the channels of a voxel, the mean over the voxels with two or
        more known channels; intra-class, over the known voxels of a channel, the mean over channels that have
        any. Both are means over all crops, of which one without anything known has 0.
    """
    mask = torch.ones_like(ours, dtype=torch.bool) if known is None else known
    s, t, mask = ours.flatten(2), theirs.flatten(2), mask.flatten(2)
    inter, intra = (
        (_standard(s, mask, dim) - _standard(t, mask, dim)).square().sum(dim, keepdim=True) / 2 for dim in (1, 2)
    )
    voxels = mask.sum(1, keepdim=True) > 1
    channels = mask.any(2, keepdim=True)
    return (
        weighted_mean(inter[:, :, None, None], voxels[:, :, None, None].float(), len(s)),
        weighted_mean(intra[:, :, None, None], channels[:, :, None, None].float(), len(s)),
    )


def sample_relations(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the mean squared difference between the row-normalised similarities of samples (SPKD).

    With samples in the rows of ``Q``, the rows of ``QQ'`` are made unit vectors; ``|G_S - G_T|^2 / b^2``.

    Args:
        ours: float32 (b, any).
        theirs: float32 (b, any).

    Returns:
        Scalar in [0, 4].
    """
    return (_similarities(ours) - _similarities(theirs)).square().mean()


def samples(values: Tensor, parts: Triple) -> Tensor:
    """Return each crop cut into equal parts, float32 (n * parts, channels * voxels of a part).

    What is left over at the upper end of an axis is left out.

    Args:
        values: float32 (n, c, z, y, x).
        parts: number along (z, y, x), at most one per voxel.
    """
    blocks = in_blocks(values, _steps(values, parts), parts)
    return blocks.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(0, 3).flatten(1)


def block_mean(values: Tensor, pool: Triple) -> Tensor:
    """Return the means of blocks of ``pool`` voxels, float32 (n, c, z', y', x'); the remainder is left out.

    It is average pooling, whose gradient on CUDA would not be deterministic.

    Args:
        values: float32 (n, c, z, y, x).
        pool: extent in voxels, (z, y, x).

    Raises:
        ShapeError: if a block is larger than the array.
    """
    if pool == (1, 1, 1):
        return values
    z, y, x = (n // p for n, p in zip(values.shape[2:], pool, strict=True))
    if 0 in (z, y, x):
        raise ShapeError(f"features of {tuple(values.shape[2:])} voxels cannot be pooled by {pool}: use a smaller pool")
    return in_blocks(values, pool, (z, y, x)).mean((3, 5, 7))


def in_blocks(values: Tensor, step: Triple, count: Triple) -> Tensor:
    """Return ``values`` as (n, c, z, step, y, step, x, step), float32, without what is beyond ``count`` blocks.

    Args:
        values: float32 (n, c, z, y, x).
        step: extent of a block in voxels, (z, y, x).
        count: number of blocks, (z, y, x).
    """
    (z, y, x), (dz, dy, dx) = count, step
    cut = values[:, :, : z * dz, : y * dy, : x * dx]
    return cut.reshape(*values.shape[:2], z, dz, y, dy, x, dx)


def _steps(values: Tensor, parts: Triple) -> Triple:
    z, y, x = (n // p for n, p in zip(values.shape[2:], parts, strict=True))
    if 0 in (z, y, x):
        raise ShapeError(
            f"features of {tuple(values.shape[2:])} voxels cannot be cut into {parts} parts: use fewer parts, "
            "a finer level or larger crops"
        )
    return z, y, x


def _standard(values: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Return the known values less their mean, as unit vectors; 0 elsewhere."""
    mean = (values * mask).sum(dim, keepdim=True) / mask.sum(dim, keepdim=True).clamp_min(1)
    return normalize((values - mean) * mask, dim=dim, eps=EPSILON)


def _similarities(rows: Tensor) -> Tensor:
    # the scale of all rows together cancels; without it, squares of squares leave the range of float32
    rows = rows / rows.detach().abs().amax().clamp_min(EPSILON)
    return normalize(rows @ rows.mT, dim=1, eps=EPSILON)
