"""Affinities, stored or computed → fragments, block by block of a canonical grid."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.config import FragmentsOptions
from kdseg.config.tasks import FragmentsTask
from kdseg.errors import ShapeError
from kdseg.geometry import Block, Offsets, Roi, Triple, VoxelSize, block_at, block_name, blocks, nearest_count
from kdseg.results.claims import claim
from kdseg.results.tables import read_table, write_table
from kdseg.running.attempt import Clock
from kdseg.segmentation.fragments.block import (
    cell_fragments,
    channels_used,
    checked_grid,
    halo_roi,
    renumbered,
    unique_ids,
)
from kdseg.segmentation.fragments.checks import thin_halo
from kdseg.segmentation.fragments.source import Source, stored
from kdseg.segmentation.graph.faces import cell_part
from kdseg.segmentation.tuned import with_tuned_options
from kdseg.volumes.affinities import Affinities, affinity_offsets
from kdseg.volumes.checksums import keep_checksums
from kdseg.volumes.reuse import Reuse, earlier, reusing
from kdseg.volumes.volume import Volume, create_volume, open_volume

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """Arguments of `fragment_block` that are equal for all blocks; small, sent with every block.

    Attributes:
        affinities: where they come from.
        mask: volume of the tissue, if there is one.
        offsets: of all affinities.
        options: method, grid and filters.
        grid: number of blocks.
        voxel_size: nm.
        volume: all voxels.
        out: volume of fragments.
        kept: see `Source`.
        beside: see `Source`.
    """

    affinities: Affinities
    mask: Path | None
    offsets: Offsets
    options: FragmentsOptions
    grid: Triple
    voxel_size: VoxelSize
    volume: Roi
    out: Path
    kept: Triple | None
    beside: bool


def run(task: FragmentsTask) -> None:
    """Cut a volume into fragments with globally unique uint64 ids; 0 is background.

    The id of a fragment is ``block number * voxels per block + number within the block``, both in C order,
    so that ids need no communication and follow from (affinities, mask, grid, options) alone. Warns of
    affinities that look wrong and of a halo that is too thin.

    Of affinities that a network computes, the fragments, and the edges that are made of them, are to the byte those of
    affinities that are stored first: a voxel is predicted alike in every block.

    Raises:
        ShapeError: if there is no voxel size.
    """
    task = with_tuned_options(task, "fragments")
    options, storage = task.options, task.storage
    source = _source(task)
    volume, size = source.volume, _voxel_size(source.volume)
    grid = checked_grid(volume.shape, options.block)
    for doubt in [*source.doubts, thin_halo(options, source.offsets, size, volume.shape)]:
        if doubt:
            log.warning("fragments: %s: %s", task.affinities or task.raw, doubt)
    made_of = {**options.model_dump(mode="json"), **source.made_of, "storage": storage.model_dump(mode="json")}
    with claim(
        task.manifest,
        "fragments",
        made_of,
        source.inputs,
        volume=True,
        tables=source.kept is not None,
        bucket=storage.remote,
        overwrite=task.overwrite,
    ) as held:
        create_volume(
            held.store,
            shape=volume.shape,
            dtype=np.uint64,
            chunk=storage.chunk,
            shard=storage.shard,
            voxel_size=size,
            offset=volume.offset,
            labels=True,
        )
        mask = None if source.mask is None else source.mask.store
        held.stats["voxels"] = volume.roi.size
        place = grid, size, volume.roi, held.store, source.kept, source.beside
        work = Work(source.affinities, mask, source.offsets, options, *place)
        source.run(reusing(partial(fragment_block, work), _reuse(task, work, made_of, source)), held)
        keep_checksums(held, "fragments", options.block)


def _voxel_size(volume: Volume) -> VoxelSize:
    if volume.voxel_size is None:
        raise ShapeError(f"{volume.where} has no voxel size")
    return volume.voxel_size


def _source(task: FragmentsTask) -> Source:
    made = task.source()
    if isinstance(made, Path):
        return stored(task, made)
    from kdseg.segmentation.fragments.computed import computed  # imports torch

    return computed(task, made)


class Made(NamedTuple):
    """Result of one block.

    Attributes:
        ids: uint64 (z, y, x), of the volume.
        kept: columns of the tables that are kept for its edges, by the names of their files.
    """

    ids: NDArray[np.uint64]
    kept: dict[str, dict[str, NDArray[Any]]]


def _reuse(task: FragmentsTask, work: Work, made_of: dict[str, Any], source: Source) -> Reuse[Work, Made] | None:
    """Return the blocks of earlier fragments that may be of use; None if there are none."""
    origin = "affinities" if task.raw is None else "raw"
    volumes = {origin: task.affinities or task.raw, "mask": task.mask}
    found = earlier(task, "fragments", made_of, source.inputs, volumes)
    if found is None:
        return None
    (store, volume), mask = (found.inputs[origin].store, found.inputs[origin].volume), found.inputs.get("mask")
    was = replace(
        work,
        affinities=work.affinities.of(store),
        mask=None if mask is None else mask.store,
        offsets=work.offsets if task.affinities is None else affinity_offsets(volume),
        grid=checked_grid(volume.shape, work.options.block),
        voxel_size=_voxel_size(volume),
        volume=volume.roi,
        out=found.manifest.result,
    )
    return Reuse(found.manifest.path, found.runs, was, work, _sees, _load, _save)


def fragment_block(work: Work, block: Block, clock: Clock) -> bytes | None:
    """Make and write the fragments of one block, and what its edges need; see `kdseg.running.attempt.BlockWork`."""
    read = work.affinities.reader()  # before the mask is read: a network says how many threads decode
    read_roi, count = halo_roi(work.options, block.roi, work.volume), nearest_count(work.offsets)
    with clock("read"):
        tissue = None if work.mask is None else open_volume(work.mask).read(read_roi) != 0
    if tissue is not None and not tissue.any():
        ids, nearest = np.zeros(block.roi.shape, np.uint64), np.zeros((count, *block.roi.shape), np.uint8)
    else:
        compute = read(read_roi, channels_used(work.options, work.offsets), tissue, clock)
        with clock.computing():
            affinities = compute()
            made = None if work.beside else _fragments(work, block, read_roi, affinities, tissue)
        # a GPU goes on with the next block meanwhile; on a CPU there is one core for both
        ids = _fragments(work, block, read_roi, affinities, tissue) if made is None else made
        nearest = affinities[(slice(count), *block.roi.slices(read_roi))]
    with clock("write"):
        kept = {} if work.kept is None else _kept(work.kept, block, ids, nearest, work.offsets[:count])
        written = _save(work, block, Made(ids, kept))
    return written if tissue is None or tissue.any() else None


def _fragments(
    work: Work, block: Block, read_roi: Roi, affinities: NDArray[np.uint8], tissue: NDArray[np.bool_] | None
) -> NDArray[np.uint64]:
    """Return the fragments of a block, with ids of the volume."""
    steps = tuple(work.offsets[c] for c in channels_used(work.options, work.offsets))
    core = block.roi.slices(read_roi)
    found = cell_fragments(affinities, steps, work.options, core, tissue, work.voxel_size)
    return unique_ids(found, block.index, work.grid, work.options.block)


def _kept(
    unit: Triple, block: Block, ids: NDArray[np.uint64], nearest: NDArray[np.uint8], offsets: Offsets
) -> dict[str, dict[str, NDArray[Any]]]:
    """Return what the region graph needs of the affinities of a block, one table per cell of ``unit``.

    The first offsets are the nearest, or the stage would have refused them (`nearest_offsets`); they are the
    first of those that were read.
    """
    parts = {}
    for cell in blocks(block.roi, unit):
        here = cell.roi.slices(block.roi)
        parts[block_name(cell.index)] = cell_part(ids[here], nearest[(..., *here)], offsets).columns()
    return parts


def _sees(work: Work, block: Block) -> Iterator[Any]:
    """Yield all that the fragments of a block follow from; see `kdseg.volumes.reuse.Sees`."""
    work.affinities.reader()  # before the mask is read: a network says how many threads decode
    if block_at(block.index, work.volume, work.options.block) != block:
        return
    read_roi = halo_roi(work.options, block.roi, work.volume)
    tissue = None if work.mask is None else open_volume(work.mask).read(read_roi) != 0
    if tissue is None or tissue.any():
        yield read_roi, work.offsets, work.voxel_size
        yield tissue
        yield work.affinities.origin(read_roi, channels_used(work.options, work.offsets))


def _load(was: Work, now: Work, block: Block) -> Made:
    """Return the fragments of a block of an earlier volume, with the ids of this one."""

    def of_now(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return renumbered(ids, block.index, was.grid, now.grid, now.options.block)

    kept = {}
    for cell in () if now.kept is None else blocks(block.roi, now.kept):
        name = block_name(cell.index)
        table = read_table(was.out.with_suffix(".tables") / name)
        kept[name] = {**table, "u": of_now(table["u"]), "v": of_now(table["v"])}
    return Made(of_now(open_volume(was.out).read(block.roi)), kept)


def _save(work: Work, block: Block, made: Made) -> bytes:
    for name, columns in made.kept.items():
        write_table(work.out.with_suffix(".tables") / name, columns)
    out = open_volume(work.out)
    written = out.write(block.roi, made.ids)
    out.sync(block.roi)
    return written
