"""Networks: their receptive field, folding, cost, interface."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from kdseg.config.networks import DynUNetOptions, HeadOptions, NetworkOptions, UNetOptions
from kdseg.errors import ConfigError, DeviceError, ShapeError
from kdseg.networks.models import (
    Network,
    build,
    count_parameters,
    fold,
    kmac_per_voxel,
    resolve_device,
    resolve_precision,
)

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
ISOTROPIC = UNetOptions(widths=(2, 3, 2))
ANISOTROPIC = UNetOptions(
    widths=(2, 2, 3),
    downsample=((1, 2, 2), (2, 3, 2)),
    kernels=((1, 3, 3), (3, 3, 5), (3, 3, 3)),
    residual=True,
)
DEEP_BLOCKS = UNetOptions(widths=(2, 2), blocks=2)
DYNUNET = DynUNetOptions(widths=(2, 2, 2))
DYNUNET_ANISOTROPIC = DynUNetOptions(
    widths=(2, 2, 2), downsample=((1, 2, 2), (2, 2, 2)), kernels=((1, 3, 3), (3, 3, 3), (3, 5, 3))
)
ALL = [ISOTROPIC, ANISOTROPIC, DEEP_BLOCKS, DYNUNET, DYNUNET_ANISOTROPIC]


def make(options: NetworkOptions, heads: HeadOptions | None = None) -> Network:
    torch.manual_seed(0)
    return build(options, heads or HeadOptions(), OFFSETS)


def settle(network: nn.Module) -> None:
    """Give BatchNorm the statistics of a trained network."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)


def affinity_logits(network: nn.Module, raw: Tensor) -> Tensor:
    with torch.no_grad():
        return network(raw).logits["affinities"]


@pytest.mark.parametrize("options", ALL, ids=str)
def test_halo_is_the_support_of_the_gradient_and_not_much_more(options: NetworkOptions) -> None:
    """With positive weights nothing cancels: every input that can matter has a gradient."""
    network = make(options).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1 / max(parameter[0].numel(), 1))
    if hasattr(network, "pools"):  # a maximum passes the gradient of one voxel only
        network.pools = nn.ModuleList(nn.AvgPool3d(pool.kernel_size) for pool in network.pools)
    centre = [h + s for h, s in zip(network.halo, network.stride, strict=True)]
    shape = [2 * c + s for c, s in zip(centre, network.stride, strict=True)]
    measured = [0, 0, 0]
    for phase in range(max(network.stride)):
        raw = torch.ones(1, 1, *shape, requires_grad=True)
        place = [c + phase % s for c, s in zip(centre, network.stride, strict=True)]
        z, y, x = place
        network(raw).logits["affinities"][0, 0, z, y, x].backward()
        support = raw.grad[0, 0].nonzero()
        for axis in range(3):
            low, high = int(support[:, axis].min()), int(support[:, axis].max())
            measured[axis] = max(measured[axis], place[axis] - low, high - place[axis])
    for radius, halo, stride in zip(measured, network.halo, network.stride, strict=True):
        assert radius <= halo < radius + stride
        assert halo % stride == 0


@pytest.mark.parametrize("options", ALL, ids=str)
def test_a_tile_with_its_halo_gives_the_outputs_of_the_whole(options: NetworkOptions) -> None:
    network = make(options).eval()
    settle(network)
    halo, stride = network.halo, network.stride
    shape = [3 * h // s * s + 4 * s for h, s in zip(halo, stride, strict=True)]
    raw = torch.randn(1, 1, *shape)
    whole = affinity_logits(network, raw)
    start = [h + s for h, s in zip(halo, stride, strict=True)]
    tile = raw[(..., *(slice(a - h, a + 2 * s + h) for a, h, s in zip(start, halo, stride, strict=True)))]
    inner = affinity_logits(network, tile)[(..., *(slice(h, -h or None) for h in halo))]
    expected = whole[(..., *(slice(a, a + 2 * s) for a, s in zip(start, stride, strict=True)))]
    torch.testing.assert_close(inner, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [ISOTROPIC, DYNUNET], ids=str)
def test_what_lies_beyond_the_halo_does_not_matter(options: NetworkOptions) -> None:
    network = make(options).eval()
    halo = network.halo[0]
    raw = torch.randn(1, 1, *(2 * halo + 16,) * 3)
    other = raw.clone()
    other[:, :, 2 * halo + 8 :] += 5
    before, after = affinity_logits(network, raw), affinity_logits(network, other)
    torch.testing.assert_close(before[:, :, : halo + 8], after[:, :, : halo + 8], rtol=0, atol=0)
    assert not torch.equal(before[:, :, halo + 8 :], after[:, :, halo + 8 :])


@pytest.mark.parametrize("options", ALL, ids=str)
def test_folding_keeps_the_outputs(options: NetworkOptions) -> None:
    network = make(options).eval()
    settle(network)
    raw = torch.randn(2, 1, *(4 * s for s in network.stride))
    folded = fold(network)
    expected = affinity_logits(network, raw)
    torch.testing.assert_close(
        affinity_logits(folded, raw), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())
    )
    assert not any(isinstance(m, nn.BatchNorm3d) for m in folded.modules())
    assert any(isinstance(m, nn.BatchNorm3d) for m in network.modules())
    assert not any(p.requires_grad for p in folded.parameters())
    assert (folded.halo, folded.stride) == (network.halo, network.stride)


