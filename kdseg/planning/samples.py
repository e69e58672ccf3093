"""Small parts of volumes, and affinities of them that no network was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from kdseg.config import Config, VolumeOptions
from kdseg.config.data import PhantomOptions, RoiOptions
from kdseg.config.questions import AdoptTask
from kdseg.config.tasks import ConvertTask, Kind
from kdseg.geometry import Offsets, Triple, VoxelSize, pair_slices, triple
from kdseg.planning.bench import Bench, Cost
from kdseg.planning.extents import Conversion
from kdseg.volumes.inputs import open_input

LARGE: Triple = (128, 192, 192)
"""Voxels of the larger sample, of volumes that are large enough, before it is rounded up to whole shards."""
MOST = 2**25
"""Voxels that a sample has at most."""
_INSIDE, _ACROSS = 0.9, 0.2
"""Affinities within and across objects before they are blurred."""
_BLUR, _NOISE, _GRAIN = 0.7, 0.35, 2.0


def sample_shapes(shape: Triple, shard: Triple, wanted: Triple = LARGE) -> tuple[Triple, Triple]:
    """Return the shapes of a smaller and a larger sample of a volume, (z, y, x).

    The smaller one is a shard. The larger one has ``wanted`` voxels along each axis, or half the volume, rounded up to
    whole shards, at most the volume. Where that is no more than a shard, it is all of a volume of at most ``wanted``
    voxels along each axis, or else two shards, beside each other along the axis that has most of a second one.
    """

    def along(n: int, s: int, w: int) -> int:
        return min(n, -(-max(s, min(w, -(-n // 2))) // s) * s)

    small = triple(min(n, s) for n, s in zip(shape, shard, strict=True))
    large = triple(along(n, s, w) for n, s, w in zip(shape, shard, wanted, strict=True))
    if large != small:
        return small, large
    if all(n <= w for n, w in zip(shape, wanted, strict=True)):
        return small, shape
    doubled = [min(n, 2 * s) for n, s in zip(shape, shard, strict=True)]
    longest = max(range(3), key=lambda axis: (doubled[axis] / small[axis], axis))
    return small, triple(doubled[axis] if axis == longest else small[axis] for axis in range(3))


def growing(shape: Triple, within: Triple | None = None) -> Iterator[Triple]:
    """Yield the shape of a sample, and of samples of about four times as many voxels each, of `MOST` at most.

    Args:
        shape: of the first one, (z, y, x).
        within: shape of the volume that they are parts of; None: they can be as large as they like.
    """
    while True:
        yield shape
        larger = shape
        for _ in range(2):
            axes = [axis for axis in range(3) if within is None or larger[axis] < within[axis]]
            if not axes:
                break
            shortest = min(axes, key=lambda axis: larger[axis])
            twice = [n * 2 if axis == shortest else n for axis, n in enumerate(larger)]
            larger = triple(twice if within is None else map(min, twice, within))
        if larger == shape or prod(larger) > MOST:
            return
        shape = larger


def part_of(options: VolumeOptions, whole: Triple, shape: Triple, shard: Triple) -> VolumeOptions:
    """Return the options of the middle of a volume.

    Args:
        options: of the volume.
        whole: its shape in voxels.
        shape: of the part; of a phantom it may be larger than the whole.
        shard: the part begins at one.
    """
    first = triple(max(n - m, 0) // 2 // s * s for n, m, s in zip(whole, shape, shard, strict=True))
    if options.phantom is not None:
        begin = triple(o + f for o, f in zip(options.phantom.offset, first, strict=True))
        cut = options.phantom.model_copy(update={"shape": shape, "offset": begin})
        return options.model_copy(update={"phantom": cut})
    base = (0, 0, 0) if options.roi is None else options.roi.offset
    begin = triple(b + f for b, f in zip(base, first, strict=True))
    return options.model_copy(update={"roi": RoiOptions(offset=begin, shape=shape)})


def blurred_affinities(labels: NDArray[np.uint64], offsets: Offsets, seed: int = 0) -> NDArray[np.uint8]:
    """Return affinities as a network might see objects: blurred, with weak spots.

    Args:
        labels: (z, y, x); 0 is no object.
        offsets: one (z, y, x) step in voxels per channel.
        seed: of the noise.

    Returns:
        uint8 (c, z, y, x), in 1/255.
    """
    grain = gaussian_filter(np.random.default_rng(seed).standard_normal(labels.shape, np.float32), _GRAIN)
    grain *= _NOISE / max(float(grain.std()), 1e-6) / 2
    out = np.empty((len(offsets), *labels.shape), np.uint8)
    for channel, offset in enumerate(offsets):
        here, there = pair_slices(triple(labels.shape), offset)
        values = np.full(labels.shape, _ACROSS, np.float32)
        values[here][(labels[here] == labels[there]) & (labels[here] > 0)] = _INSIDE
        out[channel] = np.clip(255 * (gaussian_filter(values, _BLUR) - np.abs(grain)), 0, 255)
    return out


@dataclass
class Samples:
    """Samples that were made, each once, by the workflow's own conversion.

    Attributes:
        bench: that runs it.
        config: of the run.
        needed: work of the largest job of each kind, by the names that `Job.work` uses.
        largest: voxels of the largest sample of a volume so far, (z, y, x).
        costs: of what was made, by its manifest.
    """

    bench: Bench
    config: Config
    needed: Mapping[str, float] = field(default_factory=dict)
    largest: Triple = (0, 0, 0)
    costs: dict[Path, Cost] = field(default_factory=dict)

    def dataset(self, name: str, options: VolumeOptions, kind: Kind) -> Path:
        """Convert one dataset of a sample, unless it is there; return its manifest."""
        manifest = self.bench.folder / "volumes" / name / f"{kind}.json"
        if manifest not in self.costs:
            storage = self.config.storage.model_copy(update={"remote": None})
            task = ConvertTask(manifest=manifest, kind=kind, options=options, storage=storage)
            self.costs[manifest] = self.bench.run("convert", task)
        return manifest

    def part(self, whole: Conversion, shape: Triple, turn: str = "") -> Path:
        """Convert the middle of one dataset of the configuration, unless it is there in this turn."""
        options = part_of(whole.options, whole.dataset.shape, shape, self.config.storage.shard)
        folder = f"{whole.teacher}/{whole.volume}" if whole.teacher else whole.volume
        return self.dataset(f"{folder}-{_name(shape)}{turn}", options, whole.kind)

    def phantom(self, shape: Triple, voxel_size: VoxelSize, kind: Kind) -> Path:
        """Make a phantom where a volume has no labels."""
        options = VolumeOptions(phantom=PhantomOptions(shape=shape, voxel_size=voxel_size))
        return self.dataset(f"phantom-{_name(shape)}", options, kind)

    def mirrored(self, raw: Path, labels: Path, shape: Triple) -> tuple[Path, Path]:
        """Make a sample larger than its volume: a part of it, beside mirror images with objects of their own."""
        name, files, manifests = f"mirrored-{_name(shape)}", {}, {"raw": raw, "labels": labels}
        for kind, manifest in manifests.items():
            part = open_input(manifest).volume
            after = [(0, max(n - m, 0)) for n, m in zip(shape, part.shape, strict=True)]
            voxels = part.read(part.roi)
            if kind == "labels":  # names in a row, since those of a phantom leave no room for more
                names, numbers = np.unique(voxels, return_inverse=True)
                voxels = (numbers.reshape(voxels.shape) + (names[0] != 0)).astype(np.uint64)
            voxels = np.pad(voxels, after, mode="symmetric")[tuple(map(slice, shape))]
            if kind == "labels":
                z, y, x = (np.arange(n, dtype=np.uint64) // m for n, m in zip(shape, part.shape, strict=True))
                image = (z[:, None, None] * (y[-1] + 1) + y[:, None]) * (x[-1] + 1) + x
                voxels = np.where(voxels > 0, voxels + image * (voxels.max() + 1), 0)
            size = part.voxel_size or (1.0, 1.0, 1.0)
            files[kind] = f"{self._written(f'{name}-{kind}', kind, voxels, size, (0.0, 0.0, 0.0))}:/{kind}"
        options = VolumeOptions(raw=files["raw"], labels=files["labels"])
        return self.dataset(name, options, "raw"), self.dataset(name, options, "labels")

    def grey(self, shape: Triple, voxel_size: VoxelSize) -> Path:
        """Make raw data of noise, unless they are there: a network takes as long over them as over any others."""
        manifest = self.bench.folder / "volumes" / f"grey-{_name(shape)}" / "raw.json"
        if manifest in self.costs:
            return manifest
        voxels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        file = self._written(f"grey-{_name(shape)}", "raw", voxels, voxel_size, (0.0, 0.0, 0.0))
        return self.dataset(f"grey-{_name(shape)}", VolumeOptions(raw=f"{file}:/raw"), "raw")

    def affinities(self, raw: Path, labels: Path) -> Path:
        """Make affinities of labels, and adopt them; return their manifest."""
        truth = open_input(labels).volume
        manifest = self.bench.folder / "model" / _name(truth.shape) / "affinities.json"
        if manifest in self.costs:
            return manifest
        voxels = blurred_affinities(truth.read(truth.roi), self.config.offsets)
        size = truth.voxel_size or (1.0, 1.0, 1.0)
        name = f"affinities-{_name(truth.shape)}"
        file = self._written(name, "affinities", voxels, size, truth.offset)
        task = AdoptTask(
            manifest=manifest,
            address=f"{file}:/affinities",
            offsets=self.config.offsets,
            voxel_size=size,
            storage=self.config.storage.model_copy(update={"remote": None}),
            raw=raw,
        )
        self.costs[manifest] = self.bench.run("adopt", task)
        return manifest

    def _written(self, name: str, dataset: str, voxels: NDArray[Any], voxel_size: VoxelSize, offset: VoxelSize) -> Path:
        path = self.bench.folder / f"{name}.h5"
        with h5py.File(path, "w") as file:
            file[dataset] = voxels
            file[dataset].attrs["resolution"] = voxel_size
            file[dataset].attrs["offset"] = offset
        return path


def _name(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
