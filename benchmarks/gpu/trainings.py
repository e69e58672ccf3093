"""Trainings of the workflow's own configurations, side by side on one card, for as long as there is time.

Each is `kdseg train` in a process of its own. Its best weights come back every few seconds, so that being cut off loses
no more than these, and its state stays in the job's folder of intermediate files: the same command goes on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import yaml
from job import ROOT, Job, data
from weights import read_weights, write_weights

from kdseg.config import Config, ModelOptions, validate
from kdseg.config.tasks import ConvertTask, TrainTask, VolumeInputs
from kdseg.networks.checkpoint import load_model, save_model
from kdseg.networks.models import count_parameters, kmac_per_voxel
from kdseg.results.claims import claim
from kdseg.results.curve import read_curve
from kdseg.results.manifests import file_fingerprint
from kdseg.volumes import convert

TEACHER = ROOT / "config" / "models" / "fib25_teacher.yaml"
STUDENTS = ROOT / "config" / "models" / "fib25_students.yaml"
RESERVE_S = 30.0
"""Of a job's time, for the start of its processes, steps that are slower than those timed, and what comes back."""
REHEARSAL_S = 8.0
"""Of a training in rehearsal."""
EVERY_S = 10.0
"""Between two looks at the best weights."""
ROWS = 100
"""Of a curve, at most, beside those that validate."""


class Training(NamedTuple):
    """One training.

    Attributes:
        name: of the weights that come back.
        model: its options.
        teacher: name of the weights to learn from, if any.
    """

    name: str
    model: ModelOptions
    teacher: str | None = None


def configuration(job: Job, *files: Path) -> Config:
    """Return the configuration of some files, the later ones added to the first, with data where they lie.

    Args:
        job: in rehearsal, data are made, and networks and crops take seconds.
        files: YAML.
    """
    values: dict[str, Any] = {}
    for file in files:
        values = _merged(values, yaml.safe_load(file.read_text()))
    for volume in values["volumes"].values():
        for key in ("raw", "labels"):
            if key in volume:
                file, inner = volume[key].split(":")
                volume[key] = f"{_toy_data(job.work) if job.rehearse else data(Path(file).name)}:{inner}"
    return validate(_tiny(values) if job.rehearse else values)


def run_trainings(job: Job, config: Config, trainings: Sequence[Training]) -> None:
    """Train side by side until the time is over; add a row per training with its curve.

    Raises:
        SystemExit: in a line, if a training has no weights to bring back.
    """
    todo = [training for training in trainings if training.name not in job.rows]
    if not todo or job.out_of_time(RESERVE_S):
        return
    volumes = _converted(job, config)
    running = {training: _begun(job, config, training, volumes) for training in todo}
    try:
        while any(process.poll() is None for process in running.values()) and job.left > RESERVE_S / 2:
            time.sleep(min(EVERY_S, max(job.left - RESERVE_S / 2, 0.1)))
            for training in todo:
                _bring_back(job, training)
    finally:
        for process in running.values():
            _ended(process)
    problems = []
    for training, process in running.items():
        _bring_back(job, training)
        problems.append(_reported(job, training, process))
    if told := [problem for problem in problems if problem]:
        sys.exit("; ".join(told))


def _merged(first: Any, second: Any) -> Any:
    """Return nested mappings as one, as Snakemake merges several configurations."""
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return second
    return {**first, **{key: _merged(first[key], value) if key in first else value for key, value in second.items()}}


def _toy_data(folder: Path) -> Path:
    """Return a file of dark membranes between blocks, laid out as the real ones."""
    path = folder / "toy.h5"
    if not path.exists():
        z, y, x = np.indices((48, 32, 32))
        labels = 1 + z // 12 + 4 * (y // 16) + 8 * (x // 16)
        membrane = (z % 12 == 0) | (y % 16 == 0) | (x % 16 == 0)
        noise = np.random.default_rng(0).normal(0, 20, labels.shape)
        raw = (np.where(membrane, 60, 180) + noise).clip(0, 255).astype(np.uint8)
        with h5py.File(path, "w") as file:
            for name, array in (("raw", raw), ("labels/neuron_ids", labels.astype(np.uint64))):
                made = file.create_dataset(f"volumes/{name}", data=array)
                made.attrs.update(resolution=(10.0, 10.0, 10.0), offset=(0.0, 0.0, 0.0))
    return path


