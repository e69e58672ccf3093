"""Nothing mixes devices, and nothing is computed in TF32: what can be seen of a GPU without one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from elsewhere import ELSEWHERE, Elsewhere, make_known
from term_cases import CASES, CONTEXT, OURS, THEIRS, Case, make_batch, outputs

from kdseg.config.networks import DynUNetOptions, HeadOptions, UNetOptions
from kdseg.config.tasks import Product
from kdseg.geometry import Roi
from kdseg.networks.models import Network, Outputs, build
from kdseg.networks.models.device import deterministic, exact
from kdseg.prediction.tiles import predictor
from kdseg.training.losses import make_term

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, -3))
NETWORKS = [
    UNetOptions(widths=(2, 3)),
    UNetOptions(widths=(1, 2), residual=True),  # the first shortcut is the identity
    UNetOptions(widths=(3, 4), residual=True, blocks=2),
    DynUNetOptions(widths=(2, 3, 4), kernels=((1, 1, 3),) * 3),
]


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    make_known(monkeypatch)


def built(options: Any) -> Network:
    torch.manual_seed(0)
    return build(options, HeadOptions(embedding=2), OFFSETS)


def test_devices_that_are_mixed_are_refused() -> None:
    here = torch.ones(2)
    with Elsewhere():
        there = here.to(ELSEWHERE)
        assert (there * 2 + torch.ones((), device="cpu")).sum().item() == 6
        with pytest.raises(RuntimeError, match="on two devices"):
            there + here
        with pytest.raises(RuntimeError, match="on two devices"):
            there[torch.tensor([0])]


@pytest.mark.slow
@pytest.mark.parametrize("options", NETWORKS, ids=lambda options: f"{options.kind}{options.widths}")
@pytest.mark.parametrize("product", ["affinities", "affinities_flips", "embedding"])
def test_a_predictor_is_where_its_network_is(options: Any, product: Product) -> None:
    network, whole = built(options).eval(), Roi((0, 0, 0), (9, 8, 8))
    raw = np.random.default_rng(0).integers(0, 256, whole.shape, dtype=np.uint8)
    found = []
    for device in (torch.device("cpu"), ELSEWHERE):
        with Elsewhere():
            predict = predictor(network, (8, 8, 8), device, torch.float32, offsets=OFFSETS, product=product)
            grey = torch.from_numpy(np.pad(raw, [(h, h + 7) for h in predict.halo])).to(device)
            result = predict.empty((8, 8, 8))
            predict.into(result, grey[Roi((0, 0, 0), tuple(8 + 2 * h for h in predict.halo)).slices()])
            found.append(result.cpu().numpy())
    assert np.ptp(found[0]) > 0
    assert (found[0] == found[1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.options.name}-{CASES.index(c)}")
def test_a_term_is_where_its_inputs_are(case: Case) -> None:
    found = []
    for device in (torch.device("cpu"), ELSEWHERE):
        with Elsewhere():
            torch.manual_seed(0)
            with torch.device(device):  # instead of moving it, for which torch makes new parameters of such tensors
                made = make_term(case.options, CONTEXT)
            torch.manual_seed(0)
            like = make_term(case.options, CONTEXT)
            made.load_state_dict(like.state_dict())
            for seed in range(case.calls + 1):
                student, teacher = moved(outputs(seed, OURS), device), moved(outputs(10 + seed, THEIRS), device)
                value = made(student, teacher, make_batch(seed).to(device))
                value.backward()
            found.append(value.item())
    assert found[0] == found[1]


def moved(found: Outputs, device: torch.device) -> Outputs:
    def leaf(values: torch.Tensor) -> torch.Tensor:
        return values.detach().to(device).requires_grad_()

    return Outputs(
        {name: leaf(v) for name, v in found.logits.items()},
        tuple(map(leaf, found.features)),
        tuple(map(leaf, found.skips)),
    )


def test_float32_is_not_rounded_on_a_gpu() -> None:
    rounding = (torch.backends.cudnn, torch.backends.cuda.matmul)

    def round_all() -> None:
        for part in rounding:
            part.allow_tf32 = True

    try:
        round_all()
        with deterministic():
            assert not any(part.allow_tf32 for part in rounding)
        round_all()
        predictor(built(NETWORKS[0]), (8, 8, 8), torch.device("cpu"), torch.float32)
        assert not any(part.allow_tf32 for part in rounding)
    finally:
        exact()
