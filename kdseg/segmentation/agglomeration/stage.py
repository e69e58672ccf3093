"""Region graph → dendrogram, node by node of a tree."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdseg.config import AgglomerateOptions
from kdseg.config.tasks import AgglomerateTask
from kdseg.errors import ConfigError, DataError
from kdseg.geometry import Block, Roi, Triple, block_name, blocks, grid_shape
from kdseg.results.claims import Claim, claim
from kdseg.results.manifests import Manifest, expect_made_of, expect_stage, file_fingerprint, read
from kdseg.results.tables import read_table, write_table
from kdseg.running.runner import Place, place_of, run_blocks
from kdseg.segmentation.agglomeration.contraction import Rows
from kdseg.segmentation.agglomeration.edits import Links, check_known, fragments_at, read_edits, resolve
from kdseg.segmentation.agglomeration.linkage import Dendrogram, rows_of
from kdseg.segmentation.agglomeration.store import table_path
from kdseg.segmentation.agglomeration.tree import Layout, decide, inside, layout, node_of
from kdseg.segmentation.graph.details import Details
from kdseg.segmentation.graph.edge_table import from_columns, join, to_columns
from kdseg.segmentation.graph.rag import Edges
from kdseg.segmentation.threshold import least_mean
from kdseg.segmentation.tuned import with_tuned_options
from kdseg.segmentation.waterz import waterz_segments
from kdseg.volumes.affinities import affinity_offsets
from kdseg.volumes.volume import Volume, open_volume

WATERZ_LIMIT = 1024**3
"""Voxels above which waterz's one-shot engine is refused: it holds everything in memory as floats."""


@dataclass(frozen=True)
class Work:
    """Arguments of `leaf` and `node` that are equal for all; small, sent with every node.

    Attributes:
        edges: folder of the tables of edges.
        edge_block: their grid.
        where: layout of the tree.
        threshold: score up to which is merged.
        percent: which quantile is the score; none: the mean.
        out: folder of the merges.
        private: folder of the user's links, and of what each node hands on.
    """

    edges: Path
    edge_block: Triple
    where: Layout
    threshold: float
    percent: int | None
    out: Path
    private: Path


def run(task: AgglomerateTask) -> None:
    """Merge fragments, best first, up to the largest threshold.

    Beside the manifest lies a folder with one table of merges per node of the tree, see `store`. The merges do not
    depend on the chunk, the number of workers or the order: they are those of one pass over the whole graph.

    Raises:
        ConfigError: if edits contradict each other, or edits or missing affinities do not go with the engine.
        DataError: if the engine ``waterz`` is asked for a volume too large for one block, or a table of edges is
            missing or damaged, or edits contradict each other or name fragments that do not exist, or the manifests are
            of several runs.
    """
    task = with_tuned_options(task, "agglomerate")
    options, fragments, edges, affinities = task.options, task.fragments, task.edges, task.affinities
    if affinities is None and options.engine == "waterz":
        raise ConfigError(
            "agglomerate.engine waterz needs the affinities of the whole volume: use `exact`, or store them"
        )
    named = {"affinities": affinities, "fragments": fragments, "edges": edges}
    made = {name: read(path) for name, path in named.items() if path is not None}
    inputs = {name: one.fingerprint for name, one in made.items()}
    expect_stage(edges, "edges")
    expect_made_of(edges, fragments=fragments, **({} if affinities is None else {"affinities": affinities}))
    if options.edits is not None:
        if options.engine == "waterz":
            raise ConfigError("agglomerate.edits need the engine `exact`: waterz knows no links of a user")
        inputs["edits"] = file_fingerprint(Path(options.edits))
    made_of = options.model_dump(mode="json", exclude={"edits"})
    source = open_volume(made["fragments"].result)
    chunk = source.shape if options.engine == "waterz" else options.chunk
    where = layout(source.shape, chunk, made["fragments"].block, made["edges"].block)
    links = _links(source, where, options)
    with claim(task.manifest, "agglomerate", made_of, inputs, tables=True, overwrite=task.overwrite) as held:
        held.tables.mkdir(exist_ok=True)
        if options.engine == "waterz" and affinities is not None:
            _one_shot(open_volume(made["affinities"].result), source, options, held)
        else:
            write_table(held.private / "links.npz", links._asdict())
            _tree(made["edges"], where, options, held, place_of(task))
        held.stats.update(
            voxels=source.roi.size,
            shape=where.shape,
            block=where.block,
            chunk=where.chunk,
            thresholds=list(options.thresholds),
        )


