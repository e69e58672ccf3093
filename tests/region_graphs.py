"""Region graphs and dendrograms as rows of integers, for tests."""

from __future__ import annotations

import numpy as np

from kdseg.segmentation.agglomerate import Dendrogram
from kdseg.segmentation.rag import Edges

Row = tuple[int, int, int, int]


def make_edges(rows: list[Row]) -> Edges:
    columns = np.array(sorted(rows), np.uint64).reshape(-1, 4).T
    return Edges(*(np.ascontiguousarray(column) for column in columns))


def as_rows(table: Edges | Dendrogram) -> list[tuple[int, ...]]:
    return [tuple(int(value) for value in row) for row in zip(*table, strict=True)]
