"""Tables with one row per edge, any `NamedTuple` of columns: parts of them, several in one, and as columns on disk.

A field ``histograms`` holds `Histograms`, or none; all other fields are arrays with one entry per edge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from kdseg.segmentation.graph import histograms

Table = TypeVar("Table", bound=NamedTuple)
_NESTED = "histograms"


def take(table: Table, wanted: NDArray[np.bool_] | NDArray[np.int64]) -> Table:
    """Return some of the rows.

    Args:
        table: of edges.
        wanted: bool (e,) or int64 (n,), which.
    """
    columns = table._asdict().items()
    return table._replace(**{n: histograms.take(c, wanted) if n == _NESTED else c[wanted] for n, c in columns})


def join(parts: Iterable[Table]) -> Table:
    """Return the rows of all parts, at least one, one after the other."""
    tables = list(parts)
    columns = zip(tables[0]._fields, zip(*tables, strict=True), strict=True)
    return tables[0]._replace(**{n: histograms.join(c) if n == _NESTED else np.concatenate(c) for n, c in columns})


def to_columns(table: NamedTuple | None) -> dict[str, NDArray[Any]]:
    """Return a table as columns on disk; no table has none."""
    columns = {} if table is None else table._asdict()
    counted = histograms.to_columns(columns.pop(_NESTED, None))
    return {**columns, **counted}


def from_columns(kind: type[Table], columns: Mapping[str, NDArray[Any]]) -> Table:
    """Return the table of a kind that columns on disk hold, among others."""
    return kind._make(histograms.from_columns(columns) if n == _NESTED else columns[n] for n in kind._fields)
