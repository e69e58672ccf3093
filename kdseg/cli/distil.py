"""One command from a network in a file and raw data to a student, its segmentation and a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdseg.cli.chain import Stages, carry_out, converted, how_to_go_on, segmented
from kdseg.config import Config, tasks, validate
from kdseg.config.base import Extent
from kdseg.config.questions import DistilTask
from kdseg.config.teachers import FileTeacher
from kdseg.errors import ConfigError, ShapeError, VoxelSizeError, masked
from kdseg.geometry import Offsets, Triple, VoxelSize, triple
from kdseg.segmentation.links import nearest_channels

COARSE = 1.5
"""Voxels more than so many times as high as wide are pooled and convolved in the section plane first."""
CROP = 64
"""Largest extent of a crop in voxels."""


def distil(task: DistilTask) -> None:
    """Distil a network in a file on raw data alone, and print what is known of the student."""
    config = configuration(task)
    carry_out(config, stages(config, task), overwrite=task.overwrite)
    print((task.out / "report.txt").read_text())
    print(f"student: {task.out}/student/model.safetensors, segmentation: {task.out}/student/raw/segmentation.zarr")
    print(f"page: {task.out}/report.html")
    print(how_to_go_on(config))


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
    from kdseg.volumes.foreign import lacks_size
    from kdseg.volumes.sources import open_source

    given: dict[str, Any] = {"offsets": task.offsets, "outputs": task.outputs, "input": task.input_range}
    facts = opened(FileTeacher(file=str(task.teacher)), torch.device("cpu"))[1]
    if "voxel_size" not in facts:
        given["voxel_size"] = task.voxel_size
    offsets = task.offsets or facts.get("offsets")
    if offsets is None:
        raise ConfigError(f"the teacher {task.teacher} does not say its offsets: give --offsets '-1,0,0 0,-1,0 0,0,-1'")
    source = open_source(task.raw, task.sections)
    size = source.voxel_size or task.voxel_size
    if size is None:
        raise VoxelSizeError(f"{task.raw} {lacks_size(source)}: give it, --voxel-size Z Y X, in nm")
    ours, teacher = _nearest_first(task.teacher, offsets), {"file": str(task.teacher), **_said(given)}
    # what does not fit is to be known before hours of conversion
    open_teacher(FileTeacher.model_validate(teacher), ours, size, torch.device("cpu"))
    downsample, kernels = _levels(size, len(task.widths))
    volume: dict[str, Any] = {"raw": task.raw, "voxel_size": task.voxel_size, "intensity": task.intensity}
    volume |= {"roi": task.roi, "sections": task.sections}
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
            "title": f"{task.teacher.name} distilled on {Path(masked(task.raw)).name}",
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


def stages(config: Config, task: DistilTask) -> Stages:
    """Yield the tasks of a run by their commands, in order."""
    folder = Path(config.results)
    how: dict[str, Any] = {"workers": config.workers, "overwrite": task.overwrite}
    yield from converted(config, "raw", how)
    yield (
        "train",
        tasks.TrainTask(
            manifest=folder / "student" / "model.json",
            name="student",
            options=config.models["student"],
            offsets=config.offsets,
            volumes={"raw": tasks.VolumeInputs(raw=folder / "volumes" / "raw" / "raw.json")},
            foreign=config.teachers,
            fragments=config.fragments,
            device=config.device,
            **how,
        ),
    )
    yield from segmented(config, "student", "raw", how)
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
