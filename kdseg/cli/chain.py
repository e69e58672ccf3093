"""Stages of a configuration, one after the other in this process, as the rules of the workflow make their tasks."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from kdseg.cli.stages import STAGES
from kdseg.config import Config, load, tasks
from kdseg.config.base import Section
from kdseg.errors import ClaimError, ConfigError
from kdseg.results.files import write_text

Stages = Iterator[tuple[str, Section]]
"""Tasks by their commands, in order."""


def carry_out(config: Config, stages: Iterable[tuple[str, Section]], *, overwrite: bool) -> None:
    """Write the configuration that a command made to its folder of results, and run its stages.

    Each stage goes on where a killed one stopped, and one that is done does nothing.

    Raises:
        ClaimError: if the folder holds the configuration of another call, or something else of that name.
    """
    begin(config, _written(config), overwrite=overwrite)
    for name, task in stages:
        begun = time.monotonic()
        print(f"{name} …", flush=True)
        import_module(STAGES[name][1]).run(task)
        print(f"{name}: {time.monotonic() - begun:.1f} s", flush=True)


def begin(config: Config, path: Path, *, overwrite: bool) -> None:
    """Write the configuration that a command made, for people and for Snakemake to go on from.

    Args:
        config: of this call; where it is computed, and by how many workers, does not make it another one.
        path: to write.
        overwrite: replace the configuration of another call.

    Raises:
        ClaimError: if ``path`` holds the configuration of another call, or something else.
    """
    if path.exists():
        try:
            before = load(path).model_copy(update={"workers": config.workers, "device": config.device})
        except ConfigError:
            raise ClaimError(f"{path} is no configuration that this command wrote: name another folder") from None
        if not overwrite and before != config:
            raise ClaimError(f"{path} is of another call, or was changed: name another folder, or give --overwrite")
    write_text(path, yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True), sort_keys=False))


def how_to_go_on(config: Config) -> str:
    """Return the command by which the workflow goes on from what `carry_out` wrote."""
    return f"to go on from here: {shlex.join(['kdseg', 'run', str(_written(config))])}"


def _written(config: Config) -> Path:
    return Path(config.results) / "config.yaml"


def converted(config: Config, volume: str, how: dict[str, Any]) -> Stages:
    """Yield the task that converts the raw data of a volume.

    Args:
        config: the whole configuration.
        volume: its name.
        how: fields that every task has.
    """
    manifest = Path(config.results) / "volumes" / volume / "raw.json"
    options = config.volumes[volume]
    yield "convert", tasks.ConvertTask(manifest=manifest, kind="raw", options=options, storage=config.storage, **how)


def segmented(config: Config, model: str, volume: str, how: dict[str, Any]) -> Stages:
    """Yield the tasks from raw data and a network to neurons.

    Args:
        config: the whole configuration.
        model: name of the network, whose manifest is there by then.
        volume: name of the volume, whose raw data are converted by then.
        how: fields that every task has.
    """
    folder = Path(config.results)
    raw, network = folder / "volumes" / volume / "raw.json", folder / model / "model.json"
    names = ("affinities", "fragments", "edges", "agglomeration", "segmentation")
    affinities, fragments, edges, tree, segmentation = (folder / model / volume / f"{name}.json" for name in names)
    stored = {"storage": config.storage, **how}
    yield (
        "predict",
        tasks.PredictTask(
            manifest=affinities, raw=raw, model=network, options=config.predict, device=config.device, **stored
        ),
    )
    yield (
        "fragments",
        tasks.FragmentsTask(manifest=fragments, affinities=affinities, options=config.fragments, **stored),
    )
    made = {"affinities": affinities, "fragments": fragments}
    yield "edges", tasks.EdgesTask(manifest=edges, **made, options=config.edges, **how)
    yield "agglomerate", tasks.AgglomerateTask(manifest=tree, **made, edges=edges, options=config.agglomerate, **how)
    yield (
        "relabel",
        tasks.SegmentTask(
            manifest=segmentation,
            fragments=fragments,
            edges=edges,
            agglomeration=tree,
            model=network,
            options=config.segment,
            **stored,
        ),
    )
