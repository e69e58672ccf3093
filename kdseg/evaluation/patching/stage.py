"""A segmentation, and one of a region of it → the segmentation with the region replaced, and the same ids outside."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdseg.config import StorageOptions
from kdseg.config.questions import PatchTask
from kdseg.errors import ConfigError, DataError, ShapeError, VoxelSizeError
from kdseg.evaluation.alignment import Placed, align
from kdseg.evaluation.patching.names import Names, Wanted, names, wanted
from kdseg.evaluation.patching.overlaps import HERE, Found, count_overlaps
from kdseg.geometry import Block, Roi, Triple, VoxelSize, block_name, blocks, is_multiple, triple
from kdseg.results.claims import claim
from kdseg.results.manifests import read
from kdseg.results.tables import read_table, write_table
from kdseg.running.runner import Place, place_of, run_blocks
from kdseg.segmentation.agglomeration.edits import Edit, Point, write_edits
from kdseg.segmentation.graph.statistics import Statistics, block_statistics
from kdseg.segmentation.lut import apply
from kdseg.segmentation.segments.table import write_segments
from kdseg.volumes.checksums import keep_checksums
from kdseg.volumes.inputs import Input, open_input
from kdseg.volumes.pyramid import build_level
from kdseg.volumes.sources import open_source
from kdseg.volumes.volume import create_volume, open_volume

Ids = NDArray[np.uint64]
_BLOCK = 128
"""Voxels of a block along each axis, at least, unless the task says how many."""


def run(task: PatchTask) -> None:
    """Write OLD with the voxels of NEW in the region as uint64 OME-Zarr with a pyramid, and its table of segments.

    Beside it lies a table of edits, with what NEW says of objects outside of the region
    (docs/reprocessing-compare.md).

    Raises:
        ConfigError: if the result would take the place of an input.
        DataError: if the volumes are no segmentations.
        ShapeError: if the region is not in both, or the block is not made of shards.
        VoxelSizeError: if the voxels of both are not of one size.
    """
    if task.manifest.resolve() in (task.old.resolve(), task.new.resolve()):
        raise ConfigError(f"{task.manifest} is an input: nothing is patched in place, name another manifest")
    storage = task.storage.like(StorageOptions.model_validate(read(task.old).options.get("storage", {})))
    block = task.block or triple(-(-_BLOCK // unit) * unit for unit in storage.shard)
    if not is_multiple(block, storage.shard):
        raise ShapeError(f"block {block} must be a multiple of the shard {storage.shard}: give another --block")
    inputs = {name: open_input(path) for name, path in (("old", task.old), ("new", task.new))}
    old, new, region = _placed(task, inputs)
    volume = inputs["old"].volume
    if volume.voxel_size is None:
        raise VoxelSizeError(f"{task.old} has no voxel size: convert it with one")
    made_of = {
        "region": [list(region.offset), list(region.shape)],
        "least": task.least,
        "storage": storage.model_dump(mode="json"),
    }
    marks, place = {name: one.fingerprint for name, one in inputs.items()}, place_of(task)
    with claim(
        task.manifest, "patch", made_of, marks, volume=True, bucket=storage.remote, overwrite=task.overwrite
    ) as held:
        create_volume(
            held.store,
            shape=volume.shape,
            dtype=np.uint64,
            chunk=storage.chunk,
            shard=storage.shard,
            voxel_size=volume.voxel_size,
            offset=volume.offset,
            levels=storage.levels,
            labels=True,
            attributes=volume.attributes,
        )
        progress = held.progress(block)
        overlaps = count_overlaps(old, new, region, block, progress, place)
        found = names(overlaps.outside, overlaps.inside, _largest(old, block, progress / "largest", place))
        wants = wanted(overlaps.outside, found, task.least)
        write_edits(held.edits, _edits(wants, overlaps, found, (volume.shape, volume.voxel_size, volume.offset)))
        table = held.private / "names.npz"
        write_table(table, {"new": found.new, "name": found.name})
        parts = progress / "segments"
        parts.mkdir(exist_ok=True)
        function = partial(patch_block, old, new, region, table, (held.store, parts))
        run_blocks("patch", old.roi, block, function, place, progress)
        build = partial(build_level, held.store, "mode", place, held.private)
        keep_checksums(held, "patch", block, storage.levels, build)
        held.stats.update(
            voxels=old.roi.size,
            segments=write_segments(held.parquet, _statistics(parts, old.roi, block), volume),
            renamed=found.new.size - found.fresh,
            fresh=found.fresh,
            merges=sum(want.merge for want in wants),
            splits=sum(not want.merge for want in wants),
        )


def patch_block(old: Placed, new: Placed, region: Roi, table: Path, out: tuple[Path, Path], block: Block) -> bytes:
    """Write one block, old but for what lies in the region; and the statistics of its segments.

    Args:
        old: the old segmentation.
        new: that of the region and around it.
        region: that is replaced.
        table: ids of the objects of the region.
        out: the volume to write to, and the folder for statistics.
        block: to write.
    """
    ids = old.read(block.roi)
    inside = block.roi.intersect(region)
    if inside.size:
        known = read_table(table)
        ids[inside.slices(block.roi)] = apply(new.read(inside), known["new"], known["name"])
    whole = Roi((0, 0, 0), block.roi.shape).slices()
    write_table(out[1] / block_name(block.index), block_statistics(ids, whole, block.roi.offset)._asdict())
    return open_volume(out[0]).write(block.roi, ids)


def _placed(task: PatchTask, inputs: dict[str, Input]) -> tuple[Placed, Placed, Roi]:
    """Return both segmentations on the old one's grid, and the region."""
    sources = [open_source(str(one.store)) for one in inputs.values()]
    for source, path in zip(sources, (task.old, task.new), strict=True):
        if source.data.dtype != np.uint64:
            raise DataError(f"{path} holds {source.data.dtype}, expected a segmentation, uint64")
    aligned = align(*sources)
    old, new = aligned.placed
    if old.ratio != HERE or new.ratio != HERE:
        raise VoxelSizeError(
            f"{task.old} has voxels of {sources[0].voxel_size} nm, {task.new} of {sources[1].voxel_size} nm, expected "
            "the same: segment the region on the voxels of the whole"
        )
    region = aligned.common if task.region is None else Roi(task.region.offset, task.region.shape)
    if not aligned.common.contains(region):
        raise ShapeError(
            f"the region {region} is not in what both cover, {aligned.common}, in voxels of {task.old}: name a part of "
            "that, or segment more"
        )
    return old, new, region


