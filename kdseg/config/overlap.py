"""Voxels that a run trains on and chooses or scores on as well: leaks, by which scores are better than they mean."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from os.path import realpath
from typing import TYPE_CHECKING, Literal, NamedTuple

from kdseg.config.addresses import is_url, locate, n5_dataset
from kdseg.geometry import Roi, Triple, VoxelSize, triple

if TYPE_CHECKING:
    from kdseg.config import Config
    from kdseg.config.data import PhantomOptions, VolumeOptions
    from kdseg.config.networks import TrainOptions

Role = Literal["trained", "distilled", "checkpoint", "threshold", "scored"]
_FIRST_LEVEL = re.compile(r"(\.(?:zarr|ozx|n5).*)/s?0$", re.IGNORECASE)
_TEXTS: dict[tuple[Role, Role], str] = {
    ("trained", "scored"): (
        "{where} is scored, and is ground truth for the training of {names}{of}: scores there say nothing of other "
        "tissue"
    ),
    ("distilled", "scored"): (
        "{where} is scored, and its raw data feed the distillation of {names}{of}: no label of it is seen, but scores "
        "of tissue that was never seen may be worse"
    ),
    ("checkpoint", "scored"): (
        "{where} is scored, and the checkpoints of {names} are chosen there{of}, which flatters them"
    ),
    ("threshold", "scored"): (
        "{where} is scored, and the thresholds are chosen there{of}, which flatters every model of ours"
    ),
    ("trained", "checkpoint"): (
        "{where} is where the checkpoints of {names} are chosen, and ground truth for their training{of}: that they "
        "learn it by heart goes unseen"
    ),
    ("trained", "threshold"): (
        "{where} is where the thresholds are chosen, and ground truth for the training of {names}{of}: the best ones "
        "there need not be so elsewhere"
    ),
}


class Cover(NamedTuple):
    """Voxels of one volume, counted from the first one of what they are cut from.

    Attributes:
        source: of the raw data, equal for volumes that are cut from one.
        raw: voxels that are used.
        labels: those with ground truth; None without.
    """

    source: str
    raw: Roi
    labels: Roi | None


class Leak(NamedTuple):
    """Voxels that are used twice.

    Attributes:
        text: in words, as the beginning of a sentence.
        options: of the two uses.
    """

    text: str
    options: tuple[str, str]


class _Use(NamedTuple):
    role: Role
    option: str
    volume: str
    roi: Roi | None
    model: str = ""


class _Shared(NamedTuple):
    first: _Use
    second: _Use
    share: float | None


def source_of(options: VolumeOptions) -> str:
    """Return a text that is equal for volumes whose raw data are cut from one source."""
    if options.phantom is not None:
        return f"phantom {options.phantom.seed} {options.phantom.voxel_size}"
    address = str(options.raw)
    if is_url(address):
        return _FIRST_LEVEL.sub(r"\1", address.rstrip("/"))
    file, member, hdf5 = locate(address)
    if file.is_file() and not hdf5:  # a zip file, in which a group lies as in a folder
        return _FIRST_LEVEL.sub(r"\1", f"{realpath(file)}/{member}".rstrip("/")) + ":"
    folder = None if hdf5 or member else n5_dataset(file)
    return ":".join((_FIRST_LEVEL.sub(r"\1", realpath(folder or file)), member.strip("/")))


def phantom_cover(options: VolumeOptions, phantom: PhantomOptions) -> Cover:
    """Return the voxels of a phantom, all of which have labels."""
    roi = Roi(phantom.offset, phantom.shape)
    return Cover(source_of(options), roi, roi)


def placed(shape: Triple, offset: VoxelSize, raw: Roi, raw_offset: VoxelSize, voxel_size: VoxelSize) -> Roi:
    """Return the place of labels, counted from the first voxel of what the raw data are cut from.

    Args:
        shape: of the labels in voxels, (z, y, x).
        offset: nm, position of their first voxel.
        raw: voxels of raw data that are used.
        raw_offset: nm, position of the first of them.
        voxel_size: nm.
    """
    steps = (round((a - b) / v) for a, b, v in zip(offset, raw_offset, voxel_size, strict=True))
    return Roi(triple(steps), shape).shift(raw.offset)


def leaks(config: Config, covers: Mapping[str, Cover], *, compare: bool = False) -> list[Leak]:
    """Return what is used twice, in the order of how much it matters.

    Args:
        config: of the run.
        covers: voxels of its volumes, by name. A volume that is not among them overlaps with itself alone.
        compare: the uses of `compare`, instead of those of the main run.
    """
    uses = list(_compared(config, covers) if compare else _used(config, covers))
    shared: dict[tuple[Role, Role, str, str], list[_Shared]] = {}
    for pair in _TEXTS:
        for first in (use for use in uses if use.role == pair[0]):
            for second in (use for use in uses if use.role == pair[1]):
                if first.model and second.model and first.model != second.model:
                    continue
                share = _share(first, second, covers)
                if share != 0:
                    key = (*pair, first.volume, second.volume)
                    shared.setdefault(key, []).append(_Shared(first, second, share))
    return [_leak(found) for found in shared.values()]


def _leak(found: list[_Shared]) -> Leak:
    first, second, share = found[0]
    volume = second.volume
    where = volume if share is None or share == 1 else f"{100 * share:.2g} % of {volume}"
    names = ", ".join(dict.fromkeys(one.first.model for one in found))
    of = "" if first.volume == volume else f" as a part of {first.volume}"
    text = _TEXTS[first.role, second.role].format(where=where, names=names, of=of)
    return Leak(text, (first.option, second.option))


def _share(first: _Use, second: _Use, covers: Mapping[str, Cover]) -> float | None:
    """Return the share of the second use's voxels that the first has, too; None if some, nobody knows how many."""
    if first.roi is None or second.roi is None:
        return None if first.volume == second.volume else 0
    if covers[first.volume].source != covers[second.volume].source:
        return 0
    return first.roi.intersect(second.roi).size / second.roi.size


