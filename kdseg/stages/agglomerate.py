"""Region graph → one look-up table, fragment id to segment id, per threshold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdseg.config import AgglomerateOptions
from kdseg.errors import DataError
from kdseg.manifests import claim, read, store_of
from kdseg.segmentation.agglomerate import agglomerate, cut, waterz_segments
from kdseg.segmentation.lut import lut
from kdseg.segmentation.rag import Edges
from kdseg.tables import read_table, write_table
from kdseg.volume import affinity_offsets, open_volume

WATERZ_LIMIT = 1024**3
"""Voxels above which waterz's one-shot engine is refused: it holds everything in memory as floats."""


def run(
    affinities: Path,
    fragments: Path,
    edges: Path,
    manifest: Path,
    options: AgglomerateOptions,
    *,
    overwrite: bool = False,
) -> None:
    """Merge fragments by mean affinity up to each threshold.

    The table beside the manifest holds ``fragment`` (sorted ids), ``thresholds`` and ``lut`` (threshold,
    fragment): the segment of each fragment, named by its smallest fragment. The engine ``exact`` adds the
    dendrogram: ``a``, ``b``, ``affinity_sum``, ``contact`` of each merge, in order.

    Args:
        affinities: manifest of the affinities (read by the engine ``waterz`` only).
        fragments: manifest of the fragments (likewise).
        edges: manifest of the region graph.
        manifest: to write; the table lies beside it.
        options: engine and thresholds; the score of an edge is 1 − mean affinity.
        overwrite: clear what other options or inputs made.

    Raises:
        DataError: if the engine ``waterz`` is asked for a volume too large for one block.
        ClaimError: if the store holds something else, or is being written.
    """
    inputs = {
        "affinities": read(affinities)["fingerprint"],
        "fragments": read(fragments)["fingerprint"],
        "edges": read(edges)["fingerprint"],
    }
    with claim(manifest, "agglomerate", options.model_dump(mode="json"), inputs, overwrite=overwrite) as held:
        table = read_table(store_of(edges))
        thresholds = np.array(options.thresholds)
        if options.engine == "waterz":
            luts = _one_shot(affinities, fragments, table["fragment"], options)
            extra: dict[str, NDArray[np.uint64]] = {}
        else:
            graph = Edges(table["u"], table["v"], table["affinity_sum"], table["contact"])
            dendrogram = agglomerate(graph, max(options.thresholds))
            luts = [lut(table["fragment"], *cut(dendrogram, threshold)) for threshold in options.thresholds]
            extra = dendrogram._asdict()
        result = {"fragment": table["fragment"], "thresholds": thresholds, "lut": np.stack(luts), **extra}
        write_table(held.table, result)
        held.stats.update(
            voxels=read(fragments)["stats"]["voxels"],
            edges=len(table["u"]),
            thresholds=list(options.thresholds),
            segments=[len(np.unique(one)) for one in luts],
        )


def _one_shot(
    affinities: Path, fragments: Path, ids: NDArray[np.uint64], options: AgglomerateOptions
) -> list[NDArray[np.uint64]]:
    source, labelled = open_volume(store_of(affinities)), open_volume(store_of(fragments))
    if source.roi.size > WATERZ_LIMIT:
        raise DataError(
            f"agglomerate.engine waterz takes a volume in one block of at most {WATERZ_LIMIT} voxels, got "
            f"{source.roi.size}: use the engine `exact`"
        )
    offsets = affinity_offsets(source)
    voxels = labelled.read(labelled.roi)
    _, first = np.unique(voxels.ravel(), return_index=True)
    first = first[voxels.ravel()[first] > 0]
    segments = waterz_segments(source.read(source.roi), voxels, offsets, options.thresholds)
    return [_smallest_name(ids, one.ravel()[first]) for one in segments]


def _smallest_name(ids: NDArray[np.uint64], segment: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Name each segment by its smallest fragment; ``ids`` are sorted."""
    _, first, inverse = np.unique(segment, return_index=True, return_inverse=True)
    return ids[first][inverse]
