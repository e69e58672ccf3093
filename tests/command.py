"""The command line within the process of a test, and processes that a test interrupts."""

from __future__ import annotations

import signal
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import NamedTuple

from kdseg.cli import main


class Result(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def invoke(*arguments: object) -> Result:
    """Return what a command prints, and its exit code; an error that `kdseg` does not tell of is raised."""
    out, err = StringIO(), StringIO()
    code: int = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(list(map(str, arguments)))
        except SystemExit as end:
            code = int(end.code or 0)
    return Result(code, out.getvalue(), err.getvalue())


def interruptible() -> None:
    """Have this process end at Ctrl-C, though tests may run in the background, where it is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
