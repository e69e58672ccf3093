"""Weights that a stage reads are those that a training left; networks that are trained already stand beside them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from toy_volumes import cells, write_volume

from kdseg.config.data import StorageOptions, VolumeOptions
from kdseg.config.shipped import cards
from kdseg.config.tasks import ConvertTask, PredictTask, PretrainedTask
from kdseg.errors import ConfigError, DataError, UnreadableError
from kdseg.networks import pretrained
from kdseg.networks.checkpoint import load_model
from kdseg.networks.export import export
from kdseg.networks.weights import weights
from kdseg.prediction import stage as prediction
from kdseg.results.claims import claim
from kdseg.results.manifests import read
from kdseg.volumes import convert

OFFSETS = load_model(cards()["fib25-m"].file).offsets
STORAGE = StorageOptions(chunk=(16, 16, 16), shard=(32, 32, 32))


def taken(folder: Path, file: str = "fib25-m", **more: Any) -> Path:
    manifest = folder / "model.json"
    pretrained.run(PretrainedTask(manifest=manifest, file=file, offsets=OFFSETS, **more))
    return manifest


def test_a_pretrained_network_becomes_a_result(tmp_path: Path) -> None:
    manifest = taken(tmp_path / "named")
    found, card = read(manifest), cards()["fib25-m"]
    assert weights(manifest) == found.result == tmp_path / "named" / "model.safetensors"
    assert found.result.read_bytes() == card.file.read_bytes()
    assert found.stats["parameters"] == card.parameters
    assert found.stats["best_threshold"] == card.threshold
    own = shutil.copy(card.file, tmp_path / "own.safetensors")
    by_path = read(taken(tmp_path / "path", str(own)))
    assert by_path.fingerprint == found.fingerprint  # the bytes count, not their place
    assert "best_threshold" not in by_path.stats


def test_other_affinities_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fib25-m predicts the offsets .*, the configuration has \[\[-1, 0, 0\], .*"):
        pretrained.run(PretrainedTask(manifest=tmp_path / "model.json", file="fib25-m", offsets=OFFSETS[:3]))
    assert not (tmp_path / "model.json").exists()


def test_a_network_is_named_by_manifest_path_or_name(tmp_path: Path) -> None:
    file = cards()["fib25-m"].file
    assert weights(Path("fib25-m")) == weights(file) == file
    with claim(tmp_path / "raw.json", "convert", {}, {}) as held:
        held.model.touch()
    with pytest.raises(DataError, match=r"raw.json is a result of `kdseg convert`, whose stats have no 'weights'"):
        weights(tmp_path / "raw.json")


def test_weights_that_were_changed_are_noticed(tmp_path: Path) -> None:
    """Other whole weights, which a model file's own checksum cannot notice."""
    manifest = taken(tmp_path)
    raw = write_volume(tmp_path / "cells.zarr", cells((16, 32, 32), 8)[0])
    volume = VolumeOptions(raw=str(raw))
    convert.run(ConvertTask(kind="raw", manifest=tmp_path / "raw.json", options=volume, storage=STORAGE))
    shutil.copy(cards()["fib25-teacher"].file, manifest.with_suffix(".safetensors"))
    asked = PredictTask(manifest=tmp_path / "a.json", raw=tmp_path / "raw.json", model=manifest, storage=STORAGE)
    for use in (lambda: prediction.run(asked), lambda: export(manifest, tmp_path / "net.safetensors")):
        with pytest.raises(UnreadableError, match=r"model.safetensors is not the file that `kdseg pretrained` left"):
            use()
    assert not (tmp_path / "a.json").exists()


@pytest.mark.slow
def test_a_shipped_network_predicts_by_its_name(tmp_path: Path) -> None:
    raw = write_volume(tmp_path / "cells.zarr", cells((16, 32, 32), 8)[0])
    volume = VolumeOptions(raw=str(raw))
    convert.run(ConvertTask(kind="raw", manifest=tmp_path / "raw.json", options=volume, storage=STORAGE))
    options = {"block": (32, 32, 32), "tile": (32, 32, 32)}
    for name, model in (("a", Path("fib25-m")), ("b", taken(tmp_path))):
        prediction.run(
            PredictTask(
                manifest=tmp_path / f"{name}.json", raw=tmp_path / "raw.json", model=model, storage=STORAGE,
                options=options, device="cpu",
            )
        )  # fmt: skip
    first, second = (read(tmp_path / f"{name}.json") for name in "ab")
    assert first.fingerprint == second.fingerprint
