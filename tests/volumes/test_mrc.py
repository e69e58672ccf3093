"""MRC files that mrcfile wrote: axes, sizes, IMOD's bytes, damage."""

from __future__ import annotations

import logging
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kdseg.config.data import VolumeOptions
from kdseg.errors import DataError, KdsegError, MissingError, ShapeError, UnreadableError
from kdseg.geometry import Roi
from kdseg.results.manifests import source_fingerprint
from kdseg.volumes import mrc
from kdseg.volumes.sources import open_source

DATA = np.random.default_rng(0).integers(0, 100, (5, 7, 9), dtype=np.int16)


@pytest.fixture
def library() -> Any:
    return pytest.importorskip("mrcfile", reason="mrcfile reads and writes MRC")


def write(path: Path, library: Any, data: NDArray[Any] = DATA, size: Any = (40.0, 50.0, 300.0), **head: Any) -> str:
    """Write a file; sizes are in Å, x first."""
    with library.new(path, overwrite=True) as file:
        file.set_data(data)
        file.voxel_size = size
        for name, value in head.items():
            file.header[name] = value
    return str(path)


@pytest.mark.parametrize("dtype", ["i1", "i2", "u2", "f4", "f2"])
def test_what_mrcfile_writes(tmp_path: Path, library: Any, dtype: str) -> None:
    data = DATA.astype(dtype)
    source = open_source(write(tmp_path / "a.mrc", library, data))
    assert (source.data.shape, source.data.dtype, source.unit) == (DATA.shape, np.dtype(dtype), (1, 1, 9))
    assert source.voxel_size == pytest.approx((30.0, 5.0, 4.0))
    assert not source.placed
    for roi in (source.roi, Roi((1, 2, 3), (3, 4, 5))):
        found = pickle.loads(pickle.dumps(source)).read(roi)
        np.testing.assert_array_equal(found, data[roi.slices()])
        assert found.flags.writeable  # no longer mapped


@pytest.mark.parametrize("axes", [(1, 2, 3), (3, 2, 1), (2, 3, 1)])
def test_axes_are_those_of_the_header(tmp_path: Path, library: Any, axes: tuple[int, int, int]) -> None:
    """MAPC is the fastest; the size of a voxel is by x, y and z, whatever the order."""
    columns, rows, sections = axes
    with library.new(tmp_path / "a.rec") as file:
        file.set_data(DATA)
        for name, axis in zip(("mapc", "mapr", "maps"), axes, strict=True):
            file.header[name] = axis
        for name, axis in zip("xyz", (1, 2, 3), strict=True):
            steps = DATA.shape[{columns: 2, rows: 1, sections: 0}[axis]]
            file.header[f"m{name}"] = steps
            file.header.cella[name] = {"x": 40, "y": 50, "z": 300}[name] * steps
    source = open_source(f"{tmp_path}/a.rec")
    order = [{sections: 0, rows: 1, columns: 2}[axis] for axis in (3, 2, 1)]
    np.testing.assert_array_equal(source.read(source.roi), DATA.transpose(order))
    assert source.voxel_size == pytest.approx((30.0, 5.0, 4.0))


def test_axes_that_are_none(tmp_path: Path, library: Any) -> None:
    assert open_source(write(tmp_path / "old.mrc", library, mapc=0, mapr=0, maps=0)).data.shape == DATA.shape
    for head in ({"mapc": 2}, {"maps": 7}):
        with pytest.raises(ShapeError, match="MAPC, MAPR and MAPS"):
            open_source(write(tmp_path / "a.mrc", library, **head))
    image = open_source(write(tmp_path / "flat.mrc", library, DATA[0]))
    np.testing.assert_array_equal(image.read(image.roi), DATA[:1])


