"""Counts that follow from shapes alone: blocks, voxels that are worked on, bytes of uncompressed stores."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from kdseg.config import AgglomerateOptions, FragmentsOptions, StorageOptions
from kdseg.geometry import Roi, Triple, block_at, grid_shape, triple
from kdseg.segmentation.agglomeration.tree import layout
from kdseg.segmentation.fragments.block import halo_roi


def block_count(shape: Triple, block: Triple) -> int:
    """Return the number of blocks that cover a volume, both (z, y, x) in voxels."""
    return prod(grid_shape(shape, block))


def tiled_voxels(shape: Triple, tile: Triple) -> int:
    """Return the voxels that a network predicts of a volume: those of whole tiles, also beyond its border."""
    return block_count(shape, tile) * prod(tile)


def halo_voxels(shape: Triple, options: FragmentsOptions) -> int:
    """Return the voxels that all blocks of fragments read, those of halos as often as they are read."""
    return prod(sum(read.shape[axis] for read in _rows(shape, options, axis)) for axis in range(3))


def halo_tiled_voxels(shape: Triple, options: FragmentsOptions, tile: Triple) -> int:
    """Return the voxels of the tiles that all blocks of fragments predict, where affinities are not stored."""
    return prod(
        sum(
            (-(-read.end[axis] // tile[axis]) - read.offset[axis] // tile[axis]) * tile[axis]
            for read in _rows(shape, options, axis)
        )
        for axis in range(3)
    )


def _rows(shape: Triple, options: FragmentsOptions, axis: int) -> Iterator[Roi]:
    """Yield what the blocks of fragments read that lie along one axis from the origin."""
    volume = Roi((0, 0, 0), shape)
    for i in range(grid_shape(shape, options.block)[axis]):
        index = triple(i if along == axis else 0 for along in range(3))
        yield halo_roi(options, block_at(index, volume, options.block).roi, volume)


def node_count(shape: Triple, options: AgglomerateOptions, fragments: Triple) -> int:
    """Return the number of nodes of the tree of an agglomeration, leaves and all above them."""
    if options.engine == "waterz":
        return 1
    tree = layout(shape, options.chunk, fragments)
    return sum(block_count(shape, tree.node(level)) for level in range(tree.levels))


def uncompressed_bytes(shape: Triple, channels: int, itemsize: int, storage: StorageOptions) -> int:
    """Return the bytes of the shards of a volume that is stored as it is, without the JSON of its metadata.

    A chunk is stored whole wherever it meets the volume; each shard ends with 16 bytes per chunk and a checksum of 4.

    Args:
        shape: of the volume in voxels, (z, y, x).
        channels: values per voxel.
        itemsize: bytes per value.
        storage: chunks and shards.
    """
    chunks = block_count(shape, storage.chunk)
    index = 16 * prod(grid_shape(storage.shard, storage.chunk)) + 4
    return chunks * prod(storage.chunk) * channels * itemsize + block_count(shape, storage.shard) * index
