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

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import ShapeError
from kdseg.geometry import Triple, fits_or_covers, grid_shape
from kdseg.segmentation.agglomerate import Dendrogram, contract
from kdseg.segmentation.contraction import Rows
from kdseg.segmentation.lut import lut


class Layout(NamedTuple):
    """Where fragments and nodes lie.

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
        z, y, x = (n << level for n in self.chunk)
        return (z, y, x)


def layout(shape: Triple, chunk: Triple, *grids: Triple) -> Layout:
    """Return the layout of a tree.

    Args:
        shape: of the volume in voxels.
        chunk: of a leaf; along an axis where it covers the volume, it is rounded up to whole blocks.
        grids: blocks of the fragments, then those of other tables that a leaf reads.

    Raises:
        ShapeError: if the chunk is no multiple of the blocks.
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
    _, rows, columns = grid_shape(where.shape, where.block)
    number = ((ids - np.uint64(1)) // np.uint64(np.prod(where.block, dtype=object))).astype(np.int64)
    index = np.stack((number // (rows * columns), number // columns % rows, number % columns), axis=-1)
    per = np.array(where.node(level)) // np.array(where.block)
    return np.asarray(index // per, np.int64)


def decide(rows: Rows, where: Layout, level: int, node: Triple, threshold: float) -> tuple[Dendrogram, Rows]:
    """Make the merges of one node.

    Args:
        rows: of its edge tables or its children, all of them.
        where: the tree's layout.
        level: of the node.
        node: its index.
        threshold: largest score that is merged, in 0..1.

    Returns:
        The merges, and the rows for the parent; for the root these are none.
    """
    u_inside = (node_of(rows.u, where, level) == node).all(axis=1)
    v_inside = (node_of(rows.v, where, level) == node).all(axis=1)
    whole = u_inside & v_inside
    frozen = np.unique(np.concatenate((rows.u[u_inside & ~v_inside], rows.v[v_inside & ~u_inside])))
    merges, residual = contract(Rows(*(column[whole] for column in rows)), frozen, threshold)
    leaving = Rows(*(column[~whole] for column in rows))
    return merges, join([residual, leaving])


def join(parts: Iterable[Rows]) -> Rows:
    """Return the rows of all parts, at least one, one after the other."""
    return Rows(*(np.concatenate(column) for column in zip(*parts, strict=True)))


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
