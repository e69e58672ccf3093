"""Stored affinities and ground truth → the post-processing options and the threshold that suit them best."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdseg.config.tasks import TunedVolume, TuneSegmentationTask
from kdseg.config.tuning import TuneRegionOptions
from kdseg.errors import ConfigError, DataError, ShapeError
from kdseg.evaluation.candidates import Candidate, as_options, as_yaml, candidates, groups
from kdseg.evaluation.landscape import SCORES, Best, Part, choose, score_candidates
from kdseg.geometry import Block, Roi, block_name, nearest_count, triple
from kdseg.results.claims import claim
from kdseg.results.parquet import Column, write_parquet
from kdseg.results.tables import read_table, write_table
from kdseg.running.runner import place_of, run_blocks
from kdseg.volumes.affinities import affinity_offsets
from kdseg.volumes.inputs import fingerprints, labels_at, open_input, open_mask
from kdseg.volumes.volume import open_volume

log = logging.getLogger(__name__)

COLUMNS = (
    Column("part", np.uint32, "number of the part in `parts`"),
    Column("candidate", np.uint32, "number of the options in `candidates`"),
    Column("threshold", np.float64, "of the agglomeration; NaN: fragments before any merge"),
    Column("voi_split", np.float64, "H(segmentation | labels), false splits; 0 is best", "bit"),
    Column("voi_merge", np.float64, "H(labels | segmentation), false merges; 0 is best", "bit"),
    Column("voi", np.float64, "sum of the two", "bit"),
    Column("arand", np.float64, "adapted Rand error; 0 is best"),
)
_ONE = (1, 1, 1)


@dataclass(frozen=True)
class Place:
    """Stores and voxels of one part.

    Attributes:
        volume: name of the volume.
        affinities: store.
        labels: store.
        mask: store, if there is one.
        roi: the part, in voxels of the affinities.
        labelled: the part, in voxels of the labels.
    """

    volume: str
    affinities: Path
    labels: Path
    mask: Path | None
    roi: Roi
    labelled: Roi


@dataclass(frozen=True)
class Work:
    """Arguments of `score_unit` that are equal for all units; small, sent with every one.

    Attributes:
        places: of the parts.
        tried: all candidates.
        groups: numbers of those that share a flooding.
        thresholds: to score.
        long_range: of `edges`.
        dust: labels of fewer voxels of a part are left out.
        folder: of the tables of units.
    """

    places: tuple[Place, ...]
    tried: tuple[Candidate, ...]
    groups: tuple[tuple[int, ...], ...]
    thresholds: tuple[float, ...]
    long_range: bool
    dust: int
    folder: Path


def run(task: TuneSegmentationTask) -> None:
    """Segment and score parts of labelled volumes with each of many options, and choose the best.

    A part is segmented in memory, with the kernels of the stages and to the same scores as if they were run on it
    alone, as a volume. One unit of work is a flooding and a part; units that are done are kept when the run is killed.

    In the manifest ``stats.chosen`` has the options, the threshold and the scores of each part, ``stats.configured``
    those of the configuration as it is, at its best threshold, ``stats.gain`` the difference in bits, and
    ``stats.configuration`` the chosen options as YAML. The scores of all candidates at all thresholds lie beside it, as
    Parquet.

    Raises:
        ConfigError: if a part is of a volume that is not given.
        DataError: if a part has no labels, or is too small to tune on.
        ShapeError: if a part is not inside of labels and affinities.
    """
    options = task.options
    tried = tuple(candidates(options, task.fragments, task.agglomerate))
    thresholds = options.tried_thresholds(task.agglomerate)
    places = tuple(_place(task, one) for one in options.regions)
    inputs: dict[str, str] = {}
    for name in dict.fromkeys(place.volume for place in places):
        inputs |= _fingerprints(name, task.volumes[name])
    made_of = {
        **options.model_dump(mode="json"),
        "thresholds": list(thresholds),
        "tried": [[one.fragments.model_dump(mode="json"), one.score] for one in tried],
        "long_range": task.edges.long_range,
        "dust": task.dust,
    }
    with claim(task.manifest, "tune-segmentation", made_of, inputs, overwrite=task.overwrite) as held:
        units = tuple(tuple(group) for group in groups(tried))
        progress = held.progress(_ONE)
        work = Work(places, tried, units, thresholds, task.edges.long_range, task.dust, progress)
        total = Roi((0, 0, 0), (len(units), len(places), 1))
        run_blocks("tune-segmentation", total, _ONE, partial(score_unit, work), place_of(task), progress)
        landscape = _landscape(work)
        _write(held.parquet, work, landscape)
        merged = landscape[:, :, 1:]
        best, own = choose(merged, options.by), choose(merged[:, :1], options.by)
        threshold = thresholds[best.threshold]
        text = as_yaml(as_options(tried[best.candidate], threshold, long_range=task.edges.long_range))
        held.stats.update(
            chosen=_chosen(work, landscape, best),
            configured=_chosen(work, landscape, own),
            gain=own.value - best.value,
            by=options.by,
            candidates=len(tried),
            configuration=text,
        )
        log.info(
            "tune-segmentation: VOI %.3f bits (%s of %d parts), %.3f with the options as they are; for the "
            "configuration:\n%s",
            best.value,
            options.by,
            len(places),
            own.value,
            text,
        )


def score_unit(work: Work, unit: Block) -> None:
    """Score the candidates of one flooding on one part, and write their table."""
    group, place = work.groups[unit.index[0]], work.places[unit.index[1]]
    source = open_volume(place.affinities)
    tissue = None if place.mask is None else open_volume(place.mask).read(place.roi) != 0
    assert source.voxel_size is not None  # else the labels would not have been placed
    part = Part(
        source.read(place.roi),
        affinity_offsets(source),
        open_volume(place.labels).read(place.labelled),
        tissue,
        source.voxel_size,
    )
    tried = [work.tried[k] for k in group]
    found = score_candidates(part, tried, work.thresholds, long_range=work.long_range, dust=work.dust)
    write_table(work.folder / block_name(unit.index), {"scores": found})


def _place(task: TuneSegmentationTask, region: TuneRegionOptions) -> Place:
    given = task.volumes.get(region.volume)
    if given is None:
        raise ConfigError(
            f"no manifests of the volume {region.volume!r} were given, only of {sorted(task.volumes)}: name them, or "
            "another volume"
        )
    affinities, labels = open_input(given.affinities), open_input(given.labels)
    axes = range(3 - nearest_count(affinity_offsets(affinities.volume)), 3)
    first = labels_at(region.volume, labels.volume, affinities.volume, "affinities")
    within = Roi(first, labels.volume.shape).intersect(affinities.volume.roi)
    roi = _roi(region, within)
    labelled = roi.shift(triple(-o for o in first))
    size = affinities.volume.voxel_size
    assert size is not None  # else the labels would not have been placed
    least = {axis: ceil(task.options.least_side * min(size) / size[axis]) for axis in axes}
    _expect_large(region.volume, labels.volume.read(labelled), roi, least)
    mask = open_mask(given.mask, affinities.volume)
    return Place(region.volume, affinities.store, labels.store, None if mask is None else mask.store, roi, labelled)


def _roi(region: TuneRegionOptions, within: Roi) -> Roi:
    """Return the voxels of a part; ``within`` are those that have labels and affinities."""
    if region.shape is None:
        return within
    if region.offset is not None:
        roi = Roi(region.offset, region.shape).shift(within.offset)
        if not within.contains(roi):
            raise ShapeError(
                f"the part {Roi(region.offset, region.shape)} of {region.volume!r} is not inside of the "
                f"{within.shape} voxels that labels and affinities cover"
            )
        return roi
    return within.central(region.shape)


def _expect_large(volume: str, labels: NDArray[Any], roi: Roi, least: Mapping[int, int]) -> None:
    """Refuse a part whose labelled voxels are too few along an axis, of which ``least`` has the fewest."""
    if not labels.any():
        raise DataError(f"the part {roi} of {volume!r} has no labels: tune on another part")
    for axis, fewest in least.items():
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero((labels != 0).any(axis=others))
        side = int(found[-1] - found[0]) + 1
        if side < fewest:
            raise DataError(
                f"the part {roi} of {volume!r} is too small to tune on: labels reach over {side} voxels along "
                f"{'zyx'[axis]}, expected at least {fewest}; take a larger part, or lower "
                "tune_segmentation.least_side if there is none (the threshold is then too high for a large volume)"
            )


def _fingerprints(name: str, given: TunedVolume) -> dict[str, str]:
    affinities = open_input(given.affinities)
    found = fingerprints(
        affinities=affinities, labels=open_input(given.labels), mask=open_mask(given.mask, affinities.volume)
    )
    return {f"{name}/{role}": value for role, value in found.items()}


def _landscape(work: Work) -> NDArray[np.float64]:
    """Return all scores, float64 (parts, candidates, 1 + thresholds, `SCORES`)."""
    out = np.empty((len(work.places), len(work.tried), 1 + len(work.thresholds), len(SCORES)))
    for k, group in enumerate(work.groups):
        for part in range(len(work.places)):
            out[part, list(group)] = read_table(work.folder / block_name((k, part, 0)))["scores"]
    return out


def _write(path: Path, work: Work, landscape: NDArray[np.float64]) -> None:
    parts, tried, rows, _ = landscape.shape
    part, candidate, row = np.indices((parts, tried, rows)).reshape(3, -1)
    notes = {
        "parts": [_facts(place) for place in work.places],
        "candidates": [[one.fragments.model_dump(mode="json"), one.score] for one in work.tried],
    }
    scores = dict(zip(SCORES, landscape.reshape(-1, len(SCORES)).T, strict=True))
    threshold = np.array([np.nan, *work.thresholds])[row]
    table = {"part": part.astype(np.uint32), "candidate": candidate.astype(np.uint32), "threshold": threshold}
    with write_parquet(path, COLUMNS, notes) as file:
        file.append({**table, **scores})


def _chosen(work: Work, landscape: NDArray[np.float64], best: Best) -> dict[str, Any]:
    threshold = work.thresholds[best.threshold]
    found = landscape[:, best.candidate]
    parts = [
        {
            **_facts(place),
            **_named(rows[1 + best.threshold]),
            "fragments": _named(rows[0]),
        }
        for place, rows in zip(work.places, found, strict=True)
    ]
    return {
        "candidate": best.candidate,
        "options": as_options(work.tried[best.candidate], threshold, long_range=work.long_range),
        "threshold": threshold,
        "voi": best.value,
        "parts": parts,
    }


def _named(row: NDArray[np.float64]) -> dict[str, float]:
    return {name: float(value) for name, value in zip(SCORES, row, strict=True)}


def _facts(place: Place) -> dict[str, Any]:
    return {"volume": place.volume, "offset": list(place.roi.offset), "shape": list(place.roi.shape)}
