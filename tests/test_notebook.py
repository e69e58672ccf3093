"""Functions for notebooks give the voxels and scores of the stages, and read what they are asked for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from command import invoke
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import basic_indices
from numpy.typing import NDArray
from pipeline import NEAREST, STORAGE, perfect_affinities, store, voxels
from toy_models import save
from toy_volumes import write_hdf5, write_zarr

import kdseg
from kdseg.config import FragmentsOptions
from kdseg.config.data import PhantomOptions
from kdseg.config.segmentation import PredictOptions
from kdseg.config.tasks import PredictTask
from kdseg.errors import DataError, ShapeError, VoxelSizeError
from kdseg.geometry import Roi
from kdseg.prediction import stage as predict_stage
from kdseg.volumes.phantom import phantom_block

ROOT = Path(__file__).resolve().parents[1]

SIZE = (10.0, 10.0, 10.0)
TILE = PredictOptions(block=(32, 32, 32), tile=(16, 16, 16))
RAW = np.random.default_rng(0).integers(0, 256, (11, 20, 18), np.uint8)
LABELS = np.random.default_rng(1).integers(1, 5, (5, 8, 8)).repeat(4, 0).repeat(4, 1).repeat(4, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("notebook")
    store(folder / "raw.json", RAW)
    save(folder / "model.json")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("average", ["none", "flips"])
def test_predictions_are_those_of_the_stage(folder: Path, tmp_path: Path, average: Any) -> None:
    how = TILE.model_copy(update={"average": average})
    places = {"raw": folder / "raw.json", "model": folder / "model.json", "manifest": tmp_path / "affinities.json"}
    predict_stage.run(PredictTask(**places, options=how, storage=STORAGE, device="cpu"))
    expected = voxels(tmp_path / "affinities.json")
    model = kdseg.load_model(folder / "model.json")
    for raw in (kdseg.open(folder / "raw.json"), np.asfortranarray(RAW)):
        found = kdseg.predict(raw, model, options=how, device="cpu")
        assert found.dtype == np.uint8
        assert (found == expected).all()
    assert (kdseg.predict(RAW, folder / "model.json", options=how, device="cpu") == expected).all()


def test_neurons_and_scores_are_those_of_the_commands(tmp_path: Path) -> None:
    affinities = perfect_affinities(LABELS)
    noise = np.random.default_rng(2).integers(0, 120, affinities.shape)
    affinities = (np.where(affinities > 0, 255 - noise, noise)).astype(np.uint8)
    options = {"watershed": {"method": "watershed", "seed_distance": 2}, "dust": 3}
    at = {name: str(tmp_path / f"{name}.json") for name in ("affinities", "fragments", "edges", "agglomeration")}
    store(Path(at["affinities"]), affinities, offsets=NEAREST)

    def run(command: str, made: str, given: list[str], options: dict[str, Any]) -> None:
        done = invoke(command, *given, "--manifest", str(tmp_path / f"{made}.json"), "--options", json.dumps(options))
        assert done.exit_code == 0, done.output

    run("fragments", "fragments", ["--affinities", at["affinities"]], options)
    both = ["--affinities", at["affinities"], "--fragments", at["fragments"]]
    run("edges", "edges", both, {})
    run("agglomerate", "agglomeration", [*both, "--edges", at["edges"]], {"thresholds": [0.2, 0.45, 0.8]})
    rest = ["--fragments", at["fragments"], "--edges", at["edges"], "--agglomeration", at["agglomeration"]]
    run("relabel", "segmentation", rest, {"threshold": 0.45})
    expected = voxels(tmp_path / "segmentation.json")
    for workers in (1, 2):
        found = kdseg.segment(affinities, NEAREST, voxel_size=SIZE, threshold=0.45, fragments=options, workers=workers)
        assert (found == expected).all()
    assert len(np.unique(expected)) > 20
    written = FragmentsOptions.model_validate(options)
    assert (kdseg.segment(affinities, NEAREST, voxel_size=SIZE, threshold=0.45, fragments=written) == expected).all()
    truth = write_zarr(tmp_path / "labels.zarr", 3, LABELS)
    wrote = write_zarr(tmp_path / "segments.zarr", 3, expected)
    asked = invoke("evaluate", str(wrote), str(truth), "--dust", "5100", "--json", str(tmp_path / "scores.json"))
    assert asked.exit_code == 0, asked.output
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert kdseg.evaluate(expected, LABELS, dust=5100) == scores
    assert kdseg.evaluate(kdseg.open(wrote), kdseg.open(truth), dust=5100) == scores
    assert kdseg.evaluate(expected, LABELS) != scores


def test_opened_volumes_lie_where_they_say_and_have_the_size_that_they_say(tmp_path: Path) -> None:
    labels = LABELS.astype(np.uint64)
    here = write_hdf5(tmp_path / "a.h5", labels, "a", resolution=(8, 8, 8), offset=(0, 0, 0))
    there = write_hdf5(tmp_path / "b.h5", labels[4:], "a", resolution=(8, 8, 8), offset=(32, 0, 0))
    segmentation, truth = kdseg.open(here), kdseg.open(there)
    assert kdseg.evaluate(segmentation, truth)["voi"] == 0
    with pytest.raises(ShapeError, match="expected one shape"):
        kdseg.evaluate(np.asarray(segmentation), truth)
    near, far = (kdseg.evaluate(segmentation, labels, boundaries=nm)["boundary_f"] for nm in (1, 100))
    assert near == far == 1
    with pytest.raises(VoxelSizeError, match="give `voxel_size`"):
        kdseg.evaluate(labels, labels, boundaries=10)
    moved = np.roll(labels, 1, axis=2)
    assert (
        kdseg.evaluate(segmentation, moved, boundaries=9)["boundary_f"]
        == kdseg.evaluate(labels, moved, boundaries=9, voxel_size=(8.0, 8.0, 8.0))["boundary_f"]
    )
    assert kdseg.evaluate(segmentation, moved, boundaries=9) != kdseg.evaluate(
        labels, moved, boundaries=9, voxel_size=(1.0, 1.0, 1.0)
    )


VOLUME = np.arange(4 * 5 * 6, dtype=np.uint16).reshape(4, 5, 6)
CHANNELS = np.arange(2 * 4 * 5 * 6, dtype=np.uint8).reshape(2, 4, 5, 6)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, NDArray[Any]]]:
    folder = tmp_path_factory.mktemp("files")
    return {
        "zarr": (write_zarr(folder / "a.zarr", 3, VOLUME), VOLUME),
        "hdf5": (write_hdf5(folder / "a.h5", VOLUME, "a"), VOLUME),
        "channels": (write_hdf5(folder / "b.h5", CHANNELS, "a"), CHANNELS),
        "stage": (store(folder / "raw.json", VOLUME), VOLUME),
        "affinities": (store(folder / "affinities.json", CHANNELS, offsets=NEAREST[:2]), CHANNELS),
    }


@pytest.mark.parametrize("kind", ["zarr", "hdf5", "channels", "stage", "affinities"])
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_indexing_is_that_of_numpy(files: dict[str, tuple[Any, NDArray[Any]]], kind: str, data: st.DataObject) -> None:
    address, values = files[kind]
    opened = kdseg.open(address)
    assert (opened.shape, opened.dtype, opened.ndim) == (values.shape, values.dtype, values.ndim)
    index = data.draw(basic_indices(values.shape, allow_newaxis=False))
    expected = values[index]
    found = opened[index]
    assert found.shape == np.shape(expected)
    assert (found == expected).all()


def test_all_of_a_volume_and_what_is_no_part_of_it(files: dict[str, tuple[Any, NDArray[Any]]]) -> None:
    opened = kdseg.open(files["stage"][0])
    assert (np.asarray(opened) == VOLUME).all()
    assert np.asarray(opened, np.float32).dtype == np.float32
    assert (opened.voxel_size, opened.offset) == (SIZE, (0.0, 0.0, 0.0))
    assert kdseg.open(files["hdf5"][0]).offset is None
    for index in ((0, 0, 0, 0), 4, (..., 0, ...), 0.5, [0, 1]):
        with pytest.raises(IndexError):
            opened[index]  # type: ignore[index]
    with pytest.raises(ValueError, match="copy"):
        np.array(opened, copy=False)


def test_what_cannot_be_opened_is_told_by_who_knows_the_format(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "colour.tif", np.zeros((4, 8, 8, 3), np.uint8), photometric="rgb")
    with pytest.raises(ShapeError, match="values per pixel"):
        kdseg.open(tmp_path / "colour.tif")
    (tmp_path / "gap").mkdir()
    for k in (0, 1, 3):
        tifffile.imwrite(tmp_path / "gap" / f"z{k}.tif", np.full((8, 8), k, np.uint8))
    with pytest.raises(ShapeError, match="sections"):
        kdseg.open(tmp_path / "gap")
    assert kdseg.open(tmp_path / "gap", {"missing": "fill"})[:, 0, 0].tolist() == [0, 1, 0, 3]


def test_refusals(folder: Path) -> None:
    model = kdseg.load_model(folder / "model.json")
    with pytest.raises(DataError, match="expected uint8"):
        kdseg.predict(RAW.astype(np.uint16), model)
    with pytest.raises(ShapeError, match=r"\(20, 18\), expected \(z, y, x\)"):
        kdseg.predict(RAW[0], model)
    with pytest.raises(VoxelSizeError, match="knows voxels of"):
        kdseg.predict(RAW, model, voxel_size=(40.0, 4.0, 4.0))
    some = np.zeros((3, 4, 4, 4))
    with pytest.raises(DataError, match="expected uint8"):
        kdseg.segment(some, NEAREST, voxel_size=SIZE, threshold=0.5)
    with pytest.raises(ShapeError, match="2 offsets"):
        kdseg.segment(some, NEAREST[:2], voxel_size=SIZE, threshold=0.5)
    with pytest.raises(ShapeError, match="expected one shape"):
        kdseg.evaluate(LABELS, LABELS[1:])
    with pytest.raises(AttributeError, match="no attribute 'segmentt'"):
        kdseg.segmentt  # type: ignore[attr-defined]  # noqa: B018


def test_the_package_loads_nothing_heavy() -> None:
    code = "import sys, kdseg; print([name for name in ('torch', 'zarr', 'numba', 'dask') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_page_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "notebook.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    shape, size = (64, 160, 160), (8.0, 8.0, 8.0)
    phantom = phantom_block(PhantomOptions(shape=shape), Roi((0, 0, 0), shape))
    for name, values in zip(("raw", "labels"), phantom, strict=True):
        with h5py.File("volume.h5", "a") as file:
            file[name] = values
            file[name].attrs["resolution"] = size
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["neurons"].shape == found["labels"].shape == (64, 128, 128)
    assert 0 < found["scores"]["voi"] < 20
