"""Outputs of a network that a term looks at, and their alignment between two networks."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, interpolate

from kdseg.config.terms import Tap
from kdseg.errors import ConfigError, ShapeError
from kdseg.networks.models import Outputs
from kdseg.training.losses.base import Context

Side = Literal["student", "teacher"]


def width(context: Context, side: Side, tap: Tap, term: str) -> int:
    """Return the number of channels of a tap.

    Args:
        context: of the run.
        side: whose.
        tap: a head or a decoder level.
        term: name for the error.

    Raises:
        ConfigError: if that network does not return it.
    """
    found = context.student if side == "student" else context.teacher
    if found is None:
        raise ConfigError(f"the term {term!r} needs a {side}")
    if isinstance(tap, str):
        if tap not in found.logits:
            raise ConfigError(f"the term {term!r} taps the {tap} of the {side}, which has only {sorted(found.logits)}")
        return found.logits[tap]
    if not found.features:
        raise ConfigError(
            f"the term {term!r} taps decoder level {tap} of the {side}, whose features are not stored: "
            "use `teaching.outputs: online`, or tap the affinities or the embedding"
        )
    if not -len(found.features) <= tap < len(found.features):
        raise ConfigError(
            f"the term {term!r} taps decoder level {tap} of the {side}, which has levels 0 to {len(found.features) - 1}"
        )
    return found.features[tap]


def widths(context: Context, tap: Tap, term: str) -> tuple[int, int]:
    """Return the channels of a tap of the student and of the teacher; see `width`."""
    return width(context, "student", tap, term), width(context, "teacher", tap, term)


def same_affinities(context: Context, term: str) -> None:
    """Check that both networks predict the same affinities.

    Raises:
        ConfigError: if their numbers of offsets differ.
    """
    ours, theirs = widths(context, "affinities", term)
    if ours != theirs:
        raise ConfigError(
            f"the term {term!r} compares affinities, of which the student has {ours} and the teacher {theirs}: "
            "give both networks the same offsets"
        )


def tapped(outputs: Outputs, tap: Tap) -> Tensor:
    """Return what a tap yields, float32 (n, c, z, y, x); see `width` for what is there."""
    found = outputs.logits[tap] if isinstance(tap, str) else outputs.features[tap]
    return found.float()


def both(student: Outputs, teacher: Outputs, tap: Tap) -> tuple[Tensor, Tensor]:
    """Return the student's and the teacher's tap on the student's grid, the teacher's without gradient."""
    ours = tapped(student, tap)
    return ours, aligned(tapped(teacher, tap).detach(), ours)


def aligned(values: Tensor, grid: Tensor) -> Tensor:
    """Return ``values`` on the grid of another tensor over the same field of view.

    Networks are same-padded, so that a level of another stride covers the same voxels: a finer grid is averaged,
    a coarser one interpolated linearly.

    Args:
        values: float32 (n, c, z, y, x).
        grid: (n, any, z', y', x').

    Raises:
        ShapeError: if the crops differ in number.
    """
    if len(values) != len(grid):
        raise ShapeError(f"expected as many crops from teacher and student, got {len(values)} and {len(grid)}")
    here, there = values.shape[2:], grid.shape[2:]
    if here == there:
        return values
    if all(h % t == 0 for h, t in zip(here, there, strict=True)):
        z, y, x = (h // t for h, t in zip(here, there, strict=True))
        return avg_pool3d(values, (z, y, x))
    return interpolate(values, size=there, mode="trilinear", align_corners=False)


def projector(channels: int, width: int, *, bias: bool = True) -> nn.Module:
    """Return a learned linear map of channels, 1x1x1; nothing where the numbers agree."""
    return nn.Identity() if channels == width else nn.Conv3d(channels, width, 1, bias=bias)
