"""Without padding, a tile has the features that it has in the padded network."""

import pytest
import torch
from torch import nn

from kdseg.config.networks import HeadOptions, UNetOptions
from kdseg.models import build, fold
from kdseg.models.unpadded import Unpadded

NETWORKS = [
    UNetOptions(widths=(4, 8, 16)),
    UNetOptions(widths=(3, 5)),
    UNetOptions(widths=(1, 2), residual=True),  # the first shortcut is the identity
    UNetOptions(widths=(4, 6), residual=True, blocks=2),
    UNetOptions(widths=(16, 20), residual=True),
    UNetOptions(
        widths=(2, 3, 2), downsample=((1, 2, 2), (2, 3, 1)), kernels=((1, 3, 3), (3, 3, 5), (3, 3, 3)), residual=True
    ),
]


def trained(options):
    torch.manual_seed(0)
    network = build(options, HeadOptions(), ((-1, 0, 0),))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.bias)
    return fold(network)


def features(network, raw, tile):
    """Features of the padded network over a tile, (z, y, x, c)."""
    outputs = network(raw[None, None].float() / 127.5 - 1)
    keep = (slice(h, h + t) for h, t in zip(network.halo, tile, strict=True))
    return outputs.features[0][(0, slice(None), *keep)].permute(1, 2, 3, 0)


@pytest.mark.parametrize("options", NETWORKS, ids=lambda options: str(options.widths))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_tile_has_the_features_of_the_padded_network(options, dtype):
    network = trained(options)
    tile = tuple(n * s for n, s in zip((1, 2, 3), network.stride, strict=True))
    raw = torch.randint(0, 256, [t + 2 * h for t, h in zip(tile, network.halo, strict=True)], dtype=torch.uint8)
    with torch.inference_mode():
        expected, found = features(network, raw, tile), Unpadded(network, tile, dtype)(raw)
    assert found.dtype == dtype
    assert found.shape == (*tile, options.widths[0])
    assert expected.std() > 0.05
    error = (found.float() - expected).abs().max() / expected.abs().max()
    assert error < (1e-5 if dtype == torch.float32 else 0.04)
