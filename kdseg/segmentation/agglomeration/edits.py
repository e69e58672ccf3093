"""A user's corrections of a segmentation: pairs of fragments to merge, pairs to keep apart.

The table is a CSV with a header and one correction per row::

    edit,u,v,z1,y1,x1,z2,y2,x2,comment
    merge,4611,9920,,,,,,,axon continues
    split,,,1040.0,2210.5,880,1300,2210,870,two cells

Both ends are fragment ids (``u,v``) or points in nm of the world. Columns that no row uses may be missing.
"""

from __future__ import annotations

import csv
import io
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from kdseg.config.text import read_text
from kdseg.errors import DataError, MissingError, UnreadableError, VoxelSizeError
from kdseg.geometry import Roi
from kdseg.results.files import replacing
from kdseg.volumes.volume import Volume

Point = tuple[float, float, float]
Lookup = Callable[[NDArray[np.float64]], NDArray[np.uint64]]
"""Points in nm, float64 (n, 3), (z, y, x) → fragment ids, uint64 (n,); 0 on background and outside."""

IDS = ("u", "v")
POINTS = ("z1", "y1", "x1", "z2", "y2", "x2")
COLUMNS = ("edit", *IDS, *POINTS, "comment")


@dataclass(frozen=True)
class Edit:
    """One row of the table.

    Attributes:
        kind: whether the two ends belong together or not.
        where: file and line, for messages.
        ids: both fragments, if the row names them.
        points: both ends in nm, (z, y, x), if it does not.
        comment: what the user noted.
    """

    kind: Literal["merge", "split"]
    where: str
    ids: tuple[int, int] | None = None
    points: tuple[Point, Point] | None = None
    comment: str = ""


class Links(NamedTuple):
    """Corrections as pairs of fragments ``u < v``, each table sorted by ``(u, v)`` without repeats.

    Attributes:
        merge: uint64 (m, 2), pairs that belong to one segment.
        split: uint64 (s, 2), pairs that do not.
    """

    merge: NDArray[np.uint64]
    split: NDArray[np.uint64]


def read_edits(path: Path) -> tuple[Edit, ...]:
    """Read a table of corrections.

    Args:
        path: of the CSV, UTF-8, with a header; empty lines are skipped.

    Returns:
        The corrections in the order of the file.

    Raises:
        MissingError: if there is no such file.
        UnreadableError: if it is not text.
        DataError: with file and line, if a column or edit is unknown, or a value is missing or no number.
    """
    try:
        rows = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
        header = [name.strip() for name in next(rows, [])]
        unknown = [name for name in header if name not in COLUMNS]
        if "edit" not in header or unknown or len(set(header)) != len(header):
            raise DataError(f"{path}:1: got the columns {header}; expected `edit` and some of {COLUMNS[1:]}, by commas")
        return tuple(_edit(header, row, f"{path}:{rows.line_num}") for row in rows if any(map(str.strip, row)))
    except FileNotFoundError:
        raise MissingError(f"no table of edits at {path}") from None
    except (IsADirectoryError, PermissionError, csv.Error) as error:
        raise UnreadableError(f"{path} is not a CSV file: {error}; save it as one") from error


