"""The log of a stage, which a shell writes: put back where another run has put its own."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from contextlib import suppress
from pathlib import Path

from kdseg.errors import UnreadableError
from kdseg.results.files import replacing


def put_back_log() -> None:
    """Put the file back that this process writes its errors to, if another one has taken its place (Linux).

    Snakemake removes the log of a job before it starts it, also that of a stage which another Snakemake is running.
    The new job is refused, since the result is in use; its refusal would stand for what the first stage has to say.
    """
    with suppress(OSError, ValueError):  # no file, or no /proc
        handle = sys.stderr.fileno()
        log, kept = os.fstat(handle), Path(f"/proc/self/fd/{handle}")
        if not stat.S_ISREG(log.st_mode) or log.st_nlink:
            return
        path = Path(str(kept.readlink()).removesuffix(" (deleted)"))
        if not path.is_file():  # it never had a name, perhaps
            return
        with suppress(UnreadableError), kept.open("rb") as said, replacing(path) as file:
            shutil.copyfileobj(said, file)
