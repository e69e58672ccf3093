"""Skeletons of true neurons over a segmentation: the expected run length."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdseg.config.questions import RunlengthTask
from kdseg.errors import DataError, VoxelSizeError
from kdseg.evaluation.alignment import as_ids, expect_ids
from kdseg.evaluation.metrics.skeletons import run_lengths
from kdseg.evaluation.skeleton_files import read_skeletons
from kdseg.geometry import Roi, VoxelSize
from kdseg.volumes.foreign import Source, lacks_size, sized
from kdseg.volumes.sources import open_source


def run(task: RunlengthTask) -> dict[str, Any]:
    """Return the expected run length of a segmentation, see `kdseg.evaluation.metrics.skeletons.run_lengths`.

    Reads the parts of the volume that hold nodes, one chunk at a time, each once.

    Returns:
        JSON values: ``erl``, ``best``, ``nerl``; nm of edges ``correct``, ``split``, ``merged``, ``omitted``;
        ``neurons`` with id, ``length`` and ``run``, the worst share first; ``merging`` segments; ``nodes`` and how many
        of them are ``outside`` of the volume, which count as background.

    Raises:
        VoxelSizeError: if the voxel size is not known, or the file says another one.
        DataError: if no node lies in the volume.
    """
    segmentation, voxel_size = task.segmentation, task.voxel_size
    source, truth = (
        open_source(segmentation, task.sections),
        read_skeletons(task.skeletons, nm_per_unit=task.nm_per_unit),
    )
    expect_ids(source, "the segmentation")
    size = source.voxel_size or voxel_size
    if size is None:
        raise VoxelSizeError(f"{segmentation} {lacks_size(source)}: give it, --voxel-size Z Y X, in nm")
    if voxel_size is not None and not np.allclose(size, voxel_size, rtol=1e-3):
        raise VoxelSizeError(
            f"{segmentation} has voxels of {size} nm, --voxel-size says {voxel_size}: leave it out, or correct the file"
        )
    source = sized(source, size)
    first = source.offset or (0.0, 0.0, 0.0)
    if source.corner:
        first = (first[0] + size[0] / 2, first[1] + size[1] / 2, first[2] + size[2] / 2)
    placed = replace(source, voxel_size=size, offset=task.offset or first)
    segments, inside = _segments_at(placed, truth.position, size)
    if not inside.any():
        raise DataError(
            f"none of the {len(truth.position)} nodes of {task.skeletons} lies in {segmentation}: nodes are (z, y, x) "
            "in nm of the world, see --nm-per-unit and --offset"
        )
    found = run_lengths(truth, segments, tolerance=task.tolerance, runs=task.runs)
    share = found.run / np.where(found.length > 0, found.length, 1)
    names = ("erl", "best", "nerl", "correct", "split", "merged", "omitted")
    return {
        **{name: float(getattr(found, name)) for name in names},
        "neurons": [
            {"id": int(found.neuron[k]), "length": float(found.length[k]), "run": float(found.run[k])}
            for k in np.lexsort((found.neuron, share)).tolist()
        ],
        "merging": found.merging.tolist(),
        "nodes": len(truth.position),
        "outside": int((~inside).sum()),
    }


def _segments_at(
    source: Source, position: NDArray[np.float64], size: VoxelSize
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return the segment at each position, 0 outside, and which are inside; the offset is the first voxel's centre."""
    voxel = np.floor((position - np.array(source.offset)) / np.array(size) + 0.5).astype(np.int64)
    inside = ((voxel >= 0) & (voxel < source.roi.shape)).all(axis=1)
    segments = np.zeros(len(position), np.uint64)
    cells, which = np.unique(voxel[inside] // source.unit, axis=0, return_inverse=True)
    rows = np.flatnonzero(inside)
    for k, (z, y, x) in enumerate(cells.tolist()):
        a, b, c = source.unit
        roi = Roi((z * a, y * b, x * c), source.unit).intersect(source.roi)
        mine = rows[which.ravel() == k]
        ids = as_ids(source.read(roi), "the segmentation")
        segments[mine] = ids[tuple((voxel[mine] - np.array(roi.offset)).T)]
    return segments, inside
