"""The dendrogram on disk: one table of merges per node of the agglomeration tree.

Beside the manifest ``agglomeration.json`` lies ``agglomeration.tables/{level}_{z}_{y}_{x}.npz`` with the columns
``a``, ``b``, ``affinity_sum``, ``contact`` of the merges (`linkage.Dendrogram`), in leaves
(level 0) also ``fragment``: all fragments of the leaf, sorted. Any threshold up to the one agglomerated with is a
cut: memory is that of one path from leaf to root, never of the volume.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdseg.config.base import exact
from kdseg.errors import ConfigError
from kdseg.geometry import Roi, Triple, blocks
from kdseg.results.manifests import read
from kdseg.results.tables import read_table
from kdseg.segmentation.agglomeration.linkage import Dendrogram, cut
from kdseg.segmentation.agglomeration.tree import Layout, inside, node_of, rename


def table_path(folder: Path, level: int, node: Triple) -> Path:
    """Return where a node's merges are."""
    return folder / f"{level}_{node[0]}_{node[1]}_{node[2]}.npz"


class Tree:
    """A finished agglomeration, to be cut.

    Attributes:
        folder: of the tables.
        layout: of the tree.
        largest: score up to which was merged.
    """

    def __init__(self, manifest: Path) -> None:
        """Open an agglomeration."""
        made = read(manifest)
        self.folder = made.result
        shape, block, chunk = ((z, y, x) for z, y, x in map(made.stat, ("shape", "block", "chunk")))
        self.layout = Layout(shape, block, chunk)
        self.largest = float(max(made.stat("thresholds")))
        self._merges = lru_cache(maxsize=16)(_merges)  # the upper nodes are read again and again

    def leaves(self) -> Iterator[Triple]:
        """Yield the indices of the leaves."""
        for block in blocks(Roi((0, 0, 0), self.layout.shape), self.layout.chunk):
            yield block.index

    def fragments(self, leaf: Triple) -> NDArray[np.uint64]:
        """Return all fragments of a leaf, uint64 (f,), ascending."""
        return read_table(table_path(self.folder, 0, leaf))["fragment"]

    def segments(self, ids: NDArray[np.uint64], threshold: float) -> NDArray[np.uint64]:
        """Return the segments of some fragments.

        Args:
            ids: uint64 (n,), fragments, in any order.
            threshold: score up to which is merged.

        Returns:
            uint64 (n,); a segment's id is its smallest fragment.
        """
        self.expect_reached(threshold)
        names, inverse = np.unique(ids, return_inverse=True)
        for level in range(self.layout.levels):
            nodes, which = np.unique(node_of(names, self.layout, level), axis=0, return_inverse=True)
            renamed = names.copy()
            for k, (z, y, x) in enumerate(nodes.tolist()):
                mine = which.ravel() == k
                merges = self._merges(table_path(self.folder, level, (z, y, x)), threshold)
                renamed[mine] = rename(names[mine], *merges)
            names = renamed
        return names[inverse]

    def names(
        self, level: int, node: Triple, threshold: float, above: dict[str, NDArray[np.uint64]]
    ) -> dict[str, NDArray[np.uint64]]:
        """Return the segments of the regions that a node and those above it merge, or of a leaf's fragments.

        From the root down, with the result for the parent each time, this is `segments` for the whole volume in a time
        that grows with the number of merges only.

        Args:
            level: of the node.
            node: its index.
            threshold: score up to which is merged.
            above: the result for the parent; empty columns for the root.

        Returns:
            Columns uint64 (n,): ``fragment``, ascending, the fragment that names a region as the node's children know
            it, and ``segment``.
        """
        merges = self._merges(table_path(self.folder, level, node), threshold)
        if level == 0:
            fragment = self.fragments(node)
        else:
            mine = above["fragment"][inside(above["fragment"], self.layout, level, node)]
            fragment = np.unique(np.concatenate((*merges, mine)))
        region = rename(fragment, *merges)
        if not above["fragment"].size:
            return {"fragment": fragment, "segment": region}
        row = np.minimum(np.searchsorted(above["fragment"], region), above["fragment"].size - 1)
        return {
            "fragment": fragment,
            "segment": np.where(above["fragment"][row] == region, above["segment"][row], region),
        }

    def merges(self, ids: NDArray[np.uint64], threshold: float) -> Dendrogram:
        """Return the merges that decide about some fragments up to a threshold: each table is read once.

        Args:
            ids: uint64 (n,), fragments, in any order.
            threshold: largest score that will be asked for.

        Returns:
            All merges in the leaves of these fragments and in the nodes above, node by node.
        """
        self.expect_reached(threshold)
        parts = []
        for level in range(self.layout.levels):
            for z, y, x in np.unique(node_of(ids, self.layout, level), axis=0).tolist():
                table = read_table(table_path(self.folder, level, (z, y, x)))
                parts.append([table[name] for name in Dendrogram._fields])
        none = [np.empty(0, np.uint64)] * len(Dendrogram._fields)
        return Dendrogram(*map(np.concatenate, zip(none, *parts, strict=True)))

    def expect_reached(self, threshold: float) -> None:
        """Refuse to be cut where merges are missing.

        Raises:
            ConfigError: if the threshold is larger than the one agglomerated with.
        """
        if exact(threshold) > exact(self.largest):
            raise ConfigError(
                f"the volume was agglomerated up to a score of {self.largest}, it cannot be cut at {threshold}: add "
                "the threshold to agglomerate.thresholds"
            )


def _merges(path: Path, threshold: float) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    table = read_table(path)
    return cut(Dendrogram(*(table[name] for name in Dendrogram._fields)), threshold)
