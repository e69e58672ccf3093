"""The working space of a leaf: ``LEAF`` neighbouring voxels, which are computed together.

A leaf is one flat float64 buffer, in which the numbers of a kind, one per voxel, lie in a row. One buffer with rows
at constant places and of a constant length is what lets LLVM see that a loop over a row needs no checks, so that it
computes eight voxels at a time; the arithmetic of each is as written.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdseg.volumes.phantom.hashing import compiled

LEAF = 64
"""Voxels of a leaf, and length of a row."""

# Given: position in the tissue in nm, after the warp; five fields; nm that the section adds to membranes.
Z, Y, X = 0 * LEAF, 1 * LEAF, 2 * LEAF
STRENGTH, DENSITY, DRIFT, ORGANELLE, GRAIN = 3 * LEAF, 4 * LEAF, 5 * LEAF, 6 * LEAF, 7 * LEAF
GIVEN = 8
"""Rows that are copied from the fields of a group."""
BLUR = 8 * LEAF

# Found by the search: nearest segment, its object and distance to its surface; that of the next object (-1: none).
FIRST, OBJECT, NEAR, SECOND, FAR = 9 * LEAF, 10 * LEAF, 11 * LEAF, 12 * LEAF, 13 * LEAF

# Columns of the two segments: start and axis (z, y, x), 1 / squared length; and the looks of the nearest one.
NEAREST, NEXT = 14 * LEAF, 21 * LEAF
LOOKS = 28 * LEAF

# Made of them: position along the nearest segment and distance to its axis; distance to the membrane, and how oblique
# it lies; how much a synapse is active; grey value of all but the organelles, and theirs.
ALONG, AXIAL, DEPTH, OBLIQUE, ACTIVE, VALUE, ORGAN = (
    33 * LEAF,
    34 * LEAF,
    35 * LEAF,
    36 * LEAF,
    37 * LEAF,
    38 * LEAF,
    39 * LEAF,
)
ROWS = 40


@compiled
def working_space() -> NDArray[np.float64]:
    """Return the buffer of a leaf, float64 (ROWS * LEAF,)."""
    return np.zeros(ROWS * LEAF)


def leaf_shape(voxel_size: NDArray[np.float64]) -> tuple[int, int, int]:
    """Return the extent in voxels, (z, y, x), of the most compact leaf for voxels of this size in nm."""
    shape = np.ones(3, np.int64)
    while shape.prod() < LEAF:
        # the last of equal axes, for long rows
        shape[2 - np.argmin((shape * voxel_size)[::-1])] *= 2
    z, y, x = (int(n) for n in shape)
    return z, y, x
