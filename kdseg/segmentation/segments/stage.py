"""Fragments and a look-up table → the segmentation at one threshold."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdseg.config.tasks import SegmentTask
from kdseg.errors import ConfigError, DataError, ShapeError
from kdseg.geometry import Block, Roi, Triple, block_name, blocks
from kdseg.results.claims import claim
from kdseg.results.manifests import Manifest, expect_made_of, expect_stage, read
from kdseg.results.tables import read_table, write_table
from kdseg.running.runner import place_of, run_blocks
from kdseg.segmentation.agglomeration.store import Tree, table_path
from kdseg.segmentation.graph.statistics import Statistics, by_segment, merge
from kdseg.segmentation.lut import apply
from kdseg.segmentation.segments.table import write_segments
from kdseg.segmentation.tuned import with_tuned_options
from kdseg.volumes.checksums import keep_checksums
from kdseg.volumes.inputs import open_input
from kdseg.volumes.pyramid import build_level
from kdseg.volumes.volume import create_volume, open_volume


def run(task: SegmentTask) -> None:
    """Write the segmentation as uint64 OME-Zarr with a pyramid of modes, and a table of the segments as Parquet.

    Raises:
        ConfigError: if the agglomeration does not reach the threshold.
        DataError: if the manifests are of several runs.
    """
    task = with_tuned_options(task, "segment")
    storage, place = task.storage, place_of(task)
    fragments, edges, agglomeration = task.fragments, task.edges, task.agglomeration
    threshold = _threshold(task)
    expect_stage(edges, "edges")
    expect_stage(agglomeration, "agglomerate")
    expect_made_of(agglomeration, fragments=fragments, edges=edges)
    tree = Tree(agglomeration)
    tree.expect_reached(threshold)
    made_of = {"threshold": threshold, "storage": storage.model_dump(mode="json")}
    inputs = {"fragments": read(fragments).fingerprint, "agglomeration": read(agglomeration).fingerprint}
    with claim(
        task.manifest, "relabel", made_of, inputs, volume=True, bucket=storage.remote, overwrite=task.overwrite
    ) as held:
        made = open_input(fragments)
        source = made.volume
        if source.voxel_size is None:
            raise ShapeError(f"{fragments} has no voxel size")
        create_volume(
            held.store,
            shape=source.shape,
            dtype=np.uint64,
            chunk=storage.chunk,
            shard=storage.shard,
            voxel_size=source.voxel_size,
            offset=source.offset,
            levels=storage.levels,
            labels=True,
        )
        # one slice of the look-up table per leaf of the agglomeration
        luts = held.private / "luts"
        luts.mkdir(exist_ok=True)
        chunk = tree.layout.chunk
        for level in reversed(range(tree.layout.levels)):
            slices, marks = partial(lut_block, agglomeration, threshold, luts, level), held.private / f"luts-{level}"
            run_blocks("look-up tables", source.roi, tree.layout.node(level), slices, place, marks)
        function = partial(segment_block, made.store, read(edges), luts, chunk, held.store)
        block = task.options.block
        run_blocks("relabel", source.roi, block, function, place, held.progress(block))
        build = partial(build_level, held.store, "mode", place, held.private)
        keep_checksums(held, "relabel", block, storage.levels, build)
        segments = write_segments(held.parquet, _statistics(read(edges), luts, chunk, source.roi), source)
        held.stats.update(voxels=source.roi.size, threshold=threshold, segments=segments)


def lut_block(agglomeration: Path, threshold: float, luts: Path, level: int, block: Block) -> None:
    """Write what the regions of one node of the agglomeration belong to; for a leaf, its look-up table."""
    tree = Tree(agglomeration)
    z, y, x = block.index
    empty = np.empty(0, np.uint64)
    above = {"fragment": empty, "segment": empty}
    if level + 1 < tree.layout.levels:
        above = read_table(table_path(luts, level + 1, (z // 2, y // 2, x // 2)))
    write_table(table_path(luts, level, block.index), tree.names(level, block.index, threshold, above))


def segment_block(fragments: Path, edges: Manifest, luts: Path, chunk: Triple, out: Path, block: Block) -> bytes:
    """Relabel one block with the slices of the look-up table that it needs."""
    tables = [read_table(table_path(luts, 0, leaf.index)) for leaf in blocks(block.roi, chunk)]
    fragment, segment = (np.concatenate([table[name] for table in tables]) for name in ("fragment", "segment"))
    order = np.argsort(fragment)
    source = open_volume(fragments)
    ids = source.read(block.roi)
    _expect_all(fragments.with_suffix(".json"), edges, source.roi, block, ids)
    return open_volume(out).write(block.roi, apply(ids, fragment[order], segment[order]))


def _expect_all(fragments: Path, edges: Manifest, volume: Roi, block: Block, ids: NDArray[np.uint64]) -> None:
    """Refuse fragments of which a file was lost: what is missing reads as background."""
    z, y, x = edges.block
    parts = list(blocks(block.roi, edges.block))
    cells = (Roi((i * z, j * y, k * x), (z, y, x)).intersect(volume) for i, j, k in (part.index for part in parts))
    if any(cell != part.roi for cell, part in zip(cells, parts, strict=True)):
        return  # the tables' blocks are not whole in this one
    counted = sum(int(read_table(edges.result / block_name(part.index))["size"].sum()) for part in parts)
    found = int(np.count_nonzero(ids))
    if found != counted:
        raise DataError(
            f"{fragments} has {found} voxels of fragments in {block.roi}, its region graph was made of {counted}: a "
            f"file of it was lost or changed; remove it and make it again: kdseg clear {fragments}"
        )


def _statistics(edges: Manifest, luts: Path, chunk: Triple, volume: Roi) -> Iterator[Statistics]:
    """Yield the statistics of the segments in each leaf of the agglomeration."""
    for leaf in blocks(volume, chunk):
        parts = (read_table(edges.result / block_name(part.index)) for part in blocks(leaf.roi, edges.block))
        lut = read_table(table_path(luts, 0, leaf.index))
        fragments = merge(Statistics(*(part[name] for name in Statistics._fields)) for part in parts)
        yield by_segment(fragments, lut["fragment"], lut["segment"])


def _threshold(task: SegmentTask) -> float:
    if task.options.threshold is not None:
        return task.options.threshold
    if task.sweep is not None:
        return float(read(task.sweep).stat("best"))
    if task.model is not None:
        return float(read(task.model).stat("best_threshold"))
    raise ConfigError("no threshold: set segment.threshold, or name a sweep, a search or a network to choose it from")
