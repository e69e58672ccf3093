"""Segmentations against ground truth: a sweep over thresholds, and the scores of what is shipped."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdseg.blockwise import run_blocks
from kdseg.config import EvaluateOptions
from kdseg.dendrogram import Tree
from kdseg.errors import DataError, ShapeError, VoxelSizeError
from kdseg.geometry import Block, Roi, Triple, blocks
from kdseg.manifests import Claim, claim, expect_made_of, expect_stage, read, store_of
from kdseg.metrics.contingency import Contingency, block_contingency, drop_small_labels, merge, relabel
from kdseg.metrics.scores import scores
from kdseg.tables import read_table, write_table
from kdseg.volume import Volume, open_volume

TOLERANCE = 1e-3
"""Of a voxel: how far two volumes may be off a common grid."""


def sweep(
    fragments: Path,
    agglomeration: Path,
    labels: Path,
    manifest: Path,
    options: EvaluateOptions,
    *,
    workers: int = 1,
    overwrite: bool = False,
) -> None:
    """Score every threshold from one table of fragments against labels, without relabelling voxels.

    Args:
        fragments: manifest of the fragments.
        agglomeration: manifest of the dendrogram.
        labels: manifest of the ground truth.
        manifest: to write; ``stats.sweep`` has a row per threshold, ``stats.best`` the one of least VOI.
        options: dust, block.
        workers: processes; the result does not depend on them.
        overwrite: clear what other options or inputs made.

    Raises:
        ShapeError: if fragments and labels do not overlap.
        VoxelSizeError: if their voxels do not lie on one grid.
        ClaimError: if the store holds something else, or is being written.
    """
    expect_stage(agglomeration, "agglomerate")
    expect_made_of(agglomeration, fragments=fragments)
    inputs = _inputs(fragments=fragments, agglomeration=agglomeration, labels=labels)
    with claim(manifest, "sweep", _made_of(options), inputs, overwrite=overwrite) as held:
        counts = _contingency(store_of(fragments), store_of(labels), options, workers, held)
        tree = Tree(agglomeration)
        ids = np.unique(counts.segment[counts.segment > 0])
        rows = []
        for threshold in read(agglomeration)["stats"]["thresholds"]:
            found = relabel(counts, ids, tree.segments(ids, threshold))
            rows.append({"threshold": threshold, **scores(found)._asdict()})
        best = min(rows, key=lambda row: (row["voi"], row["threshold"]))
        held.stats.update(sweep=rows, best=best["threshold"])


def run(
    segmentation: Path,
    labels: Path,
    manifest: Path,
    options: EvaluateOptions,
    *,
    sweep: Path | None = None,
    facts: Mapping[str, Any] | None = None,
    workers: int = 1,
    overwrite: bool = False,
) -> None:
    """Score a segmentation: VOI split and merge in bits, ARAND.

    Args:
        segmentation: manifest of the segmentation.
        labels: manifest of the ground truth.
        manifest: to write; ``stats.scores``.
        options: dust, block.
        sweep: manifest of this volume's own sweep; its best row is noted beside the scores.
        facts: what else the manifest should say, e.g. the names of model and volume.
        workers: processes; the result does not depend on them.
        overwrite: clear what other options or inputs made.

    Raises:
        ShapeError: if segmentation and labels do not overlap.
        VoxelSizeError: if their voxels do not lie on one grid.
        ClaimError: if the store holds something else, or is being written.
    """
    inputs = _inputs(segmentation=segmentation, labels=labels)
    with claim(manifest, "evaluate", _made_of(options), inputs, overwrite=overwrite) as held:
        counts = _contingency(store_of(segmentation), store_of(labels), options, workers, held)
        rows = read(sweep)["stats"]["sweep"] if sweep else []
        held.stats.update(
            facts or {},
            threshold=read(segmentation)["stats"].get("threshold"),
            scores=scores(counts)._asdict(),
            best_possible=min(rows, key=lambda row: float(row["voi"])) if rows else None,
            labels=len(np.unique(counts.label)),
            segments=len(np.unique(counts.segment)),
        )


def contingency_block(segmentation: Path, labels: Path, shift: Triple, parts: Path, block: Block) -> None:
    """Count one block: voxels per pair of segment and label; ``block`` is in voxels of the labels."""
    ours = open_volume(segmentation)
    table = block_contingency(ours.read(block.roi.shift(shift)), open_volume(labels).read(block.roi))
    write_table(_part(parts, block.index), table._asdict())


def align(ours: Volume, labels: Volume) -> tuple[Triple, Roi]:
    """Return the shift from the labels' voxels to ours, and the labels' voxels that both cover.

    Raises:
        VoxelSizeError: if the voxel sizes differ or the grids are off by a part of a voxel.
        ShapeError: if the two do not overlap.
    """
    size = labels.voxel_size
    if size is None or ours.voxel_size is None or not np.allclose(size, ours.voxel_size, rtol=TOLERANCE):
        raise VoxelSizeError(f"the segmentation has voxels of {ours.voxel_size} nm, the labels of {size} nm")
    steps = [(b - a) / s for a, b, s in zip(ours.offset, labels.offset, size, strict=True)]
    if any(abs(step - round(step)) > TOLERANCE for step in steps):
        raise VoxelSizeError(f"segmentation and labels are {steps} voxels apart: expected whole voxels")
    z, y, x = (round(step) for step in steps)
    common = ours.roi.shift((-z, -y, -x)).intersect(labels.roi)
    if not common.size:
        raise ShapeError(
            f"segmentation ({ours.roi} at {ours.offset} nm) and labels ({labels.roi} at {labels.offset} nm) do not "
            "overlap: are they of one volume?"
        )
    return (z, y, x), common


def _contingency(segmentation: Path, labels: Path, options: EvaluateOptions, workers: int, held: Claim) -> Contingency:
    parts = held.progress(options.block)
    shift, common = align(open_volume(segmentation), open_volume(labels))
    function = partial(contingency_block, segmentation, labels, shift, parts)
    run_blocks("evaluate", common, options.block, function, workers=workers, done=parts)
    tables = (read_table(_part(parts, block.index)) for block in blocks(common, options.block))
    counts = drop_small_labels(merge(Contingency(t["segment"], t["label"], t["count"]) for t in tables), options.dust)
    if not len(counts.count):
        raise DataError(f"no labelled voxel in {common} of {labels}: there is nothing to score")
    held.stats["voxels"] = common.size
    return counts


def _part(parts: Path, index: Triple) -> Path:
    return parts / ("_".join(str(i) for i in index) + ".npz")


def _made_of(options: EvaluateOptions) -> dict[str, Any]:
    return {"dust": options.dust}


def _inputs(**manifests: Path) -> dict[str, str]:
    return {name: read(path)["fingerprint"] for name, path in manifests.items()}
