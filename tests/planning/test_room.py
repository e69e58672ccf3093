"""Folders that cannot be written, as the check finds them before the workflow does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from workflow import ROOT

from kdseg.config import Config, load
from kdseg.planning.room import folders

NOBODY = 65534


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Have a folder that cannot be written; root may write anywhere, so that it becomes somebody else meanwhile."""
    folder.chmod(0o555)
    root = os.getuid() == 0
    if root:
        os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        if root:
            os.setresuid(0, 0, 0)
        folder.chmod(0o755)


def into(results: Path) -> Config:
    return load(ROOT / "config" / "test.yaml").model_copy(update={"results": str(results)})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_results_that_may_not_be_written_are_an_error(here: Path) -> None:
    config = into(here / "a" / "b")
    with locked(here):
        found = list(folders(config))
    assert [(one.option, one.error) for one in found] == [("results", True), ("current folder", True)]
    assert f"{here / 'a' / 'b'} cannot be written, since you may not write in /" in found[0].text
    assert f"you may not write in {here}, where the workflow keeps .snakemake" in found[1].text


def test_results_below_a_file_are_an_error(here: Path) -> None:
    (here / "file").touch()
    (found,) = folders(into(here / "file" / "results"))
    assert (found.option, found.error) == ("results", True)
    assert f"cannot be made, since {here / 'file'} is a file" in found.text


def test_folders_that_can_be_written_are_no_finding(here: Path) -> None:
    assert list(folders(into(here / "a" / "b"))) == []
