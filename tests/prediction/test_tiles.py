"""A voxel's affinities are a function of its receptive field: no block, region or order may change a bit."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdseg.config.data import PhantomOptions
from kdseg.config.networks import HeadOptions, UNetOptions
from kdseg.errors import ConfigError, DataError
from kdseg.geometry import Roi
from kdseg.networks.models import build
from kdseg.prediction.tiles import predict_roi, predictor, read_reflected
from kdseg.volumes.phantom import phantom_block

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, -3))
SHAPE = (21, 30, 26)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def raw():
    return phantom_block(PhantomOptions(), Roi((40, 0, 0), SHAPE))[0]


def trained(net):
    """A network that has learned something: its affinities are of membranes, and near 0 and 1."""
    raw, labels = phantom_block(PhantomOptions(), Roi((0, 0, 0), (32, 32, 32)))
    batch = torch.from_numpy(raw)[None, None].float() / 127.5 - 1
    target = torch.stack([torch.from_numpy(np.roll(labels, [-v for v in o], (0, 1, 2)) == labels) for o in OFFSETS])
    optimiser = torch.optim.Adam(net.parameters(), 2e-2)
    for _ in range(60):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            net(batch).logits["affinities"], target[None].float()
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.5
    return net


@pytest.fixture(scope="module", params=["random", "trained"])
def network(request):
    torch.manual_seed(0)
    net = build(UNetOptions(widths=(3, 5)), HeadOptions(), OFFSETS)
    if request.param == "trained":
        return trained(net)
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_agrees_within_one_grey_value(network, raw):
    total = Roi((0, 0, 0), SHAPE)
    found = [
        predict_roi(
            predictor(network, (8, 8, 8), torch.device(kind), torch.float32), lambda r: raw[r.slices()], total, total
        )
        for kind in ("cpu", "cuda")
    ]
    assert np.abs(found[0].astype(int) - found[1]).max() <= 1
