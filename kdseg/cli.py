"""The command line: one command per rule of the workflow, and a few for people."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from kdseg import __version__
from kdseg.config import (
    AgglomerateOptions,
    EdgesOptions,
    EvaluateOptions,
    FragmentsOptions,
    ModelOptions,
    PredictOptions,
    SegmentOptions,
    StorageOptions,
    TrialOptions,
    VolumeOptions,
    load,
    parse_options,
    schema,
    validate,
)
from kdseg.errors import ConfigError, KdsegError

F = TypeVar("F", bound=Callable[..., Any])
FILE = click.Path(path_type=Path, dir_okay=False)


class _OneLineErrors(click.Group):
    """Prints an error that was raised on purpose, or by the disk, as one line, and exits with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (KdsegError, OSError, json.JSONDecodeError) as error:
            click.echo(f"kdseg {ctx.invoked_subcommand}: {error}", err=True)
            sys.exit(1)


def _manifests(*names: str) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for name in reversed(names):
            function = click.option(f"--{name}", required=True, type=FILE, help=f"Manifest of the {name}.")(function)
        return function

    return decorate


def _writes(function: F) -> F:
    function = click.option(
        "--overwrite", is_flag=True, envvar="KDSEG_OVERWRITE", help="Clear what other options or inputs made."
    )(function)
    return click.option("--manifest", required=True, type=FILE, help="Manifest to write.")(function)


_options = click.option("--options", required=True, help="The section of the configuration, as JSON.")
_storage = click.option("--storage", default="{}", help="The section `storage`, as JSON.")
_workers = click.option("--workers", default=1, type=click.IntRange(1), help="Processes; changes no result.")
_device = click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")


@click.group(cls=_OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Distil a heavy EM segmentation network into a light one, run it blockwise, score the result.

    Snakemake calls most of these; by hand you need `check`, `clear` and `export`.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("distributed").setLevel(logging.WARNING)


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--shape", nargs=3, type=click.IntRange(1), default=(128, 256, 256), help="Voxels, z y x.")
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option("--voxel-size", nargs=3, type=float, default=(10.0, 10.0, 10.0), help="nm, z y x.")
@click.option("--offset", nargs=3, type=int, default=(0, 0, 0), help="First voxel of the endless volume.")
@click.option("--overwrite", is_flag=True, help="Clear what other options made.")
@_workers
def phantom(
    out: Path,
    shape: tuple[int, ...],
    seed: int,
    voxel_size: tuple[float, ...],
    offset: tuple[int, ...],
    workers: int,
    overwrite: bool,
) -> None:
    """Write a neurite phantom to OUT/raw.zarr and OUT/labels.zarr."""
    from kdseg.stages import convert

    values = {"phantom": {"shape": shape, "seed": seed, "voxel_size": voxel_size, "offset": offset}}
    options = parse_options(VolumeOptions, json.dumps(values))
    kinds: tuple[Literal["raw", "labels"], ...] = ("raw", "labels")
    for kind in kinds:
        convert.run(kind, out / f"{kind}.json", options, StorageOptions(), workers=workers, overwrite=overwrite)


@main.command()
@click.option("--kind", required=True, type=click.Choice(["raw", "labels", "baseline"]))
@_writes
@_options
@_storage
@_workers
def convert(
    kind: Literal["raw", "labels", "baseline"],
    manifest: Path,
    options: str,
    storage: str,
    workers: int,
    overwrite: bool,
) -> None:
    """Raw data or labels of any format → OME-Zarr."""
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
@_writes
@_options
@click.option("--offsets", required=True, help="The affinity offsets, as JSON.")
@click.option("--volume", "volumes", multiple=True, type=FILE, help="Manifest of raw data or labels; repeat.")
@click.option("--teacher", "teachers", multiple=True, type=FILE, help="Manifest of a network to distil from; repeat.")
@click.option("--stored", multiple=True, type=FILE, help="Manifest of what a teacher predicts for a volume; repeat.")
@click.option("--instances", multiple=True, type=FILE, help="Manifest of a teacher's segmentation; repeat.")
@click.option("--fragments", default="{}", help="The section `fragments`, as JSON: how validation segments.")
@_device
@_workers
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
@_manifests("raw", "model")
@_writes
@_options
@_storage
@_device
@click.option("--gpus", default=1, type=click.IntRange(1), help="Processes on CUDA, one GPU each.")
@click.option(
    "--product",
    default="affinities",
    type=click.Choice(["affinities", "affinities_flips", "affinities_all", "embedding"]),
    help="Affinities, as they are or averaged over images of each tile, or the embedding.",
)
@_workers
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
        overwrite=overwrite,
    )


@main.command()
@_manifests("affinities")
@_writes
@_options
@_storage
@_workers
def fragments(affinities: Path, manifest: Path, options: str, storage: str, workers: int, overwrite: bool) -> None:
    """Affinities → supervoxels."""
    from kdseg.stages import fragments as stage

    section, layout = parse_options(FragmentsOptions, options), parse_options(StorageOptions, storage)
    stage.run(affinities, manifest, section, layout, workers=workers, overwrite=overwrite)


@main.command()
@_manifests("affinities", "fragments")
@_writes
@_options
@_workers
def edges(affinities: Path, fragments: Path, manifest: Path, options: str, workers: int, overwrite: bool) -> None:
    """Affinities and supervoxels → the region graph."""
    from kdseg.stages import edges as stage

    section = parse_options(EdgesOptions, options)
    stage.run(affinities, fragments, manifest, section, workers=workers, overwrite=overwrite)


