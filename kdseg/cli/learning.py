"""Commands of the rules that make data, networks and predictions."""

from __future__ import annotations

import json
import re
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
from kdseg.config.tasks import TrainInputs
from kdseg.geometry import Roi


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
    from kdseg.volumes import convert as stage

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
@click.option("--inputs", required=True, help="Manifests of volumes and teachers by role, as JSON.")
@click.option("--name", required=True, help="Of the network, noted in its file.")
@click.option("--fragments", default="{}", help="The section `fragments`, as JSON: how validation segments.")
@device_name
@workers_count
def train(
    manifest: Path,
    options: str,
    offsets: str,
    inputs: str,
    name: str,
    fragments: str,
    device: str,
    workers: int,
    overwrite: bool,
) -> None:
    """Volumes → one network."""
    from kdseg.training import stage

    steps = tuple((int(z), int(y), int(x)) for z, y, x in json.loads(offsets))
    stage.run(
        manifest,
        parse_options(ModelOptions, options),
        steps,
        parse_options(TrainInputs, inputs),
        parse_options(FragmentsOptions, fragments),
        name=name,
        device=device,
        threads=workers,
        overwrite=overwrite,
    )


def _region(ctx: click.Context, option: click.Parameter, text: str | None) -> Roi | None:
    """Return a box of voxels; whether it lies in the volume is found out later."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+):(\d+),(\d+):(\d+),(\d+):(\d+)", text.replace(" ", ""))
    bounds = [int(v) for v in match.groups()] if match else []
    low, high = bounds[::2], bounds[1::2]
    if not match or any(e <= o for o, e in zip(low, high, strict=True)):
        raise click.BadParameter(f"expected z0:z1,y0:y1,x0:x1 with z0 < z1 and so on, got {text!r}", ctx, option)
    return Roi((low[0], low[1], low[2]), (high[0] - low[0], high[1] - low[1], high[2] - low[2]))


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
@click.option("--mask", type=FILE, help="Manifest of a volume; tiles where it is 0 throughout are not predicted.")
@click.option("--roi", callback=_region, help="Predict these voxels only: z0:z1,y0:y1,x0:x1.")
@workers_count
@cluster_json
def predict(
    raw: Path,
    model: Path,
    manifest: Path,
    options: str,
    storage: str,
    product: Literal["affinities", "affinities_flips", "affinities_all", "embedding"],
    mask: Path | None,
    roi: Roi | None,
    device: str,
    gpus: int,
    workers: int,
    cluster: str,
    overwrite: bool,
) -> None:
    """Raw data and a network → affinities."""
    from kdseg.prediction import stage

    stage.run(
        raw,
        model,
        manifest,
        parse_options(PredictOptions, options),
        parse_options(StorageOptions, storage),
        product=product,
        mask=mask,
        roi=roi,
        device=device,
        gpus=gpus,
        workers=workers,
        cluster=parse_cluster(cluster),
        overwrite=overwrite,
    )
