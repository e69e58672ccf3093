"""Addresses on the command line: URLs of files, manifests, names that look like JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from command import invoke
from toy_volumes import cells
from workflow import ROOT

from kdseg.results.manifests import read

LABELS = cells((12, 16, 16), 5)[1]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "a b" / "{x}.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as opened:
        opened["labels"], opened["raw"] = LABELS, LABELS.astype(np.uint8)
        for node in opened.values():
            node.attrs["resolution"] = (10.0, 10.0, 10.0)
    monkeypatch.chdir(path.parent)
    return path


def test_by_hand_as_in_the_workflow(file: Path) -> None:
    url = f"{file.parent.as_uri()}/%7Bx%7D.h5:labels"
    options = json.dumps({"raw": "{x}.h5:raw", "labels": url})
    made = invoke("convert", "--kind=labels", f"--manifest=file://{file.parent}/made.json", "--options", options)
    assert (made.exit_code, Path("made.zarr").is_dir()) == (0, True), made.stderr
    for a, b in (
        (url, "made.json"),
        ("{x}.h5:labels", f"file://localhost{file.parent}/made.zarr/"),
        ("made.json",) * 2,
    ):
        done = invoke("same", a, b)
        assert done.exit_code == 0, done.stderr
        done = invoke("evaluate", a, b, "scores")
        assert done.exit_code == 0, done.stderr
        assert read(Path("scores/evaluation.json")).stats["scores"]["arand"] == 0
        shutil.rmtree("scores")
    assert invoke("verify", "made.json").stdout == invoke("verify", f"file://{file.parent}/made.json").stdout.replace(
        f"{file.parent}/", ""
    )
    assert invoke("clear", f"file://{file.parent}/made.json").exit_code == 0
    assert not Path("made.zarr").exists()


@pytest.mark.parametrize("address", ["file://far/x.zarr", "ftp://far/x.zarr"])
def test_other_urls_are_refused_in_a_line(file: Path, address: str) -> None:
    done = invoke("same", address, "{x}.h5:labels")
    assert done.exit_code == 2
    assert address in done.stderr
    assert done.stderr.count("\n") == 1
    assert ("file:///path" if address.startswith("file") else "is not a path") in done.stderr


def test_mistakes_of_text_are_a_line_with_file_and_line(tmp_path: Path) -> None:
    text = (ROOT / "config" / "test.yaml").read_text()
    lines = text.count("\n")
    (tmp_path / "twice.yaml").write_text(f"{text}volumes: {{}}\n")
    (tmp_path / "latin.yaml").write_bytes(f"{text}# é\n".encode("latin-1"))
    for command in ("check", "plan"):
        done = invoke(command, tmp_path / "twice.yaml")
        assert f"twice.yaml:{lines + 1}: the key 'volumes' is given in line" in done.stderr
        assert (done.exit_code in (1, 2), done.stderr.count("\n")) == (True, 1)
        done = invoke(command, tmp_path / "latin.yaml")
        assert f"latin.yaml is not text in UTF-8: byte 0xe9 in line {lines + 1}; save it" in done.stderr
        assert (done.exit_code in (1, 2), done.stderr.count("\n")) == (True, 1)
    assert yaml.safe_load((tmp_path / "twice.yaml").read_text())["volumes"] == {}  # without a word
