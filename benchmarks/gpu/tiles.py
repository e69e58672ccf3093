"""One tile on a device: variants of how it is computed, and what it must at least compute and move."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from typing import Any

import torch
from job import Job
from timing import rounded, timed, wait
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from kdseg.config import Config
from kdseg.config.networks import HeadOptions, UNetOptions
from kdseg.geometry import Roi
from kdseg.networks.models import Network, build, kmac_per_voxel, only_heads, unpadded
from kdseg.networks.models.device import resolve_precision
from kdseg.prediction.tiles import Predictor, _Padded, predictor

OFFSETS = Config.model_fields["offsets"].default
NETWORKS = {
    "4,8,16": UNetOptions(widths=(4, 8, 16)),
    "8,16,32": UNetOptions(widths=(8, 16, 32)),
    "16,32,64": UNetOptions(widths=(16, 32, 64)),
    "teacher 24,48,96,192": UNetOptions(widths=(24, 48, 96, 192), residual=True),
    "wide 48,96,192,384": UNetOptions(widths=(48, 96, 192, 384), residual=True),
}
INPUTS = 4
"""Tiles that are taken in turn: one alone would stay in the cache."""
_PRODUCTS = ("convolution", "addmm", "mm")


class Graphed:
    """A function of one tensor, recorded once as a CUDA graph; its result is overwritten by the next call."""

    def __init__(self, function: Callable[[Tensor], Tensor], like: Tensor) -> None:
        if like.device.type != "cuda":
            raise RuntimeError("CUDA graphs need a GPU")
        self.given, self.graph = like.clone(), torch.cuda.CUDAGraph()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside), torch.inference_mode():
            for _ in range(2):
                function(self.given)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.inference_mode(), torch.cuda.graph(self.graph):
            self.result = function(self.given)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the function of ``x``."""
        self.given.copy_(x)
        self.graph.replay()
        return self.result


def network_of(name: str) -> Network:
    """Return a network with random weights."""
    torch.manual_seed(0)
    return build(NETWORKS[name], HeadOptions(), OFFSETS)


def variant(name: str, network: Network, edge: int, device: torch.device, *, rehearse: bool = False) -> Predictor:
    """Return a network made ready for tiles in one of several ways.

    Args:
        name: ``product`` as `kdseg.prediction.tiles.predictor` makes it, or words of: ``lanes N``, neighbours along x
            grouped up to N channels; ``padded``, the padded network channels last; ``autotuned``, cuDNN tries its
            algorithms, those that are not deterministic too; ``compiled``; ``graph``.
        network: any of `NETWORKS`.
        edge: voxels of the tile along each axis.
        device: where it runs.
        rehearse: trace, but generate no code.
    """
    words = name.split()
    with _lanes(int(words[words.index("lanes") + 1]) if "lanes" in words else unpadded.LANES):
        ready = predictor(network, (edge,) * 3, device, resolve_precision("auto", device))
    features = ready.features
    if "padded" in words:
        features = _Padded(only_heads(ready.network, []), Roi(ready.halo, ready.tile), ready.dtype)
    if "autotuned" in words:  # the next `predictor` sets both back
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = True, False
    if "compiled" in words:
        torch._dynamo.reset()
        features = torch.compile(features, dynamic=False, backend="eager" if rehearse else "inductor")
    if "graph" in words:
        features = Graphed(features, grey_of(ready))
    return replace(ready, features=features)


@contextmanager
def _lanes(number: int) -> Iterator[None]:
    before, unpadded.LANES = unpadded.LANES, number
    try:
        yield
    finally:
        unpadded.LANES = before


def grey_of(ready: Predictor) -> Tensor:
    """Return a tile and its halo, random, on the device."""
    shape = [edge + 2 * h for edge, h in zip(ready.tile, ready.halo, strict=True)]
    return torch.randint(0, 256, shape, dtype=torch.uint8, device=ready.device)


