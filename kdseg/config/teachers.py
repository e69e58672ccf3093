"""Teachers that were not trained here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kdseg.config.base import Section, Step
from kdseg.config.data import files_of
from kdseg.config.networks import TrainOptions
from kdseg.errors import ConfigError
from kdseg.geometry import Offsets, channels_of

Steps = Annotated[tuple[Step, ...], Field(min_length=3)]


class AffinitiesTeacher(Section):
    """Affinities that another program stored; needs `teaching.outputs: stored`."""

    affinities: Annotated[dict[str, str], Field(min_length=1)]
    """By volume, the address of (c, z, y, x), as path.zarr/group or path.h5:/dataset: uint8 in 1/255, or floats in
    0..1. They cover the voxels of the volume that are used, or say in their file where they lie."""
    offsets: Steps
    """One step per channel, in voxels; those that the configuration has are taken, in its order."""
    invert: bool = False
    """Values are high between neurons, not within."""

    def files(self, volume: str) -> list[str]:
        """Return the files or folders that the affinities of a volume lie in; none in a bucket."""
        return files_of(self.affinities[volume])


def check_foreign(where: str, name: str, teacher: AffinitiesTeacher, train: TrainOptions, ours: Offsets) -> None:
    """Refuse a training that asks a teacher for what it cannot give.

    Args:
        where: the model, for messages.
        name: of the teacher.
        teacher: that was not trained here.
        train: options of the training that names it.
        ours: offsets of the configuration.

    Raises:
        ValueError: if it lacks an offset or a volume, or is asked for more than affinities as they are.
    """
    if train.teaching.outputs != "stored" or train.teaching.average != "none":
        raise ValueError(
            f"{where}: the affinities of the teacher {name!r} are stored as they are: set `teaching.outputs` to "
            "stored, and `teaching.average` to none"
        )
    if lacking := [volume for volume in train.drawn if volume not in teacher.affinities]:
        raise ValueError(
            f"{where}: the teacher {name!r} has affinities of {sorted(teacher.affinities)}, but not of the volumes "
            f"{lacking} that are trained on: give their addresses"
        )
    _check_outputs(where, name, train)
    try:
        channels_of(ours, teacher.offsets)
    except ConfigError as error:
        raise ValueError(f"{where}: the teacher {name!r} {error}") from None


def _check_outputs(where: str, name: str, train: TrainOptions) -> None:
    terms = [term for term in train.active_terms if term.from_teacher]
    beyond = [term.name for term in terms if term.features_used or "embedding" in term.taps_used]
    if beyond:
        raise ValueError(
            f"{where}: the teacher {name!r} gives affinities alone, but the terms {beyond} compare features or "
            "embeddings: tap the affinities"
        )
    if train.teaching.instances == "segmentation" and train.teachers[0] == name:
        raise ValueError(
            f"{where}: `teaching.instances` needs a first teacher that is a model of this configuration, got {name!r}"
        )
