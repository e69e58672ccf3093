"""The table of segments → segment properties that neuroglancer lists, searches and sorts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdseg.config.questions import PropertiesTask
from kdseg.results.manifests import read
from kdseg.results.parquet import read_notes, read_parquet
from kdseg.segmentation.proofreading.segment_properties import statistics_properties, write_segment_properties


def run(task: PropertiesTask) -> int:
    """Write size, centroid and bounding box of the segments to `out/info`, and return how many were written.

    Memory: the table of segments, 100 bytes each; some 300 bytes more for each that is written.
    """
    path = read(task.segmentation).table(".parquet")
    table, notes = read_parquet(path), read_notes(path)
    kept = table["size"] >= task.least

    def triple(name: str) -> NDArray[Any]:
        return np.column_stack([table[f"{name}_{axis}"][kept] for axis in "zyx"])

    centroid = (triple("centroid") - np.array(notes["offset_nm"])) / np.array(notes["voxel_size_nm"])
    properties = statistics_properties(table["size"][kept], triple("begin"), triple("end"), centroid)
    write_segment_properties(task.out, table["segment"][kept], properties)
    return int(kept.sum())
