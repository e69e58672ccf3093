"""One trained network → its scores on crops in memory, and what its training cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdseg.config.segmentation import VALIDATED
from kdseg.config.tasks import TrialTask, VolumeInputs
from kdseg.errors import ConfigError, VoxelSizeError
from kdseg.geometry import VoxelSize, in_sections, knows_voxels
from kdseg.networks.checkpoint import load_model
from kdseg.networks.models.device import resolve_device, resolve_precision
from kdseg.networks.weights import weights
from kdseg.results.claims import claim
from kdseg.results.curve import seconds_per_step
from kdseg.results.manifests import Manifest, file_fingerprint, read
from kdseg.training.sampling import Source
from kdseg.training.validation import Scored, least, sweep, validation_crop
from kdseg.volumes.inputs import volume_fingerprints

COSTS = ("parameters", "kmac_per_voxel", "steps", "best_step", "device", "peak_mb", "gpu_peak_mb")
"""Facts of the training in the manifest of a network."""


def run(task: TrialTask) -> None:
    """Score a network: choose the threshold on one volume, and score others at it.

    The central crop of each volume is segmented in one piece, in memory, as validation does it. In the
    manifest are ``stats.threshold``, ``stats.tuned`` (scores on ``tune_on``), ``stats.scores`` by volume and
    ``stats.training`` with what the training cost.
    """
    import torch

    options, watershed = task.options, task.fragments.watershed
    where = resolve_device(task.device)
    dtype = resolve_precision(options.precision, where)
    trained, network = read(task.model), weights(task.model)
    inputs = volume_fingerprints(task.volumes) | {"model": file_fingerprint(network)}
    made_of = {
        **options.model_dump(mode="json"),
        "precision": str(dtype).removeprefix("torch."),
        # The last bit of a float differs between kinds of device.
        "device": where.type,
        "thresholds": list(VALIDATED),
        "watershed": watershed.model_dump(mode="json"),
    }
    with claim(task.manifest, "trial", made_of, inputs, overwrite=task.overwrite) as held:
        torch.set_num_threads(1)  # more would change the last bit of a float
        loaded = load_model(network, where)

        def scored(volume: str) -> list[Scored]:
            source = _source(volume, task.volumes, loaded.voxel_size)
            crop = validation_crop(source, options.shape, options.boundary, sections=in_sections(loaded.offsets))
            return sweep(loaded.network, crop, loaded.offsets, dtype, where, watershed, dust=options.dust)

        sweeps = {volume: scored(volume) for volume in dict.fromkeys((options.tune_on, *options.volumes))}
        tuned = least(sweeps[options.tune_on])
        chosen = sweeps[options.tune_on].index(tuned)
        held.stats.update(
            model=task.name,
            threshold=tuned.threshold,
            tuned=tuned._asdict(),
            scores={volume: sweeps[volume][chosen]._asdict() for volume in options.volumes},
            training=_costs(trained),
        )


def _costs(model: Manifest) -> dict[str, Any]:
    curve = model.path.with_name(f"{model.path.stem}.training") / "curve.csv"
    return {**{key: model.stats.get(key) for key in COSTS}, "seconds_per_step": seconds_per_step(curve)}


def _source(name: str, volumes: Mapping[str, VolumeInputs], trained_on: VoxelSize) -> Source:
    given = volumes.get(name)
    if given is None or given.labels is None:
        lacking = ["labels", "raw"] if given is None else ["labels"]
        raise ConfigError(f"no manifest of {lacking} of the volume {name!r} was given: name it")
    source = Source(name, read(given.raw).result, read(given.labels).result)
    if not knows_voxels(trained_on, source.voxel_size):
        raise VoxelSizeError(f"{name!r} has voxels of {source.voxel_size} nm, the network knows {tuple(trained_on)}")
    return source
