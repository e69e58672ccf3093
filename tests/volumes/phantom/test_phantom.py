"""Tests of the neurite phantom."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from kdseg.config.data import PhantomOptions
from kdseg.errors import ShapeError
from kdseg.geometry import Roi, Triple
from kdseg.volumes.phantom import VERSION, phantom_block
from kdseg.volumes.phantom.tissue import tissue

ISOTROPIC = PhantomOptions(seed=11)
SECTIONS = PhantomOptions(seed=11, voxel_size=(40.0, 8.0, 8.0))
BIG = {
    "isotropic": Roi((-17, -30, 41), (40, 56, 48)),
    "sections": Roi((-9, -30, 41), (20, 56, 48)),
}
OPTIONS = {"isotropic": ISOTROPIC, "sections": SECTIONS}

Block = tuple[NDArray[np.uint8], NDArray[np.uint64]]


@pytest.fixture(scope="module")
def blocks() -> dict[str, Block]:
    return {name: phantom_block(OPTIONS[name], roi) for name, roi in BIG.items()}


@pytest.fixture(scope="module")
def large() -> Block:
    return phantom_block(ISOTROPIC, Roi((0, 0, 0), (72, 96, 96)))


def boundary(labels: NDArray[np.uint64]) -> NDArray[np.bool_]:
    found = np.zeros(labels.shape, bool)
    for axis in range(3):
        differs = np.diff(labels.astype(np.int64), axis=axis) != 0
        low, high = [slice(None)] * 3, [slice(None)] * 3
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        found[tuple(low)] |= differs
        found[tuple(high)] |= differs
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["isotropic", "sections"])
@given(data=st.data())
@settings(deadline=None, max_examples=8, phases=[Phase.generate])  # a block takes long: no shrinking
def test_block_alone_is_part_of_bigger_block(name: str, blocks: dict[str, Block], data: st.DataObject) -> None:
    roi, options = BIG[name], OPTIONS[name]
    start = [data.draw(st.integers(0, n - 1)) for n in roi.shape]
    shape = [data.draw(st.integers(1, min(n - s, 24))) for n, s in zip(roi.shape, start, strict=True)]
    # The same voxels, named from another origin.
    offset = [data.draw(st.integers(-(10**6), 10**6)) for _ in range(3)]
    moved = options.model_copy(update={"offset": tuple(offset)})
    first = [o + s - m for o, s, m in zip(roi.offset, start, offset, strict=True)]
    raw, labels = phantom_block(moved, Roi((first[0], first[1], first[2]), (shape[0], shape[1], shape[2])))
    part = tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))
    np.testing.assert_array_equal(raw, blocks[name][0][part])
    np.testing.assert_array_equal(labels, blocks[name][1][part])


@pytest.mark.parametrize("name", ["isotropic", "sections"])
def test_values_do_not_depend_on_the_tiling(name: str) -> None:
    # Longer than a region, and cut where no leaf, group or region of the whole ends.
    roi = {"isotropic": Roi((1, 2, 3), (7, 11, 150)), "sections": Roi((1, 2, 3), (37, 11, 13))}[name]
    axis = max(range(3), key=lambda a: roi.shape[a])
    raw, labels = phantom_block(OPTIONS[name], roi)
    for start, length in ((0, 33), (33, 1), (34, roi.shape[axis] - 34)):
        offset, shape = list(roi.offset), list(roi.shape)
        offset[axis], shape[axis] = offset[axis] + start, length
        part = phantom_block(OPTIONS[name], Roi((offset[0], offset[1], offset[2]), (shape[0], shape[1], shape[2])))
        cut = [slice(None)] * 3
        cut[axis] = slice(start, start + length)
        np.testing.assert_array_equal(part[0], raw[tuple(cut)])
        np.testing.assert_array_equal(part[1], labels[tuple(cut)])


def test_values_are_those_of_this_version() -> None:
    # Phantoms that are not stored are computed anew for years: whoever changes a value must raise the version.
    assert VERSION == 1
    roi = Roi((-17, 30, 41), (9, 20, 30))
    found = [
        hashlib.sha256(part.tobytes()).hexdigest()[:16] for o in OPTIONS.values() for part in phantom_block(o, roi)
    ]
    assert found == ["e3bed5beb2b698e7", "3c5e069d41708fb8", "b0ec262a3a71c41a", "87d149cac8be134e"]


def test_far_blocks_share_no_object(blocks: dict[str, Block]) -> None:
    far = phantom_block(ISOTROPIC, Roi((10**5, -(10**5), 10**5), (16, 16, 16)))
    assert not np.isin(far[1], blocks["isotropic"][1]).any()


def test_seeds_differ(blocks: dict[str, Block]) -> None:
    raw, labels = phantom_block(ISOTROPIC.model_copy(update={"seed": 12}), BIG["isotropic"])
    assert not np.isin(labels, blocks["isotropic"][1]).any()
    assert abs(np.corrcoef(raw.ravel(), blocks["isotropic"][0].ravel())[0, 1]) < 0.1


def test_types_and_range(blocks: dict[str, Block]) -> None:
    for name, (raw, labels) in blocks.items():
        assert raw.shape == labels.shape == BIG[name].shape
        assert (raw.dtype, labels.dtype) == (np.uint8, np.uint64)
        assert labels.min() > 0
        assert labels.max() < 2**63


def test_many_objects_fill_the_block(large: Block) -> None:
    _, counts = np.unique(large[1], return_counts=True)
    assert (counts > 100).sum() > 50
    assert counts.max() < 0.5 * large[1].size


def test_membranes_are_dark_but_not_all_of_them(large: Block) -> None:
    raw, labels = large
    membrane = boundary(labels)
    assert raw[~membrane].mean() - raw[membrane].mean() > 20
    # No threshold tells membranes from the rest: some fade, and mitochondria are dark too.
    best = max(np.mean((raw < level) == membrane) for level in range(60, 180, 5))
    assert best < 0.93
    assert 15 < raw.std() < 45
    assert 100 < raw.mean() < 160
    assert np.mean((raw == 0) | (raw == 255)) < 1e-3


def test_objects_are_connected(large: Block) -> None:
    # A piece that touches a face may be joined outside; all others must be the one piece of their object.
    _, labels = large
    inside = np.zeros(labels.shape, bool)
    inside[1:-1, 1:-1, 1:-1] = True
    stray = 0
    for label in np.unique(labels):
        pieces, count = ndimage.label(labels == label)
        size = np.bincount(pieces.ravel())
        size[0] = 0
        for piece in range(1, count + 1):
            if size[piece] < size.max() and inside[pieces == piece].all():
                stray += size[piece]
    assert stray < 0.005 * labels.size


def displacement(moved: NDArray[np.uint64], still: NDArray[np.uint64]) -> tuple[int, int]:
    """Return the step (y, x) of at most 8 voxels that makes most labels of two sections agree."""
    middle = moved[8:-8, 8:-8]
    size_y, size_x = middle.shape
    steps = [(y, x) for y in range(-8, 9) for x in range(-8, 9)]
    return max(
        steps, key=lambda s: np.mean(middle == still[8 + s[0] : 8 + s[0] + size_y, 8 + s[1] : 8 + s[1] + size_x])
    )


def test_sections_are_displaced_and_vary() -> None:
    # The same tissue, as sections 40 nm apart and as every fifth plane of isotropic voxels.
    isotropic = SECTIONS.model_copy(update={"voxel_size": (8.0, 8.0, 8.0)})
    raw, labels = phantom_block(SECTIONS, Roi((0, 0, 0), (10, 80, 80)))
    smooth, still = phantom_block(isotropic, Roi((0, 0, 0), (46, 80, 80)))
    steps = np.array([displacement(a, b) for a, b in zip(labels, still[::5], strict=True)])
    assert len(np.unique(steps[:, 0])) > 2
    assert len(np.unique(steps[:, 1])) > 2
    assert np.abs(steps).max() < 8
    for k, (y, x) in enumerate(steps):
        inside, moved = (slice(8, -8), slice(8, -8)), (slice(8 + y, 72 + y), slice(8 + x, 72 + x))
        assert np.mean(labels[k][inside] == still[5 * k][moved]) > 0.9
        # The raw data moves with the labels.
        pairs = raw[k][inside].ravel(), smooth[5 * k][moved].ravel()
        assert np.corrcoef(*pairs)[0, 1] > 0.5
    assert raw.mean((1, 2)).std() > 1.5 * smooth[::5].mean((1, 2)).std()


def test_objects_do_not_depend_on_the_window() -> None:
    # Trees reach far out of a block: a window that cut them would give them other labels.
    key = np.uint64(10)  # one whose trees leave the first window
    small = tissue(key, (0.0, 0.0, 0.0), (100.0, 100.0, 2000.0))
    large = tissue(key, (-1500.0, -1500.0, -1500.0), (1600.0, 1600.0, 3500.0))
    owners = {tuple(start) + tuple(axis): o for start, axis, o in zip(*(large[k] for k in (0, 1, 4)), strict=True)}
    compared = 0
    for start, axis, owner in zip(small.start, small.axis, small.owner, strict=True):
        if (np.abs(start - [50.0, 50.0, 1000.0]) < [500.0, 500.0, 1400.0]).all():
            assert owners[tuple(start) + tuple(axis)] == owner
            compared += 1
    assert compared > 500


@pytest.mark.parametrize("shape", [(0, 4, 4), (4, -1, 4), (4, 4, 0)])
def test_empty_block_is_refused(shape: Triple) -> None:
    with pytest.raises(ShapeError, match="empty"):
        phantom_block(ISOTROPIC, Roi((0, 0, 0), shape))
