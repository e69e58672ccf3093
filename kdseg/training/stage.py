"""Volumes → one network, teacher or student."""

from __future__ import annotations

import os
from pathlib import Path

from kdseg.config.shipped import SUFFIX
from kdseg.config.tasks import TrainTask
from kdseg.errors import UnreadableError
from kdseg.networks.checkpoint import load_model
from kdseg.networks.models import count_parameters, kmac_per_voxel, resolve_device
from kdseg.networks.models.device import gpu_peak_mb
from kdseg.results.claims import Claim, claim
from kdseg.results.manifests import file_fingerprint
from kdseg.results.sealed import read_sealed, write_sealed
from kdseg.training import Result, train
from kdseg.training.inputs import data, expect_named, fingerprints, learned_from


def run(task: TrainTask) -> None:
    """Train a network, or go on where a killed run stopped.

    The weights lie beside the manifest, the curve and the resumable state in ``model.training/``. Under
    ``torchrun`` every process calls this with the same arguments; the first one writes.

    Raises:
        ConfigError: if the options and the volumes or the teacher do not fit each other.
    """
    import torch

    options = task.options
    expect_named(task, options.train.teachers)
    inputs = fingerprints(task, options.train.teachers)
    volumes, guides, teachers = data(task)

    def work(held: Claim) -> Result:
        torch.set_num_threads(_as_begun(held.private / "threads.json", task.workers))
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
    made_of = {**learned_from(task, where), "watershed": task.fragments.watershed.model_dump(mode="json")}
    made_of["file"] = SUFFIX
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
    """Return the number of threads that the run was begun with, which is ``threads`` if it begins now.

    Raises:
        UnreadableError: if the note of it is damaged.
    """
    if not note.exists():
        write_sealed(note, {"threads": threads})
        return threads
    try:
        return int(read_sealed(note)["threads"])
    except UnreadableError as error:
        raise UnreadableError(
            f"{error}; it says how many threads the training was begun with: delete it, if that was {threads}, or "
            f"start anew by: kdseg clear {note.parent.with_name(note.parent.name[1:])}.json"
        ) from error