@main.command()
@_manifests("affinities", "fragments", "edges")
@_writes
@_options
def agglomerate(affinities: Path, fragments: Path, edges: Path, manifest: Path, options: str, overwrite: bool) -> None:
    """The region graph → look-up tables, one per threshold."""
    from kdseg.stages import agglomerate as stage

    section = parse_options(AgglomerateOptions, options)
    stage.run(affinities, fragments, edges, manifest, section, overwrite=overwrite)


@main.command()
@_manifests("fragments", "agglomeration")
@click.option("--sweep", type=FILE, help="Manifest of the sweep that the threshold is chosen from.")
@_writes
@_options
@_storage
@_workers
def segment(
    fragments: Path,
    agglomeration: Path,
    sweep: Path | None,
    manifest: Path,
    options: str,
    storage: str,
    workers: int,
    overwrite: bool,
) -> None:
    """Supervoxels and a look-up table → the segmentation."""
    from kdseg.stages import segment as stage

    section, layout = parse_options(SegmentOptions, options), parse_options(StorageOptions, storage)
    stage.run(fragments, agglomeration, sweep, manifest, section, layout, workers=workers, overwrite=overwrite)


@main.command()
@_manifests("fragments", "agglomeration", "labels")
@_writes
@_options
@_workers
def sweep(
    fragments: Path, agglomeration: Path, labels: Path, manifest: Path, options: str, workers: int, overwrite: bool
) -> None:
    """VOI and ARAND at every threshold."""
    from kdseg.stages import evaluate as stage

    section = parse_options(EvaluateOptions, options)
    stage.sweep(fragments, agglomeration, labels, manifest, section, workers=workers, overwrite=overwrite)


@main.command()
@_manifests("segmentation", "labels")
@click.option("--sweep", type=FILE, help="Manifest of this volume's sweep; its best row is noted too.")
@click.option("--name", required=True, help="Of the model, for the report.")
@click.option("--volume", required=True, help="Of the volume, for the report.")
@_writes
@_options
@_workers
def evaluate(
    segmentation: Path,
    labels: Path,
    sweep: Path | None,
    name: str,
    volume: str,
    manifest: Path,
    options: str,
    workers: int,
    overwrite: bool,
) -> None:
    """VOI and ARAND of a segmentation."""
    from kdseg.stages import evaluate as stage

    stage.run(
        segmentation,
        labels,
        manifest,
        parse_options(EvaluateOptions, options),
        sweep=sweep,
        facts={"model": name, "volume": volume},
        workers=workers,
        overwrite=overwrite,
    )


@main.command()
@click.argument("model", type=FILE)
@click.argument("out", type=FILE)
@click.option("--also", multiple=True, type=click.Choice(["lsd", "embedding"]), help="Another head to export; repeat.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
def export(model: Path, out: Path, also: tuple[str, ...], overwrite: bool) -> None:
    """MODEL (model.json or model.pt) → OUT: .onnx, .pt2 (torch.export), .ts (TorchScript), .pt (float16 weights)."""
    from kdseg.export import export as write

    write(model, out, also=also, overwrite=overwrite)
    click.echo(f"wrote {out}, {out.stat().st_size / 1e6:.2f} MB")


@main.command()
@click.option("--config", required=True, help="The whole configuration, as JSON or as the path of a YAML file.")
@click.option("--out", required=True, type=FILE, help="HTML file to write.")
def report(config: str, out: Path) -> None:
    """The page of a run."""
    from kdseg.stages import report as stage

    stage.run(validate(json.loads(config)) if config.startswith("{") else load(Path(config)), out)


@main.command()
@_manifests("model")
@click.option("--volume", "volumes", multiple=True, type=FILE, help="Manifest of raw data or labels; repeat.")
@_writes
@_options
@click.option("--fragments", default="{}", help="The section `fragments`, as JSON: how crops are segmented.")
@_device
def trial(
    model: Path,
    volumes: tuple[Path, ...],
    manifest: Path,
    options: str,
    fragments: str,
    device: str,
    overwrite: bool,
) -> None:
    """A network → its scores on crops, in memory, and what its training cost."""
    from kdseg.stages import trial as stage

    section, how = parse_options(TrialOptions, options), parse_options(FragmentsOptions, fragments)
    stage.run(model, manifest, section, volumes, how, device=device, overwrite=overwrite)


@main.command()
@click.option("--config", required=True, help="The whole configuration, as JSON or as the path of a YAML file.")
@click.option("--out", required=True, type=FILE, help="HTML file to write.")
def compare(config: str, out: Path) -> None:
    """The page that compares methods of distillation."""
    from kdseg.stages import compare as stage

    stage.run(validate(json.loads(config)) if config.startswith("{") else load(Path(config)), out)


@main.command()
@click.argument("manifest", type=FILE)
def clear(manifest: Path) -> None:
    """Remove what the stage of MANIFEST made, e.g. results/x/student/test/affinities.json."""
    from kdseg.manifests import clear as remove

    if manifest.suffix != ".json":
        raise ConfigError(f"expected the manifest of a stage (….json), got {manifest}")
    for path in remove(manifest):
        click.echo(f"removed {path}")


@main.command("schema")
def print_schema() -> None:
    """Print the JSON Schema of a configuration, for editors."""
    click.echo(schema(), nl=False)


@main.command()
@click.argument("path", type=FILE)
def check(path: Path) -> None:
    """Validate a configuration file."""
    config = load(path)
    click.echo(f"{path}: {len(config.volumes)} volumes, {len(config.models)} models, results in {config.results}")
