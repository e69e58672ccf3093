"""Weights that a training starts from."""

from __future__ import annotations

from pathlib import Path

from kdseg.config.networks import ModelOptions
from kdseg.errors import ConfigError, VoxelSizeError
from kdseg.geometry import Offsets, VoxelSize, knows_voxels
from kdseg.networks.checkpoint import load_model
from kdseg.networks.models import Network


def start(network: Network, path: Path, options: ModelOptions, offsets: Offsets, voxel_size: VoxelSize) -> None:
    """Give a network the weights of a model file; heads that the file has not, or in another width, keep theirs.

    Args:
        network: made of ``options``, changed in place.
        path: of the model file.
        options: of the network to train.
        offsets: of its affinities.
        voxel_size: nm, of its data.

    Raises:
        ConfigError: if the file holds another network, or other affinities.
        VoxelSizeError: if it was trained on voxels of another size.
    """
    found = load_model(path)
    ours, theirs = options.network.spelled_out, found.options.spelled_out
    if ours != theirs:
        there = theirs.model_dump()
        differing = [
            f"{name} {value!r} (there {there.get(name)!r})"
            for name, value in ours.model_dump().items()
            if value != there.get(name)
        ]
        raise ConfigError(f"start_from {path} holds another network than the model's: {', '.join(differing)}")
    if found.offsets != offsets:
        raise ConfigError(f"start_from {path} predicts the offsets {found.offsets}, the configuration says {offsets}")
    if not knows_voxels(found.voxel_size, voxel_size):
        raise VoxelSizeError(
            f"start_from {path} was trained on voxels of {found.voxel_size} nm, the data have {voxel_size} nm: start "
            "from another model, or convert another resolution level"
        )
    drawn, given = network.state_dict(), found.network.state_dict()
    fitting = {name: value for name, value in given.items() if name in drawn and drawn[name].shape == value.shape}
    network.load_state_dict(drawn | fitting)
