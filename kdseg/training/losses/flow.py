"""Distillation of the variation between layers."""

from __future__ import annotations

from types import MappingProxyType
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool3d, pad

from kdseg.config.terms import GraphFlowOptions
from kdseg.errors import ConfigError
from kdseg.networks.models import Batch, Outputs
from kdseg.training.losses.base import Context, Term
from kdseg.training.losses.paraphraser import Paraphraser, paraphraser
from kdseg.training.losses.taps import Side, aligned, width

Layer = Literal["skip", "feature"]
LAYERS: tuple[Layer, Layer] = ("skip", "feature")
"""Of each level, what the encoder and what the decoder makes."""


class Peaks(NamedTuple):
    """Places where channels respond most.

    Attributes:
        places: int64 (n, c, peaks), strongest first, as the place in the flattened crop.
        found: bool (n, c, peaks), False where a channel has fewer peaks.
    """

    places: Tensor
    found: Tensor


class GraphFlowTerm(Term):
    """Variation of channels and their correlations from encoder to decoder (Zou et al., arXiv 2203.08667).

    Each channel is a vertex: the patches around its strongest responses, as one unit vector. The cosines of
    vertices are the edges. At each level the encoder's vertices and edges are taken from the decoder's, and
    the student's differences are compared with the teacher's: for vertices the squared distance, a mean over
    channels, in [0, 16]; for edges the squared error, a mean over pairs of channels, in [0, 16]. The teacher's
    channels are first brought to the student's number, encoder and decoder each by a paraphraser of its own;
    channels that a student has more than its teacher are not compared.

    Published are patches around each network's own maximum: the places of the two have nothing to do with each
    other, and few voxels get a gradient. Here the teacher's places serve for both, and several per channel.
    """

    def __init__(self, options: GraphFlowOptions, context: Context) -> None:
        super().__init__()
        self.weights = MappingProxyType({"vertices": options.vertices, "edges": options.edges})
        self.levels = tuple(dict.fromkeys(options.levels))
        self.patch, self.peaks, self.own = options.patch, options.peaks, options.at == "own"
        made = {}
        for level in self.levels:
            theirs = _widths(context, "teacher", level)
            compared = min(*_widths(context, "student", level), *theirs)
            for layer, channels in zip(LAYERS, theirs, strict=True):
                made[f"{layer}{level}"] = paraphraser(
                    options.paraphraser, channels, compared, options.fit, options.sample
                )
        self.paraphrasers = nn.ModuleDict(made)

    def values(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return both parts, 0 as long as the paraphrasers are fitted; see `Term`."""
        mapped = [(layer, level, self._paraphraser(layer, level)) for level in self.levels for layer in LAYERS]
        if any(paraphraser.fitting for _, _, paraphraser in mapped):
            if self.training:
                for layer, level, paraphraser in mapped:
                    if paraphraser.fitting:
                        paraphraser.fit(_layer(teacher, layer, level).detach())
            nothing = 0 * torch.stack([_layer(student, layer, level).sum() for layer, level, _ in mapped]).sum()
            return {"vertices": nothing, "edges": nothing}
        of_vertices, of_edges = zip(*(self._compared(student, teacher, level) for level in self.levels), strict=True)
        return {"vertices": torch.stack(of_vertices).mean(), "edges": torch.stack(of_edges).mean()}

    def _compared(self, student: Outputs, teacher: Outputs, level: int) -> tuple[Tensor, Tensor]:
        """Return how the variations differ at a level, for vertices and for edges."""
        ours, theirs = [], []
        for layer in LAYERS:
            mapped = self._paraphraser(layer, level)
            mine = _layer(student, layer, level)[:, : mapped.width]
            taught = aligned(mapped.encode(_layer(teacher, layer, level)), mine)
            there = strongest(taught, self.patch, self.peaks)
            here = strongest(mine, self.patch, self.peaks) if self.own else there
            ours.append(vertices(mine, here, self.patch))
            theirs.append(vertices(taught, there, self.patch))
        moved = (ours[1] - ours[0]) - (theirs[1] - theirs[0])
        turned = (edges(ours[1]) - edges(ours[0])) - (edges(theirs[1]) - edges(theirs[0]))
        pairs = len(turned) * max(turned.shape[1] * (turned.shape[1] - 1), 1)
        return (moved**2).sum(-1).mean(), (turned**2).sum() / pairs

    def _paraphraser(self, layer: Layer, level: int) -> Paraphraser:
        return cast("Paraphraser", self.paraphrasers[f"{layer}{level}"])


@torch.no_grad()
def strongest(values: Tensor, patch: int, count: int) -> Peaks:
    """Return the greatest maxima of the magnitude of each channel.

    A maximum is the greatest of the patch around it, so that the patches around two maxima have other centres.

    Args:
        values: float32 (n, c, z, y, x).
        patch: extent of a patch, odd.
        count: maxima per channel.
    """
    size = values.abs()
    around = size
    for window in ((patch, 1, 1), (1, patch, 1), (1, 1, patch)):
        z, y, x = (extent // 2 for extent in window)
        around = max_pool3d(around, window, stride=1, padding=(z, y, x))
    candidates = torch.where(size == around, size, -1.0).flatten(2)
    greatest, places = candidates.topk(min(count, candidates.shape[2]), dim=2)
    return Peaks(places, greatest > 0)


def vertices(values: Tensor, peaks: Peaks, patch: int) -> Tensor:
    """Return the patches around peaks, joined to one unit vector per channel.

    Beyond the border, and where a channel has fewer peaks, a patch is 0. A channel that is next to silent there
    makes a vector shorter than 1 instead of one that is all noise, so that the gradient is bounded.

    Args:
        values: float32 (n, c, z, y, x).
        peaks: of each channel.
        patch: extent of a patch, odd.

    Returns:
        float32 (n, c, peaks * patch**3).
    """
    y, x = values.shape[3:]
    radius = patch // 2
    padded = pad(values, (radius,) * 6)
    planes, lines = (y + 2 * radius) * (x + 2 * radius), x + 2 * radius
    places = peaks.places
    corner = places // (y * x) * planes + places // x % y * lines + places % x
    step = torch.arange(patch, device=values.device)
    box = (step[:, None, None] * planes + step[:, None] * lines + step).flatten()
    found = padded.flatten(2).gather(2, (corner[..., None] + box).flatten(2))
    found = found * peaks.found.repeat_interleave(len(box), dim=2)
    quiet = 1e-4 * values.detach().square().mean((1, 2, 3, 4)).view(-1, 1, 1) + 1e-6
    return found * (found.square().sum(2, keepdim=True) + quiet).rsqrt()


def edges(found: Tensor) -> Tensor:
    """Return the cosines of vertices, 0 of one with itself, which would be 1 for all.

    Args:
        found: unit vectors, float32 (n, c, d).

    Returns:
        float32 (n, c, c) in [-1, 1].
    """
    cosines = found @ found.mT
    return cosines * (1 - torch.eye(cosines.shape[1], device=cosines.device))


def _layer(outputs: Outputs, layer: Layer, level: int) -> Tensor:
    return (outputs.skips if layer == "skip" else outputs.features)[level].float()


def _widths(context: Context, side: Side, level: int) -> tuple[int, int]:
    """Return the channels of both layers of a level.

    Raises:
        ConfigError: if the network does not return both.
    """
    decoded = width(context, side, level, "graph_flow")
    found = context.student if side == "student" else context.teacher
    skips = () if found is None else found.skips
    if not 0 <= level < len(skips):
        raise ConfigError(
            f"the term 'graph_flow' compares encoder and decoder at level {level} of the {side}, where "
            f"levels 0 to {len(skips) - 1} have both: the bottleneck has no decoder; levels count from the finest"
        )
    return skips[level], decoded
