"""Volumes → one network, teacher or student."""

from __future__ import annotations

import os
from pathlib import Path

from kdseg.config.tasks import TrainTask
from kdseg.config.teachers import ModuleTeacher, NetworkTeacher
from kdseg.errors import ConfigError
from kdseg.networks.checkpoint import load_model
from kdseg.networks.foreign import module_source
from kdseg.networks.models import count_parameters, kmac_per_voxel, resolve_device, resolve_precision
from kdseg.networks.models.device import gpu_peak_mb
from kdseg.results.claims import Claim, claim
from kdseg.results.files import write_text
from kdseg.results.manifests import file_fingerprint, read
from kdseg.training import Result, train
from kdseg.training.sampling import Guide
from kdseg.volumes.inputs import volume_fingerprints

HOW = {"train": {"loader_workers", "checkpoint_every", "start_from"}}
"""Options that change how, but not what, is computed; what a training starts from is one of its inputs."""

PLACES = {"file", "files"}
"""Options of a network of others that say where its files are: what is in them counts."""


def run(task: TrainTask) -> None:
    """Train a network, or go on where a killed run stopped.

    The weights lie beside the manifest, the curve and the resumable state in ``model.training/``. Under
    ``torchrun`` every process calls this with the same arguments; the first one writes.

    Raises:
        ConfigError: if the options and the volumes or the teacher do not fit each other.
    """
    import torch

    options = task.options
    order = options.train.teachers
    _expect_named(task, order)
    inputs = _fingerprints(task, order)
    volumes = {
        volume: (read(one.raw).result, None if one.labels is None else read(one.labels).result)
        for volume, one in task.volumes.items()
    }
    models = {name: read(path).result for name, path in task.teachers.items()}
    networks: dict[str, Path | NetworkTeacher] = {**models, **task.foreign}
    teachers = [networks[teacher] for teacher in order if teacher in networks]
    guides = _guides(task, order)

    def work(held: Claim) -> Result:
        torch.set_num_threads(_as_begun(held.private / "threads", task.workers))
        return train(
            options,
            offsets=task.offsets,
            volumes=volumes,
            out=held.model,
            folder=training_folder(task.manifest),
            teachers=teachers,
            guides=guides,
            watershed=task.fragments.watershed,
            name=task.name,
            device=task.device,
        )

    where = resolve_device(task.device)
    if int(os.environ.get("RANK", "0")) > 0:
        work(Claim(task.manifest, ""))
        return
    made_of = {
        **options.model_dump(mode="json", exclude=HOW),
        "offsets": [list(o) for o in task.offsets],
        "watershed": task.fragments.watershed.model_dump(mode="json"),
        "foreign": {name: one.model_dump(mode="json", exclude=PLACES) for name, one in task.foreign.items()},
        # The last bit of a float differs between kinds of device: a run is finished where it was begun.
        "device": where.type,
        "computed_in": str(resolve_precision(options.train.precision, where)).removeprefix("torch."),
    }
    with claim(task.manifest, "train", made_of, inputs, overwrite=task.overwrite) as held:
        result = work(held)
        network = load_model(held.model).network
        held.stats.update(
            weights=file_fingerprint(held.model),
            parameters=count_parameters(network),
            kmac_per_voxel=kmac_per_voxel(network),
            steps=result.steps,
            best_step=result.step,
            **{f"best_{name}": value for name, value in result.named.items()},
            device=str(where),
            gpu_peak_mb=gpu_peak_mb(task.device),
        )


def training_folder(manifest: Path) -> Path:
    """Return the folder of the curve and the resumable state."""
    return manifest.with_name(f"{manifest.stem}.training")


def _as_begun(note: Path, threads: int) -> int:
    """Return the number of threads that the run was begun with, which is ``threads`` if it begins now."""
    if note.exists():
        return int(note.read_text())
    write_text(note, str(threads))
    return threads


def _expect_named(task: TrainTask, teachers: tuple[str, ...]) -> None:
    """Refuse what comes of teachers that the options do not name."""
    found = {*task.teachers, *task.foreign, *task.stored}
    if unknown := found - set(teachers):
        raise ConfigError(f"got results of the teachers {sorted(unknown)}, but the options name {list(teachers)}")
    if task.instances and not teachers:
        raise ConfigError(f"got segmentations of {sorted(task.instances)} by a teacher, but the options name none")


def _fingerprints(task: TrainTask, teachers: tuple[str, ...]) -> dict[str, str]:
    found = volume_fingerprints(task.volumes)
    if task.options.train.start_from is not None:
        found["start_from"] = file_fingerprint(Path(task.options.train.start_from))
    for teacher, path in task.teachers.items():
        found[f"{teacher}/model"] = file_fingerprint(read(path).result)
    for teacher, one in task.foreign.items():
        files = [Path(path) for path in one.needed_files]
        files += [module_source(one)] if isinstance(one, ModuleTeacher) else []
        found |= {f"{teacher}/file{number}": file_fingerprint(path) for number, path in enumerate(files)}
    for teacher, predicted in task.stored.items():
        for volume, products in predicted.items():
            for product, path in products.items():
                found[f"{teacher}/{volume}/{product}.json"] = read(path).fingerprint
    for volume, path in task.instances.items():
        found[f"{teachers[0]}/{volume}/segmentation.json"] = read(path).fingerprint
    return found


def _guides(task: TrainTask, teachers: tuple[str, ...]) -> dict[str, Guide]:
    """Return what teachers stored, by volume, in the order in which the options name the teachers."""
    found: dict[str, Guide] = {}
    for teacher in teachers:
        for volume, products in task.stored.get(teacher, {}).items():
            guide = found.get(volume, Guide())
            for product, path in products.items():
                store = (read(path).result,)
                if product == "embedding":
                    guide = guide._replace(embeddings=guide.embeddings + store)
                else:
                    guide = guide._replace(affinities=guide.affinities + store)
            found[volume] = guide
    for volume, path in task.instances.items():
        found[volume] = found.get(volume, Guide())._replace(instances=read(path).result)
    return found
