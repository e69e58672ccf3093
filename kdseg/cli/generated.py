"""Commands made of tasks: each field of a task is a flag, its docstring the help.

A field that is a section of the configuration is given as flags of its own (``--options.tile 64 64 64``), as JSON
(``--options '{"tile": [64, 64, 64]}'``), or as both. A rule of the workflow gives its task whole, ``--task JSON``, and
flags come on top: they are what must make nothing run again, i.e. where and how a stage runs, not what it makes.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any, TypeVar, get_args, get_origin

from cyclopts import App, CycloptsError, Group, Parameter
from pydantic import BeforeValidator, ValidationError
from pydantic.fields import FieldInfo

from kdseg.config import ModelOptions, explain
from kdseg.config.base import Section
from kdseg.errors import KdsegError, masked

T = TypeVar("T", bound=Section)
FLAGS = {"ignore_labels": "--ignore-label", "ignore_segments": "--ignore-segment"}
"""Flags that are not called as their fields: they are repeated, and each names one thing."""

SHORT = {"out": "-o"}
"""Short names of flags."""
_OPTION = re.compile(r"`(\w+)((?:\.\w+)?)(?:: (\[[^\]`]*\]|\w+))?`")
"""An option of a YAML file in the message of an error, perhaps with a value."""


class UsageError(Exception):
    """A command line that kdseg does not understand; the message is one line."""


def add(
    app: App, name: str, task: type[T], call: Callable[..., None], group: Group, *positional: str, whole: bool = False
) -> None:
    """Add a command that makes a task of its flags and calls a function with it.

    Args:
        app: to add it to.
        name: of the command.
        task: what the function takes; its docstring is the command's help.
        call: takes the task; its other parameters, which are keyword-only, are flags, too.
        group: under which `kdseg --help` lists it.
        positional: fields that are given without a flag, in this order.
        whole: ``--task`` is given, so that no flag is required.
    """
    extra = [one for one in inspect.signature(call, eval_str=True).parameters.values() if one.kind is one.KEYWORD_ONLY]
    fields = dict(sorted(task.model_fields.items(), key=lambda item: not (whole or item[1].is_required())))
    parameters = [_parameter(key, fields[key], inspect.Parameter.POSITIONAL_ONLY, whole) for key in positional]
    parameters += [
        _parameter(key, field, inspect.Parameter.KEYWORD_ONLY, whole)
        for key, field in fields.items()
        if key not in positional
    ]
    about = Parameter(name="--task", help="The whole task as JSON, as a rule of the workflow gives it.")
    json_task = inspect.Parameter(
        "json_task", inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[str | None, about], default=None
    )

    def command(*places: Any, **values: Any) -> None:
        more = {one.name: values.pop(one.name) for one in extra if one.name in values}
        base = _parsed(values.pop("json_task", "{}"), "--task")
        flags = task.model_fields.keys() - {*positional}
        made = _made(task, base, {**dict(zip(positional, places, strict=False)), **values})
        try:
            call(made, **more)
        except KdsegError as error:
            if not base:
                error.args = tuple(_in_flags(one, flags) if isinstance(one, str) else one for one in error.args)
            raise

    command.__signature__ = inspect.Signature([*parameters, *extra, json_task])  # type: ignore[attr-defined]
    command.__doc__ = task.__doc__
    app.command(command, name=name, group=group)


def runs(module: str) -> Callable[[Section], None]:
    """Return a function that runs the stage of a module; the module, which may be heavy, is imported then."""

    def call(task: Section) -> None:
        import_module(module).run(task)

    return call


def in_a_line(error: CycloptsError) -> str:
    """Return what is wrong with the flags, in one line."""
    if isinstance(cause := error.__cause__, ValidationError):
        argument = getattr(error, "argument", None)
        return "; ".join(explain(cause, "" if argument is None else argument.name).splitlines())
    return " ".join(str(error).split())


def _in_flags(message: str, flags: Collection[str]) -> str:
    """Return the message of an error with flags in place of options of a YAML file that a command has as flags."""

    def flag(found: re.Match[str]) -> str:
        key, below, value = found.groups()
        if key not in flags:
            return found[0]
        words = [FLAGS.get(key, f"--{key}").replace("_", "-") + below.replace("_", "-")]
        if value is not None and value.startswith("["):
            words += value.strip("[]").upper().replace(",", " ").split()
        elif value == "true":
            if f"`{words[0]}`" in message:  # it is named already
                return found[0]
        elif value is not None:
            words.append(value)
        return f"`{' '.join(words)}`"

    return _OPTION.sub(flag, message)


def _parameter(key: str, field: FieldInfo, kind: Any, whole: bool) -> inspect.Parameter:
    hint: Any = field.annotation
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    text = _is_text(field)
    if text:
        hint = tuple[str, ...] if key in FLAGS else str
        default = None  # shown in words by the help of the field
    if default is None:
        hint |= None
    if field.is_required() and not whole:
        default = inspect.Parameter.empty
    # a text may begin with a hyphen: -1,0,0
    short = SHORT.get(key) if kind is inspect.Parameter.KEYWORD_ONLY else None
    about = Parameter(name=FLAGS.get(key), alias=short, help=field.description, negative=(), allow_leading_hyphen=text)
    return inspect.Parameter(key, kind, annotation=Annotated[hint, about], default=default)


def _is_text(field: FieldInfo) -> bool:
    """Return whether a field is given as one word, possibly JSON, which pydantic makes a value of."""
    hint = field.annotation
    sections = [one for one in get_args(hint) if isinstance(one, type) and issubclass(one, Section)]
    before = any(isinstance(one, BeforeValidator) for one in field.metadata)
    return before or hint is ModelOptions or get_origin(hint) is dict or len(sections) > 1


def _parsed(text: str, flag: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"{flag}: expected JSON, got {masked(repr(text)):.120}: {error}") from None


def _made(task: type[T], base: Any, given: Mapping[str, Any]) -> T:
    """Return a task made of JSON values and of what flags give."""
    if not isinstance(base, dict):
        raise UsageError(f"--task: expected the fields of a task as JSON, got {masked(repr(base)):.120}")
    values = dict(base)
    for key, value in given.items():
        if isinstance(value, str) and _is_text(task.model_fields[key]) and value.startswith(("{", "[")):
            values[key] = _parsed(value, f"--{key}")
        elif isinstance(value, Section) and isinstance(base.get(key), dict):
            values[key] = {**base[key], **{name: getattr(value, name) for name in value.model_fields_set}}
        else:
            values[key] = value
    try:
        return task.model_validate(values)
    except ValidationError as error:
        raise UsageError("; ".join(explain(error, task.__name__).splitlines())) from None


def whole_task(tokens: Sequence[str]) -> bool:
    """Return whether a task is given whole."""
    return any(token == "--task" or token.startswith("--task=") for token in tokens)
