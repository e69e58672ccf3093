"""Any segmentation against any labels, wherever they were made: the scores, and exactly what was scored."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdseg.config.questions import EvaluateTask
from kdseg.errors import ConfigError, VoxelSizeError, masked
from kdseg.evaluation.alignment import Alignment, align, expect_ids
from kdseg.evaluation.boundary_counting import CONVENTIONS, count_boundaries, dust_labels
from kdseg.evaluation.counting import Count, block_counts, count_blocks, objects, read_count, read_rows
from kdseg.evaluation.intervals import LEVEL, SEED, intervals
from kdseg.evaluation.measures import conventions, details, measure
from kdseg.evaluation.metrics.boundaries import boundary_scores, halo
from kdseg.evaluation.metrics.objects import Fault, worst_merges, worst_splits
from kdseg.geometry import Roi, VoxelSize
from kdseg.results.claims import claim
from kdseg.results.remote import is_remote
from kdseg.running.runner import Place
from kdseg.volumes.bounded import sampled
from kdseg.volumes.foreign import Source, sized
from kdseg.volumes.resemblance import like_grey
from kdseg.volumes.sources import open_source, source_member, source_state

log = logging.getLogger(__name__)

SAMPLING = (
    "a voxel of a coarser volume stands for all voxels of the grid inside of it: each takes the nearest coarse voxel"
)


WORST = 20
"""Objects that are listed of each kind."""


def run(task: EvaluateTask) -> dict[str, Any]:
    """Score a segmentation.

    In ``task.out`` lie the tables of blocks, `evaluation.parquet` (the table of overlaps) and `evaluation.json` (what
    is returned): a run that was killed goes on where it was.

    Returns:
        JSON values: ``scores`` and ``details`` by name, ``conventions`` of these, the ``worst`` false splits and merges
        with the voxels to look at (not per section), ``boundaries`` and ``intervals`` if asked for, and ``what`` was
        scored.

    Raises:
        ConfigError: if boundaries are to be both scored and left out.
    """
    if task.boundaries is not None and task.ignore_border is not None:
        raise ConfigError("--ignore-border leaves out the voxels that --boundaries scores: ask for one of the two")
    sources = _sources(task)
    aligned = align(*sources)
    size = _size_for_distances(task, aligned)
    segmentation = aligned.placed[1]
    what = Count(
        segmentation,
        aligned.placed[0],
        aligned.common if task.roi is None else aligned.region(task.roi),
        task.block,
        aligned.placed[2] if task.mask else None,
        task.ignore_labels,
        task.ignore_segments,
        task.per_section,
        task.components,
        task.ignore_border,
        size,
    )
    made_of = task.model_dump(exclude={"segmentation", "labels", "mask", "out", "workers", "overwrite"})
    named = {"segmentation": task.segmentation, "labels": task.labels, "mask": task.mask}
    inputs = {name: source_state(address) for name, address in named.items() if address}
    members = {name: source_member(address) for name, address in named.items() if address and source_member(address)}
    if members:  # the fingerprints are those of files, which may hold several volumes
        made_of["members"] = members
    with (
        _folder(task.out) as folder,
        claim(folder / "evaluation.json", "evaluate", made_of, inputs, overwrite=task.overwrite) as held,
    ):
        progress = held.progress(task.block)
        components = count_blocks(what, progress, held.parquet, place=Place(task.workers))
        counts = read_count(held.parquet, task.dust)
        background = objects(read_rows(held.parquet), task.dust) if task.per_section else None
        answer: dict[str, Any] = {
            "scores": measure(counts),
            "details": details(counts, background),
            "conventions": conventions(),
        }
        if not task.per_section:  # there, ids are numbers of sections' own
            answer["worst"] = {
                "splits": _faults(worst_splits(counts, WORST), what.roi),
                "merges": _faults(worst_merges(counts, WORST), what.roi),
            }
        if task.boundaries is not None:
            answer["boundaries"] = _boundaries(
                what,
                task.boundaries,
                dust_labels(read_rows(held.parquet), task.dust),
                components,
                progress,
                Place(task.workers),
            )
        if task.bootstrap:
            tables = partial(block_counts, what, progress)
            answer["intervals"] = intervals(read_rows(held.parquet), tables, task.bootstrap, dust=task.dust)
            answer["bootstrap"] = {"resamples": task.bootstrap, "level": LEVEL, "seed": SEED}
        answer["what"] = _facts(task, what, aligned) | {
            "scored_voxels": int(counts.count.sum()),
            "segments": int(np.unique(counts.segment).size),
            "labels": int(np.unique(counts.label).size),
        }
        held.stats.update(answer, voxels=what.roi.size)
    for source in sources[:2]:  # after the workers, which would not survive as forks of what reads precomputed volumes
        if not is_remote(source.address) and (warning := like_grey(sampled(source, source.roi), source.address)):
            log.warning("%s", warning)
    return answer


def _boundaries(
    what: Count, tolerance: float, dust: NDArray[np.uint64], components: Path | None, progress: Path, place: Place
) -> dict[str, Any]:
    """Score boundary voxels; JSON values."""
    counts = count_boundaries(what, tolerance, dust, components, progress / "boundaries", place=place)
    scores = {f"boundary_{name}": value for name, value in boundary_scores(counts)._asdict().items()}
    return {
        "tolerance_nm": tolerance,
        "counts": counts._asdict(),
        "scores": scores,
        "conventions": dict(CONVENTIONS),
    }


def _size_for_distances(task: EvaluateTask, aligned: Alignment) -> VoxelSize:
    asked = task.ignore_border is not None or task.boundaries is not None
    if asked and aligned.voxel_size is None:
        raise VoxelSizeError("a distance in nm needs voxels of a known size: give it, --voxel-size Z Y X")
    size = aligned.voxel_size or (1.0, 1.0, 1.0)
    for distance in (task.ignore_border, task.boundaries):
        halo(distance or 0.0, size)  # refuses what is no distance, before the first block
    return size


def _faults(faults: list[Fault], region: Roi) -> list[dict[str, Any]]:
    """Return the worst objects as JSON values; places are voxels of the grid, as regions are."""
    return [
        {
            **{name: value for name, value in fault._asdict().items() if name != "overlaps"},
            "overlaps": [
                {"id": one.id, "voxels": one.voxels, "at": _voxel(one.first or 0, region)} for one in fault.overlaps
            ],
        }
        for fault in faults
    ]


def _voxel(first: int, region: Roi) -> list[int]:
    where = np.unravel_index(first, region.shape)
    return [int(v) + o for v, o in zip(where, region.offset, strict=True)]


def _sources(task: EvaluateTask) -> list[Source]:
    """Open labels, segments and perhaps the mask, with the places and sizes that the user gives."""
    places = {"labels": task.labels_offset, "segmentation": task.segmentation_offset, "mask": None}
    found = []
    for name, place in places.items():
        address = getattr(task, name)
        if address is None:
            continue
        source = open_source(address, task.sections)
        expect_ids(source, f"the {name}")
        if place is not None:
            source = replace(source, offset=place, placed=True, unscaled=None)
        if task.voxel_size is not None:
            if source.voxel_size is not None and source.voxel_size != task.voxel_size:
                raise VoxelSizeError(
                    f"{address} says that its voxels are {source.voxel_size} nm, {task.voxel_size} nm were given: "
                    "the option is for files that do not say"
                )
            source = sized(source, task.voxel_size)
        found.append(source)
    for option, given, other in (("segmentation", found[1], found[0]), ("labels", found[0], found[1])):
        if places[option] is not None and not other.placed:
            raise ConfigError(
                f"--{option}-offset places {given.address}, but {other.address} does not say where it lies and would "
                "be put at the same place: give the offset of both"
            )
    return found


def _facts(task: EvaluateTask, what: Count, aligned: Alignment) -> dict[str, Any]:
    """Return what was scored, as JSON values."""
    names = ("labels", "segmentation", "mask")
    volumes = {
        name: {
            "address": masked(placed.source.address),
            "dtype": str(placed.source.data.dtype),
            "shape": list(placed.source.roi.shape),
            "ratio": list(placed.ratio),
            "start": list(placed.start),
        }
        for name, placed in zip(names, aligned.placed, strict=False)
    }
    finer = any(max(placed.ratio) > 1 for placed in aligned.placed)
    return {
        "volumes": volumes,
        "voxel_size_nm": aligned.voxel_size,
        "offsets_are": aligned.offsets_are,
        "origin_nm": aligned.origin,
        "sampling": SAMPLING if finer else "voxel by voxel",
        "region": {"offset": list(what.roi.offset), "shape": list(what.roi.shape), "voxels": what.roi.size},
        "ignored_labels": list(what.ignore_labels),
        "ignored_segments": list(what.ignore_segments),
        "dust": task.dust,
        "ignored_border_nm": task.ignore_border,
        "per_section": what.per_section,
        "components": ("4-connected" if what.per_section else "6-connected") if what.components else None,
    }


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is not None:
        yield out
    else:
        with TemporaryDirectory(prefix="kdseg-") as folder:
            yield Path(folder)
