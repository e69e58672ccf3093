"""Tiles on a GPU: the same bytes however a volume is cut, and float32 as on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from subjects import KINDS, OFFSETS, grey, network_of, predicted

from kdseg.config.tasks import Product
from kdseg.geometry import Triple
from kdseg.networks.models import Network
from kdseg.prediction.tiles import Predictor, predictor

Record = Callable[[str, object], None]
CPU = torch.device("cpu")
ALL = pytest.mark.parametrize("kind", KINDS)


@cache
def subject(kind: str, gpu: bool) -> Network:
    if kind == "dynunet":
        pytest.importorskip("monai", reason="MONAI is not installed")
    return network_of(kind, gpu)


def sizes(gpu: bool) -> tuple[Triple, int]:
    """Extent of the volume and of a tile."""
    return ((40, 52, 72), 32) if gpu else ((9, 10, 17), 8)


def ready(kind: str, gpu: bool, device: torch.device, dtype: torch.dtype, product: Product = "affinities") -> Predictor:
    network, (_, tile) = subject(kind, gpu), sizes(gpu)
    return predictor(network, (tile,) * 3, device, dtype, offsets=OFFSETS, product=product, cubic=True)


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_blocks_and_their_order_change_no_byte(kind: str, dtype: torch.dtype, gpu: bool, device: torch.device) -> None:
    (shape, tile), raw = sizes(gpu), grey(sizes(gpu)[0])
    expected = predicted(ready(kind, gpu, device, dtype), raw)
    assert expected.shape == (len(OFFSETS), *shape)
    assert np.ptp(expected) > 150
    again = ready(kind, gpu, device, dtype)  # as in another process, its weights made ready anew
    assert (predicted(again, raw, (2 * tile, tile, 2 * tile), backwards=True) == expected).all()
    assert (predicted(again, raw, (tile + 3, 2 * tile - 1, tile)) == expected).all()


@ALL
def test_float32_is_within_one_grey_value_of_the_cpu(
    kind: str, gpu: bool, device: torch.device, record_property: Record
) -> None:
    raw = grey(sizes(gpu)[0])
    expected = predicted(ready(kind, gpu, CPU, torch.float32), raw).astype(np.int16)
    found = predicted(ready(kind, gpu, device, torch.float32), raw)
    off = np.abs(found - expected)
    record_property("share_off", float((off > 0).mean()))
    record_property("largest_off", int(off.max()))
    assert off.max() <= 1
    assert (off > 0).mean() < 0.002  # TF32 changes several percent


@ALL
def test_bfloat16_is_near_float32(kind: str, gpu: bool, device: torch.device, record_property: Record) -> None:
    raw = grey(sizes(gpu)[0])
    exact = predicted(ready(kind, gpu, device, torch.float32), raw).astype(np.int16)
    off = np.abs(predicted(ready(kind, gpu, device, torch.bfloat16), raw) - exact)
    record_property("mean_off", float(off.mean()))
    record_property("off_at_99.9_percent", float(np.quantile(off, 0.999)))
    record_property("largest_off", int(off.max()))
    assert 0 < off.mean() < 4


@pytest.mark.parametrize("product", ["affinities_flips", "embedding"])
def test_other_products_do_not_depend_on_blocks(
    product: Product, gpu: bool, device: torch.device, record_property: Record
) -> None:
    (z, y, x), tile = sizes(gpu)
    raw = grey((z // 2, y // 2, x))
    predict = ready("student", gpu, device, torch.float32, product)
    expected = predicted(predict, raw)
    assert np.ptp(expected.astype(np.float32)) > (0.5 if product == "embedding" else 100)
    assert (predicted(predict, raw, (tile, tile + 1, 2 * tile), backwards=True) == expected).all()
    here = predicted(ready("student", gpu, CPU, torch.float32, product), raw)
    off = float(np.abs(here.astype(np.float32) - expected).max())
    record_property("largest_off", off)
    assert off <= (2e-3 * np.abs(here).max() if product == "embedding" else 1)
