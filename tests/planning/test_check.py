"""A check of configurations against real files: what is found, as what, and which option it names."""

import json
import re
import subprocess
import sys
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import h5py
import numpy as np
import pytest
import torch
import yaml
from toy_volumes import cells, write_hdf5, write_volume

from kdseg.config import validate
from kdseg.planning.check import check
from kdseg.volumes.sources import open_source

SIZE = (10.0, 10.0, 10.0)
OTHER = (20.0, 10.0, 10.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with raw data, labels, and all that is wrong, in one file."""
    path = tmp_path_factory.mktemp("data")
    raw, labels = cells((64, 64, 64), 30)
    ones = np.full((64, 64, 64), 7, np.uint32)
    reserved = np.full((64, 64, 64), 2**64 - 1, np.uint64)
    affinities = np.zeros((3, 64, 64, 64), np.uint8)
    for name, data, size in (
        ("raw", raw, SIZE),
        ("labels", labels, SIZE),
        ("thick", raw, OTHER),
        ("thick_labels", labels, OTHER),
        ("small", raw[:40], SIZE),
        ("ones", ones, SIZE),
        ("reserved", reserved, SIZE),
        ("affinities", affinities, SIZE),
        ("few", affinities[:, :10], SIZE),
        ("thick_affinities", affinities, OTHER),
    ):
        write_hdf5(path / "a.h5", data, name, resolution=size, offset=(0.0, 0.0, 0.0))
    write_hdf5(path / "a.h5", raw, "nosize")
    write_hdf5(path / "a.h5", labels, "between", resolution=SIZE, offset=(5.0, 0.0, 0.0))
    write_hdf5(path / "a.h5", labels, "far", resolution=SIZE, offset=(1e6, 0.0, 0.0))
    with h5py.File(path / "a.h5", "a") as file:  # nothing of it is stored
        for name in ("vast", "vast_labels"):
            vast = file.create_dataset(name, (20_000, 20_000, 20_000), np.uint8, chunks=(64, 64, 64))
            vast.attrs.update(resolution=SIZE, offset=(0.0, 0.0, 0.0))
    return path


def values(folder):
    """Return a configuration in which nothing is wrong."""

    def part(z, n):
        file = folder / "a.h5"
        roi = {"offset": [z, 0, 0], "shape": [n, 64, 64]}
        return {"raw": f"{file}:/raw", "labels": f"{file}:/labels", "roi": roi}

    def model(**train):
        options = {"volumes": ["train"], "validate_on": "tune", "crop": [16, 32, 32], **train}
        return {"network": {"kind": "unet", "widths": [4, 8]}, "train": options}

    distil = {"teacher": "heavy", "terms": [{"name": "affinity"}, {"name": "soft_affinity"}]}
    return {
        "results": str(folder / "results"),
        "device": "cpu",
        "storage": {"chunk": [16, 16, 16], "shard": [32, 32, 32]},
        "volumes": {"train": part(0, 32), "tune": part(32, 16), "test": part(48, 16)},
        "models": {"heavy": model(), "fast": model(**distil)},
        "predict": {"block": [32, 32, 32], "tile": [32, 32, 32]},
        "fragments": {"block": [32, 32, 32]},
        "edges": {"block": [32, 32, 32]},
        "segment": {"block": [32, 32, 32]},
        "evaluate": {"models": ["heavy", "fast"], "volumes": ["test"], "tune_on": "tune", "block": [32, 32, 32]},
    }


def changed(folder, change):
    """Return the configuration with values at paths; ``@name`` is a dataset of the file."""
    found = values(folder)
    for path, value in change.items():
        *above, last = path.split(".")
        section = found
        for key in above:
            section = section.setdefault(key, {})
        section[last] = json.loads(json.dumps(value).replace("@", f"{folder / 'a.h5'}:/"))
    return found


def findings(folder, change):
    return check(validate(changed(folder, change)))


WHOLE = {"raw": "@raw", "labels": "@labels"}
THICK = {"raw": "@thick", "labels": "@thick_labels"}
STORED = {"outputs": "stored"}
LEARNED = {"models.fast.train.teacher": "lab", "models.fast.train.teaching": STORED}
OFFSETS = [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]


def lab(affinities, offsets=OFFSETS):
    about = {"affinities": {"train": f"@{affinities}"}, "offsets": offsets}
    whole = {"volumes.train": WHOLE, "volumes.tune": {"phantom": {}}, "volumes.test": {"phantom": {"seed": 1}}}
    return {"teachers.lab": about, "offsets": OFFSETS, **whole, **LEARNED}


ERRORS = {
    "no file": ({"volumes.test.raw": "/nowhere.h5:/raw"}, "volumes.test.raw", r"nothing at /nowhere\.h5"),
    "no dataset": ({"volumes.test.labels": "@label"}, "volumes.test.labels", r"no dataset '/?label'"),
    "no voxel size": ({"volumes.test.raw": "@nosize"}, "volumes.test.raw", r"set `voxel_size: \[z, y, x\]`"),
    "another voxel size": ({"volumes.test.labels": "@thick_labels"}, "volumes.test.labels", r"20\.0.* but .*10\.0"),
    "region outside": ({"volumes.test.roi.offset": [60, 0, 0]}, "volumes.test.raw", r"`roi` \[60:76.*make it smaller"),
    "between voxels": ({"volumes.test.labels": "@between"}, "volumes.test.labels", "expected whole voxels"),
    "elsewhere": ({"volumes.test.labels": "@far"}, "volumes.test.labels", "does not meet the region"),
    "mask": ({"volumes.tune.mask": "@small"}, "volumes.tune.mask", r"covers \(8, 64, 64\) of the .* expected all"),
    "baseline": ({"volumes.test.baseline": "@far"}, "volumes.test.baseline", "does not meet"),
    "segmentation": (
        {
            "teachers.lab": {"segmentation": {"train": "@far"}},
            "volumes.tune": {"phantom": {}},
            **LEARNED,
        },
        "teachers.lab.segmentation.train",
        "does not meet",
    ),
    "crop": ({"models.heavy.train.crop": [64, 32, 32]}, "models.heavy.train.crop", r"larger than the volume 'train'"),
    "voxels of training": (
        {"volumes.thick": THICK, "models.heavy.train.volumes": ["train", "thick"]},
        "models.heavy.train.volumes",
        r"'thick' has voxels of \(20\.0.* one voxel size",
    ),
    "voxels of validation": (
        {"volumes.thick": THICK, "models.heavy.train.validate_on": "thick"},
        "models.heavy.train.validate_on",
        "'thick' has voxels of",
    ),
    "voxels of a result": (
        {"volumes.test": THICK},
        "evaluate.volumes",
        r"'test' has voxels of \(20\.0.* 'heavy' knows those of \(10\.0",
    ),
    "voxels of a teacher": (
        {"volumes.thick": THICK, "models.fast.train.volumes": ["thick"], "models.fast.train.validate_on": "thick"},
        "models.fast.train.teacher",
        "'thick' has voxels of .* 'heavy' knows",
    ),
    "turns": (
        {"volumes.train": THICK, "models.heavy.train.augment": {"rotate": "zyx"}},
        "models.heavy.train.augment.rotate",
        "use 'yx'",
    ),
    "chunk": (
        {"agglomerate.chunk": [32, 48, 32], "volumes.test": WHOLE, "volumes.tune": WHOLE},
        "agglomerate.chunk",
        r"must be a multiple of fragments.block .* or cover the volume 'test' of \(64, 64, 64\)",
    ),
    "part to tune on": (
        {"evaluate.tune_roi": {"offset": [8, 0, 0], "shape": [16, 64, 64]}},
        "evaluate.tune_roi",
        r"\[8:24, 0:64, 0:64\] is not inside of the labels of 'tune', \[0:16",
    ),
    "part to search on": (
        {
            "tune_segmentation": {
                "regions": [{"volume": "tune", "offset": [0, 8, 0], "shape": [16, 64, 64]}],
                "least_side": 16,
            }
        },
        "tune_segmentation.regions",
        "is not inside of its labels",
    ),
    "small part to search on": (
        {"tune_segmentation": {"regions": [{"volume": "tune"}]}},
        "tune_segmentation.regions",
        r"\[16, 64, 64\] voxels, expected at least \[64, 64, 64\]",
    ),
    "no network": ({"pretrained.old": "/none.safetensors"}, "pretrained.old", r"no model file at /none"),
    "no start": (
        {"models.heavy.train.start_from": "/none.safetensors"},
        "models.heavy.train.start_from",
        r"no model file at /none",
    ),
    "network of a start": (
        {"models.heavy.train.start_from": "fib25-s"},
        "models.heavy.train.start_from",
        "fib25-s holds another network",
    ),
    "voxels of a start": (
        {"models.heavy.train.start_from": "fib25-s", "volumes.train": THICK},
        "models.heavy.train.start_from",
        r"was trained on voxels of .* nm, 'train' has",
    ),
    "offsets of a network": (
        {"pretrained.old": "fib25-s", "offsets": OFFSETS},
        "pretrained.old",
        "predicts the offsets",
    ),
    "pooling of a network": (
        {
            "pretrained.old": "fib25-s",
            "predict": {"block": [30, 30, 30], "tile": [30, 30, 30]},
            "storage": {"chunk": [30, 30, 30], "shard": [30, 30, 30]},
            **{f"{stage}.block": [30, 30, 30] for stage in ("fragments", "edges", "segment")},
            "agglomerate.chunk": [60, 60, 60],
            "evaluate.models": ["heavy", "old"],
        },
        "predict.tile",
        r"\[30, 30, 30\] must be a multiple of the pooling .* of 'old'",
    ),
    "voxels of a network": (
        {"pretrained.old": "fib25-s", "evaluate.models": ["heavy", "old"], "volumes.test": THICK},
        "evaluate.volumes",
        "'old' knows those of",
    ),
    "no file of a teacher": (
        {"teachers.lab": {"file": "/none.onnx"}, "models.fast.train.teacher": "lab"},
        "teachers.lab",
        "nothing at /none.onnx",
    ),
    "no affinities": (lab("nothing"), "teachers.lab.affinities.train", "has no dataset"),
    "channels": (lab("affinities", [*OFFSETS, [-3, 0, 0]]), "teachers.lab.offsets", "has 3 channels, but 4 steps"),
    "place of affinities": (lab("few"), "teachers.lab.affinities.train", "expected those of the volume 'train'"),
    "voxels of affinities": (lab("thick_affinities"), "teachers.lab.affinities.train", r"voxels of \(20"),
    "no edits": ({"agglomerate.edits": "none.csv"}, "agglomerate.edits", "no file at none.csv"),
    "disk": (
        {"volumes.test": {"raw": "@vast"}, "evaluate.volumes": ["test"]},
        "results",
        r"take 1\d\d,\d\d\d\.\d\d GB \(\w+/test/affinities.json 7\d,",
    ),
}


def test_nothing_is_found_where_nothing_is_wrong(folder):
    assert findings(folder, {}) == []
    assert [one for one in findings(folder, lab("affinities")) if one.error] == []


def test_a_teacher_may_have_more_offsets_than_the_run(folder):
    change = {"teachers.lab": {"file": "fib25-s"}, "models.fast.train.teacher": "lab"}
    assert not [one for one in findings(folder, change) if one.option.startswith("teachers.")]
    lacking = {**change, "offsets": [*OFFSETS, [-1, -2, -5]]}
    (found,) = [one for one in findings(folder, lacking) if one.option == "teachers.lab.file"]
    assert "fib25-s has no channel for the offsets [[-1, -2, -5]]" in found.text


@pytest.mark.parametrize("case", ERRORS)
def test_what_stops_a_run_is_an_error_at_its_option(folder, case):
    change, option, text = ERRORS[case]
    found = [one for one in findings(folder, change) if one.error and one.option == option]
    assert found, findings(folder, change)
    assert any(re.search(text, one.text) for one in found), found
    assert not any("\n" in one.text for one in found)


def test_all_is_found_at_once_and_errors_come_first(folder):
    change = {
        "volumes.test.raw": "/nowhere.zarr",
        "volumes.test.labels": "@label",
        "volumes.tune.labels": "@far",
        "volumes.train.labels": "@ones",
        "models.heavy.train.crop": [64, 32, 32],
        "agglomerate.edits": "none.csv",
    }
    found = findings(folder, change)
    errors = {one.option for one in found if one.error}
    assert errors == {*change} - {"volumes.train.labels"}
    assert [one.option for one in found if not one.error] == ["volumes.train.labels"]
    assert [one.error for one in found] == sorted((one.error for one in found), reverse=True)


@pytest.mark.parametrize(("name", "said"), [("ones", "7:"), ("reserved", "0, unlabelled: take a part")])
def test_labels_of_one_id_are_a_warning(folder, name, said):
    (found,) = findings(folder, {"volumes.test.labels": f"@{name}"})
    assert (found.option, found.error) == ("volumes.test.labels", False)
    assert f"is all one id, {said}" in found.text


@pytest.mark.parametrize("sparse", [False, True], ids=["one is large", "few sections have labels"])
def test_neurons_around_the_middle_are_no_finding(folder, tmp_path, sparse):
    labels = np.full((8, 600, 600), 3, np.uint16)
    labels[:, :100] = 4
    if sparse:
        labels[[0, 1, 3, 4, 5, 6]] = 0
        labels[[2, 7], :300] = 4
    raw = write_hdf5(tmp_path / "b.h5", np.zeros(labels.shape, np.uint8), "raw", resolution=SIZE)
    address = write_hdf5(tmp_path / "b.h5", labels, "labels", resolution=SIZE)
    change = {"volumes.train": {"raw": raw, "labels": address}, "models.heavy.train.crop": [8, 32, 32]}
    change["models.fast.train.crop"] = [8, 32, 32]
    assert findings(folder, change) == []


def test_shared_voxels_are_warnings_that_name_both_options(folder):
    found = findings(folder, {"volumes.test.roi": {"offset": [28, 0, 0], "shape": [16, 64, 64]}})
    assert [(one.option, one.error) for one in found] == [("evaluate.volumes", False)] * 3
    trained, judged, tuned = (one.text for one in found)
    assert trained.startswith(
        "25 % of test is scored, and is ground truth for the training of heavy, fast as a part of"
    )
    assert "models.heavy.train.volumes or the `roi`" in trained
    assert judged.startswith("75 % of test is scored, and the checkpoints of heavy, fast are chosen there as a part of")
    assert tuned.startswith("75 % of test is scored, and the thresholds are chosen there as a part of tune")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_here_is_a_warning(folder):
    (found,) = findings(folder, {"device": "cuda"})
    assert (found.option, found.error) == ("device", False)
    assert "no CUDA here" in found.text


def test_a_store_that_was_begun_does_not_count_against_the_disk(folder, tmp_path):
    change = {"volumes.test": {"raw": "@vast"}, "results": str(tmp_path)}
    assert [one.option for one in findings(folder, change) if one.error] == ["results"]
    for model in ("heavy", "fast"):
        (tmp_path / model / "test" / "affinities.zarr").mkdir(parents=True)
    assert [one for one in findings(folder, change) if one.error] == []


def test_a_warm_up_that_never_ends_is_a_warning(folder):
    assert findings(folder, {"models.heavy.train.steps": 51}) == []
    (found,) = findings(folder, {"models.heavy.train.steps": 40})
    assert (found.option, found.error) == ("models.heavy.train.warmup", False)
    assert found.text.startswith("50 of 40 steps are warm-up: lower it, e.g. to 4,")


def test_swapped_raw_data_and_labels_are_warnings(folder):
    found = findings(folder, {"volumes.test.raw": "@labels", "volumes.test.labels": "@raw"})
    assert [(one.option, one.error) for one in found] == [("volumes.test.raw", False), ("volumes.test.labels", False)]
    assert "a.h5:/labels looks like ids of neurons, not like grey values" in found[0].text
    assert "a.h5:/raw looks like grey values, not like ids" in found[1].text


def test_results_below_a_file_are_refused(folder):
    (found,) = findings(folder, {"results": f"{folder}/a.h5/results"})
    assert (found.option, found.error) == ("results", True)


def test_a_url_is_opened_once(folder, tmp_path):
    asked = Counter()

    class Counting(SimpleHTTPRequestHandler):
        def do_GET(self):
            asked[self.path] += 1
            super().do_GET()

        def log_message(self, *_):
            pass

    raw, labels = cells((64, 64, 64), 30)
    write_volume(tmp_path / "raw.zarr", raw)
    write_volume(tmp_path / "labels.zarr", labels)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Counting, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        for name in ("raw", "labels"):
            open_source(f"{url}/{name}.zarr")
        once = dict(asked)
        asked.clear()
        found = values(folder)
        for options in found["volumes"].values():
            options |= {"raw": f"{url}/raw.zarr", "labels": f"{url}/labels.zarr"}
        assert check(validate(found)) == []
        assert once
        assert dict(asked) == once
        server.shutdown()


def kdseg(*arguments):
    command = [sys.executable, "-m", "kdseg", "check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_the_command_tells_errors_from_warnings(folder, tmp_path):
    wrong = {"volumes.test.raw": "/nowhere.zarr", "volumes.train.labels": "@ones"}
    cases = {"good": {}, "doubtful": {"volumes.train.labels": "@ones"}, "wrong": wrong}
    done = {}
    for name, change in cases.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(changed(folder, change)))
        done[name] = kdseg(tmp_path / f"{name}.yaml")
    assert {name: one.returncode for name, one in done.items()} == {"good": 0, "doubtful": 0, "wrong": 1}
    assert done["good"].stdout.endswith("; 0 errors, 0 warnings\n")
    assert done["doubtful"].stdout.startswith("warning: volumes.train.labels: the middle of ")
    lines = done["wrong"].stdout.splitlines()
    assert [line.split(": ")[:2] for line in lines[:2]] == [
        ["error", "volumes.test.raw"],
        ["warning", "volumes.train.labels"],
    ]
    assert lines[2].endswith("; 1 errors, 1 warnings")
    unseen = kdseg(tmp_path / "wrong.yaml", "--no-files")
    assert unseen.returncode == 0
    assert unseen.stdout.endswith("; files not looked at\n")
