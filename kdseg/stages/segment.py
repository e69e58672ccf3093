"""Fragments and a look-up table → the segmentation at one threshold."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from kdseg.blockwise import run_blocks
from kdseg.config import SegmentOptions, StorageOptions
from kdseg.dendrogram import Tree
from kdseg.errors import ConfigError, DataError, ShapeError
from kdseg.geometry import Block, Triple, block_name, blocks
from kdseg.manifests import claim, read, store_of
from kdseg.parquet import Column, write_parquet
from kdseg.pyramid import build_levels
from kdseg.segmentation.lut import apply
from kdseg.segmentation.statistics import Statistics, by_segment, centroid, merge
from kdseg.tables import read_table, write_table
from kdseg.volume import Volume, create_volume, open_volume

SEGMENTS = (
    Column("segment", np.uint64, "id: its smallest fragment"),
    Column("size", np.uint64, "number of voxels", "voxel"),
    Column("begin", np.int64, "first voxel of the bounding box", "voxel", triple=True),
    Column("end", np.int64, "first voxel behind the bounding box", "voxel", triple=True),
    Column("centroid", np.float64, "mean position, in the world", "nm", triple=True),
)


def run(
    fragments: Path,
    edges: Path,
    agglomeration: Path,
    sweep: Path | None,
    manifest: Path,
    options: SegmentOptions,
    storage: StorageOptions,
    *,
    workers: int = 1,
    overwrite: bool = False,
) -> None:
    """Write the segmentation as uint64 OME-Zarr with a pyramid of modes, and a table of the segments as Parquet.

    Args:
        fragments: manifest of the fragments.
        edges: manifest of the region graph, for the segments' sizes and places.
        agglomeration: manifest of the dendrogram.
        sweep: manifest of the scores over thresholds that the threshold is chosen from; needed unless
            ``options.threshold`` is set.
        manifest: to write; the segmentation lies beside it.
        options: block, threshold.
        storage: layout on disk.
        workers: processes; the result does not depend on them.
        overwrite: clear what other options or inputs made.

    Raises:
        ConfigError: if there is no look-up table for the threshold.
        ClaimError: if the store holds something else, or is being written.
        StageError: if a block failed.
    """
    threshold = _threshold(options, sweep)
    tree = Tree(agglomeration)
    if threshold > tree.largest:
        raise ConfigError(
            f"the volume was agglomerated up to a score of {tree.largest}, it cannot be cut at {threshold}: add the "
            "threshold to agglomerate.thresholds"
        )
    made_of = {"threshold": threshold, "storage": storage.model_dump(mode="json")}
    inputs = {"fragments": read(fragments)["fingerprint"], "agglomeration": read(agglomeration)["fingerprint"]}
    if read(agglomeration)["inputs"]["edges"] != read(edges)["fingerprint"]:
        raise DataError(f"{agglomeration} was not made of {edges}: name the manifests of one run")
    with claim(manifest, "segment", made_of, inputs, volume=True, overwrite=overwrite) as held:
        source = open_volume(store_of(fragments))
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
        )
        # one slice of the look-up table per leaf of the agglomeration
        luts = held.private / "luts"
        luts.mkdir(exist_ok=True)
        slices = partial(lut_block, agglomeration, threshold, luts)
        chunk = tree.layout.chunk
        run_blocks("look-up tables", source.roi, chunk, slices, workers=workers, done=held.private / "luts-done")
        function = partial(segment_block, store_of(fragments), luts, chunk, held.store)
        run_blocks("segment", source.roi, options.block, function, workers=workers, done=held.progress(options.block))
        build_levels(held.store, storage.levels, "mode", workers=workers, done=held.private)
        segments = _write_segments(held.parquet, edges, luts, chunk, source)
        held.stats.update(voxels=source.roi.size, threshold=threshold, segments=segments)


def lut_block(agglomeration: Path, threshold: float, luts: Path, block: Block) -> None:
    """Write the look-up table of one leaf of the agglomeration."""
    tree = Tree(agglomeration)
    fragment = tree.fragments(block.index)
    table = {"fragment": fragment, "segment": tree.segments(fragment, threshold)}
    write_table(luts / block_name(block.index), table)


def segment_block(fragments: Path, luts: Path, chunk: Triple, out: Path, block: Block) -> None:
    """Relabel one block with the slices of the look-up table that it needs."""
    tables = [read_table(luts / block_name(leaf.index)) for leaf in blocks(block.roi, chunk)]
    fragment, segment = (np.concatenate([table[name] for table in tables]) for name in ("fragment", "segment"))
    order = np.argsort(fragment)
    ids = open_volume(fragments).read(block.roi)
    open_volume(out).write(block.roi, apply(ids, fragment[order], segment[order]))


def _write_segments(path: Path, edges: Path, luts: Path, chunk: Triple, source: Volume) -> int:
    """Write size, bounding box and centroid of each segment; return their number. Memory: 100 bytes per segment."""
    z, y, x = read(edges)["options"]["block"]
    found = merge([])
    for leaf in blocks(source.roi, chunk):
        parts = (read_table(store_of(edges) / block_name(part.index)) for part in blocks(leaf.roi, (z, y, x)))
        lut = read_table(luts / block_name(leaf.index))
        fragments = merge(Statistics(*(part[name] for name in Statistics._fields)) for part in parts)
        found = merge([found, by_segment(fragments, lut["fragment"], lut["segment"])])
    world = np.array(source.offset) + centroid(found) * np.array(source.voxel_size)
    columns = {name: column for name, column in found._asdict().items() if name not in ("fragment", "total")}
    notes = {"voxel_size_nm": source.voxel_size, "offset_nm": source.offset}
    with write_parquet(path, SEGMENTS, notes) as file:
        file.append({"segment": found.fragment, **columns, "centroid": world})
    return len(found.fragment)


def _threshold(options: SegmentOptions, sweep: Path | None) -> float:
    if options.threshold is not None:
        return options.threshold
    if sweep is None:
        raise ConfigError("no threshold: set segment.threshold, or name a sweep to choose it from")
    return float(read(sweep)["stats"]["best"])
