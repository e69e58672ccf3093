"""Commands of the rules that make data, networks and predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

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
    FragmentsOptions,
    ModelOptions,
    PredictOptions,
    StorageOptions,
    VolumeOptions,
    parse_cluster,
    parse_options,
)


@main.command()
@click.option("--kind", required=True, type=click.Choice(["raw", "labels", "baseline", "mask"]))
@writes
@options_json
@storage_json
@workers_count
def convert(
    kind: Literal["raw", "labels", "baseline", "mask"],
    manifest: Path,
    options: str,
    storage: str,
    workers: int,
    overwrite: bool,
) -> None:
    """Raw data, labels or a mask of any format → OME-Zarr."""
    from kdseg.stages import convert as stage

    stage.run(
        kind,
        manifest,
        parse_options(VolumeOptions, options),
        parse_options(StorageOptions, storage),
        workers=workers,
        overwrite=overwrite,
    )


@main.command()
@writes
@options_json
@click.option("--offsets", required=True, help="The affinity offsets, as JSON.")
@click.option("--volume", "volumes", multiple=True, type=FILE, help="Manifest of raw data or labels; repeat.")
@click.option("--teacher", "teachers", multiple=True, type=FILE, help="Manifest of a network to distil from; repeat.")
@click.option("--stored", multiple=True, type=FILE, help="Manifest of what a teacher predicts for a volume; repeat.")
@click.option("--instances", multiple=True, type=FILE, help="Manifest of a teacher's segmentation; repeat.")
@click.option("--fragments", default="{}", help="The section `fragments`, as JSON: how validation segments.")
@device_name
@workers_count
def train(
    manifest: Path,
    options: str,
    offsets: str,
    volumes: tuple[Path, ...],
    teachers: tuple[Path, ...],
    stored: tuple[Path, ...],
    instances: tuple[Path, ...],
    fragments: str,
    device: str,
    workers: int,
    overwrite: bool,
) -> None:
    """Volumes → one network."""
    from kdseg.stages import train as stage

    steps = tuple((int(z), int(y), int(x)) for z, y, x in json.loads(offsets))
    stage.run(
        manifest,
        parse_options(ModelOptions, options),
        steps,
        volumes,
        parse_options(FragmentsOptions, fragments),
        teachers=teachers,
        stored=stored,
        instances=instances,
        device=device,
        threads=workers,
        overwrite=overwrite,
    )


@main.command()
@manifests("raw", "model")
@writes
@options_json
@storage_json
@device_name
@gpu_count
@click.option(
    "--product",
    default="affinities",
    type=click.Choice(["affinities", "affinities_flips", "affinities_all", "embedding"]),
    help="Affinities, as they are or averaged over images of each tile, or the embedding.",
)
@workers_count
@cluster_json
def predict(
    raw: Path,
    model: Path,
    manifest: Path,
    options: str,
    storage: str,
    product: Literal["affinities", "affinities_flips", "affinities_all", "embedding"],
    device: str,
    gpus: int,
    workers: int,
    cluster: str,
    overwrite: bool,
) -> None:
    """Raw data and a network → affinities."""
    from kdseg.stages import predict as stage

    stage.run(
        raw,
        model,
        manifest,
        parse_options(PredictOptions, options),
        parse_options(StorageOptions, storage),
        product=product,
        device=device,
        gpus=gpus,
        workers=workers,
        cluster=parse_cluster(cluster),
        overwrite=overwrite,
    )
