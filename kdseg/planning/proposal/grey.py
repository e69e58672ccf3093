"""Grey values of raw data, by a sample of them: which of them count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

TAILS = (0.1, 99.9)
"""Percentiles beyond which grey values may become 0 and 255."""
KNOWN_MEAN, KNOWN_DEVIATION = 128.0, 33.0
"""Grey values of FIB-25 as the shipped networks saw them; docs/results.md says how far others may be from it."""
_SHIFT, _STRETCH = 40.0, 1.8
"""Differences of mean and contrast that these networks stand without much harm. With 1.7 times the contrast,
gala_train.h5 is segmented no better if it is brought to theirs (VOI 0.291 bits, 0.251 as it is); twice the contrast
costs FIB-25 0.4 bits."""


@dataclass(frozen=True)
class Grey:
    """A sample of grey values.

    Attributes:
        dtype: of the raw data.
        voxels: that were looked at, of sections that are not all one value.
        low: least value.
        high: largest value.
        tails: percentiles `TAILS`.
        mean: of them.
        deviation: standard deviation; 0 if there is nothing but one value.
    """

    dtype: np.dtype[Any]
    voxels: int = 0
    low: float = 0.0
    high: float = 0.0
    tails: tuple[float, float] = (0.0, 0.0)
    mean: float = 0.0
    deviation: float = 0.0

    @property
    def flat(self) -> bool:
        """Whether the sample tells nothing."""
        return self.deviation == 0

    @property
    def in_bytes(self) -> bool:
        """Whether the values are bytes, which need no range."""
        return self.dtype.kind in "iu" and self.dtype.itemsize == 1

    def rounded(self, low: float, high: float) -> tuple[float, float]:
        """Return a range that holds another one, in whole numbers for integers, else with four digits."""
        if self.dtype.kind in "iu":
            return floor(low), ceil(high)
        digits = 3 - floor(np.log10(high - low))
        step = 10.0**-digits
        return round(floor(low / step) * step, digits), round(ceil(high / step) * step, digits)

    def range_of_tails(self) -> tuple[float, float]:
        """Return the range that holds nearly all grey values."""
        low, high = self.tails if self.tails[0] < self.tails[1] else (self.low, self.high)
        return self.rounded(low, high)

    def range_like_known(self) -> tuple[float, float] | None:
        """Return the range that gives these grey values the mean and contrast which shipped networks know.

        None: they have about these already.
        """
        alike = abs(self.mean - KNOWN_MEAN) <= _SHIFT and 1 / _STRETCH <= self.deviation / KNOWN_DEVIATION <= _STRETCH
        if alike and self.dtype == np.uint8:
            return None
        unit = self.deviation / KNOWN_DEVIATION
        return self.rounded(self.mean - KNOWN_MEAN * unit, self.mean + (255 - KNOWN_MEAN) * unit)


def grey_of(dtype: np.dtype[Any], sample: Iterable[NDArray[Any]]) -> Grey:
    """Return what a sample tells of grey values; what of it is all one value, as padding is, tells nothing."""
    parts = [part.ravel().astype(np.float64) for part in sample]
    finite = [part[np.isfinite(part)] for part in parts]
    telling = [part for part in finite if len(part) and part.min() < part.max()]
    if not telling:
        return Grey(dtype, low=min((part.min() for part in finite if len(part)), default=0.0))
    values = np.concatenate(telling)
    low, high = (float(one) for one in np.percentile(values, TAILS))
    return Grey(
        dtype,
        voxels=len(values),
        low=float(values.min()),
        high=float(values.max()),
        tails=(low, high),
        mean=float(values.mean()),
        deviation=float(values.std()),
    )
