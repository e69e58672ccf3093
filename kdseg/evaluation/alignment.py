"""Volumes of different files on one grid of voxels, by where they lie in the world.

The grid takes, along each axis, the finest of the voxel sizes, and counts from the first voxel of the first volume,
the anchor. A voxel of a coarser volume stands for all voxels of the grid inside of it: each of these takes the
value of the nearest coarse voxel, and nothing is interpolated::

    labels, 10 nm        |0|1|2|3|4|5|6|7|          the anchor, and here the grid
    segmentation, 20 nm      | 0 | 1 |              ratio 2, start 2; scored are the voxels 2 to 5

An offset is where a file says that its first voxel lies. Whether that is the voxel's corner or its centre matters only
between volumes of different voxel sizes: corners are tried first, then centres (the pyramids of OME-Zarr), and the
reading in which all voxels begin on the grid holds.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import ConfigError, DataError, ShapeError, VoxelSizeError
from kdseg.geometry import Roi, Triple, VoxelSize, triple
from kdseg.volumes.foreign import Source, expect_exact, expect_same_sections, expect_sections_in_step, lacks_size, sized
from kdseg.volumes.values import without_reserved

log = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Of a voxel: how far two volumes may be off a common grid; of a voxel size: how far a ratio may be off an integer."""
_REGION = re.compile(r"^(?P<unit>nm|voxels):(?P<ranges>[^:,]+:[^:,]+,[^:,]+:[^:,]+,[^:,]+:[^:,]+)$")


