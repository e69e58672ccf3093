"""The volume of fragments on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kdseg.config import StorageOptions
from kdseg.errors import ShapeError
from kdseg.volumes.volume import Volume, create_volume


def create_fragments(path: Path, source: Volume, storage: StorageOptions) -> None:
    """Create the volume of fragments of some affinities or raw data, or open that of an earlier attempt.

    Raises:
        ShapeError: if the source has no voxel size.
        UnreadableError: if the disk does not take it.
    """
    if source.voxel_size is None:
        raise ShapeError(f"{source.where} has no voxel size")
    create_volume(
        path,
        shape=source.shape,
        dtype=np.uint64,
        chunk=storage.chunk,
        shard=storage.shard,
        voxel_size=source.voxel_size,
        offset=source.offset,
    )
