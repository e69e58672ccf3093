"""Every term of the loss with small inputs that make it count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdseg.config.terms import (
    AdversarialOptions,
    AffinityOptions,
    AttentionOptions,
    BckdOptions,
    CadOptions,
    CirkdOptions,
    CpkdOptions,
    CwdOptions,
    DcdOptions,
    DeepSupervisionOptions,
    DiceOptions,
    DistOptions,
    EmbeddingOptions,
    FactorOptions,
    FitNetsOptions,
    GraphFlowOptions,
    GraphRelationOptions,
    IfvdOptions,
    LsdOptions,
    MgdOptions,
    ReCoKdOptions,
    ReviewKdOptions,
    SkdOptions,
    SoftAffinityOptions,
    SpkdOptions,
    VidOptions,
)
from kdseg.networks.models import Batch, Outputs, Widths
from kdseg.training.losses import Context
from kdseg.training.targets import local_shape_descriptors

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, -3))
LOGITS = {"affinities": len(OFFSETS), "lsd": 10, "embedding": 6}
OURS, THEIRS = Widths(LOGITS, (4, 6, 8), (4, 6)), Widths(LOGITS, (7, 6, 9), (7, 6))
CONTEXT = Context(OFFSETS, (10.0, 10.0, 10.0), OURS, THEIRS)
SHAPE = (8, 8, 12)


class Case(NamedTuple):
    """A term, and what does not hold for it.

    Attributes:
        options: of the term, with what makes small crops count.
        calls: that it sees before its value is more than 0.
        not_in_order: why the order of crops matters.
        not_halved: why a rounding of the outputs changes more than the last digits.
    """

    options: Any
    calls: int = 0
    not_in_order: str = ""
    not_halved: str = ""


CASES = [
    Case(AffinityOptions()),
    Case(LsdOptions()),
    Case(EmbeddingOptions()),
    Case(DiceOptions()),
    Case(DeepSupervisionOptions(levels=(1, -1), boundary_width=2)),
    Case(SoftAffinityOptions(temperature=2.0)),
    Case(SoftAffinityOptions(criterion="mse", balanced=False)),
    Case(GraphRelationOptions(taps=("embedding", 1), node=0.5, min_size=2, memory_start=1), calls=2),
    Case(GraphRelationOptions(taps=("embedding",), graph="rag", inter="kl", min_size=2, memory_start=1), calls=2),
    Case(GraphRelationOptions(taps=("affinities",), min_size=2)),
    Case(GraphFlowOptions(levels=(0, 1), patch=3, fit=2), calls=2),
    Case(
        GraphFlowOptions(levels=(0,), patch=3, fit=2, paraphraser="autoencoder", at="own"),
        calls=2,
        not_halved="the largest of two nearly equal responses of the student may be another one",
    ),
    Case(
        AdversarialOptions(widths=(4, 8), conditioned=True),
        calls=1,
        not_in_order="the mixtures of the gradient penalty are drawn for the place in the batch",
    ),
    Case(CpkdOptions(level=1)),
    Case(CpkdOptions(level=-1)),
    Case(CpkdOptions(reading="pearson")),
    Case(DistOptions()),
    Case(SpkdOptions()),
    Case(SkdOptions(level=0, pool=(2, 2, 2))),
    Case(IfvdOptions(level=0, min_size=2)),
    Case(IfvdOptions(level=1, min_size=2)),
    Case(FitNetsOptions(level=1)),
    Case(FitNetsOptions()),
    Case(AttentionOptions()),
    Case(CwdOptions()),
    Case(CwdOptions(tap=-1)),
    Case(ReviewKdOptions()),
    Case(VidOptions()),
    Case(FactorOptions(fit=2), calls=2),
    Case(CadOptions()),
    Case(CadOptions(tap=0, offsets="all", target="teacher")),
    Case(DcdOptions()),
    Case(CirkdOptions(tokens=16, min_size=2, memory_start=1), calls=2),
    Case(BckdOptions()),
    Case(ReCoKdOptions(min_size=2)),
    Case(MgdOptions(), not_in_order="the mask of a crop is drawn for its place in the batch"),
]
DISTILLING = [case for case in CASES if case.options.from_teacher]


def make_batch(seed: int = 0, n: int = 2) -> Batch:
    """Crops of boxes with unlabelled parts; each label of each crop is one instance."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(1, 6, (n, 2, 2, 3), generator=generator)
    for axis in (1, 2, 3):
        labels = labels.repeat_interleave(4, dim=axis)
    labels[:, :, :2, 10:] = 0
    raw = torch.rand(n, 1, *SHAPE, generator=generator) * 2 - 1
    return Batch(raw, labels, labels > 0, numbered(labels), descriptors=described(labels))


def described(labels: Tensor) -> Tensor:
    return torch.stack([local_shape_descriptors(ids, CONTEXT.voxel_size, 30.0)[0] for ids in labels])


def numbered(labels: Tensor) -> Tensor:
    keys = labels + 6 * torch.arange(len(labels))[:, None, None, None]
    found = torch.zeros_like(labels)
    found[labels > 0] = 1 + keys[labels > 0].unique(return_inverse=True)[1]
    return found


def outputs(seed: int, widths: Widths, made: Callable[..., Tensor] | None = None, n: int = 2) -> Outputs:
    """Outputs of three levels; ``made(shape)`` gives each, noise is the default."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(channels: int, level: int) -> Tensor:
        shape = (n, channels, *(extent // 2**level for extent in SHAPE))
        found = 2 * torch.randn(shape, generator=generator) if made is None else made(shape)
        return found.requires_grad_()

    return Outputs(
        {name: tensor(c, 0) for name, c in widths.logits.items()},
        tuple(tensor(c, level) for level, c in enumerate(widths.features)),
        tuple(tensor(c, level) for level, c in enumerate(widths.skips)),
    )


def tensors(found: Outputs) -> list[Tensor]:
    return [*found.logits.values(), *found.features, *found.skips]
