"""Results that are refused or cleared between others that are there: known, asked for, and made again."""

import shutil

import numpy as np
import pytest
import yaml
from command import invoke
from pipeline import voxels
from toy_volumes import write_hdf5
from workflow import snakemake

from kdseg.running import status

TARGET = "results/test/volumes/stack/raw.json"


def segmenting(values, raw):
    """Return the options of a run that segments raw data with a shipped network."""
    changes = {
        "pretrained": {"student": "fib25-s"},
        "volumes": {"stack": {"raw": raw}},
        "evaluate": {**values["evaluate"], "models": ["student"], "volumes": ["stack"], "tune_on": None},
    }
    return {key: value for key, value in values.items() if key not in ("compare", "models")} | changes


@pytest.mark.slow
def test_a_refused_conversion_leaves_the_earlier_one_known(tmp_path, values):
    source, config, manifest = tmp_path / "a.h5", tmp_path / "config.yaml", tmp_path / TARGET
    data = np.random.default_rng(0).integers(0, 256, (32, 32, 32), dtype=np.uint8)
    raw = write_hdf5(source, data, "raw", resolution=(10.0, 10.0, 10.0))
    config.write_text(yaml.safe_dump(segmenting(values, raw)))
    snakemake(tmp_path, config, TARGET)
    said, sound = manifest.read_bytes(), tmp_path / "sound.h5"
    shutil.copy2(source, sound)
    source.unlink()
    write_hdf5(source, data[::-1], "raw", resolution=(10.0, 10.0, 10.0))
    text = snakemake(tmp_path, config, TARGET, check=False)
    assert "was made of something else: inputs.source/raw was" in text
    assert [one.state for one in status.run(tmp_path / "results" / "test")] == ["kept"]
    assert "rule convert" in snakemake(tmp_path, config, TARGET, "--dry-run")  # it stands for the other data
    sound.replace(source)
    snakemake(tmp_path, config, TARGET)
    assert manifest.read_bytes() == said
    assert "Nothing to be done" in snakemake(tmp_path, config, TARGET, "--dry-run")


@pytest.mark.slow
def test_what_is_missing_between_results_is_made_again_or_refused_again(tmp_path, values):
    data = np.random.default_rng(0).integers(0, 256, (32, 32, 32), dtype=np.uint8)
    values = segmenting(values, write_hdf5(tmp_path / "a.h5", data, "raw", resolution=(10.0, 10.0, 10.0)))
    config, folder = tmp_path / "config.yaml", tmp_path / "results" / "test" / "student" / "stack"
    config.write_text(yaml.safe_dump(values))
    snakemake(tmp_path, config)
    segmented = voxels(folder / "segmentation.json")
    assert invoke("clear", folder / "segmentation.json").exit_code == 0
    assert not (folder / "segmentation.json").exists()
    snakemake(tmp_path, config)
    assert (voxels(folder / "segmentation.json") == segmented).all()
    assert "Nothing to be done" in snakemake(tmp_path, config, "--dry-run")
    values["fragments"] = {**values["fragments"], "halo": [4, 4, 4]}
    config.write_text(yaml.safe_dump(values))
    for _ in range(2):  # the report is there, and newer than all, but not of these options
        said = snakemake(tmp_path, config, check=False)
        assert "Error in rule fragments" in said
        assert "was made of something else: options.halo" in said
    assert not (folder / "fragments.json").exists()
