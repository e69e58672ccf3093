"""Augmentation: what moves, moves together; affinities commute with symmetries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from toy_models import NEVER

from kdseg.config.networks import AugmentOptions
from kdseg.errors import DataError
from kdseg.training.augment import (
    Crop,
    Symmetry,
    augment,
    draw_symmetry,
    flip_affinities,
    misalign,
    rotate_affinities,
    symmetries,
    transform_affinities,
)
from kdseg.training.augment.elastic import SIGMA, deform, turn, turn_margin
from kdseg.training.augment.intensity import add_noise, blank_sections, blur, change_intensity
from kdseg.training.targets import affinities

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (-2, 0, 0), (0, -2, 0), (0, 0, -2))
MIXED = ((1, 0, 0), (0, -1, 0), (0, 0, 1), (0, 3, -3), (0, 3, 3))
ALWAYS = AugmentOptions(rotate="zyx", elastic=1, intensity=1, noise=1, blur=1, missing_section=1, misaligned_section=1)


def augmented(original: Crop, seed: int, options: AugmentOptions) -> Crop:
    rng = np.random.default_rng(seed)
    z, y, x = original.raw.shape
    return augment(original, draw_symmetry((z, y, x), rng, options), rng, options, isotropic=True)


def crop(seed: int = 0, shape: tuple[int, int, int] = (12, 12, 12)) -> Crop:
    rng = np.random.default_rng(seed)
    raw = rng.uniform(-1, 1, shape).astype(np.float32)
    return Crop(raw, rng.integers(0, 5, shape), rng.random(shape) < 0.8)


def marked(shape: tuple[int, int, int]) -> Crop:
    """A crop whose raw value says which label it is."""
    rng = np.random.default_rng(0)
    labels = rng.integers(1, 200, shape)
    return Crop((labels / 255).astype(np.float32), labels, np.ones(shape, bool))


def target(labels: np.ndarray, offsets: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    return affinities(torch.from_numpy(np.ascontiguousarray(labels)), offsets)[0].numpy()


LABELS = hnp.arrays(
    np.int64, hnp.array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=5), elements=st.integers(0, 2)
)


@settings(deadline=None, max_examples=40)
@given(LABELS, st.integers(0, 2), st.sampled_from([OFFSETS, ((1, 0, 0), (0, 2, 0), (0, 0, -3))]))
def test_affinities_commute_with_flips(labels: np.ndarray, axis: int, offsets: tuple) -> None:
    flipped = flip_affinities(target(labels, offsets), offsets, axis)
    np.testing.assert_array_equal(flipped, target(np.flip(labels, axis), offsets))


@settings(deadline=None, max_examples=40)
@given(LABELS, st.integers(-1, 5), st.sampled_from([OFFSETS, MIXED]))
def test_affinities_commute_with_rotations(labels: np.ndarray, turns: int, offsets: tuple) -> None:
    rotated = rotate_affinities(target(labels, offsets), offsets, turns)
    np.testing.assert_array_equal(rotated, target(np.rot90(labels, turns, axes=(1, 2)), offsets))


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.int64, (4, 4, 4), elements=st.integers(0, 2)), st.sampled_from(symmetries((4, 4, 4), True, "zyx")))
def test_affinities_commute_with_every_symmetry(labels: np.ndarray, symmetry: Symmetry) -> None:
    moved = transform_affinities(target(labels, OFFSETS), OFFSETS, symmetry)
    np.testing.assert_array_equal(moved, target(symmetry.apply(labels), OFFSETS))


def test_flipping_the_voxels_alone_would_be_wrong() -> None:
    labels = crop().labels
    naive = np.flip(target(labels, OFFSETS), 2)
    assert not np.array_equal(naive, target(np.flip(labels, 1), OFFSETS))


def test_offsets_without_a_partner_are_refused() -> None:
    with pytest.raises(DataError, match="no channel"):
        flip_affinities(np.zeros((1, 4, 4, 4)), ((0, 1, 2),), axis=1)


@pytest.mark.parametrize(
    ("flip", "rotate", "count"),
    [
        (False, "none", 1),
        (True, "none", 8),
        (False, "yx", 4),
        (True, "yx", 16),
        (False, "zyx", 24),
        (True, "zyx", 48),
    ],
)
def test_symmetries_are_distinct_and_as_many_as_the_group_has(flip: bool, rotate: str, count: int) -> None:
    probe = np.arange(27).reshape(3, 3, 3)
    found = {symmetry.apply(probe).tobytes() for symmetry in symmetries((3, 3, 3), flip, rotate)}
    assert len(found) == len(symmetries((3, 3, 3), flip, rotate)) == count
    if not flip:  # rotations have no mirror images: the handedness of three axes stays
        for symmetry in symmetries((3, 3, 3), flip, rotate):
            matrix = np.eye(3)[list(symmetry.axes)] * np.where(symmetry.flip, -1, 1)[:, None]
            assert np.linalg.det(matrix) == pytest.approx(1)


def test_torch_takes_a_crop_of_one_section_whichever_way_it_is_turned() -> None:
    probe = np.arange(16).reshape(1, 4, 4)
    for symmetry in symmetries((1, 4, 4), True, "zyx"):
        turned = torch.from_numpy(np.ascontiguousarray(symmetry.apply(probe)))
        assert turned.flatten().sort().values.tolist() == list(range(16))


def test_axes_of_different_length_are_not_exchanged() -> None:
    assert {symmetry.axes for symmetry in symmetries((2, 3, 3), True, "zyx")} == {(0, 1, 2), (0, 2, 1)}


def test_augment_is_a_pure_function_of_crop_and_generator() -> None:
    original = crop()
    copy = Crop(*(a.copy() for a in original[:3]))
    for options in (AugmentOptions(), ALWAYS):
        one = augmented(original, 7, options)
        two = augmented(original, 7, options)
        other = augmented(original, 8, options)
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
        assert not np.array_equal(one.raw, other.raw)
        assert all(np.array_equal(a, b) for a, b in zip(original[:3], copy[:3], strict=True))
        assert [a.dtype for a in one[:3]] == [np.float32, np.int64, bool]
        assert all(a.shape == (12, 12, 12) for a in one[:3])
        assert np.abs(one.raw).max() <= 1.0001


def test_no_augmentation_changes_nothing() -> None:
    original = crop()
    result = augmented(original, 0, NEVER)
    assert all(np.array_equal(a, b) for a, b in zip(original, result, strict=True))


def test_symmetries_move_image_and_labels_together() -> None:
    options = NEVER.model_copy(update={"flip": True, "rotate": "zyx"})
    original, moved = marked((5, 5, 5)), 0
    for seed in range(8):
        result = augmented(original, seed, options)
        np.testing.assert_allclose(result.raw * 255, result.labels, atol=1e-3)
        moved += not np.array_equal(result.labels, original.labels)
    assert moved >= 6


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_deformation_moves_image_and_labels_alike(axis: int) -> None:
    """On a ramp along an axis both tell where a voxel came from."""
    shape = (20, 24, 28)
    n = shape[axis]
    ramp = np.broadcast_to(np.arange(n).reshape([-1 if a == axis else 1 for a in range(3)]), shape)
    original = Crop((ramp / n).astype(np.float32), ramp + 1, np.ones(shape, bool))
    deformed = deform(original, np.random.default_rng(1), in_plane=False)
    came_from = deformed.raw * n
    assert np.abs(came_from - (deformed.labels - 1)).max() <= 0.5 + 1e-3
    moved = np.abs(came_from - ramp)
    assert 0.5 < moved.max() <= 2 * SIGMA + 1e-3
    flat = deform(original, np.random.default_rng(1), in_plane=True)
    assert np.allclose(flat.raw * n, ramp, atol=1e-3) == (axis == 0)


def test_voxels_from_outside_do_not_count() -> None:
    original = Crop(np.zeros((16, 16, 16), np.float32), np.ones((16, 16, 16), np.int64), np.ones((16, 16, 16), bool))
    deformed = deform(original, np.random.default_rng(0), in_plane=False)
    assert deformed.mask[4:-4, 4:-4, 4:-4].all()
    assert not deformed.mask.all()


def places(shape: tuple[int, int, int]) -> Crop:
    """A crop whose labels say where they are."""
    labels = 1 + np.arange(np.prod(shape)).reshape(shape)
    return Crop((labels / labels.size).astype(np.float32), labels, np.ones(shape, bool))


@pytest.mark.parametrize(("rotate", "planes"), [("yx", [(1, 2)]), ("zyx", [(0, 1), (0, 2), (1, 2)])])
def test_a_turn_keeps_distances_and_the_margin_fills_the_corners(rotate: str, planes: list) -> None:
    inner = (10, 12, 12) if rotate == "yx" else (12, 12, 12)
    margin = turn_margin(inner, rotate)
    assert margin[0] == (0 if rotate == "yx" else 3)
    shape = tuple(n + 2 * m for n, m in zip(inner, margin, strict=True))
    core = tuple(slice(m, m + n) for m, n in zip(margin, inner, strict=True))
    seen, corners = set(), 0
    for seed in range(40):
        turned = turn(places(shape), np.random.default_rng(seed), rotate)
        assert turned.mask[core].all()
        corners += not turned.mask.all()
        source = np.stack(np.unravel_index(turned.labels[core] - 1, shape), -1).reshape(-1, 3)
        here = np.indices(shape)[(slice(None), *core)].reshape(3, -1).T
        assert np.array_equal(turned.places[core].reshape(-1), turned.labels[core].reshape(-1) - 1)
        step = here - here[0]
        moved = source - source[0]
        # each end is rounded to a voxel along two axes
        assert np.abs(np.linalg.norm(step, axis=1) - np.linalg.norm(moved, axis=1)).max() <= 2 * np.sqrt(0.5)
        changed = tuple(np.flatnonzero((step != moved).any(0)))
        seen.add(changed)
    assert seen == set(planes) | ({()} & seen)
    assert corners > 30  # without a margin there would be nothing to see there


def test_image_and_labels_turn_alike() -> None:
    ramp = np.broadcast_to(np.arange(24), (8, 24, 24))
    original = Crop((ramp / 24).astype(np.float32), ramp + 1, np.ones(ramp.shape, bool))
    for seed in range(5):
        turned = turn(original, np.random.default_rng(seed), "yx")
        assert np.abs(turned.raw * 24 - (turned.labels - 1))[turned.mask].max() <= 0.5 + 1e-3


def test_what_was_outside_of_a_turned_crop_stays_outside() -> None:
    rng = np.random.default_rng(3)
    turned = turn(places((8, 16, 16)), rng, "yx")
    deformed = deform(turned, rng, in_plane=True)
    assert (~turned.mask).any()
    assert np.array_equal(deformed.places >= 0, deformed.mask)
    assert np.array_equal(deformed.places[deformed.mask], deformed.labels[deformed.mask] - 1)


def test_misaligned_sections_take_their_labels_along() -> None:
    seen = set()
    for seed in range(40):
        original = marked((10, 40, 40))
        result = misalign(original, np.random.default_rng(seed))
        np.testing.assert_allclose(np.where(result.mask, result.raw * 255, 0), result.labels, atol=1e-3)
        changed = [z for z in range(10) if not np.array_equal(result.labels[z], original.labels[z])]
        if changed:
            seen.add("one" if len(changed) == 1 else "rest")
            assert changed == list(range(changed[0], changed[-1] + 1))
            assert len(changed) == 1 or changed[-1] == 9
            (step,) = {shift_of(original.labels[z], result.labels[z]) for z in changed}
            assert max(map(abs, step)) <= 4
        assert (result.labels[~result.mask] == 0).all()
    assert seen == {"one", "rest"}


def shift_of(before: np.ndarray, after: np.ndarray) -> tuple[int, int]:
    """Find by how much a section moved: all that is left of it must agree."""
    n = len(before)
    found = [
        (y, x)
        for y in range(-6, 7)
        for x in range(-6, 7)
        if np.array_equal(
            after[max(y, 0) : n + min(y, 0), max(x, 0) : n + min(x, 0)],
            before[max(-y, 0) : n + min(-y, 0), max(-x, 0) : n + min(-x, 0)],
        )
    ]
    assert len(found) == 1
    return found[0]


def test_one_or_two_neighbouring_sections_go_missing() -> None:
    lengths = set()
    for seed in range(20):
        raw = crop().raw
        result = blank_sections(raw, np.random.default_rng(seed))
        missing = [z for z in range(12) if np.ptp(result[z]) == 0]
        lengths.add(len(missing))
        assert missing == list(range(missing[0], missing[0] + len(missing)))
        kept = [z for z in range(12) if z not in missing]
        np.testing.assert_array_equal(result[kept], raw[kept])
    assert lengths == {1, 2}
    assert blank_sections(np.ones((1, 2, 2), np.float32), np.random.default_rng(0)).shape == (1, 2, 2)


def test_intensities_change_monotonically_within_a_section() -> None:
    raw = np.sort(crop().raw.reshape(12, -1), axis=1).reshape(12, 12, 12)
    for seed in range(6):
        result = change_intensity(raw, np.random.default_rng(seed))
        assert np.abs(result).max() <= 1.0001
        assert (np.diff(result.reshape(12, -1), axis=1) >= -1e-6).all()
        assert not np.allclose(result, raw, atol=1e-2)


def test_sections_differ_half_of_the_time() -> None:
    raw = np.zeros((12, 4, 4), np.float32)
    varied = [np.ptp(change_intensity(raw, np.random.default_rng(seed))) > 1e-5 for seed in range(40)]
    assert 10 <= sum(varied) <= 30


def test_noise_has_the_width_that_is_said() -> None:
    widths = [add_noise(np.zeros((20, 20, 20), np.float32), np.random.default_rng(s)).std() for s in range(10)]
    assert min(widths) > 0.018
    assert max(widths) < 0.165
    assert np.ptp(widths) > 0.03


def test_blur_is_a_gaussian() -> None:
    raw = np.zeros((13, 13, 13), np.float32)
    raw[6, 6, 6] = 1
    result = blur(raw, np.random.default_rng(0), in_plane=False)
    assert result.sum() == pytest.approx(1, abs=1e-4)
    sigma = np.random.default_rng(0).uniform(0.5, 1.2)
    assert result[6, 6, 7] / result[6, 6, 6] == pytest.approx(np.exp(-1 / (2 * sigma**2)), rel=1e-4)
    np.testing.assert_allclose(result, result.transpose(1, 2, 0), atol=1e-7)
    flat = blur(raw, np.random.default_rng(0), in_plane=True)
    assert not flat[:6].any()
    assert flat[6].sum() == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(
        blur(np.ones((4, 5, 6), np.float32), np.random.default_rng(0), in_plane=False), 1, atol=1e-5
    )
