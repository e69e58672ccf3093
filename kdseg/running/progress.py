"""Finished blocks of a grid: a list that only grows, on disk, and a bit per block in memory."""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import UnreadableError
from kdseg.geometry import Block, Roi, Triple, block_at, blocks, triple
from kdseg.results.files import write_text
from kdseg.results.manifests import fingerprint_of, owner

log = logging.getLogger(__name__)

_REUSED = b"reused"
"""Word in the line of a block that was taken from an earlier result; no hex number."""
_PLACE = re.compile(r"([0-9]+) ([0-9]+) ([0-9]+) ")


class FinishedBlocks:
    """The finished blocks of a region.

    A line that a crash cut short, that a disk damaged, or that is of another grid or result is dropped: its block is
    done again.

    Attributes:
        path: of the list; a line is an index (z, y, x), what is known of the files that were written, in hex, perhaps
            the word ``reused``, and a CRC-32 of all that, of the grid and of what the result is made of.
        total: region.
        block: grid cell in voxels.
        finished: bool, one per cell of the region.
        reused: likewise, whether the block was taken from an earlier result.
    """

    def __init__(self, path: Path, total: Roi, block: Triple) -> None:
        self.path, self.total, self.block = path, total, block
        self.low = tuple(o // b for o, b in zip(total.offset, block, strict=True))
        ends = zip(total.end, block, self.low, strict=True)
        self.finished = np.zeros([max(-(-e // b) - low, 0) for e, b, low in ends], np.bool_)
        self.reused = np.zeros_like(self.finished)
        self._place = zlib.crc32(f"{path.name} {total} {block} {fingerprint_of(owner(path))}".encode())
        if path.exists():
            self._read()

    def _read(self) -> None:
        *lines, cut = self.path.read_bytes().split(b"\n")
        sound = [line for line in lines if line == self._line(line.rpartition(b" ")[0])]
        if sound:
            index = np.array([line.split()[:3] for line in sound], np.int64) - self.low
            self.finished[tuple(index.T)] = True
            self.reused[tuple(index.T)] = [_REUSED in line for line in sound]  # the last line of a block counts
        if len(sound) < len(lines):
            log.warning(
                "%s is damaged or of another result: %d of %d lines are not as they were written; the blocks of these "
                "are done again",
                self.path,
                len(lines) - len(sound),
                len(lines),
            )
        if cut or len(sound) < len(lines):
            write_text(self.path, b"".join(line + b"\n" for line in sound).decode())

    def _line(self, said: bytes) -> bytes:
        return b"%b %08x" % (said, zlib.crc32(said, self._place))

    def add(self, index: Triple, written: bytes = b"", *, reused: bool = False) -> None:
        """Note a finished block.

        Args:
            index: (z, y, x).
            written: what is known of the files that were written.
            reused: whether it was taken from an earlier result.

        Raises:
            UnreadableError: if the disk does not take it.
        """
        known = b" " + written.hex().encode() if written else b""
        known += b" " + _REUSED if reused else b""
        line = self._line(b"%d %d %d%b" % (*index, known))
        try:
            with self.path.open("ab") as file:
                file.write(line + b"\n")
        except OSError as error:
            raise UnreadableError(f"cannot write {self.path}: {error}") from error
        self.finished[self._cell(index)], self.reused[self._cell(index)] = True, reused

    def written(self) -> Iterator[tuple[Block, bytes]]:
        """Yield the finished blocks with what is known of their files; if one was done twice, the last time last."""
        with self.path.open("rb") as file:
            for line in file:
                z, y, x, *more, _ = line.split()
                known = [word for word in more if word != _REUSED]
                if known:
                    where = block_at((int(z), int(y), int(x)), self.total, self.block)
                    yield where, bytes.fromhex(known[0].decode())

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


def listed(path: Path) -> Iterator[Triple]:
    """Yield the places in the grid of the blocks of a list, sound lines or not; nothing of what is no place."""
    yield from (place for _, place in _lines(path))


def _lines(path: Path) -> Iterator[tuple[str, Triple]]:
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        if place := _PLACE.match(line):
            yield line, triple(map(int, place.groups()))


def forget(path: Path, lost: Collection[Triple]) -> None:
    """Take blocks from a list of finished ones, so that they are done again."""
    kept = (line for line, place in _lines(path) if place not in lost)
    write_text(path, "".join(f"{line}\n" for line in kept))
