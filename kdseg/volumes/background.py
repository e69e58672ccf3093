"""Meaning of label 0 in ground truth: nobody looked, or membrane, or one large object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_cdt

from kdseg.config.data import Background
from kdseg.errors import UnreadableError

KEY = "background"
"""Attribute of a volume of labels that says it."""
THIN = 3
"""Voxels in the section plane from the middle of a membrane to the next neuron, at most."""
LEAST = 0.01
"""Share of the voxels, below which 0 is hardly worth a word."""


def background_of(attributes: Mapping[str, Any], where: object) -> Background:
    """Return what 0 means in a volume of labels by its own attributes; unknown if they do not say.

    Raises:
        UnreadableError: if they say something else.
    """
    found = attributes.get(KEY, "unknown")
    if found not in get_args(Background):
        raise UnreadableError(f"{where} says that label 0 is {found!r}, expected one of {get_args(Background)}")
    return found  # type: ignore[no-any-return]


def looks_like_membrane(labels: NDArray[Any]) -> str:
    """Return in words that 0 is a thin layer between neurons, as membrane is; else an empty string.

    Args:
        labels: integers (z, y, x), a sample; 0 is background.
    """
    zero = labels == 0
    share = float(zero.mean()) if zero.size else 0.0
    nobody_looked = bool(zero.all((1, 2)).any())  # at whole sections
    if share < LEAST or nobody_looked or len(np.unique(labels[~zero])) < 2:
        return ""
    # in sections alone: a coarse z says nothing of thickness
    depth = np.concatenate([distance_transform_cdt(section, "chessboard")[section] for section in zero])
    thickest = int(np.percentile(depth, 95))
    if thickest > THIN:
        return ""
    return f"{share:.0%} of its voxels are 0, nearly all within {thickest} of a neuron, like membrane"
