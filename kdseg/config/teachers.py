"""Teachers that were not trained here: affinities that any program stored, and networks of others."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from kdseg.config.addresses import Address, files_of
from kdseg.config.base import Nanometres, Section, Step
from kdseg.config.data import Background, VolumeOptions
from kdseg.config.networks import TrainOptions
from kdseg.config.shipped import named
from kdseg.errors import ConfigError, MissingError
from kdseg.geometry import Offsets, channels_of

Steps = Annotated[tuple[Step, ...], Field(min_length=2)]
_Margin = Annotated[int, Field(ge=0)]


class AffinitiesTeacher(Section):
    """Affinities that another program stored; needs `teaching.outputs: stored`."""

    product: ClassVar[Literal["affinities"]] = "affinities"
    affinities: Annotated[dict[str, Address], Field(min_length=1)]
    """By volume, the address of (c, z, y, x), as path.zarr/group or path.h5:/dataset: uint8 in 1/255, or floats in
    0..1. They cover the voxels of the volume that are used, or say in their file where they lie."""
    offsets: Steps
    """One step per channel, in voxels; those that the configuration has are taken, in its order."""
    invert: bool = False
    """Values are high between neurons, not within."""

    @property
    def addresses(self) -> dict[str, str]:
        """Addresses by volume."""
        return self.affinities

    def files(self, volume: str) -> list[str]:
        """Return the files or folders that the affinities of a volume lie in; none in a bucket."""
        return files_of(self.affinities[volume])


class SegmentationTeacher(Section):
    """A segmentation, proofread or automatic: it teaches the affinities of its objects, alone.

    Needs `teaching.outputs: stored`.
    """

    product: ClassVar[Literal["segmentation"]] = "segmentation"
    needed_files: ClassVar[tuple[str, ...]] = ()
    segmentation: Annotated[dict[str, Address], Field(min_length=1)]
    """By volume, the address of (z, y, x), integers, as that of `labels`; they may cover a part of the raw data."""
    background: Background = "unknown"
    """Meaning of id 0, as of `volumes.background`."""
    rim: Annotated[int, Field(ge=0, le=64)] = 1
    """Voxels from another object up to which its affinities are less sure: 1/2 + (a - 1/2) d / (rim + 1) where d is the
    distance, in the section plane where z is coarser. 0: all are 0 or 1."""

    @property
    def addresses(self) -> dict[str, str]:
        """Addresses by volume."""
        return self.segmentation

    def files(self, volume: str) -> list[str]:
        """Return the files or folders that the segmentation of a volume lies in; none in a bucket."""
        return files_of(self.segmentation[volume])

    def as_labels(self, volume: str, options: VolumeOptions) -> VolumeOptions:
        """Return the options of a volume whose labels are the segmentation that teaches.

        Args:
            volume: its name.
            options: as the configuration has them.
        """
        others = options.offset.model_copy(update={"labels": None})  # the place that is given is that of the labels
        own = {"labels": self.segmentation[volume], "background": self.background, "offset": others}
        return options.model_copy(update=own)


class _Network(Section):
    offsets: Steps | None = None
    """One step per channel, in voxels; those that the configuration has are taken, in its order."""
    voxel_size: Nanometres | None = None
    """nm, (z, y, x), of the data it was trained on."""
    outputs: Literal["probabilities", "logits"] | None = None
    """Values that it returns: probabilities, after a sigmoid, or logits, before one."""
    input: Literal["uint8"] | tuple[float, float] | None = None
    """Values that it takes, (n, 1, z, y, x): voxels as they are stored, or floats, whose values at 0 and 255 these are;
    default (-1, 1)."""
    halo: tuple[_Margin, _Margin, _Margin] = (0, 0, 0)
    """Voxels along the border of a crop where it is not listened to, as it saw padding. Of a network that returns less
    than it takes, the difference counts by itself."""


class FileTeacher(_Network):
    """A network in a file: TorchScript, torch.export, ONNX or a model file of kdseg; needs `teaching.outputs: online`.

    What `kdseg export` wrote says all but the file by itself.
    """

    file: Address
    """Path: net.ts or net.pt (TorchScript), net.pt2 (torch.export), net.onnx (onnxruntime runs it), net.safetensors (a
    model file of kdseg), or the name of a shipped network."""

    @property
    def address(self) -> str:
        """Place that it is opened from."""
        return self.file

    @property
    def needed_files(self) -> tuple[str, ...]:
        """Paths of what it is made of."""
        return (str(named(self.file)),)


class ModuleTeacher(_Network):
    """A network that a Python function returns; needs `teaching.outputs: online`."""

    module: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    """`package.module:function`, which takes nothing and returns a `torch.nn.Module` with its weights."""
    files: tuple[Address, ...] = ()
    """Paths of files that the function reads, such as weights: with others the training is another one."""
    offsets: Steps
    voxel_size: Nanometres
    outputs: Literal["probabilities", "logits"]

    @property
    def address(self) -> str:
        """Place that it is opened from."""
        return self.module

    @property
    def needed_files(self) -> tuple[str, ...]:
        """Paths of what it is made of: the source of the function, and what that reads."""
        return (self.source, *self.files)

    @property
    def source(self) -> str:
        """Path of the file that holds the function.

        Raises:
            MissingError: if there is no such module, or it has no source.
        """
        module = self.module.partition(":")[0]
        try:
            found = find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None or found.origin is None or not Path(found.origin).is_file():
            raise MissingError(
                f"no Python module {module!r} of the teacher {self.module}: install it, or run beside it"
            )
        return found.origin


NetworkTeacher = FileTeacher | ModuleTeacher
StoredTeacher = AffinitiesTeacher | SegmentationTeacher
_KINDS = ("affinities", "segmentation", "file", "module")


def _kind(values: Any) -> str | None:
    found = [key for key in _KINDS if (key in values if isinstance(values, dict) else hasattr(values, key))]
    return found[0] if len(found) == 1 else None


ForeignTeacher = Annotated[
    Annotated[AffinitiesTeacher, Tag("affinities")]
    | Annotated[SegmentationTeacher, Tag("segmentation")]
    | Annotated[FileTeacher, Tag("file")]
    | Annotated[ModuleTeacher, Tag("module")],
    Discriminator(
        _kind,
        custom_error_type="teacher_kind",
        custom_error_message="expected one of `affinities`, `segmentation`, `file` and `module`, which says where the "
        "teacher is",
    ),
]
"""A teacher that is no model of the configuration."""


def check_foreign(
    where: str,
    name: str,
    teacher: StoredTeacher | NetworkTeacher,
    train: TrainOptions,
    taught: Sequence[str],
    ours: Offsets,
) -> None:
    """Refuse a training that asks a teacher for what it cannot give.

    Args:
        where: the model, for messages.
        name: of the teacher.
        teacher: that was not trained here.
        train: options of the training that names it.
        taught: names of the volumes that it is asked about.
        ours: offsets of the configuration.

    Raises:
        ValueError: if it lacks an offset or a volume, or is asked for more than affinities as they are.
    """
    if isinstance(teacher, StoredTeacher):
        _check_stored(where, name, teacher, train, taught)
    else:
        _check_online(where, name, teacher, train)
    _check_outputs(where, name, teacher, train)
    if isinstance(teacher, SegmentationTeacher) or teacher.offsets is None:
        return  # it has all, or the file may say them
    try:
        channels_of(ours, teacher.offsets)
    except ConfigError as error:
        raise ValueError(f"{where}: the teacher {name!r} {error}") from None


def _check_online(where: str, name: str, teacher: NetworkTeacher, train: TrainOptions) -> None:
    if train.teaching.outputs != "online":
        raise ValueError(
            f"{where}: the teacher {name!r} is a network that is not stored: set `teaching.outputs: online`"
        )
    if any(teacher.halo) and (len(train.teachers) > 1 or train.teaching.average != "none"):
        raise ValueError(
            f"{where}: the teacher {name!r} is not listened to along the border of a crop, so that it cannot be "
            "averaged: name it alone, with `teaching.average: none`"
        )


def _check_stored(where: str, name: str, teacher: StoredTeacher, train: TrainOptions, taught: Sequence[str]) -> None:
    if train.teaching.outputs != "stored" or train.teaching.average != "none":
        raise ValueError(
            f"{where}: the {teacher.product} of the teacher {name!r} are stored as they are: set `teaching.outputs` to "
            "stored, and `teaching.average` to none"
        )
    if lacking := [volume for volume in taught if volume not in teacher.addresses]:
        raise ValueError(
            f"{where}: the teacher {name!r} has {teacher.product} of {sorted(teacher.addresses)}, but not of the "
            f"volumes {lacking} that it is asked about: give their addresses"
        )
    if teacher.product == "segmentation" and len(train.teachers) > 1:
        raise ValueError(
            f"{where}: the teacher {name!r} is a segmentation, which knows some pairs alone, so that it cannot be "
            "combined with others: name it alone"
        )


def _check_outputs(where: str, name: str, teacher: StoredTeacher | NetworkTeacher, train: TrainOptions) -> None:
    terms = [term for term in train.active_terms if term.from_teacher]
    beyond = [term.name for term in terms if term.features_used or "embedding" in term.taps_used]
    if beyond:
        raise ValueError(
            f"{where}: the teacher {name!r} gives affinities alone, but the terms {beyond} compare features or "
            "embeddings: tap the affinities"
        )
    whole = isinstance(teacher, SegmentationTeacher)
    if train.teaching.instances == "segmentation" and train.teachers[0] == name and not whole:
        raise ValueError(
            f"{where}: `teaching.instances` needs a first teacher that is a model of this configuration, or a "
            f"segmentation, got {name!r}"
        )
