"""The commands of docs/reprocessing-compare.md, from raw data to a region that was segmented again."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from command import invoke
from pipeline import voxels
from toy_volumes import write_hdf5
from workflow import ROOT

from kdseg.geometry import Roi
from kdseg.results.manifests import read
from kdseg.segmentation.agglomeration.edits import read_edits
from kdseg.volumes.volume import open_volume

SMALL = {
    "900:1500,2000:3100,1000:2100": "0:32,8:56,0:56",
    "1000:1400,2100:3000,1100:2000": "8:24,16:40,0:40",
}
"""Regions for a volume of 32 x 64 x 64 voxels; the second touches its beginning."""


@pytest.mark.slow
def test_a_region_is_segmented_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    invoke("phantom", "em", "--shape", 32, 64, 64, "--seed", 3)
    raw = open_volume("em/raw.zarr")
    write_hdf5(Path("volume.h5"), raw.read(raw.roi), "raw", resolution=(10, 10, 10), offset=(0, 0, 0))
    whole = invoke("segment", "volume.h5:/raw", "whole", "--model", "fib25-m", "--threshold", 0.6, "--device", "cpu")
    assert whole.exit_code == 0, whole.output

    text = (ROOT / "docs" / "reprocessing-compare.md").read_text().replace("\\\n", "")
    block = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)[1]
    for before, now in SMALL.items():
        block = block.replace(before, now)
    codes = []
    for line in block.splitlines():
        words = shlex.split(line)[1:]
        more = ["--device", "cpu"] if words[0] == "segment" else []
        done = invoke(*words, *more)
        assert not done.exit_code or words[0] == "diff", done.output
        codes.append(done.exit_code)
    assert codes == [0, 0, 1]

    old, new = (voxels(Path(name) / "fib25-m/raw/segmentation.json") for name in ("whole", "part"))
    found = voxels(Path("patched/segmentation.json"))
    region, part = Roi((8, 16, 0), (16, 24, 40)), Roi((0, 8, 0), (32, 48, 56))
    outside = np.ones(old.shape, np.bool_)
    outside[region.slices()] = False
    np.testing.assert_array_equal(found[outside], old[outside])
    pairs = np.stack([found[region.slices()].ravel(), new[region.slices(part)].ravel()])
    assert np.unique(pairs, axis=1).shape[1] == np.unique(pairs[0]).size == np.unique(pairs[1]).size > 3
    assert np.intersect1d(found[region.slices()], old[outside]).size > 3
    stats = read(Path("patched/segmentation.json")).stats
    assert len(read_edits(Path("patched/segmentation.edits.csv"))) == stats["merges"] + stats["splits"]
    assert Path("changes.csv").read_text().startswith("result,change,old,")
