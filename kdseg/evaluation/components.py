"""Connected components of labels over blocks: exactly those of the volume.

A component is named by its first voxel, counted in C order over the region, plus 1. Each block finds its components and
names them by their first voxels in the block; pairs that touch across a face are joined, and the smallest name holds.
So names do not depend on blocks. Voxels are neighbours if they share a face (6-connected; 4-connected in sections).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import cc3d
import numpy as np
from numpy.typing import NDArray

from kdseg.evaluation.alignment import Placed, as_ids
from kdseg.geometry import Block, Roi, Triple, block_name, blocks
from kdseg.results.files import replacing
from kdseg.results.tables import read_table, write_table
from kdseg.running.runner import Place, run_blocks
from kdseg.segmentation.lut import lut


def block_components(
    labels: NDArray[np.uint64], roi: Roi, total: Roi, *, per_section: bool
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the components of one block.

    Args:
        labels: uint64 (z, y, x), voxels of ``roi``; 0 is background.
        roi: the block.
        total: the region over which voxels are counted.
        per_section: components end at the faces between sections.

    Returns:
        uint64 (z, y, x), the name of each voxel's component in this block, 0 in the background; and uint64 (n,), all
        these names, ascending.
    """
    found = np.zeros(labels.shape, np.int64)
    if per_section:
        most = 0
        for k, section in enumerate(labels):
            pieces = cc3d.connected_components(section, connectivity=4).astype(np.int64)
            np.add(pieces, most, out=found[k], where=pieces > 0)
            most += int(pieces.max(initial=0))
    else:
        found[...] = cc3d.connected_components(labels, connectivity=6)
    flat = found.ravel()
    first = np.zeros(int(flat.max(initial=0)) + 1, np.int64)
    first[flat[::-1]] = np.arange(flat.size - 1, -1, -1)  # of equal places the last one holds: the first voxel
    z, y, x = (
        index + low - base
        for index, low, base in zip(np.unravel_index(first, labels.shape), roi.offset, total.offset, strict=True)
    )
    names = ((z * total.shape[1] + y) * total.shape[2] + x + 1).astype(np.uint64)
    names[0] = 0
    return names[found], np.sort(names[1:])


def join_components(
    labels: Placed, total: Roi, block: Triple, folder: Path, *, place: Place, per_section: bool
) -> Path:
    """Find which components of blocks are one, and return the file that says so; see `joined`.

    Args:
        labels: of which components are made.
        total: the region, in voxels of the labels' grid.
        block: voxels per task; the result does not depend on it.
        folder: for lists and tables of finished blocks; one per labels and region. What is there already is used.
        place: where the blocks are done.
        per_section: components end at the faces between sections.
    """
    planes, pairs = folder / "planes", folder / "pairs"
    function = partial(_planes_block, labels, total, planes, per_section)
    run_blocks("components", total, block, function, place, planes)
    axes = (1, 2) if per_section else (0, 1, 2)
    run_blocks("faces", total, block, partial(_pairs_block, planes, pairs, axes), place, pairs)
    tables = [read_table(pairs / block_name(one.index)) for one in blocks(total, block)]
    a, b = (np.concatenate([table[name] for table in tables]) for name in ("a", "b"))
    names = np.unique(np.concatenate((a, b)))
    target = folder / "joined.npy"
    with replacing(target) as file:
        np.save(file, np.stack([names, lut(names, a, b)]))
    return target


def joined(file: Path, names: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the names in the volume of components of a block.

    Args:
        file: of `join_components`; it is mapped, not read whole.
        names: uint64 (n,), of `block_components`.

    Returns:
        uint64 (n,).
    """
    table = np.load(file, mmap_mode="r")
    if not table.shape[1]:
        return names
    row = np.minimum(np.searchsorted(table[0], names), table.shape[1] - 1)
    return np.where(table[0][row] == names, table[1][row], names).astype(np.uint64)


def _planes_block(labels: Placed, total: Roi, folder: Path, per_section: bool, block: Block) -> None:
    """Keep the outermost voxels of a block on all six sides: their labels and components."""
    voxels = as_ids(labels.read(block.roi), "labels")
    names, _ = block_components(voxels, block.roi, total, per_section=per_section)
    columns: dict[str, NDArray[np.uint64]] = {}
    for axis in range(3):
        for side, index in (("low", 0), ("high", -1)):
            columns[f"{side}_{axis}"] = np.take(names, [index], axis)
            columns[f"{side}_{axis}_label"] = np.take(voxels, [index], axis)
    write_table(folder / block_name(block.index), columns)


def _pairs_block(planes: Path, pairs: Path, axes: tuple[int, ...], block: Block) -> None:
    """Pair what touches across the block's lower faces."""
    here = read_table(planes / block_name(block.index))
    found = [np.empty((2, 0), np.uint64)]
    for axis in axes:
        z, y, x = (i - (k == axis) for k, i in enumerate(block.index))
        below = planes / block_name((z, y, x))
        if below.exists():
            there = read_table(below)
            label = here[f"low_{axis}_label"]
            touch = (label > 0) & (label == there[f"high_{axis}_label"])
            found.append(np.unique(np.stack([here[f"low_{axis}"][touch], there[f"high_{axis}"][touch]]), axis=1))
    a, b = np.concatenate(found, axis=1)
    write_table(pairs / block_name(block.index), {"a": a, "b": b})
