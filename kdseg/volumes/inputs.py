"""The volumes that a stage reads: opened by the manifests of the stages that made them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdseg.config.tasks import VolumeInputs
from kdseg.errors import DataError, ShapeError, VoxelSizeError
from kdseg.geometry import Triple
from kdseg.results.manifests import read
from kdseg.volumes.volume import Volume, open_volume


class Input(NamedTuple):
    """A volume that a stage reads.

    Attributes:
        volume: open.
        fingerprint: of what it was made of, for the claim of the stage.
        store: where it lies, for workers to open.
    """

    volume: Volume
    fingerprint: str
    store: Path


def open_input(manifest: Path) -> Input:
    """Open the volume that a finished stage left beside its manifest."""
    made = read(manifest)
    return Input(open_volume(made.result), made.fingerprint, made.result)


def open_mask(manifest: Path | None, source: Volume) -> Input | None:
    """Open a mask, if there is one.

    Args:
        manifest: of a volume (z, y, x) of integers or bools; where it is 0 is no tissue.
        source: the volume it has to fit.

    Raises:
        ShapeError: if the mask is not on the voxels of ``source``.
    """
    if manifest is None:
        return None
    mask = open_input(manifest)
    found = mask.volume
    if found.shape != source.shape or found.channels is not None or found.dtype.kind not in "bui":
        raise ShapeError(
            f"the mask {manifest} is {found.dtype} {found.array.shape}, expected integers {source.shape} as the "
            "volume: make it on its grid"
        )
    if found.voxel_size not in (None, source.voxel_size) or found.offset != source.offset:
        raise ShapeError(
            f"the mask {manifest} has the voxel size {found.voxel_size} and offset {found.offset} nm, expected "
            f"{source.voxel_size} and {source.offset} as the volume: make it on its grid"
        )
    return mask


def labels_at(name: str, labels: Volume, other: Volume, what: str = "raw") -> Triple:
    """Return the first voxel of labels, counted from that of another volume of the same tissue.

    Args:
        name: of the volume, for messages.
        labels: integers (z, y, x).
        other: on the same grid of voxels.
        what: kind of the other volume, for messages.

    Raises:
        DataError: if the labels are no integers (z, y, x).
        VoxelSizeError: if both are not on one grid.
    """
    if labels.channels is not None or labels.dtype.kind not in "ui":
        raise DataError(f"labels of {name!r} must be integers (z, y, x), got {labels.dtype} {labels.array.shape}")
    size = other.voxel_size
    if size is None or labels.voxel_size is None or not np.allclose(labels.voxel_size, size, rtol=1e-3):
        raise VoxelSizeError(f"{name!r}: labels have voxels of {labels.voxel_size} nm, {what} of {size} nm")
    steps = [(a - b) / v for a, b, v in zip(labels.offset, other.offset, size, strict=True)]
    z, y, x = (round(step) for step in steps)
    if not np.allclose(steps, (z, y, x), atol=1e-2):
        raise VoxelSizeError(f"{name!r}: labels lie {steps} voxels from {what}; this must be whole voxels")
    return (z, y, x)


def fingerprints(**inputs: Input | None) -> dict[str, str]:
    """Return the fingerprints of those inputs that there are, by name."""
    return {name: one.fingerprint for name, one in inputs.items() if one is not None}


def volume_fingerprints(volumes: Mapping[str, VolumeInputs]) -> dict[str, str]:
    """Return the fingerprints of raw data and ground truth, ``"{volume}/raw"`` and ``"{volume}/labels"``."""
    found: dict[str, str] = {}
    for volume, one in volumes.items():
        found[f"{volume}/raw"] = read(one.raw).fingerprint
        if one.labels is not None:
            found[f"{volume}/labels"] = read(one.labels).fingerprint
    return found
