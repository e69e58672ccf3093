"""Claims: nothing is deleted unasked, a changed option is noticed, two writers are refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version

import pytest

from kdseg.errors import ClaimError, DataError, MissingError, UnreadableError
from kdseg.results.claims import claim, clear
from kdseg.results.locks import holder
from kdseg.results.manifests import file_fingerprint, fingerprint, read, source_fingerprint, write_json
from kdseg.results.sealed import read_sealed, write_sealed


def make(manifest, options, **kwargs):
    with claim(manifest, "predict", options, {"raw": "abc"}, **kwargs) as held:
        held.store.mkdir(exist_ok=True)
        (held.store / "data").write_text(str(options))
        held.stats["voxels"] = 5
    return read(manifest)


def test_a_finished_stage_leaves_a_manifest(tmp_path):
    values = make(tmp_path / "a.json", {"tile": 3})
    assert values.stats["voxels"] == 5
    assert values.stats["peak_mb"] > 1
    assert values.options == {"tile": 3}
    assert values.inputs == {"raw": "abc"}
    assert read(tmp_path / "a.json").result == tmp_path / "a.zarr"


def test_each_stage_of_a_process_counts_its_own_cpu_time(tmp_path):
    make(tmp_path / "a.json", {})
    begun = time.process_time()
    while time.process_time() < begun + 0.5:
        pass
    assert make(tmp_path / "b.json", {}).stats["cpu_s"] >= 0.49
    assert make(tmp_path / "c.json", {}).stats["cpu_s"] < 0.49


def test_two_runs_leave_different_manifests(tmp_path):
    first, second = (make(tmp_path / "a.json", {"tile": 3}) for _ in range(2))
    assert first.run != second.run


def test_a_stage_that_fails_leaves_no_manifest_and_keeps_its_blocks(tmp_path):
    def fail():
        with claim(tmp_path / "a.json", "predict", {}, {}) as held:
            held.store.mkdir()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not (tmp_path / "a.json").exists()
    assert (tmp_path / "a.zarr").exists()
    with claim(tmp_path / "a.json", "predict", {}, {}) as held:
        assert held.store.exists()


def test_changed_options_are_refused_and_named(tmp_path):
    make(tmp_path / "a.json", {"tile": 3, "net": {"width": 4}})
    with pytest.raises(ClaimError, match=r"options\.net\.width was 4, is 8.*kdseg clear .*a\.json"):
        make(tmp_path / "a.json", {"tile": 3, "net": {"width": 8}})
    assert (tmp_path / "a.zarr" / "data").read_text() == "{'tile': 3, 'net': {'width': 4}}"


def test_another_version_goes_on_with_a_result(tmp_path, monkeypatch):
    before = make(tmp_path / "a.json", {})
    monkeypatch.setattr("kdseg.results.claims.__version__", "9.9")
    after = make(tmp_path / "a.json", {})
    assert (after.version, after.fingerprint) == ("9.9", before.fingerprint)
    assert before.version == version("kdseg")


def test_overwrite_starts_over(tmp_path):
    make(tmp_path / "a.json", {"tile": 3})
    (tmp_path / ".a" / "8x8x8").mkdir()
    (tmp_path / "a.zarr" / "old").touch()
    make(tmp_path / "a.json", {"tile": 4}, overwrite=True)
    assert not (tmp_path / "a.zarr" / "old").exists()
    assert not (tmp_path / ".a" / "8x8x8").exists()
    assert read(tmp_path / "a.json").options == {"tile": 4}


def test_an_unclaimed_store_is_left_alone(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(ClaimError, match="no claim says"):
        make(tmp_path / "a.json", {}, overwrite=True)
    assert (tmp_path / "a.zarr").exists()


HOLD = """
import sys, time, pathlib
from kdseg.results.claims import claim
with claim(pathlib.Path(sys.argv[1]), "predict", {}, {}):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_runs_on_one_store_are_refused_and_a_killed_one_lets_go(tmp_path):
    manifest = tmp_path / "a.json"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(manifest)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ClaimError, match=f'being written by another run.*"pid": {other.pid}'):
            make(manifest, {})
        with pytest.raises(ClaimError, match="another run"):
            clear(manifest)
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        other.stdout.close()
    with claim(manifest, "predict", {}, {}):
        pass


