"""Mistakes in options, a line each: where they are, what is wrong, what was got."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from kdseg.config.base import EXPECTED
from kdseg.errors import masked

_OPTIONS = "expected options, `key: value` each"
_PLAIN = {
    "extra_forbidden": "unknown key",
    "tuple_type": "expected a list, `[a, b, c]`",
    "model_type": _OPTIONS,
    "model_attributes_type": _OPTIONS,
    "dict_type": _OPTIONS,
    "string_type": "expected text: put it in quotes, without which YAML reads 12:00:00 as a number, too",
}
"""Messages by pydantic's name of the error, where its own speak of Python."""


def explain(error: ValidationError, whole: str = "configuration", model: type[BaseModel] | None = None) -> str:
    """Return a line per problem: where it is, what is wrong, what was got.

    Args:
        error: of pydantic.
        whole: name of what is validated.
        model: that was to be made, whose keys are suggested in place of unknown ones.
    """
    lines = []
    for problem in _unknown_first(error.errors()):
        where = ".".join(str(part) for part in problem["loc"]) or whole
        value = problem["input"]
        quoted = problem["type"] != "missing" and not isinstance(value, dict)
        got = f" (got {masked(repr(str(value) if isinstance(value, Path) else value)):.120})" if quoted else ""
        message = _PLAIN.get(problem["type"], problem["msg"].removeprefix("Value error, "))
        message = EXPECTED.get(problem.get("ctx", {}).get("pattern", ""), message)
        if problem["type"] == "union_tag_not_found":
            message = f"{problem['ctx']['discriminator']} is missing: it says which options can follow"
        if problem["type"] == "extra_forbidden" and model is not None:
            message += _suggestion(model, problem["loc"])
        lines.append(f"{where}: {message}{got}")
    return "\n".join(lines)


def _unknown_first(problems: Iterable[Any]) -> list[Any]:
    """Return problems, unknown keys before others of their section: a key that is missing was perhaps misspelt."""
    found = list(problems)
    sections = [problem["loc"][:-1] for problem in found]
    return sorted(found, key=lambda one: (sections.index(one["loc"][:-1]), one["type"] != "extra_forbidden"))


def _suggestion(model: type[BaseModel], where: tuple[int | str, ...]) -> str:
    """Return the known key that is most like an unknown one, as a question; nothing if none is like it."""
    *above, key = where
    sections: list[Any] = [model]
    for part in above:
        # the tag of a union is a part of the place, too, and leads nowhere
        sections = [inner for one in sections for inner in _inside(one, part)] or sections
    known = [name for one in sections if _is_model(one) for name in one.model_fields]
    close = get_close_matches(str(key), known, n=1)
    return f", did you mean {close[0]}?" if close else ""


def _inside(hint: Any, part: int | str) -> Iterator[Any]:
    """Yield the types that a part of a value of a type may have."""
    if _is_model(hint):
        if part in hint.model_fields:
            yield from _unfolded(hint.model_fields[part].annotation)
    elif get_origin(hint) in (dict, tuple, list):
        items = get_args(hint)
        yield from _unfolded(items[-1] if get_origin(hint) is dict else items[0])


def _unfolded(hint: Any) -> Iterator[Any]:
    """Yield the members of a union, and a type without its annotations."""
    if get_origin(hint) is Annotated:
        yield from _unfolded(get_args(hint)[0])
    elif get_origin(hint) in (None, dict, tuple, list):
        yield hint
    else:
        for member in get_args(hint):
            yield from _unfolded(member)


def _is_model(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, BaseModel)
