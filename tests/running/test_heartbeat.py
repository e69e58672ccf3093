"""Nothing is silent for long: what goes on is said, by who knows most of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pytest

from kdseg.geometry import Block, Roi
from kdseg.running import heartbeat
from kdseg.running.heartbeat import beating, doing, span
from kdseg.running.runner import Place, run_blocks


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(heartbeat, "EVERY_S", 0.02)
    monkeypatch.setattr(heartbeat, "_LOOK_S", 0.005)
    caplog.set_level(logging.INFO)


def until(true: Callable[[], bool]) -> None:
    last = time.monotonic() + 20
    while not true():
        assert time.monotonic() < last
        time.sleep(0.005)


def test_the_innermost_thing_is_told_of_and_then_what_it_is_part_of(caplog: pytest.LogCaptureFixture) -> None:
    with beating("tune"):
        until(lambda: "tune: at work for 0 s" in caplog.text)
        with doing(lambda: "the outer thing"):
            with doing(lambda: "the inner thing"):
                until(lambda: "the inner thing" in caplog.text)
                assert "the outer thing" not in caplog.text
            until(lambda: "the outer thing" in caplog.text)
        said = len(caplog.records)
        until(lambda: "tune: at work" in caplog.text[said:])
    said = len(caplog.records)
    time.sleep(0.1)
    assert len(caplog.records) == said


def test_what_is_shown_in_another_way_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    asked = []
    with beating("run"), doing(lambda: asked.append("") or ""):
        until(lambda: len(asked) > 2)
    assert not caplog.records


def test_what_cannot_be_told_ends_no_beat(caplog: pytest.LogCaptureFixture) -> None:
    """Filters of warnings would make an error of a traceback of the thread."""
    asked = []

    def gone() -> str:
        asked.append("")
        raise BrokenPipeError

    with beating("run"):
        with doing(gone):
            until(lambda: len(asked) > 2)
        until(lambda: "run: at work" in caplog.text)


def test_nothing_is_said_soon_after_something_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "EVERY_S", 600.0)
    with beating("run"):
        heartbeat._last[0] = 0.0
        logging.getLogger("kdseg.other").info("something")
        assert time.monotonic() - heartbeat._last[0] < 20


def test_a_stage_says_how_far_it_is_while_no_block_ends(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    def slow(block: Block) -> None:
        done = block.index[0]
        until(lambda: f"slow: {done} of 2 blocks ({50 * done:.1f} %)" in caplog.text)

    with beating("slow"):
        run_blocks("slow", Roi((0, 0, 0), (16, 8, 8)), (8, 8, 8), slow, Place(1), tmp_path)


def test_spans() -> None:
    assert [span(s) for s in (0.4, 119, 121, 7100, 7300)] == ["0 s", "119 s", "2 min", "118 min", "2.0 h"]
