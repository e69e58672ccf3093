"""Any segmentation against any labels, wherever they were made: the scores, and exactly what was scored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import ConfigError, VoxelSizeError
from kdseg.evaluation.alignment import Alignment, align, expect_ids
from kdseg.evaluation.boundary_counting import CONVENTIONS, count_boundaries, dust_labels
from kdseg.evaluation.counting import Count, block_counts, count_blocks, objects, read_count, read_rows
from kdseg.evaluation.intervals import LEVEL, SEED, intervals
from kdseg.evaluation.measures import conventions, details, measure
from kdseg.evaluation.metrics.boundaries import boundary_scores, halo
from kdseg.evaluation.metrics.objects import Fault, worst_merges, worst_splits
from kdseg.geometry import Roi, Triple, VoxelSize
from kdseg.results.manifests import claim, source_fingerprint
from kdseg.volumes.sources import Source, open_source, source_member, source_path

SAMPLING = (
    "a voxel of a coarser volume stands for all voxels of the grid inside of it: each takes the nearest coarse voxel"
)


WORST = 20
"""Objects that are listed of each kind."""


@dataclass(frozen=True)
class Question:
    """Volumes to score, and the options that the scores depend on.

    Attributes:
        segmentation: address of the segments, of any format of `kdseg.volumes.sources`.
        labels: address of the ground truth.
        mask: address of a volume; voxels where it is 0 are left out, and those that it does not cover.
        roi: region to score, as `alignment.Alignment.region` reads it; default: all that the volumes cover.
        ignore_labels: voxels of these labels are left out.
        ignore_segments: voxels of these segments are left out.
        dust: labels of fewer voxels of the region are left out.
        per_section: score each z as an image of its own.
        components: split labels into connected components within the region first.
        block: voxels per task, and per unit of the bootstrap; changes no score.
        ignore_border: nm; voxels at most so far from a border of the labels, within the section, are left out, as in
            CREMI; None: none is, 0: the voxels at borders.
        boundaries: nm, 0 or above; score boundary voxels, which are right within so far of a counterpart; None: do not.
        bootstrap: resamples for intervals; 0: none.
        voxel_size: nm, (z, y, x), of files that do not say.
        segmentation_offset: nm, (z, y, x), of the first voxel, instead of what the file says.
        labels_offset: likewise.
    """

    segmentation: str
    labels: str
    mask: str | None = None
    roi: str | None = None
    ignore_labels: tuple[int, ...] = (0,)
    ignore_segments: tuple[int, ...] = ()
    dust: int = 0
    per_section: bool = False
    components: bool = False
    block: Triple = (128, 128, 128)
    ignore_border: float | None = None
    boundaries: float | None = None
    bootstrap: int = 0
    voxel_size: VoxelSize | None = None
    segmentation_offset: VoxelSize | None = None
    labels_offset: VoxelSize | None = None


def run(question: Question, out: Path | None = None, *, workers: int = 1, overwrite: bool = False) -> dict[str, Any]:
    """Score a segmentation.

    Args:
        question: what is scored.
        out: folder for the tables of blocks, `evaluation.parquet` (the table of overlaps) and `evaluation.json` (what
            is returned): a run that was killed goes on where it was. Default: a temporary folder.
        workers: processes; the result does not depend on them.
        overwrite: clear what other options or inputs left in ``out``.

    Returns:
        JSON values: ``scores`` and ``details`` by name, ``conventions`` of these, the ``worst`` false splits and merges
        with the voxels to look at (not per section), ``boundaries`` and ``intervals`` if asked for, and ``what`` was
        scored.

    Raises:
        DataError: if ids are no integers, or negative, or nothing is left to score.
        ShapeError: if the volumes do not overlap, or do not say where they lie and differ in shape.
        VoxelSizeError: if their voxels do not lie on one grid, or a size or place is none.
        ConfigError: if the region is not understood, boundaries are to be both scored and left out, or only one of two
            files without a place is given one.
        MissingError: if a volume is not there.
        UnreadableError: if one is damaged or of no known format.
        StageError: if a block failed, e.g. for negative ids or a damaged chunk.
        ClaimError: if ``out`` holds the answer to another question, or is being written.
    """
    if question.boundaries is not None and question.ignore_border is not None:
        raise ConfigError("--ignore-border leaves out the voxels that --boundaries scores: ask for one of the two")
    sources = _sources(question)
    aligned = align(*sources)
    size = _size_for_distances(question, aligned)
    segmentation = aligned.placed[1]
    what = Count(
        segmentation,
        aligned.placed[0],
        aligned.common if question.roi is None else aligned.region(question.roi),
        question.block,
        aligned.placed[2] if question.mask else None,
        question.ignore_labels,
        question.ignore_segments,
        question.per_section,
        question.components,
        question.ignore_border,
        size,
    )
    made_of = {
        name: value for name, value in asdict(question).items() if name not in ("segmentation", "labels", "mask")
    }
    if question.boundaries is None:
        del made_of["boundaries"]  # folders of earlier versions do not know it
    named = {"segmentation": question.segmentation, "labels": question.labels, "mask": question.mask}
    inputs = {name: source_fingerprint(source_path(address)) for name, address in named.items() if address}
    members = {name: source_member(address) for name, address in named.items() if address and source_member(address)}
    if members:  # the fingerprints are those of files, which may hold several volumes
        made_of["members"] = members
    with (
        _folder(out) as folder,
        claim(folder / "evaluation.json", "evaluate", made_of, inputs, overwrite=overwrite) as held,
    ):
        progress = held.progress(question.block)
        components = count_blocks(what, progress, held.parquet, workers=workers)
        counts = read_count(held.parquet, question.dust)
        background = objects(read_rows(held.parquet), question.dust) if question.per_section else None
        answer: dict[str, Any] = {
            "scores": measure(counts),
            "details": details(counts, background),
            "conventions": conventions(),
        }
        if not question.per_section:  # there, ids are numbers of sections' own
            answer["worst"] = {
                "splits": _faults(worst_splits(counts, WORST), what.roi),
                "merges": _faults(worst_merges(counts, WORST), what.roi),
            }
        if question.boundaries is not None:
            answer["boundaries"] = _boundaries(
                what,
                question.boundaries,
                dust_labels(read_rows(held.parquet), question.dust),
                components,
                progress,
                workers,
            )
        if question.bootstrap:
            tables = partial(block_counts, what, progress)
            answer["intervals"] = intervals(read_rows(held.parquet), tables, question.bootstrap, dust=question.dust)
            answer["bootstrap"] = {"resamples": question.bootstrap, "level": LEVEL, "seed": SEED}
        answer["what"] = _facts(question, what, aligned) | {
            "scored_voxels": int(counts.count.sum()),
            "segments": int(np.unique(counts.segment).size),
            "labels": int(np.unique(counts.label).size),
        }
        held.stats.update(answer, voxels=what.roi.size)
    return answer


def _boundaries(
    what: Count, tolerance: float, dust: NDArray[np.uint64], components: Path | None, progress: Path, workers: int
) -> dict[str, Any]:
    """Score boundary voxels; JSON values."""
    counts = count_boundaries(what, tolerance, dust, components, progress / "boundaries", workers=workers)
    scores = {f"boundary_{name}": value for name, value in boundary_scores(counts)._asdict().items()}
    return {
        "tolerance_nm": tolerance,
        "counts": counts._asdict(),
        "scores": scores,
        "conventions": dict(CONVENTIONS),
    }


def _size_for_distances(question: Question, aligned: Alignment) -> VoxelSize:
    asked = question.ignore_border is not None or question.boundaries is not None
    if asked and aligned.voxel_size is None:
        raise VoxelSizeError("a distance in nm needs voxels of a known size: give it, in nm, as --voxel-size")
    size = aligned.voxel_size or (1.0, 1.0, 1.0)
    for distance in (question.ignore_border, question.boundaries):
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


def _sources(question: Question) -> list[Source]:
    """Open labels, segments and perhaps the mask, with the places and sizes that the user gives."""
    places = {"labels": question.labels_offset, "segmentation": question.segmentation_offset, "mask": None}
    found = []
    for name, place in places.items():
        address = getattr(question, name)
        if address is None:
            continue
        source = open_source(address)
        expect_ids(source, f"the {name}")
        if place is not None:
            source = replace(source, offset=place, placed=True)
        if question.voxel_size is not None:
            if source.voxel_size is not None and source.voxel_size != question.voxel_size:
                raise VoxelSizeError(
                    f"{address} says that its voxels are {source.voxel_size} nm, {question.voxel_size} nm were given: "
                    "the option is for files that do not say"
                )
            source = replace(source, voxel_size=question.voxel_size)
        found.append(source)
    for option, given, other in (("segmentation", found[1], found[0]), ("labels", found[0], found[1])):
        if places[option] is not None and not other.placed:
            raise ConfigError(
                f"--{option}-offset places {given.address}, but {other.address} does not say where it lies and would "
                "be put at the same place: give the offset of both"
            )
    return found


def _facts(question: Question, what: Count, aligned: Alignment) -> dict[str, Any]:
    """Return what was scored, as JSON values."""
    names = ("labels", "segmentation", "mask")
    volumes = {
        name: {
            "address": placed.source.address,
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
        "dust": question.dust,
        "ignored_border_nm": question.ignore_border,
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
