"""Prediction over Dask workers: same bytes for any block and worker count, nothing done twice, clear refusals."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from pipeline import STORAGE, store, voxels
from toy_models import OFFSETS, TILE, save

from kdseg.config import PredictOptions
from kdseg.config.cluster import LocalOptions
from kdseg.config.tasks import PredictTask
from kdseg.errors import ClaimError, DataError, DeviceError, StageError, VoxelSizeError
from kdseg.geometry import Roi
from kdseg.prediction import stage as predict
from kdseg.results.manifests import read
from kdseg.running.attempt import Patience
from kdseg.running.cluster import workers_of
from kdseg.running.dask_tasks import AHEAD, run_tasks
from kdseg.running.progress import FinishedBlocks
from kdseg.volumes.affinities import affinity_offsets
from kdseg.volumes.inputs import open_input

SHAPE = (40, 64, 33)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("predict")
    store(path / "raw.json", np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8))
    save(path / "model.json")
    return path


def run(folder, name, block=(32, 32, 32), workers=1, model="model.json", **kwargs):
    manifest = folder / name / "affinities.json"
    options = PredictOptions(block=block, tile=TILE)
    predict.run(
        PredictTask(
            raw=folder / "raw.json",
            model=folder / model,
            manifest=manifest,
            options=options,
            storage=STORAGE,
            workers=workers,
            **{"device": "cpu", **kwargs},
        )
    )
    return manifest


@pytest.fixture(scope="module")
def reference(folder):
    return run(folder, "reference", block=(64, 64, 64))


def test_the_store_says_what_it_is(reference):
    volume = open_input(reference).volume
    assert volume.array.shape == (4, *SHAPE)
    assert affinity_offsets(volume) == OFFSETS
    assert volume.voxel_size == (10, 10, 10)
    assert np.ptp(voxels(reference)) > 50
    stats = read(reference).stats
    assert stats["voxels"] == np.prod(SHAPE)
    assert stats["mvox_per_s"] > 0
    assert stats["peak_mb"] > 50


def test_block_and_worker_count_change_nothing(folder, reference):
    assert (voxels(run(folder, "two", workers=2)) == voxels(reference)).all()


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(folder, reference):
    program = (
        "import sys; from pathlib import Path; import test_predict as t; t.run(Path(sys.argv[1]), 'killed', workers=1)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", program, str(folder)], env=environment)
    marks = folder / "killed" / ".affinities" / "32x32x32" / "predict.txt"
    while not (marks.exists() and "\n" in marks.read_text()):
        assert child.poll() is None, "the run ended before it was killed"
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    before = marks.read_text().rpartition("\n")[0]
    marks.write_text(before + "\n1 1")  # a line that the crash cut short
    assert FinishedBlocks(marks, Roi((0, 0, 0), SHAPE), (32, 32, 32)).finished.sum() == len(before.splitlines())
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:  # the workers of the killed run end by themselves
        try:
            manifest = run(folder, "killed")
            break
        except ClaimError:
            time.sleep(0.2)
    assert (voxels(manifest) == voxels(reference)).all()


def test_finished_blocks_are_not_done_again(folder, reference):
    files = [path for _, path in open_input(reference).volume.files(open_input(reference).volume.roi)]
    before = [path.stat().st_mtime_ns for path in files]
    run(folder, "reference", block=(64, 64, 64))
    assert [path.stat().st_mtime_ns for path in files] == before


def test_other_weights_or_tiles_are_noticed(folder, reference):
    options = PredictOptions(block=(64, 64, 64), tile=(32, 32, 32))
    with pytest.raises(ClaimError, match=r"options\.tile was \[16, 16, 16\], is \[32, 32, 32\]"):
        predict.run(
            PredictTask(
                raw=folder / "raw.json",
                model=folder / "model.json",
                manifest=reference,
                options=options,
                storage=STORAGE,
                device="cpu",
            )
        )
    save(folder / "other" / "model.json", voxel_size=(10.0, 10.0, 10.1))
    with pytest.raises(ClaimError, match=r"inputs\.model was"):
        run(folder, "reference", model="other/model.json")


@pytest.mark.slow
def test_averages_are_those_that_students_learn_from(folder):
    part = voxels(folder / "raw.json")[:20, :24, :17]  # eight mirror images of each tile are predicted: few tiles
    raw, model, out = store(folder / "flips" / "raw.json", part), folder / "model.json", folder / "flips"
    found = {}
    for name, average, product in (
        ("plain", "none", "affinities"),
        ("a", "flips", "affinities"),
        ("b", "none", "affinities_flips"),
    ):
        options = PredictOptions(block=(64, 64, 64), tile=TILE, average=average)
        manifest = out / f"{name}.json"
        predict.run(
            PredictTask(
                raw=raw,
                model=model,
                manifest=manifest,
                options=options,
                storage=STORAGE,
                product=product,
                device="cpu",
            )
        )
        found[name] = voxels(manifest)
    assert (found["a"] == found["b"]).all()
    assert (found["a"] != found["plain"]).any()
    options = PredictOptions(block=(64, 64, 64), tile=TILE, average="flips")
    other = PredictTask(
        raw=raw, model=model, manifest=out / "plain.json", options=options, storage=STORAGE, device="cpu"
    )
    with pytest.raises(ClaimError, match="average"):
        predict.run(other)


@pytest.mark.parametrize(("size", "fits"), [(9.4, False), (9.6, True), (10.6, False)])
def test_voxels_may_differ_by_a_twentieth(folder, size, fits):
    model = folder / f"of_{size}" / "model.json"
    save(model, voxel_size=(10.0, size, 10.0))
    with nullcontext() if fits else pytest.raises(VoxelSizeError, match="choose another resolution level or network"):
        run(folder, f"of_{size}_out", model=model)


def test_refusals(folder, monkeypatch):
    save(folder / "coarse" / "model.json", voxel_size=(40.0, 4.0, 4.0))
    with pytest.raises(VoxelSizeError, match=r"10\.0, 10\.0, 10\.0\) nm, the network was trained on \(40\.0"):
        run(folder, "coarse_out", model="coarse/model.json")
    save(folder / "nan" / "model.json", poison=True)
    with pytest.raises((StageError, DataError), match="NaN"):
        run(folder, "nan_out", model="nan/model.json")
    assert not (folder / "nan_out" / "affinities.json").exists()
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="use 'cpu' or 'auto'"):
            run(folder, "cuda_out", device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceError, match="3 GPUs were asked for, but torch sees 2"):
        run(folder, "cuda_out", device="cuda", gpus=3)
    monkeypatch.undo()
    store(folder / "float.json", np.zeros(SHAPE, np.float32))
    options = PredictOptions(block=(32, 32, 32), tile=TILE)
    with pytest.raises(DataError, match="expected uint8"):
        predict.run(
            PredictTask(
                raw=folder / "float.json",
                model=folder / "model.json",
                manifest=folder / "x.json",
                options=options,
                storage=STORAGE,
                device="cpu",
            )
        )


def square(number):
    if number == 13:
        raise DataError("thirteen")
    return number**2


def slowly(number):
    time.sleep(0.3)
    return -number


def test_tasks_stream_through_a_bounded_window(tmp_path):
    taken = []

    def items():
        for number in range(30, 60):
            taken.append(number)
            yield number

    with workers_of(LocalOptions(), 1, 1, tmp_path) as workers:
        results = run_tasks(workers, Patience(), slowly, items())
        assert next(results).error is None
        assert len(taken) <= AHEAD + 1
        results.close()
        assert {one.item: one.result for one in run_tasks(workers, Patience(), square, range(20, 900))} == {
            n: n**2 for n in range(20, 900)
        }
        failed = [one for one in run_tasks(workers, Patience(), square, range(20)) if one.error]
        assert [(one.item, one.result, one.error) for one in failed] == [(13, None, "DataError: thirteen")]
