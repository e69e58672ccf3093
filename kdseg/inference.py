"""Networks over regions of a volume: tiles of one fixed shape on a canonical grid.

A tile of the grid, anchored at the origin of the volume, is read with a halo of the network's receptive
radius, and the halo is cut away from what comes out::

    |<- halo ->|<-- tile -->|<- halo ->|      read (by reflection beyond the border of the volume)
               |<-- tile -->|                 kept

All tiles have the same shape and run alone, in a single thread on a CPU: the arithmetic of a voxel cannot
depend on the block, the region, the worker or the order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdseg.augment import Symmetry
from kdseg.averaging import averaged, averaged_over
from kdseg.errors import ConfigError, DataError
from kdseg.geometry import Offsets, Roi, Triple, blocks, is_multiple
from kdseg.models import Network, fold, only_heads
from kdseg.models.base import channels_last, placed
from kdseg.models.device import autocast

Reader = Callable[[Roi], NDArray[np.uint8]]


Product = Literal["affinities", "affinities_flips", "affinities_all", "embedding"]
"""What is predicted: affinities as they are or averaged over images of each tile, or the embedding."""


@dataclass(frozen=True)
class Predictor:
    """A network made ready for tiles.

    Attributes:
        network: folded, in evaluation mode, on ``device``.
        tile: voxels that one forward pass yields, (z, y, x).
        device: where it runs.
        dtype: what convolutions compute in.
        offsets: one affinity channel each.
        halo: voxels around a tile that it is predicted from, (z, y, x).
        symmetries: images of a tile to average over, the identity first; none for an embedding.
    """

    network: Network
    tile: Triple
    device: torch.device
    dtype: torch.dtype
    offsets: Offsets
    halo: Triple
    symmetries: tuple[Symmetry, ...]

    def __call__(self, raw: NDArray[np.uint8]) -> NDArray[Any]:
        """Return one tile: uint8 affinities (c, z, y, x) in 1/255, or the embedding, float16 (d, z, y, x).

        Args:
            raw: uint8 (z, y, x), the tile and its halo.

        Raises:
            DataError: if the network yields NaN or infinity.
        """
        batch = torch.from_numpy(np.ascontiguousarray(raw))[None, None].to(self.device)
        keep = Roi(self.halo, self.tile).slices()
        with torch.inference_mode(), autocast(self.dtype, self.device):
            tile = channels_last(batch.float() / 127.5 - 1)
            if not self.symmetries:
                vectors = self.network(tile).logits["embedding"][0, :, keep[0], keep[1], keep[2]].float()
                # beyond the range of float16 only the direction matters
                return _finite(vectors).clamp(-6e4, 6e4).half().cpu().numpy()
            if len(self.symmetries) == 1:
                logits = self.network(tile).logits["affinities"][0, :, keep[0], keep[1], keep[2]]
                probabilities = torch.sigmoid(_finite(logits.float()))
            else:
                mean, _ = averaged(self.network, tile, self.offsets, self.symmetries)
                probabilities = _finite(mean[0, :, keep[0], keep[1], keep[2]])
            return torch.round(probabilities * 255).to(torch.uint8).cpu().numpy()


def predictor(
    network: Network,
    tile: Triple,
    device: torch.device,
    dtype: torch.dtype,
    *,
    offsets: Offsets = (),
    product: Product = "affinities",
    cubic: bool = False,
) -> Predictor:
    """Return a network made ready for tiles of ``tile`` voxels.

    Args:
        network: with affinities, or an embedding if that is asked for.
        tile: voxels that one forward pass yields, (z, y, x).
        device: where it runs.
        dtype: what convolutions compute in.
        offsets: one affinity channel each; needed to average.
        product: what is predicted.
        cubic: whether tiles may be turned out of the section plane, for ``affinities_all``.

    Raises:
        ConfigError: if the tile is no multiple of the network's pooling, a norm depends on the tile, or the
            network has no embedding though one is asked for.
    """
    if not is_multiple(tile, network.stride):
        raise ConfigError(f"predict.tile {tile} must be a multiple of the network's pooling {network.stride}")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    folded = placed(fold(only_heads(network, ["embedding" if product == "embedding" else "affinities"])), device)
    if product in ("affinities", "embedding"):
        group = averaged_over("none", tile, cubic=cubic) if product == "affinities" else ()
        return Predictor(folded, tile, device, dtype, offsets, network.halo, group)
    # a flip moves pairs to their other end, which has to lie where the network sees all that it needs
    reach = max(abs(step) for offset in offsets for step in offset)
    z, y, x = (h + -(-reach // s) * s for h, s in zip(network.halo, network.stride, strict=True))
    shape = (tile[0] + 2 * z, tile[1] + 2 * y, tile[2] + 2 * x)
    group = averaged_over("flips" if product == "affinities_flips" else "all", shape, cubic=cubic)
    return Predictor(folded, tile, device, dtype, offsets, (z, y, x), group)


def _finite(values: Tensor) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise DataError("the network yields NaN or infinity: its weights are damaged, train it again")
    return values


def predict_roi(
    predict: Predictor,
    read: Reader,
    volume: Roi,
    roi: Roi,
    channels: Sequence[int] | None = None,
    wanted: Callable[[Roi], bool] | None = None,
) -> NDArray[Any]:
    """Return what a network predicts for a region, tile by tile.

    Args:
        predict: the network.
        read: returns the uint8 raw voxels of a region inside of the volume.
        volume: all voxels of the volume; its border reflects.
        roi: region inside of it, any alignment.
        channels: those to keep, in this order; default: all.
        wanted: says of a tile whether to predict it; what is not predicted is 0. At least one is to be; default: all.

    Returns:
        uint8 or float16 (c, z, y, x) over ``roi``; see `Predictor`.
    """
    raw_roi = tiled(roi, predict.tile).grow(predict.halo)
    raw = read_reflected(read, volume, raw_roi)
    result: NDArray[Any] | None = None
    for block in blocks(roi, predict.tile):
        cell = Roi(_times(block.index, predict.tile), predict.tile)
        if wanted is not None and not wanted(cell):
            continue
        values = predict(raw[cell.grow(predict.halo).slices(raw_roi)])
        if channels is not None:
            values = values[list(channels)]
        if result is None:
            result = np.zeros((len(values), *roi.shape), values.dtype)
        result[(..., *block.roi.slices(roi))] = values[(..., *block.roi.slices(cell))]
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


def tiled(roi: Roi, tile: Triple) -> Roi:
    """Return the voxels of the tiles that a region touches: what is computed to predict it."""
    low = [o // t * t for o, t in zip(roi.offset, tile, strict=True)]
    high = [-(-e // t) * t for e, t in zip(roi.end, tile, strict=True)]
    return Roi((low[0], low[1], low[2]), (high[0] - low[0], high[1] - low[1], high[2] - low[2]))


def _times(index: Triple, by: Triple) -> Triple:
    return (index[0] * by[0], index[1] * by[1], index[2] * by[2])
