"""Functions whose numbers go into the tables of FIB-25."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from toy_volumes import cells, write_volume
from workflow import ROOT

from kdseg.config.networks import HeadOptions, UNetOptions
from kdseg.config.shipped import cards, model_file
from kdseg.evaluation.metrics.contingency import block_contingency
from kdseg.evaluation.metrics.scores import scores
from kdseg.networks.checkpoint import LoadedModel, load_model
from kdseg.networks.models import build
from kdseg.prediction.tiles import predict_roi, predictor
from kdseg.training.sampling import Source
from kdseg.training.validation import least, validation_crop

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield
    for name in ("fib25", "calibration"):
        sys.modules.pop(name, None)


def test_a_perfect_agglomeration_leaves_what_fragments_mix() -> None:
    import fib25

    rng = np.random.default_rng(0)
    fragments, labels = rng.integers(1, 40, (2, 6, 9, 9)).astype(np.uint64)
    labels //= 8
    mapped = np.zeros_like(labels)
    for one in np.unique(fragments):
        inside = labels[fragments == one]
        values, counts = np.unique(inside[inside > 0], return_counts=True)
        mapped[fragments == one] = values[counts.argmax()]
    table = fib25.perfect(block_contingency(fragments, labels))
    assert scores(table).voi == pytest.approx(scores(block_contingency(mapped, labels)).voi, abs=1e-12)
    pure = block_contingency(fragments, fragments // 3 + 1)
    assert scores(fib25.perfect(pure)).voi == pytest.approx(0, abs=1e-12)


def loaded(seed: int, offsets: tuple[tuple[int, int, int], ...] = OFFSETS) -> LoadedModel:
    torch.manual_seed(seed)
    options = UNetOptions(widths=(2, 3))
    network = build(options, HeadOptions(), offsets).eval()
    return LoadedModel(network, options, HeadOptions(), offsets, (10.0, 10.0, 10.0))


def test_networks_are_averaged_to_the_nearest_value(tmp_path: Path) -> None:
    import fib25

    raw, labels = cells((12, 20, 20), 8)
    stores = write_volume(tmp_path / "raw.zarr", raw), write_volume(tmp_path / "labels.zarr", labels)
    crop = validation_crop(Source("a", *stores), (100, 100, 100))
    networks = [loaded(1), loaded(2), loaded(3)]
    single = []
    for one in networks:
        run = predictor(one.network, (12, 20, 20), torch.device("cpu"), torch.float32, offsets=one.offsets)
        single.append(predict_roi(run, crop.source.raw.read, crop.source.raw.roi, crop.roi).astype(float))
    mean = np.mean(single, axis=0)
    assert np.abs(fib25.predicted(networks, crop) - mean).max() <= 0.5
    with pytest.raises(SystemExit, match="predict other affinities"):
        fib25.predicted([*networks, loaded(4, OFFSETS[::-1])], crop)


def test_a_network_that_says_its_logits_too_small_is_mended() -> None:
    import calibration

    values = calibration.VALUES
    truth = expit(1.7 * logit(values) + 0.6)  # logits / temperature + bias
    often = np.full(256, 1e4)
    pairs = np.stack([often * (1 - truth), often * truth])
    temperature, bias = calibration.fit(pairs, bias=True)
    assert temperature == pytest.approx(1 / 1.7, abs=0.01)
    assert bias == pytest.approx(0.6, abs=0.01)
    assert calibration.error(pairs, temperature, bias) < 0.002
    assert calibration.error(pairs, 1.0, 0.0) == pytest.approx(np.abs(truth - values).mean(), abs=1e-9)
    assert calibration.fit(pairs, bias=False)[1] == 0
    assert calibration.loss(pairs, temperature, bias) < calibration.loss(pairs, *calibration.fit(pairs, bias=False))
    assert calibration.share(pairs, (1.0, 0.0), 40) == f"{100 * truth[102:128].mean():.0f} %"


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", ["fib25-s", "fib25-m", "fib25-m-distilled"])
def test_shipped_weights_reproduce_the_scores_of_their_card(em_data: Path, tmp_path: Path, name: str) -> None:
    """The teacher takes minutes of one core, and is left out."""
    import fib25

    found = fib25.scored([load_model(model_file(name))], fib25.crop_of("tune", fib25.TUNE, tmp_path))
    best, said = least(found.scored), re.match(r"VOI ([\d.]+) bits, ARAND ([\d.]+)", cards()[name].scores["tune"])
    assert said is not None
    assert best.threshold == cards()[name].threshold
    assert best.voi == pytest.approx(float(said[1]), abs=0.01)
    assert best.arand == pytest.approx(float(said[2]), abs=0.01)
