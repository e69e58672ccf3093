"""Thresholds of agglomeration, exact: as fractions of integers."""

from __future__ import annotations

import numpy as np

from kdseg.config.base import exact
from kdseg.errors import ConfigError


def least_mean(threshold: float) -> tuple[np.uint64, np.uint64]:
    """Return the least mean affinity, in 0..255, that is merged at a threshold.

    Args:
        threshold: largest score that is merged, in 0..1.

    Returns:
        Numerator and denominator of ``affinity_sum / contact``.

    Raises:
        ConfigError: if the threshold is not in 0..1.
    """
    if not 0 <= threshold <= 1:
        raise ConfigError(f"an agglomeration threshold is a score in 0..1, got {threshold}")
    least = 255 * (1 - exact(threshold))
    return np.uint64(least.numerator), np.uint64(least.denominator)
