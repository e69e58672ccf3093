"""Rows of edges as tables: parts of them, several in one, and as columns on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdseg.segmentation.agglomeration.contraction import Rows
from kdseg.segmentation.graph import histograms

_COLUMNS = Rows._fields[:-1]


def take(rows: Rows, wanted: NDArray[np.bool_] | NDArray[np.int64]) -> Rows:
    """Return some of the rows.

    Args:
        rows: of edges.
        wanted: bool (e,) or int64 (n,), which.
    """
    columns = {name: getattr(rows, name)[wanted] for name in _COLUMNS}
    return Rows(**columns, histograms=histograms.take(rows.histograms, wanted))


def join(parts: Iterable[Rows]) -> Rows:
    """Return the rows of all parts, at least one, one after the other."""
    tables = list(parts)
    columns = {name: np.concatenate([getattr(table, name) for table in tables]) for name in _COLUMNS}
    return Rows(**columns, histograms=histograms.join([table.histograms for table in tables]))


def to_columns(rows: Rows) -> dict[str, NDArray[Any]]:
    """Return rows as columns of a table on disk."""
    return {**{name: getattr(rows, name) for name in _COLUMNS}, **histograms.to_columns(rows.histograms)}


def from_columns(table: Mapping[str, NDArray[Any]]) -> Rows:
    """Return the rows of a table on disk."""
    return Rows(**{name: table[name] for name in _COLUMNS}, histograms=histograms.from_columns(table))
