"""Tests of what runs on a GPU: `pytest tests/gpu`. With `--gpu-device cpu` they are rehearsed, on tiny sizes.

What they find out beside passing is recorded as properties of the test (`record_property`).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu-device", default="cuda", choices=("cuda", "cpu"), help="where the tests in tests/gpu run")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("gpu")
            if _kind(config) == "cuda":  # warnings that are new are to be read, not to end a test that took a GPU
                item.add_marker(pytest.mark.filterwarnings("default"))


def _kind(config: pytest.Config) -> str:
    kind: str = config.getoption("--gpu-device", default="cuda")
    return kind


@pytest.fixture(scope="session")
def gpu(request: pytest.FixtureRequest) -> bool:
    """Whether this is no rehearsal: sizes follow from it."""
    if _kind(request.config) == "cpu":
        return False
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU: pytest tests/gpu --gpu-device cpu rehearses the tests that need one")
    torch.set_num_threads(os.cpu_count() or 1)  # for what is compared with the CPU
    return True


@pytest.fixture(scope="session")
def device(gpu: bool) -> torch.device:
    """Where to run."""
    return torch.device("cuda", 0) if gpu else torch.device("cpu")
