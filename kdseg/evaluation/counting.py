"""Contingency tables of whole volumes: counted block by block, merged in a tree, kept as Parquet.

In the folder of a count lie::

    0_0_1.npz …       the table of each finished block, and the list of them
    merged/0_3.parquet …  tables of up to 16 tables each, level by level
    components/       likewise, where labels are split into components first

All are integers and sums of those below them, so that the last table depends neither on blocks nor on workers, order or
crashes. Merging reads a few thousand rows of each table at a time: memory is bounded by blocks, not by the volume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import DataError
from kdseg.evaluation.alignment import Placed, align, as_ids
from kdseg.evaluation.components import block_components, join_components, joined
from kdseg.evaluation.metrics.boundaries import away_from_borders, halo
from kdseg.evaluation.metrics.contingency import Contingency, Located, block_located, drop_small_labels, own_background
from kdseg.geometry import Block, Roi, Triple, VoxelSize, block_name, blocks
from kdseg.results.parquet import Column, read_batches, row_count, write_parquet
from kdseg.results.tables import read_table, write_table
from kdseg.running.runner import Place, run_blocks
from kdseg.volumes.background import background_of
from kdseg.volumes.sources import open_source
from kdseg.volumes.volume import open_volume

COLUMNS = (
    Column("section", np.uint64, "z of a section that was counted by itself, in voxels; 0 if all are one"),
    Column("segment", np.uint64, "id of the segment, 0 is background"),
    Column("label", np.uint64, "id of the label, or of the component of a label"),
    Column("count", np.uint64, "voxels with both", "voxel"),
    Column("first", np.uint64, "the first of these: linear index, C order (z, y, x), in the region that was counted"),
)
_FAN_IN = 16
"""Tables that are merged at once."""
_BATCH = 1 << 16
"""Rows of each that are in memory."""
Rows = NDArray[np.uint64]
"""Tables in one array (5, n), rows of `COLUMNS`, sorted by the first three without repeats."""


@dataclass(frozen=True)
class Count:
    """Two volumes on one grid whose overlaps are counted, and the voxels that count.

    Attributes:
        segmentation: segments.
        labels: ground truth.
        roi: voxels of the grid to count, inside of both and of the mask.
        block: voxels per task; changes no result.
        mask: voxels where it is 0 are left out.
        ignore_labels: voxels of these labels are left out.
        ignore_segments: voxels of these segments are left out.
        per_section: count each section by itself.
        components: split labels into connected components, within ``roi``, before anything is left out.
        border: nm; voxels at most so far from a border of the labels within the section are left out; None: none is.
        voxel_size: nm, (z, y, x), for ``border`` and what else is a distance.
    """

    segmentation: Placed
    labels: Placed
    roi: Roi
    block: Triple
    mask: Placed | None = None
    ignore_labels: tuple[int, ...] = (0,)
    ignore_segments: tuple[int, ...] = ()
    per_section: bool = False
    components: bool = False
    border: float | None = None
    voxel_size: VoxelSize = (1.0, 1.0, 1.0)

    def away(self, roi: Roi) -> NDArray[np.bool_]:
        """Return the voxels of ``roi`` further than `border` from the borders of labels, in and beyond the region."""
        border = self.border or 0.0
        around = roi.grow(halo(border, self.voxel_size, sections=True)).intersect(self.labels.roi)
        away = away_from_borders(self.labels.read(around), border, self.voxel_size, sections=True)
        return away[roi.slices(around)]


def of_stores(segmentation: Path, labels: Path, block: Triple, *, sections: bool = False) -> Count:
    """Return the count of two volumes of kdseg where both are; voxels of label 0 are left out.

    With ``sections`` each is counted by itself, and label 0 too where pairs that touch it are known to be cut: it is
    the background of instances then.
    """
    aligned = align(open_source(str(labels)), open_source(str(segmentation)))
    truth, segments = aligned.placed
    known = sections and background_of(open_volume(labels).attributes, labels) == "boundary"
    ignored = () if known else (0,)
    return Count(segments, truth, aligned.common, block, ignore_labels=ignored, per_section=sections)


def count_blocks(what: Count, folder: Path, table: Path, *, place: Place) -> Path | None:
    """Count all blocks and merge their tables.

    Args:
        what: to count.
        folder: for the tables of blocks; one per `Count`. What is there from an earlier attempt is used.
        table: Parquet file to write, with the columns `COLUMNS`.
        place: where the blocks are done.

    Returns:
        The file of `join_components` if labels are split; `scored_voxels` takes it.
    """
    file = None
    if what.components:
        file = join_components(
            what.labels, what.roi, what.block, folder / "components", place=place, per_section=what.per_section
        )
    run_blocks("count", what.roi, what.block, partial(count_block, what, folder, file), place, folder)
    merged = folder / "merged"
    merged.mkdir(exist_ok=True)
    parts, level = [folder / block_name(block.index) for block in blocks(what.roi, what.block)], 0
    while len(parts) > _FAN_IN:
        groups = [parts[k : k + _FAN_IN] for k in range(0, len(parts), _FAN_IN)]
        parts = [merged / f"{level}_{k}.parquet" for k in range(len(groups))]
        for group, target in zip(groups, parts, strict=True):
            _merge_files(group, target)  # anew each time: no checksum covers the head of a Parquet file
        level += 1
    _merge_files(parts, table)
    return file


def count_block(what: Count, folder: Path, components: Path | None, block: Block) -> None:
    """Count one block and write its table; ``components`` is the file of `join_components`."""
    segments, labels, kept = scored_voxels(what, components, block.roi)
    z, y, x = (b - r for b, r in zip(block.roi.offset, what.roi.offset, strict=True))
    tables = []
    for low in range(len(labels)) if what.per_section else [0]:
        part = slice(low, low + 1 if what.per_section else None)
        # what is to be ignored is masked already, label 0 or not
        table = block_located(segments[part], labels[part], (z + low, y, x), what.roi.shape, None, mask=kept[part])
        tables.append(_rows(block.roi.offset[0] + low if what.per_section else 0, table))
    rows = np.concatenate(tables, axis=1)
    write_table(folder / block_name(block.index), _columns(rows))


def scored_voxels(
    what: Count, components: Path | None, roi: Roi
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.bool_]]:
    """Read one block.

    Args:
        what: to count.
        components: the file that `count_blocks` returned.
        roi: the block, inside of the region.

    Returns:
        Segments and labels, or components of these, uint64 (z, y, x); and bool (z, y, x), whether a voxel is scored, as
        long as its label is not dust.
    """
    segments = as_ids(what.segmentation.read(roi), "the segments")
    labels = as_ids(what.labels.read(roi), "the labels")
    # few ids: one comparison each, without the arrays of ids that numpy's table needs
    kept = np.isin(labels, np.array(what.ignore_labels, np.uint64), invert=True, kind="sort")
    kept &= np.isin(segments, np.array(what.ignore_segments, np.uint64), invert=True, kind="sort")
    if what.mask is not None:
        kept &= what.mask.read(roi) != 0
    if what.border is not None:
        kept &= what.away(roi)
    if components is not None:
        found, names = block_components(labels, roi, what.roi, per_section=what.per_section)
        whole = np.concatenate((np.zeros(1, np.uint64), joined(components, names)))
        labels = whole[np.searchsorted(names, found, side="right")]
    return segments, labels, kept


def read_count(table: Path, dust: int = 0) -> Located:
    """Return a count, ready to be scored.

    Sections that were counted by themselves get ids of their own: a segment in two sections is two segments.

    Args:
        table: Parquet file of `count_blocks`.
        dust: labels (or components; in sections, their parts) of fewer voxels are left out.
    """
    return scored(read_rows(table), dust)


def read_rows(table: Path) -> Rows:
    """Return a count as it is, sections and all."""
    rows, low = np.empty((len(COLUMNS), row_count(table)), np.uint64), 0
    for batch in _batches(table):  # read whole, Arrow's copy would take more than all of scoring
        rows[:, low : low + batch.shape[1]] = batch
        low += batch.shape[1]
    return rows


def labelled(rows: Rows) -> Rows:
    """Return the rows of voxels that have a label; 0 is none."""
    return rows[:, rows[2] > 0]


def block_counts(what: Count, folder: Path) -> Iterator[Rows]:
    """Yield the tables of all blocks, in the order of the blocks, one at a time."""
    for block in blocks(what.roi, what.block):
        yield _stacked(read_table(folder / block_name(block.index)))


def scored(rows: Rows, dust: int, *, numbered_segments: bool = True) -> Located:
    """Return rows as one contingency table, with ids of their own in each section; see `read_count`.

    Without ``numbered_segments`` segments keep their ids, each of which is of one section, but for background.
    """
    segment, label = numbered(rows)
    if not numbered_segments:
        segment = own_background(rows[1], rows[0])
        order = np.lexsort((label, segment))  # ids need not ascend from section to section
        segment, label, rows = segment[order], label[order], rows[:, order]
    table = drop_small_labels(Located(segment, label, rows[3], rows[4]), dust)
    if not table.count.size:
        raise DataError(
            "nothing to score: every voxel of the region is ignored, outside of the mask, or of a label smaller than "
            f"the dust of {dust} voxels"
        )
    return table


def objects(rows: Rows, dust: int) -> Contingency:
    """Return the rows of `scored`, in its order, with id 0 as background: 0 in every section, of both sides."""
    segment, label = numbered(rows)
    place = np.arange(rows.shape[1], dtype=np.uint64)
    left = drop_small_labels(Located(segment, label, rows[3], place), dust)
    segment, label = (np.where(rows[k][left.first] > 0, ids, 0) for k, ids in ((1, left.segment), (2, left.label)))
    return Contingency(segment, label, left.count)


def subtract(whole: Rows, part: Rows) -> Rows:
    """Return the rows of ``whole`` less those of ``part``, which is a part of it; they have no places."""
    negative = part.copy()
    negative[3] = np.uint64(0) - part[3]  # wraps around below 0, and back in the sum
    rows = added(np.concatenate((whole, negative), axis=1))
    rows[4] = 0
    return rows[:, rows[3] > 0]


def numbered(rows: Rows) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return segments and labels, with ids of their own in each section where sections were counted by themselves."""
    section, segment, label = rows[:3]
    if not section.any():
        return segment, label
    return _ranks(section, segment), _ranks(section, label)