def _largest(old: Placed, block: Triple, folder: Path, place: Place) -> int:
    """Return the largest id of a segmentation."""
    run_blocks("largest", old.roi, block, partial(_largest_of_block, old, folder), place, folder)
    return max(int(read_table(folder / block_name(one.index))["largest"][0]) for one in blocks(old.roi, block))


def _largest_of_block(old: Placed, folder: Path, block: Block) -> None:
    write_table(folder / block_name(block.index), {"largest": old.read(block.roi).max().reshape(1)})


def _statistics(folder: Path, volume: Roi, block: Triple) -> Iterator[Statistics]:
    for one in blocks(volume, block):
        columns = read_table(folder / block_name(one.index))
        yield Statistics(*(columns[name] for name in Statistics._fields))


def _edits(
    wants: list[Wanted], overlaps: Found, found: Names, grid: tuple[Triple, VoxelSize, VoxelSize]
) -> Iterator[Edit]:
    """Yield what is wanted as edits of a user, each end a voxel of its object outside of the region.

    Args:
        wants: in order.
        overlaps: that they are about.
        found: names of the new objects.
        grid: shape, voxel size and offset, nm, of the old volume.
    """
    outside = overlaps.outside
    for want in wants:
        one, other = want.rows
        new = [int(outside.new[row]) for row in want.rows]
        ids = [int(found.name[np.searchsorted(found.new, outside.new[row])]) for row in want.rows]
        old = [int(outside.old[row]) for row in want.rows]
        if want.merge:
            said = f"NEW {new[0]} (here {ids[0]}) is {old[0]} and, in {want.voxels} voxels, {old[1]}"
        else:
            said = (
                f"OLD {old[0]} is NEW {new[0]} (here {ids[0]}) and, in {want.voxels} voxels, {new[1]} (here {ids[1]})"
            )
        ends = _world(int(overlaps.place[one]), *grid), _world(int(overlaps.place[other]), *grid)
        yield Edit("merge" if want.merge else "split", "", points=ends, comment=said)


def _world(place: int, shape: Triple, size: VoxelSize, offset: VoxelSize) -> Point:
    voxel = np.unravel_index(place, shape)
    return triple(o + int(v) * s for o, v, s in zip(offset, voxel, size, strict=True))
