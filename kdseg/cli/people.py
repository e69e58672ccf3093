"""Commands for people: what a run is doing, and tools beside the workflow."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import yaml
from cyclopts import App, Group, Parameter
from cyclopts.validators import Number

from kdseg.cli.again import commands
from kdseg.cli.generated import add, runs
from kdseg.config import VolumeOptions, load, schema
from kdseg.config.questions import DistilTask, InitTask, NeuronsTask, PhantomTask, PlanTask, PropertiesTask, TuneTask
from kdseg.config.shipped import cards, unknown
from kdseg.config.tasks import ConvertTask
from kdseg.errors import ConfigError, masked


def add_people(app: App, run: Group, look: Group, tools: Group, *, whole: bool) -> None:
    """Add the commands."""
    add(app, "init", InitTask, runs("kdseg.cli.init"), run, "raw", "labels", whole=whole)
    app.command(_check, name="check", group=run)
    app.command(_run, name="run", group=run)
    add(app, "plan", PlanTask, _plan, run, "config", whole=whole)
    add(app, "segment", NeuronsTask, _segment, run, "raw", "out", whole=whole)
    add(app, "distil", DistilTask, _distil, run, whole=whole)
    app.command(_clear, name="clear", group=run)
    app.command(_status, name="status", group=look)
    app.command(_verify, name="verify", group=look)
    app.command(_models, name="models", group=look)
    app.command(_schema, name="schema", group=tools)
    add(app, "phantom", PhantomTask, _phantom, tools, "out", whole=whole)
    add(app, "tune", TuneTask, _tune, tools, "model", whole=whole)
    app.command(_export, name="export", group=tools)
    add(app, "properties", PropertiesTask, _properties, tools, "out", whole=whole)


def _check(path: Path, /, *, no_files: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Validate a configuration file, and the files that it names by their headers; exit 1 if the run would stop.

    All findings are printed, one per line, each with the option to change: errors, at which the run would stop, and
    warnings.

    Args:
        path: of the YAML file.
        no_files: look at the options alone, where data and networks are made later, or lie on another machine.
    """
    config = load(path)
    found = []
    if not no_files:
        from kdseg.planning.check import check

        found = check(config)
    for one in found:
        print(masked(str(one)))
    errors = sum(one.error for one in found)
    networks = f"{len(config.models)} models to train, {len(config.pretrained)} pretrained"
    looked = "files not looked at" if no_files else f"{errors} errors, {len(found) - errors} warnings"
    print(f"{path}: {len(config.volumes)} volumes, {networks}, results in {config.results}; {looked}")
    if errors:
        sys.exit(1)


def _run(
    config: Path,
    /,
    *targets: str,
    cores: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    profile: str | None = None,
) -> None:
    """Run the workflow of CONFIG from any folder, which paths in it are relative to; a line per job, as it goes.

    Killed or not, the same command goes on where it stopped. Snakemake's own output is in a file below .snakemake/log.

    Args:
        config: YAML file.
        targets: of the workflow: rules, or files to be made; default: the report. After `--`: options of Snakemake.
        cores: that jobs share; default: all of this machine, or as the profile says.
        profile: of Snakemake: `slurm`, or a folder with one of your own.
    """
    from kdseg.cli.run import run

    run(config, targets, cores=cores, profile_name=profile)


def _plan(
    task: PlanTask,
    *,
    as_json: Annotated[
        bool, Parameter(name="--json", negative=(), help="Print all that is planned and was timed as JSON.")
    ] = False,
) -> None:
    from kdseg.cli.plan import plan

    plan(task, as_json=as_json)


def _distil(task: DistilTask) -> None:
    from kdseg.cli.distil import distil

    distil(task)


def _segment(task: NeuronsTask) -> None:
    from kdseg.cli.segment import segment

    segment(task)


