"""The GPU programme: a list of jobs in order of worth, as far as the time goes.

    python benchmarks/gpu/run.py OUT [--seconds 560] [--only guard tests ...] [--rehearse]

Each job is a process of its own with a limit of its own, and writes each row to OUT/results.jsonl as soon as it has it:
being cut off at any moment loses one row. The same command does what is missing: put the files of an earlier piece into
OUT, and the programme goes on where that one ended. `--rehearse` goes through all of it on the CPU with tiny sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from job import CARRIED, RESULTS, ROOT, Rows, no_cuda, read_rows

HERE = Path(__file__).parent
GRACE_S = 5.0
"""Between the end of a job's time and its kill."""
LEAST_S = 5.0
"""With less time left, no job is begun."""


class Part(NamedTuple):
    """One job of the programme.

    Attributes:
        name: `jobs/{name}.py`.
        seconds: limit on a GPU.
        rehearsal: limit in rehearsal.
    """

    name: str
    seconds: float
    rehearsal: float


PROGRAMME = (
    Part("guard", 20, 30),
    Part("tests", 120, 120),
    Part("rates", 90, 60),
    Part("training_rates", 60, 60),
    Part("teacher", 540, 90),
    Part("students", 540, 90),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of results; what is there is not done again")
    parser.add_argument("--seconds", type=float, default=560.0, help="for everything")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PROGRAMME], metavar="JOB")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes")
    parser.add_argument("--work", type=Path, help="intermediate files; default: OUT-work beside OUT")
    given = parser.parse_args()
    ends = time.monotonic() + given.seconds
    if not given.rehearse and (why := no_cuda()):
        print(why, file=sys.stderr)
        return 2
    out = given.out.resolve()
    work = (given.work or out.with_name(f"{out.name}-work")).resolve()
    rows = Rows(out, "run")
    rows.add(f"machine {time.time():.0f}", **machine(rehearse=given.rehearse))
    compiling = None if given.rehearse else _compile_beside(work)
    failed = []
    try:
        for part in PROGRAMME:
            if given.only and part.name not in given.only:
                continue
            limit = min(part.rehearsal if given.rehearse else part.seconds, ends - time.monotonic() - GRACE_S)
            if _finished(out, part.name):
                print(f"run: {part.name}: done before", flush=True)
            elif limit < LEAST_S:
                print(f"run: {part.name}: no time left for it", flush=True)
            elif not _run(part.name, limit, rows, work, rehearse=given.rehearse):
                failed.append(part.name)
    finally:
        if compiling is not None:
            _kill(compiling)
    print(f"run: {', '.join(failed)} failed: see {out / 'log.txt'}" if failed else "run: no job failed", flush=True)
    return 1 if failed else 0


def machine(*, rehearse: bool) -> dict[str, Any]:
    """Return what the figures depend on."""
    import torch

    found: dict[str, Any] = {
        "rehearsal": rehearse,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "commit": _commit(),
        "card": "CPU",
    }
    if not rehearse:
        card = torch.cuda.get_device_properties(0)
        found |= {
            "card": card.name,
            "memory_gb": round(card.total_memory / 1e9, 1),
            "driver": _said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def _commit() -> str | None:
    """Return the commit that was packed, else that of the checkout."""
    pack = CARRIED / "pack.json"
    if pack.exists():
        packed: str = json.loads(pack.read_text())["commit"][:7]
        return packed
    return _said(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"])


def _said(command: Sequence[str]) -> str | None:
    """Return the first line that a program prints, None where there is no such program or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().partition("\n")[0]


def _environment() -> dict[str, str]:
    paths = [str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), "PYTHONUNBUFFERED": "1"}


def _compile_beside(work: Path) -> subprocess.Popen[bytes]:
    """Rehearse a training on the CPU beside the first jobs: numba's cache is warm when validations need it."""
    command = [sys.executable, str(HERE / "jobs" / "teacher.py"), str(work / "compiled"), "--rehearse"]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=_environment(), start_new_session=True, **silent)


def _finished(out: Path, name: str) -> bool:
    """Return whether the last attempt at a job ended well."""
    ended = [row for row in read_rows(out / RESULTS) if row["job"] == "run" and row.get("of") == name]
    return bool(ended) and ended[-1]["outcome"] == "done"


def _run(name: str, limit: float, rows: Rows, work: Path, *, rehearse: bool) -> bool:
    """Run one job within its limit, note how it ended, and return whether nothing failed."""
    out, begun = rows.path.parent, time.monotonic()
    command = [sys.executable, str(HERE / "jobs" / f"{name}.py"), str(out), f"--seconds={limit:.1f}"]
    command += [f"--work={work}", *(["--rehearse"] if rehearse else [])]
    log = out / "log.txt"
    with log.open("ab") as file:
        from_here = file.tell()
        job = subprocess.Popen(
            command, cwd=ROOT, env=_environment(), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = job.wait(limit + GRACE_S)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill(job)
    with log.open("rb") as file:
        file.seek(from_here)
        lines = file.read().decode(errors="replace").strip().splitlines()
    stopped = code is None or any("out of time" in line for line in lines[-3:])
    outcome = "out of time" if stopped else "done" if code == 0 else "failed"
    said = _last(lines) if outcome == "failed" else ""
    took = round(time.monotonic() - begun, 1)
    rows.add(f"{name} {time.time():.0f}", of=name, outcome=outcome, seconds=took, said=said)
    return outcome != "failed"


def _last(lines: Sequence[str]) -> str:
    """Return the last line of a log that is not a warning of Python about what a killed process has left behind."""
    kept = [line for line in lines if "resource_tracker" not in line]
    return kept[-1] if kept else ""


def _kill(job: subprocess.Popen[bytes]) -> None:
    """End what is left of a job: the process group that it leads."""
    with suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)
    job.wait()


if __name__ == "__main__":
    sys.exit(main())
