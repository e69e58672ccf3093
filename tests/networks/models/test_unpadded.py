"""Without padding, a tile has the features that it has in the padded network."""

import numpy as np
import pytest
import torch
from torch import nn

from kdseg.config.networks import HeadOptions, UNetOptions
from kdseg.geometry import Roi
from kdseg.networks.models import build, fold
from kdseg.networks.models.unpadded import Unpadded
from kdseg.prediction.tiles import predict_roi, predictor

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


def some_network(rng):
    levels = int(rng.integers(2, 4))
    return UNetOptions(
        widths=tuple(int(n) for n in rng.choice([1, 2, 3, 5, 6, 8, 12, 17], levels)),
        downsample=tuple(tuple(int(n) for n in rng.choice([1, 2, 3], 3)) for _ in range(levels - 1)),
        kernels=tuple(tuple(int(n) for n in rng.choice([1, 3, 5], 3)) for _ in range(levels)),
        blocks=int(rng.integers(1, 3)),
        residual=bool(rng.integers(2)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_any_network_is_predicted_as_with_padding_and_alike_in_every_region(seed):
    rng = np.random.default_rng(seed)
    shape = (0, 0, 0)
    while not 0 < np.prod(shape) < 2e5:  # the others take long
        network = trained(some_network(rng))
        tile = tuple(int(n) * s for n, s in zip(rng.integers(1, 3, 3), network.stride, strict=True))
        shape = [t + 2 * h for t, h in zip(tile, network.halo, strict=True)]
    raw = rng.integers(0, 256, shape, dtype=np.uint8)
    keep = (slice(None), *(slice(h, h + t) for h, t in zip(network.halo, tile, strict=True)))
    predict = predictor(network, tile, torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        logits = network(torch.from_numpy(raw)[None, None].float() / 127.5 - 1).logits["affinities"][0]
    assert np.abs(predict(raw) - 255 * torch.sigmoid(logits[keep]).numpy()).max() < 1

    volume = Roi((0, 0, 0), tuple(min(2 * t + 1, 12) for t in tile))
    voxels = rng.integers(0, 256, volume.shape, dtype=np.uint8)
    low = tuple(int(n) for n in rng.integers(0, volume.shape))
    part = Roi(low, tuple(n - start for n, start in zip(volume.shape, low, strict=True)))
    whole, there = (predict_roi(predict, lambda roi: voxels[roi.slices(volume)], volume, roi) for roi in (volume, part))
    assert (there == whole[(slice(None), *part.slices())]).all()
