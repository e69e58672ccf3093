"""A small network as the stage `train` leaves it, and training without augmentation."""

import torch

from kdseg.config.networks import AugmentOptions, HeadOptions, UNetOptions
from kdseg.networks.checkpoint import LoadedModel, save_model
from kdseg.networks.models import build
from kdseg.results.claims import claim
from kdseg.results.manifests import file_fingerprint

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, -3, 0))
TILE = (16, 16, 16)
AFFINITIES = HeadOptions()
PLAIN = UNetOptions(widths=(3, 6))
NEVER = AugmentOptions(
    flip=False, rotate="none", elastic=0, intensity=0, noise=0, blur=0, missing_section=0, misaligned_section=0
)


def save(
    manifest, voxel_size=(10.0, 10.0, 10.0), poison=False, options=PLAIN, offsets=OFFSETS, heads=AFFINITIES, seed=1
):
    torch.manual_seed(seed)
    network = build(options, heads, offsets)
    network(torch.randn(2, 1, 16, 16, 16))
    if poison:
        with torch.no_grad():
            next(iter(network.parameters())).fill_(float("nan"))
    with claim(manifest, "train", {"size": list(voxel_size), "poison": poison, "seed": seed}, {}) as held:
        save_model(held.model, LoadedModel(network, options, heads, offsets, voxel_size))
        held.stats["weights"] = file_fingerprint(held.model)
    return manifest
