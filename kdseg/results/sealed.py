"""Small JSON files with a checksum of their own: of what a disk, or a hand, changed in one nothing is believed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdseg.errors import MissingError, UnreadableError
from kdseg.results.files import write_text

CHECKSUM = "checksum"
"""Key of the SHA-256 of all other keys and their values."""


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object and its checksum, so that the file is there whole or not at all."""
    plain = json.loads(json.dumps(values))
    write_text(path, json.dumps({**plain, CHECKSUM: _digest(plain)}, indent=2) + "\n")


def read_sealed(path: Path) -> dict[str, Any]:
    """Return the values that `write_sealed` wrote, and no others.

    Raises:
        MissingError: if there is no such file.
        UnreadableError: if it is damaged, was changed, or is something else; the message says so of ``path``, but not
            what to do.
    """
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise MissingError(f"no file at {path}") from None
    except (OSError, ValueError) as error:
        raise UnreadableError(f"{path} is damaged or something else: {error}") from error
    if not isinstance(values, dict) or CHECKSUM not in values:
        raise UnreadableError(f"{path} is no JSON object with a {CHECKSUM}, which kdseg writes")
    if values.pop(CHECKSUM) != _digest(values):
        raise UnreadableError(f"{path} was changed or damaged: its content is not what its {CHECKSUM} says")
    return values


def _digest(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
