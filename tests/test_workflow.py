"""The Snakemake workflow: whole, resumable, and reruns only what its own options change."""

import json
import shlex
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from pipeline import columns_of
from workflow import jobs, snakemake, voxels

from kdseg.config import validate
from kdseg.config.tasks import TuneSegmentationTask
from kdseg.report.landscape import landscapes
from kdseg.report.results import collect
from kdseg.volumes.volume import open_volume


@pytest.mark.slow
def test_the_run_ends_with_a_scored_report(finished):
    folder, config = finished
    results = folder / "results" / "test"
    assert "<html" in (results / "report.html").read_text()
    for model in ("teacher", "student_alone", "student"):
        stats = json.loads((results / model / "tune" / "scores.json").read_text())["stats"]
        assert stats["scores"]["voi"] >= 0
        assert stats["model"] == model
    assert len(np.unique(voxels(folder))) > 10
    assert jobs(folder, config) == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "key", "value", "first", "spared"),
    [
        ("agglomerate", "thresholds", [0.2, 0.5], {"agglomerate", "sweep", "relabel", "report"}, {"predict", "edges"}),
        ("evaluate", "dust", 3, {"sweep", "score", "report"}, {"agglomerate", "predict"}),
    ],
)
def test_only_what_an_option_concerns_runs_again(finished, tmp_path, values, section, key, value, first, spared):
    folder, _ = finished
    changed = json.loads(json.dumps(values))
    changed[section][key] = value
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(changed))
    found = jobs(folder, config)
    assert first <= found
    assert not spared & found


@pytest.mark.slow
def test_where_and_how_a_run_is_computed_makes_nothing_run_again(finished, tmp_path, values):
    folder, _ = finished
    changed = json.loads(json.dumps(values))
    changed |= {"overwrite": True, "cluster": {"kind": "scheduler", "address": "tcp://node1:8786"}}
    changed["storage"]["remote"] = "s3://bucket/x"
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(changed))
    assert jobs(folder, config) <= {"all", "report"}  # which shows the configuration
    text = snakemake(folder, config, "--dry-run", "--printshellcmds", "--forceall")
    commands = [line.split("-m kdseg ")[1] for line in text.splitlines() if "-m kdseg " in line]
    assert {line.split()[0] for line in commands} >= {"convert", "train", "predict", "relabel", "score", "report"}
    for line in commands:
        name = line.split()[0]
        assert ("--overwrite" in line) == (name != "report"), line
        assert ("--cluster '{" in line) == (name == "predict"), line
        assert ("--storage.remote s3://bucket/x" in line) == (name in ("convert", "predict", "fragments", "relabel")), (
            line
        )


@pytest.mark.slow
def test_the_threshold_is_chosen_on_a_part_of_the_volume_to_tune_on_only(finished, tmp_path, values):
    folder, _ = finished
    changed = json.loads(json.dumps(values))
    changed["evaluate"] |= {"tune_roi": {"offset": [0, 0, 0], "shape": [8, 8, 8]}, "volumes": ["tune", "train"]}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(changed))
    text = snakemake(folder, config, "--dry-run", "--printshellcmds")
    commands = [line for line in text.splitlines() if "kdseg sweep" in line]
    parts = {("/tune/sweep.json" in line, '"part":true' in line) for line in commands}
    assert parts == {(True, True), (False, False)}


@pytest.mark.slow
def test_a_changed_option_is_refused_until_it_is_cleared_or_overwritten(finished, tmp_path, values):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder, symlinks=True)
    changed = json.loads(json.dumps(values))
    changed["evaluate"]["dust"] = 3
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(changed))
    text = snakemake(folder, config, check=False)
    assert "options.dust was 0, is 3" in text
    assert "kdseg clear" in text
    changed["overwrite"] = True
    config.write_text(yaml.safe_dump(changed))
    snakemake(folder, config)
    stats = json.loads((folder / "results" / "test" / "student" / "tune" / "scores.json").read_text())
    assert stats["options"]["dust"] == 3


