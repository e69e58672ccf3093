"""The stages from affinities on, as one call, for tests."""

from __future__ import annotations

import numpy as np

from kdseg.config import (
    AgglomerateOptions,
    EdgesOptions,
    EvaluateOptions,
    FragmentsOptions,
    SegmentOptions,
    StorageOptions,
)
from kdseg.config.tasks import AgglomerateTask, EdgesTask, FragmentsTask, ScoreTask, SegmentTask, SweepTask
from kdseg.evaluation import score
from kdseg.evaluation import sweep as sweep_stage
from kdseg.geometry import pair_slices
from kdseg.results.claims import claim
from kdseg.results.manifests import read
from kdseg.results.tables import read_table
from kdseg.segmentation.agglomeration import stage as agglomerate
from kdseg.segmentation.agglomeration.linkage import Dendrogram, sort_merges
from kdseg.segmentation.fragments import stage as fragments
from kdseg.segmentation.graph import stage as edges
from kdseg.segmentation.graph.rag import Edges
from kdseg.segmentation.graph.rag import merge as merge_edges
from kdseg.segmentation.graph.statistics import Statistics
from kdseg.segmentation.graph.statistics import merge as merge_statistics
from kdseg.segmentation.segments import stage as segment
from kdseg.volumes.inputs import open_input
from kdseg.volumes.volume import create_volume

STORAGE = StorageOptions(chunk=(16, 16, 16), shard=(32, 32, 32), levels=2)
VOXEL_SIZE = (10.0, 10.0, 10.0)
NEAREST = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))


def perfect_affinities(labels, offsets=NEAREST):
    affinities = np.zeros((len(offsets), *labels.shape), np.uint8)
    for c, offset in enumerate(offsets):
        here, there = pair_slices(labels.shape, offset)
        affinities[(c, *here)] = 255 * (labels[here] == labels[there])
    return affinities


def columns_of(folder):
    """Return the columns of all tables of a folder, by name, as bytes; the files themselves say whose they are, too."""
    found = {path.name: read_table(path) for path in sorted(folder.iterdir())}
    return {name: {k: (c.dtype, c.shape, c.tobytes()) for k, c in table.items()} for name, table in found.items()}


def store(manifest, array, offset=(0.0, 0.0, 0.0), **attributes):
    """Write an array as a stage's result: uint8 affinities (c, z, y, x), or a volume (z, y, x)."""
    with claim(manifest, "test", {"sum": int(array.sum())}, {}) as held:
        volume = create_volume(
            held.store,
            shape=array.shape[-3:],
            dtype=array.dtype,
            chunk=STORAGE.chunk,
            shard=STORAGE.shard,
            voxel_size=VOXEL_SIZE,
            offset=offset,
            channels=array.shape[0] if array.ndim == 4 else None,
            attributes=attributes,
        )
        volume.write(volume.roi, array)
        held.stats["voxels"] = volume.roi.size
    return manifest


def voxels(manifest):
    volume = open_input(manifest).volume
    return volume.read(volume.roi)


def run_fragments(folder, affinities, options, workers=1, storage=STORAGE):
    manifest = folder / "fragments.json"
    fragments.run(
        FragmentsTask(affinities=affinities, manifest=manifest, options=options, storage=storage, workers=workers)
    )
    return manifest


MADE = ("fragments", "edges", "agglomeration", "segmentation")


def results_of_stages(folder, affinities, block, cluster):
    """Make fragments, their graph, its dendrogram and the segments, each stage on a cluster; return all bytes."""
    place = {role: folder / f"{role}.json" for role in MADE}
    made, how = {"affinities": affinities, "fragments": place["fragments"]}, {"cluster": cluster}
    fragments.run(FragmentsTask(
        affinities=affinities, manifest=place["fragments"], storage=STORAGE, **how,
        options=FragmentsOptions(block=block, halo=(8, 8, 8)),
    ))  # fmt: skip
    edges.run(EdgesTask(**made, manifest=place["edges"], options=EdgesOptions(block=block), **how))
    agglomerate.run(AgglomerateTask(
        **made, edges=place["edges"], manifest=place["agglomeration"], options=AgglomerateOptions(chunk=block), **how
    ))  # fmt: skip
    segment.run(SegmentTask(
        fragments=place["fragments"], edges=place["edges"], agglomeration=place["agglomeration"], storage=STORAGE,
        manifest=place["segmentation"], options=SegmentOptions(block=block, threshold=0.5), **how,
    ))  # fmt: skip
    return bytes_of_stages(folder)


