"""Run the tests in tests/gpu: a row for each, as soon as it ends.

A row has the outcome, the seconds, what failed in one line, the warnings, and what the test found out. Tests that have
passed are left out the next time. pytest runs in a process of its own: a fault in a kernel, or a test that hangs, ends
that process, and the tests after it run in another one.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
from job import ROOT, Job, Rows, begin, read_rows

NAME = "tests"
LONGEST_S = 120
"""Of one test; the first one that validates has to wait for the compiler."""
LAST_S = 15
"""Left of the job's time when the last test begins."""
CLOSING_S = 5
"""For pytest to end by itself before it is ended."""


class Recorder:
    """Plugin of pytest: leaves out what has passed, stops in time, and writes rows."""

    def __init__(self, out: Path, ends: float, begun: Path, before: int) -> None:
        self.rows, self.ends, self.begun, self.before = Rows(out, NAME), ends, begun, before
        self.parts: list[pytest.TestReport] = []
        self.warned: dict[str, list[str]] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out tests that passed, cannot run here, or have been run by this job already."""
        done = settled(self.rows.path, self.before)
        config.hook.pytest_deselected(items=[item for item in items if key_of(item.nodeid) in done])
        items[:] = [item for item in items if key_of(item.nodeid) not in done]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        """Stop if there is no time for a test, else note which one begins."""
        if self.ends - time.monotonic() < LAST_S:
            item.session.shouldstop = "out of time, the rest is for the next run"
        else:
            self.begun.write_text(key_of(item.nodeid))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Write a row for a file that cannot be imported: none of its tests is run."""
        if report.failed:
            self.rows.add(key_of(report.nodeid), outcome="failed", seconds=0.0, message=message_of(report))

    def pytest_warning_recorded(self, warning_message: Any, nodeid: str) -> None:
        """Keep a warning for the row of its test."""
        self.warned.setdefault(nodeid, []).append(one_line(str(warning_message.message)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the row of a test that has ended."""
        self.parts.append(report)
        if report.when != "teardown":
            return
        parts, self.parts = self.parts, []
        bad = next((part for part in parts if part.outcome != "passed"), None)
        values: dict[str, Any] = dict(report.user_properties)
        if warned := self.warned.pop(report.nodeid, None):
            values["warnings"] = sorted(set(warned))
        self.rows.add(
            key_of(report.nodeid),
            outcome="passed" if bad is None else bad.outcome,
            seconds=round(sum(part.duration for part in parts), 3),
            message=None if bad is None else message_of(bad),
            **values,
        )
        self.begun.unlink(missing_ok=True)


def key_of(nodeid: str) -> str:
    """Return `test_x.py::test_y[z]` of a test in tests/gpu."""
    return nodeid.removeprefix("tests/gpu/")


def settled(results: Path, before: int) -> set[str]:
    """Return the tests that are not to be run: of the first ``before`` rows, those that failed before are."""
    rows = read_rows(results)
    last = {row["key"]: row["outcome"] for row in rows[:before] if row["job"] == NAME}
    again = {key for key, outcome in last.items() if outcome not in ("passed", "skipped")}
    return (last.keys() - again) | {row["key"] for row in rows[before:] if row["job"] == NAME}


def message_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return in a line why a test did not pass."""
    told: Any = report.longrepr
    if isinstance(told, tuple):  # where and why a test was skipped
        return one_line(told[2])
    crash = getattr(told, "reprcrash", None)
    return one_line(str(told) if crash is None else f"{Path(crash.path).name}:{crash.lineno}: {crash.message}")


def one_line(text: str) -> str:
    """Return the first words of a text."""
    return " ".join(text.split())[:400]


def run_pytest(out: Path, device: str, ends: float, begun: Path, before: int) -> None:
    """Run what is left; the exit status is pytest's."""
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    arguments = ["tests/gpu", "--gpu-device", device, "-p", "no:cacheprovider", "--timeout", str(LONGEST_S)]
    # a thread of pytest-timeout ends the process: a test that waits for a GPU hears no signal
    arguments += ["--timeout-method", "thread", "--tb", "short", "--color", "no"]
    sys.exit(pytest.main(arguments, plugins=[Recorder(out, ends, begun, before)]))


def main() -> None:
    """Run the tests until they are done or the time is over."""
    job: Job = begin(NAME, __doc__)
    begun, out = job.work / "test", job.rows.path.parent
    before, code = len(read_rows(job.rows.path)), None
    context = multiprocessing.get_context("spawn")
    while not job.out_of_time(LAST_S + CLOSING_S):
        begun.unlink(missing_ok=True)
        child = context.Process(target=run_pytest, args=(out, job.device, job.ends - CLOSING_S, begun, before))
        child.start()
        child.join(max(job.left - CLOSING_S, 0))
        code, in_time = child.exitcode, child.exitcode is not None
        child.kill()
        child.join()
        if not begun.exists():
            break
        how = f"its process ended with {child.exitcode}" if in_time else "it was running when the time was over"
        job.rows.add(begun.read_text(), outcome="crashed" if in_time else "cut off", message=how)
    found = {row["key"]: row["outcome"] for row in read_rows(job.rows.path) if row["job"] == NAME}
    if bad := sorted(key for key, outcome in found.items() if outcome in ("failed", "crashed")):
        sys.exit(f"{NAME}: {len(bad)} of {len(found)} tests failed, the first: {bad[0]}")
    if code == pytest.ExitCode.INTERRUPTED:
        job.out_of_time(float("inf"))


if __name__ == "__main__":
    main()
