"""Volumes of other places, sizes and formats on one grid, against the voxels that a loop finds in the world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_volumes import write_hdf5, write_volume, write_zarr

from kdseg.errors import ConfigError, DataError, ShapeError, VoxelSizeError
from kdseg.evaluation.alignment import align, as_ids, expect_ids
from kdseg.geometry import Roi, Triple
from kdseg.volumes.sources import Source, open_source

TRIPLES = st.tuples(*[st.integers(1, 3)] * 3)


def source(tmp_path: Path, name: str, shape: Triple, **attributes: Any) -> Source:
    data = np.arange(np.prod(shape), dtype=np.uint32).reshape(shape)
    return open_source(write_hdf5(tmp_path / f"{name}.h5", data, "a", **attributes))


@settings(deadline=None, max_examples=30)
@given(ratio=TRIPLES, start=st.tuples(*[st.integers(-3, 5)] * 3), flip=st.booleans(), seed=st.integers(0, 99))
def test_every_voxel_takes_the_nearest_one_in_the_world(
    tmp_path_factory: pytest.TempPathFactory, ratio: Triple, start: Triple, flip: bool, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("a")
    fine = (6.0, 4.0, 5.0)
    coarse = tuple(f * r for f, r in zip(fine, ratio, strict=True))
    offset = tuple(100 + f * s for f, s in zip(fine, start, strict=True))
    one = source(folder, "a", (12, 11, 10), resolution=fine, offset=(100.0, 100.0, 100.0))
    other = source(folder, "b", (5, 4, 6), resolution=coarse, offset=offset)
    aligned = align(other, one) if flip else align(one, other)
    assert aligned.voxel_size == fine
    rng = np.random.default_rng(seed)
    low = [int(rng.integers(o, e)) for o, e in zip(aligned.common.offset, aligned.common.end, strict=True)]
    shape = tuple(int(rng.integers(1, e - lo + 1)) for e, lo in zip(aligned.common.end, low, strict=True))
    roi = Roi((low[0], low[1], low[2]), shape)
    for placed in aligned.placed:
        read, whole = placed.read(roi), placed.source.read(placed.source.roi)
        assert read.shape == shape
        for index in np.ndindex(*shape):
            # centre of this voxel of the grid, in nm, and the voxel of the file that holds it
            place = [o + f * (lo + i + 0.5) for o, f, lo, i in zip(aligned.origin, fine, low, index, strict=True)]
            size, first = placed.source.voxel_size, placed.source.offset
            assert read[index] == whole[tuple(int((p - o) // s) for p, o, s in zip(place, first, size, strict=True))]


def test_common_is_what_both_cover(tmp_path: Path) -> None:
    one = source(tmp_path, "a", (10, 10, 10), resolution=(1, 1, 1), offset=(0, 0, 0))
    other = source(tmp_path, "b", (10, 4, 10), resolution=(1, 1, 2), offset=(4, 2, -6))
    aligned = align(one, other)
    assert aligned.common == Roi((4, 2, 0), (6, 4, 10))
    assert aligned.placed[1].start == (4, 2, -6)


def test_a_level_of_a_pyramid_lies_on_the_finer_one(tmp_path: Path) -> None:
    """OME-Zarr places the centre of a voxel: level 1 is off by half a fine voxel, and yet on the grid."""
    data = np.arange(8 * 8 * 8, dtype=np.uint32).reshape(8, 8, 8)
    fine = open_source(str(write_volume(tmp_path / "a.zarr", data)))
    halved = data[::2, ::2, ::2]
    coarse = open_source(str(write_volume(tmp_path / "b.zarr", halved, (20.0, 20.0, 20.0), (5.0, 5.0, 5.0))))
    aligned = align(fine, coarse)
    assert (aligned.offsets_are, aligned.common) == ("centres", fine.roi)
    assert (aligned.placed[1].read(fine.roi) == halved.repeat(2, 0).repeat(2, 1).repeat(2, 2)).all()
    assert align(coarse, fine).origin == fine.offset
    assert align(fine, fine).offsets_are == "corners"


def test_what_says_no_place_or_size_takes_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    plain = open_source(write_zarr(tmp_path / "a.zarr", 3, np.zeros((6, 5, 4), np.uint8)))
    placed = source(tmp_path, "b", (6, 5, 4), resolution=(4, 4, 4), offset=(40, 0, 8))
    for aligned in (align(plain, placed), align(placed, plain)):
        assert (aligned.voxel_size, aligned.origin) == ((4.0, 4.0, 4.0), (40.0, 0.0, 8.0))
        assert aligned.common == plain.roi
    said = f"{plain.address} does not say where it lies: it has the extent of {placed.address}"
    assert caplog.text.count(said) == 2
    assert align(plain, plain).voxel_size is None


def test_what_cannot_be_aligned_is_refused(tmp_path: Path) -> None:
    one = source(tmp_path, "a", (6, 5, 4), resolution=(4, 4, 4), offset=(0, 0, 0))
    with pytest.raises(ShapeError, match=r"b\.h5:/a of \(6, 5, 3\) voxels does not say where it lies"):
        align(one, source(tmp_path, "b", (6, 5, 3), resolution=(4, 4, 4)))
    with pytest.raises(VoxelSizeError, match=r"c\.h5:/a of \(6, 5, 3\) voxels does not say how large"):
        align(one, source(tmp_path, "c", (6, 5, 3), offset=(0, 0, 0)))
    with pytest.raises(VoxelSizeError, match=r"\[1\.5, 1\.0, 1\.0\] times the finest.*resample"):
        align(one, source(tmp_path, "d", (6, 5, 3), resolution=(6, 4, 4), offset=(0, 0, 0)))
    with pytest.raises(VoxelSizeError, match=r"begins \[0\.0, 0\.25, 0\.0\] voxels.*whole voxels"):
        align(one, source(tmp_path, "e", (6, 5, 3), resolution=(4, 4, 4), offset=(0, 1, 0)))
    with pytest.raises(ShapeError, match=r"f\.h5:/a covers \[100:106, 0:5, 0:3\].*do not overlap"):
        align(one, source(tmp_path, "f", (6, 5, 3), resolution=(4, 4, 4), offset=(400, 0, 0)))
    nowhere = [source(tmp_path, name, (6, 5, 3), offset=(k, 0, 0)) for k, name in enumerate("gh")]
    with pytest.raises(VoxelSizeError, match="offset in nm but no voxel size"):
        align(*nowhere)


def test_regions_in_voxels_and_in_nm(tmp_path: Path) -> None:
    one = source(tmp_path, "a", (6, 5, 4), resolution=(8, 4, 4), offset=(80, 0, 0))
    other = source(tmp_path, "b", (12, 5, 4), resolution=(4, 4, 4), offset=(80, 0, 0))
    aligned = align(one, other)
    assert aligned.region("voxels:1:3,0:5,2:4") == Roi((2, 0, 2), (4, 5, 2))
    assert aligned.region("nm:88:104, 0:20, 8:16") == Roi((2, 0, 2), (4, 5, 2))
    assert aligned.region("nm:81:85,0:20,0:16") == Roi((1, 0, 0), (1, 5, 4))
    for text in ("1:3,0:5,2:4", "voxels:1:3,0:5", "voxels:1:3,0:5,a:4", "voxels:1:3,0:5,0.5:4", "nm:1:3,0:5,2:4:5"):
        with pytest.raises(ConfigError, match="region"):
            aligned.region(text)
    with pytest.raises(ConfigError, match="no voxel"):
        aligned.region("nm:81:82,0:20,0:16")
    with pytest.raises(ShapeError, match="reaches beyond"):
        aligned.region("voxels:0:7,0:5,0:4")
    with pytest.raises(VoxelSizeError, match="nm"):
        align(*[open_source(write_zarr(tmp_path / "z.zarr", 2))] * 2).region("nm:0:1,0:1,0:1")


def test_only_integers_of_0_or_above_are_ids(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels .*a\.h5:/a hold float32, expected integer ids"):
        expect_ids(open_source(write_hdf5(tmp_path / "a.h5", np.zeros((2, 2, 2), np.float32), "a")), "labels")
    with pytest.raises(DataError, match="labels hold the negative id -3"):
        as_ids(np.array([2, -3]), "labels")
    assert as_ids(np.array([True, False]), "labels").tolist() == [1, 0]
    large = np.array([2**63 + 1, 2**64 - 4, 2**64 - 3, 2**64 - 2, 2**64 - 1], np.uint64)
    assert as_ids(large, "labels").tolist() == [2**63 + 1, 2**64 - 4, 0, 0, 0]
    assert large.tolist()[2] == 2**64 - 3, "the source is written to"
