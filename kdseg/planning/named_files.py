"""Findings on files that are no volumes of the configuration: networks, affinities of others, edits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdseg.config import Config
from kdseg.config.matching import predicting
from kdseg.config.shipped import SUFFIX, cards, model_file
from kdseg.config.teachers import AffinitiesTeacher, FileTeacher, NetworkTeacher, SegmentationTeacher
from kdseg.errors import ConfigError, KdsegError, MissingError
from kdseg.geometry import VoxelSize, channels_of, is_multiple
from kdseg.planning.extents import Extents
from kdseg.planning.findings import Finding, refusal
from kdseg.volumes.sources import open_channels

if TYPE_CHECKING:
    from kdseg.networks.checkpoint import LoadedModel


class Networks:
    """Networks in files, each read once.

    Attributes:
        voxel_sizes: nm, (z, y, x), of those that are trained already, by the names that they have in this run.
        starts: likewise, of those that trainings start from, by the names of the models.
        findings: on them.
    """

    def __init__(self, config: Config) -> None:
        """Read the files."""
        self.config, self._read = config, dict[str, "LoadedModel | Exception"]()
        self.voxel_sizes: dict[str, VoxelSize] = {}
        self.starts: dict[str, VoxelSize] = {}
        self.findings: list[Finding] = []
        for name, file in config.pretrained.items():
            if (found := self._add(f"pretrained.{name}", file)) is not None:
                self.voxel_sizes[name] = found.voxel_size
                self._expect_tiles(name, found)
        for name, teacher in config.teachers.items():
            if isinstance(teacher, FileTeacher) and (teacher.file in cards() or teacher.file.endswith(SUFFIX)):
                if (found := self._add(f"teachers.{name}.file", teacher.file, some=True)) is not None:
                    self.voxel_sizes[name] = found.voxel_size
                    self._expect_tiles(name, found)
            elif not isinstance(teacher, AffinitiesTeacher | SegmentationTeacher):
                self._expect_files(f"teachers.{name}", teacher)
        for name, model in config.models.items():
            if model.train.start_from is not None:
                option = f"models.{name}.train.start_from"
                if (found := self._add(option, model.train.start_from)) is not None:
                    self.starts[name] = found.voxel_size
                    if found.options.spelled_out != model.network.spelled_out:
                        text = "holds another network than the model's: give the model that `network`"
                        self.findings.append(Finding(option, f"{model.train.start_from} {text}"))

    def _add(self, option: str, file: str, *, some: bool = False) -> LoadedModel | None:
        """Return the network in a file, if there is one; ``some`` of its offsets may be wanted, in any order."""
        found = self._load(file)
        if isinstance(found, Exception):
            self.findings.append(refusal(option, found))
            return None
        wanted = self.config.offsets
        if some:
            try:
                channels_of(wanted, found.offsets)
            except ConfigError as error:
                self.findings.append(Finding(option, f"{file} {error}"))
        elif found.offsets != wanted:
            self.findings.append(
                Finding(
                    option,
                    f"{file} predicts the offsets {[list(o) for o in found.offsets]}, the configuration has "
                    f"{[list(o) for o in wanted]}: give it those, as `offsets`",
                )
            )
        return found

    def _expect_tiles(self, name: str, found: LoadedModel) -> None:
        tile = self.config.predict.tile
        if name in predicting(self.config) and not is_multiple(tile, found.network.stride):
            text = f"{list(tile)} must be a multiple of the pooling {list(found.network.stride)} of {name!r}"
            self.findings.append(Finding("predict.tile", text))

    def _load(self, file: str) -> LoadedModel | Exception:
        if file not in self._read:
            from kdseg.networks.checkpoint import load_model  # loads torch

            try:
                self._read[file] = load_model(model_file(file))
            except (KdsegError, OSError) as error:
                self._read[file] = error
        return self._read[file]

    def _expect_files(self, option: str, teacher: NetworkTeacher) -> None:
        try:
            missing = [path for path in teacher.needed_files if not Path(path).exists()]
        except MissingError as error:
            self.findings.append(refusal(option, error))
        else:
            self.findings += [Finding(option, f"nothing at {path}: correct the path, or make it") for path in missing]


def others(config: Config, extents: Mapping[str, Extents]) -> Iterator[Finding]:
    """Yield what is wrong with stored affinities of teachers, and with edits.

    Args:
        config: of the run.
        extents: of its volumes, by name, as far as they are known.
    """
    for name, teacher in config.teachers.items():
        if isinstance(teacher, AffinitiesTeacher):
            for volume in teacher.affinities:
                yield from _affinities(f"teachers.{name}", teacher, volume, extents.get(volume))
    edits = config.agglomerate.edits
    if edits is not None and not Path(edits).is_file():
        yield Finding("agglomerate.edits", f"no file at {edits}: correct the path, or leave it out")


def _affinities(option: str, teacher: AffinitiesTeacher, volume: str, extents: Extents | None) -> Iterator[Finding]:
    where, address = f"{option}.affinities.{volume}", teacher.affinities[volume]
    try:
        source = open_channels(address)
    except (KdsegError, OSError) as error:
        yield refusal(where, error)
        return
    if source.channels != len(teacher.offsets):
        text = f"{address} has {source.channels} channels, but {len(teacher.offsets)} steps are given: one for each"
        yield Finding(f"{option}.offsets", text)
    if source.dtype != np.uint8 and source.dtype.kind != "f":
        yield Finding(where, f"{address} holds {source.dtype}, expected uint8 (255: same neuron) or floats in 0..1")
    if extents is None:
        return
    size = source.voxel_size
    if size is not None and not np.allclose(size, extents.voxel_size, rtol=1e-3):
        yield Finding(where, f"{address} has voxels of {size} nm, the volume {volume!r} of {extents.voxel_size}")
    pairs = list(zip(source.shape, extents.raw, strict=True))
    if any(n < m for n, m in pairs) or (source.offset is None and any(n != m for n, m in pairs)):
        yield Finding(
            where,
            f"{address} has {source.shape} voxels{'' if source.offset else ' from nobody knows where'}, expected those "
            f"of the volume {volume!r}, {extents.raw}: cut them out, with the axes (c, z, y, x), or set its `roi`",
        )