def test_sizes_and_places_that_say_nothing(tmp_path: Path, library: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert open_source(write(tmp_path / "a.mrc", library, size=0.0)).voxel_size is None
    assert open_source(write(tmp_path / "a.mrc", library, size=1.0)).voxel_size is None
    assert open_source(write(tmp_path / "a.mrc", library, size=2.0)).voxel_size == pytest.approx((0.2, 0.2, 0.2))
    assert "says a place" not in caplog.text
    with caplog.at_level(logging.WARNING):
        assert not open_source(write(tmp_path / "a.mrc", library, nxstart=5)).placed
    assert "says a place, which programs do not agree on" in caplog.text


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("flags", "dtype"), [(0, np.uint8), (1, np.int8), (None, np.int8)])
def test_bytes_of_imod_are_not_signed_unless_it_says_so(
    tmp_path: Path, library: Any, order: str, flags: int | None, dtype: Any
) -> None:
    values = np.arange(5 * 7 * 9, dtype=np.int64).reshape(DATA.shape).astype(np.int8)
    path = Path(write(tmp_path / "a.st", library, values.astype(np.dtype(np.int8))))
    if order == ">":
        content = bytearray(path.read_bytes())
        words = np.frombuffer(bytes(content[:1024]), "<i4").copy()
        content[:1024] = words.astype(">i4").tobytes()
        content[104:108], content[208:212], content[212:216] = b"\0\0\0\0", b"MAP ", b"\x11\x11\0\0"
        path.write_bytes(content)
    if flags is not None:
        with path.open("r+b") as file:
            file.seek(152)
            file.write((1146047817).to_bytes(4, "little" if order == "<" else "big"))
            file.write(flags.to_bytes(4, "little" if order == "<" else "big"))
    source = open_source(str(path))
    assert source.data.dtype == dtype
    np.testing.assert_array_equal(source.read(source.roi), values.view(dtype))


def test_damage_is_named(tmp_path: Path, library: Any) -> None:
    path = Path(write(tmp_path / "a.mrc", library))
    whole = path.read_bytes()
    source = open_source(str(path))
    for content in (b"", b"no", whole[:900], whole[:-1], whole + b"\0" * 8, b"\xff" * len(whole)):
        path.write_bytes(content)
        for reading in (lambda: open_source(str(path)), lambda: source.read(source.roi)):
            with pytest.raises(UnreadableError, match=r"cannot read .*a\.mrc: .* damaged") as caught:
                reading()
            assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="Fourier"):
        open_source(write(tmp_path / "a.mrc", library, DATA.astype(np.complex64)))
    with pytest.raises(KdsegError, match="only zarr is read from buckets"):
        open_source("s3://bucket/a.mrc")


@pytest.mark.parametrize("order", ["little", "big"])
def test_a_header_does_not_take_the_memory_that_it_asks_for(tmp_path: Path, library: Any, order: Any) -> None:
    path = Path(write(tmp_path / "a.mrc", library))
    content = bytearray(path.read_bytes())
    if order == "big":
        content[212:216] = b"\x11\x11\0\0"
    for length in (2**29, -1):
        content[92:96] = length.to_bytes(4, order, signed=True)
        path.write_bytes(content)
        tracemalloc.start()
        with pytest.raises(UnreadableError, match=rf"a\.mrc: .*says one of {length} more"):
            open_source(str(path))
        assert tracemalloc.get_traced_memory()[1] < 2**24
        tracemalloc.stop()


def test_mrcfile_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mrc, "find_spec", lambda name: None)
    (tmp_path / "a.mrc").write_bytes(b"whatever")
    with pytest.raises(MissingError, match=r"a\.mrc is MRC, .*pip install 'kdseg\[mrc\]'"):
        open_source(f"{tmp_path}/a.mrc")


def test_a_file_that_is_written_anew_changes_the_fingerprint(tmp_path: Path, library: Any) -> None:
    options = VolumeOptions.model_validate({"raw": write(tmp_path / "a.mrc", library)})
    before = [source_fingerprint(Path(path)) for path in options.files("raw")]
    write(tmp_path / "a.mrc", library, DATA[::-1])
    assert before != [source_fingerprint(Path(path)) for path in options.files("raw")]
