"""The networks that the tests on a GPU predict with, and volumes for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kdseg.config.networks import DynUNetOptions, HeadOptions, NetworkOptions, UNetOptions
from kdseg.geometry import Offsets, Roi, Triple, blocks
from kdseg.networks.checkpoint import LoadedModel, save_model
from kdseg.networks.models import Network, build
from kdseg.prediction.tiles import Predictor, predict_roi
from kdseg.results.claims import claim
from kdseg.results.manifests import file_fingerprint

OFFSETS: Offsets = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, -3))
KINDS = ("student", "teacher", "dynunet")
HEADS = HeadOptions(embedding=4)


def options_of(kind: str, gpu: bool) -> NetworkOptions:
    """As large as such networks are, or with little to compute, to rehearse with."""
    small: Any = {} if gpu else {"kernels": ((1, 3, 3), (1, 1, 1))}
    if kind == "student":
        return UNetOptions(widths=(4, 8, 16) if gpu else (3, 4), **small)
    if kind == "teacher":
        return UNetOptions(widths=(24, 48) if gpu else (3, 4), residual=True, blocks=2 if gpu else 1, **small)
    return DynUNetOptions(widths=(16, 32, 64)) if gpu else DynUNetOptions(widths=(2, 3, 4), kernels=((1, 1, 1),) * 3)


def network_of(kind: str, gpu: bool) -> Network:
    """Random weights, with statistics of BatchNorm as after a training, and affinities of all values."""
    torch.manual_seed(0)
    network = build(options_of(kind, gpu), HEADS, OFFSETS)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, std=0.3)
    with torch.no_grad():  # statistics that fit what flows, or nothing of the input is left in deep networks
        for _ in range(20):
            network.train()(torch.rand(1, 1, *(4 * s for s in network.stride)) * 2 - 1)
        logits = network.eval()(torch.rand(1, 1, *(4 * s for s in network.stride)) * 2 - 1).logits["affinities"]
        weight, bias = network.head("affinities")
        weight *= 2 / logits.std()
        bias -= bias + (2 / logits.std()) * (logits.mean((0, 2, 3, 4)) - bias)
    return network


def save(manifest: Path, kind: str, gpu: bool) -> Path:
    """Write the manifest of a network and its weights."""
    with claim(manifest, "train", {"kind": kind}, {}) as held:
        model = LoadedModel(network_of(kind, gpu), options_of(kind, gpu), HEADS, OFFSETS, (10.0, 10.0, 10.0))
        save_model(held.model, model)
        held.stats["weights"] = file_fingerprint(held.model)
    return manifest


def grey(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Noise of several scales."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 192, [-(-n // 4) for n in shape]).repeat(4, 0).repeat(4, 1).repeat(4, 2)
    z, y, x = shape
    found: NDArray[np.uint8] = (coarse[:z, :y, :x] + rng.integers(0, 64, shape)).astype(np.uint8)
    return found


def predicted(
    predict: Predictor, raw: NDArray[np.uint8], block: Triple | None = None, *, backwards: bool = False
) -> NDArray[np.uint8]:
    """What is predicted for a volume, in one piece or block by block."""
    shape: Triple = (raw.shape[0], raw.shape[1], raw.shape[2])
    whole = Roi((0, 0, 0), shape)
    out: NDArray[np.uint8] | None = None
    parts = list(blocks(whole, block or shape))
    for part in reversed(parts) if backwards else parts:
        with predict.stream():
            values = predict_roi(predict, lambda roi: raw[roi.slices()], whole, part.roi)
        out = np.zeros((len(values), *shape), values.dtype) if out is None else out
        out[(..., *part.roi.slices())] = values
    assert out is not None
    return out
