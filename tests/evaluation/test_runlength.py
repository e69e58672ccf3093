"""`kdseg runlength` on a small volume: which voxel a node lies in, and what is said of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command import invoke
from toy_volumes import write_volume

NM, OFFSET = (40.0, 8.0, 4.0), (400.0, 80.0, 0.0)
SHAPE = (5, 20, 40)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two true neurons along x; the segmentation splits the first at x = 30 and is right about the second."""
    ids = np.zeros(SHAPE, np.uint64)
    ids[1, 4, :30], ids[1, 4, 30:], ids[3, 9] = 7, 2**63 + 5, 9
    write_volume(tmp_path / "segments.zarr", ids, NM, OFFSET)
    lines = ["neuron,node,parent,z,y,x"]
    for neuron, z, y in ((1, 1, 4), (2, 3, 9)):
        for x in range(40):
            # anywhere in the voxel, whose centre is at a multiple of its size
            place = ((z + 0.4) * NM[0] + OFFSET[0], (y - 0.4) * NM[1] + OFFSET[1], (x + 0.3) * NM[2])
            lines.append(f"{neuron},{x},{x - 1},{','.join(f'{p:g}' for p in place)}")
    (tmp_path / "truth.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def call(*arguments: object) -> tuple[int, str]:
    result = invoke("runlength", *map(str, arguments))
    return result.exit_code, result.output


def test_the_run_length_of_a_split_neuron(folder: Path) -> None:
    code, text = call(folder / "segments.zarr", folder / "truth.csv", "--json", folder / "a.json")
    assert code == 0, text
    found = json.loads((folder / "a.json").read_text())
    step, whole = NM[2], 39 * NM[2]
    assert found["correct"] == pytest.approx((29 + 9 + 39) * step)
    assert found["split"] == pytest.approx(step)
    assert found["erl"] == pytest.approx(((29 * step) ** 2 + (9 * step) ** 2 + whole**2) / (2 * whole))
    assert found["best"] == pytest.approx(whole)
    assert [neuron["id"] for neuron in found["neurons"]] == [1, 2]
    assert (found["outside"], found["merging"]) == (0, [])
    assert f"NERL {found['nerl']:.4f}" in text


def test_nodes_outside_are_background_and_bad_input_is_told(folder: Path) -> None:
    shifted = [*map(str, (OFFSET[0], OFFSET[1], 10 * NM[2]))]
    code, text = call(folder / "segments.zarr", folder / "truth.csv", "--offset", *shifted)
    assert code == 0, text
    assert "80 nodes, 20 of them outside" in text
    code, text = call(folder / "segments.zarr", folder / "truth.csv", "--nm-per-unit", 1000)
    assert code == 1
    assert "none of the 80 nodes" in text
    code, text = call(folder / "segments.zarr", folder / "truth.csv", "--voxel-size", 40, 8, 8)
    assert code == 1
    assert "has voxels of (40.0, 8.0, 4.0) nm, --voxel-size says (40.0, 8.0, 8.0)" in text
    code, text = call(folder / "segments.zarr", folder / "nothing.csv")
    assert code == 1
    assert "no skeletons at" in text


def test_a_voxel_size_that_nobody_says_is_asked_for_by_its_flag(folder: Path) -> None:
    np.save(folder / "a.npy", np.ones((4, 4, 4), np.uint8))
    code, said = call(folder / "a.npy", folder / "truth.csv")
    assert code == 1
    assert "does not say how large its voxels are: give it, --voxel-size Z Y X, in nm" in said
