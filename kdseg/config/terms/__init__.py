"""Options of the summands of the training loss; one class per term, which says its `name` and where the term is.

Terms of other packages join by entry points (`term_options`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from typing import Annotated, Any, Union

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema

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
    "term_options",
]


def _named(section: type[TermSection]) -> Iterator[type[TermSection]]:
    if "name" in section.model_fields:
        yield section
    for each in section.__subclasses__():
        yield from _named(each)


_OURS = tuple(_named(TermSection))


@cache
def term_options() -> dict[str, type[TermSection]]:
    """Return the options class of each term by its name.

    Those of other packages are imported now, not with this module: they import it.

    Raises:
        ConfigError: if two terms have one name.
    """
    found: dict[str, type[TermSection]] = {}
    for one in (*_OURS, *_plugged_in()):
        name = one.model_fields["name"].default
        if name in found:
            raise ConfigError(f"two terms are called {name!r}: {found[name].term} and {one.term}; rename one")
        found[name] = one
    return found


def _plugged_in() -> Iterator[type[TermSection]]:
    """Yield the options of terms of other packages, which define them as entry points of the group `kdseg.terms`.

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
                f"({error!r}): repair or remove the package"
            ) from error
        if not (isinstance(found, type) and issubclass(found, TermSection) and {"term", "name"} <= _said(found)):
            raise ConfigError(
                f"the entry point {point.value!r} of the group kdseg.terms is {found!r}: expected a subclass of "
                "kdseg.config.terms.TermSection with `name` and `term`"
            )
        yield found


def _said(section: type[TermSection]) -> set[str]:
    return {*section.model_fields, *(["term"] if hasattr(section, "term") else [])}


class _AnyTerm:
    """Validates options as those of the term that they name; sections are built when they are first used."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        known: Any = Union[tuple(term_options().values())]  # noqa: UP007
        return handler.generate_schema(Annotated[known, Field(discriminator="name")])


TermOptions = Annotated[TermSection, _AnyTerm()]
