"""Arrays that NumPy wrote: as they lie in the file, in any order of axes and bytes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from toy_volumes import converted_raw

from kdseg.config.data import VolumeOptions
from kdseg.errors import DataError, MissingError, ShapeError, UnreadableError
from kdseg.geometry import Roi
from kdseg.results.manifests import source_fingerprint
from kdseg.volumes.sources import open_channels, open_source

DATA = np.random.default_rng(0).integers(0, 2**16, (6, 10, 8), dtype=np.uint16)


def write(path: Path, data: NDArray[Any] = DATA) -> str:
    np.save(path, data, allow_pickle=False)
    return str(path)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(["u1", "<u2", ">u2", "<i4", ">i8", "<u8", "<f4", ">f8", "?"]),
    fortran=st.booleans(),
    ones=st.tuples(st.integers(0, 2), st.booleans()),
    data=st.data(),
)
def test_any_region_of_any_array(
    tmp_path: Path, dtype: str, fortran: bool, ones: tuple[int, bool], data: st.DataObject
) -> None:
    voxels = (DATA % 200).astype(dtype)
    before, behind = ones
    array = voxels.reshape((1,) * before + voxels.shape + (() if before or not behind else (1,)))
    source = open_source(write(tmp_path / "a.npy", np.asfortranarray(array) if fortran else array))
    assert (source.data.shape, source.data.dtype) == (voxels.shape, np.dtype(dtype))
    assert (source.voxel_size, source.placed) == (None, False)
    low = [data.draw(st.integers(0, n - 1)) for n in voxels.shape]
    size = [data.draw(st.integers(1, n - k)) for n, k in zip(voxels.shape, low, strict=True)]
    roi = Roi((low[0], low[1], low[2]), (size[0], size[1], size[2]))
    found = pickle.loads(pickle.dumps(source)).read(roi)
    np.testing.assert_array_equal(found, voxels[roi.slices()])
    assert found.flags.writeable  # no longer mapped


def test_blocks_grow_along_what_lies_in_one_piece(tmp_path: Path) -> None:
    assert open_source(write(tmp_path / "c.npy")).unit == (1, 1, 8)
    assert open_source(write(tmp_path / "f.npy", np.asfortranarray(DATA))).unit == (6, 1, 1)


def test_channels(tmp_path: Path) -> None:
    channels = np.stack([DATA, DATA[::-1], DATA // 2]).astype(np.float32)
    for name, array in {"c": channels, "f": np.asfortranarray(channels)}.items():
        source = open_channels(write(tmp_path / f"{name}.npy", array))
        assert (source.channels, source.shape, source.dtype) == (3, DATA.shape, np.float32)
        roi = Roi((1, 2, 3), (4, 5, 3))
        np.testing.assert_array_equal(source.read(roi), channels[(slice(None), *roi.slices())])
        with pytest.raises(ShapeError, match="one channel"):
            open_source(f"{tmp_path}/{name}.npy")
    with pytest.raises(ShapeError, match=r"expected \(c, z, y, x\)"):
        open_channels(write(tmp_path / "one.npy"))


def test_an_image_is_one_section(tmp_path: Path) -> None:
    for name, image in {"c": DATA[0], "f": np.asfortranarray(DATA[0])}.items():
        source = open_source(write(tmp_path / f"{name}.npy", image))
        assert source.data.shape == (1, 10, 8)
        np.testing.assert_array_equal(source.read(source.roi), DATA[:1])


def test_other_arrays_are_refused(tmp_path: Path) -> None:
    for name, array, said in (
        ("flat", DATA[0, 0], "expected"),
        ("empty", DATA[:0], "is empty"),
        ("complex", DATA.astype(complex), "expected integers, floats or bools"),
        ("text", np.array([["a", "bc"]]), "expected integers, floats or bools"),
        ("fields", np.zeros((2, 3, 4), [("a", "u1"), ("b", "f4")]), "expected integers, floats or bools"),
        ("dates", np.zeros((2, 3, 4), "M8[s]"), "expected integers, floats or bools"),
    ):
        with pytest.raises(DataError, match=said):
            open_source(write(tmp_path / f"{name}.npy", array))


class Trap:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("trapped"),)


def test_pickled_arrays_are_refused_without_running_what_is_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.array([[[Trap()]]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"a\.npy holds Python objects, .*allow_pickle=False"):
        open_source("a.npy")
    Path("b.npy").write_bytes(pickle.dumps(Trap()))  # numpy.load unpickles what is no array
    with pytest.raises(UnreadableError, match=r"no \.npy"):
        open_source("b.npy")
    assert not Path("trapped").exists()


def test_damaged_files(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.npy"))
    whole = path.read_bytes()
    for content, said in (
        (whole[:-1], "cut off"),
        (whole[:60], "cut off"),
        (b"", r"no \.npy"),
        (b"\x93NUMPY\x09\x00" + whole[8:], r"no \.npy"),
        (whole.replace(b"'shape': (6, 10, 8)", b"'shape': (6, 10, -8"), "damaged"),
        (whole + whole, "one array in each file"),
        (b"\x93NUMPY\x01\x00" + (8000).to_bytes(2, "little") + b"1+" * 4000, "damaged"),
        (b"\x93NUMPY\x01\x00" + (8000).to_bytes(2, "little") + b"-" * 7999 + b"1", "damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(UnreadableError, match=rf"a\.npy.*{said}") as caught:
            open_source(str(path))
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    source = open_source(str(path))
    path.write_bytes(whole[:500])
    with pytest.raises(UnreadableError, match="cut off"):
        source.read(source.roi)
    with pytest.raises(MissingError, match="nothing at"):
        open_source(f"{tmp_path}/b.npy")


def test_a_header_does_not_take_the_memory_that_it_asks_for(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (2**14, 2**14, 2**14)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(UnreadableError, match="cut off"):
        open_source(f"{tmp_path}/a.npy")


def test_conversion_and_its_fingerprint(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw.npy", DATA.astype(">u2"))
    options = VolumeOptions.model_validate({"raw": raw, "voxel_size": [30, 8, 8]})
    found = converted_raw(tmp_path / "out", **options.model_dump(exclude_unset=True))
    np.testing.assert_array_equal(found.read(found.roi), np.floor(DATA / 257 + 0.5).astype(np.uint8))
    before = [source_fingerprint(Path(path)) for path in options.files("raw")]
    write(tmp_path / "raw.npy", DATA[::-1])
    assert before != [source_fingerprint(Path(path)) for path in options.files("raw")]
