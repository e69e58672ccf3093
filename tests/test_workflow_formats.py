"""The workflow converts N5, `.npy`, zipped zarr and PNG sections, and sees when one of them changes in place."""

import json
import struct

import numpy as np
import pytest
import yaml
import zarr
from PIL import Image
from workflow import snakemake
from zarr.storage import ZipStore

from kdseg.volumes.inputs import open_input

DATA = np.random.default_rng(0).integers(0, 256, (8, 12, 10), np.uint8)


def write_sources(folder):
    """Write one volume in four formats; return its addresses."""
    np.save(folder / "a.npy", DATA)
    with ZipStore(folder / "a.zarr.zip", mode="w") as store:
        zarr.create_array(store, name="raw/0", data=DATA, chunks=(4, 4, 4))
    (folder / "sections").mkdir()
    for z, section in enumerate(DATA):
        Image.fromarray(section).save(folder / "sections" / f"s{z + 8}.png")
    block = folder / "a.n5" / "raw" / "s0" / "0" / "0" / "0"
    block.parent.mkdir(parents=True)
    block.write_bytes(struct.pack(">HHIII", 0, 3, *DATA.shape[::-1]) + DATA.tobytes())
    facts = {"dimensions": DATA.shape[::-1], "blockSize": DATA.shape[::-1], "dataType": "uint8"}
    attributes = block.parents[2] / "attributes.json"
    attributes.write_text(json.dumps({**facts, "compression": {"type": "raw"}}))
    (folder / "a.n5" / "raw" / "attributes.json").write_text(json.dumps({"axes": ["x", "y", "z"]}))
    return {"numpy": "a.npy", "zipped": "a.zarr.zip/raw/0", "sections": "sections", "n5": "a.n5/raw/s0"}


@pytest.mark.slow
def test_they_are_converted_and_converted_again_when_they_change(tmp_path, values):
    addresses = write_sources(tmp_path)
    del values["compare"]
    values |= {"results": "results/t", "overwrite": True}
    values["volumes"] |= {name: {"raw": one, "voxel_size": [10, 10, 10]} for name, one in addresses.items()}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    manifests = {name: f"results/t/volumes/{name}/raw.json" for name in addresses}

    def rerun(*more):
        return snakemake(tmp_path, config, *more, "--", *manifests.values())

    def voxels(name):
        volume = open_input(tmp_path / manifests[name]).volume
        return volume.read(volume.roi)

    rerun()
    for name in addresses:
        np.testing.assert_array_equal(voxels(name), DATA)
    assert "Nothing to be done" in rerun()

    np.save(tmp_path / "a.npy", DATA[::-1])
    with ZipStore(tmp_path / "a.zarr.zip", mode="w") as store:
        zarr.create_array(store, name="raw/0", data=DATA[::-1], chunks=(4, 4, 4))
    for z, section in enumerate(DATA[::-1]):
        Image.fromarray(section).save(tmp_path / "sections" / f"s{z + 8}.png")
    (tmp_path / "a.n5" / "raw" / "attributes.json").write_text(json.dumps({"axes": ["y", "x", "z"]}))
    text = rerun("--dry-run")
    for name, manifest in manifests.items():
        assert f"output: {manifest}" in text, name
    rerun()
    for name in addresses:
        np.testing.assert_array_equal(voxels(name), DATA.transpose(0, 2, 1) if name == "n5" else DATA[::-1])
    assert "Nothing to be done" in rerun()
