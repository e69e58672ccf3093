"""Lines that tell people of a run of the workflow, made of Snakemake's records, of which it logs all in a file."""

from __future__ import annotations

import logging
import re
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kdseg.errors import KdsegError, masked
from kdseg.results.sealed import read_sealed
from kdseg.running.heartbeat import said as said_something
from kdseg.running.heartbeat import span
from kdseg.running.telemetry import how_far, status_path

_OURS = re.compile(r"kdseg [a-z-]+: (?=.)")
"""Beginning of the line in which a stage says why it ended."""
_AFTERMATH = ("Exiting because a job execution failed", "WorkflowError:\nAt least one job did not complete")
"""Errors of Snakemake that follow those of jobs, of which each has had its line."""
_HEADER = re.compile(r"\w+(?:Exception|Error)\b[^\n]*:\n")
"""First line of Snakemake's errors: a class, and perhaps a place in the rules."""
_WIDTH = 100
"""Characters of a reason."""
_SHOWN = 3
"""Jobs that are told of at once."""


class _Job(NamedTuple):
    """A job that runs: its name, when it began, in seconds of the epoch, and what it makes."""

    name: str
    began: float
    output: Path

    def how_far(self) -> str:
        """Return how far its stage is, or how long ago it began where the stage has not said anything since then."""
        path, parts = status_path(self.output), list[str]()
        try:
            if path.stat().st_mtime >= self.began:
                parts = how_far(read_sealed(path), running=True)
        except (OSError, KdsegError, KeyError):  # it is not there yet, or is of another version
            pass
        return ", ".join(parts) or span(time.time() - self.began)


class Progress:
    """Prints a line per job that starts, ends or fails, and one per error of Snakemake itself.

    Attributes:
        done: jobs that finished, with those of no output, such as `all`.
        total: jobs that are to run.
        failed: jobs that failed, more than once if they were started again.
        log: file of Snakemake's own output; None before there is one.
        interrupted: Ctrl-C was pressed, after which failures are no news.
        idle: Snakemake said that there is nothing to do.
    """

    def __init__(self) -> None:
        self.done = self.total = self.failed = 0
        self.log: Path | None = None
        self.interrupted = self.idle = False
        self._jobs = dict[int, _Job]()
        self._finished = list[str]()
        self._held = list[str]()

    def record(self, record: logging.LogRecord, *, dry: bool) -> None:
        """Take one record of Snakemake's logger.

        Args:
            record: its fields are those of snakemake_interface_logger_plugins.
            dry: nothing runs, jobs are listed only.
        """
        event = str(getattr(record, "event", ""))
        said: dict[str, Any] = record.__dict__
        if event == "run_info":
            self.total = said.get("stats", {}).get("total", self.total)
        elif event == "job_info" and said["output"]:
            name = _named(said)
            if dry:
                print(masked(f"would run {name}: {_reason(said)}"))
            else:
                self._jobs[said["jobid"]] = _Job(name, record.created, Path(said["output"][0]))
                _say(f"started  {name}")
        elif event == "job_finished" and said["job_id"] in self._jobs:
            job = self._jobs.pop(said["job_id"])
            self._finished.append(f"finished {job.name}, {record.created - job.began:.1f} s")
        elif event == "progress":
            self.done, self.total = said["done"], said["total"]
            for line in self._finished:
                _say(f"{line} ({self.done} of {self.total})")
            self._finished.clear()
        elif event == "job_error":
            self._jobs.pop(said.get("jobid", -1), None)
            self._failure(said)
        elif event == "group_error":
            pass  # each of its jobs has an error of its own
        elif str(record.msg).startswith("Nothing to be done"):
            self.idle = True
        elif record.levelno >= logging.WARNING:
            self._trouble(record)

    def at_work(self) -> str:
        """Print how far the jobs are that run, as their stages say; return nothing to be logged."""
        if self.interrupted:
            return ""
        jobs = [*self._jobs.values()]
        for job in jobs[:_SHOWN]:
            _say(f"at work  {job.name}: {job.how_far()}")
        if len(jobs) > _SHOWN:
            _say(f"at work  {len(jobs) - _SHOWN} more jobs")
        if not jobs:
            _say("at work  Snakemake looks for what there is to do")
        return ""

    def end(self) -> None:
        """Print what was held back because the failure of a job might have followed."""
        if not self.interrupted:
            for line in self._held:
                _say(line)
        self._held.clear()

    def _failure(self, said: dict[str, Any]) -> None:
        self._held.clear()
        if not self.interrupted:
            self.failed += 1
            logs = "; ".join(f"{_last_words(Path(log))} (log: {log})" for log in said["log"])
            _say(f"failed   {_named(said)}: {logs or 'it has no log'}")

    def _trouble(self, record: logging.LogRecord) -> None:
        text = str(record.msg)
        if self.interrupted or (self.failed and text.startswith(_AFTERMATH)):
            return
        line = f"kdseg run: {'warning: ' if record.levelno < logging.ERROR else ''}{in_a_line(text)}"
        if getattr(record, "exception", None) == "RuleException":
            # of a command that failed, unless no failure of a job follows: it repeats the whole command
            self._held.append(line)
        else:
            _say(line)


def in_a_line(text: str) -> str:
    """Return what Snakemake says in several lines in one, without the class of its error and the place in the rules."""
    lines = [line.strip() for line in _HEADER.sub("", text, count=1).splitlines() if line.strip()]
    if lines and lines[0].startswith("Traceback"):
        return lines[-1]
    joined = "".join(line + (" " if line.endswith(":") else "; ") for line in lines)
    return joined.removesuffix("; ").strip()


def _last_words(log: Path) -> str:
    """Return the line in which a stage says why it ended, else the last one of its log."""
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return "it wrote no log"
    for line in reversed(lines):
        if found := _OURS.match(line):
            return line[found.end() :]
    return lines[-1] if lines else "it ended without a word"


def _named(said: dict[str, Any]) -> str:
    output: Sequence[str] = said["output"]
    return " ".join([said["rule_name"], *output[:1]])


def _reason(said: dict[str, Any]) -> str:
    return textwrap.shorten(str(said["reason"]), _WIDTH, placeholder=" …")


def _say(line: str) -> None:
    said_something()
    print(masked(line), file=sys.stderr, flush=True)
