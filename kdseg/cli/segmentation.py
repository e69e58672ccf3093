"""Commands of the rules from affinities to neurons."""

from __future__ import annotations

from pathlib import Path

import click

from kdseg.cli.common import FILE, main, manifests, options_json, storage_json, workers_count, writes
from kdseg.config import (
    AgglomerateOptions,
    EdgesOptions,
    FragmentsOptions,
    SegmentOptions,
    StorageOptions,
    parse_options,
)


@main.command()
@manifests("affinities")
@click.option("--mask", type=FILE, help="Manifest of a volume that is 0 where there is no tissue.")
@writes
@options_json
@storage_json
@workers_count
def fragments(
    affinities: Path, mask: Path | None, manifest: Path, options: str, storage: str, workers: int, overwrite: bool
) -> None:
    """Affinities → supervoxels."""
    from kdseg.stages import fragments as stage

    section, layout = parse_options(FragmentsOptions, options), parse_options(StorageOptions, storage)
    stage.run(affinities, manifest, section, layout, mask=mask, workers=workers, overwrite=overwrite)


@main.command()
@manifests("affinities", "fragments")
@writes
@options_json
@workers_count
def edges(affinities: Path, fragments: Path, manifest: Path, options: str, workers: int, overwrite: bool) -> None:
    """Affinities and supervoxels → the region graph."""
    from kdseg.stages import edges as stage

    section = parse_options(EdgesOptions, options)
    stage.run(affinities, fragments, manifest, section, workers=workers, overwrite=overwrite)


@main.command()
@manifests("affinities", "fragments", "edges")
@writes
@options_json
@workers_count
def agglomerate(
    affinities: Path, fragments: Path, edges: Path, manifest: Path, options: str, workers: int, overwrite: bool
) -> None:
    """The region graph → the dendrogram, node by node of a tree."""
    from kdseg.stages import agglomerate as stage

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
    from kdseg.stages import segment as stage

    section, layout = parse_options(SegmentOptions, options), parse_options(StorageOptions, storage)
    stage.run(fragments, edges, agglomeration, sweep, manifest, section, layout, workers=workers, overwrite=overwrite)
