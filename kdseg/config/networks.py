"""Networks and how they are trained."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kdseg.config.base import Count, Extent, Positive, Probability, Section, Weight
from kdseg.config.terms import AffinityOptions, TermOptions


class _Levels(Section):
    widths: Annotated[tuple[Count, ...], Field(min_length=2)]
    """Channels per resolution level, finest first."""
    downsample: tuple[Extent, ...] = ()
    """Pooling from each level to the next; default (2, 2, 2). Use (1, 2, 2) while z is coarser."""
    kernels: tuple[Extent, ...] = ()
    """Convolution kernel of each level, odd; default (3, 3, 3). Use (1, 3, 3) while z is coarser."""

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        n = len(self.widths)
        if self.downsample and len(self.downsample) != n - 1:
            raise ValueError(f"{n} widths need {n - 1} downsample steps, got {len(self.downsample)}")
        if self.kernels and len(self.kernels) != n:
            raise ValueError(f"{n} widths need {n} kernels, got {len(self.kernels)}")
        if any(k % 2 == 0 for kernel in self.kernels for k in kernel):
            raise ValueError(f"kernels must be odd along every axis, got {self.kernels}")
        return self

    @property
    def steps(self) -> tuple[Extent, ...]:
        """Pooling between the levels, defaults filled in."""
        return self.downsample or ((2, 2, 2),) * (len(self.widths) - 1)

    @property
    def level_kernels(self) -> tuple[Extent, ...]:
        """Kernel of each level, defaults filled in."""
        return self.kernels or ((3, 3, 3),) * len(self.widths)


class UNetOptions(_Levels):
    """Our own U-Net: plain for students, residual for teachers; batch norm, foldable."""

    kind: Literal["unet"] = "unet"
    blocks: Count = 1
    """Blocks of two convolutions per level."""
    residual: bool = False
    """Add a block's input to its output (Lee et al. 2017, "Superhuman accuracy")."""


class DynUNetOptions(_Levels):
    """MONAI's DynUNet (nnU-Net family) with residual blocks and batch norm; needs the extra `monai`."""

    kind: Literal["dynunet"] = "dynunet"


NetworkOptions = Annotated[UNetOptions | DynUNetOptions, Field(discriminator="kind")]


class HeadOptions(Section):
    """What a network predicts beside affinities."""

    lsd: bool = False
    """Local shape descriptors, 10 channels (Sheridan et al. 2022), an auxiliary target."""
    lsd_sigma: Positive = 80.0
    """Width of the descriptors' Gaussian window in nm."""
    embedding: Annotated[int, Field(ge=0)] = 0
    """Channels of a voxel embedding trained so that its cosines are affinities; 0 leaves it out."""


class AugmentOptions(Section):
    """Probabilities of each augmentation per crop; what EM needs."""

    flip: bool = True
    """Flip each axis with probability 1/2."""
    rotate: Literal["none", "yx", "zyx"] = "yx"
    """Quarter turns in the section plane, or of all axes (isotropic voxels only)."""
    elastic: Probability = 0.2
    intensity: Probability = 0.5
    """Contrast, brightness and gamma, of the crop and of single sections."""
    noise: Probability = 0.2
    blur: Probability = 0.1
    missing_section: Probability = 0.05
    """Blank one or two sections."""
    misaligned_section: Probability = 0.05
    """Shift one section, or all sections from one on; the labels move with them."""


class TrainOptions(Section):
    """How one network is trained. Teacher and student go through the same stage."""

    volumes: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of the labelled volumes to draw crops from."""
    unlabelled: tuple[str, ...] = ()
    """Names of further volumes whose crops feed only the distillation terms."""
    validate_on: str
    """Name of a labelled volume for validation by VOI."""
    teacher: str | None = None
    """Name of the model to distil from; none trains on ground truth alone."""
    terms: tuple[TermOptions, ...] = (AffinityOptions(),)
    """Summands of the loss."""
    steps: Count = 1000
    batch: Count = 2
    crop: Extent = (64, 64, 64)
    """Voxels of one crop; a multiple of the network's total pooling."""
    learning_rate: Positive = 1e-3
    """Peak of a cosine schedule that ends at 0."""
    warmup: Annotated[int, Field(ge=0)] = 50
    """Steps of linear warm-up."""
    weight_decay: Weight = 1e-2
    gradient_clip: Positive = 1.0
    """Largest norm of the gradient."""
    accumulate: Count = 1
    """Batches per step of the optimiser."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the averaged weights that are validated and shipped; 0 switches averaging off."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 where the device computes it natively, else float32."""
    augment: AugmentOptions = AugmentOptions()
    unlabelled_fraction: Probability = 0.5
    """Share of crops drawn from `unlabelled`."""
    validate_every: Count = 250
    validate_shape: Extent = (64, 128, 128)
    """Central crop of the validation volume that is segmented and scored."""
    checkpoint_every: Count = 100
    """Steps between resumable checkpoints."""
    seed: Annotated[int, Field(ge=0)] = 0
    loader_workers: Annotated[int, Field(ge=0)] = 0
    """Processes that prepare crops; the crops do not depend on it."""

    @model_validator(mode="after")
    def _distillation_needs_a_teacher(self) -> Self:
        names = [term.name for term in self.terms]
        if len(set(names)) != len(names):
            raise ValueError(f"each term may be given once, got {names}")
        distilling = [term.name for term in self.terms if term.from_teacher]
        if distilling and self.teacher is None:
            raise ValueError(f"the terms {distilling} need a `teacher`")
        if self.teacher is not None and not distilling:
            raise ValueError(f"teacher {self.teacher!r} is named, but no term uses it: add e.g. soft_affinity")
        if self.unlabelled and not distilling:
            raise ValueError("`unlabelled` volumes feed only distillation terms, and there is none")
        return self


class ModelOptions(Section):
    """One network, teacher or student."""

    network: NetworkOptions
    heads: HeadOptions = HeadOptions()
    train: TrainOptions

    @model_validator(mode="after")
    def _heads_are_trained(self) -> Self:
        names = {term.name for term in self.train.terms}
        if not names & {"affinity", "soft_affinity"}:
            raise ValueError(
                f"affinities need a term that trains them, `affinity` or `soft_affinity`; got {sorted(names)}"
            )
        for head, there in (("lsd", self.heads.lsd), ("embedding", self.heads.embedding > 0)):
            if there != (head in names):
                raise ValueError(f"heads.{head} and the term {head!r} need each other: give both or neither")
        return self
