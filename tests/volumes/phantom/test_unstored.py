"""Phantoms that are not stored: read like any volume, computed when they are read."""

import json
import shutil

import numpy as np
import pytest
import torch
from command import invoke
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pipeline import STORAGE, voxels

from kdseg.config import PredictOptions, VolumeOptions
from kdseg.config.networks import HeadOptions, UNetOptions
from kdseg.config.tasks import ConvertTask, PredictTask
from kdseg.errors import ClaimError, MissingError, UnreadableError
from kdseg.geometry import Roi
from kdseg.networks.checkpoint import LoadedModel, save_model
from kdseg.networks.models import build
from kdseg.prediction import stage as predict
from kdseg.prediction.blocks import prepare
from kdseg.results.claims import claim, clear
from kdseg.results.manifests import file_fingerprint, read, source_fingerprint
from kdseg.volumes import convert
from kdseg.volumes.inputs import open_input
from kdseg.volumes.phantom import VERSION, unstored
from kdseg.volumes.volume import create_volume, open_volume

PHANTOM = {"shape": (20, 48, 33), "seed": 3, "voxel_size": (12, 10, 10), "offset": (-5, 7, 100)}
NAMES = ("stored", "computed")
OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))


def make(folder, kind="raw", stored=False, overwrite=False, **changes):
    options = VolumeOptions.model_validate({"phantom": {**PHANTOM, "stored": stored, **changes}})
    manifest = folder / f"{kind}.json"
    convert.run(ConvertTask(kind=kind, manifest=manifest, options=options, storage=STORAGE, overwrite=overwrite))
    return manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("unstored")
    for name, stored in (("stored", True), ("computed", False)):
        for kind in ("raw", "labels"):
            make(path / name, kind, stored)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["raw", "labels"])
