"""Networks that come with kdseg: each card tells the truth about the weights beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import invoke

from kdseg.config import shipped
from kdseg.config.shipped import Card, cards, model_file, named
from kdseg.errors import ConfigError, MissingError, UnreadableError
from kdseg.networks.checkpoint import load_model
from kdseg.networks.models import count_parameters, kmac_per_voxel

NAMES = sorted(cards())


def test_there_are_some_and_they_are_small() -> None:
    assert {"fib25-teacher", "fib25-m", "fib25-s"} <= set(NAMES)
    assert sum(path.stat().st_size for path in shipped.FOLDER.iterdir()) <= 20e6
    assert {path.stem for path in shipped.FOLDER.iterdir()} == set(NAMES)  # neither weights nor cards alone


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_what_its_weights_are(name: str) -> None:
    card, loaded = cards()[name], load_model(cards()[name].file)
    assert card.name == card.file.stem == name
    assert card.sha256 == hashlib.sha256(card.file.read_bytes()).hexdigest()
    assert card.parameters == count_parameters(loaded.network)
    assert card.kmac_per_voxel == pytest.approx(kmac_per_voxel(loaded.network), abs=0.05)
    assert card.voxel_size == loaded.voxel_size
    assert 0 < card.threshold < 1
    for said in (card.title, card.data, card.attribution, card.recipe, card.command, card.limits, card.scores["tune"]):
        assert said.strip()


@pytest.mark.parametrize("name", NAMES)
def test_a_students_share_of_the_teacher(name: str) -> None:
    if name != "fib25-teacher":
        assert cards()[name].parameters < 0.01 * cards()["fib25-teacher"].parameters


def test_a_network_is_found_by_its_name_or_its_path(tmp_path: Path) -> None:
    assert model_file("fib25-m") == named(Path("fib25-m")) == cards()["fib25-m"].file
    own = tmp_path / "own.safetensors"
    own.write_bytes(b"")
    assert model_file(own) == named(own) == own
    with pytest.raises(ConfigError, match=r"no network 'fib25-x' comes .* one of .*fib25-m.*a .safetensors file"):
        model_file("fib25-x")
    for missing in (tmp_path / "no.safetensors", Path("no.safetensors"), Path("some/net.pt")):
        with pytest.raises(MissingError, match=f"no model file at {missing}.*kdseg models"):
            model_file(missing)


def test_a_card_knows_voxels_of_about_its_own_size() -> None:
    card = cards()["fib25-m"]
    assert card.knows((10.0, 9.6, 10.4))
    assert not card.knows((10.0, 10.0, 8.0))


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder of one card and no weights, in the place of the shipped ones."""
    (tmp_path / "fib25-m.json").write_text(cards()["fib25-m"].model_dump_json(exclude_unset=True))
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    cards.cache_clear()
    yield tmp_path
    cards.cache_clear()


@pytest.mark.parametrize("change", [{"parameters": "many"}, {"colour": "red"}, {"sha256": None}])
def test_a_damaged_card_is_named(copied: Path, change: dict[str, Any]) -> None:
    path = copied / "fib25-m.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UnreadableError, match=r"fib25-m\.json is no card of a network"):
        cards()


def test_weights_that_are_gone_are_named(copied: Path) -> None:
    with pytest.raises(MissingError, match=r"the weights of 'fib25-m' are gone from .*fib25-m\.safetensors: install"):
        model_file("fib25-m")


def test_other_weights_than_those_of_the_card_are_named(copied: Path) -> None:
    (copied / "fib25-m.safetensors").write_bytes(b"something else")
    with pytest.raises(UnreadableError, match=r"fib25-m.safetensors is not the network that its card is of"):
        model_file("fib25-m")


def test_a_card_without_a_threshold_is_named() -> None:
    values = cards()["fib25-m"].model_dump(exclude={"segment"})
    with pytest.raises(UnreadableError, match="the card of 'fib25-m' names no threshold"):
        _ = Card.model_validate(values).threshold


def test_the_command_lists_them() -> None:
    listed = invoke("models")
    assert listed.exit_code == 0, listed.output
    lines = listed.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == NAMES
    for name in NAMES:
        one = invoke("models", name)
        assert Card.model_validate(yaml.safe_load(one.stdout)) == cards()[name]
    found = json.loads(invoke("models", "--json").stdout)
    assert {name: Card.model_validate(values) for name, values in found.items()} == cards()
    assert set(json.loads(invoke("models", "fib25-m", "--json").stdout)) == {"fib25-m"}
    refused = invoke("models", "fib25-x")
    assert refused.exit_code == 1
    assert "no network 'fib25-x' comes with kdseg" in refused.stderr
