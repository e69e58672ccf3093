"""A voxel's affinities are a function of its receptive field: no block, region or order may change a bit."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdseg.config.networks import HeadOptions, UNetOptions
from kdseg.errors import ConfigError, DataError
from kdseg.geometry import Roi
from kdseg.inference import predict_roi, predictor, read_reflected
from kdseg.models import build

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, -3))
SHAPE = (21, 30, 26)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def raw():
    return np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    net = build(UNetOptions(widths=(3, 5)), HeadOptions(), OFFSETS)
    with torch.no_grad():
        for _ in range(3):  # statistics of BatchNorm that matter
            net(torch.randn(1, 1, 16, 16, 16) * 2 + 1)
    return net


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16])
def predict(network, request):
    return predictor(network, (8, 8, 8), CPU, request.param)


@pytest.fixture(scope="module")
def whole(predict, raw):
    total = Roi((0, 0, 0), SHAPE)
    return predict_roi(predict, lambda roi: raw[roi.slices()], total, total)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_region_gives_the_same_bytes(predict, raw, whole, data):
    low = tuple(data.draw(st.integers(0, n - 1)) for n in SHAPE)
    shape = tuple(data.draw(st.integers(1, n - o)) for n, o in zip(SHAPE, low, strict=True))
    roi = Roi(low, shape)
    part = predict_roi(predict, lambda r: raw[r.slices()], Roi((0, 0, 0), SHAPE), roi)
    assert (part == whole[(..., *roi.slices())]).all()


def test_affinities_equal_one_pass_over_the_mirrored_volume(network, raw, whole, predict):
    halo = network.halo
    grown = Roi((0, 0, 0), (24, 32, 32)).grow(halo)
    padded = read_reflected(lambda r: raw[r.slices()], Roi((0, 0, 0), SHAPE), grown)
    network.eval()
    with torch.inference_mode():
        logits = network(torch.from_numpy(padded)[None, None].float() / 127.5 - 1).logits["affinities"][0]
    keep = Roi(halo, SHAPE).slices()
    expected = 255 * torch.sigmoid(logits[(slice(None), *keep)]).numpy()
    error = np.abs(expected - whole)
    assert error.max() <= (0.51 if predict.dtype == torch.float32 else 8)


@given(st.tuples(*[st.integers(1, 5)] * 3), st.tuples(*[st.integers(-12, 12)] * 3), st.tuples(*[st.integers(1, 9)] * 3))
@settings(max_examples=40, deadline=None)
def test_mirrored_reading_equals_numpy_pad(shape, offset, extent):
    volume = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
    padded = np.pad(volume, 24, mode="reflect")
    expected = padded[tuple(slice(24 + o, 24 + o + e) for o, e in zip(offset, extent, strict=True))]
    found = read_reflected(lambda r: volume[r.slices()], Roi((0, 0, 0), shape), Roi(offset, extent))
    assert (found == expected).all()


def test_bad_networks_are_refused(network, raw):
    with pytest.raises(ConfigError, match="must be a multiple of the network's pooling"):
        predictor(network, (7, 8, 8), CPU, torch.float32)
    damaged = deepcopy(network)
    with torch.no_grad():
        next(iter(damaged.parameters())).fill_(float("nan"))
    broken = predictor(damaged, (8, 8, 8), CPU, torch.float32)
    total = Roi((0, 0, 0), SHAPE)
    with pytest.raises(DataError, match="NaN"):
        predict_roi(broken, lambda r: raw[r.slices()], total, total)


def test_block_dependent_norms_are_refused(network):
    net = build(UNetOptions(widths=(3, 5)), HeadOptions(), OFFSETS)
    net.add_module("norm", torch.nn.InstanceNorm3d(3))
    with pytest.raises(ConfigError, match="InstanceNorm"):
        predictor(net, (8, 8, 8), CPU, torch.float32)
