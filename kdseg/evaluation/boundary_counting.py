"""Boundary voxels of whole volumes and how many have a counterpart, counted block by block.

In the folder of a count lie the table of each finished block and the list of them. A table is four integers, and the
result their sum: it depends neither on blocks nor on workers, order or crashes. A worker holds one block with its halo.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdseg.evaluation.counting import Count, Rows, added, scored_voxels
from kdseg.evaluation.metrics.boundaries import BoundaryCounts, boundary_counts, halo
from kdseg.geometry import Block, block_name, blocks
from kdseg.results.tables import read_table, write_table
from kdseg.running.runner import Place, run_blocks

CONVENTIONS: Mapping[str, str] = {
    "boundary_f": "harmonic mean of the two below; 1 is best",
    "boundary_precision": "share of the segmentation's boundary voxels within the tolerance of one of the labels",
    "boundary_recall": "share of the labels' boundary voxels within the tolerance of one of the segmentation",
}
"""Meaning of each `metrics.boundaries.BoundaryScores`, by the names that people read."""


def count_boundaries(
    what: Count, tolerance: float, dust: NDArray[np.uint64], components: Path | None, folder: Path, *, place: Place
) -> BoundaryCounts:
    """Count the boundary voxels of a region, and those with a counterpart.

    Counted are the voxels that are scored. Boundaries and counterparts are those of all voxels that segmentation and
    labels both cover: what is left out or lies beyond the region serves as neighbour and counterpart.

    Args:
        what: is scored; with ``per_section``, boundaries and distances are within sections.
        tolerance: nm, 0 or above.
        dust: uint64 (2, n), of `dust_labels`: labels that are left out, too.
        components: the file that `counting.count_blocks` returned.
        folder: for the tables of blocks; one per set of the arguments above. What is there from an earlier attempt is
            used.
        place: where the blocks are done.
    """
    halo(tolerance, what.voxel_size)  # refuses what is wrong before the first block
    function = partial(_count_block, what, tolerance, dust, components, folder)
    run_blocks("boundaries", what.roi, what.block, function, place, folder)
    total = BoundaryCounts(0, 0, 0, 0)
    for block in blocks(what.roi, what.block):
        table = read_table(folder / block_name(block.index))
        total = total.plus(BoundaryCounts(*(int(table[name][0]) for name in BoundaryCounts._fields)))
    return total


def dust_labels(rows: Rows, dust: int) -> NDArray[np.uint64]:
    """Return the labels of fewer than ``dust`` voxels.

    Args:
        rows: of `counting.read_rows`, the whole region.
        dust: voxels; in sections that were counted by themselves, of the part in one section.

    Returns:
        uint64 (2, n): section, 0 if all are one, and label, or component of a label.
    """
    none = np.zeros_like(rows[0])
    sizes = added(np.stack([rows[0], none, rows[2], rows[3], none]))
    found: NDArray[np.uint64] = sizes[[0, 2]][:, sizes[3] < dust]
    return found


def _count_block(
    what: Count, tolerance: float, dust: NDArray[np.uint64], components: Path | None, folder: Path, block: Block
) -> None:
    _, labels, kept = scored_voxels(what, components, block.roi)
    if what.per_section:
        for z, section in enumerate(labels, block.roi.offset[0]):
            kept[z - block.roi.offset[0]] &= np.isin(section, dust[1, dust[0] == z], invert=True)
    else:
        kept &= np.isin(labels, dust[1], invert=True)
    both = what.segmentation.roi.intersect(what.labels.roi)
    around = block.roi.grow(halo(tolerance, what.voxel_size, sections=what.per_section)).intersect(both)
    counts = boundary_counts(
        what.segmentation.read(around),
        what.labels.read(
            around
        ),  # not `labels`: two components of one label never touch, their borders are its borders
        tolerance,
        what.voxel_size,
        block.roi.slices(around),
        ignore_label=None,
        mask=kept,
        sections=what.per_section,
    )
    write_table(folder / block_name(block.index), {k: np.array([n], np.int64) for k, n in counts._asdict().items()})
