"""Sources of affinities: those that are stored; `kdseg.prediction.affinities` has those that are computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kdseg.geometry import Roi
from kdseg.running.attempt import Clock
from kdseg.volumes.volume import open_volume

Computation = Callable[[], NDArray[np.uint8]]
"""Returns uint8 affinities (c, z, y, x) of a region, in 1/255."""
Reader = Callable[[Roi, Sequence[int], NDArray[np.bool_] | None, Clock], Computation]
"""Reads what the affinities of a region and of some channels, in this order, follow from; the computation is for the
thread that computes. Nobody may look at them where the bool (z, y, x) over the region, if there is one, is False."""


class Affinities(Protocol):
    """Affinities of a volume; small, sent with every block."""

    def reader(self) -> Reader:
        """Return what reads them in this process. Called first, as it may set how many threads decode."""


@dataclass(frozen=True)
class StoredAffinities:
    """Affinities in a store."""

    store: Path

    def reader(self) -> Reader:
        """Return what reads them in this process."""
        return partial(_read, self.store)


def _read(
    store: Path, roi: Roi, channels: Sequence[int], tissue: NDArray[np.bool_] | None, clock: Clock
) -> Computation:
    with clock("read"):
        found = open_volume(store).read(roi, channels)
    return lambda: found
