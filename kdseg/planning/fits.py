"""Findings on extents: voxel sizes that do not agree, crops and parts that volumes do not hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import ceil, isclose

from kdseg.config import Config, ModelOptions
from kdseg.config.matching import uneven_chunks
from kdseg.config.tuning import TuneRegionOptions
from kdseg.geometry import Roi, Triple, VoxelSize, in_sections, is_cubic, knows_voxels
from kdseg.planning.extents import Extents
from kdseg.planning.findings import Finding

_ON_ONE_GRID = 1e-3
"""Relative difference of the voxels that one network is trained on, at most."""


def fits(
    config: Config, extents: Mapping[str, Extents], known: Mapping[str, VoxelSize], starts: Mapping[str, VoxelSize]
) -> Iterator[Finding]:
    """Yield what does not fit.

    Args:
        config: of the run.
        extents: of its volumes, by name, as far as they are known.
        known: voxels, nm, (z, y, x), of networks that are trained already, by name.
        starts: likewise, of those that trainings start from, by the names of the models.
    """
    sizes = {name: one.voxel_size for name, one in extents.items()}
    trained = dict(known)
    for name, model in config.models.items():
        drawn = [volume for volume in model.train.drawn if volume in sizes]
        if drawn:
            trained[name] = sizes[drawn[0]]
            yield from _trained(f"models.{name}.train", model, drawn, sizes)
            if name in starts and not knows_voxels(starts[name], trained[name]):
                yield Finding(
                    f"models.{name}.train.start_from",
                    f"{model.train.start_from} was trained on voxels of {starts[name]} nm, {drawn[0]!r} has "
                    f"{trained[name]}: start from another network, or name another resolution level",
                )
        for volume in drawn:
            shape, crop = extents[volume].raw, model.train.crop
            if any(n < c for n, c in zip(shape, crop, strict=True)):
                yield Finding(
                    f"models.{name}.train.crop",
                    f"{list(crop)} is larger than the volume {volume!r} of {list(shape)} voxels: make it smaller",
                )
    yield from _predicted(config, sizes, trained)
    for problem in uneven_chunks(config, {name: one.raw for name, one in extents.items()}):
        yield Finding("agglomerate.chunk", problem)
    yield from _parts(config, extents)


def _trained(where: str, model: ModelOptions, drawn: list[str], sizes: Mapping[str, VoxelSize]) -> Iterator[Finding]:
    train, (first, *others) = model.train, drawn
    size = sizes[first]
    for volume in others:
        if not all(isclose(a, b, rel_tol=_ON_ONE_GRID) for a, b in zip(size, sizes[volume], strict=True)):
            yield Finding(
                f"{where}.{'volumes' if volume in train.volumes else 'unlabelled'}",
                f"{volume!r} has voxels of {sizes[volume]} nm, {first!r} of {size}: a network is trained for one voxel "
                "size; leave one out, or name another resolution level of it",
            )
    judge = train.validate_on
    if judge in sizes and judge not in drawn and not knows_voxels(size, sizes[judge]):
        yield Finding(
            f"{where}.validate_on",
            f"{judge!r} has voxels of {sizes[judge]} nm, the volumes to train on {size}: validate on one of these, or "
            "name another resolution level of it",
        )
    _, y, x = size
    if train.augment.rotate == "zyx" and not is_cubic(size):
        yield Finding(
            f"{where}.augment.rotate", f"'zyx' needs cubic voxels, those of {first!r} have {size} nm: use 'yx'"
        )
    if train.augment.rotate == "yx" and not is_cubic((x, y, x)):
        yield Finding(
            f"{where}.augment.rotate",
            f"'yx' needs voxels as wide as high, those of {first!r} have {size} nm: use 'none'",
        )


def _predicted(config: Config, sizes: Mapping[str, VoxelSize], trained: Mapping[str, VoxelSize]) -> Iterator[Finding]:
    """Yield volumes whose voxels a network does not know that is to predict them, each with each network once."""
    asked: dict[tuple[str, str], str] = {}
    for name in config.evaluate.models:
        regions = (
            config.tune_segmentation.regions if config.tuned_options != "none" and config.tune_segmentation else ()
        )
        asked |= {(name, region.volume): "tune_segmentation.regions" for region in regions}
        asked |= {(name, volume): "evaluate.tune_on" for volume in config.evaluate.tuned}
        asked |= {(name, volume): "evaluate.volumes" for volume in config.evaluate.volumes}
    if config.compare is not None:
        asked |= {(config.compare.student, volume): "compare.volumes" for volume in config.trial.volumes}
    for name, model in config.models.items():
        for teacher in model.train.teachers:
            asked |= {(teacher, volume): f"models.{name}.train.teacher" for volume in config.taught_volumes(name)}
    for (name, volume), option in asked.items():
        if name in trained and volume in sizes and not knows_voxels(trained[name], sizes[volume]):
            yield Finding(
                option,
                f"{volume!r} has voxels of {sizes[volume]} nm, {name!r} knows those of {trained[name]}: take another "
                "network or volume, or name another resolution level of it",
            )


def _parts(config: Config, extents: Mapping[str, Extents]) -> Iterator[Finding]:
    labelled = {name: one.cover.labels for name, one in extents.items() if one.cover.labels is not None}
    tune_on, part = config.evaluate.tune_on, config.evaluate.tune_roi
    if part is not None and tune_on in labelled:
        whole = Roi((0, 0, 0), labelled[tune_on].shape)
        if not whole.contains(Roi(part.offset, part.shape)):
            yield Finding(
                "evaluate.tune_roi",
                f"{Roi(part.offset, part.shape)} is not inside of the labels of {tune_on!r}, {whole}: make it smaller",
            )
    tuning = config.tune_segmentation
    for region in tuning.regions if tuning is not None else ():
        if tuning is not None and region.volume in labelled:
            size, flat = extents[region.volume].voxel_size, in_sections(config.offsets)
            sides = [0 if flat and axis == 0 else ceil(tuning.least_side * min(size) / size[axis]) for axis in range(3)]
            yield from _region(region, labelled[region.volume].shape, (sides[0], sides[1], sides[2]))


def _region(region: TuneRegionOptions, labelled: Triple, least: Triple) -> Iterator[Finding]:
    whole = Roi((0, 0, 0), labelled)
    roi = whole if region.shape is None else whole.central(region.shape)
    if region.offset is not None and region.shape is not None:
        roi = Roi(region.offset, region.shape)
    if not whole.contains(roi):
        text = f"the part {roi} of {region.volume!r} is not inside of its labels, {whole}: move it, or make it smaller"
        yield Finding("tune_segmentation.regions", text)
    elif any(n < fewest for n, fewest in zip(roi.shape, least, strict=True)):
        yield Finding(
            "tune_segmentation.regions",
            f"the part of {region.volume!r} has {list(roi.shape)} voxels, expected at least {list(least)}: take a "
            "larger one, or lower tune_segmentation.least_side if there is none",
        )
