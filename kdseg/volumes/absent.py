"""Files that are not there, which zarr and N5 take for zeros."""

from __future__ import annotations

from pathlib import Path

from kdseg.errors import UnreadableError


def expect_absent(file: Path, root: Path) -> None:
    """Refuse links to nothing, as git-annex leaves them for files that it has not fetched.

    Args:
        file: that was not found.
        root: folder above it, which is there.

    Raises:
        UnreadableError: if it, or a folder between it and ``root``, is a link to nothing.
    """
    for part in (file, *file.parents):
        if part == root:
            return
        if part.is_symlink() and not part.exists():
            raise UnreadableError(f"{part} is a link to nothing: fetch what it links to, or copy it again")
