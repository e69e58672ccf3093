"""Methods of distillation side by side: means and spread over seeds, what each costs, who wins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, Literal

from kdseg.config import Config
from kdseg.config.compare import ALONE
from kdseg.errors import MissingError
from kdseg.report.rates import Choices, choices, learning_rate, trial_names
from kdseg.report.results import finite
from kdseg.results.manifests import read

METRICS = (("voi", "VOI", " bits"), ("arand", "ARAND", ""), ("affinity_loss", "affinity loss", " nat"))
"""Key in a trial, name, unit; less is better."""
PARTS = ("voi", "arand", "affinity_loss", "voi_split", "voi_merge", "threshold")
FEW = 3
"""Seeds below which a spread means little."""
Role = Literal["teacher", "student alone", "distilled", "control"]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; the latter is None for one seed."""

    mean: float
    sd: float | None
    count: int


@dataclass(frozen=True)
class Gain:
    """One metric of a method against the student alone, seed by seed.

    Attributes:
        difference: method − alone, negative is better; over the seeds that both have.
        interval: half-width of the 95 % confidence interval of its mean (Student's t); None for one seed.
        closure: share of the gap between the mean student alone and the teacher that the method closes; None
            where it is not measured, or the teacher is not better than the mean student alone.
        wins: seeds in which the method is better.
        ties: seeds in which both are equal.
        teacher_known: whether a teacher is measured; if so, and there is no closure, there is no gap to close.
    """

    difference: Spread
    interval: float | None
    closure: Spread | None
    wins: int
    ties: int
    teacher_known: bool


