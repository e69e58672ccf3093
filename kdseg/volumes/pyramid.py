"""Halved resolutions of a volume, for viewers: means of intensities, modes of labels.

A voxel of level k stands for a cube of 2 x 2 x 2 voxels of level k - 1. At the far border of an odd axis
the cube is cut; there the last plane is repeated, which counts every voxel that is left the same number
of times, and so changes neither mean nor mode.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import DataError, ShapeError
from kdseg.geometry import Block, Roi, Triple
from kdseg.running.runner import Place, run_blocks
from kdseg.volumes.volume import open_volume

Method = Literal["mean", "mode"]


def build_level(path: Path, method: Method, place: Place, progress: Path, level: int) -> None:
    """Fill one of the levels 1, 2, … of a volume from the level below it, one shard at a time.

    Args:
        path: volume made with `kdseg.volumes.volume.create_volume` and as many levels.
        method: ``mean`` of intensities or ``mode`` of labels.
        place: where the blocks are done.
        progress: folder for the list of finished blocks.
        level: to fill; the one below it is complete.
    """
    volume = open_volume(path, level=level)
    function = partial(downsample_block, path, level, method)
    run_blocks(f"level{level}", volume.roi, volume.write_unit, function, place, progress)


def downsample_block(path: Path, level: int, method: Method, block: Block) -> bytes:
    """Compute one block of a level from the level below it; return what is known of its files.

    Args:
        path: volume with its levels.
        level: level to write, at least 1.
        method: ``mean`` or ``mode``.
        block: whole shards of ``level``.
    """
    fine, coarse = open_volume(path, level=level - 1), open_volume(path, level=level)
    downsample = downsample_mean if method == "mean" else downsample_mode
    out = np.empty(block.roi.shape, coarse.dtype)
    # Slab by slab, each one chunk of the finer level: eight times the block would have to fit into memory.
    step = max(fine.read_unit[0] // 2, 1)
    (z, y, x), (depth, height, width) = block.roi.offset, block.roi.shape
    for start in range(0, depth, step):
        slab = Roi((z + start, y, x), (min(step, depth - start), height, width))
        twice = Roi(_doubled(slab.offset), _doubled(slab.shape)).intersect(fine.roi)
        out[start : start + step] = downsample(fine.read(twice))
    return coarse.write(block.roi, out)


def downsample_mean(data: NDArray[Any]) -> NDArray[Any]:
    """Return the mean of every 2 x 2 x 2 voxels, rounded half up, in integer arithmetic.

    Args:
        data: unsigned integers of up to 32 bits, (z, y, x).

    Returns:
        The same type, of shape ``ceil(shape / 2)``.

    Raises:
        DataError: if the type is another one.
        ShapeError: if the array is not three-dimensional or is empty.
    """
    if data.dtype.kind != "u" or data.dtype.itemsize > 4:
        raise DataError(f"cannot average {data.dtype}, expected unsigned integers of up to 32 bits")
    wide = np.uint16 if data.dtype.itemsize == 1 else np.uint64
    corners = _corners(data)
    total = np.full(corners[0].shape, 4, wide)
    for corner in corners:
        total += corner
    return (total // wide(8)).astype(data.dtype)


def downsample_mode(labels: NDArray[Any]) -> NDArray[Any]:
    """Return the most frequent id of every 2 x 2 x 2 voxels.

    Of equally frequent ids the smallest one wins; 0 (unlabelled) loses against every other, so that thin
    processes stay visible.

    Args:
        labels: unsigned integers, (z, y, x); 0 is unlabelled.

    Returns:
        The same type, of shape ``ceil(shape / 2)``.

    Raises:
        DataError: if the type is another one.
        ShapeError: if the array is not three-dimensional or is empty.
    """
    if labels.dtype.kind != "u":
        raise DataError(f"cannot take the mode of {labels.dtype}, expected unsigned integers")
    corners = [np.ascontiguousarray(corner) for corner in _corners(labels)]
    one = labels.dtype.type(1)
    best = corners[0].copy()
    most = np.zeros(best.shape, np.uint8)
    for candidate in corners:
        count = np.zeros(best.shape, np.uint8)
        for corner in corners:
            count += corner == candidate
        # Unsigned 0 - 1 is the largest id there is: it orders 0 behind all others.
        better = (count > most) | ((count == most) & (candidate - one < best - one))
        best = np.where(better, candidate, best)
        most = np.maximum(most, count)
    return best


def _corners(data: NDArray[Any]) -> list[NDArray[Any]]:
    if data.ndim != 3 or not data.size:
        raise ShapeError(f"cannot halve an array of shape {data.shape}, expected (z, y, x) and no axis of length 0")
    odd = [(0, n % 2) for n in data.shape]
    padded = np.pad(data, odd, mode="edge") if any(after for _, after in odd) else data
    return [padded[z::2, y::2, x::2] for z, y, x in product((0, 1), repeat=3)]


def _doubled(triple: Triple) -> Triple:
    z, y, x = triple
    return (2 * z, 2 * y, 2 * x)
