"""Region graph, merge tree and fragments → Parquet files for other programs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.config.questions import GraphTask
from kdseg.errors import MissingError, VoxelSizeError
from kdseg.geometry import Triple, VoxelSize, grid_shape
from kdseg.results.files import again
from kdseg.results.manifests import expect_made_of, expect_stage, read
from kdseg.results.parquet import Column, write_parquet
from kdseg.results.tables import read_table
from kdseg.segmentation.graph.rag import Edges
from kdseg.segmentation.graph.rag import merge as merge_edges
from kdseg.segmentation.graph.statistics import Statistics, centroid
from kdseg.segmentation.graph.statistics import merge as merge_statistics
from kdseg.segmentation.proofreading.external_sort import gathered
from kdseg.segmentation.proofreading.supervoxels import least_spatial_bits, pychunkedgraph_ids
from kdseg.volumes.volume import open_volume

log = logging.getLogger(__name__)

U64, I64, F64 = np.uint64, np.int64, np.float64
SUMS = (
    Column("affinity_sum", U64, "sum of the affinities between both, each 0 to 255", "1/255"),
    Column("contact", U64, "number of pairs of voxels that touch", "pairs of voxels"),
)
REGION_GRAPH = (
    Column("u", U64, "smaller fragment id"),
    Column("v", U64, "larger fragment id"),
    *SUMS,
    Column("mean_affinity", F64, "affinity_sum / (255 contact), 0 to 1"),
)
MERGE_TREE = (
    Column("a", U64, "region that keeps its name; a region is named by its smallest fragment id"),
    Column("b", U64, "region merged into it, b > a"),
    *SUMS,
    Column(
        "score",
        F64,
        "1 - affinity_sum / (255 contact); with quantile scores contact is 1; 0 where contact is 0: a user's merge",
    ),
)
FRAGMENTS = (
    Column("fragment", U64, "id; the background 0 is left out"),
    Column("pychunkedgraph", U64, "the same in the layout of PyChunkedGraph"),
    Column("size", U64, "number of voxels", "voxel"),
    Column("begin", I64, "first voxel of the bounding box", "voxel", triple=True),
    Column("end", I64, "first voxel behind the bounding box", "voxel", triple=True),
    Column("centroid", F64, "mean position, in the world", "nm", triple=True),
)


class _World(NamedTuple):
    """Grid that names the fragments, and their voxels."""

    grid: Triple
    block: Triple
    voxel_size: VoxelSize
    offset: VoxelSize


def run(task: GraphTask) -> None:
    """Write `region_graph.parquet`, `merge_tree.parquet` and `fragments.parquet`, each whole or not at all.

    Memory does not grow with the volume but for 16 bytes per block: it holds one table of a block, or
    `external_sort.ROWS` rows (or those of one block, if it has more) and a few copies of them, below 2 GB. While it
    runs, one uncompressed copy of the edges or fragments lies in ``out``.

    Raises:
        MissingError: if a manifest or its tables are missing.
        VoxelSizeError: if the fragments have no voxel size.
    """
    edges, agglomeration, fragments, out = task.edges, task.agglomeration, task.fragments, task.out
    expect_stage(edges, "edges")
    expect_stage(agglomeration, "agglomerate")
    expect_made_of(agglomeration, edges=edges, fragments=fragments)
    expect_made_of(edges, fragments=fragments)
    world = _world(fragments)
    bits = least_spatial_bits(world.grid) if task.spatial_bits is None else task.spatial_bits
    out.mkdir(parents=True, exist_ok=True)
    notes = {"voxel_size_nm": world.voxel_size, "offset_nm": world.offset}
    blocks, nodes = _tables(edges), _tables(agglomeration)
    with write_parquet(out / "region_graph.parquet", REGION_GRAPH, notes) as file:
        for graph in _region_graph(blocks, out, world):
            file.append({**graph._asdict(), "mean_affinity": graph.affinity_sum / (255 * graph.contact)})
        log.info("%d edges", file.rows)
    with write_parquet(out / "merge_tree.parquet", MERGE_TREE, notes) as file:
        for path in nodes:
            table = read_table(path)
            columns = {column.name: table[column.name] for column in MERGE_TREE[:-1]}
            file.append({**columns, "score": _score(table["affinity_sum"], table["contact"])})
        log.info("%d merges", file.rows)
    chunks = {"grid": world.grid, "block": world.block, "spatial_bits": bits}
    with write_parquet(out / "fragments.parquet", FRAGMENTS, {**notes, "pychunkedgraph": chunks}) as file:
        for statistics in _statistics(blocks, out, world):
            names = pychunkedgraph_ids(statistics.fragment, world.grid, world.block, bits)
            place = np.array(world.offset) + centroid(statistics) * np.array(world.voxel_size)
            columns = {name: column for name, column in statistics._asdict().items() if name != "total"}
            file.append({**columns, "pychunkedgraph": names, "centroid": place})
        log.info("%d fragments", file.rows)


def _region_graph(blocks: list[Path], folder: Path, world: _World) -> Iterator[Edges]:
    """Yield the edges, summed over the tables, in ascending ranges of the smaller id."""

    def rows() -> Iterator[NDArray[np.uint64]]:
        for path in blocks:
            table = read_table(path)
            touch = table.get("touch", table["contact"] > 0)
            yield np.column_stack([*(table[name] for name in Edges._fields), touch.astype(np.uint64)])

    for part in _gathered(rows, folder, world):
        u, v, sums, contact, touch = part.T
        graph = merge_edges([Edges(u, v, sums, contact)])
        # others are hints for the agglomeration, without a mean, or linked by long offsets only
        touching = (graph.contact > 0) & (merge_edges([Edges(u, v, touch, touch)]).contact > 0)
        yield Edges(*(column[touching] for column in graph))


def _statistics(blocks: list[Path], folder: Path, world: _World) -> Iterator[Statistics]:
    """Yield the statistics of fragments, summed over the tables, in ascending ranges of ids."""

    def rows() -> Iterator[NDArray[np.uint64]]:
        for path in blocks:
            table = read_table(path)
            # begin and end are never negative: the types fit into one array of unsigned integers
            yield np.column_stack([table[name].astype(np.uint64) for name in Statistics._fields])

    for part in _gathered(rows, folder, world):
        fragment, size, begin, end, total = np.split(part, [1, 2, 5, 8], axis=1)
        boxes = begin.astype(np.int64), end.astype(np.int64)
        yield merge_statistics([Statistics(fragment[:, 0], size[:, 0], *boxes, total)])


def _gathered(rows: Any, folder: Path, world: _World) -> Iterator[NDArray[np.uint64]]:
    return gathered(rows, folder, unit=prod(world.block), units=prod(world.grid))


def _score(sums: NDArray[np.uint64], contact: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return 1 - mean affinity, float64, 0 to 1; 0 where nothing touches, i.e. for merges that a user forced.

    The subtraction is one of integers: a merge at a mean of exactly 0.7 has the score 0.3, and is found below it.
    """
    most = np.uint64(255) * contact
    score = np.zeros(len(sums))
    np.divide(most - sums, most, out=score, where=contact > 0)
    return score


def _tables(manifest: Path) -> list[Path]:
    """Return the tables of a manifest in the order of the numbers in their names."""
    folder = manifest.with_suffix(".tables")
    found = sorted(folder.glob("*.npz"), key=lambda path: [int(part) for part in path.stem.split("_")])
    if not found:
        raise MissingError(f"no tables in {folder}: {again(manifest)}")
    return found


def _world(fragments: Path) -> _World:
    made = read(fragments)
    volume = open_volume(made.result)
    if volume.voxel_size is None:
        raise VoxelSizeError(f"{fragments} has no voxel size")
    return _World(grid_shape(volume.shape, made.block), made.block, volume.voxel_size, volume.offset)
