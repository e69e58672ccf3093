"""Fixtures shared by the tests."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import settings
from workflow import ROOT, snakemake

# One process of pytest per core: threads of torch would wait for each other, spinning unless told otherwise.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

DATA = ROOT.parent / "shared" / "data"

# The same examples each time, so that a failure is of the code at hand; `make test-random` looks for new ones.
settings.register_profile("repeatable", derandomize=True, database=None)
settings.register_profile("thorough", print_blob=True)
settings.load_profile("repeatable")
THOROUGH = 20
"""Times as many examples as a test asks for, or as are the default, in the profile of that name."""

SLOW = (
    "test_workflow.py",
    "test_cluster.py",  # while the other process makes what the next two need
    "test_workflow_killed.py",
    "test_compare.py",
    "test_prediction_faults.py",
    "test_remote.py",
    "test_computed.py",
    "test_training.py",
    "test_predict.py",
    "test_segmentation_stages.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: processes take whole files, and the last one keeps only one busy."""
    if config.getoption("--hypothesis-profile") == "thorough":
        for test in {item.function for item in items if isinstance(item, pytest.Function)}:
            # hypothesis has no public name for the settings that a test was decorated with
            if own := getattr(test, "_hypothesis_internal_use_settings", None):
                test._hypothesis_internal_use_settings = settings(own, max_examples=THOROUGH * own.max_examples)
    items.sort(key=lambda item: SLOW.index(item.path.name) if item.path.name in SLOW else len(SLOW))


@pytest.fixture(scope="session")
def em_data() -> Path:
    """Folder of real EM data; tests that need it skip where it is absent."""
    if not (DATA / "fib25_tiny.h5").exists():
        pytest.skip("the real EM data (../shared/data) is not here")
    return DATA


@pytest.fixture
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
