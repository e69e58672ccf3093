"""Compiled functions on disk: a change in another file must not be missed."""

import subprocess
import sys
from pathlib import Path

import pytest

SHARED = """
from kdseg.running.compiled import compiled
STEP = {step}
@compiled
def inner(x):
    return x * {factor}
@compiled
def shared(x):
    return inner(x)
"""
CALLER = """
from shared import STEP, shared
from kdseg.running.compiled import compiled
@compiled
def call(x):
    return shared(x) + STEP
print(call(10), sum(call.stats.cache_hits.values()))
"""


def called(folder: Path, *, factor: int, step: int) -> tuple[int, int]:
    """Return the result, and how often the code came from the disk."""
    (folder / "shared.py").write_text(SHARED.format(factor=factor, step=step))
    # -B: Python's own byte code takes a file of equal size that was written within the same second for the same
    command = [sys.executable, "-B", "caller.py"]
    found = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    result, hits = map(int, found.stdout.split())
    return result, hits


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "step", "expected"), [(3, 0, 30), (2, 5, 25)], ids=["function", "constant"])
def test_a_change_in_another_file_compiles_again(tmp_path: Path, factor: int, step: int, expected: int) -> None:
    (tmp_path / "caller.py").write_text(CALLER)
    assert called(tmp_path, factor=2, step=0) == (20, 0)
    assert called(tmp_path, factor=2, step=0) == (20, 1)
    assert called(tmp_path, factor=factor, step=step) == (expected, 0)
