"""Affinities that a network computes where they are read; nothing stores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdseg.geometry import Roi
from kdseg.prediction.blocks import Weights, worker_predictor
from kdseg.prediction.tiles import Predictor, predict_tiles, read_reflected, tiled
from kdseg.running.attempt import Clock
from kdseg.volumes.affinities import Computation, Reader
from kdseg.volumes.volume import open_volume


@dataclass(frozen=True)
class ComputedAffinities:
    """Affinities of raw data by a network; a voxel has the same ones in every region."""

    raw: Path
    weights: Weights

    def reader(self) -> Reader:
        """Return what reads in this process what they are computed from, with the network made ready."""
        return partial(_read, self.raw, worker_predictor(self.weights))

    def of(self, store: Path) -> ComputedAffinities:
        """Return those of other raw data."""
        return replace(self, raw=store)

    def origin(self, roi: Roi, channels: Sequence[int]) -> NDArray[np.uint8]:
        """Return the raw data that the network sees of a region, mirrored at the borders of the volume."""
        return _seen(self.raw, worker_predictor(self.weights), roi)


def _seen(store: Path, predict: Predictor, roi: Roi) -> NDArray[np.uint8]:
    source = open_volume(store)
    return read_reflected(source.read, source.roi, tiled(roi, predict.tile).grow(predict.halo))


def _read(
    store: Path,
    predict: Predictor,
    roi: Roi,
    channels: Sequence[int],
    tissue: NDArray[np.bool_] | None,
    clock: Clock,
) -> Computation:
    with clock("read"):
        raw = _seen(store, predict, roi)
        with predict.stream():
            grey = predict.placed(raw)

    def has_tissue(tile: Roi) -> bool:
        return tissue is None or bool(tissue[tile.intersect(roi).slices(roi)].any())

    def compute() -> NDArray[Any]:
        with predict.stream():
            return predict.fetched(predict_tiles(predict, grey, roi, channels, has_tissue))

    return compute
