"""Sources of affinities: those that are stored; `kdseg.prediction.affinities` has those that are computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import ShapeError
from kdseg.geometry import Offsets, Roi
from kdseg.running.attempt import Clock
from kdseg.volumes.volume import Volume, open_volume

Computation = Callable[[], NDArray[np.uint8]]
"""Returns uint8 affinities (c, z, y, x) of a region, in 1/255."""
Reader = Callable[[Roi, Sequence[int], NDArray[np.bool_] | None, Clock], Computation]
"""Reads what the affinities of a region and of some channels, in this order, follow from; the computation is for the
thread that computes. Nobody may look at them where the bool (z, y, x) over the region, if there is one, is False."""


class Affinities(Protocol):
    """Affinities of a volume; small, sent with every block."""

    def reader(self) -> Reader:
        """Return what reads them in this process. Called first, as it may set how many threads decode."""

    def of(self, store: Path) -> Affinities:
        """Return those of another volume, be it of affinities or of what they are computed from."""

    def origin(self, roi: Roi, channels: Sequence[int]) -> NDArray[np.uint8]:
        """Return the voxels that the affinities of a region and of some channels follow from."""


@dataclass(frozen=True)
class StoredAffinities:
    """Affinities in a store."""

    store: Path

    def reader(self) -> Reader:
        """Return what reads them in this process."""
        return partial(_read, self.store)

    def of(self, store: Path) -> StoredAffinities:
        """Return those in another store."""
        return StoredAffinities(store)

    def origin(self, roi: Roi, channels: Sequence[int]) -> NDArray[np.uint8]:
        """Return the affinities themselves."""
        return open_volume(self.store).read(roi, channels)


def _read(
    store: Path, roi: Roi, channels: Sequence[int], tissue: NDArray[np.bool_] | None, clock: Clock
) -> Computation:
    with clock("read"):
        found = open_volume(store).read(roi, channels)
    return lambda: found


def affinity_offsets(affinities: Volume) -> Offsets:
    """Return the offsets of a volume of affinities, one ``(z, y, x)`` step in voxels per channel.

    Raises:
        ShapeError: if the volume names none, or not one per channel, or is not uint8.
    """
    steps = affinities.attributes.get("offsets")
    if not steps or len(steps) != affinities.channels or affinities.dtype != np.uint8:
        raise ShapeError(
            f"{affinities.where} is {affinities.dtype} {affinities.array.shape} with the offsets {steps}; "
            "expected uint8 affinities (c, z, y, x) with one offset per channel, as `kdseg predict` writes them"
        )
    return tuple((int(z), int(y), int(x)) for z, y, x in steps)
