"""The data that a configuration is made for, as far as headers and a few voxels tell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from kdseg.config import VolumeOptions, explain
from kdseg.config.data import Background
from kdseg.config.overlap import placed
from kdseg.config.questions import InitTask
from kdseg.errors import ConfigError, DataError, ShapeError, VoxelSizeError
from kdseg.geometry import Roi, Triple, VoxelSize, triple
from kdseg.planning.proposal.grey import Grey, grey_of
from kdseg.volumes.background import looks_like_membrane
from kdseg.volumes.bounded import MOST_BYTES, box_of_labels, decoded_bytes, sampled
from kdseg.volumes.foreign import Source, lacks_size, sized
from kdseg.volumes.plan import plan_labels, plan_raw
from kdseg.volumes.resemblance import like_grey, like_ids
from kdseg.volumes.sources import open_source
from kdseg.volumes.values import to_labels

_ROUNDED = 1e-3
"""Relative difference of voxel sizes that are the same, as files round them."""
_MIDDLE: Triple = (64, 64, 64)
"""Voxels of labels by which the meaning of 0 is told."""


@dataclass(frozen=True)
class Data:
    """Raw data, perhaps with labels.

    Attributes:
        options: of the volume in a configuration, as far as somebody has to say them.
        raw: the raw data.
        voxel_size: nm, (z, y, x).
        grey: sample of the raw data.
        region: voxels of the raw data that are labelled, or all of them without labels.
        membrane: why label 0 is taken for membrane, in words; empty: it is not.
        warnings: what somebody should look at, a line each.
    """

    options: VolumeOptions
    raw: Source
    voxel_size: VoxelSize
    grey: Grey
    region: Roi
    membrane: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def background(self) -> Background:
        """Meaning of label 0."""
        return "boundary" if self.membrane else "unknown"


def look(task: InitTask) -> Data:
    """Open raw data and labels, and look at a few of their voxels.

    Raises:
        VoxelSizeError: if nobody says the voxel size, or the task says another one than the file.
        DataError: if the voxels that are looked at leave open what has to be known.
    """
    raw = open_source(task.raw, task.sections)
    size = _size(task, raw)
    labels = None if task.labels is None else open_source(task.labels, task.sections)
    options = _options(task, raw)
    sample = list(sampled(raw, raw.roi))
    grey = grey_of(raw.data.dtype, sample)
    if task.intensity is None and grey.flat and raw.data.dtype.kind == "f":
        raise DataError(
            f"{task.raw} holds {raw.data.dtype}, and all that was looked at is one value, which tells nothing of its "
            "range: give --intensity LOW HIGH, the values that become 0 and 255"
        )
    warnings = [warning] if (warning := like_ids(sample, task.raw)) else []
    # floats are refused without a range, which is chosen later
    known = options.model_copy(update={"intensity": task.intensity or (0.0, 1.0)})
    plan = plan_raw(raw, known)
    if labels is None:
        return Data(options, raw, size, grey, raw.roi, warnings=tuple(warnings))
    _expect_placed(task, raw, labels, size)
    there = plan_labels(labels, known, raw)
    box = box_of_labels(labels, there.roi)
    if box is None:
        raise DataError(f"{task.labels} holds nothing but label 0: name the dataset of the neurons")
    if warning := like_grey(_ids(labels, box), str(task.labels)):
        warnings.append(warning)
    corner = placed(there.roi.shape, there.offset, plan.roi, plan.offset, size)
    region = box.shift(triple(a - b for a, b in zip(corner.offset, there.roi.offset, strict=True)))
    return Data(options, raw, size, grey, region, _membrane(labels, box), tuple(warnings))


def _size(task: InitTask, raw: Source) -> VoxelSize:
    found, given = raw.voxel_size, task.voxel_size
    if found is None:
        if given is None:
            raise VoxelSizeError(f"{task.raw} {lacks_size(raw)}: give it, --voxel-size Z Y X, in nm")
        return given
    if given is not None and not np.allclose(found, given, rtol=_ROUNDED):
        raise VoxelSizeError(
            f"{task.raw} says its voxels have {found} nm (z, y, x), --voxel-size says {given}: leave it out, or "
            "correct the file"
        )
    return found


def _options(task: InitTask, raw: Source) -> VolumeOptions:
    """Return what the configuration has to say of the volume, since files do not.

    Raises:
        ConfigError: if that cannot be, as a place of labels without labels.
    """
    values = task.model_dump(include={"raw", "labels", "intensity", "sections"}, exclude_unset=True)
    if raw.voxel_size is None:
        values["voxel_size"] = task.voxel_size
    if task.labels_offset is not None:
        values["offset"] = {"labels": task.labels_offset, **({} if raw.placed else {"raw": (0.0, 0.0, 0.0)})}
    try:
        return VolumeOptions.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        raise ConfigError(explain(error, "this volume")) from None


def _expect_placed(task: InitTask, raw: Source, labels: Source, size: VoxelSize) -> None:
    """Refuse labels of which nobody knows where they lie, as the conversion does, with the option to give.

    Raises:
        ShapeError: if they have another shape than the raw data, and one of both does not say its place.
    """
    known = [sized(one, size) for one in (raw, labels)]
    if task.labels_offset is not None or raw.data.shape == labels.data.shape or all(one.placed for one in known):
        return
    says = f"; the labels say {known[1].offset}, without a place of the raw data" if known[1].placed else ""
    raise ShapeError(
        f"{task.labels} has {labels.data.shape} voxels, {task.raw} {raw.data.shape}, and files do not say where both "
        f"lie: give --labels-offset Z Y X, nm from the first voxel of the raw data to that of the labels{says}"
    )


def _ids(labels: Source, box: Roi) -> Iterator[NDArray[Any]]:
    """Yield a sample of labels, refused if they are none."""
    for part in sampled(labels, box):
        try:
            yield to_labels(part)
        except DataError as error:
            raise DataError(f"{labels.address}: {error}") from None


def _membrane(labels: Source, box: Roi) -> str:
    middle = box.central(_MIDDLE)
    return "" if decoded_bytes(labels, middle) > MOST_BYTES else looks_like_membrane(labels.read(middle))