def _ranks(section: NDArray[np.uint64], ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the rank of each pair among the distinct ones, from 1."""
    order = np.lexsort((ids, section))
    section, ids = section[order], ids[order]
    new = np.concatenate(([True], (section[1:] != section[:-1]) | (ids[1:] != ids[:-1])))
    out = np.empty(ids.size, np.uint64)
    out[order] = np.cumsum(new)
    return out


def _rows(section: int, table: Located) -> Rows:
    return np.stack([np.full(table.count.size, section, np.uint64), *table])


def _columns(rows: Rows) -> dict[str, NDArray[np.uint64]]:
    return {column.name: row for column, row in zip(COLUMNS, rows, strict=True)}


def _stacked(columns: dict[str, NDArray[np.uint64]]) -> Rows:
    return np.stack([columns[column.name] for column in COLUMNS])


def _merge_files(paths: Sequence[Path], target: Path) -> None:
    with write_parquet(target, COLUMNS) as file:
        for rows in merge_sorted([_batches(path) for path in paths]):
            file.append(_columns(rows))


def _batches(path: Path) -> Iterator[Rows]:
    if path.suffix == ".parquet":
        yield from (_stacked(batch) for batch in read_batches(path, _BATCH))
    else:
        yield _stacked(read_table(path))


def merge_sorted(tables: Sequence[Iterator[Rows]]) -> Iterator[Rows]:
    """Yield the sum of some tables, in order, holding one batch of each.

    Args:
        tables: each in batches, one behind the other sorted without repeats.
    """
    waiting = [(next(table, None), table) for table in tables]
    heads = [(batch, table) for batch, table in waiting if batch is not None]
    while heads:
        # all keys up to the smallest last one are in memory
        bound = min(tuple(batch[:3, -1].tolist()) if batch.shape[1] else () for batch, _ in heads)
        ready, rest = [], []
        for batch, table in heads:
            upto = _up_to(batch, bound) if bound else 0
            ready.append(batch[:, :upto])
            left: Rows | None = batch[:, upto:]
            if left is not None and not left.shape[1]:
                left = next(table, None)
            if left is not None:
                rest.append((left, table))
        heads = rest
        rows = added(np.concatenate(ready, axis=1))
        if rows.shape[1]:
            yield rows


def _up_to(rows: Rows, bound: tuple[int, ...]) -> int:
    """Return how many rows are at or below a key."""
    low, high = 0, rows.shape[1]
    while low < high:
        middle = (low + high) // 2
        if tuple(rows[:3, middle].tolist()) <= bound:
            low = middle + 1
        else:
            high = middle
    return low


def added(rows: Rows) -> Rows:
    """Sort rows and add up those of the same keys: `metrics.contingency.merge`, with sections."""
    if not rows.shape[1]:
        return rows
    rows = rows[:, np.lexsort(rows[2::-1])]
    keys = rows[:3]
    first = np.flatnonzero(np.concatenate(([True], (keys[:, 1:] != keys[:, :-1]).any(0))))
    count, place = np.add.reduceat(rows[3], first), np.minimum.reduceat(rows[4], first)
    return np.concatenate((keys[:, first], count[None], place[None]))
