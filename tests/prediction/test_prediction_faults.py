"""Predictions that meet faults: what is done is kept, what failed is listed, what is masked is not predicted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from command import invoke
from pipeline import STORAGE, store, voxels
from toy_models import save

from kdseg.config import FragmentsOptions, PredictOptions
from kdseg.config.data import RoiOptions
from kdseg.config.tasks import FragmentsTask, PredictTask
from kdseg.errors import ShapeError, StageError
from kdseg.geometry import Block, Roi
from kdseg.prediction import stage as predict
from kdseg.prediction.blocks import prepare
from kdseg.results.claims import claim
from kdseg.results.locks import STALE_S
from kdseg.results.manifests import read
from kdseg.running import status
from kdseg.running.attempt import Clock, attempt, trouble_of
from kdseg.running.runner import ATTEMPTS, MANY
from kdseg.running.telemetry import Telemetry, status_path
from kdseg.segmentation.fragments import stage as fragments

SHAPE = (32, 32, 330)
BLOCK = (32, 32, 32)
TILE = (16, 16, 16)
BLOCKS = 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("faults")
    store(path / "raw.json", np.random.default_rng(5).integers(0, 256, SHAPE, dtype=np.uint8))
    save(path / "model.json")
    return path


def run(folder, manifest, raw="raw.json", model="model.json", block=BLOCK, **how):
    options = PredictOptions(block=block, tile=TILE)
    predict.run(
        PredictTask(
            raw=folder / raw,
            model=folder / model,
            manifest=manifest,
            options=options,
            storage=STORAGE,
            device="cpu",
            **how,
        )
    )
    return manifest


@pytest.fixture(scope="module")
def reference(folder):
    return run(folder, folder / "reference" / "affinities.json")


def telemetry(manifest):
    return json.loads(status_path(manifest).read_text())


def test_the_status_adds_up(reference):
    facts = telemetry(reference)
    assert facts["state"] == "finished"
    assert facts["blocks"] == {
        "total": BLOCKS, "before": 0, "done": BLOCKS, "skipped": 0, "reused": 0, "retries": 0, "failed": 0
    }  # fmt: skip
    assert facts["voxels"] == {"done": np.prod(SHAPE), "left": 0}
    assert sum(worker["voxels"] for worker in facts["workers"].values()) == np.prod(SHAPE)
    for worker in facts["workers"].values():
        assert 0 < worker["seconds"]["compute"] < facts["seconds"]
        assert worker["seconds"]["read"] > 0 < worker["seconds"]["write"]
    assert facts["memory_mb"]["peak"] > 50
    (worker,) = facts["workers"].values()
    busy = sum(worker["seconds"][what] for what in ("read", "compute", "write"))
    assert read(reference).stats["mvox_per_s"] == pytest.approx(np.prod(SHAPE) / busy / 1e6, abs=1e-3)


@pytest.mark.slow
def test_a_damaged_chunk_costs_its_neighbours_only(folder, reference, tmp_path):
    (tmp_path / "raw").mkdir()
    store(tmp_path / "raw" / "raw.json", voxels(folder / "raw.json"))
    manifest = tmp_path / "affinities.json"
    shard = tmp_path / "raw" / "raw.zarr" / "0" / "c" / "0" / "0" / "10"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        StageError, match=rf"of {BLOCKS} blocks failed, listed in .*status.json; the first: block .*read"
    ):
        run(folder, manifest, raw=tmp_path / "raw" / "raw.json")
    assert not manifest.exists()
    facts = telemetry(manifest)
    failed = {tuple(one["block"]) for one in facts["failures"]}
    assert (0, 0, 10) in failed
    assert len(failed) < BLOCKS / 2
    assert facts["blocks"]["done"] == BLOCKS - len(failed)
    assert facts["blocks"]["retries"] == (ATTEMPTS - 1) * len(failed)
    (stopped,) = [one for one in status.run(tmp_path) if one.stage == "predict"]
    assert stopped.state == "stopped"
    told = invoke("status", str(tmp_path))
    assert told.exit_code == 1
    assert f"{BLOCKS - len(failed)} of {BLOCKS} blocks" in told.output
    assert "cannot read" in told.output

    shard.write_bytes(whole)
    run(folder, manifest, raw=tmp_path / "raw" / "raw.json")
    assert telemetry(manifest)["blocks"]["done"] == len(failed)
    assert (voxels(manifest) == voxels(reference)).all()
    assert invoke("status", str(tmp_path)).exit_code == 0


def test_weights_that_are_damaged_end_a_run_early(folder, tmp_path):
    save(tmp_path / "nan.json", poison=True)
    manifest = tmp_path / "affinities.json"
    with pytest.raises(StageError, match=f"{MANY} blocks failed and 0 did not.*NaN"):
        run(folder, manifest, model=tmp_path / "nan.json")
    assert telemetry(manifest)["state"] == "failed"
    assert telemetry(manifest)["blocks"]["retries"] == 0


def test_a_full_disk_ends_a_run_at_once(folder, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        with pytest.raises(StageError, match=r"No space left on device.*make room and rerun"):
            run(folder, disk / "affinities.json")
        assert not (disk / "affinities.json").exists()
        subprocess.run(["mount", "-o", "remount,size=30m", str(disk)], check=True)
        assert (voxels(run(folder, disk / "affinities.json"))[:, 0, 0, 0] > 0).any()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_errors_are_sorted_by_their_causes():
    def chained(cause):
        try:
            try:
                raise cause
            except Exception as inner:
                raise OSError("wrapped") from inner
        except OSError as error:
            return error

    assert trouble_of(chained(OSError(28, "No space left on device"))) == "disk_full"
    assert trouble_of(chained(ValueError("damaged"))) == "transient"
    assert trouble_of(MemoryError()) == "transient"
    assert trouble_of(ValueError("NaN")) == "permanent"


@pytest.mark.slow
def test_a_worker_that_dies_under_every_attempt_is_given_up(folder, tmp_path):
    """The block's memory runs out, say: its worker is killed each time, and the other blocks go on."""
    manifest = tmp_path / "affinities.json"
    child = subprocess.run(**called("dying", folder, manifest), capture_output=True, text=True, check=False)
    assert "1 of 11 blocks failed" in child.stderr, child.stderr[-2000:]
    (failure,) = telemetry(manifest)["failures"]
    assert failure["block"] == [0, 0, 4]
    assert "its worker ended" in failure["error"]
    assert failure["attempts"] == ATTEMPTS + 1