def _tree(edges: Manifest, where: Layout, options: AgglomerateOptions, held: Claim, place: Place) -> None:
    threshold = options.thresholds[-1]
    work = Work(edges.result, edges.block, where, threshold, options.percent, held.tables, held.private)
    roi = Roi((0, 0, 0), where.shape)
    for level in range(where.levels):
        function = partial(node, work, level) if level else partial(leaf, work)
        progress = held.private / f"level{level}"
        run_blocks(f"agglomerate, level {level}", roi, where.node(level), function, place, progress)


def leaf(work: Work, block: Block) -> None:
    """Make the merges of one leaf from its tables of edges."""
    where = work.where
    tables = [read_table(work.edges / block_name(part.index)) for part in blocks(block.roi, work.edge_block)]
    edges = join(from_columns(Edges, table) for table in tables)
    detailed = all("touch" in table for table in tables)
    details = join(from_columns(Details, table) for table in tables) if detailed else None
    fragment = np.unique(np.concatenate([table["fragment"] for table in tables]))
    links = Links(**read_table(work.private / "links.npz"))
    must, cannot = (_mine(pairs, where, block.index) for pairs in links)
    merges, left = decide(
        rows_of(edges, details, must=must, cannot=cannot), where, 0, block.index, work.threshold, work.percent
    )
    write_table(_rows_path(work.private, 0, block.index), to_columns(left))
    write_table(table_path(work.out, 0, block.index), {**merges._asdict(), "fragment": fragment})


def node(work: Work, level: int, block: Block) -> None:
    """Make the merges of one node from what its children left."""
    children = blocks(block.roi, work.where.node(level - 1))
    rows = join(from_columns(Rows, read_table(_rows_path(work.private, level - 1, child.index))) for child in children)
    merges, left = decide(rows, work.where, level, block.index, work.threshold, work.percent)
    write_table(_rows_path(work.private, level, block.index), to_columns(left))
    write_table(table_path(work.out, level, block.index), merges._asdict())


def _rows_path(private: Path, level: int, index: Triple) -> Path:
    return private / f"rows_{level}_{block_name(index)}"


def _links(fragments: Volume, where: Layout, options: AgglomerateOptions) -> Links:
    """Return the edits of a user, of fragments that exist."""
    if options.edits is None:
        return Links(np.empty((0, 2), np.uint64), np.empty((0, 2), np.uint64))
    links = resolve(read_edits(Path(options.edits)), partial(fragments_at, fragments))
    named = np.concatenate([links.merge.ravel(), links.split.ravel()])
    most = prod(grid_shape(where.shape, where.block)) * prod(where.block)
    cells = node_of(named[(named > 0) & (named <= np.uint64(most))], where._replace(chunk=where.block), 0)
    ids = [np.empty(0, np.uint64)]
    for z, y, x in np.unique(cells, axis=0).tolist():
        cell = Roi((z * where.block[0], y * where.block[1], x * where.block[2]), where.block)
        ids.append(np.unique(fragments.read(cell.intersect(fragments.roi))))
    check_known(links, np.concatenate(ids))
    return links


def _mine(links: NDArray[np.uint64], where: Layout, index: Triple) -> NDArray[np.uint64]:
    """Return the links with an end in the leaf ``index``."""
    return links[inside(links.ravel(), where, 0, index).reshape(-1, 2).any(axis=1)]


def _one_shot(source: Volume, labelled: Volume, options: AgglomerateOptions, held: Claim) -> None:
    """Run waterz on affinities and fragments, and write what it merges from each threshold to the next."""
    if source.roi.size > WATERZ_LIMIT:
        raise DataError(
            f"agglomerate.engine waterz takes a volume in one block of at most {WATERZ_LIMIT} voxels, got "
            f"{source.roi.size}: use the engine `exact`"
        )
    voxels = labelled.read(labelled.roi)
    ids, first = np.unique(voxels.ravel(), return_index=True)
    ids, first = ids[ids > 0], first[ids > 0]
    found = waterz_segments(source.read(source.roi), voxels, affinity_offsets(source), options.thresholds)
    names = [ids, *(one.ravel()[first] for one in found)]
    parts = []
    for threshold, (before, after) in zip(options.thresholds, pairwise(names), strict=True):
        merged, one = np.unique(before, return_index=True)
        joined = after[one] != merged
        a, b = after[one][joined], merged[joined]
        fraction = (np.full(a.size, value, np.uint64) for value in least_mean(threshold))
        parts.append(Dendrogram(a, b, *fraction))
    merges = Dendrogram(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    write_table(table_path(held.tables, 0, (0, 0, 0)), {**merges._asdict(), "fragment": ids})
