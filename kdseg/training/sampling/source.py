"""Volumes to draw crops from: raw data, ground truth, and what stored teachers made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import ConfigError, DataError, MissingError, ShapeError, VoxelSizeError
from kdseg.geometry import Offsets, Roi
from kdseg.prediction.tiles import read_reflected
from kdseg.training.augment import Crop
from kdseg.training.sampling.arrays import Array, Labels
from kdseg.volumes.affinities import affinity_offsets
from kdseg.volumes.volume import Volume, open_volume

Addresses = Mapping[str, tuple[str | Path, str | Path | None]]
"""(raw, labels) of each volume by its name; no labels where there is no ground truth."""


class Guide(NamedTuple):
    """Addresses of what teachers made of one volume.

    Attributes:
        affinities: one store per teacher.
        embeddings: one store per teacher, or none.
        instances: a teacher's segmentation, for volumes without ground truth.
        segmentation: a segmentation that teaches alone, instead of affinities.
        rim: voxels from another object up to which its affinities are less sure; see `segmented_outputs`.
    """

    affinities: tuple[Path, ...] = ()
    embeddings: tuple[Path, ...] = ()
    instances: Path | None = None
    segmentation: Path | None = None
    rim: int = 0


class Source:
    """One volume to draw crops from.

    Attributes:
        raw: uint8.
        labels: None where there is no ground truth.
        affinities: uint8 (c, z, y, x), of each stored teacher.
        embeddings: float16 (d, z, y, x), of each stored teacher that has one.
        instances: reads a teacher's segmentation, int64 (z, y, x); 0 is none.
        segmentation: one that teaches, and ``rim`` of it; see `Guide`.
        voxel_size: nm, (z, y, x).
        offset: nm, position of the first voxel of the raw data.
    """

    def __init__(self, name: str, raw: str | Path, labels: str | Path | None, guide: Guide | None = None) -> None:
        """Open a volume.

        Args:
            name: for messages.
            raw: address of the raw data.
            labels: address of the ground truth, if there is any, on the voxels of raw.
            guide: what teachers made of the volume; it covers all of raw, unless it is a segmentation that teaches.

        Raises:
            DataError: if raw is not uint8 (z, y, x).
            VoxelSizeError: if raw has no voxel size.
        """
        volume = open_volume(raw)
        if volume.dtype != np.uint8 or volume.channels is not None:
            raise DataError(f"raw of {name!r} must be uint8 (z, y, x), got {volume.dtype} {volume.array.shape}")
        if volume.voxel_size is None:
            raise VoxelSizeError(f"raw of {name!r} at {raw} has no voxel size: convert it first")
        self.name, self.voxel_size, self.offset = name, volume.voxel_size, volume.offset
        self.raw = Array(volume, signed=False)
        self.labels = None if labels is None else Labels(name, labels, volume)
        guide = guide or Guide()
        self.affinities = [_stored(name, volume, path) for path in guide.affinities]
        self.embeddings = [_stored(name, volume, path) for path in guide.embeddings]
        self.segmentation = None if guide.segmentation is None else Labels(name, guide.segmentation, volume)
        self.rim = guide.rim
        self.instances: Callable[[Roi], NDArray[np.int64]] | None = None
        if guide.instances is not None:
            own = self.segmentation
            self.instances = _stored(name, volume, guide.instances, signed=True).read if own is None else own.ids

    @property
    def labelled_roi(self) -> Roi:
        """The voxels of raw that have labels."""
        return Roi((0, 0, 0), (0, 0, 0)) if self.labels is None else self.labels.roi

    @property
    def taught_roi(self) -> Roi:
        """The voxels of raw that a teacher can say something about."""
        return self.raw.roi if self.segmentation is None else self.segmentation.roi

    def crop(self, roi: Roi, *, supervised: bool) -> Crop:
        """Return the voxels of ``roi``.

        Without ground truth, or unless ``supervised``, no label counts: the labels are then the teacher's
        segmentation, or 0.
        """
        # beyond the volume it goes on as in a mirror, which an elastic deformation may look at
        raw = read_reflected(self.raw.read, self.raw.roi, roi).astype(np.float32) / np.float32(127.5) - np.float32(1)
        if self.labels is None or not supervised:
            ids = np.zeros(roi.shape, np.int64) if self.instances is None else self.instances(roi)
            return Crop(raw, ids, np.zeros(roi.shape, bool))
        return Crop(raw, *self.labels.read(roi))


def check_guide(name: str, guide: Guide, teachers: Sequence[str], offsets: Offsets) -> None:
    """Refuse stored affinities that are not of all teachers, or whose channels are not those of the student.

    Args:
        name: of the volume.
        guide: what teachers made of it.
        teachers: names of those whose outputs are stored; none if they predict each crop.
        offsets: of the student's affinities.

    Raises:
        MissingError: if a teacher's are missing.
        ConfigError: if their offsets differ.
    """
    if guide.segmentation is not None and len(teachers) == 1:
        return
    if teachers and len(guide.affinities) != len(teachers):
        raise MissingError(
            f"teachers are stored, but of {name!r} there are affinities of {len(guide.affinities)} of the "
            f"{len(teachers)} teachers {tuple(teachers)}: predict it with each"
        )
    for path in guide.affinities:
        found = affinity_offsets(open_volume(path))
        if found != offsets:
            raise ConfigError(
                f"the teacher's affinities of {name!r} at {path} have the offsets {found}, the student predicts "
                f"{offsets}: predict with a teacher of the same offsets"
            )


def _stored(name: str, raw: Volume, path: Path, *, signed: bool = False) -> Array:
    volume = open_volume(path)
    if raw.voxel_size is None or not np.allclose(volume.voxel_size or 0, raw.voxel_size, rtol=1e-3):
        raise VoxelSizeError(f"{path} has voxels of {volume.voxel_size} nm, raw of {name!r} of {raw.voxel_size} nm")
    if volume.shape != raw.shape or not np.allclose(volume.offset, raw.offset, atol=1e-2):
        raise ShapeError(
            f"{path} covers {volume.shape} voxels from {volume.offset} nm, raw of {name!r} {raw.shape} from "
            f"{raw.offset} nm: a stored teacher must have seen the same volume"
        )
    return Array(volume, signed)
