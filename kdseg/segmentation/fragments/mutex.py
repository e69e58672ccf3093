"""Fragments by the mutex watershed of the library mwatershed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdseg.config.segmentation import MutexOptions
from kdseg.errors import ConfigError
from kdseg.geometry import Offsets, pair_slices


def mutex_fragments(
    affinities: NDArray[np.uint8], offsets: Offsets, options: MutexOptions, mask: NDArray[np.bool_]
) -> NDArray[np.uint64]:
    """Return the mutex watershed of affinities (Wolf et al. 2018, arXiv 1904.12654).

    Args:
        affinities: uint8 (c, z, y, x), in 1/255.
        offsets: one ``(z, y, x)`` step in voxels per channel; one-voxel steps attract, others repel.
        options: bias and strides.
        mask: bool (z, y, x); others are background.

    Returns:
        uint64 (z, y, x), 0 for background.

    Raises:
        ConfigError: if mwatershed is not installed.
    """
    try:
        import mwatershed
    except ImportError:
        raise ConfigError(
            "the method `mutex` needs mwatershed: run `pip install mwatershed`, or choose `watershed`"
        ) from None
    z, y, x = mask.shape
    # an edge block may be thinner than an offset, which then joins no pair of its voxels
    within = [c for c, step in enumerate(offsets) if all(abs(o) < n for o, n in zip(step, mask.shape, strict=True))]
    weights, offsets = affinities[within] / 255.0, tuple(offsets[c] for c in within)
    strides = []
    for weight, offset in zip(weights, offsets, strict=True):
        nearest = sum(abs(o) for o in offset) == 1
        weight[:] = np.maximum(weight + options.bias, 0) if nearest else weight - 1
        strides.append([1, 1, 1] if nearest else list(options.strides))
        here, there = pair_slices((z, y, x), offset)
        weight[here][~(mask[here] & mask[there])] = 0  # neither attracts nor repels
    if not offsets:  # of a single voxel
        return mask.astype(np.uint64)
    found: NDArray[np.uint64] = mwatershed.agglom(weights, [list(offset) for offset in offsets], strides=strides)
    return np.where(mask, found, 0)
