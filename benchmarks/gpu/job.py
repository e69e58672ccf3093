"""The contract of a job: where its rows go, on what it runs, and how long it may.

A job is a program `jobs/NAME.py OUT [--rehearse] [--seconds S]`. It appends each row to `OUT/results.jsonl` as soon as
it is measured, leaves out rows that are there already, and ends by itself when its seconds are over; `run.py` kills it
soon after. With `--rehearse` it does the same on the CPU with tiny sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = "results.jsonl"
ROOT = Path(__file__).resolve().parents[2]
FIB25 = ROOT.parent / "shared" / "data"
CARRIED = ROOT / "build" / "gpu"
"""Folder that `pack.py` fills: `wheels/`, `data/`, `models/`."""


STUDENT = "fib25-s"
"""Shipped network that a job predicts with."""


class Rows:
    """The rows of one job in ``OUT/results.jsonl``; a row that was cut off is none."""

    def __init__(self, out: Path, job: str) -> None:
        self.path, self.job = out / RESULTS, job
        out.mkdir(parents=True, exist_ok=True)
        self.keys = {row["key"] for row in read_rows(self.path) if row["job"] == job}

    def __contains__(self, key: str) -> bool:
        return key in self.keys

    def add(self, key: str, **values: Any) -> None:
        """Append a row, on the disk when this returns."""
        row = {"job": self.job, "key": key, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **values}
        with self.path.open("a+") as file:
            if file.tell() and not _ends_with_newline(self.path):
                file.write("\n")  # after a row that was cut off
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.keys.add(key)
        print(f"{self.job}: {key}: {json.dumps(values)}", flush=True)


class Job(NamedTuple):
    """One run of a job.

    Attributes:
        rows: where results go.
        rehearse: on the CPU, with tiny sizes.
        device: ``cuda`` or ``cpu``.
        ends: by `time.monotonic`.
        work: a folder for intermediate files that do not come back.
    """

    rows: Rows
    rehearse: bool
    device: str
    ends: float
    work: Path

    @property
    def left(self) -> float:
        """Seconds until this job has to end."""
        return self.ends - time.monotonic()

    def out_of_time(self, needed: float = 0.0) -> bool:
        """Return whether fewer seconds than ``needed`` are left, and say so."""
        if self.left > needed:
            return False
        print(f"{self.rows.job}: out of time, the rest is for the next run", flush=True)
        return True


def begin(name: str, text: str | None) -> Job:
    """Parse the command line of a job, and end in one line where there is no GPU.

    Args:
        name: of the job.
        text: what it does, for ``--help``.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--work", type=Path, default=None, help="intermediate files; default: OUT-work beside OUT")
    given = parser.parse_args()
    ends = time.monotonic() + given.seconds
    device = "cpu" if given.rehearse else "cuda"
    if device == "cuda" and (why := no_cuda()):
        sys.exit(why)
    work = given.work or given.out.with_name(f"{given.out.name}-work")
    work.mkdir(parents=True, exist_ok=True)
    return Job(Rows(given.out, name), given.rehearse, device, ends, work)


def no_cuda() -> str | None:
    """Return in a line why torch cannot use a GPU here, None if it can."""
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported ({error}): see benchmarks/gpu/README.md"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA: install a build with it, or use --rehearse"
    if not torch.cuda.is_available():
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:  # e.g. a driver too old, which it says
            return f"no CUDA here: {str(error).splitlines()[0]}; use --rehearse for the CPU"
        return "no CUDA here: torch sees no GPU; use --rehearse for the CPU"
    return None


def data(name: str) -> Path:
    """Return a file of real EM data: the packed crop where there is one, else the file itself."""
    packed, whole = CARRIED / "data" / name, FIB25 / name
    return packed if packed.exists() else whole


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the whole rows of a file of results; none if it is not there."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # cut off as it was written
            continue
    return rows


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"
