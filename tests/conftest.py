"""Fixtures shared by the tests."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from workflow import ROOT, snakemake

# One process of pytest per core: threads of torch would wait for each other, spinning unless told otherwise.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

DATA = ROOT.parent / "shared" / "data"


SLOW = (
    "test_workflow.py",
    "test_prediction_faults.py",  # while the other process makes what the next two need
    "test_workflow_killed.py",
    "test_compare.py",
    "test_remote.py",
    "test_predict.py",
    "test_segmentation_stages.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: processes take whole files, and the last one keeps only one busy."""
    items.sort(key=lambda item: SLOW.index(item.path.name) if item.path.name in SLOW else len(SLOW))


@pytest.fixture(scope="session")
def em_data() -> Path:
    """Folder of real EM data; tests that need it skip where it is absent."""
    if not (DATA / "fib25_tiny.h5").exists():
        pytest.skip("the real EM data (../shared/data) is not here")
    return DATA


@pytest.fixture(scope="session")
def values() -> Any:
    """config/test.yaml."""
    return yaml.safe_load((ROOT / "config" / "test.yaml").read_text())


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run of config/test.yaml, to be copied, not changed: its folder and its configuration.

    It takes minutes: the first process of pytest-xdist that needs it makes it, the others wait and take copies.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    made, done = shared / "finished", shared / "finished.done"
    with (shared / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            made.mkdir(exist_ok=True)
            shutil.copyfile(ROOT / "config" / "test.yaml", made / "config.yaml")
            snakemake(made, made / "config.yaml")
            done.touch()
    folder = tmp_path_factory.mktemp("workflow") / "copy"
    shutil.copytree(made, folder, symlinks=True)
    return folder, folder / "config.yaml"