@dataclass(frozen=True)
class Entry:
    """One row: a teacher, the student alone, or a method, on one volume.

    Attributes:
        name: of the method, or of the teacher's model.
        role: what it is.
        volume: on which it is scored.
        terms: distillation and other terms that the method adds, in words.
        scores: per metric, the value of each seed that is there; a teacher has one, of its own seed.
        spreads: mean and spread of ``scores``.
        gains: per metric, against the student alone; empty for teachers and the student alone.
        seconds_per_step: median over the trials.
        relative_time: of the student alone's, 1 is equal; None where not measured.
        peak_mb: largest over the trials, of the training process.
        gpu_peak_mb: the same of tensors on the GPU.
        expected: trials that the configuration asks for.
        learning_rate: of the trials; None if it is not chosen yet.
        steps: of the training, by seed.
    """

    name: str
    role: Role
    volume: str
    terms: str
    scores: Mapping[str, Mapping[int, float]]
    spreads: Mapping[str, Spread] = field(default_factory=dict)
    gains: Mapping[str, Gain] = field(default_factory=dict)
    seconds_per_step: float | None = None
    relative_time: float | None = None
    peak_mb: float | None = None
    gpu_peak_mb: float | None = None
    expected: int = 1
    learning_rate: float | None = None
    steps: Mapping[int, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Trials that are scored."""
        return len(self.scores["voi"])

    def certainly_better(self, metric: str) -> bool:
        """Return whether the 95 % interval of the difference from the student alone lies below 0."""
        found = self.gains.get(metric)
        return found is not None and found.interval is not None and found.difference.mean + found.interval < 0


@dataclass(frozen=True)
class Comparison:
    """All that the page tells.

    Attributes:
        config: of the run, with its section ``compare``.
        entries: per volume: teachers, the student alone, methods by mean VOI, not measured ones last.
        trials: finished manifests' ``stats`` by model, those for a choice of learning rates included.
        choices: learning rates that were chosen among several, by method.
    """

    config: Config
    entries: tuple[Entry, ...]
    trials: Mapping[str, Mapping[str, Any]]
    choices: Choices

    @property
    def asked(self) -> list[str]:
        """Names of the trials that the configuration asks for, teachers first."""
        methods = self.config.expect_compare().method_names
        found = (trial_names(self.config, self.choices, method).values() for method in methods)
        return [*self.config.compared_teachers, *(name for names in found for name in names)]

    def of(self, volume: str) -> list[Entry]:
        """Return the rows of one volume."""
        return [entry for entry in self.entries if entry.volume == volume]

    def teachers(self, volume: str) -> list[Entry]:
        """Return the teachers' rows of one volume."""
        return [entry for entry in self.of(volume) if entry.role == "teacher"]

    def alone(self, volume: str) -> Entry:
        """Return the student alone's row of one volume."""
        return next(entry for entry in self.of(volume) if entry.role == "student alone")

    def methods(self, volume: str) -> list[Entry]:
        """Return the methods' rows of one volume."""
        return [entry for entry in self.of(volume) if entry.role in ("distilled", "control")]


def collect(config: Config) -> Comparison:
    """Read the trials that are there below ``config.results``.

    Raises:
        MissingError: if there is not one trial.
    """
    config.expect_compare()
    names = [*config.compared_teachers, *config.trials]
    paths = {name: Path(config.results) / name / "trial.json" for name in names}
    found = {name: read(path).stats for name, path in paths.items() if path.exists()}
    if not found:
        raise MissingError(f"no trial below {config.results}: run `kdseg run <this run's YAML> compare`")
    chosen = choices(config)
    entries: list[Entry] = []
    for volume in config.trial.volumes:
        entries += _entries(config, found, chosen, volume)
    return Comparison(config, tuple(entries), found, chosen)


def spread(values: Sequence[float]) -> Spread | None:
    """Return mean and sample standard deviation, None of nothing."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values)) if values else None


def gain(ours: Mapping[int, float], alone: Mapping[int, float], teacher: float | None) -> Gain | None:
    """Return how a method stands to the student alone in one metric where less is better.

    The difference is paired by seed. The closure of a seed divides it by the gap between the mean of *all*
    students alone and the teacher, so that one lucky student alone cannot blow it up.

    Args:
        ours: value by seed.
        alone: the same of the student alone.
        teacher: its value, None if it is not measured.

    Returns:
        None where no seed has both.
    """
    seeds = [seed for seed in ours if seed in alone]
    differences = [ours[seed] - alone[seed] for seed in seeds]
    paired = spread(differences)
    if paired is None:
        return None
    gap = None if teacher is None else fmean(alone.values()) - teacher
    return Gain(
        difference=paired,
        interval=None if paired.sd is None else _quantile(paired.count - 1) * paired.sd / math.sqrt(paired.count),
        closure=spread([-d / gap for d in differences]) if gap is not None and gap > 0 else None,
        wins=sum(d < 0 for d in differences),
        ties=sum(d == 0 for d in differences),
        teacher_known=teacher is not None,
    )


def best_teacher(teachers: Sequence[Entry], metric: str) -> float | None:
    """Return the least value of the teachers, which makes the gap the widest; None if none is measured."""
    return min((value for entry in teachers for value in entry.scores[metric].values()), default=None)


def _quantile(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def _entries(config: Config, found: Mapping[str, Mapping[str, Any]], chosen: Choices, volume: str) -> list[Entry]:
    compare = config.expect_compare()
    tried = {
        method: {seed: found.get(name) for seed, name in trial_names(config, chosen, method).items()}
        for method in compare.method_names
    }
    teachers = []
    for name in config.compared_teachers:
        train = config.models[name].train if name in config.models else None
        entry = _entry(name, "teacher", volume, "", {0 if train is None else train.seed: found.get(name)})
        teachers.append(replace(entry, learning_rate=None if train is None else train.learning_rate))
    alone = _entry(ALONE, "student alone", volume, "none", tried[ALONE])
    methods = []
    for name, method in compare.methods.items():
        terms = " + ".join(term.name for term in method.terms)
        role: Role = "distilled" if method.distils else "control"
        methods.append(_entry(name, role, volume, terms, tried[name], alone, teachers))
    methods.sort(key=lambda entry: entry.spreads["voi"].mean if entry.count else math.inf)
    students = [replace(one, learning_rate=learning_rate(config, chosen, one.name)) for one in (alone, *methods)]
    return [*teachers, *students]


def _entry(
    name: str,
    role: Role,
    volume: str,
    terms: str,
    tried: Mapping[int, Mapping[str, Any] | None],
    alone: Entry | None = None,
    teachers: Sequence[Entry] = (),
) -> Entry:
    done = {seed: stats for seed, stats in tried.items() if stats is not None}
    scores = {key: _scores(done, volume, key) for key in PARTS}
    spreads = {key: found for key in PARTS if (found := spread([*scores[key].values()])) is not None}
    gains, relative = {}, None
    times = _costs(done, "seconds_per_step")
    seconds = median(times) if times else None
    if alone is not None:
        for key, _, _ in METRICS:
            against = gain(scores[key], alone.scores[key], best_teacher(teachers, key))
            if against is not None:
                gains[key] = against
        relative = seconds / alone.seconds_per_step if seconds and alone.seconds_per_step else None
    return Entry(
        name,
        role,
        volume,
        terms,
        scores,
        spreads,
        gains,
        seconds,
        relative,
        max(_costs(done, "peak_mb"), default=None),
        max(_costs(done, "gpu_peak_mb"), default=None),
        len(tried),
        steps={seed: int(n) for seed, stats in done.items() if (n := _cost(stats, "steps")) is not None},
    )


def _scores(done: Mapping[int, Mapping[str, Any]], volume: str, key: str) -> dict[int, float]:
    values = {seed: finite((stats.get("scores") or {}).get(volume, {}).get(key)) for seed, stats in done.items()}
    return {seed: value for seed, value in values.items() if value is not None}


def _costs(done: Mapping[int, Mapping[str, Any]], key: str) -> list[float]:
    values = (_cost(stats, key) for stats in done.values())
    return [value for value in values if value is not None]


def _cost(stats: Mapping[str, Any], key: str) -> float | None:
    return finite((stats.get("training") or {}).get(key))
