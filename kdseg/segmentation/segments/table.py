"""The table of segments beside a segmentation: size, bounding box and place of each."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from kdseg.results.parquet import Column, write_parquet
from kdseg.segmentation.graph.statistics import Statistics, centroid, merge
from kdseg.volumes.volume import Volume

SEGMENTS = (
    Column("segment", np.uint64, "id: its smallest fragment"),
    Column("size", np.uint64, "number of voxels", "voxel"),
    Column("begin", np.int64, "first voxel of the bounding box", "voxel", triple=True),
    Column("end", np.int64, "first voxel behind the bounding box", "voxel", triple=True),
    Column("centroid", np.float64, "mean position, in the world", "nm", triple=True),
)


def write_segments(path: Path, parts: Iterable[Statistics], volume: Volume) -> int:
    """Write the table of segments and return their number. Memory: 100 bytes per segment.

    Args:
        path: Parquet file to write.
        parts: statistics of the segments in parts of the volume.
        volume: the segmentation, or one on its voxels, whose size is known.
    """
    # as in a binary counter: tables of about one size are merged, so that no row is sorted more than log times
    found: list[Statistics] = []
    for part in parts:
        found.append(part)
        while len(found) > 1 and found[-2].fragment.size <= found[-1].fragment.size:
            found[-2:] = [merge(found[-2:])]
    every = merge(found)
    world = np.array(volume.offset) + centroid(every) * np.array(volume.voxel_size)
    columns = {name: column for name, column in every._asdict().items() if name not in ("fragment", "total")}
    notes = {"voxel_size_nm": volume.voxel_size, "offset_nm": volume.offset}
    with write_parquet(path, SEGMENTS, notes) as file:
        file.append({"segment": every.fragment, **columns, "centroid": world})
    return len(every.fragment)
