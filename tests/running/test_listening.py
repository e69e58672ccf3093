"""Who listens while blocks are done on this machine, and to whom."""

import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from urllib.request import urlopen

import pytest
from distributed import LocalCluster, get_worker
from listening import asks_for_credentials, family, listening, try_as_another_user

from kdseg.config.cluster import LocalOptions
from kdseg.geometry import Roi
from kdseg.running.cluster import workers_of
from kdseg.running.forks import POSSIBLE
from kdseg.running.runner import Place, run_blocks

TOTAL, BLOCK = Roi((0, 0, 0), (2, 2, 8)), (2, 2, 2)
LOOPBACK = {"127.0.0.1"}


def look(folder, stage, before, block):
    """From a worker, write on what the stage and its workers listen now, and what of it asks for credentials."""
    new = sorted(listening(*family(stage)) - before)
    found = {"listening": new, "asking": [asks_for_credentials(*one) for one in new]}
    (folder / f"{block.index[2]}.json").write_text(json.dumps(found))


def try_scheduler(folder, block):
    if block.index == (0, 0, 0):
        found = try_as_another_user(get_worker().scheduler.address, folder / "mark")
        (folder / "stranger.json").write_text(json.dumps(found))


@pytest.fixture
def looking(tmp_path):
    return partial(look, tmp_path, os.getpid(), listening(*family(os.getpid())))


def test_dask_on_this_machine_asks_everybody_for_credentials(tmp_path, looking):
    run_blocks("look", TOTAL, BLOCK, looking, Place(2, threads=2), tmp_path / "done")
    seen = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert len(seen) == 4
    for found in seen:
        assert {ip for ip, _ in found["listening"]} == LOOPBACK
        assert len(found["listening"]) == 5  # the scheduler, two nannies, two workers
        assert all(found["asking"]), found


def test_another_user_of_this_machine_cannot_use_the_scheduler(tmp_path):
    run_blocks("try", TOTAL, BLOCK, partial(try_scheduler, tmp_path), Place(1, threads=2), tmp_path / "done")
    assert json.loads((tmp_path / "stranger.json").read_text()) == ["refused", "refused"]
    assert not (tmp_path / "mark").exists()


def test_a_connection_that_ends_at_once_is_no_news_but_a_stranger_is(caplog, tmp_path):
    with workers_of(LocalOptions(), 1, 1, tmp_path) as found:
        host, port = found.client.scheduler.address.removeprefix("tls://").split(":")
        for begins in (b"", b"GET / HTTP/1.0\r\n\r\n"):
            with socket.create_connection((host, int(port)), timeout=60) as left, suppress(ConnectionResetError):
                left.sendall(begins)
                left.shutdown(socket.SHUT_WR)
                while left.recv(1000):  # until the scheduler has closed it, too
                    pass
        found.client.scheduler_info()  # the scheduler has told what it tells before it answers
    (told,) = [record.getMessage() for record in caplog.records if "handshake" in record.getMessage()]
    assert "HTTP_REQUEST" in told


def test_another_user_can_use_a_scheduler_without_credentials(tmp_path):
    """The stranger of these tests is able to, that is."""
    with LocalCluster(n_workers=0, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0") as cluster:
        assert try_as_another_user(cluster.scheduler_address, tmp_path / "mark") == ["let in", "refused"]
    assert (tmp_path / "mark").exists()


def test_the_dashboard_is_on_loopback_and_only_when_it_is_asked_for(tmp_path, caplog):
    before = listening(*family(os.getpid()))
    with caplog.at_level(logging.INFO, "kdseg"), workers_of(LocalOptions(dashboard=True), 1, 1, tmp_path):
        url = re.search(r"http://127\.0\.0\.1:(\d+)/status", caplog.text)
        with urlopen(url[0]) as page:
            assert "Dask" in page.read().decode()
        new = listening(*family(os.getpid())) - before
        assert {ip for ip, _ in new} == LOOPBACK
        assert all(asks_for_credentials(ip, port) for ip, port in new if port != int(url[1]))


needs_forks = pytest.mark.skipif(not POSSIBLE, reason="processes do not survive a fork on this system")


@needs_forks
def test_daisy_listens_on_loopback_only(tmp_path, looking):
    run_blocks("look", TOTAL, BLOCK, looking, Place(2), tmp_path / "done")
    seen = [json.loads(path.read_text())["listening"] for path in tmp_path.glob("*.json")]
    assert [[ip for ip, _ in found] for found in seen] == [["127.0.0.1"]] * 4


STRANGER = """
import daisy, sys

client = daisy.Client(daisy.Context(hostname="127.0.0.1", port=sys.argv[1], task_id="blocks", worker_id="77"))
for _ in range(2):
    with client.acquire_block() as block:
        print(block.block_id)
"""


@needs_forks
def test_blocks_that_another_user_takes_from_daisy_are_done_all_the_same(tmp_path):
    """While both workers have a block each, a stranger takes the other two and says that they are done."""
    stage, before = os.getpid(), listening(*family(os.getpid()))

    def let_others_take(block):
        if block.index == (0, 0, 0) and not (tmp_path / "taken").exists():
            ((_, port),) = listening(*family(stage)) - before
            taken = subprocess.run([sys.executable, "-c", STRANGER, str(port)], capture_output=True, check=True).stdout
            (tmp_path / "taking").write_bytes(taken)
            (tmp_path / "taking").rename(tmp_path / "taken")
        while not (tmp_path / "taken").exists():
            time.sleep(0.01)
        (tmp_path / f"{block.index[2]}").touch()

    run_blocks("take", TOTAL, BLOCK, let_others_take, Place(2), tmp_path / "done")
    assert len((tmp_path / "taken").read_text().splitlines()) == 2
    assert {path.name for path in tmp_path.glob("?")} == {"0", "1", "2", "3"}
