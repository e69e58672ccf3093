"""Affinities of another program, from files to neurons."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from command import invoke
from numpy.typing import NDArray
from pipeline import STORAGE, voxels

from kdseg.config.questions import AdoptTask
from kdseg.errors import ConfigError, DataError, MissingError, ShapeError, VoxelSizeError
from kdseg.segmentation import adopt
from kdseg.segmentation.adopt import as_uint8
from kdseg.volumes.affinities import affinity_offsets
from kdseg.volumes.volume import open_volume

STEPS = [[-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, -5]]
SIZE = (40.0, 8.0, 8.0)


@pytest.fixture
def affinities() -> NDArray[np.uint8]:
    """Two slabs along x, as flat as it gets."""
    labels = np.ones((6, 40, 70), int)
    labels[:, :, 33:] = 2
    found = np.full((4, *labels.shape), 230, np.uint8)
    found[2][:, :, 33] = 10
    found[3][:, :, 33:38] = 10
    found[:3] -= np.random.default_rng(0).integers(0, 9, found[:3].shape).astype(np.uint8)
    return found


def hdf5(path: Path, data: NDArray[np.generic], **attributes: object) -> str:
    with h5py.File(path, "w") as file:
        file.create_dataset("affs", data=data, chunks=(1, 3, 16, 16)).attrs.update(attributes)
    return f"{path}:/affs"


def test_floats_of_hdf5_and_bytes_of_zarr_become_the_same(tmp_path: Path, affinities: NDArray[np.uint8]) -> None:
    floats = (affinities / 255).astype(np.float32)
    address = hdf5(tmp_path / "a.h5", floats, resolution=SIZE, offset=(80.0, 0.0, 16.0))
    adopt.run(AdoptTask(address=address, manifest=tmp_path / "a.json", storage=STORAGE, offsets=STEPS, workers=2))
    zarr.create_array(str(tmp_path / "b.zarr"), data=255 - affinities, chunks=(1, 6, 16, 16))
    adopt.run(
        AdoptTask(
            address=str(tmp_path / "b.zarr"),
            manifest=tmp_path / "c.json",
            storage=STORAGE,
            offsets=STEPS,
            voxel_size=SIZE,
            invert=True,
        )
    )
    for name in ("a", "c"):
        np.testing.assert_array_equal(voxels(tmp_path / f"{name}.json"), affinities)
    volume = open_volume(tmp_path / "a.zarr")
    assert affinity_offsets(volume) == tuple(map(tuple, STEPS))
    assert (volume.voxel_size, volume.offset) == (SIZE, (80.0, 0.0, 16.0))


def test_channels_that_come_last_of_volumes_that_lie_otherwise(tmp_path: Path, affinities: NDArray[np.uint8]) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = file.create_dataset("affs", data=affinities.transpose(3, 2, 1, 0), chunks=(16, 16, 3, 1))
        made.attrs.update({"voxel_size": [8e-3, 8e-3, 4e-2], "offset": [1.6e-2, 0.0, 8e-2], "units": "um"})
        for axis, name in enumerate("xyzc"):
            made.dims[axis].label = name
    made = zarr.create_array(
        str(tmp_path / "given.zarr"), data=affinities.transpose(3, 1, 0, 2)[None], chunks=(1, 9, 9, 4, 9)
    )
    made.attrs.update({"axis_names": ["t^", "x", "z", "c^", "y"]})
    for name, address in {"a": f"{tmp_path}/a.h5:/affs", "b": f"{tmp_path}/given.zarr"}.items():
        size = {} if name == "a" else {"voxel_size": SIZE}
        manifest = tmp_path / f"{name}.json"
        adopt.run(AdoptTask(address=address, manifest=manifest, storage=STORAGE, offsets=STEPS, workers=2, **size))
        np.testing.assert_array_equal(voxels(manifest), affinities)
    volume = open_volume(tmp_path / "a.zarr")
    assert volume.voxel_size == pytest.approx(SIZE)
    assert volume.offset == pytest.approx((80, 0, 16))


def test_a_place_in_voxels_takes_the_size_that_is_given(tmp_path: Path, affinities: NDArray[np.uint8]) -> None:
    address = hdf5(tmp_path / "a.h5", affinities, voxel_size=(5, 1, 1), offset=(10, 0, 2), units="pixel")
    task = AdoptTask(address=address, manifest=tmp_path / "a.json", storage=STORAGE, offsets=STEPS)
    with pytest.raises(
        VoxelSizeError, match=r"has axes in \['pixel', .* no units of length: give it, --voxel-size Z Y X, in nm"
    ):
        adopt.run(task)
    adopt.run(task.model_copy(update={"voxel_size": SIZE}))
    volume = open_volume(tmp_path / "a.zarr")
    assert (volume.voxel_size, volume.offset) == (SIZE, (80, 0, 16))


@pytest.mark.parametrize("invert", [False, True])
def test_what_seems_to_be_inverted_is_said(
    tmp_path: Path, affinities: NDArray[np.uint8], invert: bool, caplog: pytest.LogCaptureFixture
) -> None:
    for name, data, said in (("a", affinities, invert), ("b", 255 - affinities, not invert)):
        address = hdf5(tmp_path / f"{name}.h5", data, resolution=SIZE)
        caplog.clear()
        manifest = tmp_path / f"{name}.json"
        adopt.run(AdoptTask(address=address, manifest=manifest, storage=STORAGE, offsets=STEPS, invert=invert))
        assert (("leave out --invert" if invert else "give --invert") in caplog.text) == said


def test_from_a_file_to_neurons_on_the_command_line(tmp_path: Path, affinities: NDArray[np.uint8]) -> None:
    address, storage = hdf5(tmp_path / "a.h5", affinities, resolution=SIZE), STORAGE.model_dump_json()
    paths = {name: str(tmp_path / f"{name}.json") for name in ("affinities", "fragments", "edges", "agglomeration")}

    def call(*arguments: str, **options: object) -> None:
        result = invoke(*arguments, *(["--options", json.dumps(options)] if options else []))
        assert result.exit_code == 0, result.output

    def inputs(*names: str) -> list[str]:
        return [word for name in names for word in (f"--{name}", paths[name])]

    def to(name: str) -> list[str]:
        return ["--manifest", str(tmp_path / f"{name}.json")]

    steps = " ".join(",".join(map(str, step)) for step in STEPS)
    call("adopt", address, "--offsets", steps, "--storage", storage, *to("affinities"))
    block = [32, 32, 32]
    call("fragments", *inputs("affinities"), "--storage", storage, *to("fragments"), block=block)
    call("edges", *inputs("affinities", "fragments"), *to("edges"), block=block)
    call("agglomerate", *inputs("affinities", "fragments", "edges"), *to("agglomeration"), thresholds=[0.5])
    made = inputs("fragments", "edges", "agglomeration")
    call("relabel", *made, "--storage", storage, *to("segmentation"), block=block, threshold=0.5)
    found = voxels(tmp_path / "segmentation.json")
    assert len(np.unique(found)) == 2
    assert (found[:, :, :33] == found[0, 0, 0]).all()
    assert (found[:, :, 33:] == found[0, 0, -1]).all()


def test_a_hair_outside_is_rounding_and_more_is_told_in_full() -> None:
    for dtype in ("f2", "f4", "f8"):
        found = as_uint8(np.array([-0.0004, 0, 0.5, 1, 1.0004], dtype), "a")
        assert found.tolist() == [0, 0, 128, 255, 255]
    assert as_uint8(np.array([1.0000001]), "a").tolist() == [255]
    with pytest.raises(DataError, match=r"values from 0 to 1\.00101, expected affinities in 0\.\.1: scale"):
        as_uint8(np.array([0, 1.00101]), "a")
    with pytest.raises(DataError, match=r"values from -0\.00101 to 1,"):
        as_uint8(np.array([-0.00101, 1]), "a")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"offsets": STEPS[:3]}, ShapeError, "4 channels"),
        ({"offsets": [*STEPS[:3], STEPS[2]]}, ConfigError, "distinct"),
        ({"offsets": [[-2, 0, 0], *STEPS[1:]]}, ConfigError, "along z is missing"),
        ({"voxel_size": None}, VoxelSizeError, "give it"),
        ({"data": lambda a: a.astype(np.int32)}, DataError, "int32"),
        ({"data": lambda a: a / 100}, DataError, "expected affinities in 0..1"),
        ({"data": lambda a: np.where(a > 229, np.nan, 0.5)}, DataError, "expected affinities in 0..1"),
        ({"data": lambda a: a[0]}, ShapeError, r"expected \(c, z, y, x\)"),
        ({"address": "nothing.h5:/affs"}, MissingError, "nothing at"),
        ({"address": "nothing.zarr"}, MissingError, "nothing at"),
    ],
)
def test_bad_input_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    affinities: NDArray[np.uint8],
    change: dict[str, object],
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    options: dict[str, object] = {"offsets": STEPS, "voxel_size": SIZE, **change}
    data = options.pop("data", lambda a: a)(affinities)  # type: ignore[operator]
    with h5py.File("a.h5", "w") as file:
        file["affs"] = data
    address = str(options.pop("address", "a.h5:/affs"))
    with pytest.raises(error, match=message):
        adopt.run(AdoptTask(address=address, manifest=tmp_path / "a.json", storage=STORAGE, **options))  # type: ignore[arg-type]
    assert not (tmp_path / "a.json").exists()
