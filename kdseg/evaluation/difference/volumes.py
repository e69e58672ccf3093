"""Volumes of two results compared block by block, on what both cover."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.evaluation.alignment import Alignment, Placed, align
from kdseg.evaluation.counting import Count, count_blocks, read_count
from kdseg.evaluation.difference.objects import Agreement, Changes, agreement
from kdseg.evaluation.metrics.scores import scores
from kdseg.geometry import Block, Roi, Slices, Triple, block_name, blocks, triple
from kdseg.results.manifests import Manifest
from kdseg.results.tables import read_table, write_table
from kdseg.running.runner import Place, run_blocks
from kdseg.volumes.foreign import Source
from kdseg.volumes.volume import Volume, open_volume


class Segments(NamedTuple):
    """Comparison of two segmentations.

    Attributes:
        numbers: of objects.
        changes: objects that changed.
        voi_split: bits, H(new | old): what is split in the new one.
        voi_merge: bits, H(old | new): what is merged in the new one.
        arand: adapted Rand error of one against the other; it is symmetric.
    """

    numbers: Agreement
    changes: Changes
    voi_split: float
    voi_merge: float
    arand: float


class Values(NamedTuple):
    """Comparison of two volumes of values.

    Attributes:
        differing: voxels that differ, in any channel.
        box: the smallest box with all of them, in voxels of the grid; None if there are none.
        largest: largest absolute difference; not a number where only one of two values is one.
    """

    differing: int
    box: Roi | None
    largest: float


@dataclass(frozen=True)
class _Stored:
    """Voxels of a result, channels first if it has any; opened for each read, so that workers can be sent it."""

    store: Path
    shape: Triple
    dtype: np.dtype[Any]

    def __getitem__(self, key: Slices) -> NDArray[Any]:
        z, y, x = (range(n)[s] for n, s in zip(self.shape, key, strict=True))
        return open_volume(self.store).read(Roi((z.start, y.start, x.start), (len(z), len(y), len(x))))


def aligned(old: Manifest, new: Manifest) -> Alignment:
    """Put the volumes of two results on one grid, whose first voxel is that of the old one."""
    return align(*(_source(made.result, open_volume(made.result)) for made in (old, new)))


def _source(store: Path, volume: Volume) -> Source:
    stored = _Stored(store, volume.shape, volume.dtype)
    return Source(str(store), stored, volume.voxel_size, volume.offset, volume.write_unit, volume.placed)


def compare_segments(found: Alignment, block: Triple, folder: Path, place: Place) -> Segments:
    """Compare the segmentations of an alignment, old and new.

    Args:
        found: of the two.
        block: voxels per task; changes nothing.
        folder: for the tables of blocks.
        place: where the blocks are done.
    """
    old, new = found.placed
    count_blocks(Count(new, old, found.common, block, ignore_labels=()), folder, folder / "all.parquet", place=place)
    table = read_count(folder / "all.parquet")
    errors = scores(table)
    return Segments(*agreement(table), errors.voi_split, errors.voi_merge, errors.arand)


def compare_values(found: Alignment, block: Triple, folder: Path, place: Place) -> Values:
    """Compare the values of an alignment, old and new, of as many channels; see `compare_segments`."""
    old, new = found.placed
    function = partial(_differences, old, new, folder)
    run_blocks("values", found.common, block, function, place, folder)
    return joined(read_table(folder / block_name(one.index)) for one in blocks(found.common, block))


def joined(parts: Iterable[Mapping[str, NDArray[Any]]]) -> Values:
    """Return the comparison of a volume from those of its blocks, of which one is in memory at a time.

    Args:
        parts: ``differing`` (1,), voxels; ``begin`` and ``end`` (3,), of their box; ``largest`` (1,), difference.
    """
    differing, largest = 0, 0.0
    begin, end = np.full(3, np.iinfo(np.int64).max), np.full(3, np.iinfo(np.int64).min)
    for part in parts:
        if part["differing"][0]:
            differing += int(part["differing"][0])
            largest = float(np.maximum(largest, part["largest"][0]))  # stays what is not a number
            begin, end = np.minimum(begin, part["begin"]), np.maximum(end, part["end"])
    if not differing:
        return Values(0, None, 0.0)
    return Values(differing, Roi(triple(begin.tolist()), triple((end - begin).tolist())), largest)


def _differences(old: Placed, new: Placed, folder: Path, block: Block) -> None:
    """Write how many voxels of a block differ, their box, and by how much."""
    a, b = old.read(block.roi), new.read(block.roi)
    differ = a != b
    if a.dtype.kind == "f" and b.dtype.kind == "f":
        differ &= ~(np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):  # infinity less infinity
        largest = np.abs(a[differ].astype(np.float64) - b[differ].astype(np.float64)).max(initial=0)
    anywhere = differ.any(0) if differ.ndim == 4 else differ
    inside = [np.flatnonzero(anywhere.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    none = not inside[0].size
    begin = [0 if none else int(one[0]) + o for one, o in zip(inside, block.roi.offset, strict=True)]
    end = [0 if none else int(one[-1]) + o + 1 for one, o in zip(inside, block.roi.offset, strict=True)]
    columns = {
        "differing": np.array([np.count_nonzero(anywhere)], np.uint64),
        "begin": np.array(begin, np.int64),
        "end": np.array(end, np.int64),
        "largest": np.array([largest]),
    }
    write_table(folder / block_name(block.index), columns)
