"""Post-processing options to try: all combinations, or some of them, and the lines of YAML that say one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import yaml

from kdseg.config import AgglomerateOptions, FragmentsOptions
from kdseg.config.tuning import SEEDED, TuneSegmentationOptions
from kdseg.segmentation.fragments.block import shared


class Candidate(NamedTuple):
    """Options of one segmentation, but for the threshold.

    Attributes:
        fragments: method, grid and filters.
        score: `agglomerate.score`.
    """

    fragments: FragmentsOptions
    score: str

    @property
    def percent(self) -> int | None:
        """Quantile that is the score; none: the mean."""
        return AgglomerateOptions(score=self.score).percent


def candidates(
    options: TuneSegmentationOptions, fragments: FragmentsOptions, agglomerate: AgglomerateOptions
) -> list[Candidate]:
    """Return what to try, the configuration as it is first.

    All combinations if there are at most ``options.candidates``. Of more, settings of the watershed are drawn, each
    with all filters and scores: those of least SHA-256 with the seed, which no library can change.

    Args:
        options: lists of values; one that is empty stands for the value of the configuration.
        fragments: the section of the configuration.
        agglomerate: likewise.
    """
    watersheds = list(_fragments(options, (*SEEDED, "halo"), fragments))
    scores = options.score or (agglomerate.score,)
    filters = list(_combinations(options, ("dust", "least_mean")))
    each = len(filters) * len(scores)
    most = max(options.candidates // each, 1)
    if len(watersheds) > most:
        drawn = sorted(watersheds, key=lambda one: _draw(options.seed, one))[:most]
        watersheds = [one for one in watersheds if one in drawn]
    found = [
        Candidate(kept, score)
        for watershed in watersheds
        for kept in _fragments(options, ("dust", "least_mean"), watershed)
        for score in scores
    ]
    configured = Candidate(fragments, agglomerate.score)
    return [configured, *(one for one in found if one != configured)]


def groups(tried: Sequence[Candidate]) -> list[list[int]]:
    """Return the numbers of the candidates whose fragments are made of the same grains.

    The more voxels are boundary, the more fragments there are and the longer they take: these come first, so that no
    worker is left alone with them at the end.
    """
    found: dict[str, list[int]] = {}
    for number, one in enumerate(tried):
        found.setdefault(shared(one.fragments).model_dump_json(), []).append(number)
    return sorted(found.values(), key=lambda group: -_boundary(tried[group[0]].fragments))


def as_options(candidate: Candidate, threshold: float, *, long_range: bool) -> dict[str, Any]:
    """Return a candidate and its threshold as sections of the configuration, JSON values.

    Args:
        candidate: options.
        threshold: of the agglomeration.
        long_range: of the region graph that was tried.
    """
    sections: dict[str, Any] = {
        "fragments": candidate.fragments.model_dump(mode="json"),
        "agglomerate": {"score": candidate.score},
        "segment": {"threshold": threshold},
    }
    if candidate.percent is not None or long_range:
        sections["edges"] = {"histograms": candidate.percent is not None, "long_range": long_range}
    return sections


def as_yaml(options: dict[str, Any]) -> str:
    """Return what `as_options` returns as lines of a configuration file."""
    text: str = yaml.safe_dump(options, sort_keys=False, default_flow_style=None, width=110)
    return text


def _boundary(options: FragmentsOptions) -> float:
    return options.watershed.boundary if options.watershed.method == "watershed" else 0.0


def _combinations(options: TuneSegmentationOptions, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    lists = {name: getattr(options, name) for name in names if getattr(options, name)}
    for values in product(*lists.values()):
        yield dict(zip(lists, values, strict=True))


def _fragments(
    options: TuneSegmentationOptions, names: Sequence[str], base: FragmentsOptions
) -> Iterator[FragmentsOptions]:
    for values in _combinations(options, names):
        watershed = {name: value for name, value in values.items() if name in SEEDED}
        own = {name: value for name, value in values.items() if name not in SEEDED}
        yield base.model_copy(update={**own, "watershed": base.watershed.model_copy(update=watershed)})


def _draw(seed: int, options: FragmentsOptions) -> str:
    return hashlib.sha256(f"{seed} {options.model_dump_json()}".encode()).hexdigest()
