"""One trained network → its scores on crops in memory, and what its training cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdseg.config import FragmentsOptions, TrialOptions
from kdseg.errors import ConfigError, VoxelSizeError
from kdseg.networks.checkpoint import load_model
from kdseg.networks.models.device import resolve_device, resolve_precision
from kdseg.results.curve import seconds_per_step
from kdseg.results.manifests import claim, file_fingerprint, read, store_of
from kdseg.training.sampling import Source
from kdseg.training.validation import THRESHOLDS, Scored, least, sweep, validation_crop

COSTS = ("parameters", "kmac_per_voxel", "steps", "best_step", "device", "peak_mb", "gpu_peak_mb")
"""Facts of the training in the manifest of a network."""


def run(
    model: Path,
    manifest: Path,
    options: TrialOptions,
    volumes: Sequence[Path],
    fragments: FragmentsOptions,
    *,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Score a network: choose the threshold on one volume, and score others at it.

    The central crop of each volume is segmented in one piece, in memory, as validation does it.

    Args:
        model: manifest of the network.
        manifest: to write; ``stats.threshold``, ``stats.tuned`` (scores on ``tune_on``), ``stats.scores`` by
            volume, ``stats.training`` with what the training cost.
        options: volumes, extent of the crops, precision.
        volumes: manifests ``…/{volume}/raw.json`` and ``…/{volume}/labels.json``.
        fragments: how fragments are made; the run's own section.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        overwrite: clear what other options or inputs made.

    Raises:
        ConfigError: if raw data or labels of a volume are not among ``volumes``.
        DataError: if a crop has no labels, or the network yields NaN.
        VoxelSizeError: if the network was trained on voxels of another size.
        ClaimError: if the folder holds something else, or is being written.
    """
    import torch

    where = resolve_device(device)
    dtype = resolve_precision(options.precision, where)
    inputs = {f"{path.parent.name}/{path.stem}": read(path)["fingerprint"] for path in volumes}
    inputs["model"] = file_fingerprint(store_of(model))
    made_of = {
        **options.model_dump(mode="json"),
        "precision": str(dtype).removeprefix("torch."),
        # The last bit of a float differs between kinds of device.
        "device": where.type,
        "thresholds": list(THRESHOLDS),
        "watershed": fragments.watershed.model_dump(mode="json"),
    }
    with claim(manifest, "trial", made_of, inputs, overwrite=overwrite) as held:
        torch.set_num_threads(1)  # more would change the last bit of a float
        loaded = load_model(store_of(model), where)

        def scored(name: str) -> list[Scored]:
            source = _source(name, volumes, loaded.voxel_size)
            crop = validation_crop(source, options.shape)
            return sweep(loaded.network, crop, loaded.offsets, dtype, where, fragments.watershed, dust=options.dust)

        sweeps = {name: scored(name) for name in dict.fromkeys((options.tune_on, *options.volumes))}
        tuned = least(sweeps[options.tune_on])
        chosen = sweeps[options.tune_on].index(tuned)
        held.stats.update(
            model=model.parent.name,
            threshold=tuned.threshold,
            tuned=tuned._asdict(),
            scores={name: sweeps[name][chosen]._asdict() for name in options.volumes},
            training=_costs(model),
        )


def _costs(model: Path) -> dict[str, Any]:
    stats = read(model)["stats"]
    curve = model.with_name(f"{model.stem}.training") / "curve.csv"
    return {**{key: stats.get(key) for key in COSTS}, "seconds_per_step": seconds_per_step(curve)}


def _source(name: str, manifests: Sequence[Path], trained_on: Sequence[float]) -> Source:
    given = {path.stem: store_of(path) for path in manifests if path.parent.name == name}
    if lacking := {"raw", "labels"} - given.keys():
        raise ConfigError(f"no manifest of {sorted(lacking)} of the volume {name!r} was given: name it by --volume")
    source = Source(name, given["raw"], given["labels"])
    if any(abs(a - b) > 0.05 * b for a, b in zip(source.voxel_size, trained_on, strict=True)):
        raise VoxelSizeError(f"{name!r} has voxels of {source.voxel_size} nm, the network knows {tuple(trained_on)}")
    return source
