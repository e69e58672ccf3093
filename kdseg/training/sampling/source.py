"""Volumes to draw crops from: raw data, ground truth, and what stored teachers made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdseg.config.data import Background
from kdseg.errors import ConfigError, DataError, MissingError, ShapeError, VoxelSizeError
from kdseg.geometry import Offsets, Roi
from kdseg.prediction.tiles import read_reflected
from kdseg.training.augment import Crop
from kdseg.volumes.affinities import affinity_offsets
from kdseg.volumes.background import background_of
from kdseg.volumes.inputs import labels_at
from kdseg.volumes.volume import Volume, open_volume

Addresses = Mapping[str, tuple[str | Path, str | Path | None]]
"""(raw, labels) of each volume by its name; no labels where there is no ground truth."""

OUTSIDE = 2**63 - 1
"""Id of the background where it is an object."""
IN_MEMORY = 2 * 1024**3
"""Bytes up to which an array is read once and kept."""


class Guide(NamedTuple):
    """Addresses of what teachers made of one volume.

    Attributes:
        affinities: one store per teacher.
        embeddings: one store per teacher, or none.
        instances: a teacher's segmentation, for volumes without ground truth.
    """

    affinities: tuple[Path, ...] = ()
    embeddings: tuple[Path, ...] = ()
    instances: Path | None = None


class Array:
    """An array of one volume, in memory where it is small, with reading beyond its ends."""

    def __init__(self, volume: Volume, signed: bool) -> None:
        """Open an array.

        Args:
            volume: where it lies.
            signed: store ids as int64 (labels) rather than as they are (raw).
        """
        self.roi = volume.roi
        self._volume = volume
        self._signed = signed
        self._kept: Tensor | None = None
        self._lead = () if volume.channels is None else (volume.channels,)
        if volume.roi.size * sum(self._lead or (1,)) * (8 if signed else volume.dtype.itemsize) <= IN_MEMORY:
            # not as an array: a tensor goes to the processes of a loader as memory that all of them share
            self._kept = torch.from_numpy(self._convert(volume.read(volume.roi)))

    def read(self, roi: Roi) -> NDArray[Any]:
        """Return the voxels of ``roi``, channels first if there are any; 0 beyond the array."""
        inside = roi.intersect(self.roi)
        out = np.zeros((*self._lead, *roi.shape), np.int64 if self._signed else self._volume.dtype)
        if inside.size:
            kept = self._kept
            values = self._convert(self._volume.read(inside)) if kept is None else kept.numpy()[(..., *inside.slices())]
            out[(..., *inside.slices(roi))] = values
        return out

    def _convert(self, values: NDArray[Any]) -> NDArray[Any]:
        if not self._signed:
            return values
        ids = values.astype(np.int64)
        if ids.size and ids.min() < 0:
            raise DataError("labels must lie between 0 and 2**63 - 1: renumber them when converting the volume")
        return ids


class Source:
    """One volume to draw crops from.

    Attributes:
        raw: uint8.
        labels: None where there is no ground truth.
        affinities: uint8 (c, z, y, x), of each stored teacher.
        embeddings: float16 (d, z, y, x), of each stored teacher that has one.
        instances: a teacher's segmentation.
        labels_at: first voxel of the labels, counted from that of the raw data.
        background: meaning of label 0.
        voxel_size: nm, (z, y, x).
        offset: nm, position of the first voxel of the raw data.
    """

    def __init__(self, name: str, raw: str | Path, labels: str | Path | None, guide: Guide | None = None) -> None:
        """Open a volume.

        Args:
            name: for messages.
            raw: address of the raw data.
            labels: address of the ground truth, if there is any, on the voxels of raw.
            guide: what teachers made of the volume; it covers all of raw.

        Raises:
            DataError: if raw is not uint8 (z, y, x).
            VoxelSizeError: if raw has no voxel size.
            ShapeError: if the labels do not meet the raw data.
        """
        volume = open_volume(raw)
        if volume.dtype != np.uint8 or volume.channels is not None:
            raise DataError(f"raw of {name!r} must be uint8 (z, y, x), got {volume.dtype} {volume.array.shape}")
        if volume.voxel_size is None:
            raise VoxelSizeError(f"raw of {name!r} at {raw} has no voxel size: convert it first")
        self.name, self.voxel_size, self.offset = name, volume.voxel_size, volume.offset
        self.raw = Array(volume, signed=False)
        self.labels: Array | None = None
        self.labels_at = (0, 0, 0)
        self.background: Background = "unknown"
        if labels is not None:
            truth = open_volume(labels)
            self.background = background_of(truth.attributes, labels)
            self.labels = Array(truth, signed=True)
            self.labels_at = labels_at(name, truth, volume)
            if not self.labelled_roi.size:
                raise ShapeError(f"the labels of {name!r} at {self.labels_at} do not meet its raw data {volume.roi}")
        guide = guide or Guide()
        self.affinities = [_stored(name, volume, path) for path in guide.affinities]
        self.embeddings = [_stored(name, volume, path) for path in guide.embeddings]
        self.instances = None if guide.instances is None else _stored(name, volume, guide.instances, signed=True)

    @property
    def labelled_roi(self) -> Roi:
        """The voxels of raw that have labels."""
        if self.labels is None:
            return Roi((0, 0, 0), (0, 0, 0))
        return Roi(self.labels_at, self.labels.roi.shape).intersect(self.raw.roi)

    def crop(self, roi: Roi, *, supervised: bool) -> Crop:
        """Return the voxels of ``roi``.

        Without ground truth, or unless ``supervised``, no label counts: the labels are then the teacher's
        segmentation, or 0.
        """
        # beyond the volume it goes on as in a mirror, which an elastic deformation may look at
        raw = read_reflected(self.raw.read, self.raw.roi, roi).astype(np.float32) / np.float32(127.5) - np.float32(1)
        if self.labels is None or not supervised:
            ids = np.zeros(roi.shape, np.int64) if self.instances is None else self.instances.read(roi)
            return Crop(raw, ids, np.zeros(roi.shape, bool))
        z, y, x = self.labels_at
        place = roi.shift((-z, -y, -x))
        labels = self.labels.read(place)
        if self.background == "unknown":
            return Crop(raw, labels, labels > 0)
        looked_at = np.zeros(roi.shape, bool)
        looked_at[place.intersect(self.labels.roi).slices(place)] = True
        if self.background == "object":
            labels = np.where(looked_at & (labels == 0), OUTSIDE, labels)
        return Crop(raw, labels, looked_at)


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
