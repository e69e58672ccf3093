"""Watershed and agglomeration by waterz, of one block at once. The only module that knows waterz."""

from __future__ import annotations

import ctypes
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import ConfigError, ShapeError
from kdseg.geometry import Offsets
from kdseg.segmentation.links import nearest_links
from kdseg.segmentation.threshold import least_mean


def waterz_segments(
    affinities: NDArray[np.uint8],
    fragments: NDArray[np.uint64],
    offsets: Offsets,
    thresholds: Sequence[float],
) -> list[NDArray[np.uint64]]:
    """Return the segmentations of one block by waterz, ``OneMinus<MeanAffinity>``, one per threshold.

    Holds the interpreter's lock and needs about 40 bytes per voxel and per threshold 8 more.

    Args:
        affinities: uint8 (c, z, y, x), in 1/255; only the nearest ones are used.
        fragments: uint64 (z, y, x); 0 is background. Left as they are.
        offsets: one ``(z, y, x)`` step in voxels per channel.
        thresholds: scores in 0..1, in any order.

    Returns:
        uint64 (z, y, x) per threshold, in the order given; a segment's id is its smallest fragment id.

    Raises:
        ConfigError: if waterz is not installed, or a threshold is not in 0..1.
        ShapeError: if affinities and fragments differ in shape.
    """
    for threshold in thresholds:
        least_mean(threshold)
    if affinities.shape[1:] != fragments.shape:
        raise ShapeError(f"affinities {affinities.shape} do not fit fragments {fragments.shape}")
    # waterz' memory follows the largest id
    names, local = np.unique(np.append(fragments.ravel(), np.uint64(0)), return_inverse=True)
    local = local[:-1].reshape(fragments.shape).astype(np.uint64)
    ascending = sorted(set(thresholds))
    by_threshold = {}
    results = _waterz(nearest_links(affinities, offsets), ascending, fragments=local.copy())
    for threshold, segments in zip(ascending, results, strict=True):
        # names ascend, so that the first voxel in the order of names has the smallest one
        representatives = np.zeros(names.size, np.uint64)
        representatives[local.ravel()] = segments.ravel()
        _, smallest, group = np.unique(representatives, return_index=True, return_inverse=True)
        by_threshold[threshold] = names[smallest[group]][local]
    return [by_threshold[threshold] for threshold in thresholds]


def waterz_fragments(links: NDArray[np.uint8], low: float, high: float) -> NDArray[np.uint64]:
    """Return the fragments of waterz' own watershed (Zlateski & Seung 2015, arXiv 1505.00249).

    Args:
        links: uint8 (3, z, y, x), nearest affinities in 1/255, see `links.nearest_links`.
        low: affinities below never join two voxels.
        high: affinities above always do.

    Returns:
        uint64 (z, y, x), 0 where no link of a voxel reaches ``low``.

    Raises:
        ConfigError: if waterz is not installed, or ``low`` is not below ``high``.
    """
    if not low < high:
        raise ConfigError(f"waterz needs low < high, got low = {low} and high = {high}")
    # no score is below 0: the watershed alone
    (fragments,) = _waterz(links, [-1.0], aff_threshold_low=low, aff_threshold_high=high)
    return fragments


def _waterz(links: NDArray[np.uint8], thresholds: list[float], **options: Any) -> list[NDArray[np.uint64]]:
    """Run waterz; it yields one and the same array each time, hence the copies."""
    try:
        import waterz
    except ImportError:
        raise ConfigError(
            "waterz is not installed: run `pip install waterz`, or choose the engine `exact` and the method `watershed`"
        ) from None
    with _silent():
        affinities = links.astype(np.float32) / np.float32(255)
        return [np.array(segments) for segments in waterz.agglomerate(affinities, thresholds, **options)]


@contextmanager
def _silent() -> Iterator[None]:
    """Send what Python and C code write to standard output nowhere."""
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    libc.fflush(None)
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        libc.fflush(None)  # into nowhere, before the descriptor is back
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
