"""The held-out affinity loss: the term `affinity`, counted exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_volumes import cells

from kdseg.config.terms.supervised import AffinityOptions
from kdseg.networks.models import Batch, Outputs
from kdseg.training.augment import Crop
from kdseg.training.heldout import LEAST, affinity_loss, truth
from kdseg.training.losses import Context
from kdseg.training.losses.supervised import AffinityTerm

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, 1), (0, -3, 2), (-40, 0, 0))
NM = (40.0, 10.0, 10.0)


def crop() -> Crop:
    raw, labels = cells((12, 20, 24), 9)
    ids = labels.astype(np.int64)
    ids[:3, :5] = 0
    mask = ids > 0
    mask[:, :2] = True  # label 0 that counts: negative
    return Crop(raw.astype(np.float32), ids, mask)


def predicted(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (len(OFFSETS), 12, 20, 24), dtype=np.uint8)


@pytest.mark.parametrize("boundary", ["auto", "none", "yx", "zyx"])
def test_it_is_the_term_on_ground_truth(boundary: str) -> None:
    found, values = crop(), predicted()
    term = AffinityTerm(AffinityOptions.model_validate({"boundary": boundary}), Context(OFFSETS, NM))
    logits = torch.logit(torch.from_numpy(values / 255).clamp(LEAST, 1 - LEAST))[None].float()
    ids, mask = torch.from_numpy(found.labels)[None], torch.from_numpy(found.mask)[None]
    batch = Batch(torch.from_numpy(found.raw)[None, None], ids, mask)
    expected = term(Outputs({"affinities": logits}, ()), Outputs({}, ()), batch).item()
    # the last offset leaves the crop: no pair is known
    assert affinity_loss(values, truth(found, boundary, NM), OFFSETS) == pytest.approx(expected, rel=1e-5)


def test_it_depends_on_no_order_and_falls_where_affinities_are_better() -> None:
    found = truth(crop(), "auto", NM)
    values = predicted()
    loss = affinity_loss(values, found, OFFSETS)
    turned = truth(Crop(*(array[:, ::-1].copy() for array in crop()[:3])), "auto", NM)
    mirrored = tuple((z, -y, x) for z, y, x in OFFSETS)
    assert affinity_loss(values[:, :, ::-1].copy(), turned, mirrored) == loss
    worst, best = (np.full_like(values, value) for value in (0, 128))
    assert affinity_loss(worst, found, OFFSETS) > loss > affinity_loss(best, found, OFFSETS)
    assert np.isnan(affinity_loss(values[4:], found, OFFSETS[4:]))
