"""A network that sees the cells of `toy_volumes.cells`, as a lab might have it: TorchScript."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from small_trainings import OFFSETS
from torch import Tensor, nn


class Seeing(nn.Module):
    """Two voxels are of one cell where both are bright."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = nn.Conv3d(1, len(OFFSETS), 7, padding=3)
        with torch.no_grad():
            self.pairs.weight.zero_()
            for channel, (z, y, x) in enumerate(OFFSETS):
                self.pairs.weight[channel, 0, 3, 3, 3] += 4
                self.pairs.weight[channel, 0, 3 + z, 3 + y, 3 + x] += 4
            self.pairs.bias.zero_()  # type: ignore[union-attr]

    def forward(self, raw: Tensor) -> Tensor:
        found: Tensor = self.pairs(raw)
        return found


def write_seeing(path: Path, shape: tuple[int, ...]) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.trace(Seeing(), torch.zeros(shape)), path)
    return path
