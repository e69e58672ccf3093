"""Files of single sections in a folder: TIFF, PNG or JPEG, told by their endings."""

from __future__ import annotations

from pathlib import Path

from kdseg.errors import MissingError, UnreadableError

TIFF, PNG, JPEG = "TIFF", "PNG", "JPEG"
ENDINGS = {".tif": TIFF, ".tiff": TIFF, ".png": PNG, ".jpg": JPEG, ".jpeg": JPEG}
"""Kinds of files by their endings, in lower case."""


def kind_of(path: Path) -> str | None:
    """Return the kind of a file by its name: `TIFF`, `PNG` or `JPEG`; None if it is no section."""
    return ENDINGS.get(path.suffix.lower())


def section_files(folder: Path) -> tuple[str, list[Path]]:
    """Return the kind of the sections in a folder, and their files by name; hidden ones, ``.*``, are left out.

    Raises:
        MissingError: if there is none.
        UnreadableError: if there are several kinds, or what is no file.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        kind = None if path.name.startswith(".") else kind_of(path)
        if kind is not None:
            found.setdefault(kind, []).append(path)
    if not found:
        raise MissingError(f"{folder} holds no TIFF, PNG or JPEG files; expected sections named {', '.join(_shown())}")
    if len(found) > 1:
        one, other = (files[0].name for files in list(found.values())[:2])
        raise UnreadableError(
            f"{folder} holds {' and '.join(found)} files, such as {one} and {other}, expected one kind: move the others"
        )
    ((kind, files),) = found.items()
    if odd := [file for file in files if not file.is_file()]:  # a pipe would be waited for
        raise UnreadableError(f"{odd[0]} is no file, or a link to none: remove it, or give it another ending")
    return kind, files


def _shown() -> list[str]:
    return [f"*{ending}" for ending in ENDINGS]
