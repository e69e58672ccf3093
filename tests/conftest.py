"""Fixtures shared by the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def em_data() -> Path:
    """Folder of real EM data; tests that need it skip where it is absent."""
    if not (DATA / "fib25_tiny.h5").exists():
        pytest.skip("the real EM data (../shared/data) is not here")
    return DATA
