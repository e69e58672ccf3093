"""Networks and how they are trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from kdseg.config.addresses import Address
from kdseg.config.base import Border, Count, Extent, Positive, Probability, Section, Weight
from kdseg.config.optimiser import OptimiserOptions
from kdseg.config.terms import AffinityOptions, DiceOptions, EmbeddingOptions, TermOptions
from kdseg.config.terms.supervised import Boundary

DEFAULT_STEPS = 1000
TIMED_STEPS = 32
"""Steps that are timed to find how many fit into `train.seconds`. With `normalise`, one in 32 or more measures
gradients."""


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
    def spelled_out(self) -> Self:
        """The same network, with what is made by default."""
        return self.model_copy(update={"downsample": self.steps, "kernels": self.level_kernels})

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
    """Outputs of a network."""

    affinities: bool = True
    """Off: there is no head for affinities. They are the cosines of the embedding, negative ones 0, at the offsets of
    the configuration, and only terms on the embedding train the network."""
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
    turn: Probability = 0.0
    """Turn by any angle, in one of the planes of `rotate`; more of the volume is read for the corners."""
    elastic: Probability = 0.2
    intensity: Probability = 0.5
    """Contrast, brightness and gamma, of the crop and of single sections."""
    noise: Probability = 0.2
    blur: Probability = 0.1
    missing_section: Probability = 0.05
    """Blank one or two sections."""
    misaligned_section: Probability = 0.05
    """Shift one section, or all sections from one on; the labels move with them."""

    @model_validator(mode="after")
    def _turns_in_a_plane(self) -> Self:
        if self.turn and self.rotate == "none":
            raise ValueError("augment.turn turns in the planes of augment.rotate, which is none: use yx or zyx")
        return self


class TeachingOptions(Section):
    """Targets from teachers: online or stored, averaged, combined."""

    outputs: Literal["online", "stored"] = "online"
    """`online`: teachers predict each crop as it is augmented. `stored`: they predict the volumes once, and crops
    are cut from that; affinities follow flips and quarter turns, and of a deformed crop those pairs are known that
    stayed as far apart as they were; there are no features."""
    combine: Literal["mean", "confidence"] = "mean"
    """Several teachers: the mean of their affinities, or each weighted by its distance from 1/2."""
    average: Literal["none", "flips", "all"] = "none"
    """Average each teacher's affinities over mirror images of the crop, or also over quarter turns: of all axes
    where voxels are cubes, else in the section plane."""
    instances: Literal["none", "segmentation"] = "none"
    """Neurons of unlabelled volumes, for terms on instances: none, or the first teacher's own segmentation."""
    threshold: Probability = 0.5
    """Fragments of the teachers' affinities are merged up to this score where their segmentation stands for ground
    truth: in validation on a volume without labels."""


