"""Teachers: one network or several, as they are or averaged over mirror images, or what they stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kdseg.config.networks import TrainOptions
from kdseg.errors import ConfigError
from kdseg.geometry import Offsets
from kdseg.networks.models import Batch, Network, Outputs, Widths, autocast, widths
from kdseg.prediction.averaging import averaged_over, tta_mean
from kdseg.training.augment import Symmetry
from kdseg.training.losses.base import EPSILON

CERTAIN = 0.5 / 255
"""Affinities closer than this to 0 or 1 are taken for as close: stored ones are known no better."""


@dataclass(frozen=True)
class Teachers:
    """Teachers of a student, whose outputs are combined.

    Attributes:
        networks: folded, on the device of the student; none if their outputs are stored.
        widths: channels of what they return together.
        offsets: one affinity channel each.
        combine: how several teachers' affinities become one.
        symmetries: of the crop, over which affinities are averaged; the identity first.
        dtype: what convolutions compute in.
    """

    networks: tuple[Network, ...]
    widths: Widths
    offsets: Offsets
    combine: Literal["mean", "confidence"] = "mean"
    symmetries: tuple[Symmetry, ...] = ()
    dtype: torch.dtype = torch.float32

    def __call__(self, batch: Batch) -> Outputs:
        """Return what the teachers say about a batch, without gradient.

        One network that is not averaged gives all that it has. Otherwise there are only affinities, and
        embeddings if all teachers have one: their unit vectors, one after the other, so that the cosine of two
        voxels is the mean of the teachers' cosines.
        """
        with torch.no_grad():
            if not self.networks:
                return self._stored(batch)
            if len(self.networks) == 1 and len(self.symmetries) == 1:
                with autocast(self.dtype, batch.raw.device):
                    outputs: Outputs = self.networks[0](batch.raw)
                return outputs
            found = [self._predicted(network, batch.raw) for network in self.networks]
            logits = {"affinities": combined([probabilities for probabilities, _ in found], self.combine)}
            if "embedding" in self.widths.logits:
                logits["embedding"] = torch.cat([vectors for _, vectors in found if vectors is not None], dim=1)
            return Outputs(logits, ())

    def _predicted(self, network: Network, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return probabilities, averaged over symmetries, and the unit embedding if the network has one."""
        with autocast(self.dtype, raw.device):
            probabilities, outputs = tta_mean(network, raw, self.offsets, self.symmetries)
        if "embedding" not in outputs.logits:
            return probabilities, None
        return probabilities, normalize(outputs.logits["embedding"].float(), dim=1, eps=EPSILON)

    def _stored(self, batch: Batch) -> Outputs:
        if batch.taught is None:
            raise ConfigError("the teachers are stored, but the batch carries nothing of theirs")
        affinities, known, embedding = batch.taught
        teachers = [affinities[:, k].float() / 255 for k in range(affinities.shape[1])]
        logits = {"affinities": combined(teachers, self.combine)}
        if embedding.shape[1]:
            logits["embedding"] = embedding.float()
        return Outputs(logits, (), known=known)


def teachers_of(
    networks: Sequence[Network],
    options: TrainOptions,
    offsets: Offsets,
    dtype: torch.dtype,
    *,
    cubic: bool,
    stored: Widths | None = None,
) -> Teachers | None:
    """Return the teachers of a run; None if it has none.

    Args:
        networks: folded, one per teacher; none if they are stored.
        options: of the training.
        offsets: one affinity channel each.
        dtype: what convolutions compute in.
        cubic: whether voxels are as long as they are high and wide, so that data look alike when turned.
        stored: channels of stored outputs, if they are.

    Raises:
        ConfigError: if fewer networks were given than the options name.
    """
    if not options.teachers:
        return None
    teaching = options.teaching
    if teaching.outputs == "stored":
        if stored is None:
            raise ConfigError("teaching.outputs is `stored`, but nothing stored was given")
        return Teachers((), stored, offsets, teaching.combine)
    if len(networks) != len(options.teachers):
        raise ConfigError(
            f"the run distils from {options.teachers}, but got {len(networks)} teacher checkpoints: give one each"
        )
    group = averaged_over(teaching.average, options.crop, cubic=cubic)
    found = [widths(network) for network in networks]
    if len(networks) == 1 and len(group) == 1:
        return Teachers(tuple(networks), found[0], offsets, teaching.combine, group, dtype)
    logits = {"affinities": len(offsets)}
    if all("embedding" in each.logits for each in found):
        logits["embedding"] = sum(each.logits["embedding"] for each in found)
    return Teachers(tuple(networks), Widths(logits, (), ()), offsets, teaching.combine, group, dtype)


def combined(probabilities: Sequence[Tensor], how: Literal["mean", "confidence"]) -> Tensor:
    """Return the logits of several teachers' affinities together.

    Args:
        probabilities: float32 in [0, 1], all of one shape.
        how: their mean, or weighted by how far each is from 1/2, so that who does not know does not blur.
    """
    stacked = torch.stack(tuple(probabilities))
    if how == "confidence":
        weights = (2 * stacked - 1).abs() + 1e-3
        mean = (stacked * weights).sum(0) / weights.sum(0)
    else:
        mean = stacked.mean(0)
    return torch.logit(mean.clamp(CERTAIN, 1 - CERTAIN))