def bytes_of_stages(folder):
    """Return what `results_of_stages` has left."""
    results = [path for role in MADE for path in read(folder / f"{role}.json").result.rglob("*")]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in results
        if path.is_file() and path.suffix != ".json"
    }


def tables(manifest):
    return [read_table(path) for path in sorted(read(manifest).result.iterdir())]


def as_rows(table: Edges | Dendrogram) -> list[tuple[int, ...]]:
    """Return a table as Python integers, a tuple per row."""
    return [tuple(int(value) for value in row) for row in zip(*table, strict=True)]


def graph(manifest):
    """Return the region graph and the fragments' statistics of all blocks."""
    parts = tables(manifest)
    found = merge_edges(Edges(*(part[name] for name in Edges._fields)) for part in parts)
    sizes = merge_statistics(Statistics(*(part[name] for name in Statistics._fields)) for part in parts)
    return {**found._asdict(), **sizes._asdict()}


def dendrogram(manifest):
    """Return the merges of all nodes."""
    merges = sort_merges(Dendrogram(*(part[name] for name in Dendrogram._fields)) for part in tables(manifest))
    return merges._asdict()


def run_rest(
    folder,
    affinities,
    fragment,
    *,
    block,
    workers=1,
    labels=None,
    engine="exact",
    threshold=0.5,
    chunk=(64, 128, 64),
    edits=None,
    storage=STORAGE,
):
    """Return the tables and the segmentation, and with labels the sweep and the scores."""
    edge, agglomeration, segmentation = (folder / f"{n}.json" for n in ("edges", "agglomeration", "segmentation"))
    edges.run(
        EdgesTask(
            affinities=affinities, fragments=fragment, manifest=edge, options=EdgesOptions(block=block), workers=workers
        )
    )
    options = AgglomerateOptions(engine=engine, thresholds=(0.1, threshold, 0.9), chunk=chunk, edits=edits)
    agglomerate.run(
        AgglomerateTask(
            affinities=affinities,
            fragments=fragment,
            edges=edge,
            manifest=agglomeration,
            options=options,
            workers=workers,
        )
    )
    how = SegmentOptions(block=block, threshold=threshold)
    segment.run(
        SegmentTask(
            fragments=fragment,
            edges=edge,
            agglomeration=agglomeration,
            manifest=segmentation,
            options=how,
            storage=storage,
            workers=workers,
        )
    )
    found = {
        "edges": graph(edge),
        "agglomeration": dendrogram(agglomeration),
        "segmentation": voxels(segmentation),
    }
    if labels is not None:
        scoring = EvaluateOptions(volumes=("a",), tune_on="a", models=("a",), block=block)
        sweep_stage.run(
            SweepTask(
                fragments=fragment,
                agglomeration=agglomeration,
                labels=labels,
                manifest=folder / "sweep.json",
                options=scoring,
                workers=workers,
            )
        )
        score.run(
            ScoreTask(
                segmentation=segmentation,
                labels=labels,
                manifest=folder / "scores.json",
                model="a",
                volume="a",
                options=scoring,
                sweep=folder / "sweep.json",
            )
        )
        found["sweep"] = read(folder / "sweep.json").stats
        found["scores"] = read(folder / "scores.json").stats
    return found


__all__ = [
    "FragmentsOptions",
    "as_rows",
    "bytes_of_stages",
    "perfect_affinities",
    "results_of_stages",
    "run_fragments",
    "run_rest",
    "store",
    "tables",
    "voxels",
]
