"""The agglomeration tree: which node of it decides about which edges.

A leaf is a chunk of the volume, made of whole blocks of fragments; a node of level k is a cube of 2 x 2 x 2
nodes of level k - 1, and the root is the volume. A node decides about the edges that lie wholly in it and
hands on those that leave it, and those whose ends do::

    level 0   |  leaf  |  leaf  |  leaf  |
    level 1   |      node       |  node  |
    level 2   |           root           |

The block of a fragment follows from its id, hence so does the node.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import ShapeError
from kdseg.geometry import Triple, fits_or_covers, grid_shape, triple
from kdseg.running.compiled import compiled
from kdseg.segmentation.agglomeration.contraction import Rows
from kdseg.segmentation.agglomeration.linkage import Dendrogram, contract
from kdseg.segmentation.graph.edge_table import join, take
from kdseg.segmentation.lut import lut


class Layout(NamedTuple):
    """Grids of the fragments and of the nodes.

    Attributes:
        shape: of the volume in voxels.
        block: of the fragments' grid in voxels.
        chunk: of a leaf in voxels.
    """

    shape: Triple
    block: Triple
    chunk: Triple

    @property
    def levels(self) -> int:
        """Number of levels; the last one has one node."""
        most = max(grid_shape(self.shape, self.chunk))
        return 1 + (most - 1).bit_length()

    def node(self, level: int) -> Triple:
        """Return the extent of a node in voxels."""
        return triple(n << level for n in self.chunk)


def layout(shape: Triple, chunk: Triple, *grids: Triple) -> Layout:
    """Return the layout of a tree.

    Args:
        shape: of the volume in voxels.
        chunk: of a leaf; along an axis where it covers the volume, it is rounded up to whole blocks.
        grids: blocks of the fragments, then those of other tables that a leaf reads.

    Raises:
        ShapeError: if the chunk is not a multiple of the blocks.
    """
    for block in grids:
        if not fits_or_covers(chunk, block, shape):
            raise ShapeError(
                f"agglomerate.chunk {chunk} must be a multiple of the blocks of fragments and edges (got {block}), "
                f"or cover the volume of {shape}"
            )
    z, y, x = (-(-c // b) * b if c >= s else c for c, b, s in zip(chunk, grids[0], shape, strict=True))
    return Layout(shape, grids[0], (z, y, x))


def node_of(ids: NDArray[np.uint64], where: Layout, level: int) -> NDArray[np.int64]:
    """Return the node that each fragment, or the region named by it, lies in.

    Args:
        ids: uint64 (n,), above 0.
        where: the tree's layout.
        level: of the nodes.

    Returns:
        int64 (n, 3), index of the node, zyx.
    """
    return np.asarray(_nodes_of(ids, *_divisors(where, level)), np.int64)


def inside(ids: NDArray[np.uint64], where: Layout, level: int, node: Triple) -> NDArray[np.bool_]:
    """Return bool (n,), which fragments lie in a node; see `node_of`."""
    return np.asarray(_inside(ids, *_divisors(where, level), np.array(node)), np.bool_)


def _divisors(where: Layout, level: int) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
    """Return the voxels of a block, the number of blocks, and the blocks of a node."""
    per = np.array(where.node(level)) // np.array(where.block)
    return prod(where.block), np.array(grid_shape(where.shape, where.block)), per


@compiled
def _nodes_of(
    ids: NDArray[np.uint64], voxels: int, grid: NDArray[np.int64], per: NDArray[np.int64]
) -> NDArray[np.int64]:
    out = np.empty((ids.size, 3), np.int64)
    for k in range(ids.size):
        number = np.int64(ids[k] - np.uint64(1)) // voxels
        out[k, 0] = number // (grid[1] * grid[2]) // per[0]
        out[k, 1] = number // grid[2] % grid[1] // per[1]
        out[k, 2] = number % grid[2] // per[2]
    return out


@compiled
def _inside(
    ids: NDArray[np.uint64], voxels: int, grid: NDArray[np.int64], per: NDArray[np.int64], node: NDArray[np.int64]
) -> NDArray[np.bool_]:
    out = np.empty(ids.size, np.bool_)
    before, found = np.int64(-1), False
    for k in range(ids.size):
        number = np.int64(ids[k] - np.uint64(1)) // voxels
        if number != before:  # mostly one block after the other
            before = number
            found = (
                number // (grid[1] * grid[2]) // per[0] == node[0]
                and number // grid[2] % grid[1] // per[1] == node[1]
                and number % grid[2] // per[2] == node[2]
            )
        out[k] = found
    return out


def decide(
    rows: Rows, where: Layout, level: int, node: Triple, threshold: float, percent: int | None = None
) -> tuple[Dendrogram, Rows]:
    """Make the merges of one node.

    Args:
        rows: of its edge tables or its children, all of them.
        where: the tree's layout.
        level: of the node.
        node: its index.
        threshold: largest score that is merged, in 0..1.
        percent: which quantile of the affinities is the score, in 0..99; default: the mean.

    Returns:
        The merges, and the rows for the parent; for the root these are none.
    """
    u_inside, v_inside = inside(rows.u, where, level, node), inside(rows.v, where, level, node)
    whole = u_inside & v_inside
    frozen = np.unique(np.concatenate((rows.u[u_inside & ~v_inside], rows.v[v_inside & ~u_inside])))
    merges, residual = contract(take(rows, whole), frozen, threshold, percent)
    return merges, join([residual, take(rows, ~whole)])


def rename(ids: NDArray[np.uint64], a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the regions that some regions belong to after the merges of one node.

    Args:
        ids: uint64 (n,), regions as the node's children name them, in any order.
        a: uint64 (m,), one end of each merge.
        b: uint64 (m,), the other end.

    Returns:
        uint64 (n,), the smallest fragment of each region.
    """
    names = np.unique(np.concatenate((a, b)))
    if not names.size:
        return ids
    smallest = lut(names, a, b)
    row = np.minimum(np.searchsorted(names, ids), names.size - 1)
    return np.where(names[row] == ids, smallest[row], ids)
