"""Parquet files: tables for pandas, polars, DuckDB and Spark.

A file is written row group by row group, so that it may be larger than memory, and appears complete or not
at all. Equal rows are equal files, whatever the pieces they came in. A key ``kdseg`` of the file's metadata
says in JSON what each column is and in which unit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import DTypeLike, NDArray

from kdseg.errors import DataError, KdsegError, MissingError, ShapeError, UnreadableError
from kdseg.results.files import replacing

ROW_GROUP = 1 << 20
"""Rows per group: what is held in memory, and what a reader can skip at once."""
AXES = ("z", "y", "x")


class Column(NamedTuple):
    """Description of a column of a Parquet file.

    Attributes:
        name: of the column; of a triple, the part before ``_z``, ``_y``, ``_x``.
        dtype: of its values.
        meaning: in one sentence.
        unit: e.g. ``voxel`` or ``nm``; empty for ids and the like.
        triple: whether an array (n, 3) in the order (z, y, x) becomes three columns.
    """

    name: str
    dtype: DTypeLike
    meaning: str
    unit: str = ""
    triple: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names in the file."""
        return tuple(f"{self.name}_{axis}" for axis in AXES) if self.triple else (self.name,)


class ParquetFile:
    """A Parquet file that is being written; made by `write_parquet`."""

    def __init__(self, writer: Any, columns: Sequence[Column], row_group: int) -> None:
        self._writer, self._columns, self._row_group = writer, columns, row_group
        self._waiting: list[Any] = []
        self.rows = 0

    def append(self, table: Mapping[str, NDArray[Any]]) -> None:
        """Add rows.

        Args:
            table: arrays by column name, (n,) or for triples (n, 3); exactly the columns of the file.

        Raises:
            DataError: if other columns are given, or a dtype is not the column's.
            ShapeError: if the columns differ in length, or a triple is not (n, 3).
        """
        wanted = [column.name for column in self._columns]
        if sorted(table) != sorted(wanted):
            raise DataError(f"got the columns {sorted(table)}, expected {sorted(wanted)}")
        rows = len(table[wanted[0]])
        arrays = []
        for column in self._columns:
            values = table[column.name]
            if values.shape != ((rows, 3) if column.triple else (rows,)):
                raise ShapeError(f"column {column.name!r} has the shape {values.shape} in a table of {rows} rows")
            if values.dtype != np.dtype(column.dtype):
                raise DataError(f"column {column.name!r} is {values.dtype}, expected {np.dtype(column.dtype)}")
            parts = values.T if column.triple else [values]
            arrays += [pyarrow.array(np.ascontiguousarray(part)) for part in parts]
        self._waiting.append(pyarrow.Table.from_arrays(arrays, schema=self._writer.schema))
        self.rows += rows
        self._flush(self._row_group)

    def _flush(self, least: int) -> None:
        """Write whole row groups while at least ``least`` rows wait."""
        while (waiting := sum(part.num_rows for part in self._waiting)) >= least and waiting:
            table = pyarrow.concat_tables(self._waiting)
            self._writer.write_table(table.slice(0, self._row_group), row_group_size=self._row_group)
            self._waiting = [table.slice(self._row_group)]


@contextmanager
def write_parquet(
    path: Path, columns: Sequence[Column], notes: Mapping[str, Any] | None = None, *, row_group: int = ROW_GROUP
) -> Iterator[ParquetFile]:
    """Write a Parquet file atomically: under another name in the same folder, then renamed.

    Args:
        path: of the file; its folder must exist. A file that is there already is replaced.
        columns: of the file, in order.
        notes: JSON values about the whole table, for the metadata.
        row_group: rows per row group.

    Yields:
        The file; `ParquetFile.append` adds rows. On any error of the body nothing is left.

    Raises:
        MissingError: if the folder does not exist.
    """
    if not path.parent.is_dir():
        raise MissingError(f"no folder {path.parent} to write {path.name} to")
    with replacing(path) as file:
        # ids hardly repeat: a dictionary of them would only cost
        options = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}
        with pyarrow.parquet.ParquetWriter(file, _schema(columns, notes or {}), **options) as writer:
            rows = ParquetFile(writer, columns, row_group)
            yield rows
            rows._flush(1)


def read_parquet(path: Path) -> dict[str, NDArray[Any]]:
    """Read a Parquet file of numbers into memory.

    Args:
        path: of the file.

    Returns:
        Arrays (n,) by the names in the file; a triple is three of them.
    """
    with _reading(path), _open(path) as file:
        table = file.read()
        _expect_rows(file, table.num_rows)
        return {name: table.column(name).to_numpy() for name in table.column_names}


def read_batches(path: Path, rows: int) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield a Parquet file of numbers part by part, in order.

    Args:
        path: of the file.
        rows: in each part, at most.

    Yields:
        Arrays (n,) by the names in the file.
    """
    with _reading(path), _open(path) as file:
        found = 0
        for batch in file.iter_batches(rows, use_threads=False):
            yield {name: batch.column(name).to_numpy() for name in batch.schema.names}
            found += batch.num_rows
        _expect_rows(file, found)


def row_count(path: Path) -> int:
    """Return how many rows a Parquet file has."""
    with _reading(path), _open(path) as file:
        return int(file.metadata.num_rows)


def read_notes(path: Path) -> dict[str, Any]:
    """Return what `write_parquet` noted in a file: ``axes``, ``columns`` and the notes.

    Raises:
        UnreadableError: if kdseg did not write the file.
    """
    with _reading(path), _open(path) as file:
        found = (file.schema_arrow.metadata or {}).get(b"kdseg")
        if found is None:
            raise UnreadableError(f"{path} has no metadata of kdseg: it was written by another program")
        notes: dict[str, Any] = json.loads(found)
        return notes


def _open(path: Path) -> Any:
    """Open a Parquet file whose pages are compared with their checksums; use `_reading` around all that is done."""
    file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
    about = file.metadata  # which has no checksum, but says everything twice
    groups = [about.row_group(k) for k in range(about.num_row_groups)]
    values = {group.column(k).num_values - group.num_rows for group in groups for k in range(group.num_columns)}
    if sum(group.num_rows for group in groups) != about.num_rows or values - {0}:
        raise ValueError("its numbers of rows contradict each other")
    return file


def _expect_rows(file: Any, rows: int) -> None:
    if rows != file.metadata.num_rows:  # heads of pages have no checksum
        raise ValueError(f"it has {rows} rows, and says {file.metadata.num_rows}")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what Arrow raises in the body into errors that name the file.

    Raises:
        MissingError: if there is no such file.
        UnreadableError: if the file is cut off, damaged, or no Parquet.
    """
    try:
        yield
    except FileNotFoundError:
        raise MissingError(f"no Parquet file at {path}") from None
    except KdsegError:
        raise
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        line = " ".join(str(error).split())
        raise UnreadableError(f"{path} is cut off, damaged or no Parquet file: {line}; write it again") from error


def _schema(columns: Sequence[Column], notes: Mapping[str, Any]) -> Any:
    fields, meanings = [], {}
    for column in columns:
        kind = pyarrow.from_numpy_dtype(np.dtype(column.dtype))
        fields += [pyarrow.field(name, kind, nullable=False) for name in column.names]
        meanings.update({name: {"unit": column.unit, "meaning": column.meaning} for name in column.names})
    text = json.dumps({**notes, "axes": "zyx", "columns": meanings}, sort_keys=True)
    return pyarrow.schema(fields, metadata={"kdseg": text})
