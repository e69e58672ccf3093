"""Earlier results stay known when a new try is refused, and tries of which nothing was made give way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdseg.errors import ClaimError
from kdseg.results.claims import claim, clear
from kdseg.results.files import write_text
from kdseg.results.kept import kept
from kdseg.results.manifests import read
from kdseg.running import status


def make(
    manifest: Path, options: dict[str, Any], *, fail: bool = False, result: str = "", measured: int = 0, **left: str
) -> None:
    """Do a stage that leaves a volume without voxels, and files in its hidden folder."""
    with claim(manifest, "test", options, {}) as held:
        if not fail:
            held.store.mkdir(exist_ok=True)
            write_text(held.table, result)
            held.stats["measured"] = measured
        for name, text in left.items():
            write_text(held.private / f"{name}.txt", text)
        if fail:
            raise ValueError("it fails")


def test_an_earlier_result_is_known_though_another_try_was_refused(tmp_path: Path) -> None:
    manifest = tmp_path / "a.json"
    make(manifest, {"n": 1})
    said = manifest.read_bytes()
    manifest.unlink()  # as Snakemake does before it starts a job
    with pytest.raises(ClaimError, match=r"options\.n was 1, is 2"):
        make(manifest, {"n": 2})
    assert [(one.name, one.state) for one in status.run(tmp_path)] == [("a", "kept")]
    assert not manifest.exists()  # it would stand for the other options
    make(manifest, {"n": 1})
    assert manifest.read_bytes() == said


def test_a_result_that_was_made_again_has_a_manifest_of_its_own(tmp_path: Path) -> None:
    manifest = tmp_path / "a.json"
    make(manifest, {"n": 1})
    said = manifest.read_bytes()
    make(manifest, {"n": 1})  # its manifest was there
    assert manifest.read_bytes() != said
    said = manifest.read_bytes()
    manifest.unlink()
    make(manifest, {"n": 1}, result="another")
    assert manifest.read_bytes() != said
    manifest.unlink()
    make(manifest, {"n": 1}, result="another", measured=2)
    assert read(manifest).stat("measured") == 2


def test_a_result_that_is_all_in_its_manifest_is_not_taken_from_the_earlier_one(tmp_path: Path) -> None:
    manifest, runs = tmp_path / "a.json", []
    for _ in range(2):
        manifest.unlink(missing_ok=True)
        with claim(manifest, "test", {}, {}):
            pass
        runs.append(read(manifest).run)
    assert runs[0] != runs[1]


def test_a_result_that_was_begun_again_is_not_known(tmp_path: Path) -> None:
    manifest = tmp_path / "a.json"
    make(manifest, {"n": 1})
    with pytest.raises(ValueError, match="it fails"):
        make(manifest, {"n": 1}, fail=True)
    assert [one.state for one in status.run(tmp_path)] == ["stopped"]
    make(manifest, {"n": 1})
    clear(manifest)
    assert kept(manifest) is None


def test_a_try_of_which_nothing_was_made_gives_way(tmp_path: Path) -> None:
    manifest = tmp_path / "a.json"
    with pytest.raises(ValueError, match="it fails"):
        make(manifest, {"n": 1}, fail=True, blocks="")
    make(manifest, {"n": 2})
    assert b'"n": 2' in manifest.read_bytes()


@pytest.mark.parametrize("what", ["blocks", "state", "result"])
def test_work_of_another_try_does_not_give_way(tmp_path: Path, what: str) -> None:
    manifest = tmp_path / "a.json"
    with pytest.raises(ValueError, match="it fails"):
        make(manifest, {"n": 1}, fail=True, blocks="0 0 0 0\n" if what == "blocks" else "")
    if what == "state":
        write_text(tmp_path / "a.training" / "state.pt", "state")
    if what == "result":
        write_text(tmp_path / "a.safetensors", "weights")
    with pytest.raises(ClaimError, match=r"options\.n was 1, is 2"):
        make(manifest, {"n": 2})