@pytest.mark.slow
def test_a_block_that_is_run_alone_has_all_its_attempts(folder, reference, tmp_path):
    manifest = tmp_path / "affinities.json"
    subprocess.run(**called("recovering", folder, manifest), check=True)
    assert len(list((tmp_path / "met").iterdir())) == ATTEMPTS + 2
    assert (voxels(manifest) == voxels(reference)).all()


def test_a_gpu_that_cannot_be_used_anymore_ends_its_worker():
    program = (
        "import torch; from kdseg.geometry import Block, Roi; from kdseg.running.attempt import attempt\n"
        "def work(block, clock): raise torch.AcceleratorError('an illegal memory access was encountered')\n"
        "attempt(work, Block((0, 0, 0), Roi((0, 0, 0), (1, 1, 1))))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "illegal memory access was encountered: the worker ends" in ended.stderr


def test_the_status_is_written_while_nothing_finishes(tmp_path, monkeypatch):
    monkeypatch.setattr("kdseg.running.telemetry.EVERY_S", 0.02)
    path = tmp_path / "status.json"
    with Telemetry(path, "predict", blocks=1, before=0, voxels=1, announced_mb=0.0):
        first = json.loads(path.read_text())
        until = time.monotonic() + 10
        while json.loads(path.read_text())["seconds"] <= first["seconds"]:
            assert time.monotonic() < until
        assert first["state"] == "running"
    assert json.loads(path.read_text())["state"] == "finished"
    with pytest.raises(KeyboardInterrupt), Telemetry(path, "predict", blocks=1, before=0, voxels=1, announced_mb=0.0):
        raise KeyboardInterrupt
    assert json.loads(path.read_text())["state"] == "failed"


def called(function, folder, manifest):
    """Return how to call a function of this module in a process of its own."""
    program = (
        "import sys; from pathlib import Path; import test_prediction_faults as t; "
        f"t.{function}(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    return {
        "args": [sys.executable, "-c", program, str(folder), str(manifest)],
        "env": {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    }


def begun(folder, manifest):
    """Start a prediction as a program of its own, and return when a block is done."""
    child = subprocess.Popen(**called("run", folder, manifest), start_new_session=True)
    marks = manifest.parent / f".{manifest.stem}" / "32x32x32" / "predict.txt"
    while not (marks.exists() and "\n" in marks.read_text()):
        assert child.poll() is None, "the run ended before it was killed"
        time.sleep(0.002)
    return child


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(folder, reference, tmp_path):
    manifest = tmp_path / "affinities.json"
    child = begun(folder, manifest)
    workers = [one for one in psutil.Process(child.pid).children(recursive=True) if "spawn_main" in str(one.cmdline())]
    workers[-1].kill()
    assert child.wait(120) == 0
    assert (voxels(manifest) == voxels(reference)).all()


@pytest.mark.slow
def test_a_killed_group_goes_on_with_the_same_bytes(folder, reference, tmp_path):
    manifest = tmp_path / "affinities.json"
    child = begun(folder, manifest)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert not manifest.exists()
    before = len((tmp_path / ".affinities" / "32x32x32" / "predict.txt").read_text().splitlines())
    run(folder, manifest)
    assert telemetry(manifest)["blocks"]["before"] == before
    assert telemetry(manifest)["blocks"]["done"] == BLOCKS - before
    assert (voxels(manifest) == voxels(reference)).all()


PREDICT_BLOCK = predict.predict_block


def die_at_four(work, block, clock):
    if block.index == (0, 0, 4):
        time.sleep(0.2)
        os.abort()
    return PREDICT_BLOCK(work, block, clock)


def die_until_alone(work, block, clock):
    if block.index == (0, 0, 6):
        met = work.out.parent / "met"
        met.mkdir(exist_ok=True)
        times = len(list(met.iterdir()))
        (met / str(times)).touch()
        if times < ATTEMPTS:
            os.abort()
        if times == ATTEMPTS:
            raise OSError("the file system does not answer")
    return PREDICT_BLOCK(work, block, clock)


def dying(folder, manifest):
    """Run a prediction whose fifth block ends its worker; called in a process of its own."""
    predict.predict_block = die_at_four
    run(folder, manifest)


def recovering(folder, manifest):
    """Run a prediction one of whose blocks ends its worker until it is alone, and then meets a transient error."""
    predict.predict_block = die_until_alone
    run(folder, manifest)


# ---- masks and regions


@pytest.fixture(scope="module")
def mask():
    mask = np.zeros(SHAPE, np.uint8)
    mask[5:20, 3:30, 40:120] = 1
    mask[30, 31, 329] = 3
    return mask


def whole_tiles(mask):
    """Brute force: every voxel whose tile of the grid holds any of the mask."""
    out = np.zeros_like(mask, bool)
    for z in range(0, mask.shape[0], 16):
        for y in range(0, mask.shape[1], 16):
            for x in range(0, mask.shape[2], 16):
                tile = np.s_[z : z + 16, y : y + 16, x : x + 16]
                out[tile] = mask[tile].any()
    return out


@pytest.mark.parametrize("block", [BLOCK, (32, 32, 96)])
def test_tiles_without_tissue_are_not_predicted(folder, reference, mask, tmp_path, block):
    store(tmp_path / "mask.json", mask)
    manifest = run(folder, tmp_path / "affinities.json", mask=tmp_path / "mask.json", block=block)
    assert (voxels(manifest) == np.where(whole_tiles(mask), voxels(reference), 0)).all()
    facts = telemetry(manifest)["blocks"]
    assert facts["skipped"] == sum(not mask[..., x : x + block[2]].any() for x in range(0, SHAPE[2], block[2]))
    assert read(manifest).inputs["mask"] == read(tmp_path / "mask.json").fingerprint


def test_a_region_has_the_bytes_of_the_whole(folder, reference, tmp_path):
    roi = Roi((3, 0, 50), (20, 31, 100))
    part = RoiOptions(offset=roi.offset, shape=roi.shape)
    manifest = run(folder, tmp_path / "affinities.json", roi=part)
    inside = np.zeros(SHAPE, bool)
    inside[roi.slices()] = True
    assert (voxels(manifest) == np.where(inside, voxels(reference), 0)).all()
    with pytest.raises(ShapeError, match="does not lie in"):
        run(folder, tmp_path / "beyond.json", roi=RoiOptions(offset=(3, 0, 50), shape=(20, 33, 100)))


@pytest.mark.slow
def test_fragments_do_not_depend_on_what_is_not_predicted(folder, reference, mask, tmp_path):
    store(tmp_path / "mask.json", mask)
    sparse = run(folder, tmp_path / "affinities.json", mask=tmp_path / "mask.json")
    options = FragmentsOptions(block=BLOCK, halo=(8, 8, 8))
    for name, affinities in (("dense", reference), ("sparse", sparse)):
        fragments.run(
            FragmentsTask(
                affinities=affinities,
                manifest=tmp_path / name / "f.json",
                options=options,
                storage=STORAGE,
                mask=tmp_path / "mask.json",
            )
        )
    fused = tmp_path / "fused" / "f.json"
    predicting = PredictOptions(block=BLOCK, tile=TILE)
    fragments.run(
        FragmentsTask(
            raw=folder / "raw.json",
            model=folder / "model.json",
            manifest=fused,
            predict=predicting,
            options=options,
            storage=STORAGE,
            mask=tmp_path / "mask.json",
            device="cpu",
        )
    )
    dense = voxels(tmp_path / "dense" / "f.json")
    assert dense.any()
    assert (dense == voxels(tmp_path / "sparse" / "f.json")).all()
    assert (dense == voxels(fused)).all()
    assert telemetry(fused)["blocks"]["skipped"] > 3


def test_status_of_nothing(tmp_path):
    told = invoke("status", str(tmp_path))
    assert told.exit_code == 1
    assert "no stage of kdseg has begun" in told.output


def test_status_tells_the_living_from_the_dead(tmp_path):
    manifest = tmp_path / "test" / "x.json"
    with claim(manifest, "predict", {}, {}) as held:
        assert [(one.name, one.state) for one in status.run(tmp_path)] == [("test/x", "running")]
        lock = (held.private / "lock").read_text()
    assert [one.state for one in status.run(tmp_path)] == ["finished"]
    manifest.unlink()  # as Snakemake does before a stage that may be refused
    assert [one.state for one in status.run(tmp_path)] == ["kept"]
    (held.private / "manifest.json").unlink()  # as the stage does before it changes its result
    assert [one.state for one in status.run(tmp_path)] == ["stopped"]
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    (held.private / "lock").write_text(json.dumps({**json.loads(lock), "pid": int(dead.stdout)}))
    assert [one.state for one in status.run(tmp_path)] == ["stopped"]
    (held.private / "lock").write_text(lock)
    assert [one.state for one in status.run(tmp_path)] == ["running"]
    long_ago = time.time() - 2 * STALE_S  # another process has the number now
    os.utime(held.private / "lock", (long_ago, long_ago))
    assert [one.state for one in status.run(tmp_path)] == ["stopped"]


def test_the_memory_of_a_gpu_is_that_of_the_one_in_use(monkeypatch):
    """Each process of a machine has the GPU of its number, and the present device of a thread is the first."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=0: 3 * 2**20 * device)
    block = Block((0, 0, 0), Roi((0, 0, 0), (1, 1, 1)))
    assert attempt(lambda *_: True, block).gpu_mb == 3


def test_one_clock_computes_at_a_time():
    entered = threading.Event()

    def compute():
        with Clock().computing():
            entered.set()

    other = threading.Thread(target=compute)
    with Clock().computing():
        other.start()
        assert not entered.wait(0.2)  # long enough to enter, if it could
    other.join()
    assert entered.is_set()


def test_a_clock_tells_what_the_seconds_went_for(monkeypatch):
    now, asked = [100.0], threading.Semaphore(0)

    def monotonic():
        asked.release()
        return now[0]

    monkeypatch.setattr("kdseg.running.attempt.monotonic", monotonic)
    clock = Clock()

    def compute():
        with clock.computing():
            now[0] += 7

    other = threading.Thread(target=compute)
    with Clock().computing():
        while asked.acquire(blocking=False):
            pass
        other.start()
        assert asked.acquire(timeout=60)  # it waits from now on
        now[0] += 5
    other.join()
    for what, seconds in (("read", 2), ("write", 3), ("read", 4)):
        with clock(what):
            now[0] += seconds
    with suppress(OSError), clock("write"):
        now[0] += 1
        raise OSError("what failed took its time, too")
    assert clock == Clock(read=6, wait=5, compute=7, write=4)


def test_a_block_is_done_when_the_disk_has_it(folder, reference, tmp_path, monkeypatch):
    """The machine of a worker may fail, and that of the stage, which lists what is done, live on."""
    out = shutil.copytree(read(reference).result, tmp_path / "affinities.zarr")
    block = Block((0, 0, 1), Roi((0, 0, 32), BLOCK))
    (shard,) = out.glob("0/c/*/0/0/1")
    whole = shard.read_bytes()
    shard.unlink()
    inputs = {"raw": folder / "raw.json", "model": folder / "model.json", "manifest": reference}
    ready = prepare(PredictTask(**inputs, options=PredictOptions(block=BLOCK, tile=TILE), device="cpu"))
    kept, fsync = [], os.fsync

    def noted(handle):
        kept.append(Path(f"/proc/self/fd/{handle}").readlink())
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    work = predict.Work(read(folder / "raw.json").result, None, None, ready.weights, out)
    assert predict.predict_block(work, block, Clock())
    assert shard.read_bytes() == whole
    assert kept == [shard, shard.parent]
