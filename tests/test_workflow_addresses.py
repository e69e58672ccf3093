"""The workflow finds what `kdseg check` accepts, and sees when a source changes."""

import json
import os

import h5py
import numpy as np
import pytest
import tifffile
import yaml
import zarr
from toy_volumes import write_volume
from workflow import snakemake

from kdseg.config import load
from kdseg.results.manifests import read
from kdseg.volumes.volume import open_volume

ZEROS = np.zeros((16, 16, 16), np.uint8)


def write_sources(folder):
    """Write volumes of zeros in names that are no plain ones; return their addresses."""
    odd = folder / "a b" / "{x} {volume}"
    odd.mkdir(parents=True)
    with h5py.File(odd / "a.h5", "w") as file:
        file["raw"] = ZEROS
    zarr.create_array(folder / "far.zarr", data=ZEROS, chunks=(8, 8, 8), compressors=None, fill_value=1)
    (folder / "near.zarr").mkdir()
    for path in (folder / "far.zarr").iterdir():  # as where chunks lie on another disk
        (folder / "near.zarr" / path.name).symlink_to(path)
    (folder / "sections").mkdir()
    for z, section in enumerate(ZEROS):
        tifffile.imwrite(folder / "sections" / f"{z}.tif", section)
    scale = {"key": "10", "size": [16] * 3, "resolution": [10] * 3, "chunk_sizes": [[16] * 3], "encoding": "raw"}
    (folder / "pre{computed}" / "10").mkdir(parents=True)
    (folder / "pre{computed}" / "info").write_text(
        json.dumps({"type": "image", "data_type": "uint8", "num_channels": 1, "scales": [scale]})
    )
    (folder / "pre{computed}" / "10" / "0-16_0-16_0-16").write_bytes(ZEROS.tobytes())
    write_volume(folder / "group.zarr", ZEROS)
    return {
        "hdf5": "a b/{x} {volume}/a.h5:raw",
        "linked": "near.zarr/",
        "sections": "./sections",
        "precomputed": "pre{computed}:10",
        "member": f"file://{folder}/group.zarr/0",
        "made": "results/t/volumes/sections/raw.json",
    }


def rewrite(path, old, new):
    """Change bytes of a file where they are: its size, and the time of its folder, stay."""
    data = path.read_bytes()
    assert old in data
    with path.open("r+b") as file:
        file.write(data.replace(old, new))


@pytest.mark.slow
def test_odd_addresses_are_found_and_changes_are_seen(tmp_path, values):
    pytest.importorskip("tensorstore")
    addresses = write_sources(tmp_path)
    del values["compare"]
    values |= {"results": "./results/x/../t/"}
    values["volumes"] |= {name: {"raw": one, "voxel_size": [10, 10, 10]} for name, one in addresses.items()}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    assert load(config).results == "results/t"
    manifests = {name: f"results/t/volumes/{name}/raw.json" for name in addresses}

    def rerun(*more, check=True):
        config.write_text(yaml.safe_dump(values))
        return snakemake(tmp_path, config, *more, "--", *manifests.values(), check=check)

    rerun()
    assert all(not open_volume(tmp_path / m.replace(".json", ".zarr")).array[:].any() for m in manifests.values())
    assert "Nothing to be done" in rerun()

    for path, time in ((tmp_path / "a b" / "{x} {volume}" / "a.h5", 10**18), (tmp_path / "sections" / "3.tif", 10**18)):
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)
            file.seek(-1, os.SEEK_END)
            file.write(last)
        os.utime(path, ns=(time, time))  # older than what was made of it, as a copy that keeps its time
    chunk = tmp_path / "far.zarr" / "c" / "0" / "0" / "0"
    before = chunk.parent.stat().st_mtime_ns
    rewrite(chunk, bytes(512), bytes([7]) * 512)
    assert chunk.parent.stat().st_mtime_ns == before
    rewrite(tmp_path / "pre{computed}" / "10" / "0-16_0-16_0-16", bytes(4096), bytes([9]) * 4096)
    text = rerun("--dry-run")
    for name, manifest in manifests.items():
        assert (f"output: {manifest}" in text) == (name != "member"), name

    text = rerun("--keep-going", check=False)
    assert "was made of something else: inputs.source/raw was" in text
    assert "kdseg clear results/t/volumes/linked/raw.json" in text
    assert not open_volume(tmp_path / "results/t/volumes/linked/raw.zarr").array[:].any()
    values["overwrite"] = True
    rerun()
    assert open_volume(tmp_path / "results/t/volumes/linked/raw.zarr").array[:8, :8, :8].min() == 7
    assert open_volume(tmp_path / "results/t/volumes/precomputed/raw.zarr").array[:].min() == 9
    made, sections = (read(tmp_path / manifests[name]) for name in ("made", "sections"))
    assert made.inputs == {"source/raw": sections.fingerprint}
    assert "Nothing to be done" in rerun()


@pytest.mark.slow
def test_odd_files_that_are_not_there_are_named(tmp_path, values):
    values["volumes"]["extra"] = {"raw": "{x}/a.h5:raw"}
    del values["compare"]
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    text = snakemake(tmp_path, config, "--dry-run", "results/test/volumes/extra/raw.json", check=False)
    assert "nothing at {x}/a.h5" in text
    config.write_text(yaml.safe_dump(values) + "title: another\n")
    text = snakemake(tmp_path, config, "--dry-run", check=False)
    assert "the key 'title' is given in line" in text