def bare(job: Job, name: str, edge: int, how: str, limits: Mapping[str, Any]) -> dict[str, Any]:
    """Return how fast tiles are predicted that are on the device, and what share of the machine's limits that is."""
    device, seconds = torch.device(job.device), 0.0 if job.rehearse else 0.25
    network = network_of(name)
    ready = variant(how, network, edge, device, rehearse=job.rehearse)
    greys = [grey_of(ready) for _ in range(INPUTS)]
    result = ready.empty(ready.tile)
    off_by = None if how == "product" else _off_by(variant("product", network, edge, device), ready, greys[0])
    if "autotuned" in how:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = True, False
    turn = 0

    def tile() -> None:
        nonlocal turn
        turn += 1
        ready.into(result, greys[turn % INPUTS])

    def features() -> None:
        nonlocal turn
        turn += 1
        with torch.inference_mode():
            ready.features(greys[turn % INPUTS])

    wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    whole, part = timed(tile, device, seconds), timed(features, device, seconds / 2)
    voxels = edge**3
    return {
        "mvox_per_s": rounded(voxels / whole.ms / 1e3),
        "ms": rounded(whole.ms),
        "ms_least_most": [rounded(whole.low), rounded(whole.high)],
        "features_ms": rounded(part.ms),
        "off_by": off_by,
        "peak_mb": rounded(torch.cuda.max_memory_allocated() / 1e6) if device.type == "cuda" else None,
        **least(network, edge, ready.dtype, ready.halo, whole.ms, limits),
    }


def _off_by(expected: Predictor, ready: Predictor, grey: Tensor) -> int:
    """Return the largest difference to the product's affinities, in 1/255."""
    there, here = expected.empty(expected.tile), ready.empty(ready.tile)
    expected.into(there, grey)
    ready.into(here.fill_(255), grey)
    return max(int((a.short() - b.short()).abs().max()) for a, b in zip(there, here, strict=True))


def least(
    network: Network, edge: int, dtype: torch.dtype, halo: Sequence[int], ms: float, limits: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a tile must at least compute and move, the time of that at the machine's limits, and its share.

    Operations are those of the network per voxel that is kept; ``gflop_done`` counts halos and grouped zeros, too.
    Bytes through memory are what convolutions read and write, as if all else were fused with them; over PCIe they are
    the grey values with their halo and the affinities.
    """
    voxels, channels = edge**3, len(network.head("affinities")[1])
    gflop = 2e3 * kmac_per_voxel(network) * voxels / 1e9
    done, moved = _done(network, edge, dtype)
    width = network.head("affinities")[0].shape[1]
    moved += voxels * (width * dtype.itemsize + channels)  # from the features to the affinities
    sent, fetched = prod(edge + 2 * h for h in halo), voxels * channels
    found = {
        "gflop": rounded(gflop),
        "gflop_done": rounded(done / 1e9),
        "memory_mb": rounded(moved / 1e6),
        "pcie_mb": [rounded(sent / 1e6), rounded(fetched / 1e6)],
    }
    if "error" in limits or not limits:
        return found
    arithmetic, memory = gflop / limits["bf16_tflop_per_s"], moved / limits["copy_gb_per_s"] / 1e6
    floor = max(arithmetic, memory)
    return {
        **found,
        "roofline_ms": rounded(floor),
        "roofline_of": "arithmetic" if arithmetic > memory else "memory",
        "roofline_share": rounded(floor / ms, 3),
        "pcie_ms": rounded(max(sent / limits["to_gpu_gb_per_s"], fetched / limits["from_gpu_gb_per_s"]) / 1e6),
    }


class _Moved(TorchDispatchMode):
    """Adds up the bytes that products of matrices and convolutions read and write."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket._qualified_op_name.removeprefix("aten::") in _PRODUCTS:
            tensors = [value for value in (*args, result) if isinstance(value, Tensor)]
            self.bytes += sum(value.numel() * value.element_size() for value in tensors)
        return result


def _done(network: Network, edge: int, dtype: torch.dtype) -> tuple[float, float]:
    """Return floating-point operations and bytes of products and convolutions, on shapes only."""
    meta = torch.device("meta")
    features = predictor(network, (edge,) * 3, meta, dtype).features
    grey = torch.empty([edge + 2 * h for h in network.halo], dtype=torch.uint8, device=meta)
    counter, moved = FlopCounterMode(display=False), _Moved()
    with torch.inference_mode(), counter, moved:
        features(grey)
    return float(counter.get_total_flops()), float(moved.bytes)
