"""One command from raw data and a trained network to neurons."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdseg.cli.chain import Stages, carry_out, converted, how_to_go_on, segmented
from kdseg.config import FOLDERS, AgglomerateOptions, Config, VolumeOptions, explain, tasks, validate
from kdseg.config.addresses import is_url
from kdseg.config.base import EXPECTED, FOLDER
from kdseg.config.questions import NeuronsTask
from kdseg.config.shipped import cards
from kdseg.errors import ConfigError, VoxelSizeError, masked
from kdseg.geometry import VoxelSize, in_sections, knows_voxels
from kdseg.results.manifests import read


def segment(task: NeuronsTask) -> None:
    """Segment raw data with a network that is trained already, and print where the neurons are."""
    config = configuration(task)
    carry_out(config, stages(config, task), overwrite=task.overwrite)
    model = _name(task.model)
    made = read(Path(config.results) / model / "raw" / "segmentation.json")
    print(f"{made.stat('segments')} neurons: {made.result}, a table of them: {made.result.with_suffix('.parquet')}")
    print(how_to_go_on(config))


def configuration(task: NeuronsTask) -> Config:
    """Return the configuration of a segmentation by a network that is trained already.

    Raises:
        VoxelSizeError: if the network knows voxels of another size.
        ConfigError: if nobody says the threshold of the network, or which grey values of the raw data count, or the
            folder cannot be one of results.
    """
    from kdseg.networks.checkpoint import load_model
    from kdseg.networks.models import resolve_device
    from kdseg.networks.weights import weights
    from kdseg.volumes.plan import plan_raw
    from kdseg.volumes.sources import open_source

    _expect_folder(task)
    resolve_device(task.device)
    known, file = cards().get(task.model), weights(Path(task.model))
    loaded = load_model(file)
    given: dict[str, Any] = {"raw": task.raw, "voxel_size": task.voxel_size, "intensity": task.intensity}
    given |= {"roi": task.roi, "sections": task.sections}
    volume = {key: value for key, value in given.items() if value is not None}
    source = open_source(task.raw, task.sections)
    if task.intensity is None and source.data.dtype.itemsize > 1 and source.data.dtype.kind in "iu":
        raise ConfigError(
            f"{task.raw} holds {source.data.dtype}, few of whose values may be used: give --intensity LOW HIGH, the "
            "values that become 0 and 255"
        )
    # refused here as by the conversion, before anything is written
    size = plan_raw(source, _options(volume)).voxel_size
    volume["raw"] = _anywhere(task.raw)
    if not knows_voxels(loaded.voxel_size, size):
        raise _other_voxels(task, loaded.voxel_size, size)
    if known is None and task.threshold is None:
        raise ConfigError(
            f"nobody knows a threshold of {task.model}: give --threshold, between 0 and 1{_hint(loaded.meta)}"
        )
    chosen: dict[str, Any] = {}
    if known is not None:
        sections = known.model_dump(include={"fragments", "edges", "agglomerate", "segment"}, exclude_unset=True)
        chosen = {"predict": {"tile": known.tile, "block": known.block}, **sections}
    if task.threshold is not None:
        chosen["segment"] = {**chosen.get("segment", {}), "threshold": task.threshold}
        agglomerate = AgglomerateOptions.model_validate(chosen.get("agglomerate", {}))
        if task.threshold > agglomerate.thresholds[-1]:
            thresholds = [*agglomerate.thresholds, task.threshold]
            chosen["agglomerate"] = {**chosen.get("agglomerate", {}), "thresholds": thresholds}
    return validate(
        {
            "title": f"{Path(masked(task.raw)).name} by {task.model}",
            "results": str(task.out.resolve()),
            "device": task.device,
            "workers": task.workers or len(os.sched_getaffinity(0)),
            "offsets": loaded.offsets,
            "sections": in_sections(loaded.offsets),
            "volumes": {"raw": volume},
            "pretrained": {_name(task.model): task.model if known else str(file.resolve())},
            "evaluate": {"models": [_name(task.model)], "volumes": ["raw"]},
            **chosen,
        }
    )


def _options(volume: Mapping[str, Any]) -> VolumeOptions:
    try:
        return VolumeOptions.model_validate(volume)
    except ValidationError as error:
        raise ConfigError(explain(error, "RAW")) from None


def stages(config: Config, task: NeuronsTask) -> Stages:
    """Yield the tasks of a run by their commands, in order."""
    model = _name(task.model)
    manifest = Path(config.results) / model / "model.json"
    yield (
        "pretrained",
        tasks.PretrainedTask(
            manifest=manifest, file=config.pretrained[model], offsets=config.offsets, overwrite=task.overwrite
        ),
    )
    how: dict[str, Any] = {"workers": config.workers, "overwrite": task.overwrite}
    yield from converted(config, "raw", how)
    yield from segmented(config, model, "raw", how)


def _expect_folder(task: NeuronsTask) -> None:
    out, raw = task.out.resolve(), Path(_anywhere(task.raw))
    if not re.fullmatch(FOLDER, str(out)):
        raise ConfigError(f"OUT {str(out)!r}: {EXPECTED[FOLDER]}: name another folder")
    if raw.is_relative_to(out):
        raise ConfigError(
            f"RAW {task.raw} lies below OUT {task.out}, which results are written to: name another folder"
        )


def _anywhere(address: str) -> str:
    """Return an address that means the same in any working directory."""
    return address if is_url(address) else str(Path(address).resolve())


def _hint(meta: Mapping[str, Any]) -> str:
    found = meta.get("scores", {}).get("threshold")
    return "" if found is None else f"; its own validation found {found} best"


def _name(model: str) -> str:
    """Return a name for the folder of a network's results."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", Path(model).stem).lstrip("-_")
    return f"network-{name}".rstrip("-") if name in ("", *FOLDERS) else name


def _other_voxels(task: NeuronsTask, known: VoxelSize, found: VoxelSize) -> VoxelSizeError:
    fitting = [name for name, card in cards().items() if name != task.model and card.knows(found)]
    hint = f"; {', '.join(fitting)} know these" if fitting else ""
    return VoxelSizeError(
        f"{task.model} knows voxels of {known} nm, {task.raw} has {found} nm{hint}: take another network, another "
        "resolution level of the data, or train on your own (docs/models.md)"
    )
