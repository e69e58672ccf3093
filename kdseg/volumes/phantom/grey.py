"""Grey values of the voxels of a leaf, without what the microscope adds to them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.volumes.phantom.hashing import compiled
from kdseg.volumes.phantom.leaf import (
    ACTIVE,
    ALONG,
    AXIAL,
    BLUR,
    DENSITY,
    DEPTH,
    DRIFT,
    FAR,
    FIRST,
    GRAIN,
    LEAF,
    LOOKS,
    NEAR,
    NEAREST,
    NEXT,
    OBLIQUE,
    ORGAN,
    ORGANELLE,
    SECOND,
    STRENGTH,
    VALUE,
    X,
    Y,
    Z,
)
from kdseg.volumes.phantom.organelles import Contents, Vesicles, bump, mitochondrion, ramp, tubule, vesicle
from kdseg.volumes.phantom.search import COLUMNS
from kdseg.volumes.phantom.tissue import REACH

Numbers = NDArray[np.float64]


class Corner(NamedTuple):
    """Positions of the voxels of a leaf before the warp, in nm; a leaf at the end of a block is cut off.

    Attributes:
        z: float64 (z,).
        y: float64 (z, y), displaced with its section.
        x: float64 (z, x).
    """

    z: Numbers
    y: Numbers
    x: Numbers


@compiled
def _gather(rows: Numbers, looks: Numbers, work: Numbers) -> None:
    """Fill the rows ``NEAREST``, ``NEXT`` and ``LOOKS`` with those of the segments found."""
    for i in range(LEAF):
        n, m = int(work[FIRST + i]), int(work[SECOND + i])
        first, second, look = rows[n], rows[max(n if m < 0 else m, 0)], looks[n]
        for k in range(COLUMNS):
            work[NEAREST + k * LEAF + i] = first[k]
            work[NEXT + k * LEAF + i] = second[k]
        for k in range(5):
            work[LOOKS + k * LEAF + i] = look[k]


@compiled
def _way(work: Numbers, i: int, columns: int) -> tuple[float, float, float, float, float]:
    """Return the way (z, y, x) from the nearest point of a segment, its length, and the position of that point."""
    v0, v1, v2 = work[columns + 3 * LEAF + i], work[columns + 4 * LEAF + i], work[columns + 5 * LEAF + i]
    dz = work[Z + i] - work[columns + i]
    dy = work[Y + i] - work[columns + LEAF + i]
    dx = work[X + i] - work[columns + 2 * LEAF + i]
    t = min(max((dz * v0 + dy * v1 + dx * v2) * work[columns + 6 * LEAF + i], 0.0), 1.0)
    dz, dy, dx = dz - t * v0, dy - t * v1, dx - t * v2
    return dz, dy, dx, np.sqrt(dz * dz + dy * dy + dx * dx), t


@compiled
def _membrane(work: Numbers) -> None:
    """Fill ``DEPTH``, distance to the membrane in nm, and ``OBLIQUE``, 0 to 1 to the sections; ``ALONG``, ``AXIAL``."""
    for i in range(LEAF):
        az, ay, ax, d, t = _way(work, i, NEAREST)
        bz, by, bx, e, _ = _way(work, i, NEXT)
        work[ALONG + i], work[AXIAL + i] = t, d
        d, e = d + 1e-9, e + 1e-9
        nz, ny, nx = az / d - bz / e, ay / d - by / e, ax / d - bx / e
        # The slope of the difference; 2 between two axes, small where one object lies behind the other.
        slope = max(np.sqrt(nz * nz + ny * ny + nx * nx), 0.6)
        alone = work[SECOND + i] < 0.0
        work[DEPTH + i] = REACH if alone else (work[FAR + i] - work[NEAR + i]) / slope
        work[OBLIQUE + i] = 0.0 if alone else abs(nz) / slope


@compiled
def _shade(work: Numbers, thickness: float) -> None:
    """Fill ``VALUE`` with membranes and cytoplasm, ``ORGAN`` with mitochondria, and ``ACTIVE``."""
    for i in range(LEAF):
        strength, density, grain = work[STRENGTH + i], work[DENSITY + i], work[GRAIN + i]
        depth, t = work[DEPTH + i], work[ALONG + i]
        active = ramp((density - 0.05) / 0.3) if work[LOOKS + 4 * LEAF + i] > 0.0 else 0.0
        width = 14.5 + 4.0 * density + 7.0 * active * ramp(2.0 * strength)
        smear = work[BLUR + i] + 0.4 * thickness * work[OBLIQUE + i]
        smeared = np.sqrt(width * width + smear * smear)
        dark = min(max(0.86 + 0.85 * strength, 0.12), 1.05) * width / smeared
        work[VALUE + i] = 150.0 + work[LOOKS + 3 * LEAF + i] + 10.0 * grain - 66.0 * dark * bump(depth / smeared)
        work[ACTIVE + i] = active
        size = work[LOOKS + i] + t * work[LOOKS + LEAF + i]
        length = work[LOOKS + 2 * LEAF + i]
        work[ORGAN + i] = mitochondrion(size, t, length, work[AXIAL + i], depth, work[ORGANELLE + i])


@compiled
def _cytoplasm(contents: Contents, around: Vesicles, corner: Corner, leaf: tuple[int, int, int], work: Numbers) -> None:
    """Add vesicles, reticulum and microtubules to ``ORGAN``, where there is room for them."""
    for k in range(corner.z.size):
        for m in range(corner.y.shape[1]):
            for n in range(corner.x.shape[1]):
                i = (k * leaf[1] + m) * leaf[2] + n
                organ, active, depth = work[ORGAN + i], work[ACTIVE + i], work[DEPTH + i]
                if organ <= -4.0:
                    continue
                if active > 0.0 and 26.0 < depth < 190.0:
                    shell = vesicle(around, corner.z[k], corner.y[k, m], corner.x[k, n])
                    organ += active * shell * ramp((depth - 26.0) / 14.0)
                elif work[LOOKS + 4 * LEAF + i] == 0.0 and depth > 40.0:
                    # Reticulum: a surface where a field is 0, in parts of the large profiles.
                    sheet = bump((work[ORGANELLE + i] + 0.12 * work[GRAIN + i]) / 0.1)
                    organ -= 30.0 * sheet * ramp((depth - 40.0) / 25.0) * ramp(2.5 * work[DENSITY + i])
                    first = int(work[FIRST + i])
                    dz = work[Z + i] - work[NEAREST + i]
                    dy = work[Y + i] - work[NEAREST + LEAF + i]
                    dx = work[X + i] - work[NEAREST + 2 * LEAF + i]
                    organ += tubule(contents.tubules[first], contents.across[first], dz, dy, dx)
                work[ORGAN + i] = organ


@compiled
def shade(
    rows: Numbers,
    contents: Contents,
    around: Vesicles,
    corner: Corner,
    leaf: tuple[int, int, int],
    thickness: float,
    work: Numbers,
) -> None:
    """Fill ``VALUE`` with the grey values of a leaf without noise.

    Args:
        rows: all segments, see `kdseg.volumes.phantom.search.table`.
        contents: theirs.
        around: the vesicles.
        corner: where the voxels lie.
        leaf: extent of the leaf in voxels.
        thickness: of a section in nm.
        work: the leaf, after the search.
    """
    _gather(rows, contents.looks, work)
    _membrane(work)
    _shade(work, thickness)
    _cytoplasm(contents, around, corner, leaf, work)
    for i in range(LEAF):
        work[VALUE + i] = work[VALUE + i] + work[ORGAN + i] + 9.0 * work[DRIFT + i]