def test_a_lock_of_another_host_holds_while_it_beats(tmp_path):
    make(tmp_path / "a.json", {})
    lock = tmp_path / ".a" / "lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    beat = threading.Timer(0.5, os.utime, [lock])
    beat.start()
    with pytest.raises(ClaimError, match="elsewhere"):
        make(tmp_path / "a.json", {})
    beat.join()


def test_a_lock_of_another_host_that_beats_no_more_is_waited_for_and_taken(tmp_path, monkeypatch):
    make(tmp_path / "a.json", {})
    (tmp_path / ".a" / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    monkeypatch.setattr("kdseg.results.locks.STALE_S", 0.8)
    started = time.monotonic()
    make(tmp_path / "a.json", {})
    assert time.monotonic() - started > 0.5


@pytest.mark.parametrize(("text", "shown"), [('{"host": "elsewhere"}', "elsewhere"), ("\0\n\n\0", "unknown, it says")])
def test_who_is_waited_for_is_said_at_once_and_in_a_line(tmp_path, monkeypatch, caplog, text, shown):
    make(tmp_path / "a.json", {})
    lock = tmp_path / ".a" / "lock"
    lock.write_text(text)
    said = []
    beat = threading.Timer(0.5, lambda: (said.extend(caplog.messages), os.utime(lock)))
    beat.start()
    with pytest.raises(ClaimError, match=shown) as refused:
        make(tmp_path / "a.json", {})
    beat.join()
    assert "\n" not in str(refused.value)
    (line,) = said
    assert f"{lock} is held by" in line
    assert shown in line
    assert "\n" not in line
    until = datetime.fromisoformat(re.search(r"until (\S+ \S+),", line)[1])
    assert 100 < (until - datetime.now().astimezone()).total_seconds() <= 120


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
def test_the_age_of_a_lock_is_by_the_clock_of_its_disk(tmp_path, monkeypatch, ahead):
    make(tmp_path / "a.json", {})
    lock = tmp_path / ".a" / "lock"
    monkeypatch.setattr("kdseg.results.locks.STALE_S", 1.5)
    right = time.time
    monkeypatch.setattr("time.time", lambda: right() + ahead)
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    assert holder(lock.parent)
    started = time.monotonic()
    make(tmp_path / "a.json", {})
    assert 0.5 < time.monotonic() - started < 30
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    os.utime(lock, (right() - 2, right() - 2))
    assert holder(lock.parent) is None


def test_a_lock_of_the_future_is_waited_for_no_longer_than_others(tmp_path, monkeypatch):
    make(tmp_path / "a.json", {})
    lock = tmp_path / ".a" / "lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    os.utime(lock, (time.time() + 3600, time.time() + 3600))
    monkeypatch.setattr("kdseg.results.locks.STALE_S", 0.8)
    started = time.monotonic()
    make(tmp_path / "a.json", {})
    assert 0.5 < time.monotonic() - started < 30


def test_a_store_that_is_gone_takes_its_progress_with_it(tmp_path):
    make(tmp_path / "a.json", {}, volume=True)
    for child in (tmp_path / "a.zarr").iterdir():
        child.unlink()
    (tmp_path / "a.zarr").rmdir()
    (tmp_path / ".a" / "8x8x8").mkdir()
    with claim(tmp_path / "a.json", "predict", {}, {"raw": "abc"}, volume=True) as held:
        assert not held.resumed
        assert not (tmp_path / ".a" / "8x8x8").exists()
    with claim(tmp_path / "b.json", "edges", {}, {}) as held:
        held.progress((8, 8, 8)).joinpath("part").touch()
    with claim(tmp_path / "b.json", "edges", {}, {}) as held:  # a table is written last: parts are kept
        assert held.resumed
        assert (held.progress((8, 8, 8)) / "part").exists()


def with_tables(manifest, options, **kwargs):
    with claim(manifest, "edges", options, {}, tables=True, **kwargs) as held:
        held.tables.mkdir(exist_ok=True)
        (held.tables / str(options["block"])).touch()
    return held


def test_a_folder_of_tables_is_removed_with_what_it_was_made_with(tmp_path):
    tables = with_tables(tmp_path / "a.json", {"block": 8}).tables
    assert read(tmp_path / "a.json").result == tables
    with_tables(tmp_path / "a.json", {"block": 9}, overwrite=True)
    assert [path.name for path in tables.iterdir()] == ["9"]
    assert tables in clear(tmp_path / "a.json")
    assert not tables.exists()


def test_a_folder_of_tables_that_is_gone_takes_its_progress_with_it(tmp_path):
    shutil.rmtree(with_tables(tmp_path / "a.json", {"block": 8}).tables)
    (tmp_path / ".a" / "8x8x8").mkdir()
    assert not with_tables(tmp_path / "a.json", {"block": 8}).resumed
    assert not (tmp_path / ".a" / "8x8x8").exists()


HALF_A_TABLE = """
import os, pathlib, signal, sys
from kdseg.results.claims import claim
from kdseg.results.files import replacing
with claim(pathlib.Path(sys.argv[1]), "edges", {}, {}, tables=True) as held:
    with replacing(held.tables / "0_0_0.npz") as file:
        file.write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_gone_when_the_stage_is_done(tmp_path):
    manifest = tmp_path / "edges.json"
    killed = subprocess.run([sys.executable, "-c", HALF_A_TABLE, str(manifest)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "edges.tables").iterdir()
    assert left.name.startswith(".0_0_0.npz.")
    with claim(manifest, "edges", {}, {}, tables=True) as held:
        (held.tables / "0_0_0.npz").write_bytes(b"whole")
        (held.tables / "mine.part").write_bytes(b"of a user")
    assert sorted(path.name for path in held.tables.iterdir()) == ["0_0_0.npz", "mine.part"]


def test_a_clearing_that_was_killed_is_finished_first(tmp_path):
    make(tmp_path / "a.json", {})
    (tmp_path / ".a" / "8x8x8").mkdir()
    claimed = tmp_path / ".a" / "claim.json"
    write_sealed(claimed, {**read_sealed(claimed), "fingerprint": "clearing"})
    (tmp_path / "a.zarr" / "data").unlink()  # it got this far
    with claim(tmp_path / "a.json", "predict", {}, {"raw": "abc"}) as held:
        assert not held.store.exists()
        assert not (tmp_path / ".a" / "8x8x8").exists()


def test_clear_removes_what_the_stage_made_and_nothing_else(tmp_path):
    make(tmp_path / "a.json", {})
    make(tmp_path / "ab.json", {})
    (tmp_path / "a.training").mkdir()
    (tmp_path / "a.backup.zarr").touch()
    removed = clear(tmp_path / "a.json")
    assert {path.name for path in removed} == {"a.json", "a.zarr", "a.training"}
    assert {path.name for path in tmp_path.iterdir()} == {"ab.json", "ab.zarr", ".ab", "a.backup.zarr"}
    (tmp_path / "a.json").write_text("{}")  # a file of the user's
    with pytest.raises(MissingError, match="nothing to clear"):
        clear(tmp_path / "a.json")
    assert (tmp_path / "a.json").exists()


@contextmanager
def somebody(folder):
    """Be a user who owns ``folder`` and all below, and is not root, to whom nothing is forbidden."""
    if os.geteuid():
        yield
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 4321, 4321)
    passable = [one for one in folder.parents if not one.stat().st_mode & 1]
    for one in passable:
        one.chmod(one.stat().st_mode | 1)
    os.setegid(4321)
    os.seteuid(4321)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        for one in passable:
            one.chmod(one.stat().st_mode & ~1)


@pytest.mark.parametrize("closed", [".", "a.zarr/0", ".a/8x8x8", "a.training"])
@pytest.mark.parametrize("mode", [0o555, 0o000])
@pytest.mark.parametrize("way", ["clear", "overwrite"])
def test_what_may_not_be_removed_as_a_whole_is_left_alone(tmp_path, closed, way, mode):
    if closed == "." and not mode:
        pytest.skip("nobody can name what is in there")
    make(tmp_path / "a.json", {})
    for name in (".a/8x8x8", "a.zarr/0", "a.training"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    folder = tmp_path / closed
    with somebody(tmp_path):
        folder.chmod(mode)
        with pytest.raises(UnreadableError, match=rf"nothing was removed.*may not remove what is in {folder}.*owner"):
            clear(tmp_path / "a.json") if way == "clear" else make(tmp_path / "a.json", {"tile": 3}, overwrite=True)
        folder.chmod(0o755)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
        clear(tmp_path / "a.json")
        assert list(tmp_path.iterdir()) == []


def test_what_others_own_in_a_folder_for_all_is_left_alone(tmp_path):
    if os.geteuid():
        pytest.skip("needs root, to make files of others")
    make(tmp_path / "a.json", {})
    with somebody(tmp_path):
        os.seteuid(0)
        os.chown(tmp_path, 0, 0)
        os.chown(tmp_path / "a.zarr", 0, 0)
        tmp_path.chmod(0o1777)
        os.seteuid(4321)
        with pytest.raises(UnreadableError, match=r"nothing was removed of .*a\.zarr"):
            clear(tmp_path / "a.json")
        assert read(tmp_path / "a.json").result.exists()


def test_bad_manifests(tmp_path):
    with pytest.raises(MissingError, match="run the stage"):
        read(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"fingerpr')
    with pytest.raises(UnreadableError, match="not a manifest"):
        read(tmp_path / "a.json")
    write_sealed(tmp_path / "a.json", {"fingerprint": "0", "options": {}, "inputs": {}, "stats": []})
    with pytest.raises(UnreadableError, match=r"a\.json is not a manifest: stage: .*rerun its stage"):
        read(tmp_path / "a.json")
    make(tmp_path / "b.json", {})
    (tmp_path / "b.zarr" / "data").unlink()
    (tmp_path / "b.zarr").rmdir()
    with pytest.raises(MissingError, match="is gone"):
        read(tmp_path / "b.json").result.exists()


def test_what_a_manifest_does_not_say_is_told_in_a_line(tmp_path):
    made = make(tmp_path / "a.json", {"block": [2, 3, 4]})
    assert made.block == (2, 3, 4)
    assert made.stat("voxels") == 5
    with pytest.raises(DataError, match=r"a\.json is a result of `kdseg predict`, whose stats have no 'best'"):
        made.stat("best")
    with pytest.raises(DataError, match=r"whose options have no 'block'"):
        make(tmp_path / "b.json", {}).block.count(1)


def test_a_manifest_is_frozen(tmp_path):
    with pytest.raises(ValueError, match="frozen"):
        make(tmp_path / "a.json", {}).stage = "edges"


def test_write_json_is_whole_or_absent(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    with pytest.raises(UnreadableError, match="cannot write"):
        write_json(tmp_path / "x.json" / "y.json", {})


def test_a_changed_source_is_noticed_in_a_folder_too(tmp_path):
    folder = tmp_path / "sections"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.tif").write_text("a")
    before = source_fingerprint(folder)
    assert source_fingerprint(folder) == before
    (folder / "deep" / "a.tif").write_text("ab")
    assert source_fingerprint(folder) != before
    with pytest.raises(MissingError):
        source_fingerprint(tmp_path / "none")


def test_fingerprints(tmp_path):
    base = fingerprint("predict", {"a": 1, "b": 2}, {"raw": "x"})
    assert base == fingerprint("predict", {"b": 2, "a": 1}, {"raw": "x"})
    others = [("edges", {"a": 1, "b": 2}, {"raw": "x"}), ("predict", {"a": 1, "b": 3}, {"raw": "x"})]
    others.append(("predict", {"a": 1, "b": 2}, {"raw": "y"}))
    assert base not in {fingerprint(*other) for other in others}
    (tmp_path / "f").write_bytes(b"")
    assert file_fingerprint(tmp_path / "f").startswith("e3b0c44298fc1c14")
    with pytest.raises(MissingError):
        file_fingerprint(tmp_path / "g")


def test_a_source_changes_with_what_its_links_lead_to(tmp_path):
    far, near = tmp_path / "far", tmp_path / "near.zarr"
    (far / "c").mkdir(parents=True)
    near.mkdir()
    (near / "c").symlink_to(far / "c")
    (near / "zarr.json").symlink_to(far / "zarr.json")
    found = [source_fingerprint(near)]
    for file in (far / "zarr.json", far / "c" / "0", far / "c" / "1"):
        file.write_text("a")
        found.append(source_fingerprint(near))
    folder = (far / "c").stat().st_mtime_ns
    for text, when in (("b", 10**18), ("bb", 10**18), ("bb", 10**18 + 1)):  # another time, another size
        (far / "c" / "0").write_text(text)
        os.utime(far / "c" / "0", ns=(when, when))
        found.append(source_fingerprint(near))
    assert (far / "c").stat().st_mtime_ns == folder
    assert len(set(found)) == len(found)
    assert source_fingerprint(near) == found[-1]