@given(data=st.data())
@settings(deadline=None, max_examples=8, phases=[Phase.generate])
def test_any_region_is_what_is_stored(folder, kind, data):
    stored = open_input(folder / "stored" / f"{kind}.json").volume
    computed = open_input(folder / "computed" / f"{kind}.json").volume
    start = [data.draw(st.integers(0, n - 1)) for n in stored.shape]
    roi = Roi(tuple(start), tuple(data.draw(st.integers(1, n - s)) for n, s in zip(stored.shape, start, strict=True)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unstored, "_LONGEST", data.draw(st.sampled_from([30, 300])))
        found = computed.read(roi)
    expected = stored.read(roi)
    assert (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


def test_of_nothing_there_is_nothing(folder):
    roi = Roi((3, 4, 5), (2, 0, 7))
    for name in NAMES:
        assert open_volume(folder / name / "raw.zarr").read(roi).shape == roi.shape


@pytest.mark.parametrize("kind", ["raw", "labels"])
def test_it_lies_where_the_stored_one_does_and_takes_no_room(folder, kind):
    stored = open_input(folder / "stored" / f"{kind}.json").volume
    store = read(folder / "computed" / f"{kind}.json").result
    computed = open_volume(store)
    for name in ("shape", "dtype", "voxel_size", "offset", "channels", "placed"):
        assert getattr(computed, name) == getattr(stored, name)
    assert store.is_file()
    assert store.stat().st_size < 500


def test_large_regions_are_computed_piece_by_piece():
    # one piece of all would take memory for the tissue around it, which grows with the cube
    assert [len(piece) for piece in unstored._cut(2048, 10.0)] == [292, 293, 292, 293, 292, 293, 293]
    assert max(len(piece) for piece in unstored._cut(2048, 40.0)) <= 82
    assert unstored._cut(3, 5000.0) == [range(0, 1), range(1, 2), range(2, 3)]


@pytest.fixture(scope="module")
def model(folder):
    torch.manual_seed(1)
    network = build(UNetOptions(widths=(3, 6)), HeadOptions(), OFFSETS)
    with claim(folder / "model.json", "train", {}, {}) as held:
        save_model(
            held.model,
            LoadedModel(network, UNetOptions(widths=(3, 6)), HeadOptions(), OFFSETS, PHANTOM["voxel_size"]),
        )
        held.stats["weights"] = file_fingerprint(held.model)
    return folder / "model.json"


@pytest.mark.slow
def test_prediction_gives_the_same_bytes(folder, model):
    found = []
    for name in NAMES:
        manifest = folder / name / "affinities.json"
        options = PredictOptions(block=(32, 32, 32), tile=(16, 16, 16))
        predict.run(
            PredictTask(
                raw=folder / name / "raw.json",
                model=model,
                manifest=manifest,
                options=options,
                storage=STORAGE,
                device="cpu",
            )
        )
        found.append(voxels(manifest))
    assert np.ptp(found[0]) > 20
    assert (found[0] == found[1]).all()


def test_it_is_a_source_of_other_volumes(folder, tmp_path):
    options = VolumeOptions.model_validate(
        {"raw": str(folder / "computed" / "raw.zarr"), "roi": {"offset": (1, 2, 3), "shape": (9, 11, 13)}}
    )
    convert.run(ConvertTask(kind="raw", manifest=tmp_path / "raw.json", options=options, storage=STORAGE))
    roi = Roi((1, 2, 3), (9, 11, 13))
    assert (voxels(tmp_path / "raw.json") == open_volume(folder / "stored" / "raw.zarr").read(roi)).all()


def test_nothing_is_written_to_it(folder):
    store = folder / "computed" / "raw.zarr"
    before = store.read_bytes()
    volume = open_volume(store)
    with pytest.raises(UnreadableError, match=r"raw\.zarr is a phantom that is not stored"):
        volume.write(volume.roi, np.zeros(volume.shape, np.uint8))
    with pytest.raises(UnreadableError, match=r"raw\.zarr is a phantom that is not stored"):
        create_volume(
            store, shape=(4, 4, 4), dtype=np.uint8, chunk=(4, 4, 4), shard=(4, 4, 4), voxel_size=(1.0, 1.0, 1.0)
        )
    assert store.read_bytes() == before


def test_it_has_no_other_resolution(folder):
    with pytest.raises(MissingError, match="no resolution level 1"):
        open_volume(folder / "computed" / "raw.zarr", level=1)


DAMAGED = {
    "cut off": (lambda text: text[:-20], "neither that nor a link"),
    "of another program": (lambda text: '{"driver": "n5"}', "neither that nor a link"),
    "no object": (lambda text: "[1, 2]", "neither that nor a link"),
    "another version": (
        lambda text: text.replace(f'"version": {VERSION}', '"version": 99'),
        rf"version 99, this kdseg computes version {VERSION}.*kdseg clear .*raw\.json",
    ),
    "no version": (lambda text: text.replace("version", "vision"), "version None"),
    "no shape": (lambda text: text.replace('"seed": 3', '"seed": -3'), "does not say which phantom.*seed"),
    "unknown option": (lambda text: text.replace('"seed"', '"sead"'), "does not say which phantom.*sead"),
    "another kind": (lambda text: text.replace('"raw"', '"mask"'), "kind 'mask'"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_told(folder, tmp_path, name):
    change, message = DAMAGED[name]
    text = (folder / "computed" / "raw.zarr").read_text()
    (tmp_path / "raw.zarr").write_text(change(text))
    assert change(text) != text
    with pytest.raises(UnreadableError, match=rf"(?s)raw\.zarr.*{message}"):
        open_volume(tmp_path / "raw.zarr")


def test_another_run_changes_nothing_and_clear_removes_it(tmp_path):
    manifest = make(tmp_path)
    before = read(manifest).fingerprint, (tmp_path / "raw.zarr").read_bytes()
    make(tmp_path)
    assert (read(manifest).fingerprint, (tmp_path / "raw.zarr").read_bytes()) == before
    assert set(clear(manifest)) == {manifest, tmp_path / "raw.zarr"}
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_gone_is_made_again(tmp_path):
    manifest = make(tmp_path)
    (tmp_path / "raw.zarr").unlink()
    with pytest.raises(MissingError, match="gone"):
        read(manifest).result.exists()
    assert voxels(make(tmp_path)).shape == PHANTOM["shape"]


@pytest.mark.parametrize("stored", [False, True])
def test_stored_and_not_stored_are_not_mixed(tmp_path, folder, stored):
    name = "stored" if stored else "computed"
    shutil.copytree(folder / name, tmp_path / "x")
    with pytest.raises(ClaimError, match=r"was made of something else.*options\.stored"):
        make(tmp_path / "x", stored=not stored)
    manifest = make(tmp_path / "x", stored=not stored, overwrite=True)
    assert read(manifest).result.is_dir() == (not stored)
    assert (voxels(manifest) == voxels(folder / "stored" / "raw.json")).all()


def test_other_options_are_another_phantom(tmp_path):
    manifest = make(tmp_path)
    before = source_fingerprint(read(manifest).result), read(manifest).fingerprint
    with pytest.raises(ClaimError, match="seed was 3, is 4"):
        make(tmp_path, seed=4)
    make(tmp_path, seed=4, overwrite=True)
    assert source_fingerprint(read(manifest).result) != before[0]
    assert read(manifest).fingerprint != before[1]


def test_stored_phantoms_of_before_are_still_whole(folder):
    # the option is new: in what they are made of, it would make all results of before stale
    options = json.loads((folder / "stored" / ".raw" / "claim.json").read_text())["options"]
    assert set(options) == {"kind", "phantom", "storage"}
    assert set(options["phantom"]) == {"shape", "seed", "voxel_size", "offset"}


def test_the_command_makes_it(tmp_path):
    shape = ["--shape", "8", "9", "10"]
    for name, flags in (("a", ["--unstored"]), ("b", [])):
        result = invoke("phantom", str(tmp_path / name), *shape, *flags)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "a" / "labels.zarr").is_file()
    for kind in ("raw", "labels"):
        assert (voxels(tmp_path / "a" / f"{kind}.json") == voxels(tmp_path / "b" / f"{kind}.json")).all()


def test_the_memory_of_reading_is_announced(folder, model):
    roi = Roi((0, 0, 0), PHANTOM["shape"])
    stored, computed = (open_volume(folder / name / "raw.zarr") for name in NAMES)
    assert stored.working_bytes(roi) == 0
    assert computed.working_bytes(roi) == unstored._TISSUE_BYTES + 9 * roi.size
    # no more for a large region, which is computed piece by piece
    assert computed.working_bytes(Roi((0, 0, 0), (4000, 4000, 4000))) <= unstored._TISSUE_BYTES + 9 * 330**3
    tasks = [PredictTask(raw=folder / name / "raw.json", model=model, manifest=model, device="cpu") for name in NAMES]
    ready = [prepare(task) for task in tasks]
    announced = [one.announced_mb(roi, roi) for one in ready]
    assert announced[1] - announced[0] > 100
