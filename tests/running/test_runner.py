"""Blocks over workers: all of them once, resumed after a kill, and a clear error when one fails."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from command import interruptible

from kdseg.errors import DataError, StageError
from kdseg.geometry import Roi, blocks
from kdseg.running import local
from kdseg.running.attempt import Patience
from kdseg.running.runner import ATTEMPTS, Place, run_blocks

TOTAL, BLOCK = Roi((3, 0, 5), (20, 17, 30)), (8, 8, 8)


def note(folder):
    def function(block):
        with (folder / "_".join(map(str, block.index))).open("a") as file:
            file.write(f"{block.roi}\n")

    return function


@pytest.mark.parametrize("workers", [1, 2])
def test_every_block_runs_once_and_border_blocks_too(tmp_path, workers):
    (tmp_path / "out").mkdir()
    for _ in range(2):  # the second run finds all of them done
        run_blocks("note", TOTAL, BLOCK, note(tmp_path / "out"), Place(workers), tmp_path / "done")
    found = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert found == {"_".join(map(str, b.index)): f"{b.roi}\n" for b in blocks(TOTAL, BLOCK)}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_block_fails_the_stage_with_its_cause_and_keeps_the_rest(tmp_path, workers):
    (tmp_path / "out").mkdir()
    write = note(tmp_path / "out")

    def fail(block):
        if block.index == (1, 1, 1):
            raise DataError("this block is rotten")
        write(block)

    with pytest.raises(StageError, match="this block is rotten"):
        run_blocks("fail", TOTAL, BLOCK, fail, Place(workers), tmp_path / "done")
    run_blocks("fail", TOTAL, BLOCK, write, Place(workers), tmp_path / "done")
    texts = [path.read_text() for path in (tmp_path / "out").iterdir()]
    assert sorted(texts) == sorted(f"{b.roi}\n" for b in blocks(TOTAL, BLOCK))


@pytest.mark.parametrize("workers", [1, 2])
def test_where_all_blocks_fail_the_first_cause_is_told(tmp_path, workers):
    def fail(block):
        raise DataError("the disk is upside down; turn it")

    with pytest.raises(StageError, match="the disk is upside down; turn it; finished blocks are kept"):
        run_blocks("fail", Roi((0, 0, 0), (40, 8, 64)), BLOCK, fail, Place(workers), tmp_path / "done")


@pytest.mark.parametrize("workers", [1, 2])
def test_many_failures_are_told_in_one_line_and_soon(tmp_path, workers, capfd):
    (tmp_path / "out").mkdir()
    write = note(tmp_path / "out")

    def fail(block):
        write(block)
        raise DataError("negative ids")

    with pytest.raises(StageError, match=r"10 blocks failed and 0 did not, .*: negative ids; finished"):
        run_blocks("fail", Roi((0, 0, 0), (8, 8, 1600)), BLOCK, fail, Place(workers), tmp_path / "done")
    assert len(list((tmp_path / "out").iterdir())) <= 16 + workers
    told = capfd.readouterr()
    assert "Traceback" not in told.err + told.out


def test_a_list_of_finished_blocks_that_a_kill_cut_short_is_taken_up(tmp_path):
    (tmp_path / "out").mkdir()
    done = tmp_path / "done"
    run_blocks("note", TOTAL, BLOCK, note(tmp_path / "out"), Place(1), done)
    listed = done / "note.txt"
    lines = listed.read_bytes().splitlines(keepends=True)
    assert len(lines) == len(list(blocks(TOTAL, BLOCK)))
    listed.write_bytes(b"".join(lines)[:-2])
    redone = []
    run_blocks("note", TOTAL, BLOCK, lambda block: redone.append(block.index), Place(1), done)
    assert redone == [tuple(map(int, lines[-1].split()[:3]))]
    run_blocks("note", TOTAL, BLOCK, lambda block: redone.append(block.index), Place(1), done)
    assert len(redone) == 1


SLOW = """
import pathlib, sys, time
from kdseg.running.runner import Place, run_blocks
from kdseg.geometry import Roi
folder = pathlib.Path(sys.argv[1])
def slow(block):
    (folder / "_".join(map(str, block.index))).touch()
    time.sleep(0.4)
    (folder.parent / "late" / "_".join(map(str, block.index))).touch()
run_blocks("slow", Roi((3, 0, 5), (20, 17, 30)), (8, 8, 8), slow, Place(int(sys.argv[2])), folder.parent / "done")
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_does_the_rest_only(tmp_path, workers):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "late").mkdir()
    run = subprocess.Popen([sys.executable, "-c", SLOW, str(out), str(workers)])
    while len(list(out.iterdir())) < 5:
        time.sleep(0.02)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    before, late = set(out.iterdir()), set((tmp_path / "late").iterdir())
    time.sleep(0.8)
    # Orphaned workers end with their parent, in the middle of a block: they hold no lock any more.
    assert set((tmp_path / "late").iterdir()) == late
    assert set(out.iterdir()) == before
    redone = []
    run_blocks("slow", TOTAL, BLOCK, lambda b: redone.append(b.index), Place(1), tmp_path / "done")
    everything = {"_".join(map(str, b.index)) for b in blocks(TOTAL, BLOCK)}
    assert {path.name for path in before} | {"_".join(map(str, i)) for i in redone} == everything
    assert len(redone) <= len(everything) - 5 + workers


