"""Options of the summands of the training loss; one class per term, which says its `name` and where the term is.

Terms of other packages join by entry points (`_plugged_in`).
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from kdseg.config.terms.affinity import AdversarialOptions, CadOptions, SoftAffinityOptions
from kdseg.config.terms.base import DistillationSection, Level, Tap, TermSection
from kdseg.config.terms.detail import BckdOptions, DcdOptions
from kdseg.config.terms.feature import (
    AttentionOptions,
    CwdOptions,
    FactorOptions,
    FitNetsOptions,
    MgdOptions,
    ReviewKdOptions,
    VidOptions,
)
from kdseg.config.terms.graph import GraphFlowOptions, GraphRelationOptions
from kdseg.config.terms.region import CirkdOptions, ReCoKdOptions
from kdseg.config.terms.relation import CpkdOptions, DistOptions, IfvdOptions, SkdOptions, SpkdOptions
from kdseg.config.terms.supervised import (
    AffinityOptions,
    DeepSupervisionOptions,
    DiceOptions,
    EmbeddingOptions,
    LsdOptions,
)
from kdseg.errors import ConfigError

__all__ = [
    "TERM_OPTIONS",
    "AdversarialOptions",
    "AffinityOptions",
    "AttentionOptions",
    "BckdOptions",
    "CadOptions",
    "CirkdOptions",
    "CpkdOptions",
    "CwdOptions",
    "DcdOptions",
    "DeepSupervisionOptions",
    "DiceOptions",
    "DistOptions",
    "DistillationSection",
    "EmbeddingOptions",
    "FactorOptions",
    "FitNetsOptions",
    "GraphFlowOptions",
    "GraphRelationOptions",
    "IfvdOptions",
    "Level",
    "LsdOptions",
    "MgdOptions",
    "ReCoKdOptions",
    "ReviewKdOptions",
    "SkdOptions",
    "SoftAffinityOptions",
    "SpkdOptions",
    "Tap",
    "TermOptions",
    "TermSection",
    "VidOptions",
]


def _plugged_in() -> None:
    """Import the options of terms of other packages, which define them as entry points of the group `kdseg.terms`.

    Raises:
        ConfigError: if one is no options class of a term.
    """
    for point in entry_points(group="kdseg.terms"):
        try:
            found = point.load()
        except Exception as error:
            package = "?" if point.dist is None else point.dist.name
            raise ConfigError(
                f"the entry point {point.value!r} of the group kdseg.terms, of the package {package}, cannot be loaded "
                f"({error!r}): repair or remove the package; its own code is to import kdseg.config first"
            ) from error
        if not (isinstance(found, type) and issubclass(found, TermSection) and {"term", "name"} <= _said(found)):
            raise ConfigError(
                f"the entry point {point.value!r} of the group kdseg.terms is {found!r}: expected a subclass of "
                "kdseg.config.terms.TermSection with `name` and `term`"
            )


def _said(section: type[TermSection]) -> set[str]:
    return {*section.model_fields, *(["term"] if hasattr(section, "term") else [])}


def _named(section: type[TermSection]) -> Iterator[type[TermSection]]:
    if "name" in section.model_fields:
        yield section
    for each in section.__subclasses__():
        yield from _named(each)


def _by_name() -> dict[str, type[TermSection]]:
    found: dict[str, type[TermSection]] = {}
    for one in _named(TermSection):
        name = one.model_fields["name"].default
        if name in found:
            raise ConfigError(f"two terms are called {name!r}: {found[name].term} and {one.term}; rename one")
        found[name] = one
    return found


_plugged_in()
TERM_OPTIONS = _by_name()
"""Options class of each term by its name."""

if TYPE_CHECKING:
    TermOptions = TermSection
else:
    TermOptions = Annotated[Union[tuple(TERM_OPTIONS.values())], Field(discriminator="name")]  # noqa: UP007
