"""Inputs of a training by their roles: volumes, teachers, and what teachers stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kdseg.config.shipped import model_file
from kdseg.config.tasks import LearnTask
from kdseg.config.teachers import NetworkTeacher, SegmentationTeacher
from kdseg.errors import ConfigError
from kdseg.networks.models import resolve_precision
from kdseg.networks.weights import weights
from kdseg.results.manifests import file_fingerprint, read
from kdseg.training.run import Data
from kdseg.training.sampling import Guide
from kdseg.volumes.inputs import volume_fingerprints

HOW = {"train": {"loader_workers", "checkpoint_every", "start_from"}}
"""Options that change how, but not what, is computed; what a training starts from is one of its inputs."""
PLACES = {"file", "files", "segmentation"}
"""Options of a teacher of others that say where its files are: what is in them counts."""


def data(task: LearnTask) -> Data:
    """Return where the volumes, the teachers and what these stored lie."""
    order = task.options.train.teachers
    volumes = {
        volume: (read(one.raw).result, None if one.labels is None else read(one.labels).result)
        for volume, one in task.volumes.items()
    }
    models = {name: weights(path) for name, path in task.teachers.items()}
    others = {name: one for name, one in task.foreign.items() if not isinstance(one, SegmentationTeacher)}
    networks: dict[str, Path | NetworkTeacher] = {**models, **others}
    teachers = tuple(networks[teacher] for teacher in order if teacher in networks)
    return Data(volumes, guides(task, order), teachers)


def expect_named(task: LearnTask, teachers: tuple[str, ...]) -> None:
    """Refuse what comes of teachers that the options do not name.

    Raises:
        ConfigError: if something does.
    """
    found = {*task.teachers, *task.foreign, *task.stored}
    if unknown := found - set(teachers):
        raise ConfigError(f"got results of the teachers {sorted(unknown)}, but the options name {list(teachers)}")
    if task.instances and not teachers:
        raise ConfigError(f"got segmentations of {sorted(task.instances)} by a teacher, but the options name none")


def learned_from(task: LearnTask, where: torch.device) -> dict[str, Any]:
    """Return what determines the numbers that a network learns, beside its inputs, as JSON values.

    Args:
        task: of the training.
        where: the device.
    """
    options = task.options
    return {
        **options.model_dump(mode="json", exclude=HOW),
        "offsets": [list(o) for o in task.offsets],
        "foreign": {name: one.model_dump(mode="json", exclude=PLACES) for name, one in task.foreign.items()},
        # The last bit of a float differs between kinds of device: a run is finished where it was begun.
        "device": where.type,
        "computed_in": str(resolve_precision(options.train.precision, where)).removeprefix("torch."),
    }


def fingerprints(task: LearnTask, teachers: tuple[str, ...]) -> dict[str, str]:
    """Return the fingerprint of each input."""
    found = volume_fingerprints(task.volumes)
    if task.options.train.start_from is not None:
        found["start_from"] = file_fingerprint(model_file(task.options.train.start_from))
    for teacher, path in task.teachers.items():
        found[f"{teacher}/model"] = file_fingerprint(weights(path))
    for teacher, one in task.foreign.items():
        for number, file in enumerate(one.needed_files):
            found[f"{teacher}/file{number}"] = file_fingerprint(Path(file))
    for teacher, predicted in task.stored.items():
        for volume, products in predicted.items():
            for product, path in products.items():
                found[f"{teacher}/{volume}/{product}.json"] = read(path).fingerprint
    for volume, path in task.instances.items():
        found[f"{teachers[0]}/{volume}/segmentation.json"] = read(path).fingerprint
    return found


def guides(task: LearnTask, teachers: tuple[str, ...]) -> dict[str, Guide]:
    """Return what teachers stored, by volume, in the order in which the options name the teachers."""
    found: dict[str, Guide] = {}
    for teacher in teachers:
        for volume, products in task.stored.get(teacher, {}).items():
            guide = found.get(volume, Guide())
            for product, path in products.items():
                store = (read(path).result,)
                if product == "segmentation":
                    guide = guide._replace(segmentation=store[0], rim=_rim(task, teacher))
                elif product == "embedding":
                    guide = guide._replace(embeddings=guide.embeddings + store)
                else:
                    guide = guide._replace(affinities=guide.affinities + store)
            found[volume] = guide
    for volume, path in task.instances.items():
        found[volume] = found.get(volume, Guide())._replace(instances=read(path).result)
    return found


def _rim(task: LearnTask, teacher: str) -> int:
    about = task.foreign.get(teacher)
    if not isinstance(about, SegmentationTeacher):
        raise ConfigError(f"got a segmentation of the teacher {teacher!r}, but not its options: give them as `foreign`")
    return about.rim
