"""Jobs of a plan, against those that Snakemake would run, and against a run."""

import json
import re

import pytest
from workflow import ROOT, snakemake

from kdseg.config import load
from kdseg.errors import ConfigError
from kdseg.planning.actual import actual
from kdseg.planning.extents import read_extents, resized
from kdseg.planning.jobs import jobs

PB = (100_000, 100_000, 100_000)


def planned(config):
    return jobs(config, read_extents(config))


@pytest.mark.parametrize("name", ["test", "config"])
def test_a_plan_has_the_jobs_of_the_workflow(tmp_path, name):
    path = ROOT / "config" / f"{name}.yaml"
    text = snakemake(tmp_path, path, "--dry-run")
    config = load(path)
    outputs = set(re.findall(rf"^    output: {re.escape(config.results)}/(.+)$", text, re.M))
    assert {job.manifest for job in planned(config)} == outputs - {"report.html"}


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
        assert found.blocks in (job.blocks, None), job.manifest
        assert found.voxels in (job.voxels, None), job.manifest
        assert job.stage == "train" or found.voxels is not None or job.stage == "score", job.manifest
        assert job.size in (found.size, None), job.manifest
        assert job.mb >= (found.mb or 0), job.manifest
    assert json.loads((tmp_path / config.results / "student/model.json").read_text())["stats"]["steps"] == 12
