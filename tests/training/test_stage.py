"""The stage `train`: manifests reach the training by the roles that were said, whatever their paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline import store
from small_trainings import OFFSETS, options

from kdseg.config.tasks import TrainTask, VolumeInputs
from kdseg.errors import ConfigError, UnreadableError
from kdseg.networks.checkpoint import load_model
from kdseg.results.claims import claim
from kdseg.results.manifests import read
from kdseg.training import stage
from kdseg.training.inputs import fingerprints, guides
from kdseg.training.sampling import Guide

SHAPE = (12, 16, 16)


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    """Return manifests whose names and folders say nothing of their roles."""
    labels = np.zeros(SHAPE, np.uint64)
    labels[:, :8], labels[:, 8:] = 1, 2
    raw = np.where(labels == 1, 60, 180).astype(np.uint8)
    arrays = {"raw": raw, "labels": labels, "one": raw, "two": raw, "near": raw, "ids": labels}
    paths = ((name, tmp_path / "x" / f"{number}.json") for number, name in enumerate(arrays))
    return {name: store(path, arrays[name]) for name, path in paths}


def task(manifest: Path, volumes: dict[str, VolumeInputs], name: str = "m", **more: Any) -> TrainTask:
    made = options(steps=1)
    return TrainTask(manifest=manifest, name=name, options=made, offsets=OFFSETS, volumes=volumes, device="cpu", **more)


def test_roles_are_taken_from_the_task(tmp_path: Path, given: dict[str, Any]) -> None:
    volumes = {"a": VolumeInputs(raw=given["raw"], labels=given["labels"])}
    manifest = tmp_path / "y" / "z.json"
    stage.run(task(manifest, volumes, name="thrifty"))
    made = read(manifest)
    expected = {"a/raw": read(given["raw"]).fingerprint, "a/labels": read(given["labels"]).fingerprint}
    assert made.inputs == expected
    assert load_model(made.result).meta["name"] == "thrifty"


def test_guides_are_in_the_order_of_the_teachers(given: dict[str, Any]) -> None:
    stored = {
        "second": {"a": {"affinities": given["two"]}},
        "first": {"a": {"embedding": given["near"], "affinities_flips": given["one"]}},
    }
    inputs = task(Path("m.json"), {}, stored=stored, instances={"b": given["ids"]})
    where = {name: read(path).result for name, path in given.items()}
    assert guides(inputs, ("first", "second")) == {
        "a": Guide(affinities=(where["one"], where["two"]), embeddings=(where["near"],)),
        "b": Guide(instances=where["ids"]),
    }
    assert fingerprints(inputs, ("first", "second")) == {
        "first/a/embedding.json": read(given["near"]).fingerprint,
        "first/a/affinities_flips.json": read(given["one"]).fingerprint,
        "second/a/affinities.json": read(given["two"]).fingerprint,
        "first/b/segmentation.json": read(given["ids"]).fingerprint,
    }


@pytest.mark.parametrize("role", ["teachers", "stored", "instances"])
def test_results_of_teachers_that_the_options_do_not_name_are_refused(
    tmp_path: Path, given: dict[str, Any], role: str
) -> None:
    with claim(tmp_path / "w.json", "train", {}, {}) as held:
        held.model.touch()
    values = {
        "teachers": {"other": tmp_path / "w.json"},
        "stored": {"other": {"a": {"affinities": given["one"]}}},
        "instances": {"a": given["ids"]},
    }
    with pytest.raises(ConfigError, match=r"but the options name (\[\]|none)"):
        stage.run(task(tmp_path / "m.json", {}, **{role: values[role]}))


def test_a_damaged_note_of_the_threads_is_not_gone_on_with(tmp_path: Path) -> None:
    note = tmp_path / ".model" / "threads.json"
    assert [stage._as_begun(note, threads) for threads in (2, 3)] == [2, 2]
    note.write_bytes(note.read_bytes().replace(b": 2", b": 3"))
    with pytest.raises(UnreadableError, match=r"threads\.json was changed.*delete it, .* kdseg clear \S*/model\.json$"):
        stage._as_begun(note, 2)
