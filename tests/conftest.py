"""Fixtures shared by the tests."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from workflow import ROOT, snakemake

DATA = Path(__file__).parents[2] / "shared" / "data"


SLOW = (
    "test_workflow.py",
    "test_compare.py",
    "test_prediction_faults.py",
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
    """A finished run of config/test.yaml, to be copied, not changed: its folder and its configuration."""
    folder = tmp_path_factory.mktemp("workflow")
    config = folder / "config.yaml"
    shutil.copyfile(ROOT / "config" / "test.yaml", config)
    snakemake(folder, config)
    return folder, config