@pytest.mark.slow
def test_a_student_learns_from_what_teachers_stored(finished, tmp_path, values):
    """Stored, averaged affinities and the teacher's own neurons, on a volume whose labels are not used."""
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder, symlinks=True)
    changed = json.loads(json.dumps(values))
    student = json.loads(json.dumps(changed["models"]["student"]))
    student["train"] |= {
        "teaching": {"outputs": "stored", "average": "flips", "instances": "segmentation"},
        "augment": {"elastic": 0, "misaligned_section": 0},
        "terms": [{"name": "affinity"}, {"name": "soft_affinity"}, {"name": "graph_relation", "taps": ["affinities"]}],
        "normalise": True,
    }
    changed["models"]["thrifty"] = student
    off = changed["models"]["off"] = json.loads(json.dumps(student))
    off["train"]["distil"] = False
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(changed))
    results = folder / "results" / "test"
    snakemake(folder, config, "results/test/thrifty/model.json", "results/test/off/model.json")
    inputs = json.loads((results / "thrifty" / "model.json").read_text())["inputs"]
    assert {"teacher/train/affinities_flips.json", "teacher/train/segmentation.json"} <= inputs.keys()
    assert "teacher/model" not in inputs  # its weights are not needed again
    header = (results / "thrifty" / "model.training" / "curve.csv").read_text().splitlines()[0]
    assert "graph_relation.affinity" in header
    alone = json.loads((results / "off" / "model.json").read_text())["inputs"]
    assert not [name for name in alone if name.startswith("teacher")]
    assert jobs(folder, config) <= {"all", "report"}  # which shows the configuration


def masked(values, folder, mask, **attributes):
    """Return the configuration with another volume, real files with a mask."""
    raw = open_volume(folder / "results/test/volumes/tune/raw.zarr")
    with h5py.File(folder / "masked.h5", "w") as file:
        file["raw"], file["mask"] = raw.read(raw.roi), mask
        file["raw"].attrs["resolution"] = raw.voxel_size
        file["mask"].attrs.update(attributes)
    changed = json.loads(json.dumps(values))
    changed["volumes"]["masked"] = {"raw": "masked.h5:/raw", "mask": "masked.h5:/mask"}
    return yaml.safe_dump(changed)


@pytest.mark.slow
def test_a_mask_of_the_configuration_reaches_the_fragments(finished, tmp_path, values):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder, symlinks=True)
    mask = np.zeros((32, 64, 64), bool)
    mask[:, 10:50, 20:] = True
    config = tmp_path / "config.yaml"
    config.write_text(masked(values, folder, mask))
    snakemake(folder, config, "results/test/student/masked/segmentation.json")
    for name in ("fragments", "segmentation"):
        found = voxels(folder, f"student/masked/{name}.json")
        assert not found[~mask].any(), name
        assert (found[mask] > 0).mean() > 0.5, name
    config.write_text(masked(values, folder, mask, resolution=(20.0, 10.0, 10.0)))
    text = snakemake(folder, config, "results/test/volumes/masked/mask.json", "--forceall", check=False)
    assert "masked.h5:/mask has voxels of (20.0, 10.0, 10.0) nm, but masked.h5:/raw has (10.0, 10.0, 10.0)" in text


