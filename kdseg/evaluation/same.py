"""Two segmentations without ground truth: are they the same but for names, and if not, where do they differ."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.config.questions import SameTask
from kdseg.errors import ShapeError
from kdseg.evaluation.alignment import align, as_ids, expect_ids
from kdseg.evaluation.counting import Count, count_blocks, read_count
from kdseg.evaluation.matching import best_matching
from kdseg.evaluation.metrics.contingency import Contingency, Located
from kdseg.evaluation.metrics.scores import scores
from kdseg.geometry import Block, Roi, block_name, blocks
from kdseg.results.tables import read_table, write_table
from kdseg.running.runner import Place, run_blocks
from kdseg.volumes.sources import open_source

Ids = NDArray[np.uint64]


class Matched(NamedTuple):
    """Ids of the first segmentation, uint64 (n,), ascending, and their partners in the second; 0 for 0 and for none."""

    ids: Ids
    partner: Ids


def run(task: SameTask) -> dict[str, Any]:
    """Compare two segmentations, block by block, in two passes: the second only where they differ.

    Returns:
        JSON values: ``same``; ``voxels`` compared and ``differing`` under the best matching; ``first``, the first of
        these in C order (z, y, x), in voxels of ``b``'s grid, or None; ``vi``, ``h_a_given_b`` and ``h_b_given_a`` in
        bits, background counted as one segment; and ``pairs`` that do not match, most voxels first: ids ``a``, ``b``,
        ``voxels`` in both, ``size_a``, ``size_b``, ``at`` the first voxel of the overlap.

    Raises:
        ShapeError: if, without ``roi``, they cover different voxels.
    """
    a, b, where = task.a, task.b, Place(task.workers)
    sources = [open_source(address, task.sections) for address in (b, a)]
    for source in sources:
        expect_ids(source, "the segments of")
    aligned = align(*sources)
    second, first = aligned.placed
    if task.roi is None and first.roi != second.roi:
        raise ShapeError(
            f"{a} covers {first.roi} and {b} covers {second.roi}, in voxels of the second: name a region of both with "
            f"--roi, e.g. voxels:{','.join(f'{o}:{e}' for o, e in _ends(aligned.common))}"
        )
    total = aligned.common if task.roi is None else aligned.region(task.roi)
    what = Count(first, second, total, task.block, ignore_labels=())
    with TemporaryDirectory(prefix="kdseg-") as name:
        folder = Path(name)
        count_blocks(what, folder / "count", folder / "count.parquet", place=where)
        table = read_count(folder / "count.parquet")
        matched = best_matching(table)
        listed, at = _differences(what, table, matched, folder, where, task.pairs)
    numbers = scores(table)
    return {
        "same": bool(matched.all()),
        "voxels": total.size,
        "differing": int(table.count[~matched].sum()),
        "first": at,
        "vi": numbers.voi,
        "h_a_given_b": numbers.voi_split,
        "h_b_given_a": numbers.voi_merge,
        "pairs": listed,
    }


def _ends(roi: Roi) -> list[tuple[int, int]]:
    return list(zip(roi.offset, roi.end, strict=True))


def _differences(
    what: Count, table: Contingency | Located, matched: NDArray[np.bool_], folder: Path, where: Place, pairs: int
) -> tuple[list[dict[str, Any]], list[int] | None]:
    """Return the largest pairs that do not match, and the first voxel of any."""
    if matched.all():
        return [], None
    ids = np.unique(table.segment)
    partner = np.zeros(ids.size, np.uint64)
    partner[np.searchsorted(ids, table.segment[matched])] = table.label[matched]
    done = folder / "differ"
    function = partial(_first_voxels, what, folder / "count", Matched(ids, partner), done)
    run_blocks("differences", what.roi, what.block, function, where, done)
    parts = [read_table(done / block_name(block.index)) for block in blocks(what.roi, what.block)]
    a, b, place = (np.concatenate([part[name] for part in parts]) for name in ("a", "b", "place"))
    order = np.argsort(place)
    a, b, place = a[order], b[order], place[order]
    wrong = np.flatnonzero(~matched)
    largest = wrong[np.argsort(table.count[wrong], kind="stable")[::-1][:pairs]]
    sizes = [dict(zip(*_sizes(column, table.count), strict=True)) for column in (table.segment, table.label)]
    listed = []
    for row in largest.tolist():
        one, other = int(table.segment[row]), int(table.label[row])
        at = int(place[(a == table.segment[row]) & (b == table.label[row])][0])
        pair = {"a": one, "b": other, "voxels": int(table.count[row])}
        listed.append({**pair, "size_a": sizes[0][one], "size_b": sizes[1][other], "at": _voxel(at, what.roi)})
    return listed, _voxel(int(place[0]), what.roi)


def _first_voxels(what: Count, counts: Path, matched: Matched, done: Path, block: Block) -> None:
    """Find the first voxel of each pair of the block that does not match; most blocks have none, and are not read."""
    rows = read_table(counts / block_name(block.index))
    none = np.empty(0, np.uint64)
    found = {"a": none, "b": none, "place": none}
    if not _match(matched, rows["segment"], rows["label"]).all():
        a = as_ids(what.segmentation.read(block.roi), "the segments").ravel()
        b = as_ids(what.labels.read(block.roi), "the segments").ravel()
        places = np.flatnonzero(~_match(matched, a, b))
        a, b = a[places], b[places]
        order = np.lexsort((places, b, a))
        a, b, places = a[order], b[order], places[order]
        new = np.concatenate(([True], (a[1:] != a[:-1]) | (b[1:] != b[:-1])))
        voxel = np.unravel_index(places[new], block.roi.shape)
        z, y, x = (v + o - t for v, o, t in zip(voxel, block.roi.offset, what.roi.offset, strict=True))
        place = (z * what.roi.shape[1] + y) * what.roi.shape[2] + x
        found = {"a": a[new], "b": b[new], "place": place.astype(np.uint64)}
    write_table(done / block_name(block.index), found)


def _match(matched: Matched, a: Ids, b: Ids) -> NDArray[np.bool_]:
    partner = matched.partner[np.searchsorted(matched.ids, a)]
    return np.asarray((partner == b) & ((partner > 0) | (a == 0)))


def _sizes(ids: Ids, count: Ids) -> tuple[list[int], list[int]]:
    distinct, row = np.unique(ids, return_inverse=True)
    size = np.zeros(distinct.size, np.uint64)
    np.add.at(size, row, count)
    return distinct.tolist(), size.tolist()


def _voxel(place: int, roi: Roi) -> list[int]:
    index = np.unravel_index(place, roi.shape)
    return [int(i) + o for i, o in zip(index, roi.offset, strict=True)]
