"""A segmentation against ground truth: the scores of what is shipped."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from kdseg.config.tasks import ScoreTask
from kdseg.evaluation.counting import block_counts, count_blocks, of_stores, read_count, read_rows
from kdseg.evaluation.intervals import intervals
from kdseg.evaluation.measures import least_voi, measure
from kdseg.results.claims import claim
from kdseg.results.manifests import read
from kdseg.running.runner import place_of


def run(task: ScoreTask) -> None:
    """Score a segmentation; the table of overlaps lies beside the manifest, as Parquet.

    In the manifest ``stats.scores`` are the numbers of `kdseg.evaluation.measures`, ``stats.intervals`` where 95 % of
    the resamples lie.
    """
    options = task.options
    scored, truth = read(task.segmentation), read(task.labels)
    inputs = {"segmentation": scored.fingerprint, "labels": truth.fingerprint}
    made_of: dict[str, Any] = {"dust": options.dust, "bootstrap": options.bootstrap}
    if options.bootstrap:
        made_of["block"] = options.block  # what is resampled
    with claim(task.manifest, "score", made_of, inputs, overwrite=task.overwrite) as held:
        what = of_stores(scored.result, truth.result, options.block)
        folder = held.progress(options.block)
        count_blocks(what, folder, held.parquet, place=place_of(task))
        counts = read_count(held.parquet, options.dust)
        if options.bootstrap:
            tables = partial(block_counts, what, folder)
            held.stats["intervals"] = intervals(read_rows(held.parquet), tables, options.bootstrap, dust=options.dust)
        swept = read(task.sweep).stats if task.sweep else {}
        rows = [] if "rest" in swept else swept.get("sweep", [])  # a part's least VOI is none of the volume's
        held.stats.update(
            model=task.model,
            volume=task.volume,
            voxels=what.roi.size,
            threshold=scored.stats.get("threshold"),
            scores=measure(counts),
            best_possible=least_voi(rows) if rows else None,
            labels=len(np.unique(counts.label)),
            segments=len(np.unique(counts.segment)),
        )
