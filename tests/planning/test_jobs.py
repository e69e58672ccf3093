"""Jobs of a plan, against those that Snakemake would run, and against a run."""

import json
import re

import h5py
import numpy as np
import pytest
import tifffile
import yaml
from workflow import ROOT, snakemake

from kdseg.config import load, validate
from kdseg.errors import ConfigError
from kdseg.planning.actual import actual
from kdseg.planning.extents import conversions, read_extents, resized
from kdseg.planning.jobs import jobs

PB = (100_000, 100_000, 100_000)
SLURM, SCHEDULER = {"kind": "slurm", "jobs": 3}, {"kind": "scheduler", "address": "tcp://a:1"}


def planned(config, gpus=0):
    return jobs(config, read_extents(config), gpus)


def values():
    return yaml.safe_load((ROOT / "config" / "test.yaml").read_text())


def on(cluster, cpu_cluster, **other):
    return {**values(), "workers": 4, "cluster": cluster, "cpu_cluster": cpu_cluster, **other}


def fused(found):
    found["predict"]["fused"] = True
    return found


def taught(folder):
    """Return a configuration with raw data in HDF5, labels in TIFF, and a segmentation that teaches."""
    voxels = np.random.default_rng(0).integers(0, 9, (32, 64, 64), np.uint8)
    with h5py.File(folder / "a.h5", "w") as file:
        for name in ("raw", "segmentation"):
            file[name] = voxels
            file[name].attrs["resolution"] = (10.0, 10.0, 10.0)
    tifffile.imwrite(folder / "labels.tif", voxels)
    found = values()
    found["volumes"]["file"] = {"raw": f"{folder}/a.h5:/raw", "labels": f"{folder}/labels.tif"}
    found["teachers"] = {"lab": {"segmentation": {"file": f"{folder}/a.h5:/segmentation"}}}
    del found["compare"]
    student = found["models"]["student"]
    recipe = {"teacher": "lab", "volumes": ["file"], "unlabelled": ["file"]}
    student["train"] |= recipe | {"teaching": {"outputs": "stored", "average": "none", "instances": "segmentation"}}
    student["train"]["terms"] = [{"name": "affinity"}, {"name": "graph_relation", "taps": ["affinities"]}]
    found["evaluate"] |= {"models": ["student"], "volumes": ["tune", "file"]}
    return found


CONFIGURATIONS = {
    "test": lambda folder: values(),
    "config": lambda folder: yaml.safe_load((ROOT / "config" / "config.yaml").read_text()),
    "clusters": lambda folder: on(SLURM, SCHEDULER),
    "fused": lambda folder: fused(on(SLURM, {"kind": "local"})),
    "taught": taught,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_plan_has_the_jobs_of_the_workflow_and_asks_for_what_they_ask(tmp_path, name):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIGURATIONS[name](tmp_path)))
    text = snakemake(tmp_path, path, "--dry-run", "--cores", "16")
    config, asked = load(path), {}
    for rule in re.split(r"^(?:local)?rule ", text, flags=re.M)[1:]:
        output = re.search(rf"^    output: {re.escape(config.results)}/(.+)$", rule, re.M)
        threads, mb = (re.search(pattern, rule) for pattern in (r"\n    threads: (\d+)", r"mem_mb=(\d+)"))
        if output is not None:
            asked[output[1]] = (int(threads[1]) if threads else 1, int(mb[1]))
    del asked["report.html"]
    assert {job.manifest: (job.cores, job.mb) for job in planned(config)} == asked


def place(found, stage):
    (one,) = {(job.cores, job.workers, job.gpus) for job in found if job.stage == stage}
    return one


def test_blocks_are_shared_by_the_workers_of_the_cluster_of_their_stage():
    here = planned(validate(on({"kind": "local"}, {"kind": "local"}, device="cuda")), gpus=2)
    assert (place(here, "predict"), place(here, "edges")) == ((4, 2, 2), (4, 4, 0))
    there = planned(validate(on(SLURM, SCHEDULER, device="cuda")), gpus=2)
    assert (place(there, "predict"), place(there, "edges")) == ((1, 3, 3), (1, None, 0))
    assert place(there, "train")[2] == 2
    other = planned(validate(fused(on(SCHEDULER, SLURM, device="cuda"))), gpus=2)
    assert (place(other, "fragments"), place(other, "edges")) == ((1, None, None), (1, 3, 0))


def test_slurm_is_asked_for_no_more_gpus_than_there_are_blocks():
    found = planned(validate(on({**SLURM, "jobs": 50}, {"kind": "local"}, device="cuda")), gpus=1)
    assert {(job.workers, job.gpus, job.blocks) for job in found if job.stage == "predict"} == {(4, 4, 4)}


