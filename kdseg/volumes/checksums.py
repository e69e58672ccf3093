"""Checksums of a volume that a stage has finished, kept beside it; see `kdseg.volumes.shards`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import StageError
from kdseg.geometry import Triple, cell_with, grid_shape
from kdseg.results import remote
from kdseg.results.claims import Claim
from kdseg.results.tables import write_table
from kdseg.running.progress import FinishedBlocks, forget
from kdseg.volumes.shards import UNWRITTEN
from kdseg.volumes.volume import Volume, open_volume

Build = Callable[[int], object]
"""Makes a resolution level."""


def _nothing(_level: int) -> None:
    """Make no level: there is but one."""


def keep_checksums(held: Claim, name: str, block: Triple, levels: int = 1, build: Build = _nothing) -> None:
    """Write what is known of the files of a volume, all of whose blocks are done.

    Args:
        held: the stage's claim.
        name: of its blocks, see `kdseg.running.runner.run_blocks`.
        block: extent in voxels.
        levels: resolution levels.
        build: makes one of the levels 1, 2, … of the one below it, of which no file is missing: it would read as zeros.

    Raises:
        StageError: if a file is gone, or was cut, since an earlier attempt wrote it; its block will be done again.
    """
    columns: dict[str, NDArray[Any]] = {}
    for level in range(levels):
        if level:
            build(level)
        known = _expect_whole(held, name, block, level)
        columns |= {f"{what}_{level}": known[what] for what in known.dtype.names or ()}
    write_table(held.checksums, columns)


def _expect_whole(held: Claim, name: str, block: Triple, level: int) -> NDArray[np.void]:
    """Return what is known of the files of a level, as they were written last.

    A file that an earlier attempt left where none is to be, since all its voxels are 0, is removed.
    """
    volume = open_volume(held.store, level=level)
    finished = _finished_blocks(held, name, block, volume, level)
    known = np.zeros(grid_shape(volume.shape, volume.write_unit), volume.record)
    known["size"] = UNWRITTEN
    for done, written in finished.written():
        z, y, x = volume.shards(done.roi)
        part = known[z.start : z.stop, y.start : y.stop, x.start : x.stop]
        part[...] = np.frombuffer(written, volume.record).reshape(part.shape)
    lost: list[Triple] = []
    for index, file, size in volume.sizes():
        if known["size"][index] == UNWRITTEN and size != UNWRITTEN:
            file.unlink() if isinstance(file, Path) else remote.delete(file)
        elif size != known["size"][index]:
            lost.append(cell_with(index, volume.write_unit, finished.block))
    if lost:
        forget(finished.path, set(lost))
        raise StageError(
            f"files of {len(set(lost))} finished blocks of {volume.where} are gone or cut, the first of block "
            f"{lost[0]}: rerun, and these are done again"
        )
    return known


def _finished_blocks(held: Claim, name: str, block: Triple, volume: Volume, level: int) -> FinishedBlocks:
    """Return which blocks of one resolution level are done."""
    if level:
        return FinishedBlocks(held.private / f"level{level}.txt", volume.roi, volume.write_unit)
    return FinishedBlocks(held.progress(block) / f"{name}.txt", volume.roi, block)
