"""Is this what affinities look like, and is the halo enough? Cheap questions whose answers are warnings."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from kdseg.config.base import exact
from kdseg.config.segmentation import FragmentsOptions
from kdseg.geometry import Offsets, Triple, VoxelSize, in_sections, nearest_count, offsets_reach
from kdseg.segmentation.links import nearest_channels, nearest_links

_WATERZ_HALO, _SEEDED_HALO = 8, 16  # voxels of the finest axis; the second by benchmarks/halo.py
_LEAST_INSIDE = 0.5  # part of the pairs of neighbours that are of one neuron, in any tissue
_FEWER = 0.9  # another reading is better if it leaves so few of the contradictions; blur and noise bring it near 1
_COUNTED = 100  # fewer contradictions prove nothing


def doubts(affinities: NDArray[np.uint8], offsets: Offsets) -> list[str]:
    """Return what is suspicious about a sample of affinities: one message each, naming what to check.

    - Most neighbours belong to one neuron. Where most affinities are below 0.5, they may be probabilities of
      a boundary. A sample that is 0 throughout holds no tissue, and nothing is said of it.
    - A single cut among the four links around a square of voxels is a contradiction: the other three join its
      ends. If another order of the channels, or the opposite sign of an offset, leaves at most nine
      tenths of the contradictions, then that is probably what the affinities mean. Much noise hides it.

    Args:
        affinities: uint8 (c, z, y, x), in 1/255; 64 voxels along each axis are enough.
        offsets: one ``(z, y, x)`` step in voxels per channel.
    """
    links = nearest_links(affinities, offsets)
    found = []
    joined = links >= 128
    share = joined[3 - nearest_count(offsets) :].mean()
    if links.any() and share < _LEAST_INSIDE:
        found.append(
            f"{100 * (1 - share):.0f} % of the nearest affinities are below 0.5 (expected: less than half): "
            "check that 255 means `same neuron`, not `boundary`, and that the network is trained"
        )
    given = _contradictions(joined)
    left = {
        name: _contradictions(nearest_links(affinities, other) >= 128)
        for name, other in _other_readings(offsets).items()
    }
    best = min(left, key=lambda name: left[name])
    if given >= _COUNTED and left[best] <= _FEWER * given:
        found.append(f"the affinities contradict each other less often if {best}: check the offsets {list(offsets)}")
    return found


def _other_readings(offsets: Offsets) -> dict[str, Offsets]:
    """Return offsets with other signs or in another order of the nearest channels, each with its name."""
    nearest = nearest_channels(offsets)

    def changed(steps: dict[int, Triple]) -> Offsets:
        return tuple(steps.get(channel, step) for channel, step in enumerate(offsets))

    turned = {channel: (-offsets[channel][0], -offsets[channel][1], -offsets[channel][2]) for channel in nearest}
    readings = {"all offsets have the opposite sign": changed(turned)}
    axes = "zyx"[-len(nearest) :]
    for name, channel in zip(axes, nearest, strict=True):
        readings[f"the offset along {name} has the opposite sign"] = changed({channel: turned[channel]})
    for order in list(permutations(range(len(nearest))))[1:]:
        names = ", ".join(axes[axis] for axis in order)
        steps = {channel: offsets[nearest[axis]] for channel, axis in zip(nearest, order, strict=True)}
        readings[f"the channels taken for {', '.join(axes)} are those along {names}"] = changed(steps)
    return readings


def _contradictions(joined: NDArray[np.bool_]) -> int:
    """Return the number of squares of four voxels with exactly one cut."""
    count = 0
    inner = (slice(2, -2),) * 3  # what a shift rolls around the border does not count
    for a, b in ((0, 1), (0, 2), (1, 2)):
        cuts = [~joined[a], np.roll(~joined[a], 1, b), ~joined[b], np.roll(~joined[b], 1, a)]
        count += int(np.count_nonzero(sum(cut[inner].astype(np.uint8) for cut in cuts) == 1))
    return count


def thin_halo(options: FragmentsOptions, offsets: Offsets, voxel_size: VoxelSize, shape: Triple) -> str:
    """Return a warning if fragments at the faces of blocks depend on where these are; else an empty string.

    Volumes of one block need no halo. The halos that suffice were measured on fragments of whole volumes and of
    blocks.

    Args:
        options: method, block and halo in voxels.
        offsets: of the affinities.
        voxel_size: nm; a halo is counted in voxels of the finest axis.
        shape: extent of the volume in voxels.
    """
    how = options.watershed
    flat = how.method == "watershed" and how.per_section and options.premerge is None
    axes = range(int(flat or in_sections(offsets)), 3)
    finest = exact(min(voxel_size[axis] for axis in axes))
    if how.method == "mutex":
        below, above = offsets_reach(offsets)
        needed = [Fraction(max(b, a)) for b, a in zip(below, above, strict=True)]
    else:
        voxels = _WATERZ_HALO if how.method == "waterz" else _SEEDED_HALO
        needed = [voxels * finest / exact(size) for size in voxel_size]
    thin = [
        f"{'zyx'[axis]}: {options.halo[axis]} of {math.ceil(needed[axis])}"
        for axis in axes
        if shape[axis] > options.block[axis] and options.halo[axis] < needed[axis]
    ]
    if not thin:
        return ""
    figures = "VI 0.01, 0.03 and 0.05 bits at halos of 16, 8 and 4 for the watershed in blocks of 128"
    return (
        f"the halo is smaller than the method {how.method!r} needs for fragments that do not depend on the blocks "
        f"(voxels along {', '.join(thin)}); measured differences: {figures}; set fragments.halo"
    )
