"""Shapes of a configuration's datasets, from headers of their files: no voxel is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import NamedTuple

from kdseg.config import Config, VolumeOptions
from kdseg.config.tasks import Kind
from kdseg.config.teachers import SegmentationTeacher
from kdseg.errors import ConfigError
from kdseg.geometry import Triple, VoxelSize
from kdseg.volumes.plan import plan_labels, plan_mask, plan_raw
from kdseg.volumes.sources import Source, open_source

BESIDE: tuple[Kind, ...] = ("labels", "baseline", "mask")
"""Datasets that lie on the voxels of raw data."""


class Dataset(NamedTuple):
    """Extent of what is converted, and its file.

    Attributes:
        shape: (z, y, x) in voxels.
        unit: (z, y, x) in voxels of a chunk or strip of the file.
        source: the format that it is read from: ``phantom``, the end of a file's name, or the scheme of a URL.
    """

    shape: Triple
    unit: Triple
    source: str


@dataclass(frozen=True)
class Extents:
    """Datasets of one volume.

    Attributes:
        datasets: by kind.
        voxel_size: nm, (z, y, x).
        taught: segmentations that teach, by the names of their teachers.
    """

    datasets: Mapping[Kind, Dataset]
    voxel_size: VoxelSize
    taught: Mapping[str, Dataset] = field(default_factory=dict)

    @property
    def raw(self) -> Triple:
        """Shape of the raw data."""
        return self.datasets["raw"].shape


class Conversion(NamedTuple):
    """One dataset to convert.

    Attributes:
        volume: name of its volume.
        teacher: name of the teacher that it is a segmentation of; empty: it is none.
        kind: of the dataset.
        options: of the volume, for this dataset.
        dataset: its extent.
    """

    volume: str
    teacher: str
    kind: Kind
    options: VolumeOptions
    dataset: Dataset

    @property
    def work(self) -> str:
        """Name of the work, the same for all datasets of this kind that are read from such files."""
        return f"convert {self.kind} {self.dataset.source}"


def conversion(config: Config, extents: Mapping[str, Extents], volume: str, kind: Kind) -> Conversion:
    """Return the conversion of one dataset of a volume."""
    return Conversion(volume, "", kind, config.volumes[volume], extents[volume].datasets[kind])


def taught_conversion(config: Config, extents: Mapping[str, Extents], volume: str, teacher: str) -> Conversion:
    """Return the conversion of the segmentation of a volume by which a teacher teaches."""
    options = _segmentations(config)[teacher].as_labels(volume, config.volumes[volume])
    return Conversion(volume, teacher, "labels", options, extents[volume].taught[teacher])


def conversions(config: Config, extents: Mapping[str, Extents]) -> Iterator[Conversion]:
    """Yield the conversions of all datasets of a configuration."""
    for volume, one in extents.items():
        yield from (conversion(config, extents, volume, kind) for kind in one.datasets)
        yield from (taught_conversion(config, extents, volume, teacher) for teacher in one.taught)


def read_extents(config: Config) -> dict[str, Extents]:
    """Return the extents of all volumes, by name."""
    return {volume: _extents(config, volume) for volume in config.volumes}


def resized(extents: Mapping[str, Extents], volume: str, shape: Triple) -> dict[str, Extents]:
    """Return extents of which one volume has another shape, all of its datasets alike.

    Raises:
        ConfigError: if there is no volume of that name.
    """
    if volume not in extents:
        raise ConfigError(f"there is no volume {volume!r} to give another shape, only {sorted(extents)}")
    one = extents[volume]
    datasets = {kind: dataset._replace(shape=shape) for kind, dataset in one.datasets.items()}
    taught = {teacher: dataset._replace(shape=shape) for teacher, dataset in one.taught.items()}
    return {**extents, volume: replace(one, datasets=datasets, taught=taught)}


def _segmentations(config: Config) -> dict[str, SegmentationTeacher]:
    return {name: one for name, one in config.teachers.items() if isinstance(one, SegmentationTeacher)}


def _extents(config: Config, volume: str) -> Extents:
    options = config.volumes[volume]
    teachers = {name: one for name, one in _segmentations(config).items() if volume in one.segmentation}
    if options.phantom is not None:
        made = Dataset(options.phantom.shape, config.storage.shard, "phantom")
        datasets: dict[Kind, Dataset] = {"raw": made, "labels": made}
        return Extents(datasets, options.phantom.voxel_size, dict.fromkeys(teachers, made))
    raw = open_source(str(options.raw), options.sections)
    plan = plan_raw(raw, options)
    datasets = {"raw": _dataset(raw, plan.roi.shape)}
    for kind in BESIDE:
        if (address := getattr(options, kind)) is not None:
            source = open_source(address, options.sections)
            beside = plan_mask(source, options, raw) if kind == "mask" else plan_labels(source, options, raw, kind)
            datasets[kind] = _dataset(source, beside.roi.shape)
    taught = {}
    for name, teacher in teachers.items():
        source = open_source(teacher.segmentation[volume], options.sections)
        taught[name] = _dataset(source, plan_labels(source, options, raw).roi.shape)
    return Extents(datasets, plan.voxel_size, taught)


def _dataset(source: Source, shape: Triple) -> Dataset:
    return Dataset(shape, source.unit, _format(source.address))


def _format(address: str) -> str:
    """Return the scheme of a URL, or the end of the last name with one in a path: groups and folders have none."""
    scheme, url, _ = address.partition("://")
    if url:
        return scheme
    ends = [PurePath(part).suffix for part in PurePath(address.partition(":/")[0]).parts]
    return next((end.lstrip(".") for end in reversed(ends) if end), "folder")