def _tiny(values: dict[str, Any]) -> dict[str, Any]:
    for number, volume in enumerate(values["volumes"].values()):
        volume["roi"] = {"offset": [24 * (number % 2), 0, 0], "shape": [24, 32, 32]}
    for model in values["models"].values():
        model["network"] |= {"widths": [2, 4]}
        model["train"] |= {"crop": [8, 8, 8], "batch": 2, "validate_shape": [8, 24, 24], "warmup": 2}
        model["train"] |= {"validate_every": 100, "loader_workers": 0}
    return values


def _converted(job: Job, config: Config) -> dict[str, VolumeInputs]:
    """Return the manifests of all raw data and labels, converted once."""
    manifests: dict[str, dict[str, Path]] = {}
    for name, options in config.volumes.items():
        for kind in ("raw", "labels") if options.labelled else ("raw",):
            manifest = job.work / "volumes" / name / f"{kind}.json"
            if not manifest.exists():
                convert.run(ConvertTask(kind=kind, manifest=manifest, options=options, storage=config.storage))
            manifests.setdefault(name, {})[kind] = manifest
    return {name: VolumeInputs(**kinds) for name, kinds in manifests.items()}


def _begun(job: Job, config: Config, training: Training, volumes: Mapping[str, VolumeInputs]) -> subprocess.Popen[str]:
    """Start one training, or go on with it, in a process group of its own."""
    folder = job.work / training.name
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "options.json"
    if not kept.exists():  # its seconds are those of the first attempt: another number would be another run
        seconds = REHEARSAL_S if job.rehearse else job.left - RESERVE_S
        train = training.model.train.model_copy(update={"seconds": seconds, "steps": None})
        kept.write_text(training.model.model_copy(update={"train": train}).model_dump_json())
    names = {*training.model.train.volumes, training.model.train.validate_on, *training.model.train.active_unlabelled}
    teachers = {} if training.teacher is None else {training.model.train.teachers[0]: _teacher(job, training)}
    task = TrainTask(
        manifest=folder / "model.json",
        name=training.name,
        options=ModelOptions.model_validate_json(kept.read_text()),
        offsets=config.offsets,
        volumes={name: volumes[name] for name in volumes if name in names},
        teachers=teachers,
        fragments=config.fragments,
        device=job.device,
    )
    command = [sys.executable, "-m", "kdseg", "train", "--task", task.model_dump_json()]
    log = (folder / "log.txt").open("a")
    return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, text=True, start_new_session=True)


def _teacher(job: Job, training: Training) -> Path:
    """Return the manifest of the teacher's best weights, made of those that came back."""
    model = training.model.train.teachers[0]
    manifest = job.work / "teachers" / model / "model.json"
    if not manifest.exists():
        loaded = read_weights(job.rows.path.parent, str(training.teacher))
        with claim(manifest, "train", {"weights": training.teacher}, {}) as held:
            save_model(held.model, loaded)
            held.stats["weights"] = file_fingerprint(held.model)
    return manifest


def _bring_back(job: Job, training: Training) -> None:
    """Write the best weights as they are now, if they are newer than what is there."""
    best = job.work / training.name / "model.training" / "best.safetensors"
    there = max((p.stat().st_mtime for p in job.rows.path.parent.glob(f"{training.name}-*")), default=0.0)
    if best.exists() and best.stat().st_mtime > there:
        write_weights(job.rows.path.parent, training.name, load_model(best))


def _ended(process: subprocess.Popen[str]) -> None:
    """End a training and the processes that load its crops."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _reported(job: Job, training: Training, process: subprocess.Popen[str]) -> str | None:
    """Add the row of a training, or return why it has none."""
    folder = job.work / training.name
    rows = read_curve(folder / "model.training" / "curve.csv")
    if process.returncode > 0 or not any(row.get("voi") for row in rows):
        said = (folder / "log.txt").read_text().strip().splitlines() if process.returncode > 0 else []
        return f"{training.name}: {said[-1] if said else 'ended before its first validation'}"
    model = read_weights(job.rows.path.parent, training.name)
    job.rows.add(
        training.name,
        finished=process.returncode == 0,
        steps=int(rows[-1]["step"]),
        seconds=float(rows[-1]["seconds"]),
        parameters=count_parameters(model.network),
        kmac_per_voxel=kmac_per_voxel(model.network),
        best=model.meta,
        options=json.loads((folder / "options.json").read_text()),
        curve=_thinned(rows),
    )
    return None


def _thinned(rows: Sequence[Mapping[str, str]]) -> list[dict[str, float]]:
    """Return the rows that validate and some of the others, as numbers."""
    every = -(-len(rows) // ROWS)
    kept = [row for number, row in enumerate(rows, 1) if row.get("voi") or number % every == 0]
    return [{key: float(value) for key, value in row.items() if value} for row in kept]
