"""Fragments and a look-up table → the segmentation at one threshold."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from kdseg.blockwise import run_blocks
from kdseg.config import SegmentOptions, StorageOptions
from kdseg.errors import ConfigError, ShapeError
from kdseg.geometry import Block
from kdseg.manifests import claim, read, store_of
from kdseg.pyramid import build_levels
from kdseg.segmentation.lut import apply
from kdseg.tables import read_table, write_table
from kdseg.volume import create_volume, open_volume


def run(
    fragments: Path,
    agglomeration: Path,
    sweep: Path | None,
    manifest: Path,
    options: SegmentOptions,
    storage: StorageOptions,
    *,
    workers: int = 1,
    overwrite: bool = False,
) -> None:
    """Write the segmentation as uint64 OME-Zarr with a pyramid of modes.

    Args:
        fragments: manifest of the fragments.
        agglomeration: manifest of their look-up tables.
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
    table = read_table(store_of(agglomeration))
    row = np.flatnonzero(np.isclose(table["thresholds"], threshold, rtol=0, atol=1e-9))
    if not len(row):
        raise ConfigError(
            f"there is no look-up table for the threshold {threshold}, only for {table['thresholds'].tolist()}: add "
            "it to agglomerate.thresholds"
        )
    made_of = {"threshold": threshold, "storage": storage.model_dump(mode="json")}
    inputs = {"fragments": read(fragments)["fingerprint"], "agglomeration": read(agglomeration)["fingerprint"]}
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
        lut = held.private / "lut.npz"
        write_table(lut, {"fragment": table["fragment"], "segment": table["lut"][row[0]]})
        function = partial(segment_block, store_of(fragments), lut, held.store)
        run_blocks("segment", source.roi, options.block, function, workers=workers, done=held.progress(options.block))
        build_levels(held.store, storage.levels, "mode", workers=workers, done=held.private)
        held.stats.update(voxels=source.roi.size, threshold=threshold)


def segment_block(fragments: Path, lut: Path, out: Path, block: Block) -> None:
    """Relabel one block."""
    table = read_table(lut)
    ids = open_volume(fragments).read(block.roi)
    open_volume(out).write(block.roi, apply(ids, table["fragment"], table["segment"]))


def _threshold(options: SegmentOptions, sweep: Path | None) -> float:
    if options.threshold is not None:
        return options.threshold
    if sweep is None:
        raise ConfigError("no threshold: set segment.threshold, or name a sweep to choose it from")
    return float(read(sweep)["stats"]["best"])
