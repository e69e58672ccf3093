"""Forks on request: they have what the stage has, and whoever asked hears how they ended."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress

import pytest

from kdseg.errors import StageError
from kdseg.geometry import Roi, blocks
from kdseg.running.forks import POSSIBLE, forks
from kdseg.running.runner import Place, run_blocks

pytestmark = pytest.mark.skipif(not POSSIBLE, reason="processes do not survive a fork on this system")


def test_a_fork_does_what_it_is_asked_with_what_this_process_holds(tmp_path):
    held = object()  # no other process could have it

    def work(text):
        (tmp_path / text).write_text(f"{id(held)} {os.getpid()}")

    with forks(work) as ask:
        for text in ("a", "b"):
            ask(text)
    (one, first), (other, second) = ((tmp_path / name).read_text().split() for name in ("a", "b"))
    assert one == other == str(id(held))
    assert len({first, second, str(os.getpid())}) == 3


def test_any_process_may_ask(tmp_path):
    asking = "import cloudpickle, sys; cloudpickle.load(sys.stdin.buffer)('asked')"
    cloudpickle = pytest.importorskip("cloudpickle")
    with forks(lambda text: (tmp_path / text).touch()) as ask:
        subprocess.run([sys.executable, "-c", asking], input=cloudpickle.dumps(ask), check=True)
    assert (tmp_path / "asked").exists()


def test_a_long_name_of_the_temporary_folder_does_no_harm(tmp_path, monkeypatch):
    """The address of a socket has at most 108 bytes."""
    long = tmp_path / ("a" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with forks(lambda text: (tmp_path / text).touch()) as ask:
        ask("asked")
    assert (tmp_path / "asked").exists()


def test_who_asks_hears_of_failures_and_kills():
    def work(text):
        if text == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError(text)

    with forks(work) as ask:
        with pytest.raises(StageError, match="failed"):
            ask("rotten")
        with pytest.raises(StageError, match="killed"):
            ask("kill")


def test_forks_end_with_the_body_that_fails(tmp_path):
    def work(text):
        (tmp_path / text).touch()
        time.sleep(60)

    heard = []

    def wait_for_it(ask):
        try:
            ask("began")
        except StageError as error:
            heard.append(str(error))

    with suppress(KeyboardInterrupt), forks(work) as ask:
        asking = threading.Thread(target=wait_for_it, args=(ask,))
        asking.start()
        while not (tmp_path / "began").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt
    asking.join(timeout=10)
    assert len(heard) == 1
    assert "killed" in heard[0]


def test_a_killed_worker_is_replaced_and_its_block_done_again(tmp_path):
    total, block = Roi((0, 0, 0), (4, 4, 4)), (2, 2, 2)

    def once(cell):
        mark = tmp_path / "killed"
        if cell.index == (1, 0, 1) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (tmp_path / "_".join(map(str, cell.index))).touch()

    run_blocks("once", total, block, once, Place(2), tmp_path / "done")
    assert {path.name for path in tmp_path.glob("?_?_?")} == {"_".join(map(str, b.index)) for b in blocks(total, block)}


STAGE = """
import sys, time
from pathlib import Path
from kdseg.geometry import Roi
from kdseg.running.runner import Place, run_blocks
folder = Path(sys.argv[1])
def slow(block):
    (folder / "began").touch()
    time.sleep(60)
run_blocks("slow", Roi((0, 0, 0), (800, 8, 8)), (8, 8, 8), slow, Place(2), folder / "done")
"""


@pytest.mark.parametrize(
    ("how", "whom"), [(signal.SIGTERM, "the stage"), (signal.SIGTERM, "all"), (signal.SIGKILL, "the stage")]
)
def test_a_stage_that_is_killed_leaves_no_temporary_folder(tmp_path, how, whom):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    run = subprocess.Popen([sys.executable, "-c", STAGE, str(tmp_path)], env=environment, start_new_session=True)
    while not (tmp_path / "began").exists():
        time.sleep(0.02)
    assert list(temporary.glob("kdseg-*"))
    os.kill(run.pid, how) if whom == "the stage" else os.killpg(run.pid, how)
    assert run.wait() == -how
    patience = time.monotonic() + 30
    while list(temporary.iterdir()) and time.monotonic() < patience:
        time.sleep(0.02)
    assert list(temporary.iterdir()) == []


HEAPS = """
import ctypes, sys, threading
from kdseg.running.forks import one_heap

if sys.argv[1] == "one":
    one_heap()
libc = ctypes.CDLL(None)  # lets other threads run meanwhile
all_there = threading.Barrier(4)
libc.malloc.restype = ctypes.c_void_p

def allocate():
    all_there.wait()
    libc.malloc(1000)
    all_there.wait()

threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


def test_threads_share_one_heap():
    # Dask sets how many heaps its workers have in the environment of whoever starts them
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    how = {"capture_output": True, "text": True, "check": True, "env": environment}
    counts = [
        subprocess.run([sys.executable, "-c", HEAPS, which], **how).stdout.count("<heap nr=")
        for which in ("many", "one")
    ]
    assert counts[0] > 1
    assert counts[1] == 1
