"""A segmentation against ground truth: the scores of what is shipped."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdseg.config import EvaluateOptions
from kdseg.evaluation.counting import block_counts, count_blocks, of_stores, read_count, read_rows
from kdseg.evaluation.intervals import intervals
from kdseg.evaluation.measures import least_voi, measure
from kdseg.results.manifests import claim, read


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
    """Score a segmentation; the table of overlaps lies beside the manifest, as Parquet.

    Args:
        segmentation: manifest of the segmentation.
        labels: manifest of the ground truth.
        manifest: to write; ``stats.scores`` are the numbers of `kdseg.evaluation.measures`, ``stats.intervals``
            where 95 % of the resamples lie.
        options: dust, block, bootstrap.
        sweep: manifest of this volume's own sweep; its best row is noted beside the scores, unless it is of a part.
        facts: what else the manifest should say, e.g. the names of model and volume.
        workers: processes; the result does not depend on them.
        overwrite: clear what other options or inputs made.

    Raises:
        ShapeError: if segmentation and labels do not overlap.
        VoxelSizeError: if their voxels do not lie on one grid.
        DataError: if no voxel of the segmentation has a label.
        ClaimError: if the store holds something else, or is being written.
    """
    scored, truth = read(segmentation), read(labels)
    inputs = {"segmentation": scored.fingerprint, "labels": truth.fingerprint}
    made_of: dict[str, Any] = {"dust": options.dust, "bootstrap": options.bootstrap}
    if options.bootstrap:
        made_of["block"] = options.block  # what is resampled
    with claim(manifest, "score", made_of, inputs, overwrite=overwrite) as held:
        what = of_stores(scored.result, truth.result, options.block)
        folder = held.progress(options.block)
        count_blocks(what, folder, held.parquet, workers=workers)
        counts = read_count(held.parquet, options.dust)
        if options.bootstrap:
            tables = partial(block_counts, what, folder)
            held.stats["intervals"] = intervals(read_rows(held.parquet), tables, options.bootstrap, dust=options.dust)
        swept = read(sweep).stats if sweep else {}
        rows = [] if "rest" in swept else swept.get("sweep", [])  # a part's least VOI is none of the volume's
        held.stats.update(
            facts or {},
            voxels=what.roi.size,
            threshold=scored.stats.get("threshold"),
            scores=measure(counts),
            best_possible=least_voi(rows) if rows else None,
            labels=len(np.unique(counts.label)),
            segments=len(np.unique(counts.segment)),
        )
