"""Tables of named columns on disk: edges, dendrograms, lookup and contingency tables.

A table is an uncompressed `.npz` file: every column is a plain array with a checksum, readable by NumPy
alone. A file appears complete or not at all, and equal tables are equal files. A table says of which result it is, by
the fingerprint of its options and inputs, and where it belongs there: in the place of another one it is not read.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import DataError, MissingError, UnreadableError
from kdseg.results.files import again, replacing
from kdseg.results.manifests import fingerprint_of, owner


def write_table(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write a table atomically: under another name in the same folder, flushed to disk, then renamed.

    A table that is there already is replaced. A `NamedTuple` of arrays is written as
    ``write_table(path, table._asdict())`` and read as ``Edges(**read_table(path))``.

    Args:
        path: of the file, with its ending; its folder must exist.
        columns: arrays by name, of numbers or booleans.

    Raises:
        DataError: if a column holds Python objects, which only pickle could store.
        MissingError: if the folder does not exist.
    """
    for name, column in columns.items():
        if column.dtype.kind not in "biufc":
            raise DataError(f"column {name!r} of {path.name} must hold numbers, got {column.dtype}")
    if not path.parent.is_dir():
        raise MissingError(f"no folder {path.parent} to write {path.name} to")
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        archive.comment = _place(path)
        for name, column in columns.items():
            # a `ZipInfo` made by hand holds no time: equal tables are equal files
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(column), allow_pickle=False)


def read_table(path: Path) -> dict[str, NDArray[Any]]:
    """Read a table into memory.

    Args:
        path: of the file.

    Returns:
        The columns by name, in the order in which they were written.

    Raises:
        MissingError: if there is no such file.
        UnreadableError: if the file is cut off, damaged, no table, or one that belongs to another place or result.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            if archive.comment != (here := _place(path)):
                raise ValueError(f"it is {archive.comment.decode()!r}, in the place of {here.decode()!r}")
            file.seek(-len(archive.comment), os.SEEK_END)
            if file.read() != archive.comment:
                raise ValueError("something follows its end")
            return {info.filename.removesuffix(".npy"): _column(archive, info) for info in archive.infolist()}
    except FileNotFoundError:
        raise MissingError(f"no table at {path}; run the stage that writes it") from None
    except MemoryError:
        raise
    except Exception as error:  # of damaged bytes NumPy, its tokenizer and zipfile raise a dozen kinds
        raise UnreadableError(f"{path} is cut off, damaged or no table ({error}); {again(owner(path))}") from error


def _place(table: Path) -> bytes:
    """Return where a table belongs: its path from the folder of the manifest, and the fingerprint of the result."""
    manifest = owner(table)
    return f"{table.relative_to(manifest.parent).as_posix()} of {fingerprint_of(manifest) or 'no stage'}".encode()


def _column(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    """Return a column, whose checksum is compared at its end: a shape that was damaged may end before that."""
    with archive.open(info) as member:
        column = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):
            raise ValueError(f"{info.filename} holds more than the {column.shape} it speaks of")
    return column