def _models(
    name: str | None = None,
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """List the trained networks that come with kdseg; of one of them, all that is known.

    Args:
        name: of one.
        as_json: print the cards as JSON.
    """
    found = cards()
    if name is not None and name not in found:
        raise unknown(name)
    chosen = found if name is None else {name: found[name]}
    if as_json:
        print(json.dumps({key: card.model_dump(mode="json") for key, card in chosen.items()}, indent=2))
    elif name is None:
        width = max(map(len, ("name", *found)))
        print(f"{'name':{width}} {'parameters':>10} {'kMAC/voxel':>10}  {'voxels [nm]':12} what")
        for key, card in found.items():
            size = "x".join(f"{one:g}" for one in card.voxel_size)
            print(f"{key:{width}} {card.parameters:10,} {card.kmac_per_voxel:10.1f}  {size:12} {card.title}")
    else:
        print(
            yaml.safe_dump(chosen[name].model_dump(mode="json", exclude_unset=True), sort_keys=False, width=100), end=""
        )


def _clear(manifest: Path, /) -> None:
    """Remove what the stage of MANIFEST made, e.g. results/x/student/test/affinities.json."""
    from kdseg.results.claims import clear as remove

    if manifest.suffix != ".json":
        raise ConfigError(f"expected the manifest of a stage (….json), got {manifest}")
    for path in remove(manifest):
        print(f"removed {path}")


def _status(
    folder: Path,
    /,
    *,
    failures: Annotated[int, Parameter(validator=Number(gte=0))] = 3,
    everything: Annotated[bool, Parameter(name="--all", negative=())] = False,
    json_path: Annotated[Path | None, Parameter(name="--json")] = None,
) -> None:
    """Show the progress of the stages of a run, e.g. `kdseg status results/mine`; exit 1 if one stopped or is damaged.

    So it does of one that is kept: whose manifest is gone, since a rerun was refused, until the run goes on. No voxel
    is read: whether what is finished is still as it was written, `kdseg verify` says.

    Args:
        folder: of the run, or its configuration, whose `results` is meant.
        failures: failed blocks to list.
        everything: also what is finished.
        json_path: write all that is known.
    """
    from kdseg.results.manifests import write_json
    from kdseg.running import status as stage

    if folder.is_file() and folder.suffix == ".json":
        raise ConfigError(f"{folder} is a manifest: name the folder of the run, or its configuration")
    found = stage.run(Path(load(folder).results) if folder.is_file() else folder)
    for one in found:
        if everything or one.state != "finished":
            print(stage.described(one))
        for line in stage.failures(one, failures):
            print(line)
    count = Counter(one.state for one in found)
    unread = "; voxels were not read: `kdseg verify` does that" if "finished" in count else ""
    print(", ".join(f"{n} {state}" for state, n in sorted(count.items())) + unread)
    if json_path is not None:
        write_json(json_path, [one._asdict() for one in found])
    if any(count[state] for state in ("stopped", "damaged", "kept")):
        sys.exit(1)


def _verify(
    run: Path,
    /,
    *,
    repair: Annotated[bool, Parameter(negative=())] = False,
    workers: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
) -> None:
    """Compare volumes, tables, networks and manifests of RUN with what their stages wrote; exit 1 if one differs.

    Args:
        run: a folder of results, e.g. `results/mine`, or the manifest of one stage.
        repair: have the next run of a stage make again what differs, and nothing else; no file is removed.
        workers: cores that are used; default: all.
    """
    from kdseg.results.manifests import begun
    from kdseg.volumes.verify import repair as mend
    from kdseg.volumes.verify import verify

    damaged, again, results = 0, list[Path](), 0
    for manifest, found in verify(run, workers or os.cpu_count() or 1):
        results += 1
        for fault in found:
            print(fault.what)
        damaged += bool(found)
        if any(fault.claim is None for fault in found):
            again.append(manifest)
        if repair and found:
            mend(manifest, found)
    unfinished = [path for path in begun(run) if not path.exists()] if run.is_dir() else []
    for path in unfinished:
        print(f"{path} is not there: its stage has not finished, or the manifest is lost; run it again")
    print(f"{results} results, {damaged} damaged" + (f", {len(unfinished)} not finished" if unfinished else ""))
    if repair and again:
        print("make them again; your next run makes what follows from them:")
        for line in commands(again):
            print(line)
    if damaged:
        sys.exit(1)


def _schema() -> None:
    """Print the JSON Schema of a configuration, for editors."""
    print(schema(), end="")


def _phantom(task: PhantomTask) -> None:
    from kdseg.volumes import convert

    how = {"workers": task.workers, "overwrite": task.overwrite}
    kinds: tuple[Literal["raw", "labels"], ...] = ("raw", "labels")
    for kind in kinds:
        manifest = task.out / f"{kind}.json"
        convert.run(ConvertTask(kind=kind, manifest=manifest, options=VolumeOptions(phantom=task.options), **how))


def _export(
    model: Path,
    out: Path,
    /,
    *,
    also: tuple[Literal["lsd", "embedding"], ...] = (),
    overwrite: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """MODEL → OUT: .onnx, .pt2 (torch.export), .ts (TorchScript), .safetensors (a model file with float16 weights).

    Args:
        model: manifest of a network, a model file, or the name of a shipped network.
        out: file to write.
        also: another head to export; repeat.
        overwrite: replace OUT.
    """
    from kdseg.networks.export import export as write

    write(model, out, also=also, overwrite=overwrite)
    print(f"wrote {out}, {out.stat().st_size / 1e6:.2f} MB")


def _tune(
    task: TuneTask,
    *,
    as_json: Annotated[
        bool, Parameter(name="--json", negative=(), help="Print all that was measured as JSON.")
    ] = False,
) -> None:
    from kdseg.prediction import tune as stage

    trials = stage.run(task)
    if as_json:
        print(json.dumps([asdict(trial) for trial in trials], indent=2))
        return
    print(f"{'tile':>13}  {'precision':9}  {'Mvox/s':>13}  {'read/kept':>9}  {'MB':>6}")
    for trial in trials:
        speed = "out of memory" if trial.mvox_per_s is None else f"{trial.mvox_per_s:.2f}"
        tile = "x".join(map(str, trial.tile))
        print(f"{tile:>13}  {trial.precision:9}  {speed:>13}  {trial.read:9.2f}  {trial.memory_mb:6.0f}")
    if trials and trials[0].mvox_per_s is not None:
        if (best := stage.advised(trials)) is not trials[0]:
            print(f"# The fastest would need blocks of {trials[0].block} voxels, which take too much memory.")
        print(f"{best.options}\n# Another tile or precision may change the last bits of the affinities.")
    else:
        print("no tile fits: give more --memory")


def _properties(task: PropertiesTask) -> None:
    from kdseg.segmentation.proofreading import properties as stage

    print(f"wrote {stage.run(task)} segments to {task.out / 'info'}")
