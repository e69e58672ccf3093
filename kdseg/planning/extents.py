"""Shapes of a configuration's datasets, from headers of their files: no voxel is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import PurePath
from typing import NamedTuple

from kdseg.config import Config, VolumeOptions
from kdseg.config.addresses import is_url, locate
from kdseg.config.data import SectionsOptions
from kdseg.config.overlap import Cover, phantom_cover, placed, source_of
from kdseg.config.tasks import Kind
from kdseg.config.teachers import SegmentationTeacher
from kdseg.errors import ConfigError, KdsegError
from kdseg.geometry import Triple, VoxelSize
from kdseg.planning.sizes import tiled_voxels
from kdseg.volumes.foreign import Source
from kdseg.volumes.plan import Plan, block_shape, plan_labels, plan_mask, plan_raw
from kdseg.volumes.sources import open_source

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
        cover: voxels of raw data and ground truth, by what they are cut from.
        taught: segmentations that teach, by the names of their teachers.
    """

    datasets: Mapping[Kind, Dataset]
    voxel_size: VoxelSize
    cover: Cover
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

    def block(self, shard: Triple) -> Triple:
        """Return the extent of the blocks that it is done in, (z, y, x), where shards have so many voxels."""
        return block_shape(shard, self.dataset.unit, self.dataset.shape)

    def amount(self, shard: Triple, shape: Triple | None = None) -> int:
        """Return the voxels to work on, of all of it or of a part of another shape.

        Of a phantom they are those of whole blocks: one at the border, of which little is left, takes as long.
        """
        shape = self.dataset.shape if shape is None else shape
        return tiled_voxels(shape, self.block(shard)) if self.dataset.source == "phantom" else prod(shape)


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


class Headers:
    """Headers of all sources of a configuration, each of which is opened once.

    Attributes:
        extents: of the volumes whose raw data can be used, by name, without the datasets that are refused.
        used: the source and the part of it, of each dataset that can be used, by the option that names it.
        refused: why the others cannot, likewise.
    """

    def __init__(self, config: Config) -> None:
        """Open the sources; a refusal of one does not keep the others from being opened."""
        self.config = config
        self.extents: dict[str, Extents] = {}
        self.used: dict[str, tuple[Source, Plan]] = {}
        self.refused: dict[str, KdsegError | OSError] = {}
        self._opened: dict[tuple[str, SectionsOptions | None], Source | KdsegError | OSError] = {}
        for volume in config.volumes:
            extents = self._extents(volume)
            if extents is not None:
                self.extents[volume] = extents

    def _extents(self, volume: str) -> Extents | None:
        options = self.config.volumes[volume]
        teachers = {name: one for name, one in _segmentations(self.config).items() if volume in one.segmentation}
        if options.phantom is not None:
            made = Dataset(options.phantom.shape, self.config.storage.shard, "phantom")
            datasets: dict[Kind, Dataset] = {"raw": made, "labels": made}
            cover = phantom_cover(options, options.phantom)
            return Extents(datasets, options.phantom.voxel_size, cover, dict.fromkeys(teachers, made))
        found = self._use(
            f"volumes.{volume}.raw", str(options.raw), options.sections, partial(plan_raw, options=options)
        )
        addresses = {kind: getattr(options, kind) for kind in BESIDE}
        beside = {kind: (f"volumes.{volume}.{kind}", address) for kind, address in addresses.items() if address}
        taught = {
            name: (f"teachers.{name}.segmentation.{volume}", one.segmentation[volume]) for name, one in teachers.items()
        }
        if found is None:  # where the others lie, only the raw data tell
            for option, address in (*beside.values(), *taught.values()):
                self._open(option, address, options.sections)
            return None
        (raw, plan), datasets = found, {"raw": _dataset(*found)}
        cover = Cover(source_of(options), plan.roi, None)
        for kind, (option, address) in beside.items():
            used = self._use(option, address, options.sections, _beside(options, raw, kind))
            if used is not None:
                datasets[kind] = _dataset(*used)
                if kind == "labels":
                    labels = used[1]
                    there = placed(labels.roi.shape, labels.offset, plan.roi, plan.offset, plan.voxel_size)
                    cover = cover._replace(labels=there)
        others = {
            name: self._use(*taught[name], options.sections, _beside(one.as_labels(volume, options), raw, "labels"))
            for name, one in teachers.items()
        }
        known = {name: _dataset(*one) for name, one in others.items() if one is not None}
        return Extents(datasets, plan.voxel_size, cover, known)

    def _use(
        self, option: str, address: str, sections: SectionsOptions | None, plan: Callable[[Source], Plan]
    ) -> tuple[Source, Plan] | None:
        """Return a source and what of it is used; None if it is refused."""
        source = self._open(option, address, sections)
        if source is None:
            return None
        try:
            self.used[option] = source, plan(source)
        except KdsegError as error:
            self.refused[option] = error
        return self.used.get(option)

    def _open(self, option: str, address: str, sections: SectionsOptions | None) -> Source | None:
        if (address, sections) not in self._opened:
            try:
                self._opened[address, sections] = open_source(address, sections)
            except (KdsegError, OSError) as error:
                self._opened[address, sections] = error
        found = self._opened[address, sections]
        if isinstance(found, Source):
            return found
        self.refused[option] = found
        return None


def read_extents(config: Config) -> dict[str, Extents]:
    """Return the extents of all volumes, by name; a source that is refused is an error."""
    headers = Headers(config)
    for error in headers.refused.values():
        raise error
    return headers.extents


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


def _beside(options: VolumeOptions, raw: Source, kind: Kind) -> Callable[[Source], Plan]:
    if kind == "mask":
        return partial(plan_mask, options=options, raw=raw)
    return partial(plan_labels, options=options, raw=raw, kind=kind)


def _dataset(source: Source, plan: Plan) -> Dataset:
    return Dataset(plan.roi.shape, source.unit, _format(source.address))


def _format(address: str) -> str:
    """Return the scheme of a URL, or the end of the last name with one in a path: groups and folders have none."""
    if is_url(address):
        return address.partition("://")[0]
    ends = [PurePath(part).suffix for part in locate(address).path.parts]
    return next((end.lstrip(".") for end in reversed(ends) if end), "folder")
