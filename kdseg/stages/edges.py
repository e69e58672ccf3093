"""Affinities and fragments → the region graph: one table of edges, one of fragments."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from kdseg.blockwise import run_blocks
from kdseg.config import EdgesOptions
from kdseg.errors import ShapeError
from kdseg.geometry import Block, Triple, blocks, offsets_reach
from kdseg.manifests import claim, read, store_of
from kdseg.segmentation.rag import Edges, block_edges, merge
from kdseg.tables import read_table, write_table
from kdseg.volume import affinity_offsets, open_volume

NEAREST = 3
"""Channels that link touching voxels; only those make a contact."""


def run(
    affinities: Path,
    fragments: Path,
    manifest: Path,
    options: EdgesOptions,
    *,
    workers: int = 1,
    overwrite: bool = False,
) -> None:
    """Sum the affinities between touching fragments, exactly, as integers.

    The table beside the manifest holds the edges ``u < v``, ``affinity_sum`` (1/255) and ``contact``
    (number of voxel pairs), sorted, and the fragments ``fragment`` with their ``size`` in voxels. It does
    not depend on the block: a pair of voxels is counted by the block that holds its reference voxel.

    Args:
        affinities: manifest of uint8 affinities.
        fragments: manifest of the fragments made of them.
        manifest: to write; the table lies beside it.
        options: block.
        workers: processes; the result does not depend on them.
        overwrite: clear what other options or inputs made.

    Raises:
        ShapeError: if fragments and affinities do not cover the same voxels.
        ClaimError: if the store holds something else, or is being written.
        StageError: if a block failed.
    """
    source, labelled = open_volume(store_of(affinities)), open_volume(store_of(fragments))
    if source.shape != labelled.shape:
        raise ShapeError(f"affinities cover {source.shape} voxels, fragments {labelled.shape}: they are of two runs")
    inputs = {"affinities": read(affinities)["fingerprint"], "fragments": read(fragments)["fingerprint"]}
    with claim(manifest, "edges", {}, inputs, overwrite=overwrite) as held:
        parts = held.progress(options.block)
        function = partial(edges_block, store_of(affinities), store_of(fragments), parts)
        run_blocks("edges", source.roi, options.block, function, workers=workers, done=parts)
        tables = [read_table(_part(parts, block.index)) for block in blocks(source.roi, options.block)]
        edges = merge(Edges(t["u"], t["v"], t["affinity_sum"], t["contact"]) for t in tables)
        fragment, size = _add_sizes(tables)
        write_table(held.table, {**edges._asdict(), "fragment": fragment, "size": size})
        held.stats.update(voxels=source.roi.size, fragments=len(fragment), edges=len(edges.u))


def edges_block(affinities: Path, fragments: Path, parts: Path, block: Block) -> None:
    """Compute and write the table of one block."""
    source, labelled = open_volume(affinities), open_volume(fragments)
    offsets = affinity_offsets(source)[:NEAREST]
    read_roi = block.roi.grow(*offsets_reach(offsets)).intersect(source.roi)
    owned = block.roi.slices(read_roi)
    ids = labelled.read(read_roi)
    edges = block_edges(ids, source.read(read_roi)[:NEAREST], offsets, owned)
    fragment, size = np.unique(ids[owned], return_counts=True)
    inside = fragment > 0
    table = {**edges._asdict(), "fragment": fragment[inside], "size": size[inside].astype(np.uint64)}
    write_table(_part(parts, block.index), table)


def _part(parts: Path, index: Triple) -> Path:
    return parts / ("_".join(str(i) for i in index) + ".npz")


def _add_sizes(
    tables: list[dict[str, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    ids = np.concatenate([t["fragment"] for t in tables])
    sizes = np.concatenate([t["size"] for t in tables])
    unique, inverse = np.unique(ids, return_inverse=True)
    total = np.zeros(len(unique), np.uint64)
    np.add.at(total, inverse, sizes)
    return unique, total
