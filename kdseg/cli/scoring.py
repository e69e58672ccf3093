"""Commands of the rules that score and report."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kdseg.cli.common import FILE, device_name, main, manifests, options_json, workers_count, writes
from kdseg.config import (
    EvaluateOptions,
    FragmentsOptions,
    TrialOptions,
    load,
    parse_options,
    validate,
)
from kdseg.config.tasks import TrainInputs
from kdseg.geometry import Roi


@main.command()
@manifests("fragments", "agglomeration", "labels")
@writes
@options_json
@click.option("--part", is_flag=True, help="Choose the threshold on the part `tune_roi` of the options.")
@workers_count
def sweep(
    fragments: Path,
    agglomeration: Path,
    labels: Path,
    manifest: Path,
    options: str,
    part: bool,
    workers: int,
    overwrite: bool,
) -> None:
    """VOI and ARAND at every threshold."""
    from kdseg.evaluation import sweep as stage

    section = parse_options(EvaluateOptions, options)
    chosen = Roi(section.tune_roi.offset, section.tune_roi.shape) if part and section.tune_roi else None
    stage.run(fragments, agglomeration, labels, manifest, section, part=chosen, workers=workers, overwrite=overwrite)


@main.command()
@manifests("segmentation", "labels")
@click.option("--sweep", type=FILE, help="Manifest of this volume's sweep; its best row is noted too.")
@click.option("--name", required=True, help="Of the model, for the report.")
@click.option("--volume", required=True, help="Of the volume, for the report.")
@writes
@options_json
@workers_count
def score(
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
    """VOI and ARAND of a segmentation of the workflow."""
    from kdseg.evaluation import score as stage

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
@click.option("--config", required=True, help="The whole configuration, as JSON or as the path of a YAML file.")
@click.option("--out", required=True, type=FILE, help="HTML file to write.")
def report(config: str, out: Path) -> None:
    """The page of a run."""
    from kdseg.report import stage

    stage.run(validate(json.loads(config)) if config.startswith("{") else load(Path(config)), out)


@main.command()
@manifests("model")
@click.option("--inputs", required=True, help="Manifests of the volumes by role, as JSON.")
@click.option("--name", required=True, help="Of the network, for the report.")
@writes
@options_json
@click.option("--fragments", default="{}", help="The section `fragments`, as JSON: how crops are segmented.")
@device_name
def trial(
    model: Path,
    inputs: str,
    name: str,
    manifest: Path,
    options: str,
    fragments: str,
    device: str,
    overwrite: bool,
) -> None:
    """A network → its scores on crops, in memory, and what its training cost."""
    from kdseg.training import trial as stage

    section, how = parse_options(TrialOptions, options), parse_options(FragmentsOptions, fragments)
    volumes = parse_options(TrainInputs, inputs).volumes
    stage.run(model, manifest, section, volumes, how, name=name, device=device, overwrite=overwrite)


@main.command()
@click.option("--config", required=True, help="The whole configuration, as JSON or as the path of a YAML file.")
@click.option("--out", required=True, type=FILE, help="HTML file to write.")
def compare(config: str, out: Path) -> None:
    """The page that compares methods of distillation."""
    from kdseg.report import compare_stage as stage

    stage.run(validate(json.loads(config)) if config.startswith("{") else load(Path(config)), out)