@pytest.mark.parametrize("norm", [nn.InstanceNorm3d(2, affine=True), nn.GroupNorm(1, 2), nn.BatchNorm3d(2)])
def test_norms_that_cannot_be_folded_are_refused(norm: nn.Module) -> None:
    with pytest.raises(ConfigError, match="folded"):
        fold(nn.Sequential(nn.ReLU(), norm))


def test_outputs_of_all_heads_and_levels() -> None:
    network = make(ANISOTROPIC, HeadOptions(lsd=True, embedding=5))
    outputs = network(torch.zeros(2, 1, 4, 12, 8))
    assert {name: tuple(value.shape) for name, value in outputs.logits.items()} == {
        "affinities": (2, 3, 4, 12, 8),
        "lsd": (2, 10, 4, 12, 8),
        "embedding": (2, 5, 4, 12, 8),
    }
    assert [tuple(f.shape) for f in outputs.features] == [(2, 2, 4, 12, 8), (2, 2, 4, 6, 4), (2, 3, 2, 2, 2)]


def test_every_parameter_learns() -> None:
    """Distributed training waits for the gradient of every parameter."""
    for options in ALL:
        network = make(options, HeadOptions(lsd=True))
        outputs = network(torch.randn(2, 1, *(4 * s for s in network.stride)))
        sum(logits.square().mean() for logits in outputs.logits.values()).backward()
        assert all(p.grad is not None and p.grad.any() for p in network.parameters() if p.ndim == 5)


def test_cost_of_a_hand_counted_network() -> None:
    network = make(UNetOptions(widths=(2, 4)))
    fine = 27 * (1 * 2 + 2 * 2) + 27 * (4 * 2 + 2 * 2) + 2 * 3
    coarse = 27 * (2 * 4 + 4 * 4) + 8 * 4 * 2
    assert kmac_per_voxel(network) == pytest.approx((fine + coarse / 8) / 1000)
    assert kmac_per_voxel(network, (8, 16, 4)) == pytest.approx((fine + coarse / 8) / 1000)
    norms = 2 * (2 + 2 + 4 + 4 + 2 + 2)
    convolutions = 27 * (2 + 4 + 8 + 16 + 8 + 4) + 8 * 4 * 2 + 2
    assert count_parameters(network) == convolutions + norms + (2 * 3 + 3)


def test_same_seed_same_weights() -> None:
    a, b = make(ISOTROPIC).state_dict(), make(ISOTROPIC).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("options", [ISOTROPIC, DYNUNET], ids=str)
def test_shapes_must_be_multiples_of_the_pooling(options: NetworkOptions) -> None:
    with pytest.raises(ShapeError, match=r"\(8, 8, 6\).*\(4, 4, 4\)"):
        make(options)(torch.zeros(1, 1, 8, 8, 6))


def test_dynunet_without_monai_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai.networks.nets.dynunet", None)
    with pytest.raises(ConfigError, match="pip install monai"):
        make(DYNUNET)


def test_dynunet_needs_three_levels() -> None:
    with pytest.raises(ConfigError, match="at least 3"):
        make(DynUNetOptions(widths=(2, 2)))


def test_devices_and_precisions() -> None:
    cpu = torch.device("cpu")
    assert resolve_device("cpu") == cpu
    assert resolve_precision("float16", cpu) is torch.float16
    assert resolve_precision("auto", cpu) in (torch.bfloat16, torch.float32)
    if not torch.cuda.is_available():
        assert resolve_device("auto") == cpu
        with pytest.raises(DeviceError, match="no CUDA"):
            resolve_device("cuda:0")
