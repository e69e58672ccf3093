"""Networks over regions of a volume: tiles of one fixed shape on a canonical grid.

A tile of the grid, anchored at the origin of the volume, is read with a halo of the network's receptive
radius, and the halo is cut away from what comes out::

    |<- halo ->|<-- tile -->|<- halo ->|      read (by reflection beyond the border of the volume)
               |<-- tile -->|                 kept

All tiles have the same shape and run alone, in a single thread on a CPU: the arithmetic of a voxel cannot
depend on the block, the region, the worker or the order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdseg.config.tasks import Product
from kdseg.errors import ConfigError, DataError
from kdseg.geometry import Offsets, Roi, Triple, blocks, is_multiple, triple
from kdseg.networks.models import Network, Outputs, fold, only_heads
from kdseg.networks.models.base import Heads, channels_last, placed
from kdseg.networks.models.device import autocast, exact, keep_memory
from kdseg.networks.models.guard import check_convolutions
from kdseg.networks.models.memory import LiveBytes
from kdseg.networks.models.unet import UNet
from kdseg.networks.models.unpadded import Unpadded
from kdseg.networks.symmetry import Symmetry
from kdseg.prediction.averaging import averaged_over, tta_mean
from kdseg.prediction.cosines import reach, write_cosines

Reader = Callable[[Roi], NDArray[np.uint8]]

SLAB = 2**15
"""Voxels whose logits become affinities at a time on a CPU: they stay in its cache, which is 8 times faster."""


@dataclass(frozen=True)
class Predictor:
    """A network made ready for tiles.

    Attributes:
        features: the network without its head: uint8 (z, y, x), a tile and its halo, to the finest features over the
            tile, (z, y, x, c).
        head: weight and bias of the 1x1x1 convolution from features to logits, (d, c) and (d,), float32.
        network: folded, in evaluation mode, on ``device``; what is averaged over images comes from it.
        tile: voxels that one forward pass yields, (z, y, x).
        device: where it runs.
        dtype: what convolutions compute in.
        offsets: one affinity channel each.
        halo: voxels around a tile that it is predicted from, (z, y, x).
        symmetries: images of a tile to average over, the identity first; none for an embedding.
        margin: voxels around a tile over which there are features, (z, y, x): where affinities are cosines of the
            embedding, those in which the second voxels of pairs lie.
    """

    features: Callable[[Tensor], Tensor]
    head: tuple[Tensor, Tensor]
    network: Network
    tile: Triple
    device: torch.device
    dtype: torch.dtype
    offsets: Offsets
    halo: Triple
    symmetries: tuple[Symmetry, ...]
    margin: Triple = (0, 0, 0)

    def __call__(self, raw: NDArray[np.uint8]) -> NDArray[Any]:
        """Return one tile: uint8 affinities (c, z, y, x) in 1/255, or the embedding, float16 (d, z, y, x).

        Args:
            raw: uint8 (z, y, x), the tile and its halo.
        """
        result = self.empty(self.tile)
        self.into(result, self.placed(raw))
        return self.fetched(result)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Give the body its thread's stream on a GPU, so that copies of one block pass while another is computed."""
        if self.device.type == "cuda":
            with torch.cuda.stream(_stream(self.device, threading.get_ident())):
                yield
        else:
            yield

    def placed(self, raw: NDArray[np.uint8]) -> Tensor:
        """Return raw voxels on the device."""
        there = torch.from_numpy(np.ascontiguousarray(raw))
        return there.pin_memory().to(self.device) if self.device.type == "cuda" else there

    def finish(self) -> None:
        """Wait until what was begun in this thread's stream is computed."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def fetched(self, result: Tensor) -> NDArray[Any]:
        """Return values of the device as an array."""
        if self.device.type != "cuda":
            return result.numpy()
        here = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)  # four times as fast as pageable memory
        here.copy_(result)
        return here.numpy()

    def empty(self, shape: Triple) -> Tensor:
        """Return room for what is predicted for a region, on the device; its values are undefined."""
        dtype = torch.uint8 if self.symmetries else torch.float16
        channels = len(self.offsets) if self.symmetries and any(self.margin) else len(self.head[0])
        return torch.empty((channels, *shape), dtype=dtype, device=self.device)

    def into(self, result: Tensor, grey: Tensor) -> None:
        """Write one tile into ``result`` (c, z, y, x), which may be a part of a larger one; see `__call__`."""
        with torch.inference_mode():
            if len(self.symmetries) > 1:
                result.copy_(self._averaged(grey))
            elif any(self.margin):
                write_cosines(result, self._embedding(grey), Roi(self.margin, self.tile), self.offsets)
            else:
                self._predicted(grey, result)

    def _predicted(self, grey: Tensor, result: Tensor) -> None:
        features, (weight, bias) = self.features(grey), self.head
        depth, height, width = self.tile
        slab = depth if self.device.type == "cuda" else max(1, SLAB // (height * width))
        for start in range(0, depth, slab):
            part = slice(start, start + slab)
            rows = features[part]
            # channels come first at once: to turn them around afterwards takes four times as long
            values = _finite(torch.addmm(bias[:, None], weight, rows.reshape(-1, rows.shape[-1]).float().t()))
            if self.symmetries:
                values.sigmoid_().mul_(255).round_()
            else:
                values.clamp_(-6e4, 6e4)  # beyond the range of float16 only the direction matters
            result[:, part] = values.view(-1, *rows.shape[:-1])

    def _embedding(self, grey: Tensor) -> Tensor:
        """Return the embedding of a tile and its margin, float32 (d, z, y, x)."""
        features, (weight, bias) = self.features(grey), self.head
        rows = features.reshape(-1, features.shape[-1]).float()
        return _finite(torch.addmm(bias[:, None], weight, rows.t())).view(-1, *features.shape[:-1])

    def _averaged(self, grey: Tensor) -> Tensor:
        with autocast(self.dtype, self.device):
            mean, _ = tta_mean(self.network, _normalised(grey), self.offsets, self.symmetries)
        values = _finite(mean[(0, slice(None), *Roi(self.halo, self.tile).slices())])
        return torch.round(values * 255).to(torch.uint8)


@dataclass(frozen=True)
class _Padded:
    """The finest features over a tile of a network that is no U-Net of ours; see `Unpadded`."""

    network: Network
    keep: Roi
    dtype: torch.dtype

    def __call__(self, grey: Tensor) -> Tensor:
        with autocast(self.dtype, grey.device):
            outputs: Outputs = self.network(_normalised(grey))
        return outputs.features[0][(0, slice(None), *self.keep.slices())].permute(1, 2, 3, 0).to(self.dtype)


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
        network: with affinities, or an embedding of which they are the cosines, or that is asked for.
        tile: voxels that one forward pass yields, (z, y, x).
        device: where it runs.
        dtype: what convolutions compute in.
        offsets: one affinity channel each; needed to average, and for cosines.
        product: what is predicted.
        cubic: whether tiles may be turned out of the section plane, for ``affinities_all``.

    Raises:
        ConfigError: if the tile is not a multiple of the network's pooling, a norm depends on the tile, or the
            network has no embedding though one is asked for.
    """
    if not is_multiple(tile, network.stride):
        raise ConfigError(f"predict.tile {tile} must be a multiple of the network's pooling {network.stride}")
    exact()
    if device.type == "cpu":
        keep_memory()
    elif device.type == "cuda":
        check_convolutions(device, dtype)
    cosines = product == "affinities" and not has_affinities(network)
    name = "embedding" if cosines or product == "embedding" else "affinities"
    folded = placed(fold(only_heads(network, [name])), device)
    margin = reach(offsets, network.stride) if cosines else (0, 0, 0)
    if product in ("affinities", "embedding"):
        group = averaged_over("none", tile, cubic=cubic) if product == "affinities" else ()
        halo = triple(h + m for h, m in zip(network.halo, margin, strict=True))
    else:
        # a flip moves pairs to their other end, which has to lie where the network sees all that it needs
        farthest = max(abs(step) for offset in offsets for step in offset)
        z, y, x = (h + -(-farthest // s) * s for h, s in zip(network.halo, network.stride, strict=True))
        halo, shape = (z, y, x), (tile[0] + 2 * z, tile[1] + 2 * y, tile[2] + 2 * x)
        group = averaged_over("flips" if product == "affinities_flips" else "all", shape, cubic=cubic)
    weight, bias = folded.head(name)
    head = (weight.flatten(1).float(), bias.float())
    features: Callable[[Tensor], Tensor]
    covered = Roi((0, 0, 0), tile).grow(margin).shape
    if isinstance(folded, UNet):
        features = Unpadded(folded, covered, dtype)
    else:
        features = _Padded(only_heads(folded, []), Roi(network.halo if cosines else halo, covered), dtype)
    if device.type == "cuda":  # weights were made ready in this stream, and other streams do not wait for it
        torch.cuda.synchronize(device)
    return Predictor(features, head, folded, tile, device, dtype, offsets, halo, group, margin)


@cache
def _stream(device: torch.device, thread: int) -> torch.cuda.Stream:
    """Return the stream of a thread; a new one for each block would keep the freed memory of all the others."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def has_affinities(network: Network) -> bool:
    """Return whether a network has a head for affinities, rather than an embedding of which they are the cosines."""
    return any(isinstance(module, Heads) and "affinities" in module.convolutions for module in network.modules())


def tile_memory(network: Network, tile: Triple, dtype: torch.dtype, offsets: Offsets = ()) -> int:
    """Return the bytes that the tensors of one tile hold at a time, without predicting it.

    The tile goes through the network as shapes only. What is not counted: weights, the working memory of the
    convolutions, gaps between the tensors, and images of the tile that are averaged over: a process took 0.7 to 1.4
    times as much on a CPU (benchmarks/README.md). A network that is no U-Net of ours is counted in float32.

    Args:
        network: with affinities, or an embedding of which they are the cosines.
        tile: voxels that one forward pass yields, (z, y, x), a multiple of the network's stride.
        dtype: what convolutions compute in.
        offsets: one affinity channel each; needed for cosines.
    """
    meta, cosines = torch.device("meta"), not has_affinities(network)
    shapes = fold(only_heads(network, ["embedding" if cosines else "affinities"])).to(meta)
    inner = Roi((0, 0, 0), tile).grow(reach(offsets, network.stride) if cosines else (0, 0, 0))
    features: Callable[[Tensor], Tensor] = (
        Unpadded(shapes, inner.shape, dtype)
        if isinstance(shapes, UNet)
        else _Padded(only_heads(shapes, []), Roi(network.halo, inner.shape), torch.float32)
    )
    weight, _ = shapes.head("embedding" if cosines else "affinities")
    with torch.inference_mode(), LiveBytes() as live:
        found = features(torch.empty(inner.grow(network.halo).shape, dtype=torch.uint8, device=meta))
        # the result is there beside the features; what leads from one to the other is a slab at a time
        result = torch.empty(len(offsets) if cosines else len(weight), *tile, dtype=torch.uint8, device=meta)
        if cosines:
            vectors = torch.empty(len(weight), *inner.shape, device=meta)
            write_cosines(result, vectors, Roi(triple(-o for o in inner.offset), tile), offsets)
            del vectors
        del found, result
    peak: int = live.peak
    return peak


def _normalised(grey: Tensor) -> Tensor:
    """Return uint8 (z, y, x) as what networks take, (1, 1, z, y, x) in [-1, 1]."""
    return channels_last(grey[None, None].float() / 127.5 - 1)


def _finite(values: Tensor) -> Tensor:
    # the sum is finite if all are, unless it overflows, and is had in a tenth of the time
    if not bool(torch.isfinite(values.sum())) and not bool(torch.isfinite(values).all()):
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
        wanted: says of a tile whether to predict it; what is not predicted is 0. Default: all.

    Returns:
        uint8 or float16 (c, z, y, x) over ``roi``; see `Predictor`.
    """
    around = tiled(roi, predict.tile).grow(predict.halo)
    grey = predict.placed(read_reflected(read, volume, around))
    return predict.fetched(predict_tiles(predict, grey, roi, channels, wanted))


def predict_tiles(
    predict: Predictor,
    grey: Tensor,
    roi: Roi,
    channels: Sequence[int] | None = None,
    wanted: Callable[[Roi], bool] | None = None,
) -> Tensor:
    """Return what a network predicts for a region, on the device; see `predict_roi`.

    Args:
        predict: the network.
        grey: uint8 (z, y, x) on the device, the tiles that the region touches and a halo around them.
        roi: the region.
        channels: those to keep.
        wanted: says of a tile whether to predict it.
    """
    if not roi.size:
        raise DataError(f"region {roi} is empty: nothing to predict")
    around = tiled(roi, predict.tile).grow(predict.halo)
    result = predict.empty(roi.shape)
    for block in blocks(roi, predict.tile):
        cell = Roi(_times(block.index, predict.tile), predict.tile)
        target = result[(..., *block.roi.slices(roi))]
        if wanted is not None and not wanted(cell):
            target.zero_()
            continue
        tile = grey[cell.grow(predict.halo).slices(around)]
        if block.roi == cell:
            predict.into(target, tile)
        else:  # at the border of the region: the tile is computed whole all the same
            whole = predict.empty(predict.tile)
            predict.into(whole, tile)
            target.copy_(whole[(..., *block.roi.slices(cell))])
    predict.finish()
    return result if channels is None else result[list(channels)]


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
