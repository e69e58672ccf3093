"""Networks: one interface, built from their options."""

from __future__ import annotations

from kdseg.config.networks import HeadOptions, NetworkOptions, UNetOptions
from kdseg.geometry import Offsets
from kdseg.networks.models.base import Batch, Network, Outputs, Taught, Widths, count_parameters, widths
from kdseg.networks.models.cost import kmac_per_voxel
from kdseg.networks.models.device import autocast, resolve_device, resolve_precision
from kdseg.networks.models.dynunet import DynUNet
from kdseg.networks.models.fold import fold, only_heads
from kdseg.networks.models.unet import UNet

__all__ = [
    "Batch",
    "Network",
    "Outputs",
    "Taught",
    "Widths",
    "autocast",
    "build",
    "count_parameters",
    "fold",
    "kmac_per_voxel",
    "only_heads",
    "resolve_device",
    "resolve_precision",
    "widths",
]


def build(network: NetworkOptions, heads: HeadOptions, offsets: Offsets) -> Network:
    """Return a network with freshly drawn weights (from torch's global generator).

    Args:
        network: the architecture.
        heads: what it predicts beside affinities.
        offsets: one affinity channel each.
    """
    if isinstance(network, UNetOptions):
        return UNet(network, heads, offsets)
    return DynUNet(network, heads, offsets)
