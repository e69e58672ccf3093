"""Finished blocks of a grid: a list that only grows, on disk, and a bit per block in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import UnreadableError
from kdseg.geometry import Block, Roi, Triple, blocks


class FinishedBlocks:
    """The finished blocks of a region; a line that a crash cut short is dropped.

    Attributes:
        path: of the list, one index (z, y, x) per line.
        total: region.
        block: grid cell in voxels.
        finished: bool, one per cell of the region.
    """

    def __init__(self, path: Path, total: Roi, block: Triple) -> None:
        self.path, self.total, self.block = path, total, block
        self.low = tuple(o // b for o, b in zip(total.offset, block, strict=True))
        ends = zip(total.end, block, self.low, strict=True)
        self.finished = np.zeros([max(-(-e // b) - low, 0) for e, b, low in ends], np.bool_)
        if path.exists():
            whole = path.read_bytes().rpartition(b"\n")
            os.truncate(path, len(whole[0]) + len(whole[1]))
            if whole[0]:
                index = np.array([line.split() for line in whole[0].splitlines()], np.int64) - self.low
                self.finished[tuple(index.T)] = True

    def add(self, index: Triple) -> None:
        """Note a finished block.

        Raises:
            UnreadableError: if the disk does not take it.
        """
        try:
            with self.path.open("a") as file:
                file.write(" ".join(str(i) for i in index) + "\n")
        except OSError as error:
            raise UnreadableError(f"cannot write {self.path}: {error}") from error
        self.finished[self._cell(index)] = True

    def missing(self) -> Iterator[Block]:
        """Yield the blocks that were not finished when they came up, in C order: one shard after the other."""
        yield from (block for block in blocks(self.total, self.block) if not self.finished[self._cell(block.index)])

    def voxels(self) -> int:
        """Return the number of voxels of the finished blocks."""
        extents = [self._extents(axis).astype(np.float64) for axis in range(3)]
        # sums of whole numbers below 2**53 are exact
        return int(np.einsum("zyx,z,y,x->", self.finished.astype(np.float64), *extents))

    def _extents(self, axis: int) -> NDArray[np.int64]:
        """Return how many voxels of the region lie in each cell along an axis."""
        edges = (np.arange(self.finished.shape[axis] + 1) + self.low[axis]) * self.block[axis]
        inside: NDArray[np.int64] = np.clip(edges, self.total.offset[axis], self.total.end[axis])
        extents: NDArray[np.int64] = np.diff(inside)
        return extents

    def _cell(self, index: Triple) -> tuple[int, ...]:
        return tuple(i - low for i, low in zip(index, self.low, strict=True))
