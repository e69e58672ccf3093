"""Validation in one piece: the same objects count as in the scores of volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pipeline import NEAREST, perfect_affinities
from toy_volumes import cells, write_volume

from kdseg.config.segmentation import WatershedOptions
from kdseg.training.sampling import Source
from kdseg.training.validation import least, scored, tabled, validation_crop


def test_small_objects_are_left_out(tmp_path: Path) -> None:
    raw, labels = cells((16, 24, 24), 12)
    labels[:2, :2, :2] = 99
    stores = write_volume(tmp_path / "raw.zarr", raw), write_volume(tmp_path / "labels.zarr", labels)
    crop = validation_crop(Source("a", *stores), (100, 100, 100))
    affinities, watershed = perfect_affinities(labels), WatershedOptions(seed_distance=2)
    ids, counts = np.unique(labels, return_counts=True)
    for dust in (0, 9, int(np.median(counts))):
        table, tree = tabled(affinities, crop, NEAREST, watershed, dust=dust)
        assert set(table.label.tolist()) - {0} == set(ids[counts >= dust].tolist())
        assert least(scored(table, tree, 0.25)).affinity_loss == 0.25
    assert 99 in ids[counts >= 8]
    assert 99 not in ids[counts >= 9]
    assert least(scored(*tabled(affinities, crop, NEAREST, watershed, dust=9), 0.0)).voi == pytest.approx(0, abs=0.2)
