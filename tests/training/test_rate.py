"""The learning rate range test."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from pipeline import store
from small_trainings import OFFSETS, options
from toy_volumes import cells, write_volume

from kdseg.cli import main
from kdseg.config.tasks import RateTask, VolumeInputs
from kdseg.errors import ConfigError, StageError
from kdseg.networks.checkpoint import LoadedModel, save_model
from kdseg.networks.models import build
from kdseg.results.manifests import read
from kdseg.training import range_test, rate
from kdseg.training.loop import step
from kdseg.training.range_test import _until_it_diverges, advice, losses, rising, smooth
from kdseg.training.run import Data

STEPS = 100
RATES = rising(1e-5, 1.0, STEPS)


def falling(at: float) -> list[float]:
    """Return losses that fall from 1 to 0.4 around a rate, and rise again two decades above."""
    decades = np.log10(np.array(RATES) / at)
    return [float(v) for v in 0.7 - 0.3 * np.tanh(3 * decades) + np.maximum(decades - 1.5, 0)]


def test_rates_rise_by_one_factor() -> None:
    assert (RATES[0], RATES[-1], len(RATES)) == (1e-5, pytest.approx(1.0), STEPS)
    assert np.diff(np.log(RATES)) == pytest.approx(np.log(1e5) / (STEPS - 1))


def test_the_steepest_fall_is_advised() -> None:
    losses = falling(2e-3)
    found = advice(RATES, losses)
    assert found.steepest == pytest.approx(2e-3, rel=0.15)
    assert 1e-2 < found.least < 1e-1
    assert found.diverged is None
    # a spike is averaged away, and the first steps say nothing
    noisy = [9.0, *losses[1:]]
    noisy[30] -= 0.1
    assert advice(RATES, noisy).steepest == pytest.approx(2e-3, rel=0.15)
    noisy[92:] = [0.5] * len(noisy[92:])  # a fall from where it had risen to
    assert advice(RATES, noisy).steepest == pytest.approx(2e-3, rel=0.15)
    cut = advice(RATES, losses[:90])
    assert cut.diverged == RATES[89]
    assert cut.steepest == found.steepest
    assert advice(RATES, [*losses[:80], float("inf")]).diverged == RATES[80]


def test_where_no_rate_helps_it_says_so() -> None:
    with pytest.raises(ConfigError, match="does not fall between"):
        advice(RATES, [float(k) for k in range(STEPS)])
    with pytest.raises(ConfigError, match=re.escape(f"diverges at the rate {RATES[2]:g}: begin")):
        advice(RATES, [1.0, 0.9, float("inf")])


def test_smoothing_has_no_lag() -> None:
    line = [float(k) for k in range(50)]
    assert smooth(line, STEPS).tolist() == line
    assert smooth([0.0, 3.0, 0.0], 20).tolist() == [0.0, 1.0, 0.0]


def test_the_test_ends_where_the_loss_diverges() -> None:
    assert _until_it_diverges([1.0] * 10 + [2.0] * 10) == [1.0] * 10 + [2.0] * 10
    assert len(_until_it_diverges([1.0] * 10 + [9.0] * 10)) == 12  # 2 of 5: a mean of 4.2
    assert len(_until_it_diverges([-0.5] * 20)) == 20
    assert len(_until_it_diverges([-0.5] * 10 + [9.0] * 10)) == 11

    def fails() -> Any:
        yield from (1.0, 0.5)
        raise StageError("the loss is nan")

    assert _until_it_diverges(fails()) == [1.0, 0.5, float("inf")]


def test_a_network_is_tested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, labels = cells((20, 24, 24), 8)
    volumes = {"a": VolumeInputs(raw=store(tmp_path / "raw.json", raw), labels=store(tmp_path / "labels.json", labels))}
    task = RateTask(
        manifest=tmp_path / "m" / "rate.json", name="m", options=options(steps=None, seconds=9.0), offsets=OFFSETS,
        volumes=volumes, device="cpu", low=1e-4, high=1.0, steps=40,
    )  # fmt: skip
    rate.run(task)
    rows = list(csv.DictReader((tmp_path / "m" / "rate.csv").read_text().splitlines()))
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates == pytest.approx(rising(1e-4, 1.0, 40)[: len(rows)])
    stats = read(task.manifest).stats
    assert rates[0] < stats["steepest"] <= rates[-1]
    assert stats["steepest"] == advice(rising(1e-4, 1.0, 40), [float(row["loss"]) for row in rows]).steepest
    # rates that hardly move a weight leave the loss where it was; the best one halves what it can
    losses = [float(row["loss"]) for row in rows]
    assert min(losses[20:]) < min(losses[:5]) - 0.02
    drawing = ElementTree.fromstring((tmp_path / "m" / "rate.svg").read_text())
    texts = {"".join(text.itertext()) for text in drawing.findall(".//{*}text")}
    assert {"learning rate", "loss", f"steepest fall {stats['steepest']:.2g}"} <= texts
    # the same again is the same
    again = task.model_copy(update={"manifest": tmp_path / "n" / "rate.json"})
    rate.run(again)
    assert (tmp_path / "n" / "rate.csv").read_text() == (tmp_path / "m" / "rate.csv").read_text()
    with pytest.raises(SystemExit):
        main(["rate", "--task", json.dumps(json.loads(task.model_dump_json()) | {"low": 2.0})])
    assert "low must be below high, got 2 and 1" in capsys.readouterr().err


def test_terms_that_begin_late_act_from_the_first_rate_on(tmp_path: Path, teacher: Path) -> None:
    """Else the loss would leap where they begin, and fall where their weight does."""
    given = [{"name": "affinity"}, {"name": "soft_affinity", "start": 150, "decay": "cosine"}, {"name": "ft", "fit": 4}]
    made = options(steps=200, teacher="t", terms=given)
    plain = options(
        steps=200, teacher="t", terms=[{"name": "affinity"}, {"name": "soft_affinity"}, {"name": "ft", "fit": 4}]
    )
    raw, labels = cells((20, 24, 24), 8)
    volumes = {"a": (write_volume(tmp_path / "raw.zarr", raw), write_volume(tmp_path / "labels.zarr", labels))}
    data = Data(volumes, {}, (teacher,))
    found, same = (losses(one, OFFSETS, data, rising(1e-4, 1e-3, 6), "cpu") for one in (made, plain))
    assert found == same
    assert len(found) == 6


def test_weights_of_parts_stand_still(tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `normalise` a part counts the more the less it pulls: a loss that falls would seem to rise."""
    raw, labels = cells((20, 24, 24), 8)
    volumes = {"a": (write_volume(tmp_path / "raw.zarr", raw), write_volume(tmp_path / "labels.zarr", labels))}
    rows: list[dict[str, float]] = []

    def noted(*given: Any) -> dict[str, float]:
        rows.append(step(*given))
        return rows[-1]

    monkeypatch.setattr(range_test, "step", noted)
    given = [{"name": "affinity"}, {"name": "soft_affinity", "weight": 0.5}]
    made = options(teacher="t", terms=given, normalise=True)
    found = losses(made, OFFSETS, Data(volumes, {}, (teacher,)), rising(1e-4, 1e-2, 20), "cpu")
    rows = rows[-20:]
    both = np.array([[row["affinity"], row["soft_affinity"]] for row in rows])
    weights, left, *_ = np.linalg.lstsq(both, np.array(found))
    assert left == pytest.approx(0, abs=1e-10)
    assert weights == pytest.approx([1.0, 0.5 / rows[0]["pull.soft_affinity"]], rel=1e-5)
    assert rows[0]["pull.soft_affinity"] != pytest.approx(rows[-1]["pull.soft_affinity"], rel=1e-3)


def test_a_control_is_tested_without_its_teacher(tmp_path: Path) -> None:
    raw, labels = cells((20, 24, 24), 8)
    volumes = {"a": (write_volume(tmp_path / "raw.zarr", raw), write_volume(tmp_path / "labels.zarr", labels))}
    off = options(teacher="t", distil=False, terms=[{"name": "affinity"}, {"name": "soft_affinity"}])
    found, plain = (
        losses(one, OFFSETS, Data(volumes, {}, ()), rising(1e-4, 1e-3, 6), "cpu") for one in (off, options())
    )
    assert found == plain


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    made = options()
    torch.manual_seed(1)
    network = build(made.network, made.heads, OFFSETS)
    save_model(tmp_path / "t.safetensors", LoadedModel(network, made.network, made.heads, OFFSETS, (10.0, 10.0, 10.0)))
    return tmp_path / "t.safetensors"
