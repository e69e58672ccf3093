"""Checksums of a volume that a stage has finished, kept beside it; see `kdseg.volumes.shards`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import StageError
from kdseg.geometry import Block, Triple, grid_shape
from kdseg.results import remote
from kdseg.results.claims import Claim
from kdseg.results.tables import write_table
from kdseg.running.progress import FinishedBlocks, forget
from kdseg.volumes.shards import SHARD, UNWRITTEN
from kdseg.volumes.volume import Volume, open_volume


def keep_checksums(held: Claim, name: str, block: Triple, levels: int = 1) -> None:
    """Write what is known of the files of a volume, all of whose blocks are done; of those in a bucket nothing.

    Args:
        held: the stage's claim.
        name: of its blocks, see `kdseg.running.runner.run_blocks`.
        block: extent in voxels.
        levels: resolution levels, made by `kdseg.volumes.pyramid.build_levels`.

    Raises:
        StageError: if a file is gone, or was cut, since an earlier attempt wrote it; its block will be done again.
    """
    if remote.is_link(held.store):
        return
    columns: dict[str, NDArray[Any]] = {}
    for level in range(levels):
        volume = open_volume(held.store, level=level)
        columns[f"size_{level}"], columns[f"crc32_{level}"] = _written(
            volume, finished_blocks(held, name, block, volume, level)
        )
    write_table(held.checksums, columns)


def finished_blocks(held: Claim, name: str, block: Triple, volume: Volume, level: int) -> FinishedBlocks:
    """Return which blocks of one resolution level are done."""
    if level:
        return FinishedBlocks(held.private / f"level{level}.txt", volume.roi, volume.write_unit)
    return FinishedBlocks(held.progress(block) / f"{name}.txt", volume.roi, block)


def _written(volume: Volume, finished: FinishedBlocks) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Return size and CRC-32 of the files of a level, as they were written last."""
    known = np.zeros(grid_shape(volume.shape, volume.write_unit), SHARD)
    known["size"] = UNWRITTEN
    lost: list[Triple] = []
    for done, written in finished.written():
        z, y, x = volume.shards(done.roi)
        part = known[z.start : z.stop, y.start : y.stop, x.start : x.stop]
        part[...] = np.frombuffer(written, SHARD).reshape(part.shape)
        if not _there(volume, done, part):
            lost.append(done.index)
    if lost:
        forget(finished.path, set(lost))
        raise StageError(
            f"files of {len(lost)} finished blocks of {volume.where} are gone or cut, the first of block {lost[0]}: "
            "rerun, and these are done again"
        )
    return known["size"], known["crc32"]


def _there(volume: Volume, done: Block, known: NDArray[np.void]) -> bool:
    """Return whether the files of a block are there, of the size that they were written with."""
    sizes = (file.stat().st_size if file.exists() else UNWRITTEN for _, file in volume.files(done.roi))
    return all(size == said for size, said in zip(sizes, known["size"].ravel(), strict=True))
