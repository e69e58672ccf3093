"""Distillation methods to compare at equal budget."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from kdseg.config.base import Count, Extent, Name, Positive, Section
from kdseg.config.networks import HeadOptions, ModelOptions, TeachingOptions
from kdseg.config.terms import TermOptions
from kdseg.config.terms.supervised import Boundary

ALONE = "alone"
"""Name of the method that is made by itself: the student without a teacher."""

NO_COMPARE = """the configuration has no section `compare`: add one that names the student and a method, e.g.
compare:
  student: student # a model that has a `teacher`
  methods:
    kd: { terms: [{ name: soft_affinity }] }
config/compare.yaml is an example"""
"""Message to a user who asks for a comparison without having configured one."""


class MethodOptions(Section):
    """One way to train the student: what it adds to the terms on ground truth."""

    terms: Annotated[tuple[TermOptions, ...], Field(min_length=1)]
    """Added to the student's terms on ground truth; its other distillation terms are left out. Without any
    distillation term, the method is a control, e.g. for what a head does by itself."""
    heads: HeadOptions | None = None
    """Heads of the student; default: as the compared student has them."""
    teaching: TeachingOptions | None = None
    """Teaching of this method; default: that of the compared student. At equal seconds it counts that terms on
    affinities alone do with a stored teacher."""

    @property
    def distils(self) -> bool:
        """Whether a term compares with the teacher."""
        return any(term.from_teacher for term in self.terms)


class CompareOptions(Section):
    """The same student, trained with each method and each seed, to find the method that is worth it."""

    student: str
    """Name of a model that has a teacher. Its network, data, steps and crops are those of every trial."""
    methods: Annotated[dict[Name, MethodOptions], Field(min_length=1)]
    """By name. `alone`, the student without a teacher, is always there."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)
    """Each method is trained once per seed; a seed fixes the first weights and the crops."""
    learning_rates: tuple[Positive, ...] = ()
    """Rates to try: each method, the student alone too, is trained at each, and goes on with all seeds at the one of
    least affinity loss on `evaluate.tune_on`. Default: the student's own rate for all. A rate at which training fails
    stops the comparison: leave it out."""
    rate_seeds: Count = 1
    """Seeds to try each rate with, the first ones."""
    volumes: tuple[str, ...] = ()
    """Names of the labelled volumes to score on; default: `evaluate.volumes`."""
    shape: Extent = (128, 256, 256)
    """Voxels of the central crop of each volume that is segmented and scored, cut to what is labelled."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if ALONE in self.methods:
            raise ValueError(f"the method {ALONE!r} is made by itself: leave it out, or choose another name")
        given = (("seed", self.seeds), ("volume", self.volumes), ("learning rate", self.learning_rates))
        for what, values in given:
            if len(set(values)) != len(values):
                raise ValueError(f"each {what} may be given once, got {list(values)}")
        if self.rate_seeds > len(self.seeds):
            raise ValueError(
                f"rate_seeds: expected at most the number of seeds, {len(self.seeds)}, got {self.rate_seeds}"
            )
        if not any(method.distils for method in self.methods.values()):
            raise ValueError(f"no method of {sorted(self.methods)} has a distillation term: add e.g. soft_affinity")
        return self

    @property
    def method_names(self) -> tuple[str, ...]:
        """Names of all methods, the student alone first."""
        return (ALONE, *self.methods)


class TrialOptions(Section):
    """Scoring of a trained network for the comparison."""

    tune_on: str
    """Name of the volume on which the threshold is chosen."""
    volumes: tuple[str, ...]
    """Names of the volumes that are scored at that threshold."""
    shape: Extent
    """Voxels of the central crop of each."""
    dust: int = 0
    """Ground-truth objects of fewer voxels within the crop are left out."""
    boundary: Boundary = "auto"
    """Membrane between touching neurons in the ground truth of the affinity loss: that of the student's term."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


def trial_name(method: str, seed: int, rate: float | None = None) -> str:
    """Return the name, and the folder, of one trial. A model of the configuration cannot have a dot in its name.

    Args:
        method: its name.
        seed: of the trial.
        rate: its learning rate, where several are tried.
    """
    return f"{method}.seed{seed}" if rate is None else f"{method}.rate{rate}.seed{seed}"


def choice(method: str) -> str:
    """Return the path, below the folder of results, of the manifest that holds the learning rate of a method."""
    return f"{method}.rate/chosen.json"


def rate_trials(compare: CompareOptions, method: str) -> dict[float, tuple[str, ...]]:
    """Return the names of the trials, by learning rate, that the rate of a method is chosen from."""
    seeds = compare.seeds[: compare.rate_seeds]
    return {rate: tuple(trial_name(method, seed, rate) for seed in seeds) for rate in compare.learning_rates}


def trials(compare: CompareOptions, student: ModelOptions) -> dict[str, ModelOptions]:
    """Return a model per method, learning rate and seed, ``alone`` first; they differ in these, terms and heads only.

    Of learning rates to try, all but the chosen one are trained with the first seeds only.

    Args:
        compare: methods and seeds.
        student: the model ``compare.student``.

    Raises:
        ValueError: if a method does not fit the student.
    """
    if not student.train.teachers:
        raise ValueError(
            f"compare.student names {compare.student!r}, which learns from no teacher: name a model with `teacher` "
            "and without `distil: false`"
        )
    supervised = tuple(term for term in student.train.terms if not term.from_teacher)
    if not supervised:
        raise ValueError(
            f"compare.student names {compare.student!r}, which has no term on ground truth to train it alone: add "
            "e.g. affinity to its terms"
        )
    methods = {ALONE: MethodOptions.model_construct(terms=(), heads=None), **compare.methods}
    return {
        trial_name(name, seed, rate): _trial(student, supervised, name, method, (seed, rate))
        for name, method in methods.items()
        for rate in compare.learning_rates or (None,)
        for seed in compare.seeds
    }


def _trial(
    student: ModelOptions,
    supervised: tuple[TermOptions, ...],
    name: str,
    method: MethodOptions,
    chosen: tuple[int, float | None],
) -> ModelOptions:
    train, (seed, rate) = student.train.model_dump(), chosen
    if rate is not None:
        train["learning_rate"] = rate
    train |= {"seed": seed, "terms": [term.model_dump() for term in (*supervised, *method.terms)]}
    if not method.distils:
        # Nothing of the teacher is left, so that another teacher does not make these trials run again.
        train |= {"teacher": None, "unlabelled": (), "teaching": TeachingOptions().model_dump()}
    elif method.teaching is not None:
        train["teaching"] = method.teaching.model_dump()
    heads = (method.heads or student.heads).model_dump()
    if method.heads is None and not any("embedding" in term.taps_used for term in (*supervised, *method.terms)):
        heads["embedding"] = 0  # nothing would train it
    try:
        return ModelOptions.model_validate({"network": student.network.model_dump(), "heads": heads, "train": train})
    except ValidationError as error:
        problem = error.errors()[0]
        raise ValueError(f"compare.methods.{name}: {problem['msg'].removeprefix('Value error, ')}") from None