@pytest.mark.slow
def test_fused_makes_the_same_neurons_without_affinities(finished, tmp_path, values):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder, symlinks=True)
    shutil.rmtree(folder / "results/test/student/tune")
    changed = json.loads(json.dumps(values))
    changed["predict"]["fused"] = True
    changed["models"] = {name: changed["models"][name] for name in ("teacher", "student")}
    changed["evaluate"]["models"] = ["student"]
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(changed))
    snakemake(folder, config)
    made = folder / "results/test/student/tune"
    assert not list(made.glob("affinities*"))
    for name in ("fragments", "segmentation"):
        path = f"student/tune/{name}.json"
        assert (voxels(folder, path) == voxels(finished[0], path)).all(), name
    tables, before = (where / "results/test/student/tune/edges.tables" for where in (folder, finished[0]))
    assert columns_of(tables) == columns_of(before)
    page = (folder / "results/test/report.html").read_text()
    assert "student/tune/affinities" not in page
    assert "student/tune/fragments" in page
    speed = json.loads((made / "fragments.json").read_text())["stats"]["mvox_per_s"]
    assert json.loads((folder / "results/test/summary.json").read_text())["rows"][0]["mvox_per_s"] == speed
    assert jobs(folder, config) == set()


def test_a_mistake_is_told_at_the_prompt(tmp_path, values):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**values, "predicct": {}}))
    text = snakemake(tmp_path, config, check=False)
    assert "predicct: unknown key" in text
    wrong = json.loads(json.dumps(values))
    (tmp_path / "a.tif").write_text("no TIFF")
    wrong["volumes"]["train"] = {"raw": "a.tif", "labels": "a.tif"}
    config.write_text(yaml.safe_dump(wrong))
    text = snakemake(tmp_path, config, "--until", "convert", check=False)
    assert "kdseg convert: " in text
    assert "a.tif" in text


@pytest.mark.slow
def test_post_processing_is_tuned_for_each_scored_model(tmp_path, values):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    text = snakemake(tmp_path, config, "tune_segmentation", "--dry-run", check=False)
    assert "no section `tune_segmentation`" in text
    values["tune_segmentation"] = {"regions": [{"volume": "tune"}], "boundary": [0.3, 0.5]}
    values["evaluate"] |= {"models": ["teacher", "student"], "dust": 7}
    config.write_text(yaml.safe_dump(values))
    text = snakemake(tmp_path, config, "tune_segmentation", "--dry-run", "--printshellcmds")
    commands = [shlex.split(line) for line in text.splitlines() if "kdseg tune-segmentation --task" in line]
    made = [TuneSegmentationTask.model_validate_json(words[words.index("--task") + 1]) for words in commands]
    assert sorted(str(task.manifest) for task in made) == [
        f"results/test/{model}/tuned.json" for model in ("student", "teacher")
    ]
    for task in made:
        volume = task.volumes["tune"]
        assert (volume.affinities, volume.mask) == (task.manifest.parent / "tune" / "affinities.json", None)
        assert volume.labels == Path("results/test/volumes/tune/labels.json")
        assert (task.options.boundary, task.dust, task.fragments.block) == ((0.3, 0.5), 7, (32, 64, 64))
    assert "rule fragments" not in text


@pytest.mark.slow
def test_stages_are_told_of_clusters_that_are_not_the_default(tmp_path, values):
    config = tmp_path / "config.yaml"
    values |= {"cluster": {"kind": "local", "dashboard": True}, "cpu_cluster": {"kind": "local"}}
    config.write_text(yaml.safe_dump(values))
    text = snakemake(tmp_path, config, "results/test/student/tune/edges.json", "--dry-run", "--printshellcmds")
    told = {}
    for words in (shlex.split(line) for line in text.splitlines() if "python -m kdseg " in line):
        stage = words[words.index("kdseg") + 1]
        told[stage] = words[words.index("--cluster") + 1] if "--cluster" in words else None
    assert json.loads(told.pop("predict")) == {"kind": "local", "dashboard": True}
    assert {"fragments", "edges"} <= set(told)
    assert set(told.values()) == {None}


