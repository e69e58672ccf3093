"""A network that is trained already → the same as a result, for the stages that go on from it."""

from __future__ import annotations

import shutil

from kdseg.config.shipped import cards, model_file
from kdseg.config.tasks import PretrainedTask
from kdseg.errors import ConfigError
from kdseg.geometry import in_sections
from kdseg.networks.checkpoint import load_model
from kdseg.networks.models import count_parameters, kmac_per_voxel
from kdseg.results.claims import claim
from kdseg.results.files import replacing
from kdseg.results.manifests import file_fingerprint


def run(task: PretrainedTask) -> None:
    """Take the weights of a model file, which then lie beside the manifest as those of a training do.

    Raises:
        ConfigError: if it predicts other affinities than the configuration names, or looks across sections where
            affinities stay within them.
    """
    path = model_file(task.file)
    loaded, weights = load_model(path), file_fingerprint(path)
    if loaded.offsets != task.offsets:
        raise ConfigError(
            f"{task.file} predicts the offsets {[list(o) for o in loaded.offsets]}, the configuration has "
            f"{[list(o) for o in task.offsets]}: give it those"
        )
    if in_sections(task.offsets) and loaded.network.halo[0]:
        raise ConfigError(
            f"{task.file} looks across sections, though its affinities stay within them: train another one"
        )
    with claim(task.manifest, "pretrained", {}, {"file": weights}, overwrite=task.overwrite) as held:
        with path.open("rb") as found, replacing(held.model) as file:
            shutil.copyfileobj(found, file)
        held.stats.update(
            weights=weights,
            parameters=count_parameters(loaded.network),
            kmac_per_voxel=kmac_per_voxel(loaded.network),
            **({"best_threshold": cards()[task.file].threshold} if task.file in cards() else {}),
        )