class TrainOptions(Section):
    """Training of one network. Teacher and student go through the same stage."""

    volumes: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of the volumes to draw crops from: labelled ones, or any if no term compares with ground truth."""
    unlabelled: tuple[str, ...] = ()
    """Names of further volumes whose crops feed only the distillation terms."""
    validate_on: str
    """Name of a volume for validation by VOI; without labels, by agreement with the teachers' own segmentation."""
    teacher: str | tuple[str, ...] | None = None
    """Name of the model to distil from, or of an entry of `teachers`, or several; none trains on ground truth alone."""
    teaching: TeachingOptions = TeachingOptions()
    start_from: Address | None = None
    """The name of a shipped network, or the path of a model file, to start from instead of random weights: of the same
    network, offsets and voxel size. A head that it lacks begins at random, one that is not asked for is dropped."""
    distil: bool = True
    """Off: train on ground truth alone, whatever `teacher`, `unlabelled` and the distillation terms say."""
    terms: tuple[TermOptions, ...] = (AffinityOptions(),)
    """Summands of the loss."""
    normalise: bool = False
    """Divide each term by the running norm of its gradient, relative to that of `affinity`, so that weights are
    comparable: 1 pulls the student as strongly as ground truth."""
    steps: Count | None = None
    """Steps of the optimiser; default 1000, unless `seconds` says how long to train."""
    seconds: Positive | None = None
    """Time to train for, validations included, instead of `steps`: some steps and a validation are timed, then the
    number of steps is fixed, and the learning rate falls from then on. It is kept with the state: a run that was
    killed goes on with the same schedule."""
    batch: Count = 2
    crop: Extent = (64, 64, 64)
    """Voxels of one crop; a multiple of the network's total pooling."""
    margin: Border = (0, 0, 0)
    """Voxels at the border of each crop that no term counts, since the network sees less around them than it will in a
    volume; a multiple of the total pooling if a term looks at features."""
    learning_rate: Positive = 1e-3
    """Peak of the schedule, which `optimiser.decay` says."""
    optimiser: OptimiserOptions = OptimiserOptions()
    warmup: Annotated[int, Field(ge=0)] = 50
    """Steps of linear warm-up."""
    weight_decay: Weight = 1e-2
    gradient_clip: Positive = 1.0
    """Largest norm of the gradient."""
    accumulate: Count = 1
    """Batches per step of the optimiser."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the averaged weights that are validated and shipped, less in the first thousands of steps; 0 switches
    averaging off."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 where the device computes it natively, else float32."""
    augment: AugmentOptions = AugmentOptions()
    unlabelled_fraction: Probability = 0.5
    """Share of crops drawn from `unlabelled`, and from `volumes` that have no labels where some have. Where no term
    looks at labels, crops come from all of them alike, by their size."""
    validate_every: Count = 250
    validate_shape: Extent = (64, 128, 128)
    """Central crop of the validation volume that is segmented and scored."""
    checkpoint_every: Count = 100
    """Steps between resumable checkpoints."""
    seed: Annotated[int, Field(ge=0)] = 0
    loader_workers: Annotated[int, Field(ge=0)] = 0
    """Processes that prepare crops; the crops do not depend on it."""

    @model_validator(mode="before")
    @classmethod
    def _steps_or_seconds(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        steps, seconds = values.get("steps"), values.get("seconds")
        if steps is not None and seconds is not None:
            raise ValueError(f"give `steps` or `seconds`, not both: got {steps!r} and {seconds!r}")
        return values if steps is not None or seconds is not None else {**values, "steps": DEFAULT_STEPS}

    @model_validator(mode="after")
    def _distillation_needs_a_teacher(self) -> Self:
        names = [term.name for term in self.terms]
        if len(set(names)) != len(names):
            raise ValueError(f"each term may be given once, got {names}")
        distilling = [term.name for term in self.terms if term.from_teacher]
        if distilling and not self.teacher:
            raise ValueError(f"the terms {distilling} need a `teacher`")
        if self.teacher and not distilling:
            raise ValueError(f"teacher {self.teacher!r} is named, but no term uses it: add e.g. soft_affinity")
        if self.unlabelled and not distilling:
            raise ValueError("`unlabelled` volumes feed only distillation terms, and there is none")
        if isinstance(self.teacher, tuple) and len(set(self.teacher)) != len(self.teacher):
            raise ValueError(f"each teacher may be named once, got {self.teacher}")
        for term in self.active_terms:
            if self.steps is not None and self._begin(term) >= self.steps:
                raise ValueError(
                    f"the term {term.name!r} would never act: it begins after {self._begin(term)} of {self.steps} "
                    "steps; lower its `start`, `fit` or `memory_start`"
                )
        if not self.active_terms:
            raise ValueError(f"with `distil: false` no term is left of {names}: add e.g. affinity")
        return self

    @model_validator(mode="after")
    def _margin_leaves_something(self) -> Self:
        if any(2 * border >= n for border, n in zip(self.margin, self.crop, strict=True)):
            raise ValueError(f"nothing is left of a crop of {self.crop} voxels within a margin of {self.margin}")
        return self

    @model_validator(mode="after")
    def _teachers_give_what_terms_need(self) -> Self:
        features = [t.name for t in self.terms if t.from_teacher and t.features_used]
        if features and self.teaching.outputs == "stored":
            raise ValueError(
                f"the terms {features} need the teacher's features, which are not stored: use "
                "`teaching.outputs: online`, or tap the affinities or the embedding"
            )
        if features and (len(self.teachers) > 1 or self.teaching.average != "none"):
            raise ValueError(
                f"the terms {features} compare features, which cannot be averaged over teachers or mirror images: "
                "name one teacher, with `teaching.average: none`, or tap the affinities"
            )
        return self

    def _begin(self, term: TermOptions) -> int:
        """Return the number of steps after which a term acts, in one of their batches at least."""
        return max(term.start, term.idle_batches // self.accumulate)

    def all_parts_act(self, term: TermOptions) -> int:
        """Return the number of steps after which all parts of a term act, in one of their batches at least."""
        return max(term.start, term.late_batches // self.accumulate)

    @property
    def full_rate_steps(self) -> int:
        """Steps after which the learning rate falls: those of the warm-up, and with `seconds` those that are timed.

        What is timed has to cost what the rest costs: it begins when all terms act.
        """
        if self.seconds is None:
            return self.warmup
        return max(self.warmup, *(self._begin(term) for term in self.active_terms)) + TIMED_STEPS

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names of the models to distil from; none with ``distil: false``."""
        if self.teacher is None or not self.distil:
            return ()
        return (self.teacher,) if isinstance(self.teacher, str) else self.teacher

    @property
    def active_terms(self) -> tuple[TermOptions, ...]:
        """The terms that are trained; with ``distil: false`` those on ground truth."""
        return tuple(term for term in self.terms if self.distil or not term.from_teacher)

    @property
    def supervised(self) -> bool:
        """Whether a term needs ground truth."""
        return any(term.truth_used for term in self.active_terms)

    @property
    def labels_used(self) -> bool:
        """Whether a term looks at labels: at ground truth, or at the neurons in it."""
        return self.supervised or any(term.instances_used for term in self.active_terms)

    @property
    def stored_products(self) -> tuple[str, ...]:
        """Products stored of each teacher and volume, as `kdseg predict --product` calls it; at most once each."""
        if not self.teachers or self.teaching.outputs != "stored":
            return ()
        average = self.teaching.average
        affinities = "affinities" if average == "none" else f"affinities_{average}"
        tapped = any(term.from_teacher and "embedding" in term.taps_used for term in self.active_terms)
        return (affinities, "embedding") if tapped else (affinities,)

    @property
    def boundary(self) -> Boundary:
        """Membrane between touching neurons, as the term `affinity` has it, or else `dice` or `embedding`."""
        kinds = (AffinityOptions, DiceOptions, EmbeddingOptions)
        return next((term.boundary for kind in kinds for term in self.terms if isinstance(term, kind)), "auto")

    @property
    def drawn(self) -> tuple[str, ...]:
        """Names of the volumes that crops are drawn from."""
        return tuple(dict.fromkeys((*self.volumes, *self.active_unlabelled)))

    @property
    def active_unlabelled(self) -> tuple[str, ...]:
        """Names of the unlabelled volumes in use; none with ``distil: false``."""
        return self.unlabelled if self.distil else ()


class ModelOptions(Section):
    """One network, teacher or student."""

    network: NetworkOptions
    heads: HeadOptions = HeadOptions()
    train: TrainOptions

    @model_validator(mode="after")
    def _heads_are_trained(self) -> Self:
        terms = self.train.active_terms
        names = sorted(term.name for term in terms)
        if not self.heads.affinities:
            needing = [
                term.name for term in terms if term.name in ("affinity", "dice") or "affinities" in term.taps_used
            ]
            if needing or not self.heads.embedding:
                raise ValueError(
                    "with heads.affinities: false affinities are the cosines of the embedding: set heads.embedding, "
                    f"and leave out the terms on an affinity head {needing}"
                )
        elif not {"affinity", "dice", "soft_affinity"}.intersection(names):
            raise ValueError(
                f"affinities need a term that trains them, `affinity`, `dice` or `soft_affinity`; got {names}"
            )
        if self.heads.lsd != ("lsd" in names):
            raise ValueError("heads.lsd and the term 'lsd' need each other: give both or neither")
        tapped = [term.name for term in terms if "embedding" in term.taps_used]
        if tapped and not self.heads.embedding:
            raise ValueError(f"the terms {tapped} need an embedding: set heads.embedding, e.g. to 16")
        if self.heads.embedding and not tapped:
            raise ValueError("heads.embedding and a term on it need each other, e.g. `embedding`: give both or neither")
        return self
