"""Downsampling against loops over cubes, and levels on disk against the whole array at once."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import product
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from kdseg.errors import DataError, MissingError, ShapeError
from kdseg.geometry import Block, Roi
from kdseg.running.runner import Place
from kdseg.volumes.pyramid import build_level, downsample_block, downsample_mean, downsample_mode
from kdseg.volumes.volume import create_volume, open_volume

SHAPES = st.tuples(*[st.integers(1, 5)] * 3)


def cubes(data: NDArray[Any]) -> dict[tuple[int, ...], list[int]]:
    """The voxels that each halved voxel stands for."""
    shape = [-(-n // 2) for n in data.shape]
    return {
        p: [int(v) for v in data[tuple(slice(2 * i, 2 * i + 2) for i in p)].ravel()]
        for p in product(*(range(n) for n in shape))
    }


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(["u1", "u2", "u4"]).flatmap(lambda t: arrays(t, SHAPES)))
def test_mean_is_the_exact_mean_rounded_half_up(data: NDArray[Any]) -> None:
    result = downsample_mean(data)
    assert result.dtype == data.dtype
    for p, voxels in cubes(data).items():
        assert result[p] == floor(Fraction(sum(voxels), len(voxels)) + Fraction(1, 2))


def test_mean_rounds_up_at_one_half() -> None:
    assert downsample_mean(np.array([[[0, 1], [0, 1]], [[0, 1], [0, 1]]], np.uint8)).item() == 1
    assert downsample_mean(np.full((2, 2, 2), 255, np.uint8)).item() == 255


@settings(deadline=None, max_examples=50)
@given(arrays(np.uint64, SHAPES, elements=st.sampled_from([0, 1, 2, 3, 2**63 + 1, 2**64 - 1])))
def test_mode_is_the_most_frequent_id_and_of_equals_the_smallest_but_zero(labels: NDArray[Any]) -> None:
    result = downsample_mode(labels)
    assert result.dtype == labels.dtype
    for p, voxels in cubes(labels).items():
        counts = Counter(voxels)
        most = max(counts.values())
        tied = sorted(i for i, n in counts.items() if n == most)
        assert result[p] == next((i for i in tied if i > 0), 0)


def test_wrong_types_and_shapes_are_refused() -> None:
    with pytest.raises(DataError, match="float32"):
        downsample_mean(np.zeros((2, 2, 2), np.float32))
    with pytest.raises(DataError, match="uint64"):
        downsample_mean(np.zeros((2, 2, 2), np.uint64))
    with pytest.raises(DataError, match="int64"):
        downsample_mode(np.zeros((2, 2, 2), np.int64))
    for halve in (downsample_mean, downsample_mode):
        with pytest.raises(ShapeError, match="halve"):
            halve(np.zeros((2, 2), np.uint8))
        with pytest.raises(ShapeError, match="halve"):
            halve(np.zeros((2, 0, 2), np.uint8))


@pytest.mark.parametrize(("method", "workers"), [("mean", 1), ("mode", 2)])
def test_levels_on_disk_are_those_of_the_whole_array(tmp_path: Path, method: Any, workers: int) -> None:
    shape = (21, 37, 18)
    dtype: type[np.unsignedinteger[Any]] = np.uint8 if method == "mean" else np.uint64
    expected: NDArray[Any] = np.random.default_rng(0).integers(0, 5, shape).astype(dtype)
    path = tmp_path / "v.zarr"
    volume = create_volume(
        path, shape=shape, dtype=dtype, chunk=(4, 4, 4), shard=(8, 8, 8), voxel_size=(4.0, 1.0, 1.0), levels=4
    )
    volume.array[...] = expected
    for level in (1, 2, 3):
        build_level(path, method, Place(workers), tmp_path / "done", level)
    for level in range(1, 4):
        expected = (downsample_mean if method == "mean" else downsample_mode)(expected)
        coarse = open_volume(path, level=level)
        assert coarse.shape == expected.shape
        assert coarse.voxel_size == (4.0 * 2**level, 2.0**level, 2.0**level)
        np.testing.assert_array_equal(coarse.read(coarse.roi), expected)


def test_a_slab_does_not_depend_on_the_chunk_of_the_finer_level(tmp_path: Path) -> None:
    data = np.random.default_rng(1).integers(0, 255, (13, 8, 8), dtype=np.uint8)
    for chunk in (1, 3, 6):
        path = tmp_path / f"{chunk}.zarr"
        volume = create_volume(
            path, shape=data.shape, dtype="u1", chunk=(chunk, 8, 8), shard=(6, 8, 8), voxel_size=(1, 1, 1), levels=2
        )
        volume.array[...] = data
        for z in (0, 6):
            downsample_block(path, 1, "mean", Block((z // 6, 0, 0), Roi((z, 0, 0), (min(6, 7 - z), 4, 4))))
        coarse = open_volume(path, level=1)
        np.testing.assert_array_equal(coarse.read(coarse.roi), downsample_mean(data))


def test_more_levels_than_the_volume_has(tmp_path: Path) -> None:
    path = tmp_path / "v.zarr"
    create_volume(path, shape=(4, 4, 4), dtype="u1", chunk=(4, 4, 4), shard=(4, 4, 4), voxel_size=(1, 1, 1))
    with pytest.raises(MissingError, match="1 resolution levels"):
        build_level(path, "mean", Place(1), tmp_path / "done", 1)
