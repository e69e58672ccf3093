"""A segmentation against ground truth: the scores of what is shipped."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdseg.config.tasks import ScoreTask
from kdseg.evaluation.counting import Count, Rows, block_counts, count_blocks, labelled, of_stores, read_rows, scored
from kdseg.evaluation.intervals import intervals
from kdseg.evaluation.measures import least_voi, measure
from kdseg.evaluation.sections import means, section_scores
from kdseg.results.claims import claim
from kdseg.results.manifests import read
from kdseg.running.runner import place_of

log = logging.getLogger(__name__)


def run(task: ScoreTask) -> None:
    """Score a segmentation; the table of overlaps lies beside the manifest, as Parquet.

    In the manifest ``stats.scores`` are the numbers of `kdseg.evaluation.measures`, ``stats.intervals`` where 95 % of
    the resamples lie. With ``task.sections`` an instance is an id in a section; ``stats.sections`` has their number,
    the ``mean`` over them of these numbers and of those of instances, and ``each`` section's.
    """
    options = task.options
    segmentation, truth = read(task.segmentation), read(task.labels)
    inputs = {"segmentation": segmentation.fingerprint, "labels": truth.fingerprint}
    made_of: dict[str, Any] = {"dust": options.dust, "bootstrap": options.bootstrap}
    if options.bootstrap:
        made_of["block"] = options.block  # what is resampled
    if task.sections:
        made_of["sections"] = True
    with claim(task.manifest, "score", made_of, inputs, overwrite=task.overwrite) as held:
        what = of_stores(segmentation.result, truth.result, options.block, sections=task.sections)
        folder = held.progress(options.block)
        count_blocks(what, folder, held.parquet, place=place_of(task))
        rows = read_rows(held.parquet)
        if task.sections:
            each = section_scores(rows, options.dust)
            mean = means(each)
            held.stats["sections"] = {"count": len(each), "mean": mean, "each": each}
            said = ", ".join(f"{name} {value:.4f}" for name, value in mean.items())
            log.info("score: mean over %d sections: %s", len(each), said)
        known = labelled(rows)
        counts = scored(known, options.dust)
        if options.bootstrap:
            tables = partial(_labelled, what, folder)
            held.stats["intervals"] = intervals(known, tables, options.bootstrap, dust=options.dust)
        swept = read(task.sweep).stats if task.sweep else {}
        tried = [] if "rest" in swept else swept.get("sweep", [])  # a part's least VOI is none of the volume's
        held.stats.update(
            model=task.model,
            volume=task.volume,
            voxels=what.roi.size,
            threshold=segmentation.stats.get("threshold"),
            scores=measure(counts),
            best_possible=least_voi(tried) if tried else None,
            labels=len(np.unique(counts.label)),
            segments=len(np.unique(counts.segment)),
        )


def _labelled(what: Count, folder: Path) -> Iterator[Rows]:
    """Yield the tables of all blocks without background."""
    return map(labelled, block_counts(what, folder))
