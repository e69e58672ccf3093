"""Jobs that the workflow runs again: for another student or data set its own, of data that grew the new blocks."""

import json
import re
import shutil

import numpy as np
import pytest
import yaml
from toy_volumes import write_hdf5
from workflow import jobs, snakemake

from kdseg.config.shipped import cards
from kdseg.networks.checkpoint import load_model
from kdseg.results.manifests import read


def outputs(folder, config, *targets):
    """Return what the jobs would make that would run now."""
    text = snakemake(folder, config, "--dry-run", *targets)
    return {path for line in re.findall(r"^    output: (.*)$", text, re.M) for path in line.split(", ")}


@pytest.mark.slow
def test_another_student_and_another_data_set_run_their_own_jobs_only(finished, tmp_path, values):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder, symlinks=True)
    results, config = folder / "results" / "test", tmp_path / "config.yaml"
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*.json")}
    changed = json.loads(json.dumps(values))
    changed["models"]["second"] = json.loads(json.dumps(values["models"]["student"]))
    changed["models"]["second"]["network"]["widths"] = [4, 4]
    changed["evaluate"]["models"].append("second")
    config.write_text(yaml.safe_dump(changed))
    made = outputs(folder, config)
    assert "results/test/second/model.json" in made
    assert {path for path in made if not path.startswith("results/test/second/")} == {
        "results/test/report.html"  # one for all
    }

    changed["evaluate"] |= {"models": ["student", "second"], "volumes": ["tune", "train"]}
    config.write_text(yaml.safe_dump(changed))
    made = outputs(folder, config)
    # of the student that was there, what there is to do on the other data set
    assert {"/".join(path.split("/")[2:4]) for path in made} == {
        "second/model.json", "second/tune", "second/train", "student/train", "report.html"
    }  # fmt: skip
    snakemake(folder, config)
    for model in ("student", "second"):
        for volume in ("tune", "train"):
            assert json.loads((results / model / volume / "scores.json").read_text())["stats"]["model"] == model
    assert {path: path.stat().st_mtime_ns for path in before if path.name != "summary.json"} == {
        path: changed for path, changed in before.items() if path.name != "summary.json"
    }
    assert jobs(folder, config) == set()


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
def test_of_a_volume_that_grew_only_the_new_blocks_are_made(tmp_path, values, fused):
    network = "fib25-s"
    halo = load_model(cards()[network].file).network.halo[0]
    values = json.loads(json.dumps(values))
    del values["compare"], values["models"], values["volumes"]
    values |= {"pretrained": {"student": network}}
    values["predict"]["fused"] = fused
    values["fragments"]["block"] = [32, 32, 32]
    values["evaluate"] |= {"models": ["student"], "volumes": ["stack"], "tune_on": None}
    config, source = tmp_path / "config.yaml", np.random.default_rng(0).integers(0, 256, (190, 32, 32), dtype=np.uint8)
    raw = {n: write_hdf5(tmp_path / f"{n}.h5", source[:n], "raw", resolution=(10.0, 10.0, 10.0)) for n in (150, 190)}
    folders = {name: tmp_path / "results" / name / "student" / "stack" for name in ("old", "new", "scratch")}

    def run(name, depth, *arguments, reuse=None):
        changed = {"results": f"results/{name}", "reuse": reuse, "volumes": {"stack": {"raw": raw[depth]}}}
        config.write_text(yaml.safe_dump(values | changed))
        return snakemake(tmp_path, config, *arguments, f"results/{name}/student/stack/segmentation.json")

    run("old", 150)
    run("new", 190, reuse="results/old")
    run("scratch", 190)
    found = {name: contents(folders[name]) for name in ("new", "scratch")}
    assert len(found["new"]) > 10
    assert found["new"] == found["scratch"]
    for stage in ["fragments"] if fused else ["affinities", "fragments"]:
        counted = read(folders["new"] / f"{stage}.json").stats["blocks"]
        assert counted["total"] == 6
        if stage == "affinities":
            # of the five blocks that were, those that did not see the end
            assert counted["reused"] == sum(end + halo <= 150 for end in (32, 64, 96, 128, 150))
        assert 0 < counted["reused"] < 5
        assert read(folders["scratch"] / f"{stage}.json").stats["blocks"]["reused"] == 0
    text = run("scratch", 190, "--dry-run", reuse="results/old")  # it is finished
    assert "rule predict" not in text
    assert "rule fragments" not in text


def contents(folder):
    """Return the bytes of all results of a model on a volume; manifests know when they were made."""
    files = [path for path in folder.rglob("*") if path.is_file() and not set(path.parts) & {"logs", "benchmarks"}]
    hidden = {path for path in files if any(part.startswith(".") for part in path.relative_to(folder).parts)}
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p not in hidden and p.suffix != ".json"} | {
        str(p.relative_to(folder)): p.read_bytes() for p in files if p.name == "zarr.json"
    }
