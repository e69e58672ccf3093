"""The command line: one command per rule of the workflow, and a few for people."""

from __future__ import annotations

import atexit
import gc
import json
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Group, MissingArgumentError

from kdseg import __version__
from kdseg.cli.evaluation import add_evaluation
from kdseg.cli.generated import UsageError, in_a_line, whole_task
from kdseg.cli.log import put_back_log
from kdseg.cli.machine import of_the_machine
from kdseg.cli.people import add_people
from kdseg.cli.stages import add_stages
from kdseg.config.addresses import local
from kdseg.errors import KdsegError, masked
from kdseg.running.heartbeat import beating

log = logging.getLogger(__name__)

HELP = """Distil a heavy EM segmentation network into a light one, run it blockwise, score the result.

New here? `kdseg init RAW LABELS` writes config.yaml, then `kdseg check config.yaml` and `kdseg run config.yaml`.

`run` runs the workflow, whose stages Snakemake calls. With affinities of your own call `adopt`, `fragments`, `edges`,
`agglomerate` and `segment` by hand (docs/segmentation.md).
"""
_FILE = re.compile(r"(--[^\s=]+=)?(file://.*)", re.IGNORECASE | re.DOTALL)
TROUBLE = {"same": 2, "diff": 2}
"""Exit codes on errors, where 1 means something else: as of cmp and diff."""


class _Formatter(logging.Formatter):
    """Writes lines of the log without the secrets of addresses."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one entry."""
        return masked(super().format(record))


def main(tokens: Sequence[str] | None = None) -> None:
    """Run one command.

    Errors that were raised on purpose, or by the machine, are one line, with the exit code 1 (or `TROUBLE`); with 2 if
    flags or a task are not understood, with 130 after Ctrl-C.

    Args:
        tokens: its name and flags; default: those of this process.
    """
    # Read when torch is loaded, hence now. Its threads would spin while they wait for each other: beside other jobs a
    # step of a training took up to ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Else Python looks through all that was imported for what can be freed before it ends: 0.2 to 0.5 s of CPU per job.
    atexit.register(gc.freeze)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    if job := os.environ.get("SLURM_JOB_ID"):
        # Snakemake shows this log even if the job was killed before it began to write it: then it is an earlier job's.
        log.info("job %s of SLURM, on %s", job, socket.gethostname())
    atexit.register(put_back_log)  # then, a traceback is in it, too
    words = list(sys.argv[1:] if tokens is None else tokens)
    command = words[0] if words else ""
    try:
        words = [_with_path(word) for word in words]
        with beating(command):
            _app(words)(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _end(command, in_a_line(error) + _hint(command, error), 2)
    except UsageError as error:
        _end(command, str(error), 2)
    except KeyboardInterrupt:
        _end(command, "interrupted; what is done is kept, run it again to go on", 128 + signal.SIGINT)
    except (KdsegError, json.JSONDecodeError) as error:
        _end(command, str(error), TROUBLE.get(command, 1))
    except Exception as error:
        said = of_the_machine(error)
        if said is None:
            raise
        _end(command, said, TROUBLE.get(command, 1))


def _with_path(word: str) -> str:
    """Return a word of the command line; for a URL ``file://``, or a flag with one, with the path that it means."""
    found = _FILE.fullmatch(word)
    return word if found is None else f"{found[1] or ''}{local(found[2])}"


def _app(words: Sequence[str]) -> App:
    app = App(
        name="kdseg", help=HELP, version=__version__, result_action="return_value", suppress_keyboard_interrupt=False
    )
    run, look, tools, stages = (
        Group(name, sort_key=k) for k, name in enumerate(("Run", "Look", "Tools", "Stages of the workflow"))
    )
    app["--help"].group = app["--version"].group = Group("Other", sort_key=4)
    whole = whole_task(words)
    add_people(app, run, look, tools, whole=whole)
    add_evaluation(app, look, whole=whole)
    add_stages(app, stages, tools, whole=whole)
    return app


def _hint(command: str, error: CycloptsError) -> str:
    """Return where to find what a command lacks."""
    argument = error.argument if isinstance(error, MissingArgumentError) else None
    lacks_model = command == "segment" and argument is not None and argument.name == "--model"
    return " `kdseg models` lists the networks that come with kdseg" if lacks_model else ""


def _end(command: str, message: str, code: int) -> None:
    print(f"kdseg {command}: {masked(message)}", file=sys.stderr)
    sys.exit(code)
