"""Commands of the rules from affinities, or raw data, to neurons."""

from __future__ import annotations

from pathlib import Path

import click

from kdseg.cli.common import (
    FILE,
    cluster_json,
    device_name,
    gpu_count,
    main,
    manifests,
    options_json,
    storage_json,
    workers_count,
    writes,
)
from kdseg.config import (
    AgglomerateOptions,
    EdgesOptions,
    FragmentsOptions,
    PredictOptions,
    SegmentOptions,
    StorageOptions,
    parse_cluster,
    parse_options,
)

mask_manifest = click.option("--mask", type=FILE, help="Manifest of a volume that is 0 where there is no tissue.")
not_stored = click.option("--affinities", type=FILE, help="Manifest of the affinities; not after `kdseg fuse`.")


@main.command()
@manifests("raw", "model")
@mask_manifest
@writes
@options_json
@click.option("--fragments", default="{}", help="The section `fragments`, as JSON.")
@storage_json
@device_name
@gpu_count
@workers_count
@cluster_json
def fuse(
    raw: Path,
    model: Path,
    mask: Path | None,
    manifest: Path,
    options: str,
    fragments: str,
    storage: str,
    device: str,
    gpus: int,
    workers: int,
    cluster: str,
    overwrite: bool,
) -> None:
    """Raw data and a network → supervoxels, without storing affinities."""
    from kdseg.prediction import fuse as stage

    stage.run(
        raw,
        model,
        manifest,
        parse_options(PredictOptions, options),
        parse_options(FragmentsOptions, fragments),
        parse_options(StorageOptions, storage),
        mask=mask,
        device=device,
        gpus=gpus,
        workers=workers,
        cluster=parse_cluster(cluster),
        overwrite=overwrite,
    )


@main.command()
@manifests("affinities")
@mask_manifest
@writes
@options_json
@storage_json
@workers_count
def fragments(
    affinities: Path, mask: Path | None, manifest: Path, options: str, storage: str, workers: int, overwrite: bool
) -> None:
    """Affinities → supervoxels."""
    from kdseg.segmentation.fragments import stage

    section, layout = parse_options(FragmentsOptions, options), parse_options(StorageOptions, storage)
    stage.run(affinities, manifest, section, layout, mask=mask, workers=workers, overwrite=overwrite)


@main.command()
@not_stored
@manifests("fragments")
@writes
@options_json
@workers_count
def edges(
    affinities: Path | None, fragments: Path, manifest: Path, options: str, workers: int, overwrite: bool
) -> None:
    """Affinities and supervoxels → the region graph."""
    from kdseg.segmentation.graph import stage

    section = parse_options(EdgesOptions, options)
    stage.run(affinities, fragments, manifest, section, workers=workers, overwrite=overwrite)


@main.command()
@not_stored
@manifests("fragments", "edges")
@writes
@options_json
@workers_count
def agglomerate(
    affinities: Path | None, fragments: Path, edges: Path, manifest: Path, options: str, workers: int, overwrite: bool
) -> None:
    """The region graph → the dendrogram, node by node of a tree."""
    from kdseg.segmentation.agglomeration import stage

    section = parse_options(AgglomerateOptions, options)
    stage.run(affinities, fragments, edges, manifest, section, workers=workers, overwrite=overwrite)


@main.command()
@manifests("fragments", "edges", "agglomeration")
@click.option("--sweep", type=FILE, help="Manifest of the sweep that the threshold is chosen from.")
@writes
@options_json
@storage_json
@workers_count
def segment(
    fragments: Path,
    edges: Path,
    agglomeration: Path,
    sweep: Path | None,
    manifest: Path,
    options: str,
    storage: str,
    workers: int,
    overwrite: bool,
) -> None:
    """Supervoxels and the dendrogram → the segmentation."""
    from kdseg.segmentation.segments import stage

    section, layout = parse_options(SegmentOptions, options), parse_options(StorageOptions, storage)
    stage.run(fragments, edges, agglomeration, sweep, manifest, section, layout, workers=workers, overwrite=overwrite)
