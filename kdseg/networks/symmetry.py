"""A crop, and the symmetries of the voxel grid."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import DataError
from kdseg.geometry import Offsets, Triple, pair_slices


class Crop(NamedTuple):
    """A training sample before it becomes tensors.

    Attributes:
        raw: float32 (z, y, x) in [-1, 1].
        labels: int64 (z, y, x), neuron ids; 0 is not a neuron.
        mask: bool (z, y, x), voxels whose labels count.
        places: int64 (z, y, x), the voxel of the crop, before it was deformed, that each one shows, as an index into
            the flattened array; ``~index`` of a voxel near by where nothing is shown. None: each shows itself.
    """

    raw: NDArray[np.float32]
    labels: NDArray[np.int64]
    mask: NDArray[np.bool_]
    places: NDArray[np.int64] | None = None


class Symmetry(NamedTuple):
    """A symmetry of the grid: axis ``i`` of the result is axis ``axes[i]`` of the source, reversed if ``flip[i]``."""

    axes: Triple
    flip: tuple[bool, bool, bool]

    def before(self, step: Triple) -> Triple:
        """Return what a step between voxels was before they moved."""
        source = [0, 0, 0]
        for axis, length, flip in zip(self.axes, step, self.flip, strict=True):
            source[axis] = -length if flip else length
        return (source[0], source[1], source[2])

    @property
    def inverse(self) -> Symmetry:
        """The symmetry that undoes this one."""
        order = [self.axes.index(axis) for axis in range(3)]
        flips = [self.flip[axis] for axis in order]
        return Symmetry((order[0], order[1], order[2]), (flips[0], flips[1], flips[2]))

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the last three axes of an array transformed, as a view."""
        lead = array.ndim - 3
        moved = array.transpose(*range(lead), *(lead + axis for axis in self.axes))
        # an axis of one voxel would keep the negative stride, even in a contiguous copy; torch takes none
        steps = (-1 if flip and n > 1 else 1 for flip, n in zip(self.flip, moved.shape[lead:], strict=True))
        z, y, x = (slice(None, None, step) for step in steps)
        return moved[..., z, y, x]


def symmetries(shape: Triple, flip: bool, rotate: Literal["none", "yx", "zyx"]) -> list[Symmetry]:
    """Return the symmetries that keep ``shape``, the identity first.

    Args:
        shape: extent of the crop; axes of different length are never exchanged.
        flip: whether mirror images and a reversed z are allowed.
        rotate: quarter turns of no, the last two, or all axes.
    """
    found = []
    for axes, (z, y, x) in product(permutations(range(3)), product((False, True), repeat=3)):
        first, second, third = axes
        keeps_shape = all(shape[axis] == n for axis, n in zip(axes, shape, strict=True))
        turns = axes == (0, 1, 2) or rotate == "zyx" or (rotate == "yx" and first == 0)
        parity = (first > second) + (first > third) + (second > third) + z + y + x
        proper = parity % 2 == 0 and rotate != "none" and (rotate == "zyx" or not z)
        identity = axes == (0, 1, 2) and not (z or y or x)
        if keeps_shape and turns and (flip or proper or identity):
            found.append(Symmetry((first, second, third), (z, y, x)))
    return found


def channel_plan(offsets: Offsets, symmetry: Symmetry) -> list[tuple[int, Triple | None]]:
    """Return where each channel of transformed affinities comes from.

    Affinities belong to pairs, not to voxels: exchanging axes exchanges channels, and reversing an axis turns
    the pair ``(p, p + o)`` into one whose other end is the reference, so that the channel also moves by ``o``.

    Args:
        offsets: one (z, y, x) step in voxels per channel.
        symmetry: how the voxels move.

    Returns:
        For each channel, the channel before the symmetry, and the step that it has to be shifted by before its
        voxels move: what stands at ``p + step`` belongs to ``p``. None: it stays.

    Raises:
        DataError: if the transformed offsets are not the old ones up to sign.
    """
    index = {offset: channel for channel, offset in enumerate(offsets)}
    plan: list[tuple[int, Triple | None]] = []
    for offset in offsets:
        before = symmetry.before(offset)
        opposite = (-before[0], -before[1], -before[2])
        if before in index:
            plan.append((index[before], None))
        elif opposite in index:
            plan.append((index[opposite], before))
        else:
            raise DataError(f"offset {offset} becomes {before} under {symmetry}, which has no channel: got {offsets}")
    return plan


def transform_affinities(
    affinities: NDArray[Any], offsets: Offsets, symmetry: Symmetry, fill: float = 0
) -> NDArray[Any]:
    """Return the affinities of a volume after a symmetry, from the affinities before it; see `channel_plan`.

    Args:
        affinities: (c, z, y, x), any type.
        offsets: one (z, y, x) step in voxels per channel.
        symmetry: how the voxels move.
        fill: value of pairs that were not stored because their old reference lay outside.

    Returns:
        (c, z', y', x'), in the order of ``offsets``.
    """
    return np.stack(
        [
            symmetry.apply(affinities[channel] if step is None else _shifted(affinities[channel], step, fill))
            for channel, step in channel_plan(offsets, symmetry)
        ]
    )


def flip_affinities(affinities: NDArray[Any], offsets: Offsets, axis: int, fill: float = 0) -> NDArray[Any]:
    """Return the affinities of a volume that is reversed along ``axis`` (0 is z); see `transform_affinities`."""
    z, y, x = (axis == a for a in range(3))
    return transform_affinities(affinities, offsets, Symmetry((0, 1, 2), (z, y, x)), fill)


def rotate_affinities(affinities: NDArray[Any], offsets: Offsets, turns: int, fill: float = 0) -> NDArray[Any]:
    """Return the affinities of a volume after ``turns`` quarter turns from y to x, as ``np.rot90(…, axes=(y, x))``."""
    turn = [
        Symmetry((0, 1, 2), (False, False, False)),
        Symmetry((0, 2, 1), (False, True, False)),
        Symmetry((0, 1, 2), (False, True, True)),
        Symmetry((0, 2, 1), (False, False, True)),
    ][turns % 4]
    return transform_affinities(affinities, offsets, turn, fill)


def shift_sections(crop: Crop, sections: slice, step: tuple[int, int]) -> Crop:
    """Return the crop with some sections moved by whole voxels; what moves in is blank and does not count.

    Args:
        crop: not changed.
        sections: z of the sections.
        step: (y, x) in voxels.
    """
    raw, labels, mask = crop.raw.copy(), crop.labels.copy(), crop.mask.copy()
    before = own_places(raw.shape) if crop.places is None else crop.places
    places = before.copy()
    places[sections] = ~own_places(raw.shape)[sections]
    there, here = (cut[1:] for cut in pair_slices((1, raw.shape[1], raw.shape[2]), (0, *step)))
    for array, old, blank in ((raw, crop.raw, -1.0), (labels, crop.labels, 0), (mask, crop.mask, False)):
        array[sections] = blank
        array[(sections, *here)] = old[(sections, *there)]
    places[(sections, *here)] = before[(sections, *there)]
    return Crop(raw, labels, mask, places)


def own_places(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the places of a crop that shows itself; see `Crop`."""
    return np.arange(np.prod(shape), dtype=np.int64).reshape(shape)


def _shifted(channel: NDArray[Any], step: Triple, fill: float) -> NDArray[Any]:
    """Return ``channel[p + step]`` at ``p``."""
    z, y, x = channel.shape
    here, there = pair_slices((z, y, x), step)
    out = np.full_like(channel, fill)
    out[here] = channel[there]
    return out
