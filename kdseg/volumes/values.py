"""Values of voxels, as files have them and as volumes of kdseg do: grey values and ids."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import DataError

LARGEST_LABEL = 2**63 - 1
"""Networks are trained with int64 labels."""
RESERVED = 2**64 - 3
"""This and the two ids above it mark voxels without label (outside, invalid, transparent) in CREMI-style files."""


def to_uint8(raw: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Map ``low``..``high`` linearly to 0..255, rounded half up, and clip what lies outside.

    Args:
        raw: integers or finite floats, (z, y, x).
        low: value that becomes 0.
        high: value that becomes 255, larger than ``low``.

    Raises:
        DataError: if a voxel is NaN or infinite.
    """
    if raw.dtype == np.uint8 and (low, high) == (0.0, 255.0):
        return raw
    out = np.empty(raw.shape, np.uint8)
    # Section by section: the float64 copy is eight times as large as the result.
    for z, section in enumerate(raw):
        values = section.astype(np.float64)
        _require_finite(values, z)
        scaled = (np.clip(values, low, high) - low) * (255 / (high - low))
        out[z] = np.floor(scaled + 0.5)
    return out


def to_labels(labels: NDArray[Any]) -> NDArray[np.uint64]:
    """Return labels as uint64, with 0 for unlabelled voxels, see `without_reserved`.

    Args:
        labels: integers, or floats that are whole numbers, (z, y, x).

    Raises:
        DataError: if a label is negative, not whole, or larger than an int64.
    """
    if labels.dtype.kind == "f":
        for z, section in enumerate(labels):
            _require_finite(section, z)
            if (section != np.floor(section)).any():
                raise DataError(f"labels are {labels.dtype} and not whole numbers in section {z}: store integers")
            if (np.abs(section) >= (beyond := 2 ** (np.finfo(labels.dtype).nmant + 1))).any():
                raise DataError(
                    f"labels are {labels.dtype}, which cannot tell ids apart from {beyond} on, and section {z} has one "
                    f"of {np.abs(section).max():.0f}: neurons may be merged; store integers, from where they were ones"
                )
    if labels.dtype.kind != "u" and labels.min() < 0:
        raise DataError(f"there is the negative label {labels.min()}, expected 0 for unlabelled voxels: set them to 0")
    ids = without_reserved(labels.astype(np.uint64, copy=False))
    if ids.max() > LARGEST_LABEL:
        raise DataError(f"there is the label {ids.max()}, the largest that can be used is 2**63 - 1: renumber them")
    return ids


def without_reserved(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return ids with 0 in the place of the three largest, which mark voxels without label in CREMI's files.

    Args:
        ids: uint64, any shape; not written to.
    """
    reserved = ids >= RESERVED
    return np.where(reserved, np.uint64(0), ids) if reserved.any() else ids


def _require_finite(section: NDArray[Any], z: int) -> None:
    bad = ~np.isfinite(section)
    if bad.any():
        y, x = np.argwhere(bad)[0]
        raise DataError(
            f"{bad.sum()} voxels of one section are NaN or infinite, the first at {(z, int(y), int(x))} of this "
            "region: replace them"
        )
