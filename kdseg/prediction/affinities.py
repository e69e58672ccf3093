"""Affinities that a network computes where they are read; nothing stores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdseg.geometry import Roi
from kdseg.prediction.blocks import Weights, worker_predictor
from kdseg.prediction.tiles import Predictor, predict_tiles, read_reflected, tiled
from kdseg.running.attempt import Clock
from kdseg.volumes.affinities import Reader
from kdseg.volumes.volume import Volume, open_volume


@dataclass(frozen=True)
class ComputedAffinities:
    """Affinities of raw data by a network; a voxel has the same ones in every region."""

    raw: Path
    weights: Weights

    def opened(self) -> Reader:
        """Return what computes them in this process, with the network made ready."""
        predict = worker_predictor(self.weights)  # first: it says how many threads decode
        return partial(_computed, predict, open_volume(self.raw))


def _computed(
    predict: Predictor,
    source: Volume,
    roi: Roi,
    channels: Sequence[int],
    tissue: NDArray[np.bool_] | None,
    clock: Clock,
) -> NDArray[Any]:
    with clock("read"):
        raw = read_reflected(source.read, source.roi, tiled(roi, predict.tile).grow(predict.halo))

    def has_tissue(tile: Roi) -> bool:
        return tissue is None or bool(tissue[tile.intersect(roi).slices(roi)].any())

    with predict.stream():
        with clock("read"):
            grey = predict.placed(raw)
        with clock.computing():
            return predict.fetched(predict_tiles(predict, grey, roi, channels, has_tissue))
