"""Stages run on samples, each as a process of its own, as the workflow runs them, with what they took."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kdseg.config.base import Section
from kdseg.errors import StageError


class Cost(NamedTuple):
    """Cost of one process: seconds, CPU seconds and megabytes."""

    seconds: float
    cpu_s: float
    mb: float


@dataclass(frozen=True)
class Bench:
    """A private folder for samples.

    Attributes:
        folder: that is removed afterwards.
        threads: of trainings.
    """

    folder: Path
    threads: int

    def run(self, command: str, task: Section, workers: int | None = 1) -> Cost:
        """Run a stage; return what it took.

        Args:
            command: of the stage.
            task: of the stage.
            workers: threads or processes; None where the stage has no such flag.

        Raises:
            StageError: if it fails; the message is its last line.
        """
        said = task.model_dump_json(include=task.model_fields_set)
        words = [sys.executable, "-m", "kdseg", command, "--task", said]
        words += [] if workers is None else ["--workers", str(workers)]
        with (self.folder / "log.txt").open("w+b") as log:
            begun = time.monotonic()
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                # not by `communicate`: only this tells what the process used
                _, status, used = os.wait4(process.pid, 0)
            except BaseException:
                process.terminate()
                process.wait()
                raise
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.monotonic() - begun
            if process.returncode:
                log.seek(0)
                lines = log.read().decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
                raise StageError(f"kdseg {command} failed on a sample: {lines[-1]}")
        return Cost(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1000)
