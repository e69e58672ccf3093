"""Skeletons in files: SWC, CSV and npz."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from kdseg.config.text import read_text
from kdseg.errors import DataError, MissingError, UnreadableError
from kdseg.evaluation.metrics.skeletons import Skeletons, join

_ROOT = -1
_CSV = ("neuron", "node", "parent", "z", "y", "x")


def read_skeletons(path: Path, *, nm_per_unit: float = 1.0) -> Skeletons:
    """Read skeletons.

    - a folder: every ``.swc`` file in it is a neuron, numbered by its name if all names are numbers, else from
      1 on in the order of names;
    - ``.swc``: one neuron, with the number of its name, else 1;
    - ``.csv``: a header ``neuron,node,parent,z,y,x``, one line per node; ``parent`` is -1 at a root;
    - ``.npz``: the columns of `Skeletons`, in nm.

    Args:
        path: of the file or folder.
        nm_per_unit: what SWC and CSV files count in: SWC files are in micrometres by their definition (1000),
            those of EM volumes often in nm (1). Not for npz.

    Raises:
        MissingError: if there is no such file, or no SWC file in the folder.
        DataError: if the file is none of these, or an npz has other columns.
    """
    if path.is_dir():
        files = sorted(path.glob("*.swc"))
        if not files:
            raise MissingError(f"no .swc file in {path}")
        numbered = all(file.stem.isdecimal() for file in files)
        names = [int(file.stem) if numbered else k for k, file in enumerate(files, 1)]
        return join(*(_swc(file, name, nm_per_unit) for file, name in zip(files, names, strict=True)))
    if not path.exists():
        raise MissingError(f"no skeletons at {path}")
    if path.suffix == ".swc":
        return _swc(path, int(path.stem) if path.stem.isdecimal() else 1, nm_per_unit)
    if path.suffix == ".csv":
        return _csv(path, nm_per_unit)
    if path.suffix != ".npz":
        raise DataError(f"skeletons come as .swc, .csv or .npz, got {path.name}")
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = dict(file)
    except Exception as error:  # of damaged bytes NumPy and zipfile raise a dozen kinds
        raise UnreadableError(f"{path} is cut off, damaged or no npz ({error}): write it anew") from error
    if set(columns) != set(Skeletons._fields):
        raise DataError(f"{path} must hold {', '.join(Skeletons._fields)}, got {', '.join(columns)}")
    return Skeletons(
        columns["position"].astype(np.float64), columns["neuron"].astype(np.uint64), columns["edge"].astype(np.int64)
    )


def _swc(path: Path, neuron: int, nm: float) -> Skeletons:
    """Read ``id type x y z radius parent`` in each line."""
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split("#")[0].split()
        if words:
            try:
                node, _, x, y, z, _, parent = words
                rows.append((neuron, int(node), int(parent), float(z) * nm, float(y) * nm, float(x) * nm))
            except ValueError:
                raise DataError(
                    f"line {number} of {path}: expected 'id type x y z radius parent', got {line!r}"
                ) from None
    return _skeletons(rows, path)


def _csv(path: Path, nm: float) -> Skeletons:
    rows = []
    lines = csv.DictReader(io.StringIO(read_text(path), newline=""))
    if lines.fieldnames is None or not set(_CSV) <= set(lines.fieldnames):
        raise DataError(f"{path} needs the columns {', '.join(_CSV)}, got {lines.fieldnames}")
    for line in lines:
        try:
            neuron, node, parent = int(line["neuron"]), int(line["node"]), int(line["parent"])
            rows.append((neuron, node, parent, *(float(line[axis]) * nm for axis in "zyx")))
        except (ValueError, TypeError):
            raise DataError(f"line {lines.line_num} of {path} is not six numbers: {line}") from None
    return _skeletons(rows, path)


def _refuse_cycles(rows: list[tuple[int | float, ...]], edges: list[tuple[int, int]], path: Path) -> None:
    """Refuse nodes that are their own ancestors: who has a parent each, and no root, goes round."""
    parent = {child: above for above, child in edges}
    rooted = {k for k in range(len(rows)) if k not in parent}
    for start in range(len(rows)):
        way, k = set[int](), start
        while k not in rooted:
            if k in way:
                raise DataError(f"{path}: node {rows[k][1]} is its own ancestor; a skeleton is a tree")
            way.add(k)
            k = parent[k]
        rooted |= way


def _skeletons(rows: Iterable[tuple[int | float, ...]], path: Path) -> Skeletons:
    rows = list(rows)
    at = {(row[0], row[1]): k for k, row in enumerate(rows)}
    if len(at) != len(rows):
        raise DataError(f"{path} has a node twice")
    children = [k for k, row in enumerate(rows) if row[2] != _ROOT]
    unknown = [rows[k] for k in children if (rows[k][0], rows[k][2]) not in at]
    if unknown:
        raise DataError(f"{path}: node {unknown[0][1]} has the parent {unknown[0][2]}, which is not there")
    edges = [(at[rows[k][0], rows[k][2]], k) for k in children]
    _refuse_cycles(rows, edges, path)
    return Skeletons(
        np.array([row[3:] for row in rows], np.float64).reshape(-1, 3),
        np.array([row[0] for row in rows], np.uint64),
        np.array(edges, np.int64).reshape(-1, 2),
    )