def _used(config: Config, covers: Mapping[str, Cover]) -> Iterator[_Use]:
    names = dict.fromkeys(name for name in config.evaluate.models if name in config.models)
    ahead = [*names]
    while ahead:
        teachers = [name for name in config.own_teachers(ahead.pop()) if name in config.models and name not in names]
        names |= dict.fromkeys(teachers)
        ahead += teachers
    for name in names:
        yield from _learned(config, covers, name, config.models[name].train)
    yield from _thresholds(config, covers)
    for volume in config.evaluate.volumes:
        if config.volumes[volume].labelled:
            yield _Use("scored", "evaluate.volumes", volume, _labels(covers, volume))


def _compared(config: Config, covers: Mapping[str, Cover]) -> Iterator[_Use]:
    trial, student = config.trial, config.expect_compare().student
    yield from _learned(config, covers, student, config.models[student].train)
    whole = _labels(covers, trial.tune_on)
    yield _Use("threshold", "evaluate.tune_on", trial.tune_on, whole and whole.central(trial.shape))
    for volume in trial.volumes:
        whole = _labels(covers, volume)
        yield _Use("scored", "compare.volumes", volume, whole and whole.central(trial.shape))


def _learned(config: Config, covers: Mapping[str, Cover], name: str, train: TrainOptions) -> Iterator[_Use]:
    where = f"models.{name}.train"
    for volume in train.volumes:
        if train.labels_used and config.volumes[volume].labelled:
            yield _Use("trained", f"{where}.volumes", volume, _labels(covers, volume), name)
        else:
            yield _Use("distilled", f"{where}.volumes", volume, _raw(covers, volume), name)
    for volume in train.active_unlabelled:
        yield _Use("distilled", f"{where}.unlabelled", volume, _raw(covers, volume), name)
    if config.volumes[train.validate_on].labelled:
        whole = _labels(covers, train.validate_on)
        crop = whole and whole.central(train.validate_shape)
        yield _Use("checkpoint", f"{where}.validate_on", train.validate_on, crop, name)


def _thresholds(config: Config, covers: Mapping[str, Cover]) -> Iterator[_Use]:
    if config.tuned_options != "none":
        for region in config.expect_tune_segmentation().regions:
            whole = _labels(covers, region.volume)
            part = whole
            if whole is not None and region.shape is not None:
                shifted = None if region.offset is None else Roi(region.offset, region.shape).shift(whole.offset)
                part = shifted or whole.central(region.shape)
            yield _Use("threshold", "tune_segmentation.regions", region.volume, part)
    elif config.segment.threshold is None and config.evaluate.tune_on is not None:
        whole, chosen = _labels(covers, config.evaluate.tune_on), config.evaluate.tune_roi
        part = Roi(chosen.offset, chosen.shape).shift(whole.offset) if chosen and whole else whole
        yield _Use("threshold", "evaluate.tune_on", config.evaluate.tune_on, part)


def _raw(covers: Mapping[str, Cover], volume: str) -> Roi | None:
    return covers[volume].raw if volume in covers else None


def _labels(covers: Mapping[str, Cover], volume: str) -> Roi | None:
    return covers[volume].labels if volume in covers else None
