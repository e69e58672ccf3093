"""Affinities of a network that has an embedding alone: cosines of pairs, whatever the block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_trainings import OFFSETS as NEAREST
from small_trainings import options
from toy_models import NEVER
from toy_volumes import cells, write_volume

from kdseg.config.networks import HeadOptions, ModelOptions, UNetOptions
from kdseg.errors import ConfigError
from kdseg.geometry import Roi
from kdseg.networks.checkpoint import load_model
from kdseg.networks.models import Network, build, widths
from kdseg.prediction.tiles import has_affinities, predict_roi, predictor, tile_memory
from kdseg.training import train

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, -5), (2, 0, 3))
SHAPE = (21, 30, 26)
WHOLE = Roi((0, 0, 0), SHAPE)
CPU = torch.device("cpu")
HEADS = HeadOptions(affinities=False, embedding=4)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    net = build(UNetOptions(widths=(3, 5)), HEADS, OFFSETS)
    with torch.no_grad():
        for _ in range(3):  # statistics of BatchNorm that matter
            net(torch.randn(1, 1, 16, 16, 16) * 2 + 1)
        net.head("embedding")[1].copy_(torch.randn(4) / 8)  # no vector is 0
    return net.eval()


@pytest.fixture(scope="module")
def raw() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


def predicted(network: Network, raw: np.ndarray, roi: Roi, product: Any = "affinities") -> np.ndarray:
    predict = predictor(network, (8, 8, 8), CPU, torch.float32, offsets=OFFSETS, product=product)
    return predict_roi(predict, lambda region: raw[region.slices()], WHOLE, roi)


def test_they_are_the_cosines_of_the_embedding(network: Network, raw: np.ndarray) -> None:
    vectors = predicted(network, raw, WHOLE, "embedding").astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=0)
    found = predicted(network, raw, WHOLE)
    assert found.shape == (len(OFFSETS), *SHAPE)
    for channel, offset in enumerate(OFFSETS):
        inside = Roi((5, 5, 5), tuple(n - 10 for n in SHAPE))
        here, there = unit[(slice(None), *inside.slices())], unit[(slice(None), *inside.shift(offset).slices())]
        expected = 255 * np.clip((here * there).sum(0), 0, 1)
        assert np.abs(found[channel][inside.slices()] - expected).max() < 1.5  # the embedding is stored as float16
        assert np.ptp(expected) > 50


@pytest.mark.parametrize("roi", [Roi((0, 0, 0), (8, 8, 8)), Roi((3, 11, 7), (9, 10, 13)), Roi((20, 29, 25), (1, 1, 1))])
def test_a_part_is_that_of_the_whole(network: Network, raw: np.ndarray, roi: Roi) -> None:
    whole = predicted(network, raw, WHOLE)
    np.testing.assert_array_equal(predicted(network, raw, roi), whole[(slice(None), *roi.slices())])


def test_averages_need_a_head(network: Network, raw: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="no heads"):
        predicted(network, raw, WHOLE, "affinities_flips")


def test_its_memory_is_told(network: Network) -> None:
    small, large = (tile_memory(network, (edge,) * 3, torch.float32, OFFSETS) for edge in (16, 48))
    assert large > 8 * small / 2
    vectors = 4 * 4 * (48 + 2 * 6) ** 3  # of the tile and six voxels around it, two poolings of the farthest offset
    assert large > 2 * vectors


def test_there_is_no_other_head(network: Network) -> None:
    assert set(widths(network).logits) == {"embedding"}


TRAIN = {"volumes": ["a"], "validate_on": "a", "crop": [8, 8, 8], "augment": NEVER.model_dump()}


@pytest.mark.parametrize(
    ("heads", "terms", "message"),
    [
        ({"affinities": False, "embedding": 4}, ["embedding", "affinity"], r"leave out .*\['affinity'\]"),
        ({"affinities": False}, ["embedding"], "set heads.embedding"),
        ({"embedding": 4}, ["embedding"], "need a term that trains them"),
    ],
)
def test_heads_that_nothing_trains_are_refused(heads: Any, terms: list[str], message: str) -> None:
    values = {"network": {"kind": "unet", "widths": [3, 5]}, "heads": heads}
    train = {**TRAIN, "terms": [{"name": name} for name in terms]}
    with pytest.raises(ValueError, match=message):
        ModelOptions.model_validate(values | {"train": train})
    good = values | {
        "heads": {"affinities": False, "embedding": 4},
        "train": {**TRAIN, "terms": [{"name": "embedding"}]},
    }
    assert not ModelOptions.model_validate(good).heads.affinities


def test_the_membrane_is_that_of_its_own_term() -> None:
    assert options(heads=HEADS.model_dump(), terms=[{"name": "embedding", "boundary": "none"}]).train.boundary == "none"
    both = [{"name": "embedding", "boundary": "none"}, {"name": "affinity", "boundary": "yx"}]
    assert options(heads={"embedding": 4}, terms=both).train.boundary == "yx"


def test_it_is_trained_and_validated_like_any_other(tmp_path: Path) -> None:
    raw, labels = cells((20, 24, 24), 8)
    volumes = {"a": (write_volume(tmp_path / "raw.zarr", raw), write_volume(tmp_path / "labels.zarr", labels))}
    heads = {"affinities": False, "embedding": 4}
    made = options(heads=heads, terms=[{"name": "embedding"}], steps=20, validate_every=20, learning_rate=2e-2)
    out = {"out": tmp_path / "model.safetensors", "folder": tmp_path}
    found = train(made, offsets=NEAREST, volumes=volumes, device="cpu", **out)
    assert np.isfinite(found.scores.voi)
    loaded = load_model(tmp_path / "model.safetensors")
    assert not loaded.heads.affinities
    assert not has_affinities(loaded.network)