def write_edits(path: Path, edits: Iterable[Edit]) -> None:
    """Write a table of corrections, see `read_edits`; where they are from is not written."""
    with replacing(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(COLUMNS)
        for edit in edits:
            points = chain(*edit.points) if edit.points is not None else ("",) * len(POINTS)
            rows.writerow((edit.kind, *(edit.ids or ("",) * len(IDS)), *points, edit.comment))
        text.detach()


def resolve(edits: Sequence[Edit], lookup: Lookup) -> Links:
    """Return the corrections as pairs of fragments.

    A merge of two points in one fragment is left out: there is nothing to do.

    Args:
        edits: see `read_edits`.
        lookup: tells the fragments at points; called at most once. See `fragments_at`.

    Raises:
        DataError: with file and line, if an end is background or outside of the volume, the two ends of a split
            are one fragment, or merges join what a split keeps apart.
    """
    pairs: dict[str, dict[tuple[int, int], str]] = {"merge": {}, "split": {}}
    for edit, (one, other) in zip(edits, _ends(edits, lookup), strict=True):
        if one != other:
            pairs[edit.kind].setdefault((min(one, other), max(one, other)), edit.where)
        elif edit.kind == "split":
            raise DataError(
                f"{edit.where}: both ends of the split lie in fragment {one}, and fragments are never cut: make "
                "fragments smaller, or edit the fragments"
            )
    _refuse_contradictions(pairs["merge"], pairs["split"])
    return Links(*(np.array(sorted(pairs[kind]), np.uint64).reshape(-1, 2) for kind in ("merge", "split")))


def check_known(links: Links, ids: NDArray[np.uint64]) -> None:
    """Refuse corrections of fragments that do not exist.

    Args:
        links: see `resolve`.
        ids: uint64 (f,), fragments that exist, in any order; of a large volume, those that ``links`` name suffice.

    Raises:
        DataError: naming an unknown fragment and its correction.
    """
    for kind, pairs in links._asdict().items():
        unknown = ~np.isin(pairs, ids)
        if unknown.any():
            row = pairs[unknown.any(axis=1)][0]
            raise DataError(
                f"fragment {pairs[unknown][0]} does not exist, but is to be edited ({kind} {row[0]},{row[1]}): name "
                "the ids of this run's fragments, or give points, which hold for any run"
            )


def fragments_at(volume: Volume, points: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Return the fragments at points, a `Lookup` with ``functools.partial(fragments_at, volume)``.

    Each point costs the reading of one chunk.

    Args:
        volume: of fragments; its offset is the centre of its first voxel.
        points: float64 (n, 3), nm, (z, y, x).

    Returns:
        uint64 (n,); 0 on background and outside of the volume.

    Raises:
        VoxelSizeError: if the volume has no voxel size.
    """
    if volume.voxel_size is None:
        raise VoxelSizeError(f"{volume.where} has no voxel size: points in nm mean nothing in it")
    voxels = np.floor((points - np.array(volume.offset)) / np.array(volume.voxel_size) + 0.5)
    found = np.zeros(len(points), np.uint64)
    for k, voxel in enumerate(voxels.tolist()):
        if all(0 <= v < n for v, n in zip(voxel, volume.shape, strict=True)):
            z, y, x = map(int, voxel)
            found[k] = volume.read(Roi((z, y, x), (1, 1, 1)))[0, 0, 0]
    return found


def _edit(header: list[str], row: list[str], where: str) -> Edit:
    if len(row) != len(header):
        raise DataError(f"{where}: got {len(row)} values for {len(header)} columns")
    values = {name: value.strip() for name, value in zip(header, row, strict=True)}
    kind = values["edit"]
    if kind not in ("merge", "split"):
        raise DataError(f"{where}: got the edit {kind!r}, expected merge or split")
    by_ids, by_points = (any(values.get(name) for name in names) for names in (IDS, POINTS))
    if by_ids == by_points:
        raise DataError(f"{where}: got {'both' if by_ids else 'no'} ids and points; expected u,v or {','.join(POINTS)}")
    ids = tuple(_numbers(values, IDS, int, where)) if by_ids else None
    ends = list(_numbers(values, POINTS, float, where)) if by_points else []
    points = (tuple(ends[:3]), tuple(ends[3:])) if ends else None
    return Edit(
        cast("Literal['merge', 'split']", kind),
        where,
        cast("tuple[int, int] | None", ids),
        cast("tuple[Point, Point] | None", points),
        values.get("comment", ""),
    )


def _numbers(values: Mapping[str, str], names: Sequence[str], kind: type[Any], where: str) -> Iterator[Any]:
    for name in names:
        text = values.get(name, "")
        if not text:
            raise DataError(f"{where}: {name} is missing; expected {','.join(names)}")
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and (kind is float or 0 <= number < 2**64)):
            what = "a number of nm" if kind is float else "a fragment id"
            raise DataError(f"{where}: {name} is {text!r}, expected {what}")
        yield number


def _ends(edits: Sequence[Edit], lookup: Lookup) -> list[tuple[int, int]]:
    """Return both fragments of each correction."""
    asked = [edit.points for edit in edits if edit.points is not None]
    found = iter(lookup(np.array(asked, np.float64).reshape(-1, 3)).reshape(-1, 2).tolist() if asked else [])
    ends = []
    for edit in edits:
        one, other = edit.ids if edit.ids is not None else next(found)
        if not (one and other):
            end = f"point {edit.points[bool(one)]} nm (z, y, x)" if edit.points else "fragment 0"
            raise DataError(f"{edit.where}: {end} is background or outside of the volume; expected a fragment")
        ends.append((one, other))
    return ends


def _refuse_contradictions(merge: Mapping[tuple[int, int], str], split: Mapping[tuple[int, int], str]) -> None:
    neighbours: dict[int, list[tuple[int, str]]] = {}
    for (u, v), where in merge.items():
        neighbours.setdefault(u, []).append((v, where))
        neighbours.setdefault(v, []).append((u, where))
    for (u, v), where in split.items():
        chain = _chain(neighbours, u, v)
        if chain:
            raise DataError(f"{where}: keeps {u} and {v} apart, but merges join them: {', '.join(chain)}; remove one")


def _chain(neighbours: Mapping[int, Sequence[tuple[int, str]]], start: int, goal: int) -> list[str]:
    """Return where the merges of a shortest chain from ``start`` to ``goal`` stand; empty if there is none."""
    before: dict[int, tuple[int, str]] = {start: (start, "")}
    waiting = deque([start])
    while waiting and goal not in before:
        here = waiting.popleft()
        for there, where in neighbours.get(here, ()):
            if there not in before:
                before[there] = (here, where)
                waiting.append(there)
    chain, here = [], goal
    while here != start and here in before:
        here, where = before[here]
        chain.append(where)
    return chain[::-1]
