"""Affinities and fragments → the region graph: one table of edges and fragments per block."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from kdseg.blockwise import run_blocks
from kdseg.config import EdgesOptions
from kdseg.errors import ShapeError
from kdseg.geometry import Block, block_name, offsets_reach
from kdseg.manifests import claim, read, store_of
from kdseg.segmentation.rag import block_edges
from kdseg.segmentation.statistics import block_statistics
from kdseg.tables import write_table
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

    Each table beside the manifest holds the edges ``u < v``, ``affinity_sum`` (1/255) and ``contact`` (number of
    voxel pairs), sorted, and the block's fragments with their size, box and centre
    (`kdseg.segmentation.statistics`). A pair of voxels is counted by the block that holds its reference voxel; the
    block of the other voxel has a row of contact 0.

    Args:
        affinities: manifest of uint8 affinities.
        fragments: manifest of the fragments made of them.
        manifest: to write; the tables lie in the folder beside it.
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
    with claim(manifest, "edges", options.model_dump(mode="json"), inputs, tables=True, overwrite=overwrite) as held:
        held.tables.mkdir(exist_ok=True)
        function = partial(edges_block, store_of(affinities), store_of(fragments), held.tables)
        done = held.progress(options.block)
        run_blocks("edges", source.roi, options.block, function, workers=workers, done=done)
        held.stats.update(voxels=source.roi.size)


def edges_block(affinities: Path, fragments: Path, tables: Path, block: Block) -> None:
    """Compute and write the table of one block."""
    source, labelled = open_volume(affinities), open_volume(fragments)
    offsets = affinity_offsets(source)[:NEAREST]
    below, above = offsets_reach(offsets)
    reach = (max(below[0], above[0]), max(below[1], above[1]), max(below[2], above[2]))
    read_roi = block.roi.grow(reach).intersect(source.roi)
    owned = block.roi.slices(read_roi)
    ids = labelled.read(read_roi)
    edges = block_edges(ids, source.read(read_roi, channels=range(NEAREST)), offsets, owned)
    statistics = block_statistics(ids, owned, read_roi.offset)
    write_table(tables / block_name(block.index), {**edges._asdict(), **statistics._asdict()})
