"""YAML files of configurations: a key that is given twice is refused, of which YAML would take the last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from kdseg.config.text import read_text
from kdseg.config.workflow import EXAMPLES
from kdseg.errors import ConfigError, MissingError


def read_values(path: Path) -> dict[str, Any]:
    """Return the values of a configuration file, as they are written.

    Raises:
        MissingError: if there is no such file.
        ConfigError: if it is not YAML, holds no mapping, or gives a key twice.
    """
    if not path.is_file():
        raise MissingError(f"no configuration at {path}; examples are in {EXAMPLES}")
    text = read_text(path)
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        for key, first, again in _twice(root, set()):
            raise ConfigError(f"{path}:{again}: the key {key!r} is given in line {first}, too: remove one of them")
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        said = str(error).replace('in "<unicode string>", ', "in ")
        raise ConfigError(f"{path} is not valid YAML: {said}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, got {type(values).__name__}")
    return values


def _twice(node: yaml.Node | None, seen: set[int]) -> Iterator[tuple[str, int, int]]:
    """Yield keys that one mapping has twice, and their lines.

    Args:
        node: of a document, as it is before `<<` is merged: a key may say otherwise than what is merged.
        seen: nodes that were looked at; an alias is the node that it names.
    """
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _twice(item, seen)
    if isinstance(node, yaml.MappingNode):
        lines = dict[tuple[str, str], int]()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                name, line = (key.tag, key.value), key.start_mark.line + 1
                if name in lines:
                    yield key.value, lines[name], line
                lines[name] = line
            yield from _twice(value, seen)
