"""The workflow of a configuration, run by Snakemake within this process."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from kdseg.cli.generated import UsageError
from kdseg.cli.progress import Progress
from kdseg.config import load
from kdseg.config.workflow import DEFAULTS, SNAKEFILE, profile
from kdseg.errors import masked
from kdseg.running.heartbeat import doing

_LOGGER = "kdseg"
"""By which Snakemake knows what prints our lines."""


def run(config: Path, words: Sequence[str], *, cores: int | None, profile_name: str | None) -> None:
    """Run the workflow, with a line per job that starts, ends or fails.

    Args:
        config: YAML file.
        words: targets, then options of Snakemake.
        cores: that jobs share; default: all of this machine, or what the profile says.
        profile_name: of Snakemake: the name of one of ours, a folder, or one that Snakemake finds.

    Raises:
        UsageError: if Snakemake does not understand its options, or another configuration is among them.
        KeyboardInterrupt: after Ctrl-C, when its jobs have ended.
        SystemExit: with Snakemake's exit status, if it is not 0.
    """
    if taken := [word for word in words if word.startswith("--configfile")]:
        raise UsageError(f"{taken[0]}: one configuration is given before `--`; for several: snakemake --configfile A B")
    made = load(config)
    options = ["--configfile", str(config), "--workflow-profile", str(DEFAULTS), "--logger", _LOGGER]
    if profile_name is not None:
        options += ["--profile", profile(profile_name)]
    if cores is not None or profile_name is None:
        options += ["--cores", "all" if cores is None else str(cores)]
    _find_our_python()
    progress = Progress()
    with _interrupts(progress), doing(progress.at_work):
        succeeded = _snakemake([*options, "--snakefile", str(SNAKEFILE), *words], progress)
    progress.end()
    if progress.interrupted:
        raise KeyboardInterrupt
    where = "" if progress.log is None else f"; all that Snakemake said: {_near(progress.log)}"
    if not succeeded:
        said = (
            "what is done is kept: mend what failed, and run it again"
            if progress.failed or progress.done
            else "nothing was run"
        )
        print(f"kdseg run: {said}{where}", file=sys.stderr)
        sys.exit(1)
    if progress.done:
        page = Path(made.results) / "report.html"
        report = "" if words else f"; report: {page}"
        print(f"{progress.done} of {progress.total} jobs done{report}{where}", file=sys.stderr)
    elif progress.idle:
        print("nothing to do, all is there", file=sys.stderr)
    elif progress.total:
        print(f"{progress.total} jobs would run")


def _snakemake(words: Sequence[str], progress: Progress) -> bool:
    """Return whether Snakemake did what its command line asks for."""
    # it warns of what it does not need to, and its interface has no types
    from snakemake.cli import args_to_api, parse_args  # type: ignore[import-untyped]
    from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

    LoggerPluginRegistry().register_plugin(f"snakemake_logger_plugin_{_LOGGER}", _plugin(progress))
    logging.getLogger("snakemake").propagate = False  # or our own log would have each record, too
    said = StringIO()
    try:
        with redirect_stderr(said):
            parser, arguments = parse_args(list(words))
    except SystemExit as end:
        if not end.code:
            raise
        last = [line for line in said.getvalue().splitlines() if line.strip()][-1:]
        raise UsageError("".join(last).partition("error: ")[2] or "".join(last)) from None
    return bool(args_to_api(arguments, parser))


def _plugin(progress: Progress) -> ModuleType:
    """Return what Snakemake takes for an installed plugin that prints its messages."""
    from snakemake_interface_logger_plugins.base import LogHandlerBase

    class LogHandler(LogHandlerBase):
        writes_to_stream = has_filter = has_formatter = True
        writes_to_file = needs_rulegraph = False

        def emit(self, record: logging.LogRecord) -> None:
            progress.log = _logfile() or progress.log
            progress.record(record, dry=self.common_settings.dryrun)

    module: Any = ModuleType("snakemake_logger_plugin_kdseg")
    module.LogHandler = LogHandler
    return module  # type: ignore[no-any-return]


def _logfile() -> Path | None:
    handlers = logging.getLogger("snakemake.logging").handlers
    return next((Path(one.baseFilename) for one in handlers if isinstance(one, logging.FileHandler)), None)


def _near(path: Path) -> str:
    return masked(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def _find_our_python() -> None:
    """Have `python`, which the rules call, be the one that runs this, also where no environment is activated."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


@contextmanager
def _interrupts(progress: Progress) -> Iterator[None]:
    """Note Ctrl-C: Snakemake ends at it as after any other failure."""

    def note(number: int, frame: FrameType | None) -> None:
        progress.interrupted = True
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
