"""Cost of a network per output voxel."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch.utils.flop_counter import FlopCounterMode

from kdseg.geometry import Triple
from kdseg.networks.models.base import Network


def kmac_per_voxel(network: Network, tile: Triple | None = None) -> float:
    """Return thousand multiply-accumulates per output voxel.

    Args:
        network: any network; it is counted as it is, without the cost of BatchNorm and activations.
        tile: voxels of one forward pass, a multiple of the network's stride; default: 4 strides. A halo that
            prediction adds to its tiles is not counted.
    """
    z, y, x = tile or tuple(4 * s for s in network.stride)
    copy = deepcopy(network).to("meta").eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        copy(torch.empty(1, 1, z, y, x, device="meta"))
    return float(counter.get_total_flops()) / 2 / (z * y * x) / 1000
