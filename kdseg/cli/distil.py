"""One command from a network in a file and raw data to a student, its segmentation and a report."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from kdseg.cli.stages import STAGES
from kdseg.config import Config, load, tasks, validate
from kdseg.config.base import Extent, Section
from kdseg.config.questions import DistilTask
from kdseg.config.teachers import FileTeacher
from kdseg.errors import ClaimError, ConfigError, ShapeError, VoxelSizeError
from kdseg.geometry import Offsets, Triple, VoxelSize, triple
from kdseg.results.files import write_text
from kdseg.segmentation.links import nearest_channels

COARSE = 1.5
"""Voxels more than so many times as high as wide are pooled and convolved in the section plane first."""
CROP = 64
"""Largest extent of a crop in voxels."""


def distil(task: DistilTask) -> None:
    """Write a configuration to the folder of the results, run its stages, and print what is known of the student.

    Each stage goes on where a killed one stopped, and one that is done does nothing.

    Raises:
        ClaimError: if the folder holds results of another call.
    """
    config = configuration(task)
    path = task.out / "config.yaml"
    if path.exists() and not task.overwrite and load(path) != config:
        raise ClaimError(f"{path} is of another call, or was changed: give another --out, or --overwrite")
    write_text(path, yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True), sort_keys=False))
    for name, one in stages(config, task):
        print(f"{name} …", flush=True)
        import_module(STAGES[name][1]).run(one)
    print((task.out / "report.txt").read_text())
    print(f"student: {task.out}/student/model.pt, segmentation: {task.out}/student/raw/segmentation.zarr")
    print(f"page: {task.out}/report.html; to go on from here: snakemake --configfile {path}")


def configuration(task: DistilTask) -> Config:
    """Return the configuration of a distillation without labels.

    Raises:
        ConfigError: if nobody says the offsets of the teacher, or the nearest ones are missing.
        VoxelSizeError: if nobody says the voxel size.
        ShapeError: if the raw data are too small for the student.
    """
    import torch

    from kdseg.networks.foreign import opened
    from kdseg.training.foreign import open_teacher
    from kdseg.volumes.sources import open_source

    given: dict[str, Any] = {"offsets": task.offsets, "outputs": task.outputs, "input": task.input_range}
    facts = opened(FileTeacher(file=str(task.teacher)), torch.device("cpu"))[1]
    if "voxel_size" not in facts:
        given["voxel_size"] = task.voxel_size
    offsets = task.offsets or facts.get("offsets")
    if offsets is None:
        raise ConfigError(f"the teacher {task.teacher} does not say its offsets: give --offsets '-1,0,0 0,-1,0 0,0,-1'")
    source = open_source(task.raw)
    size = source.voxel_size or task.voxel_size
    if size is None:
        raise VoxelSizeError(f"{task.raw} does not say its voxel size: give --voxel-size, in nm, as z y x")
    ours, teacher = _nearest_first(task.teacher, offsets), {"file": str(task.teacher), **_said(given)}
    # what does not fit is to be known before hours of conversion
    open_teacher(FileTeacher.model_validate(teacher), ours, size, torch.device("cpu"))
    downsample, kernels = _levels(size, len(task.widths))
    volume = {"raw": task.raw, "voxel_size": task.voxel_size, "intensity": task.intensity, "roi": task.roi}
    train = {
        "volumes": ["raw"],
        "validate_on": "raw",
        "teacher": "teacher",
        "terms": [{"name": "soft_affinity"}],
        "steps": task.steps,
        "warmup": min(50, task.steps // 10),
        "validate_every": max(task.steps // 4, 1),
        "crop": task.crop or _crop(task.raw, source.roi.shape if task.roi is None else task.roi.shape, downsample),
    }
    student = {"kind": "unet", "widths": task.widths, "downsample": downsample, "kernels": kernels}
    return validate(
        {
            "title": f"{task.teacher.name} distilled on {Path(task.raw).name}",
            "results": str(task.out),
            "device": task.device,
            "workers": task.workers,
            "offsets": ours,
            "volumes": {"raw": _said(volume)},
            "teachers": {"teacher": teacher},
            "models": {"student": {"network": student, "train": train}},
            "evaluate": {"models": ["student"], "volumes": ["raw"]},
        }
    )


def stages(config: Config, task: DistilTask) -> Iterator[tuple[str, Section]]:
    """Yield the tasks of a run by their commands, in order, as the rules of the workflow make them."""
    folder, student = Path(config.results), Path(config.results) / "student"
    raw, model = folder / "volumes" / "raw" / "raw.json", student / "model.json"
    made = {name: student / "raw" / f"{name}.json" for name in ("affinities", "fragments", "edges", "agglomeration")}
    how: dict[str, Any] = {"workers": config.workers, "overwrite": task.overwrite}
    yield (
        "convert",
        tasks.ConvertTask(manifest=raw, kind="raw", options=config.volumes["raw"], storage=config.storage, **how),
    )
    yield (
        "train",
        tasks.TrainTask(
            manifest=model,
            name="student",
            options=config.models["student"],
            offsets=config.offsets,
            volumes={"raw": tasks.VolumeInputs(raw=raw)},
            foreign=config.teachers,
            fragments=config.fragments,
            device=config.device,
            **how,
        ),
    )
    stored = {"storage": config.storage, **how}
    yield (
        "predict",
        tasks.PredictTask(
            manifest=made["affinities"], raw=raw, model=model, options=config.predict, device=config.device, **stored
        ),
    )
    affinities, fragments, edges = made["affinities"], made["fragments"], made["edges"]
    yield (
        "fragments",
        tasks.FragmentsTask(manifest=fragments, affinities=affinities, options=config.fragments, **stored),
    )
    yield (
        "edges",
        tasks.EdgesTask(manifest=edges, affinities=affinities, fragments=fragments, options=config.edges, **how),
    )
    tree = made.pop("agglomeration")
    yield "agglomerate", tasks.AgglomerateTask(manifest=tree, **made, options=config.agglomerate, **how)
    yield (
        "segment",
        tasks.SegmentTask(
            manifest=student / "raw" / "segmentation.json",
            fragments=fragments,
            edges=edges,
            agglomeration=tree,
            model=model,
            options=config.segment,
            **stored,
        ),
    )
    yield "report", tasks.ReportTask(config=config, out=folder / "report.html")


def _said(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _nearest_first(teacher: Path, offsets: Offsets) -> Offsets:
    """Return the offsets, those of one voxel along z, y and x first."""
    try:
        nearest = [offsets[channel] for channel in nearest_channels(offsets)]
    except ConfigError:
        nearest = []
    if len(nearest) < 3:
        raise ConfigError(
            f"the teacher {teacher} has the offsets {[list(o) for o in offsets]}, expected a step of one voxel along "
            "each axis among them: segmentation needs these"
        )
    return (*nearest, *(o for o in offsets if o not in nearest))


def _levels(size: VoxelSize, levels: int) -> tuple[list[Extent], list[Extent]]:
    """Return the pooling and the kernels of a U-Net for voxels of a size: in the plane as long as z is coarser."""
    downsample: list[Extent] = []
    kernels: list[Extent] = []
    z, _, x = size
    for _ in range(levels):
        flat = z > COARSE * x
        kernels.append((1, 3, 3) if flat else (3, 3, 3))
        downsample.append((1, 2, 2) if flat else (2, 2, 2))
        z, x = z * downsample[-1][0], x * 2
    return downsample[:-1], kernels


def _crop(address: str, shape: Triple, downsample: list[Extent]) -> Triple:
    """Return the largest crop that raw data and pooling allow, up to ``CROP``."""
    pooled = [2 ** sum(step[axis] == 2 for step in downsample) for axis in range(3)]
    crop = triple(min(CROP, n) // p * p for n, p in zip(shape, pooled, strict=True))
    if 0 in crop:
        raise ShapeError(f"{address} has {shape} voxels, expected {pooled} at least, the pooling of the student")
    return crop
