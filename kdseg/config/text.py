"""Text that people write: configurations, tables, skeletons."""

from __future__ import annotations

from pathlib import Path

from kdseg.errors import UnreadableError


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark, its lines as they end.

    Raises:
        UnreadableError: if it is in another encoding, or no text.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UnreadableError(
            f"{path} is not text in UTF-8: byte {error.object[error.start]:#04x} in line {line}; save it as UTF-8, "
            f"e.g. by: iconv -f LATIN1 -t UTF-8 {path} > new"
        ) from None