@dataclass(frozen=True)
class Placed:
    """A source on the common grid.

    Attributes:
        source: what is read.
        ratio: voxels of the grid, (z, y, x), along one voxel of the source.
        start: voxel of the grid where the source begins.
    """

    source: Source
    ratio: Triple
    start: Triple

    @property
    def roi(self) -> Roi:
        """The voxels of the grid that the source covers."""
        z, y, x = (n * r for n, r in zip(self.source.roi.shape, self.ratio, strict=True))
        return Roi(self.start, (z, y, x))

    def read(self, roi: Roi) -> NDArray[Any]:
        """Return the values at the voxels of ``roi``, an array (z, y, x) of its shape and the source's type.

        Channels come first, if the source has any.

        Args:
            roi: in voxels of the grid, inside of `Placed.roi`.
        """
        inner = [o - s for o, s in zip(roi.offset, self.start, strict=True)]
        low = [i // r for i, r in zip(inner, self.ratio, strict=True)]
        high = [-(-(i + n) // r) for i, n, r in zip(inner, roi.shape, self.ratio, strict=True)]
        voxels = self.source.read(Roi(triple(low), triple(h - lo for h, lo in zip(high, low, strict=True))))
        for axis, r in enumerate(self.ratio):
            if r > 1:
                first = inner[axis] - low[axis] * r
                # counted from the end: channels may come first
                voxels = np.repeat(voxels, r, axis - 3).take(range(first, first + roi.shape[axis]), axis - 3)
        return voxels


@dataclass(frozen=True)
class Alignment:
    """Sources on one grid.

    Attributes:
        placed: the sources in the order in which they were given; the first is the anchor.
        voxel_size: nm, (z, y, x), of the grid; None if no file says.
        origin: nm, (z, y, x), of voxel 0 of the grid: its corner or its centre.
        common: voxels of the grid that all sources cover, at or above 0.
        offsets_are: ``corners`` or ``centres`` of first voxels; so is ``origin``.
    """

    placed: tuple[Placed, ...]
    voxel_size: VoxelSize | None
    origin: VoxelSize
    common: Roi
    offsets_are: str

    def region(self, text: str) -> Roi:
        """Return the voxels of the grid that a user's text names.

        Args:
            text: ``voxels:z0:z1,y0:y1,x0:x1``, of the anchor, counted from its first one; or ``nm:…``, which takes the
                voxels whose position, as the offsets name it, is at or above the first and below the second number.

        Raises:
            ConfigError: if it is neither, or holds no voxel.
            VoxelSizeError: if it is in nm, and no file says how large voxels are.
            ShapeError: if a part of it is outside of what all sources cover.
        """
        match = _REGION.match(text.replace(" ", ""))
        try:
            pairs = [[float(v) for v in part.split(":")] for part in match["ranges"].split(",")] if match else []
        except ValueError:
            match = None
        if not match or not all(math.isfinite(v) for pair in pairs for v in pair):
            raise ConfigError(f"a region is voxels:z0:z1,y0:y1,x0:x1 or nm:z0:z1,y0:y1,x0:x1, got {text!r}")
        if match["unit"] == "voxels":
            if any(v != int(v) for pair in pairs for v in pair):
                raise ConfigError(f"a region in voxels has whole numbers, got {text!r}")
            bounds = [[int(v) * r for v in pair] for pair, r in zip(pairs, self.placed[0].ratio, strict=True)]
        elif self.voxel_size is None:
            raise VoxelSizeError(f"{text!r} is in nm, but no file says how large voxels are: set the voxel size")
        else:
            world = zip(pairs, self.origin, self.voxel_size, strict=True)
            bounds = [[math.ceil((v - o) / s - TOLERANCE) for v in pair] for pair, o, s in world]
        roi = Roi(triple(low for low, _ in bounds), triple(high - low for low, high in bounds))
        if min(roi.shape) <= 0:
            raise ConfigError(f"the region {text!r} holds no voxel")
        if not self.common.contains(roi):
            raise ShapeError(f"the region {text!r}, voxels {roi}, reaches beyond what all volumes cover, {self.common}")
        return roi


def align(anchor: Source, *others: Source) -> Alignment:
    """Put sources on one grid.

    A source whose file says no voxel size or no place takes those of the others if it has their shape.

    Args:
        anchor: whose first voxel is voxel 0 of the grid.
        others: any number; voxel sizes are integer multiples of the finest, and voxels begin on the grid.

    Raises:
        ShapeError: if the sources do not all overlap.
    """
    sources = (anchor, *others)
    known = any(source.voxel_size for source in sources)
    sizes = _sizes(sources)
    # places in units that nobody knows are in voxels
    sources = tuple(s if s.unscaled is None else sized(s, v) for s, v in zip(sources, sizes, strict=True))
    fine = triple(min(size[axis] for size in sizes) for axis in range(3))
    ratios = [_ratio(source, size, fine) for source, size in zip(sources, sizes, strict=True)]
    offsets = _offsets(sources, ratios)
    for other in others:
        if not (other.placed and anchor.placed):
            expect_same_sections(other, anchor)
    starts, offsets_are = _starts(sources, sizes, offsets, fine)
    for other, ratio, start in zip(others, ratios[1:], starts[1:], strict=True):
        if ratio[0] == ratios[0][0]:
            expect_sections_in_step(other, anchor, (start[0] - starts[0][0]) // ratio[0])
    placed = tuple(Placed(*one) for one in zip(sources, ratios, starts, strict=True))
    common = placed[0].roi
    for one in placed[1:]:
        common = common.intersect(one.roi)
    if not common.size:
        raise ShapeError(
            "; ".join(f"{one.source.address} covers {one.roi}" for one in placed)
            + " (voxels of the grid that they share): they do not overlap. Are they of one volume? If a file says "
            "its place wrong, give it"
        )
    half = 0.5 if offsets_are == "centres" else 0.0
    origin = triple(o - half * (s - f) for o, s, f in zip(offsets[0], sizes[0], fine, strict=True))
    return Alignment(placed, fine if known else None, origin, common, offsets_are)


def expect_ids(source: Source, what: str) -> None:
    """Refuse a source that cannot hold ids.

    Args:
        source: not read.
        what: it is to be, for the message.

    Raises:
        DataError: if its values are neither integers nor bools, or its format keeps them nearly only.
    """
    if source.data.dtype.kind not in "uib":
        raise DataError(
            f"{what} {source.address} hold {source.data.dtype}, expected integer ids of 0 or above: convert them, "
            "after a look at whether all are whole numbers"
        )
    expect_exact(source, what)


def as_ids(values: NDArray[Any], what: str) -> NDArray[np.uint64]:
    """Return values as ids, uint64 in the same shape; those that CREMI reserves as 0, as conversion has them.

    Args:
        values: integers or bools.
        what: they are, for the message.

    Raises:
        DataError: if one is negative.
    """
    if values.dtype.kind == "i" and values.size and values.min() < 0:
        raise DataError(f"{what} hold the negative id {values.min()}, expected ids of 0 or above: 0 is background")
    return without_reserved(np.ascontiguousarray(values).astype(np.uint64, copy=False))


def _sizes(sources: Sequence[Source]) -> list[VoxelSize]:
    known = [source for source in sources if source.voxel_size is not None]
    sizes = []
    for source in sources:
        alike = [one.voxel_size for one in known if one.data.shape == source.data.shape]
        if source.voxel_size is None and known and not alike:
            raise VoxelSizeError(
                f"{source.address} of {source.data.shape} voxels {lacks_size(source)}, and {known[0].address} has "
                f"another shape, {known[0].data.shape}: give `voxel_size: [z, y, x]` in nm"
            )
        sizes.append(source.voxel_size or (alike[0] if alike else None) or (1.0, 1.0, 1.0))
    if not known and len({source.offset for source in sources if source.placed}) > 1:
        raise VoxelSizeError(
            f"{sources[0].address} has an offset in nm but no voxel size: give `voxel_size: [z, y, x]` in nm"
        )
    return sizes


def _ratio(source: Source, size: VoxelSize, fine: VoxelSize) -> Triple:
    exact = [a / b for a, b in zip(size, fine, strict=True)]
    if any(abs(r - round(r)) > TOLERANCE * r for r in exact):
        raise VoxelSizeError(
            f"{source.address} has voxels of {size} nm, {[round(r, 4) for r in exact]} times the finest, {fine} nm; "
            "expected whole multiples: resample one of the two"
        )
    return triple(round(r) for r in exact)


def _offsets(sources: Sequence[Source], ratios: Sequence[Triple]) -> list[VoxelSize]:
    extents = [
        [n * r for n, r in zip(s.data.shape, ratio, strict=True)] for s, ratio in zip(sources, ratios, strict=True)
    ]
    placed = [k for k, source in enumerate(sources) if source.placed]
    found = []
    for k, source in enumerate(sources):
        if not source.placed:
            other = next((j for j in [*placed, *range(len(sources))] if extents[j] != extents[k]), None)
            if other is not None:
                raise ShapeError(
                    f"{source.address} of {source.data.shape} voxels does not say where it lies, and "
                    f"{sources[other].address} has another extent, {sources[other].data.shape} voxels: give the "
                    "offset, in nm, of its first voxel"
                )
            if (alike := sources[placed[0] if placed else 0]) is not source:
                log.info(
                    "%s does not say where it lies: it has the extent of %s, and is taken to lie at the same place",
                    source.address,
                    alike.address,
                )
        offset = source.offset if source.placed or not placed else sources[placed[0]].offset
        found.append(offset or (0.0, 0.0, 0.0))
    return found


def _starts(
    sources: Sequence[Source], sizes: Sequence[VoxelSize], offsets: Sequence[VoxelSize], fine: VoxelSize
) -> tuple[list[Triple], str]:
    tried = {}
    for name, half in (("corners", 0.0), ("centres", 0.5)):
        begin = [[o - half * s for o, s in zip(*one, strict=True)] for one in zip(offsets, sizes, strict=True)]
        steps = [[(b - a) / f for b, a, f in zip(one, begin[0], fine, strict=True)] for one in begin]
        if all(abs(step - round(step)) <= TOLERANCE for one in steps for step in one):
            return [triple(round(step) for step in one) for one in steps], name
        tried[name] = steps
    off = next(k for k, one in enumerate(tried["corners"]) if any(abs(s - round(s)) > TOLERANCE for s in one))
    raise VoxelSizeError(
        f"{sources[off].address} begins {tried['corners'][off]} voxels of {fine} nm from {sources[0].address}, "
        "expected whole voxels: correct its offset, or resample it"
    )