def meets(folder, block, trouble):
    """Do a block; at the first attempt at one of them, have trouble."""
    met = folder / "met"
    if block.index == (1, 1, 1) and not met.exists():
        met.touch()
        trouble()
    (folder / "_".join(map(str, block.index))).touch()


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def hang():
    time.sleep(600)


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("trouble", [stop, hang, killed])
def test_a_worker_that_stops_or_hangs_or_is_killed_is_replaced(tmp_path, monkeypatch, trouble):
    monkeypatch.setattr(local, "STOPPED_S", 0.5)
    if trouble is hang:
        monkeypatch.setattr(Patience, "LEAST_S", 1.0)
    status = tmp_path / "status.json"
    function = partial(meets, tmp_path, trouble=trouble)
    run_blocks("trouble", TOTAL, BLOCK, function, Place(2, status), tmp_path / "done")
    facts = json.loads(status.read_text())
    assert facts["blocks"] == {
        "total": 45, "before": 0, "done": 45, "skipped": 0, "reused": 0, "retries": 1, "failed": 0
    }  # fmt: skip
    assert {path.name for path in tmp_path.glob("?_?_?")} == {"_".join(map(str, b.index)) for b in blocks(TOTAL, BLOCK)}


@pytest.mark.slow
@pytest.mark.parametrize(("trouble", "said"), [(killed, "ended"), (hang, r"was at it for \d+ s, too long")])
def test_a_block_that_no_worker_survives_is_named_and_the_others_are_done(tmp_path, monkeypatch, trouble, said):
    monkeypatch.setattr(Patience, "LEAST_S", 0.3)
    monkeypatch.setattr(Patience, "TIMES", 1.0)

    def deadly(block):
        if block.index == (1, 1, 1):
            trouble()
        (tmp_path / "_".join(map(str, block.index))).touch()

    with pytest.raises(StageError, match=rf"1 of 45 blocks failed; .* \[8:16, 8:16, 8:16\]: its worker {said}"):
        run_blocks("deadly", TOTAL, BLOCK, deadly, Place(2), tmp_path / "done")
    assert len(list(tmp_path.glob("?_?_?"))) == 44


@pytest.mark.slow
def test_more_blocks_than_a_round_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "ROUND", 7)
    run_blocks(
        "note", TOTAL, BLOCK, lambda b: (tmp_path / "_".join(map(str, b.index))).touch(), Place(2), tmp_path / "d"
    )
    assert len(list(tmp_path.glob("?_?_?"))) == 45


def test_what_may_pass_is_tried_again(tmp_path):
    def flaky(block):
        count = tmp_path / "_".join(map(str, block.index))
        with count.open("a") as file:
            file.write("x")
        if block.index[0] == 1 and len(count.read_text()) < ATTEMPTS:
            raise OSError("the file system does not answer")

    run_blocks("flaky", TOTAL, BLOCK, flaky, Place(2), tmp_path / "done")
    tried = {path.name[0]: path.read_text() for path in tmp_path.glob("?_?_?")}
    assert tried == {"0": "x", "1": "x" * ATTEMPTS, "2": "x"}


INTERRUPTED = """
import sys, time
from pathlib import Path
from kdseg.running.runner import Place, run_blocks
from kdseg.geometry import Roi
folder = Path(sys.argv[1])
def slow(block):
    (folder / "_".join(map(str, block.index))).touch()
    time.sleep(float(sys.argv[2]))
run_blocks("slow", Roi((0, 0, 0), (800, 8, 8)), (8, 8, 8), slow, Place(2), folder.parent / "done")
"""


def interrupted(out, seconds, blocks):
    """Begin a stage whose blocks take so many seconds, and interrupt it when so many have begun."""
    out.mkdir()
    command = [sys.executable, "-c", INTERRUPTED, str(out), str(seconds)]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible)
    while len(list(out.iterdir())) < blocks:
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    return run


def test_an_interruption_ends_the_stage_and_loses_no_block(tmp_path):
    out = tmp_path / "out"
    run = interrupted(out, 0.3, 5)
    _, said = run.communicate(timeout=60)
    assert run.returncode != 0
    assert "KeyboardInterrupt" in said
    begun, redone = {path.name for path in out.iterdir()}, set()
    assert len(begun) < 50
    again = partial(run_blocks, "slow", Roi((0, 0, 0), (800, 8, 8)), BLOCK)
    again(lambda block: redone.add("_".join(map(str, block.index))), Place(1), tmp_path / "done")
    assert not begun & redone  # those that were being done were waited for
    assert len(begun | redone) == 100


def test_a_second_interruption_waits_for_no_block(tmp_path):
    run = interrupted(tmp_path / "out", 600, 2)
    with pytest.raises(subprocess.TimeoutExpired):
        run.wait(timeout=2)  # it waits for its blocks
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode != 0
    assert "KeyboardInterrupt" in said


def test_a_block_of_too_many_files_fails_in_words(tmp_path):
    """What is known of its files would not fit into the message that tells of it."""

    def many(block):
        return bytes(12 * 20_000) if block.index == (0, 0, 0) else bytes(12)

    with pytest.raises(StageError, match="240000 bytes of checksums, too many: choose larger shards or smaller blocks"):
        run_blocks("many", TOTAL, BLOCK, many, Place(2), tmp_path / "done")


def test_long_blocks_after_short_ones_are_done_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(Patience, "LEAST_S", 0.5)
    monkeypatch.setattr(Patience, "TIMES", 1.0)
    status = tmp_path / "status.json"

    def lasts(block):
        time.sleep(1.2 if block.index == (2, 2, 4) else 0.0)

    run_blocks("lasts", TOTAL, BLOCK, lasts, Place(2, status), tmp_path / "done")
    blocks_ = json.loads(status.read_text())["blocks"]
    assert (blocks_["done"], blocks_["failed"]) == (45, 0)
    assert 1 <= blocks_["retries"] <= 2
