"""Choices that make a configuration of data: what is trained or taken, and how it is laid out."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from math import prod
from pathlib import Path

from kdseg.config.addresses import is_url, locate
from kdseg.config.shipped import cards
from kdseg.config.tuning import LEAST_SIDE
from kdseg.errors import ConfigError, masked
from kdseg.geometry import sides
from kdseg.planning.proposal.data import Data
from kdseg.planning.proposal.network import FAR, Blocks, Shape, blocks_for, shape_for
from kdseg.planning.proposal.split import Parts, split

SHIPPED = "fib25-m"
"""Network to segment with by docs/models.md, where its card fits; those that are trained here are like it."""
_SMALL = 2**26
"""Voxels of a volume up to which its jobs are faster side by side than with several processes each."""


@dataclass(frozen=True)
class Trained:
    """A training on labelled parts of the data.

    Attributes:
        parts: of the data.
        shape: of the network.
        gpu: it is trained on one.
    """

    parts: Parts
    shape: Shape
    gpu: bool


@dataclass(frozen=True)
class Proposal:
    """All that a configuration says.

    Attributes:
        data: that it is of.
        name: of its folder of results.
        shipped: network that comes with kdseg, to start from, or to segment with; None: none knows such voxels.
        trained: what is trained; None: nothing, since nothing is labelled.
        blocks: layout of volumes.
        workers: processes of a job.
        fused: affinities are not stored, since they do not fit.
    """

    data: Data
    name: str
    shipped: str | None
    trained: Trained | None
    blocks: Blocks
    workers: int
    fused: bool

    @property
    def thin(self) -> bool:
        """Whether the part to tune on is so thin that the threshold which is best there is partly luck."""
        if self.trained is None:
            return False
        return min(sides(self.trained.parts.tune.shape, self.data.voxel_size)) < LEAST_SIDE

    @property
    def intensity(self) -> tuple[float, float] | None:
        """Raw values that become 0 and 255; None: those of the data type."""
        given, grey = self.data.options.intensity, self.data.grey
        if given is not None or grey.flat:
            return given
        if self.shipped is not None:
            return grey.range_like_known()
        return None if grey.in_bytes else grey.range_of_tails()


def propose_training(data: Data, *, gpu: bool) -> Proposal:
    """Return the proposal for labelled data: a network is trained, from a shipped one if that knows such voxels."""
    parts = split(data.region, data.voxel_size)
    shape = shape_for(data.voxel_size, parts.train.shape)
    # crops of a few sections see none of the pairs that the last channels of the shipped network are of
    known = cards()[SHIPPED].knows(data.voxel_size) and shape.offsets == FAR
    return _proposal(data, parts.train.shape, SHIPPED if known else None, Trained(parts, shape, gpu))


def propose_shipped(data: Data) -> Proposal:
    """Return the proposal for data without labels: a shipped network segments them.

    Raises:
        ConfigError: if none knows such voxels.
    """
    card = cards()[SHIPPED]
    if not card.knows(data.voxel_size):
        raise ConfigError(
            f"no labels are given, and no network that comes with kdseg knows voxels of {_nm(data.voxel_size)} nm "
            f"({SHIPPED}: {_nm(card.voxel_size)} nm): give ground truth of a part as LABELS to train one, or another "
            "resolution level of RAW if there is one"
        )
    return _proposal(data, data.raw.roi.shape, SHIPPED, None)


def _proposal(data: Data, largest: tuple[int, int, int], shipped: str | None, trained: Trained | None) -> Proposal:
    small = prod(largest) <= _SMALL
    stored = prod(largest) * len(FAR)
    return Proposal(
        data=data,
        name=_name(str(data.options.raw)),
        shipped=shipped,
        trained=trained,
        blocks=blocks_for(data.voxel_size, largest),
        workers=1 if small else len(os.sched_getaffinity(0)),
        fused=trained is None and 2 * stored > shutil.disk_usage(Path.cwd()).free,
    )


def _nm(size: tuple[float, float, float]) -> str:
    return " x ".join(f"{one:g}" for one in size)


def _name(address: str) -> str:
    """Return a name for the folder of results: that of the file or folder, without its ending."""
    shown = masked(address).partition("://")[2].partition("?")[0]
    path = Path(shown) if is_url(address) else locate(address).path
    stores = [part for part in path.parts if part.lower().endswith(".zarr")]
    last = (stores or [path.resolve().name])[-1]
    return folder_name(last.partition(".")[0])


def folder_name(word: str) -> str:
    """Return a word as the name of a folder of results."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", word).strip("-") or "mine"
