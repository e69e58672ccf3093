"""Crops of volumes. Crop number ``i`` of a run follows from (seed, i) alone, whoever prepares it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdseg.augment import Crop, augment
from kdseg.config.networks import TrainOptions
from kdseg.errors import ConfigError, DataError, MissingError, ShapeError, VoxelSizeError
from kdseg.geometry import Roi, Triple
from kdseg.models import Batch
from kdseg.volume import Volume, open_volume

Addresses = Mapping[str, tuple[str | Path, str | Path | None]]
"""(raw, labels) of each volume by its name; no labels where there is no ground truth."""
VoxelSize = tuple[float, float, float]

IN_MEMORY = 2 * 1024**3
"""Bytes up to which an array is read once and kept."""
LABELLED_SHARE = 0.1
"""Least share of labelled voxels in a supervised crop, if it can be found in a few tries."""
TRIES = 8


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
        self._kept = None
        if volume.roi.size * (8 if signed else volume.dtype.itemsize) <= IN_MEMORY:
            self._kept = self._convert(volume.read(volume.roi))

    def read(self, roi: Roi) -> NDArray[Any]:
        """Return the voxels of ``roi``; 0 beyond the array."""
        inside = roi.intersect(self.roi)
        out = np.zeros(roi.shape, np.int64 if self._signed else self._volume.dtype)
        if inside.size:
            kept = self._kept
            values = self._convert(self._volume.read(inside)) if kept is None else kept[inside.slices()]
            out[inside.slices(roi)] = values
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
        labels_at: first voxel of the labels, counted from that of the raw data.
        voxel_size: nm, (z, y, x).
        offset: nm, position of the first voxel of the raw data.
    """

    def __init__(self, name: str, raw: str | Path, labels: str | Path | None) -> None:
        """Open a volume.

        Raises:
            DataError: if raw is not uint8 (z, y, x).
            VoxelSizeError: if voxel sizes are missing, differ, or the labels lie between the voxels of raw.
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
        if labels is not None:
            truth = open_volume(labels)
            self.labels = Array(truth, signed=True)
            self.labels_at = _aligned(name, volume, truth)
            if not self.labelled_roi.size:
                raise ShapeError(f"the labels of {name!r} at {self.labels_at} do not meet its raw data {volume.roi}")

    @property
    def labelled_roi(self) -> Roi:
        """The voxels of raw that have labels."""
        if self.labels is None:
            return Roi((0, 0, 0), (0, 0, 0))
        return Roi(self.labels_at, self.labels.roi.shape).intersect(self.raw.roi)

    def crop(self, roi: Roi, *, supervised: bool) -> Crop:
        """Return the voxels of ``roi``; without ground truth, or unless ``supervised``, no label counts."""
        raw = self.raw.read(roi).astype(np.float32) / np.float32(127.5) - np.float32(1)
        if self.labels is None or not supervised:
            return Crop(raw, np.zeros(roi.shape, np.int64), np.zeros(roi.shape, bool))
        z, y, x = self.labels_at
        labels = self.labels.read(roi.shift((-z, -y, -x)))
        return Crop(raw, labels, labels > 0)


class Crops(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Random augmented crops; item ``i`` is a pure function of the seed and ``i``."""

    def __init__(self, options: TrainOptions, volumes: Addresses) -> None:
        """Open the volumes.

        Args:
            options: names the volumes to use, the crop, the augmentation and the seed.
            volumes: addresses by name; others than those named are not opened.

        Raises:
            ConfigError: if all axes are to be rotated, but the voxels are not cubes.
            MissingError: if a named volume has no address or no labels.
            ShapeError: if a volume is smaller than a crop.
            VoxelSizeError: if the volumes have different voxel sizes.
        """
        self.options = options
        self.supervised = [_open(name, volumes, labelled=True) for name in options.volumes]
        self.unlabelled = [_open(name, volumes, labelled=False) for name in options.unlabelled]
        sources = [*self.supervised, *self.unlabelled]
        self.voxel_size = sources[0].voxel_size
        for source in sources:
            if not np.allclose(source.voxel_size, self.voxel_size, rtol=1e-3):
                raise VoxelSizeError(
                    f"{source.name!r} has voxels of {source.voxel_size} nm, {sources[0].name!r} of {self.voxel_size}: "
                    "a network is trained for one voxel size"
                )
            if any(n < c for n, c in zip(source.raw.roi.shape, options.crop, strict=True)):
                raise ShapeError(f"{source.name!r} has {source.raw.roi.shape} voxels, less than a crop {options.crop}")
        self.isotropic = self.voxel_size[0] <= 1.5 * max(self.voxel_size[1:])
        if options.augment.rotate == "zyx" and not np.allclose(self.voxel_size, self.voxel_size[0], rtol=0.05):
            raise ConfigError(f"augment.rotate 'zyx' needs cubic voxels, got {self.voxel_size} nm: use 'yx'")

    def __len__(self) -> int:
        return self.options.steps * self.options.batch * self.options.accumulate

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return (raw, labels, mask) of crop ``index``: float32 (1, z, y, x), int64 and bool (z, y, x)."""
        rng = np.random.default_rng([self.options.seed, index])
        crop = augment(self.draw(rng), rng, self.options.augment, isotropic=self.isotropic)
        raw, labels, mask = (torch.from_numpy(np.ascontiguousarray(array)) for array in crop)
        return raw[None], labels, mask

    def draw(self, rng: np.random.Generator) -> Crop:
        """Return a random crop as it was imaged."""
        unlabelled = bool(self.unlabelled) and rng.random() < self.options.unlabelled_fraction
        sources = self.unlabelled if unlabelled else self.supervised
        sizes = np.array([(s.raw.roi if unlabelled else s.labelled_roi).size for s in sources], float)
        source = sources[int(rng.choice(len(sources), p=sizes / sizes.sum()))]
        within = source.raw.roi if unlabelled else source.labelled_roi
        for attempt in range(TRIES):
            roi = Roi(_place(rng, within, self.options.crop, source.raw.roi), self.options.crop)
            crop = source.crop(roi, supervised=not unlabelled)
            if unlabelled or crop.mask.mean() >= LABELLED_SHARE or attempt == TRIES - 1:
                break
        return crop


def loader(crops: Crops, start: int, *, rank: int = 0, ranks: int = 1) -> DataLoader[Any]:
    """Return the batches from optimiser step ``start`` on, one per pass through the network.

    Each process takes every ``ranks``-th crop, so that all of them together see the crops that one would.

    Raises:
        ConfigError: if the batch cannot be shared out evenly.
    """
    options = crops.options
    if options.batch % ranks:
        raise ConfigError(f"a batch of {options.batch} cannot be shared out to {ranks} processes: use a multiple")
    per_step = options.batch * options.accumulate
    return DataLoader(
        crops,
        batch_size=options.batch // ranks,
        sampler=range(start * per_step + rank, options.steps * per_step, ranks),
        num_workers=options.loader_workers,
        collate_fn=collate,
    )


def collate(items: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Batch:
    """Return a batch of crops."""
    raw, labels, mask = zip(*items, strict=True)
    return Batch(torch.stack(raw), torch.stack(labels), torch.stack(mask))


def _open(name: str, volumes: Addresses, *, labelled: bool) -> Source:
    if name not in volumes:
        raise MissingError(f"no data were given for the volume {name!r}, only for {sorted(volumes)}")
    raw, labels = volumes[name]
    if labelled and labels is None:
        raise MissingError(f"the volume {name!r} has no labels, but is trained on")
    return Source(name, raw, labels if labelled else None)


def _aligned(name: str, raw: Volume, labels: Volume) -> Triple:
    if labels.channels is not None or labels.dtype.kind not in "ui":
        raise DataError(f"labels of {name!r} must be integers (z, y, x), got {labels.dtype} {labels.array.shape}")
    size = raw.voxel_size
    if size is None or labels.voxel_size is None or not np.allclose(labels.voxel_size, size, rtol=1e-3):
        raise VoxelSizeError(f"{name!r}: labels have voxels of {labels.voxel_size} nm, raw of {size} nm")
    steps = [(a - b) / v for a, b, v in zip(labels.offset, raw.offset, size, strict=True)]
    z, y, x = (round(step) for step in steps)
    if not np.allclose(steps, (z, y, x), atol=1e-2):
        raise VoxelSizeError(f"{name!r}: labels lie {steps} voxels from raw; this must be whole voxels")
    return (z, y, x)


def _place(rng: np.random.Generator, within: Roi, crop: Triple, limits: Roi) -> Triple:
    """Return the first voxel of a crop in ``within``, or around it where it is smaller, and always in ``limits``."""
    first = []
    for o, n, c, limit in zip(within.offset, within.shape, crop, limits.shape, strict=True):
        low, high = (o, o + n - c) if n >= c else (o + n - c, o)
        first.append(int(rng.integers(max(low, 0), min(high, limit - c) + 1)))
    return (first[0], first[1], first[2])
