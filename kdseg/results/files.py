"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from kdseg.errors import KdsegError, UnreadableError

CHECKSUMS = ".checksums.npz"
"""Ending of the table that lies beside a volume; see `kdseg.volumes.shards`."""
UNFINISHED = ".part"
"""Ending of a file that is being written."""


@contextmanager
def replacing(path: Path, refusals: tuple[type[Exception], ...] = (OSError,)) -> Iterator[BinaryIO]:
    """Open a file to write that takes the place of ``path`` once the body is done and the disk has all of it.

    It lies in the same folder until then, which is made if need be. On any error of the body nothing is left.

    Args:
        path: of the file.
        refusals: what the body raises where the disk does not take what it writes.

    Raises:
        UnreadableError: if the disk refuses.
    """
    part = path.with_name(f".{path.name}.{uuid4().hex}{UNFINISHED}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except refusals as error:
        if isinstance(error, KdsegError):  # of the body, not of this file
            raise
        raise UnreadableError(f"cannot write {path}: {error}") from error


def again(manifest: Path) -> str:
    """Return what to do about a result that is damaged, or lost in part: of all that helps, it costs least."""
    return f"kdseg verify {shlex.quote(str(manifest))} --repair says how to make just that again"


def remove_unfinished(folder: Path) -> None:
    """Remove what writers that were killed left in a folder to which nobody writes; see `replacing`."""
    for part in folder.glob(f".*{UNFINISHED}"):
        part.unlink(missing_ok=True)


def expect_removable(paths: Iterable[Path]) -> None:
    """Refuse files and folders of which a part may not be removed, before another part is.

    Raises:
        UnreadableError: if a folder that one of them lies in, or that lies in one of them, may not be written.
    """
    for path in paths:
        for folder in (path.parent, *(_folders(path) if path.is_dir() and not path.is_symlink() else ())):
            if not _removable(folder, path if folder == path.parent else None):
                raise UnreadableError(
                    f"nothing was removed of {path}: you may not remove what is in {folder}; have its owner do it, or "
                    "let you write there"
                )


def _folders(path: Path) -> Iterator[Path]:
    """Yield a folder and all below it, also those that may not be looked into."""
    closed: list[str] = []
    for folder, _, _ in os.walk(path, onerror=lambda error: closed.append(error.filename)):
        yield Path(folder)
    yield from map(Path, closed)


def _removable(folder: Path, path: Path | None) -> bool:
    """Return whether what lies in a folder may be removed: of a folder that many write to ``path``, if it is named."""
    ids = os.access in os.supports_effective_ids
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=ids):
        return False
    mode, me = folder.stat(), os.geteuid()
    if not mode.st_mode & stat.S_ISVTX or me in (0, mode.st_uid):
        return True
    return all(one.lstat().st_uid == me for one in ([path] if path else folder.iterdir()))


def write_text(path: Path, text: str) -> None:
    """Write a text file, see `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())