def test_a_segmentation_that_teaches_is_converted_and_no_more(tmp_path):
    found = {job.manifest: job for job in planned(validate(taught(tmp_path)))}
    assert {manifest for manifest in found if manifest.startswith("lab/")} == {"lab/file/segmentation.json"}
    one = found["lab/file/segmentation.json"]
    assert (one.stage, one.model, one.volume, one.voxels, one.needs) == ("convert", "lab", "file", 32 * 64 * 64, ())
    assert "lab/file/segmentation.json" in found["student/model.json"].needs


def test_a_conversion_costs_what_its_own_file_costs(tmp_path):
    config = validate(taught(tmp_path))
    found = {job.manifest: list(job.work) for job in planned(config)}
    assert found["volumes/file/raw.json"] == ["convert raw h5"]
    assert found["volumes/file/labels.json"] == ["convert labels tif"]
    assert found["lab/file/segmentation.json"] == ["convert labels h5"]
    made = {one.work: (one.volume, one.teacher) for one in conversions(config, read_extents(config))}
    assert (made["convert labels tif"], made["convert labels h5"]) == (("file", ""), ("file", "lab"))


def test_a_phantom_is_made_in_whole_blocks_and_a_file_is_read_in_voxels(tmp_path):
    found = taught(tmp_path)
    found["volumes"]["tune"]["phantom"] |= {"shape": [33, 64, 65]}
    found["storage"] = {"chunk": [16, 16, 16], "shard": [32, 32, 32]}
    amounts = {job.manifest: sum(job.work.values()) for job in planned(validate(found))}
    assert amounts["volumes/tune/labels.json"] == (2 * 2 * 3) * 32**3
    assert amounts["volumes/file/raw.json"] == 32 * 64 * 64


def test_a_volume_of_another_shape_has_the_blocks_of_that_shape(tmp_path):
    found = values()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        raw = file.create_dataset("raw", (32, 128, 128), np.uint8, chunks=(32, 128, 128), maxshape=(None,) * 3)
        raw.attrs["resolution"] = (10.0, 10.0, 10.0)
        raw.resize((20, 40, 40))
    found["volumes"]["file"] = {"raw": f"{tmp_path}/a.h5:/raw"}
    found["evaluate"]["volumes"] = ["file"]
    del found["compare"]
    config = validate(found)
    shape = (320, 640, 640)
    (one,) = (
        job
        for job in jobs(config, resized(read_extents(config), "file", shape))
        if job.manifest == "volumes/file/raw.json"
    )
    # chunks of 32 x 128 x 128 are blocks now, where the small volume had 32 x 64 x 64
    assert one.blocks == 10 * 5 * 5


@pytest.mark.parametrize("name", ["test", "config", "compare"])
def test_a_job_comes_after_what_it_needs(name):
    seen = set()
    for job in planned(load(ROOT / "config" / f"{name}.yaml")):
        assert seen.issuperset(job.needs)
        seen.add(job.manifest)


def test_a_volume_of_another_shape_is_counted_and_not_made():
    config = load(ROOT / "config" / "test.yaml")
    found = jobs(config, resized(read_extents(config), "tune", PB))
    (predict,) = (job for job in found if job.manifest == "student/tune/affinities.json")
    assert predict.voxels == 10**15
    assert predict.blocks == 3125**3
    (train,) = (job for job in found if job.manifest == "student/model.json")
    assert train.voxels == 12 * 2 * 32**3
    with pytest.raises(ConfigError, match="no volume 'other'"):
        resized(read_extents(config), "other", PB)


def test_fragments_that_predict_store_no_affinities():
    config = load(ROOT / "config" / "test.yaml")
    fused = config.model_copy(update={"predict": config.predict.model_copy(update={"fused": True})})
    found = planned(fused)
    assert not any(job.stage == "predict" for job in found)
    (fragments,) = (job for job in found if job.manifest == "student/tune/fragments.json")
    # 1 block of 32 x 64 x 64, all of the volume, in tiles of 32 voxels
    assert dict(fragments.work) == {"fragments": 32 * 64 * 64, "predict student affinities": 32 * 64 * 64}


@pytest.mark.slow
def test_a_run_counts_what_its_plan_counts(tmp_path):
    path = ROOT / "config" / "test.yaml"
    snakemake(tmp_path, path)
    config = load(path)
    for job in planned(config):
        found = actual(tmp_path / config.results, job)
        assert found is not None, job.manifest
        assert found.blocks == job.blocks, job.manifest
        assert found.voxels in (job.voxels, None), job.manifest
        assert job.stage == "train" or found.voxels is not None or job.stage == "score", job.manifest
        assert job.size in (found.size, None), job.manifest
        assert job.mb >= (found.mb or 0), job.manifest
    assert json.loads((tmp_path / config.results / "student/model.json").read_text())["stats"]["steps"] == 12
