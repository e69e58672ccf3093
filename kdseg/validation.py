"""Score a network while it trains: segment a crop of a labelled volume and compare it with ground truth."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kdseg.errors import DataError
from kdseg.geometry import Offsets, Roi, Triple
from kdseg.models import Network, autocast
from kdseg.models.base import channels_last
from kdseg.sampling import Source

TILE = 128
"""Largest extent of a tile in voxels, without its halo."""


THRESHOLDS = tuple(round(0.05 * k, 2) for k in range(1, 20))
"""Agglomeration thresholds of which the best is reported."""


class Scored(NamedTuple):
    """Scores of a segmentation against ground truth; all but the threshold are better if lower.

    Attributes:
        voi: variation of information, bits.
        voi_split: its part from splits.
        voi_merge: its part from mergers.
        arand: adapted Rand error.
        threshold: of the agglomeration.
    """

    voi: float
    voi_split: float
    voi_merge: float
    arand: float
    threshold: float


NO_SCORE = Scored(*[float("inf")] * 5)
"""Before the first validation."""


class Validation(NamedTuple):
    """A crop to segment.

    Attributes:
        raw: uint8 (z, y, x), the crop and the network's halo around it, mirrored beyond the volume.
        labels: int64 (z, y, x), of the crop alone.
        roi: the crop, in voxels of the volume's raw data.
    """

    raw: NDArray[np.uint8]
    labels: NDArray[np.int64]
    roi: Roi


def validation_crop(source: Source, shape: Triple, network: Network) -> Validation:
    """Return the central crop of the labelled part of a volume.

    Args:
        source: a labelled volume.
        shape: extent in voxels; cut to the volume.
        network: the crop starts at a multiple of its stride and is read with its halo.

    Raises:
        DataError: if nothing in the crop is labelled.
    """
    within = source.labelled_roi
    offset, extent = [], []
    for o, n, wanted, stride in zip(within.offset, within.shape, shape, network.stride, strict=True):
        first = -(-o // stride) * stride
        room = o + n - first
        length = min(wanted, room) // stride * stride
        offset.append(first + (room - length) // 2 // stride * stride)
        extent.append(length)
    roi = Roi((offset[0], offset[1], offset[2]), (extent[0], extent[1], extent[2]))
    labels = source.crop(roi, supervised=True).labels if roi.size else np.zeros((0, 0, 0), np.int64)
    if not labels.any():
        raise DataError(f"the central crop {roi} of {source.name!r} has no labels: validate on another volume or shape")
    grown = roi.grow(network.halo)
    inside = grown.intersect(source.raw.roi)
    missing = [
        (i - g, ge - ie)
        for i, g, ie, ge in zip(inside.offset, grown.offset, inside.end, grown.end, strict=True)
    ]
    return Validation(np.pad(source.raw.read(inside), missing, mode="symmetric"), labels, roi)


def predict(network: Network, raw: NDArray[np.uint8], dtype: torch.dtype, device: torch.device) -> NDArray[np.uint8]:
    """Return the affinities of a crop, tile by tile.

    Args:
        network: in evaluation mode, on ``device``.
        raw: uint8 (z, y, x), the crop and the network's halo around it; the crop is a multiple of its stride.
        dtype: what convolutions compute in.
        device: where.

    Returns:
        uint8 (c, z, y, x) of the crop, in 1/255.
    """
    halo = network.halo
    z, y, x = (n - 2 * h for n, h in zip(raw.shape, halo, strict=True))
    steps = [TILE // s * s or s for s in network.stride]
    out: NDArray[np.uint8] | None = None
    starts = (range(0, n, step) for n, step in zip((z, y, x), steps, strict=True))
    for start in product(*starts):
        stop = [min(a + step, n) for a, step, n in zip(start, steps, (z, y, x), strict=True)]
        cut = tuple(slice(a, b + 2 * h) for a, b, h in zip(start, stop, halo, strict=True))
        tile = torch.from_numpy(raw[cut]).to(device).float() / 127.5 - 1
        with torch.inference_mode(), autocast(dtype, device):
            logits = network(channels_last(tile[None, None])).logits["affinities"][0]
            inner = logits[(slice(None), *(slice(h, -h or None) for h in halo))]
            values = (torch.sigmoid(inner.float()) * 255).round().to(torch.uint8).cpu().numpy()
        if out is None:
            out = np.empty((values.shape[0], z, y, x), np.uint8)
        out[(slice(None), *(slice(a, b) for a, b in zip(start, stop, strict=True)))] = values
    if out is None:
        raise DataError(f"a crop of {raw.shape} voxels is smaller than the network's halo {halo} on both sides")
    return out


def validate(
    network: Network, crop: Validation, offsets: Offsets, dtype: torch.dtype, device: torch.device
) -> Scored:
    """Return the scores of the segmentation at the threshold that suits it best.

    Args:
        network: in evaluation mode, on ``device``.
        crop: what to segment.
        offsets: of the network's affinities, nearest first.
        dtype: what convolutions compute in.
        device: where.
    """
    from kdseg.config.segmentation import WatershedOptions
    from kdseg.metrics.contingency import block_contingency, relabel
    from kdseg.metrics.scores import scores
    from kdseg.segmentation.agglomerate import agglomerate, cut
    from kdseg.segmentation.lut import lut
    from kdseg.segmentation.rag import block_edges
    from kdseg.segmentation.watershed import fragments

    affinities = predict(network, crop.raw, dtype, device)
    pieces = fragments(affinities, offsets, WatershedOptions())
    ids = np.unique(pieces[pieces > 0])
    table = block_contingency(pieces, crop.labels)
    whole = Roi((0, 0, 0), crop.roi.shape).slices()
    dendrogram = agglomerate(block_edges(pieces, affinities[:3], offsets[:3], owned=whole), 1.0)
    best = NO_SCORE
    for threshold in THRESHOLDS:
        found = scores(relabel(table, ids, lut(ids, *cut(dendrogram, threshold))))
        if found.voi < best.voi:
            best = Scored(found.voi, found.voi_split, found.voi_merge, found.arand, threshold)
    return best
