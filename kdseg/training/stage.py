"""Volumes → one network, teacher or student."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from kdseg.config import FragmentsOptions, ModelOptions
from kdseg.errors import ConfigError
from kdseg.geometry import Offsets
from kdseg.networks.checkpoint import load_model
from kdseg.networks.models import count_parameters, kmac_per_voxel, resolve_device, resolve_precision
from kdseg.networks.models.device import gpu_peak_mb
from kdseg.results.files import write_text
from kdseg.results.manifests import Claim, claim, file_fingerprint, read, store_of
from kdseg.training import Result, train
from kdseg.training.sampling import Guide

HOW = {"train": {"loader_workers", "checkpoint_every"}}
"""Options that change how, but not what, is computed."""


def run(
    manifest: Path,
    options: ModelOptions,
    offsets: Offsets,
    volumes: Sequence[Path],
    fragments: FragmentsOptions,
    *,
    teachers: Sequence[Path] = (),
    stored: Sequence[Path] = (),
    instances: Sequence[Path] = (),
    device: str = "auto",
    threads: int = 1,
    overwrite: bool = False,
) -> None:
    """Train a network, or go on where a killed run stopped.

    The weights lie beside the manifest, the curve and the resumable state in ``model.training/``. Under
    ``torchrun`` every process calls this with the same arguments; the first one writes.

    Args:
        manifest: to write, e.g. ``results/student/model.json``.
        options: network, heads, training.
        offsets: one affinity channel each.
        volumes: manifests ``…/{volume}/raw.json`` and ``…/{volume}/labels.json``.
        fragments: how validation makes fragments; the run's own section.
        teachers: manifests ``…/{teacher}/model.json`` of the networks to distil from, where they predict online.
        stored: manifests of what they predict, ``…/{teacher}/{volume}/affinities.json`` (or averaged affinities, or
            ``embedding.json``), where that is stored.
        instances: manifests ``…/{teacher}/{volume}/segmentation.json``, for volumes without ground truth.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads. Their number may change the last bit of a float, so that a run goes on with as
            many as it was begun with.
        overwrite: clear what other options or inputs made.

    Raises:
        ConfigError: if the options and the volumes or the teacher do not fit each other.
        DeviceError: if the device is not there.
        ClaimError: if the folder holds something else, or is being written.
        StageError: if the loss is not finite.
    """
    import torch

    addresses = _addresses(volumes)
    inputs = {f"{path.parent.name}/{path.stem}": read(path)["fingerprint"] for path in volumes}
    inputs |= {f"{path.parent.name}/model": file_fingerprint(store_of(path)) for path in teachers}
    inputs |= {"/".join(path.parts[-3:]): read(path)["fingerprint"] for path in (*stored, *instances)}
    guides = _guides(stored, instances, options.train.teachers)

    def work(held: Claim) -> Result:
        torch.set_num_threads(_as_begun(held.private / "threads", threads))
        return train(
            options,
            offsets=offsets,
            volumes=addresses,
            out=held.model,
            folder=training_folder(manifest),
            teachers=[store_of(path) for path in _in_order(teachers, options.train.teachers)],
            guides=guides,
            watershed=fragments.watershed,
            name=manifest.parent.name,
            device=device,
        )

    where = resolve_device(device)
    if int(os.environ.get("RANK", "0")) > 0:
        work(Claim(manifest, ""))
        return
    made_of = {
        **options.model_dump(mode="json", exclude=HOW),
        "offsets": [list(o) for o in offsets],
        "watershed": fragments.watershed.model_dump(mode="json"),
        # The last bit of a float differs between kinds of device: a run is finished where it was begun.
        "device": where.type,
        "computed_in": str(resolve_precision(options.train.precision, where)).removeprefix("torch."),
    }
    with claim(manifest, "train", made_of, inputs, overwrite=overwrite) as held:
        result = work(held)
        network = load_model(held.model).network
        held.stats.update(
            weights=file_fingerprint(held.model),
            parameters=count_parameters(network),
            kmac_per_voxel=kmac_per_voxel(network),
            steps=result.steps,
            best_step=result.step,
            best_voi=result.scores.voi,
            best_arand=result.scores.arand,
            device=str(resolve_device(device)),
            gpu_peak_mb=gpu_peak_mb(device),
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


def _in_order(models: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """Return the manifests of models in the order in which the options name them."""
    given = {path.parent.name: path for path in models}
    if unknown := given.keys() - set(names):
        raise ConfigError(f"got the teachers {sorted(unknown)}, but the options name {list(names)}")
    return [given[name] for name in names if name in given]


def _guides(stored: Sequence[Path], instances: Sequence[Path], teachers: Sequence[str]) -> dict[str, Guide]:
    """Return what teachers stored, by volume, in the order in which the options name the teachers."""
    found: dict[str, Guide] = {}
    rank = {name: number for number, name in enumerate(teachers)}
    if unknown := [str(path) for path in (*stored, *instances) if path.parent.parent.name not in rank]:
        raise ConfigError(f"got {unknown}, but the options name the teachers {list(teachers)}")
    for path in sorted(stored, key=lambda path: rank[path.parent.parent.name]):
        guide = found.get(path.parent.name, Guide())
        if path.stem == "embedding":
            guide = guide._replace(embeddings=(*guide.embeddings, store_of(path)))
        else:
            guide = guide._replace(affinities=(*guide.affinities, store_of(path)))
        found[path.parent.name] = guide
    for path in instances:
        found[path.parent.name] = found.get(path.parent.name, Guide())._replace(instances=store_of(path))
    return found


def _addresses(manifests: Sequence[Path]) -> dict[str, tuple[str | Path, str | Path | None]]:
    """Return the stores of raw data and labels by the name of their volume."""
    raw = {path.parent.name: store_of(path) for path in manifests if path.stem == "raw"}
    labels = {path.parent.name: store_of(path) for path in manifests if path.stem == "labels"}
    if unknown := [str(path) for path in manifests if path.stem not in ("raw", "labels")]:
        raise ConfigError(f"expected manifests called raw.json or labels.json, got {unknown}")
    if alone := labels.keys() - raw.keys():
        raise ConfigError(f"there are labels but no raw data of the volumes {sorted(alone)}")
    return {name: (path, labels.get(name)) for name, path in raw.items()}
