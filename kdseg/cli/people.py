"""Commands for people."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import click

from kdseg.cli.common import FILE, device_name, main, workers_count
from kdseg.config import (
    StorageOptions,
    VolumeOptions,
    load,
    parse_options,
    schema,
)
from kdseg.errors import ConfigError


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--shape", nargs=3, type=click.IntRange(1), default=(128, 256, 256), help="Voxels, z y x.")
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option("--voxel-size", nargs=3, type=float, default=(10.0, 10.0, 10.0), help="nm, z y x.")
@click.option("--offset", nargs=3, type=int, default=(0, 0, 0), help="First voxel of the endless volume.")
@click.option("--unstored", is_flag=True, help="Write small files only: regions are computed whenever they are read.")
@click.option("--overwrite", is_flag=True, help="Clear what other options made.")
@workers_count
def phantom(
    out: Path,
    shape: tuple[int, ...],
    seed: int,
    voxel_size: tuple[float, ...],
    offset: tuple[int, ...],
    unstored: bool,
    workers: int,
    overwrite: bool,
) -> None:
    """Write a neurite phantom to OUT/raw.zarr and OUT/labels.zarr."""
    from kdseg.volumes import convert

    values = {"phantom": {"shape": shape, "seed": seed, "voxel_size": voxel_size, "offset": offset}}
    values["phantom"]["stored"] = not unstored
    options = parse_options(VolumeOptions, json.dumps(values))
    kinds: tuple[Literal["raw", "labels"], ...] = ("raw", "labels")
    for kind in kinds:
        convert.run(kind, out / f"{kind}.json", options, StorageOptions(), workers=workers, overwrite=overwrite)


@main.command()
@click.argument("model", type=FILE)
@click.argument("out", type=FILE)
@click.option("--also", multiple=True, type=click.Choice(["lsd", "embedding"]), help="Another head to export; repeat.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
def export(model: Path, out: Path, also: tuple[str, ...], overwrite: bool) -> None:
    """MODEL (model.json or model.pt) → OUT: .onnx, .pt2 (torch.export), .ts (TorchScript), .pt (float16 weights)."""
    from kdseg.networks.export import export as write

    write(model, out, also=also, overwrite=overwrite)
    click.echo(f"wrote {out}, {out.stat().st_size / 1e6:.2f} MB")


@main.command()
@click.argument("model", type=FILE)
@device_name
@click.option("--memory", default=2000.0, type=click.FloatRange(0), help="MB that a tile may take.")
@click.option("--seconds", default=2.0, type=click.FloatRange(0), help="To spend on each tile and precision.")
@click.option("--json", "as_json", is_flag=True, help="Print all that was measured as JSON.")
def tune(model: Path, device: str, memory: float, seconds: float, as_json: bool) -> None:
    """Measure which tile and precision MODEL (model.json or model.pt) predicts fastest with on this machine.

    The tile and the precision are part of what the affinities are: with others, their last bits may change, and what
    was predicted before is predicted anew.
    """
    from kdseg.prediction import tune as stage

    trials = stage.run(model, device=device, memory_mb=memory, seconds=seconds)
    if as_json:
        click.echo(json.dumps([asdict(trial) for trial in trials], indent=2))
        return
    click.echo(f"{'tile':>13}  {'precision':9}  {'Mvox/s':>13}  {'read/kept':>9}  {'MB':>6}")
    for trial in trials:
        speed = "out of memory" if trial.mvox_per_s is None else f"{trial.mvox_per_s:.2f}"
        tile = "x".join(map(str, trial.tile))
        click.echo(f"{tile:>13}  {trial.precision:9}  {speed:>13}  {trial.read:9.2f}  {trial.memory_mb:6.0f}")
    if trials and trials[0].mvox_per_s is not None:
        if (best := stage.advised(trials)) is not trials[0]:
            click.echo(f"# The fastest would need blocks of {trials[0].block} voxels, which take too much memory.")
        click.echo(f"{best.options}\n# Another tile or precision may change the last bits of the affinities.")
    else:
        click.echo("no tile fits: give more --memory")


@main.command()
@click.argument("manifest", type=FILE)
def clear(manifest: Path) -> None:
    """Remove what the stage of MANIFEST made, e.g. results/x/student/test/affinities.json."""
    from kdseg.results.manifests import clear as remove

    if manifest.suffix != ".json":
        raise ConfigError(f"expected the manifest of a stage (….json), got {manifest}")
    for path in remove(manifest):
        click.echo(f"removed {path}")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--failures", default=3, show_default=True, type=click.IntRange(0), help="Failed blocks to list.")
@click.option("--all", "everything", is_flag=True, help="Also what is finished.")
@click.option("--json", "json_path", type=FILE, help="Write all that is known.")
def status(folder: Path, failures: int, everything: bool, json_path: Path | None) -> None:
    """How far the stages of a run are, e.g. `kdseg status results/mine`; exit 1 if one of them stopped."""
    from kdseg.results.manifests import write_json
    from kdseg.running import status as stage

    found = stage.run(folder)
    for one in found:
        if everything or one.state != "finished":
            click.echo(stage.described(one))
        for line in stage.failures(one, failures):
            click.echo(line)
    count = Counter(one.state for one in found)
    click.echo(", ".join(f"{n} {state}" for state, n in sorted(count.items())))
    if json_path is not None:
        write_json(json_path, [one._asdict() for one in found])
    if count["stopped"]:
        sys.exit(1)


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
