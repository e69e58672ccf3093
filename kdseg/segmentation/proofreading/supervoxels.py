"""Fragment ids in the layout of PyChunkedGraph.

From the highest bit to the lowest, an id of PyChunkedGraph is: layer (8 bits; 1 for supervoxels), chunk
coordinates x, y, z (as many bits each), number within the chunk. Source: PyChunkedGraph,
`docs/segmentation_preprocessing.md`, section "Segmentation IDs", and `pychunkedgraph/graph/chunks/utils.py`
(github.com/CAVEconnectome/PyChunkedGraph). A chunk is a block of the fragments' grid::

    63      56 55                          0
    | 1       | x | y | z | number in chunk |
      8 bits    spatial_bits each
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import ConfigError, DataError
from kdseg.geometry import Triple

LAYER_BITS = 8
SUPERVOXELS = 1
"""The layer of supervoxels."""


def least_spatial_bits(grid: Triple) -> int:
    """Return how many bits the chunk coordinates need, by the rule of PyChunkedGraph's documentation.

    That many represent every coordinate along the longest axis; all axes get as many.

    Args:
        grid: number of blocks, (z, y, x).
    """
    return max(1, (max(grid) - 1).bit_length())


def pychunkedgraph_ids(
    ids: NDArray[np.uint64], grid: Triple, block: Triple, spatial_bits: int | None = None
) -> NDArray[np.uint64]:
    """Return the ids of fragments in the layout of PyChunkedGraph.

    Args:
        ids: uint64, any shape: ``block number * voxels per block + number within the block``, both in C order,
            the latter from 1; 0 is background and stays 0.
        grid: number of blocks of the volume, (z, y, x).
        block: voxels per block, (z, y, x).
        spatial_bits: of each chunk coordinate; default the fewest that hold the grid.

    Returns:
        uint64 in the shape of ``ids``, distinct for distinct ids.

    Raises:
        ConfigError: if the grid's coordinates do not fit into ``spatial_bits``, or these not into 64 bits.
        DataError: if ids are not uint64, beyond the grid, or their number in the block leaves too few bits.
    """
    bits = _bits(grid, spatial_bits)
    _check_type(ids)
    voxels = np.uint64(prod(block))
    present = ids > 0
    before = ids - present  # counts from 0 in each block; of background, stays 0
    number = before // voxels
    local = ids - number * voxels  # one division per id: `%` would cost another
    if ids.size and (beyond := number >= prod(grid)).any():
        raise DataError(f"fragment {ids[beyond][0]} is beyond a grid of {grid} blocks of {block} voxels")
    room = _room(bits)
    if local.size and int(local.max()) >> room:
        raise DataError(
            f"fragment {ids.ravel()[local.argmax()]} is number {local.max()} of its block, but {bits} spatial bits "
            f"leave {room} bits for it: use smaller blocks, or fewer spatial bits (at least {least_spatial_bits(grid)})"
        )
    z, y, x = np.unravel_index(number.astype(np.int64), grid)
    name = np.full(ids.shape, SUPERVOXELS, np.uint64)
    for coordinate in (x, y, z):
        name = name << np.uint64(bits) | coordinate.astype(np.uint64)
    return np.where(present, name << np.uint64(room) | local, np.uint64(0))


def fragment_ids(
    ids: NDArray[np.uint64], grid: Triple, block: Triple, spatial_bits: int | None = None
) -> NDArray[np.uint64]:
    """Return kdseg's ids of supervoxels in the layout of PyChunkedGraph: the inverse of `pychunkedgraph_ids`.

    Args:
        ids: uint64, any shape, ids of layer 1; 0 stays 0.
        grid: number of blocks of the volume, (z, y, x).
        block: voxels per block, (z, y, x).
        spatial_bits: of each chunk coordinate; default the fewest that hold the grid.

    Returns:
        uint64 in the shape of ``ids``.

    Raises:
        ConfigError: if the grid's coordinates do not fit into ``spatial_bits``, or these not into 64 bits.
        DataError: if ids are not uint64, of another layer, beyond the grid, or no fragment of a block.
    """
    bits = _bits(grid, spatial_bits)
    _check_type(ids)
    present, room = ids > 0, _room(bits)
    layer = ids >> np.uint64(64 - LAYER_BITS)
    if (other := present & (layer != SUPERVOXELS)).any():
        raise DataError(f"id {ids[other][0]} is of layer {layer[other][0]}; expected supervoxels, layer {SUPERVOXELS}")
    local = ids & np.uint64((1 << room) - 1)
    number = np.zeros(ids.shape, np.uint64)
    outside = present & ((local == 0) | (local > prod(block)))
    for axis in range(3):  # z is the lowest field, so its order is that of the axes
        coordinate = (ids >> np.uint64(room + axis * bits)) & np.uint64((1 << bits) - 1)
        outside |= coordinate >= grid[axis]
        number = number * np.uint64(grid[axis]) + coordinate
    if outside.any():
        raise DataError(
            f"id {ids[outside][0]} is not a fragment of a grid of {grid} blocks of {block} voxels at {bits} spatial "
            "bits: read it with the spatial bits it was made with"
        )
    return number * np.uint64(prod(block)) + local


def _bits(grid: Triple, spatial_bits: int | None) -> int:
    least = least_spatial_bits(grid)
    bits = least if spatial_bits is None else spatial_bits
    if bits < least or _room(bits) < 1:
        raise ConfigError(
            f"got {bits} spatial bits for a grid of {grid} blocks; expected at least {least} and at most "
            f"{(64 - LAYER_BITS - 1) // 3}: set another number, or use larger blocks"
        )
    return bits


def _room(bits: int) -> int:
    """Return the bits left for the number within a chunk."""
    return 64 - LAYER_BITS - 3 * bits


def _check_type(ids: NDArray[np.uint64]) -> None:
    if ids.dtype != np.uint64:  # arithmetic with another type would go through float64
        raise DataError(f"ids must be uint64, got {ids.dtype}")
