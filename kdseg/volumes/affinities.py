"""Sources of affinities: those that are stored; `kdseg.prediction.affinities` has those that are computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdseg.geometry import Roi
from kdseg.running.attempt import Clock
from kdseg.volumes.volume import Volume, open_volume

Reader = Callable[[Roi, Sequence[int], NDArray[np.bool_] | None, Clock], NDArray[np.uint8]]
"""Returns uint8 affinities (c, z, y, x) of a region, in 1/255, of the channels that are asked for, in this order. What
it returns where the bool (z, y, x) over the region, if there is one, is False, nobody may look at."""


class Affinities(Protocol):
    """Affinities of a volume; small, sent with every block."""

    def opened(self) -> Reader:
        """Return what reads them in this process. Called first, as it may set how many threads decode."""


@dataclass(frozen=True)
class StoredAffinities:
    """Affinities in a store."""

    store: Path

    def opened(self) -> Reader:
        """Return what reads them in this process."""
        return partial(_read, open_volume(self.store))


def _read(
    source: Volume, roi: Roi, channels: Sequence[int], tissue: NDArray[np.bool_] | None, clock: Clock
) -> NDArray[Any]:
    with clock("read"):
        return source.read(roi, channels)
