"""Networks over regions of a volume: tiles of one fixed shape on a canonical grid.

A tile of the grid, anchored at the origin of the volume, is read with a halo of the network's receptive
radius, and the halo is cut away from what comes out::

    |<- halo ->|<-- tile -->|<- halo ->|      read (by reflection beyond the border of the volume)
               |<-- tile -->|                 kept

All tiles have the same shape and run alone, in a single thread on a CPU: the arithmetic of a voxel cannot
depend on the block, the region, the worker or the order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kdseg.errors import ConfigError, DataError
from kdseg.geometry import Roi, Triple, blocks, is_multiple
from kdseg.models import Network, fold
from kdseg.models.base import channels_last, placed
from kdseg.models.device import autocast

Reader = Callable[[Roi], NDArray[np.uint8]]


@dataclass(frozen=True)
class Predictor:
    """A network made ready for tiles.

    Attributes:
        network: folded, in evaluation mode, on ``device``.
        tile: voxels that one forward pass yields, (z, y, x).
        device: where it runs.
        dtype: what convolutions compute in.
    """

    network: Network
    tile: Triple
    device: torch.device
    dtype: torch.dtype

    def __call__(self, raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the affinities of one tile, uint8 (c, z, y, x) in 1/255.

        Args:
            raw: uint8 (z, y, x), the tile and its halo.

        Raises:
            DataError: if the network yields NaN or infinity.
        """
        batch = torch.from_numpy(np.ascontiguousarray(raw))[None, None].to(self.device)
        with torch.inference_mode(), autocast(self.dtype, self.device):
            logits = self.network(channels_last(batch.float() / 127.5 - 1)).logits["affinities"]
            keep = Roi(self.network.halo, self.tile).slices()
            logits = logits[0, :, keep[0], keep[1], keep[2]].float()
            if not bool(torch.isfinite(logits).all()):
                raise DataError("the network yields NaN or infinity: its weights are damaged, train it again")
            return torch.round(torch.sigmoid(logits) * 255).to(torch.uint8).cpu().numpy()


def predictor(network: Network, tile: Triple, device: torch.device, dtype: torch.dtype) -> Predictor:
    """Return a network made ready for tiles of ``tile`` voxels.

    Raises:
        ConfigError: if the tile is no multiple of the network's pooling, or a norm depends on the tile.
    """
    if not is_multiple(tile, network.stride):
        raise ConfigError(f"predict.tile {tile} must be a multiple of the network's pooling {network.stride}")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    folded = placed(fold(network), device)
    return Predictor(folded, tile, device, dtype)


def predict_roi(predict: Predictor, read: Reader, volume: Roi, roi: Roi) -> NDArray[np.uint8]:
    """Return the affinities of a region, tile by tile.

    Args:
        predict: the network.
        read: returns the uint8 raw voxels of a region inside of the volume.
        volume: all voxels of the volume; its border reflects.
        roi: region inside of it, any alignment.

    Returns:
        uint8 (c, z, y, x) over ``roi``.
    """
    raw_roi = _aligned(roi, predict.tile).grow(predict.network.halo)
    raw = read_reflected(read, volume, raw_roi)
    result: NDArray[np.uint8] | None = None
    for block in blocks(roi, predict.tile):
        cell = Roi(_times(block.index, predict.tile), predict.tile)
        affinities = predict(raw[cell.grow(predict.network.halo).slices(raw_roi)])
        if result is None:
            result = np.empty((len(affinities), *roi.shape), np.uint8)
        result[(..., *block.roi.slices(roi))] = affinities[(..., *block.roi.slices(cell))]
    if result is None:
        raise DataError(f"region {roi} is empty: nothing to predict")
    return result


def read_reflected(read: Reader, volume: Roi, roi: Roi) -> NDArray[np.uint8]:
    """Return the voxels of ``roi``, mirrored at the borders of ``volume`` where it lies beyond them.

    The border voxel is not repeated, and a region of any size is filled: the volume goes on as
    ``… 2 1 | 0 1 2 … n-2 n-1 | n-2 n-3 …`` along each axis.
    """
    axes = [
        _mirror(np.arange(o, e) - v, n) + v
        for o, e, v, n in zip(roi.offset, roi.end, volume.offset, volume.shape, strict=True)
    ]
    low = (int(axes[0].min()), int(axes[1].min()), int(axes[2].min()))
    high = (int(axes[0].max()), int(axes[1].max()), int(axes[2].max()))
    inner = Roi(low, (high[0] - low[0] + 1, high[1] - low[1] + 1, high[2] - low[2] + 1))
    voxels = read(inner)
    if inner == roi:
        return voxels
    return voxels[np.ix_(axes[0] - low[0], axes[1] - low[1], axes[2] - low[2])]


def _mirror(index: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    if n == 1:
        return np.zeros_like(index)
    folded = index % (2 * n - 2)
    return np.where(folded < n, folded, 2 * n - 2 - folded)


def _aligned(roi: Roi, tile: Triple) -> Roi:
    low = [o // t * t for o, t in zip(roi.offset, tile, strict=True)]
    high = [-(-e // t) * t for e, t in zip(roi.end, tile, strict=True)]
    return Roi((low[0], low[1], low[2]), (high[0] - low[0], high[1] - low[1], high[2] - low[2]))


def _times(index: Triple, by: Triple) -> Triple:
    return (index[0] * by[0], index[1] * by[1], index[2] * by[2])
