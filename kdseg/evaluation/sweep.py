"""Fragments and a dendrogram against ground truth: the scores at every threshold, and the best one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kdseg.config.tasks import SweepTask
from kdseg.errors import ShapeError
from kdseg.evaluation.counting import Count, Rows, count_blocks, labelled, of_stores, read_rows, scored, subtract
from kdseg.evaluation.measures import least_voi, measure
from kdseg.evaluation.thresholds import tables_at
from kdseg.geometry import Roi, sides
from kdseg.results.claims import Claim, claim
from kdseg.results.manifests import expect_made_of, expect_stage, read
from kdseg.running.runner import Place, place_of
from kdseg.segmentation.agglomeration.store import Tree
from kdseg.volumes.volume import open_volume


def run(task: SweepTask) -> None:
    """Score every threshold from one table of fragments against labels, without relabelling voxels.

    In the manifest ``stats.sweep`` has a row per threshold, ``stats.best`` is the one of least VOI. With ``task.part``
    both are of that part, and ``stats.rest`` are the scores of the rest of the volume at the best threshold. The table
    of fragments lies beside it, as Parquet.

    Raises:
        ShapeError: if the part is not inside of both fragments and labels.
    """
    expect_stage(task.agglomeration, "agglomerate")
    expect_made_of(task.agglomeration, fragments=task.fragments)
    options, place = task.options, place_of(task)
    chosen = options.tune_roi if task.part else None
    part = None if chosen is None else Roi(chosen.offset, chosen.shape)
    named = {"fragments": task.fragments, "agglomeration": task.agglomeration, "labels": task.labels}
    made = {name: read(path) for name, path in named.items()}
    inputs = {name: one.fingerprint for name, one in made.items()}
    thresholds = options.thresholds or tuple(made["agglomeration"].stat("thresholds"))
    made_of: dict[str, Any] = {"dust": options.dust, "thresholds": list(thresholds)}
    if task.sections:
        made_of["sections"] = True
    if part is not None:
        made_of["part"] = [list(part.offset), list(part.shape)]
    with claim(task.manifest, "sweep", made_of, inputs, overwrite=task.overwrite) as held:
        what = of_stores(made["fragments"].result, made["labels"].result, options.block, sections=task.sections)
        if part is not None and not what.roi.contains(part):
            raise ShapeError(f"evaluate.tune_roi {part} is not inside of {what.roi}, which labels and fragments cover")
        count_blocks(what, held.progress(options.block), held.parquet, place=place)
        whole, tree = labelled(read_rows(held.parquet)), Tree(task.agglomeration)
        tuned = whole if part is None else _count_part(what, part, held, place)
        rows = _swept(tuned, tree, thresholds, options.dust)
        best = least_voi(rows)
        shape, size = (what.roi if part is None else part).shape, open_volume(made["fragments"].result).voxel_size
        # of an image of its own, the sections beside it say nothing
        narrowest = None if size is None else min(sides(shape, size)[1 if task.sections else 0 :])
        held.stats.update(sweep=rows, best=best["threshold"], voxels=what.roi.size)
        held.stats.update(tuned_on=list(shape), narrowest=narrowest)
        if part is not None:
            (rest,) = _swept(subtract(whole, tuned), tree, (best["threshold"],), options.dust)
            held.stats["rest"] = rest


def _count_part(what: Count, part: Roi, held: Claim, place: Place) -> Rows:
    folder = held.progress(what.block) / "part"
    folder.mkdir(exist_ok=True)
    count_blocks(replace(what, roi=part), folder, folder / "part.parquet", place=place)
    return labelled(read_rows(folder / "part.parquet"))


def _swept(counts: Rows, tree: Tree, thresholds: Sequence[float], dust: int) -> list[dict[str, float]]:
    table = scored(counts, dust, numbered_segments=False)  # the tree knows fragments by their ids
    ids = np.unique(counts[1][counts[1] > 0])
    merges = tree.merges(ids, thresholds[-1])
    found = zip(thresholds, tables_at(table, merges, thresholds), strict=True)
    return [{"threshold": threshold, **measure(there)} for threshold, there in found]
