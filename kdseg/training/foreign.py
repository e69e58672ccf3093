"""Networks of others as teachers: tried on a crop, and asked as our own ones are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdseg.config.teachers import NetworkTeacher
from kdseg.errors import ConfigError, DataError, KdsegError, ShapeError, VoxelSizeError
from kdseg.geometry import Offsets, Triple, VoxelSize, channels_of, inner_slices, knows_voxels, triple
from kdseg.networks.foreign import Call, opened, quiet
from kdseg.networks.models import Network, Outputs, Widths
from kdseg.training.losses.base import EPSILON


class ForeignNetwork(Network):
    """A network of others, which gives affinities alone.

    It computes in float32 whatever the student computes in: nobody knows what else it can bear.
    """

    halo, stride = (0, 0, 0), (1, 1, 1)

    def __init__(self, name: str, call: Call, about: NetworkTeacher, offsets: Offsets) -> None:
        """Wrap a network.

        Args:
            name: for messages.
            call: the network, on its device.
            about: what it takes and returns; offsets and outputs are said.
            offsets: of the affinities to give, some of its own.

        Raises:
            ConfigError: if it has no channel for one of them.
        """
        super().__init__()
        self.name, self._call, self.about = name, call, about
        try:
            self._taken = channels_of(offsets, about.offsets or ())
        except ConfigError as error:
            raise ConfigError(f"the teacher {name} {error}") from None
        self.channels = Widths({"affinities": len(offsets)}, (), ())

    def forward(self, raw: Tensor) -> Outputs:
        """Return the logits of the affinities of ``raw``, float (n, 1, z, y, x) in [-1, 1].

        Where the network gives nothing, or is not listened to, they are 0 and not known.
        """
        found = self.returned(raw)
        if self._taken != tuple(range(found.shape[1])):
            found = found[:, list(self._taken)]
        logits = found if self.about.outputs == "logits" else torch.logit(found, EPSILON)
        margin = self.margin(raw, found)
        if not any(margin):
            return Outputs({"affinities": logits}, ())
        z, y, x = inner_slices(raw.shape[2:], margin)
        spare = [m - (n - k) // 2 for m, n, k in zip(margin, raw.shape[2:], found.shape[2:], strict=True)]
        a, b, c = (slice(s, k - s) for s, k in zip(spare, found.shape[2:], strict=True))
        placed = logits.new_zeros(*logits.shape[:2], *raw.shape[2:])
        known = torch.zeros_like(placed, dtype=torch.bool)
        placed[..., z, y, x], known[..., z, y, x] = logits[..., a, b, c], True
        return Outputs({"affinities": placed}, (), known=known)

    def returned(self, raw: Tensor) -> Tensor:
        """Return what the network makes of ``raw``, float32 (n, channels, z', y', x'), as it is.

        Raises:
            ShapeError: if that is something else, or does not lie in the middle of ``raw``.
        """
        with torch.no_grad(), torch.autocast(raw.device.type, enabled=False), quiet():
            found = self._call(self._input(raw))
        if isinstance(found, tuple | list) and found:
            found = found[0]
        expected = f"(n, {len(self.about.offsets or ())}, z, y, x), a channel per offset"
        if not isinstance(found, Tensor):
            raise ShapeError(f"the teacher {self.name} returns a {type(found).__name__}, expected a tensor {expected}")
        sizes = list(zip(raw.shape[2:], found.shape[2:], strict=False))
        if (
            found.ndim != 5
            or found.shape[:2] != (len(raw), len(self.about.offsets or ()))
            or any(k > n or (n - k) % 2 or not k for n, k in sizes)
        ):
            raise ShapeError(
                f"the teacher {self.name} returns {tuple(found.shape)} for {tuple(raw.shape)}, expected {expected}, "
                "no larger than the input and in its middle: correct its `offsets`, or the order of its axes"
            )
        return found.float()

    def margin(self, raw: Tensor, found: Tensor) -> Triple:
        """Return the voxels along the border, (z, y, x), where nothing of the teacher is known."""
        pairs = zip(self.about.halo, raw.shape[2:], found.shape[2:], strict=True)
        return triple(max(halo, (n - k) // 2) for halo, n, k in pairs)

    def _input(self, raw: Tensor) -> Tensor:
        if self.about.input == "uint8":
            return ((raw + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        low, high = self.about.input or (-1.0, 1.0)
        return raw if (low, high) == (-1, 1) else (raw + 1) * ((high - low) / 2) + low


def open_teacher(
    about: NetworkTeacher, offsets: Offsets, voxel_size: VoxelSize, device: torch.device
) -> ForeignNetwork:
    """Return a network of others, ready to teach.

    Args:
        about: where it is, and what it takes and returns as far as its file does not say it.
        offsets: of the student's affinities.
        voxel_size: nm, of the student's data.
        device: of the student.

    Raises:
        ConfigError: if it is not known what the network returns.
        VoxelSizeError: if it is of voxels of another size.
    """
    call, facts = opened(about, device)
    _expect_agreeing(about, facts)
    about = about.model_copy(update=dict(facts))
    lacking = [key for key in ("offsets", "voxel_size", "outputs") if getattr(about, key) is None]
    if about.offsets is None or about.voxel_size is None or lacking:
        raise ConfigError(
            f"the teacher {about.address} does not say its {' and '.join(lacking)}: give them in `teachers`"
        )
    if not knows_voxels(about.voxel_size, voxel_size):
        raise VoxelSizeError(
            f"the teacher {about.address} knows voxels of {about.voxel_size} nm, the data have {voxel_size} nm: take "
            "another teacher, or convert another resolution level"
        )
    return ForeignNetwork(about.address, call, about, offsets)


def _expect_agreeing(about: NetworkTeacher, facts: Mapping[str, Any]) -> None:
    """Refuse what was said of a file that says something else of itself."""
    told = about.model_validate({**about.model_dump(), **facts})
    for key in facts:
        said, value = getattr(about, key), getattr(told, key)
        if said is not None and said != value:
            raise ConfigError(
                f"the teacher {about.address} says that its {key} is {value}, `teachers` says {said}: leave that out"
            )


def check(network: ForeignNetwork, raw: Tensor, *, alone: bool) -> None:
    """Try a network on crops, and refuse one that does not do what is said of it.

    Args:
        network: a teacher.
        raw: float32 (n, 1, z, y, x) in [-1, 1], crops as those of the training.
        alone: no other teacher, nor image of the crop, is averaged with it.

    Raises:
        ShapeError: if it does not take the crops.
        DataError: if its values are not what is said of them.
        ConfigError: if it does not know all of a crop, but is averaged.
    """
    try:
        found = network.returned(raw)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        if isinstance(error, KdsegError):
            raise
        line = " ".join(str(error).split())
        raise ShapeError(
            f"the teacher {network.name} does not take crops of {tuple(raw.shape)}: set `train.crop` and `train.batch` "
            f"to what it takes, or export it with free axes ({type(error).__name__}: {line:.300})"
        ) from None
    low, high = found.min().item(), found.max().item()
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(
            f"the teacher {network.name} returns values from {low} to {high} for a crop, expected finite ones"
        )
    within = low >= 0 and high <= 1
    if within is not (network.about.outputs == "probabilities"):
        raise DataError(
            f"the teacher {network.name} is said to return {network.about.outputs}, but for a crop they lie between "
            f"{low:.4g} and {high:.4g}: set `outputs: {'probabilities' if within else 'logits'}`"
        )
    margin = network.margin(raw, found)
    if any(margin) and not alone:
        raise ConfigError(
            f"the teacher {network.name} leaves out {margin} voxels along the border of a crop, which cannot be "
            "averaged with another teacher, nor over images: give it alone, with `teaching.average: none`"
        )
    if any(2 * m >= n for m, n in zip(margin, raw.shape[2:], strict=True)):
        raise ShapeError(
            f"the teacher {network.name} knows nothing of a crop, as it leaves out {margin} along its border"
        )
