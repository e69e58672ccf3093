"""Affinities and fragments → the region graph: one table of edges and fragments per block."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.config import EdgesOptions
from kdseg.config.tasks import EdgesTask
from kdseg.errors import ConfigError, MissingError, ShapeError
from kdseg.geometry import Block, Offsets, Roi, Triple, block_name, fits_or_covers, offsets_reach
from kdseg.results.claims import claim
from kdseg.results.manifests import Manifest, expect_made_of, read
from kdseg.results.tables import read_table, write_table
from kdseg.running.runner import place_of, run_blocks
from kdseg.segmentation.graph.details import Details, channels_used, detailed_edges
from kdseg.segmentation.graph.edge_table import to_columns
from kdseg.segmentation.graph.faces import Part, joined_edges
from kdseg.segmentation.graph.rag import Edges
from kdseg.segmentation.graph.statistics import block_statistics
from kdseg.segmentation.tuned import with_tuned_options
from kdseg.volumes.affinities import affinity_offsets
from kdseg.volumes.inputs import fingerprints, open_input
from kdseg.volumes.volume import open_volume


class Kept(NamedTuple):
    """Tables that fragments keep of their affinities for the region graph.

    Attributes:
        folder: of one table per cell.
        unit: extent of a cell in voxels.
        offsets: of the nearest affinities.
    """

    folder: Path
    unit: Triple
    offsets: Offsets

    def part(self, index: Triple) -> Part:
        """Return the part of one cell."""
        return Part.of(read_table(self.folder / block_name(index)))


def run(task: EdgesTask) -> None:
    """Sum the affinities between touching fragments, exactly, as integers.

    Each table beside the manifest holds the edges ``u < v``, ``affinity_sum`` (1/255) and ``contact`` (number of
    voxel pairs), sorted, with the options what `kdseg.segmentation.graph.details` adds, and the block's fragments with
    their size, box and centre (`kdseg.segmentation.graph.statistics`). A pair of voxels is counted by the block that
    holds its reference voxel; the block of the other voxel has a row of contact 0.

    Raises:
        ShapeError: if fragments and affinities do not cover the same voxels, or the block is not made of the cells
            that the fragments keep.
        ConfigError: if there are no affinities for the options.
        MissingError: if there are no affinities, and the fragments keep nothing of theirs.
    """
    task = with_tuned_options(task, "edges")
    options = task.options
    fragment = open_input(task.fragments)
    labelled, predicted = fragment.volume, None
    if task.affinities is None:
        if options.long_range or options.histograms:
            raise ConfigError(
                "edges.long_range and edges.histograms need stored affinities (--affinities): fragments of computed "
                "ones keep sums of the nearest only"
            )
        function = partial(joined_block, fragment.store, _kept(read(task.fragments), options, labelled.shape))
    else:
        predicted = open_input(task.affinities)
        if predicted.volume.shape != labelled.shape:
            raise ShapeError(
                f"affinities cover {predicted.volume.shape} voxels, fragments {labelled.shape}: they are of two runs"
            )
        expect_made_of(task.fragments, affinities=task.affinities)
        function = partial(edges_block, predicted.store, fragment.store, options)
    inputs = fingerprints(fragments=fragment, affinities=predicted)
    made_of = options.model_dump(mode="json")
    with claim(task.manifest, "edges", made_of, inputs, tables=True, overwrite=task.overwrite) as held:
        held.tables.mkdir(exist_ok=True)
        write, progress = partial(function, held.tables), held.progress(options.block)
        run_blocks("edges", labelled.roi, options.block, write, place_of(task), progress)
        held.stats.update(voxels=labelled.roi.size)


def edges_block(affinities: Path, fragments: Path, options: EdgesOptions, tables: Path, block: Block) -> None:
    """Compute and write the table of one block."""
    source, labelled = open_volume(affinities), open_volume(fragments)
    every = affinity_offsets(source)
    channels = channels_used(every, options)
    offsets = tuple(every[c] for c in channels)
    below, above = offsets_reach(offsets)
    reach = (max(below[0], above[0]), max(below[1], above[1]), max(below[2], above[2]))
    read_roi = block.roi.grow(reach).intersect(source.roi)
    owned = block.roi.slices(read_roi)
    ids, links = labelled.read(read_roi), source.read(read_roi, channels=channels)
    edges, details = detailed_edges(ids, links, offsets, owned, options)
    _write(tables, block, edges, details, ids, read_roi)


def joined_block(fragments: Path, kept: Kept, tables: Path, block: Block) -> None:
    """Write the table of one block of what the fragments keep of its cells."""
    labelled = open_volume(fragments)
    read_roi = block.roi.grow((1, 1, 1)).intersect(labelled.roi)
    ids = labelled.read(read_roi)
    edges = joined_edges(ids, read_roi, block.roi, kept.unit, kept.offsets, kept.part)
    _write(tables, block, edges, None, ids, read_roi)


def _write(
    tables: Path, block: Block, edges: Edges, details: Details | None, ids: NDArray[np.uint64], read_roi: Roi
) -> None:
    statistics = block_statistics(ids, block.roi.slices(read_roi), read_roi.offset)
    write_table(
        tables / block_name(block.index),
        {**edges._asdict(), **to_columns(details), **statistics._asdict()},
    )


def _kept(fragments: Manifest, options: EdgesOptions, shape: Triple) -> Kept:
    facts, folder = fragments.stats.get("kept"), fragments.path.with_suffix(".tables")
    if facts is None or not folder.exists():
        raise MissingError(
            f"{fragments.path} keeps nothing of its affinities: name them (--affinities), or make the fragments "
            "of raw data and a network (`kdseg fragments --raw --model`)"
        )
    (z, y, x), offsets = facts["unit"], tuple((int(a), int(b), int(c)) for a, b, c in facts["offsets"])
    if not fits_or_covers(options.block, (z, y, x), shape):
        raise ShapeError(
            f"edges.block {options.block} must be a multiple of the shard {(z, y, x)} that {fragments.path} was made "
            f"with, or cover the volume of {shape}"
        )
    return Kept(folder, (z, y, x), offsets)
