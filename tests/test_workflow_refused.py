"""A job that is refused, since an earlier result is made of something else, leaves that result as it was."""

import shutil

import numpy as np
import pytest
import yaml
from toy_volumes import write_hdf5
from workflow import snakemake

from kdseg.running import status

TARGET = "results/test/volumes/stack/raw.json"


@pytest.mark.slow
def test_a_refused_conversion_leaves_the_earlier_one_known(tmp_path, values):
    source, config, manifest = tmp_path / "a.h5", tmp_path / "config.yaml", tmp_path / TARGET
    data = np.random.default_rng(0).integers(0, 256, (32, 32, 32), dtype=np.uint8)
    raw = write_hdf5(source, data, "raw", resolution=(10.0, 10.0, 10.0))
    del values["compare"], values["models"]
    values["pretrained"] = {"student": "fib25-s"}
    values["volumes"] = {"stack": {"raw": raw}}
    values["evaluate"] |= {"models": ["student"], "volumes": ["stack"], "tune_on": None}
    config.write_text(yaml.safe_dump(values))
    snakemake(tmp_path, config, TARGET)
    said, sound = manifest.read_bytes(), tmp_path / "sound.h5"
    shutil.copy2(source, sound)
    source.unlink()
    write_hdf5(source, data[::-1], "raw", resolution=(10.0, 10.0, 10.0))
    text = snakemake(tmp_path, config, TARGET, check=False)
    assert "was made of something else: inputs.source/raw was" in text
    assert [one.state for one in status.run(tmp_path / "results" / "test")] == ["finished"]
    assert "rule convert" in snakemake(tmp_path, config, TARGET, "--dry-run")  # it stands for the other data
    sound.replace(source)
    snakemake(tmp_path, config, TARGET)
    assert manifest.read_bytes() == said
    assert "Nothing to be done" in snakemake(tmp_path, config, TARGET, "--dry-run")
