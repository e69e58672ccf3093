"""Two results, or two runs → where they agree, where they differ, and what they were made of."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from kdseg.config.questions import DiffTask
from kdseg.errors import DataError, MissingError, StageError, UnreadableError
from kdseg.evaluation.alignment import Alignment
from kdseg.evaluation.difference.objects import Changes
from kdseg.evaluation.difference.volumes import aligned, compare_segments, compare_values
from kdseg.geometry import Roi, VoxelSize
from kdseg.results.claims import differences
from kdseg.results.files import replacing
from kdseg.results.manifests import Manifest, finished, read
from kdseg.running.runner import Place
from kdseg.volumes.volume import open_volume

COLUMNS = (
    *("result", "change", "old", "old_size", "new", "new_size", "voxels"),
    *("z", "y", "x", "z_nm", "y_nm", "x_nm"),
)
"""Columns of the table of changes: see `Changes`; the place is the first voxel that old and new object share."""
_MEASURED = frozenset({"seconds", "peak_mb", "mvox_per_s", "workers", "device"})
"""Names of what a stage notes of how it ran, not of what it found."""
_ROWS = 1 << 14
"""Rows of the table that are made at once."""
_Pair = tuple[Manifest, Manifest]
"""A result, old and new."""
_Changed = tuple[Changes, Alignment]
"""Objects that changed, and where they lie."""


def run(task: DiffTask) -> dict[str, Any]:
    """Compare two results, or all results of two runs that have the same path below them.

    Returns:
        JSON values: ``same``, whether all results are in both and differ in nothing but the names of objects;
        ``only_old`` and ``only_new``, names; and ``results``, one entry each: ``name``, ``stage``, ``made_of``, what
        differs in options, inputs, weights and version; ``state``: identical, renamed, different, not comparable,
        unreadable, with ``why`` of the last two; and what `_volumes` says, of results that are numbers alone what
        differs of these, ``stats``. Of a result whose manifest is damaged there is no ``stage``.

    Raises:
        MissingError: if nothing was made in one of the two.
        DataError: if one is a manifest and the other one a folder.
    """
    pairs, only_old, only_new = _pairs(task.old, task.new)
    found = list[dict[str, Any]]()
    with _table(task.out) as table:
        for name, pair in pairs:
            if isinstance(pair, UnreadableError):
                found.append({"name": name, "stage": None, "made_of": [], "state": "unreadable", "why": str(pair)})
                continue
            one = {"name": name, "stage": pair[1].stage, "made_of": list(_made_of(*pair))}
            state, changed = _compared(task, pair)
            found.append(one | state)
            if changed is not None:
                _write(table, name, *changed)
    same = all(one["state"] in ("identical", "renamed") for one in found) and not (only_old or only_new)
    return {"same": same, "only_old": only_old, "only_new": only_new, "results": found}


def _pairs(old: Path, new: Path) -> tuple[list[tuple[str, _Pair | UnreadableError]], list[str], list[str]]:
    """Return the results that are in both, in the order in which they were made, and the names of the others.

    Those of which a manifest is damaged come last.
    """
    if old.suffix == ".json" and new.suffix == ".json":
        name = new.stem if old.stem == new.stem else f"{old.stem} → {new.stem}"
        return [(name, (read(old), read(new)))], [], []
    if ".json" in (old.suffix, new.suffix):
        raise DataError(f"got {old} and {new}, expected two manifests or two folders of results")
    known = [{str(one.relative_to(run).with_suffix("")): one for one in finished(run)} for run in (old, new)]
    both, damaged = list[tuple[str, _Pair]](), list[tuple[str, UnreadableError]]()
    for name in sorted(known[0].keys() & known[1].keys()):
        try:
            both.append((name, (read(known[0][name]), read(known[1][name]))))
        except UnreadableError as error:
            damaged.append((name, error))
    both.sort(key=lambda one: one[1][0].finished)
    return [*both, *damaged], sorted(known[0].keys() - known[1].keys()), sorted(known[1].keys() - known[0].keys())


def _made_of(old: Manifest, new: Manifest) -> Iterator[str]:
    """Yield what differs in what two results are made of, in words."""
    before, now = ({"stage": one.stage, "options": one.options, "inputs": one.inputs} for one in (old, new))
    if old.stage == new.stage:
        yield from differences(before, now)
    else:  # whose options have little in common
        yield f"made by `kdseg {old.stage}`, now by `kdseg {new.stage}`"
    weights = [one.stats.get("weights") for one in (old, new)]
    if weights[0] != weights[1]:
        yield f"weights were {weights[0] or 'none'}, are {weights[1] or 'none'}"
    if old.version != new.version:
        yield f"kdseg was {old.version}, is {new.version}"


def _compared(task: DiffTask, pair: _Pair) -> tuple[dict[str, Any], _Changed | None]:
    """Return the state of one result, and how its two versions differ."""
    stores = [one.store for one in pair]
    if all(store is None for store in stores):
        before, now = ({key: one.stats[key] for key in one.stats.keys() - _MEASURED} for one in pair)
        found = list(differences(before, now, "stats."))
        return {"state": "different" if found else "identical", "stats": found}, None
    try:
        if all(store is not None and store.suffix == ".zarr" for store in stores):
            return _volumes(task, pair)
        return {"state": "identical" if _same_files(*pair) else "different"}, None
    except (DataError, MissingError) as error:
        return {"state": "not comparable", "why": str(error)}, None
    except (OSError, StageError) as error:  # of the files of a table, or of voxels, in a block
        return {"state": "unreadable", "why": str(error)}, None


def _same_files(old: Manifest, new: Manifest) -> bool:
    """Return whether two results that are tables or networks consist of the same files."""
    if "weights" in old.stats or "weights" in new.stats:
        return bool(old.stats.get("weights") == new.stats.get("weights"))
    one, other = old.result, new.result
    if not (one.is_dir() and other.is_dir()):
        return sorted(old.files.values()) == sorted(new.files.values())
    names = [sorted(path.name for path in folder.iterdir()) for folder in (one, other)]
    return names[0] == names[1] and all((one / name).read_bytes() == (other / name).read_bytes() for name in names[0])


def _volumes(task: DiffTask, pair: _Pair) -> tuple[dict[str, Any], _Changed | None]:
    """Compare two volumes.

    Returns:
        JSON values: ``state``; ``region``, ``[begin, end]`` of what was compared, in voxels from the old volume's first
        one; ``voxels`` in it, ``beyond``, the voxels of each volume outside of it; ``differing`` voxels. Of
        segmentations also ``objects``, ``voi_split``, ``voi_merge``, ``arand`` and the largest ``changes``; of other
        volumes ``box`` and ``largest``. And of segmentations all changes, for the table.
    """
    volumes = [open_volume(one.result) for one in pair]
    if volumes[0].channels != volumes[1].channels:
        counts = [f"{one.channels or 'none'} in {made.path}" for one, made in zip(volumes, pair, strict=True)]
        raise DataError(f"channels: {', '.join(counts)}")
    found, place = aligned(*pair), Place(task.workers)
    beyond = [one.roi.size - found.common.size for one in found.placed]
    region = {"region": _bounds(found.common), "voxels": found.common.size, "beyond": beyond}
    with TemporaryDirectory(prefix="kdseg-") as folder:
        if all(one.dtype == np.uint64 for one in volumes):
            compared = compare_segments(found, task.block, Path(folder), place)
            numbers = compared.numbers._asdict()
            same, differing = numbers.pop("same"), numbers.pop("differing")
            state = "different" if not same or any(beyond) else "renamed" if differing else "identical"
            largest = Changes(*(column[: task.changes] for column in compared.changes))
            errors = {"voi_split": compared.voi_split, "voi_merge": compared.voi_merge, "arand": compared.arand}
            listed = list(_rows(largest, found))
            said = {"state": state, **region, "differing": differing, "objects": numbers, **errors, "changes": listed}
            return said, (compared.changes, found)
        values = compare_values(found, task.block, Path(folder), place)
    state = "different" if values.differing or any(beyond) else "identical"
    box = None if values.box is None else _bounds(values.box)
    return {"state": state, **region, "differing": values.differing, "box": box, "largest": values.largest}, None


def _bounds(roi: Roi) -> list[list[int]]:
    return [list(roi.offset), list(roi.end)]


def _rows(changes: Changes, found: Alignment) -> Iterator[dict[str, Any]]:
    """Yield rows of the table as JSON values, without the name of the result."""
    size: VoxelSize = found.voxel_size or (1.0, 1.0, 1.0)
    for low in range(0, changes.old.size, _ROWS):
        part = [column[low : low + _ROWS] for column in changes]
        voxel = np.stack(np.unravel_index(part[-1].astype(np.int64), found.common.shape), 1) + found.common.offset
        place = np.array(found.origin) + voxel * np.array(size)
        columns = [*part[:-1], *voxel.T, *place.T]
        for row in zip(*(column.tolist() for column in columns), strict=True):
            yield dict(zip(COLUMNS[1:], row, strict=True))


@contextmanager
def _table(out: Path | None) -> Iterator[csv.DictWriter[str] | None]:
    """Open the table of changes, which appears when all is compared."""
    if out is None:
        yield None
        return
    with replacing(out) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        table.writeheader()
        yield table
        text.detach()


def _write(table: csv.DictWriter[str] | None, name: str, changes: Changes, found: Alignment) -> None:
    if table is not None:
        cell = f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name  # no formula of a spreadsheet
        table.writerows({"result": cell, **row} for row in _rows(changes, found))
