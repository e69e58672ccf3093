"""The volume of fragments on disk: how it is laid out, and which mask fits it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kdseg.config import StorageOptions
from kdseg.errors import ShapeError
from kdseg.results.manifests import read, store_of
from kdseg.volumes.volume import Volume, create_volume, open_volume


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


def mask_input(mask: Path | None, source: Volume) -> dict[str, str]:
    """Return the fingerprint of a mask as an input of the stage; nothing without a mask.

    Args:
        mask: manifest of a volume (z, y, x) of integers or bools; where it is 0 is no tissue.
        source: the volume it has to fit.

    Raises:
        ShapeError: if the mask is not on the voxels of ``source``.
    """
    if mask is None:
        return {}
    found = open_volume(store_of(mask))
    if found.shape != source.shape or found.channels is not None or found.dtype.kind not in "bui":
        raise ShapeError(
            f"the mask {mask} is {found.dtype} {found.array.shape}, expected integers {source.shape} as the volume: "
            "make it on its grid"
        )
    if found.voxel_size not in (None, source.voxel_size) or found.offset != source.offset:
        raise ShapeError(
            f"the mask {mask} has the voxel size {found.voxel_size} and offset {found.offset} nm, expected "
            f"{source.voxel_size} and {source.offset} as the volume: make it on its grid"
        )
    return {"mask": read(mask)["fingerprint"]}