@pytest.mark.slow
def test_segmentations_take_what_a_search_chose(tmp_path, values):
    config = tmp_path / "config.yaml"
    values["evaluate"] |= {"models": ["teacher", "student"]}
    del values["segment"]["threshold"]
    searches = {"own": "student/tuned.json", "shared": "tuned.json"}
    for apply, path in searches.items():
        regions = [{"volume": "tune", "shape": [8, 9, 9]}]
        values["tune_segmentation"] = {"regions": regions, "least_side": 9, "apply": apply}
        config.write_text(yaml.safe_dump(values))
        text = snakemake(
            tmp_path, config, "results/test/student/tune/segmentation.json", "--dry-run", "--printshellcmds"
        )
        tasks = {}
        for words in (shlex.split(line) for line in text.splitlines() if "python -m kdseg " in line):
            tasks.setdefault(words[words.index("kdseg") + 1], []).append(json.loads(words[words.index("--task") + 1]))
        for stage in ("fragments", "edges", "agglomerate", "relabel"):
            assert [task["tuned"] for task in tasks[stage]] == [f"results/test/{path}"]
        assert "sweep" not in tasks
        (search,) = tasks["tune-segmentation"]
        names = ["teacher/tune", "student/tune"] if apply == "shared" else ["tune"]
        assert [region["volume"] for region in search["options"]["regions"]] == names == list(search["volumes"])
        made = search["volumes"][names[-1]]["affinities"]
        assert made == "results/test/student/tune/affinities.json"


@pytest.mark.slow
def test_a_search_runs_from_volumes_to_its_landscape(tmp_path, values):
    tiny = json.loads(json.dumps(values))
    del tiny["compare"]
    tiny["models"] = {"student": tiny["models"]["student_alone"]}
    tiny["models"]["student"]["train"] |= {"steps": 4, "validate_every": 4}
    tiny["evaluate"] |= {"models": ["student"]}
    regions = [{"volume": "tune"}, {"volume": "train", "shape": [32, 48, 48]}]
    search = {"regions": regions, "boundary": [0.3, 0.5], "score": ["mean"], "least_side": 16, "apply": "own"}
    tiny["tune_segmentation"] = search
    del tiny["segment"]["threshold"]
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tiny))
    assert "rule tune_model" in snakemake(tmp_path, config, "tune_segmentation")
    results = tmp_path / "results/test"
    stats = json.loads((results / "student/tuned.json").read_text())["stats"]
    assert (stats["candidates"], len(stats["chosen"]["parts"])) == (2, 2)
    assert stats["configuration"] in (results / "student/logs/tune_segmentation.log").read_text()
    assert "Nothing to be done" in snakemake(tmp_path, config, "tune_segmentation")
    assert not (results / "student/tune/fragments.json").exists()
    (found,) = landscapes(collect(validate(tiny | {"results": str(results)})))
    assert f"threshold {stats['chosen']['threshold']:g}: {stats['chosen']['voi']:.3f} bits" in found.sentence
    assert (len(found.figures), len(found.rows)) == (2, 2)
    snakemake(tmp_path, config, "results/test/student/tune/segmentation.json")
    made = json.loads((results / "student/tune/segmentation.json").read_text())["stats"]
    assert made["threshold"] == stats["chosen"]["threshold"]


@pytest.mark.slow
def test_real_em_goes_all_the_way(em_data, tmp_path, values):
    real = json.loads(json.dumps(values))
    source = em_data / "fib25_tiny.h5"
    for name, first, depth in (("train", 0, 40), ("tune", 40, 24)):
        real["volumes"][name] = {
            "raw": f"{source}:/volumes/raw",
            "labels": f"{source}:/volumes/labels/neuron_ids",
            "roi": {"offset": [first, 0, 0], "shape": [depth, 96, 96]},
        }
    real["models"] = {"teacher": real["models"]["teacher"]}
    real["evaluate"] |= {"models": ["teacher"], "dust": 100}
    del real["compare"]
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(real))
    snakemake(tmp_path, config)
    stats = json.loads((tmp_path / "results/test/teacher/tune/scores.json").read_text())["stats"]
    assert 0 < stats["scores"]["voi"] < 20
    assert stats["labels"] > 10
    assert stats["voxels"] == 24 * 96 * 96
