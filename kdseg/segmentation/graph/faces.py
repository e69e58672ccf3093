"""Edges without the affinities of the volume: what a cell keeps of them, and how cells are joined.

A pair of neighbouring voxels lies in one cell, or crosses a face between two. The pairs of a cell are counted
while its affinities are in memory; of those that cross, it keeps the affinities of the voxels they refer to,
one plane per offset::

      cell A      cell B
    | . . . . | = . . . . |      offset (0, 0, -1): the plane `=` of B holds the affinities
    |         | =         |      between B's first voxels along x and A's last ones

When the fragments of all cells are there, the planes complete the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import ConfigError
from kdseg.geometry import Offsets, Roi, Triple, blocks, nearest_count
from kdseg.segmentation.graph.edge_table import from_columns
from kdseg.segmentation.graph.rag import Edges, block_edges, merge


class Part(NamedTuple):
    """Affinities of one cell, reduced to what the region graph needs.

    Attributes:
        edges: of the pairs of voxels inside of the cell.
        faces: uint8, per offset the plane of the cell's voxels ``p`` with ``p + offset`` outside of it; one voxel
            thick, in 1/255.
    """

    edges: Edges
    faces: tuple[NDArray[np.uint8], ...]

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the part as the columns of a table."""
        return {**self.edges._asdict(), **{f"face_{c}": face for c, face in enumerate(self.faces)}}

    @staticmethod
    def of(columns: dict[str, NDArray[Any]]) -> Part:
        """Return the part that a table holds."""
        count = sum(name.startswith("face_") for name in columns)
        return Part(from_columns(Edges, columns), tuple(columns[f"face_{c}"] for c in range(count)))


def nearest_offsets(offsets: Offsets) -> Offsets:
    """Return the offsets of the channels that make a contact.

    Raises:
        ConfigError: if these are not one-voxel steps along z, y, x; along y, x where no offset leaves its section.
    """
    nearest = offsets[: nearest_count(offsets)]
    if [tuple(map(abs, offset)) for offset in nearest] != [(1, 0, 0), (0, 1, 0), (0, 0, 1)][-len(nearest) :]:
        raise ConfigError(
            f"the first three offsets must be one-voxel steps along z, y and x, in this order; got {list(nearest)}: "
            "predict to affinities first, without `predict.fused`"
        )
    return nearest


def cell_part(fragments: NDArray[np.uint64], affinities: NDArray[np.uint8], offsets: Offsets) -> Part:
    """Return what the region graph needs of one cell.

    Args:
        fragments: uint64 (z, y, x), ids of the cell's voxels; 0 is background.
        affinities: uint8 (c, z, y, x) of the same voxels, in 1/255.
        offsets: one-voxel steps along z, y, x, one per channel, see `nearest_offsets`.
    """
    z, y, x = fragments.shape
    cell = Roi((0, 0, 0), (z, y, x))
    ids, links = np.ascontiguousarray(fragments), np.ascontiguousarray(affinities)
    edges = block_edges(ids, links, offsets, cell.slices())
    planes = (affinities[(c, *_face(cell, offset).slices())] for c, offset in enumerate(offsets))
    return Part(edges, tuple(np.ascontiguousarray(plane) for plane in planes))


def joined_edges(
    fragments: NDArray[np.uint64],
    read_roi: Roi,
    owned: Roi,
    unit: Triple,
    offsets: Offsets,
    part: Callable[[Triple], Part],
) -> Edges:
    """Return the edges of one block, as `rag.block_edges` makes them of its affinities, to the last bit.

    Args:
        fragments: uint64 (z, y, x) over ``read_roi``.
        read_roi: the block and one voxel around it, where the volume has one.
        owned: the block, whole cells of ``unit`` unless the volume ends.
        unit: extent of a cell in voxels.
        offsets: those that the parts were made with.
        part: returns the part of the cell of an index.
    """
    tables = []
    for cell in blocks(owned, unit):
        found = part(cell.index)
        tables.append(found.edges)
        for offset, plane in zip(offsets, found.faces, strict=True):
            tables += _crossing(fragments, read_roi, _face(cell.roi, offset), plane, offset, owned)
            back = (-offset[0], -offset[1], -offset[2])
            beyond = _face(cell.roi, back).shift(back)
            if not owned.contains(beyond):  # the next block counts these pairs; here they are rows of contact 0
                tables += _crossing(fragments, read_roi, beyond, np.zeros(beyond.shape, np.uint8), offset, owned)
    return merge(tables)


def _crossing(
    fragments: NDArray[np.uint64], read_roi: Roi, plane: Roi, affinities: NDArray[np.uint8], offset: Triple, owned: Roi
) -> list[Edges]:
    """Return the edges of the pairs of a plane, ``p`` on it and ``p + offset`` beside it; none beyond the volume."""
    back = (max(-offset[0], 0), max(-offset[1], 0), max(-offset[2], 0))
    pair = plane.grow(back, (max(offset[0], 0), max(offset[1], 0), max(offset[2], 0)))
    if not read_roi.contains(pair):
        return []
    links = np.zeros((1, *pair.shape), np.uint8)
    links[(0, *plane.slices(pair))] = affinities
    ids = np.ascontiguousarray(fragments[pair.slices(read_roi)])
    return [block_edges(ids, links, (offset,), owned.intersect(pair).slices(pair))]


def _face(cell: Roi, offset: Triple) -> Roi:
    """Return the voxels of a cell that ``offset``, one voxel along one axis, leads out of it."""
    first, shape = list(cell.offset), list(cell.shape)
    for axis, step in enumerate(offset):
        if step:
            first[axis], shape[axis] = cell.offset[axis] if step < 0 else cell.end[axis] - 1, 1
    return Roi((first[0], first[1], first[2]), (shape[0], shape[1], shape[2]))
