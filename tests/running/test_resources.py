"""Estimates of time and memory, and the limits of SLURM's partitions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdseg.config import Config
from kdseg.config.networks import TrainOptions
from kdseg.running.resources import (
    DAY,
    LONGEST,
    Limits,
    ask_slurm,
    blocks_mb,
    capped,
    limits,
    training_mb,
    training_minutes,
)

LISTED = """\
short*|30:00|16000|8
long|2-12:30:00|64000|16
long|2-12:30:00|128000|32
endless|infinite|1000+|4+
"""
"""Partitions as `sinfo --noheader --exact --format=%P|%l|%m|%c` lists them."""


def recipe(**changed):
    return TrainOptions(volumes=("a",), validate_on="b", **changed)


@pytest.mark.parametrize(
    ("partition", "expected"),
    [
        (None, Limits(30, 16000, 8)),
        ("short", Limits(30, 16000, 8)),
        ("long", Limits(2 * DAY + 12 * 60 + 30, 128000, 32)),  # of its largest node
        ("endless", Limits(None, 1000, 4)),
        ("absent", Limits()),
    ],
)
def test_limits_are_those_of_the_partition(partition, expected):
    assert limits(partition, LISTED) == expected


def test_without_a_default_partition_there_are_no_limits():
    assert limits(None, LISTED.replace("*", "")) == Limits() == limits("long", "")


def test_without_slurm_nothing_is_listed(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_slurm() == ""
    assert "does not say what its partitions allow" in caplog.text


@given(wanted=st.integers(1, 10**6), attempt=st.integers(1, 5), limit=st.none() | st.integers(1, 10**6))
def test_each_attempt_asks_for_more_up_to_the_limit(wanted, attempt, limit):
    asked = capped(wanted, attempt, limit)
    assert asked <= (limit or asked)
    assert asked == attempt * wanted or asked == limit


def test_a_short_training_asks_for_an_hour_and_a_long_one_for_days():
    assert training_minutes(recipe(steps=12, crop=(32, 32, 32))) == 61
    one = training_minutes(recipe(steps=1000)) - 60
    assert one == pytest.approx(1000 * 2 * 64**3 / 30_000 / 60, abs=1)
    assert training_minutes(recipe(steps=1000, accumulate=2)) - 60 == pytest.approx(2 * one, abs=1)
    assert training_minutes(recipe(steps=10**6)) == LONGEST
    assert training_minutes(recipe(seconds=7200)) == 60 + 180


def test_memory_grows_with_the_batch_and_the_validation():
    small = training_mb(recipe())
    assert training_mb(recipe(batch=4)) - small == pytest.approx(2 * 64**3 * 8e-3, abs=1)
    assert training_mb(recipe(validate_shape=(128, 128, 128))) - small == pytest.approx(64 * 128**2 * 4e-4, abs=1)
    assert training_mb(recipe(loader_workers=3)) == small + 3000


def test_memory_of_blocks_is_that_of_each_worker():
    assert blocks_mb((100, 100, 100), 50, 1) == 2000 + 1050
    assert blocks_mb((100, 100, 100), 50, 4) == 2000 + 4 * 1050
    assert blocks_mb((100, 100, 100), 50, 1, tile=(100, 100, 10)) == 2000 + 1150


def test_partitions_are_in_no_report(values):
    moved = Config.model_validate({**values, "partitions": {"cpu": "short", "gpu": "long"}})
    assert moved.partitions.gpu == "long"
    # else the report, whose params are the configuration, would be made again
    assert moved.model_dump_json() == Config.model_validate(values).model_dump_json()
