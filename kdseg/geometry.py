"""Regions and block grids in integer voxels, always ``(z, y, x)``.

A grid is anchored at the origin of the dataset, never at a region of it::

    origin
      |----b----|----b----|----b----|
           [== total ==========]          a region that starts inside a block
           [=1=][===2====][=3==]          its blocks: the grid cells, cut to the region

so that a run over a part of a volume meets the same cells as a run over all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

from kdseg.errors import ConfigError, ShapeError

Triple = tuple[int, int, int]
Slices = tuple[slice, slice, slice]
Offsets = tuple[Triple, ...]
VoxelSize = tuple[float, float, float]
"""nm, ``(z, y, x)``; likewise a place in nm."""
Number = TypeVar("Number")


@dataclass(frozen=True, order=True)
class Roi:
    """A box of voxels: ``offset`` is its first voxel, ``shape`` its extent, both ``(z, y, x)``."""

    offset: Triple
    shape: Triple

    @property
    def end(self) -> Triple:
        """The first voxel behind the box."""
        (a, b, c), (k, m, n) = self.offset, self.shape
        return (a + k, b + m, c + n)

    @property
    def size(self) -> int:
        """Number of voxels; 0 for an empty box."""
        k, m, n = self.shape
        return max(k, 0) * max(m, 0) * max(n, 0)

    def central(self, shape: Triple) -> Roi:
        """Return the middle of the box, of a shape that is cut to it."""
        extent = triple(min(n, wanted) for n, wanted in zip(self.shape, shape, strict=True))
        return Roi(triple(o + (n - k) // 2 for o, n, k in zip(self.offset, self.shape, extent, strict=True)), extent)

    def grow(self, before: Triple, after: Triple | None = None) -> Roi:
        """Return the box grown by ``before`` below and ``after`` (default: the same) above."""
        after = before if after is None else after
        return Roi(
            triple(o - b for o, b in zip(self.offset, before, strict=True)),
            triple(s + b + a for s, b, a in zip(self.shape, before, after, strict=True)),
        )

    def shift(self, by: Triple) -> Roi:
        """Return the box moved by ``by`` voxels."""
        return Roi(triple(o + b for o, b in zip(self.offset, by, strict=True)), self.shape)

    def intersect(self, other: Roi) -> Roi:
        """Return the common box; its shape is 0 along an axis where the two do not meet."""
        start = triple(max(a, b) for a, b in zip(self.offset, other.offset, strict=True))
        end = triple(min(a, b) for a, b in zip(self.end, other.end, strict=True))
        return Roi(start, triple(max(e - s, 0) for s, e in zip(start, end, strict=True)))

    def contains(self, other: Roi) -> bool:
        """Return whether every voxel of ``other`` lies in this box."""
        return self.intersect(other) == other

    def slices(self, within: Roi | None = None) -> Slices:
        """Return slices that cut this box out of an array that covers ``within`` (default: starts at 0).

        Raises:
            ShapeError: if a part of the box lies outside of ``within``.
        """
        if within is not None and not within.contains(self):
            raise ShapeError(f"region {self} does not lie inside {within}")
        base = (0, 0, 0) if within is None else within.offset
        z, y, x = (slice(o - b, o - b + s) for o, b, s in zip(self.offset, base, self.shape, strict=True))
        return (z, y, x)

    def __str__(self) -> str:
        return "[" + ", ".join(f"{o}:{e}" for o, e in zip(self.offset, self.end, strict=True)) + "]"


@dataclass(frozen=True)
class Block:
    """One cell of a grid.

    Attributes:
        index: position in the grid, ``(z, y, x)``; cell ``(0, 0, 0)`` starts at the dataset's origin.
        roi: the voxels of the cell that belong to the region, i.e. what the block writes.
    """

    index: Triple
    roi: Roi


def grid_shape(shape: Triple, block: Triple) -> Triple:
    """Return the number of grid cells that cover a volume of ``shape`` from its origin."""
    return triple(-(-s // b) for s, b in zip(shape, block, strict=True))


def blocks(total: Roi, block: Triple) -> Iterator[Block]:
    """Yield the blocks that tile ``total`` exactly once, in C order of their grid index.

    Args:
        total: region to tile; its offset may lie anywhere at or above the origin.
        block: extent of a grid cell in voxels, each at least 1.
    """
    first = [o // b for o, b in zip(total.offset, block, strict=True)]
    last = [-(-e // b) for e, b in zip(total.end, block, strict=True)]
    for z, y, x in product(*(range(f, e) for f, e in zip(first, last, strict=True))):
        yield block_at((z, y, x), total, block)


def block_at(index: Triple, total: Roi, block: Triple) -> Block:
    """Return the block of ``total`` with a place in the grid; see `blocks`."""
    z, y, x = index
    return Block(index, Roi((z * block[0], y * block[1], x * block[2]), block).intersect(total))


def cell_with(index: Triple, unit: Triple, block: Triple) -> Triple:
    """Return the cell of a grid of ``block`` voxels in which the cell ``index`` of a finer grid of ``unit`` begins."""
    return triple(i * u // b for i, u, b in zip(index, unit, block, strict=True))


def block_number(index: Triple, grid: Triple) -> int:
    """Return the C-order number of the cell ``index`` in a grid of ``grid`` cells."""
    return (index[0] * grid[1] + index[1]) * grid[2] + index[2]


def block_name(index: Triple) -> str:
    """Return the file name of the table of the cell ``index``."""
    return "_".join(str(i) for i in index) + ".npz"


def offsets_reach(offsets: Offsets) -> tuple[Triple, Triple]:
    """Return how far ``offsets`` reach below and above a voxel, as two non-negative triples."""
    below = triple(max((-o[axis] for o in offsets), default=0) for axis in range(3))
    above = triple(max((o[axis] for o in offsets), default=0) for axis in range(3))
    return triple(max(b, 0) for b in below), triple(max(a, 0) for a in above)


def in_sections(offsets: Offsets) -> bool:
    """Return whether no offset leaves its section: each z is then an image of its own, and nothing joins two."""
    return bool(offsets) and not any(z for z, _, _ in offsets)


def nearest_count(offsets: Offsets) -> int:
    """Return the number of channels that link touching voxels: along z, y and x, or y and x alone in sections."""
    return 2 if in_sections(offsets) else 3


def inner_slices(shape: Sequence[int], margin: Sequence[int]) -> Slices:
    """Return the slices of what lies within a margin of ``margin`` voxels at both ends of each axis."""
    z, y, x = (slice(m, n - m) for m, n in zip(margin, shape, strict=True))
    return z, y, x


def is_multiple(value: Triple, unit: Triple) -> bool:
    """Return whether ``value`` is a positive whole multiple of ``unit`` along every axis."""
    return all(v > 0 and v % u == 0 for v, u in zip(value, unit, strict=True))


def fits_or_covers(chunk: Triple, block: Triple, shape: Triple) -> bool:
    """Return whether ``chunk`` is made of whole blocks along every axis, or covers a volume of ``shape`` there."""
    return all(c % b == 0 or c >= s for c, b, s in zip(chunk, block, shape, strict=True))


def sides(shape: Triple, voxel_size: VoxelSize) -> tuple[float, float, float]:
    """Return the extent of a box along each axis in voxels of the finest axis."""
    z, y, x = (n * size / min(voxel_size) for n, size in zip(shape, voxel_size, strict=True))
    return z, y, x


def is_cubic(voxel_size: VoxelSize) -> bool:
    """Return whether voxels are as long as they are high and wide, within 5 %."""
    return all(abs(v - voxel_size[0]) <= 0.05 * voxel_size[0] for v in voxel_size)


def pair_slices(shape: Triple, offset: Triple) -> tuple[Slices, Slices]:
    """Return slices of the voxels ``p`` and of ``p + offset``, for every ``p`` where both lie in ``shape``.

    The slices are empty where the offset is as long as the array.
    """
    here, there = [], []
    for n, o in zip(shape, offset, strict=True):
        count = max(n - abs(o), 0)
        start = max(-o, 0)
        here.append(slice(start, start + count))
        there.append(slice(start + o, start + o + count) if count else slice(0, 0))
    return (here[0], here[1], here[2]), (there[0], there[1], there[2])


def triple(values: Iterable[Number]) -> tuple[Number, Number, Number]:
    """Return three values, (z, y, x), as a tuple of three."""
    z, y, x = values
    return (z, y, x)


def channels_of(wanted: Offsets, offsets: Offsets) -> tuple[int, ...]:
    """Return the channel of each wanted offset.

    Args:
        wanted: (z, y, x) steps in voxels.
        offsets: one per channel.

    Raises:
        ConfigError: if some have none; the message continues the name of what has the channels.
    """
    if lacking := [list(offset) for offset in wanted if offset not in offsets]:
        raise ConfigError(
            f"has no channel for the offsets {lacking}, only for {[list(offset) for offset in offsets]}: remove those "
            "from `offsets` of the configuration"
        )
    return tuple(offsets.index(offset) for offset in wanted)


VOXEL_SIZE_TOLERANCE = 0.05
"""Largest relative difference, along each axis, between the voxels that a network was trained on and those of a volume
that it sees or teaches about. Volumes that lie on one grid have to agree to a thousandth, the rounding of files."""


def knows_voxels(trained_on: VoxelSize, voxel_size: VoxelSize) -> bool:
    """Return whether a network that was trained on voxels of one size, nm, is of use for those of another."""
    return all(abs(a - b) <= VOXEL_SIZE_TOLERANCE * a for a, b in zip(trained_on, voxel_size, strict=True))
