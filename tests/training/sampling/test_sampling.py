"""Crops: a function of seed and number, aligned with their labels, whoever prepares them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_models import NEVER
from toy_volumes import cells, write_volume

from kdseg.config.networks import AugmentOptions, TrainOptions
from kdseg.errors import ConfigError, DataError, KdsegError, MissingError, ShapeError, VoxelSizeError
from kdseg.geometry import Roi
from kdseg.networks.models import Batch
from kdseg.training.augment import Crop
from kdseg.training.sampling import Crops, Source, arrays, loader
from kdseg.training.sampling import crops as sampling_crops
from kdseg.training.sampling.crops import _place, connected_pieces
from kdseg.training.targets import local_shape_descriptors

SHAPE = (16, 20, 24)


def options(**changes: Any) -> TrainOptions:
    values: dict[str, Any] = {"volumes": ("a",), "validate_on": "a", "crop": (6, 8, 8), "steps": 5, "augment": NEVER}
    return TrainOptions.model_validate(values | changes)


def distilling(**changes: Any) -> TrainOptions:
    return options(teacher="t", terms=({"name": "affinity"}, {"name": "soft_affinity"}), **changes)


def coded(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Labels that equal raw, so that any misalignment shows."""
    raw = coded(SHAPE)
    return write_volume(tmp_path / "raw.zarr", raw), write_volume(tmp_path / "labels.zarr", raw.astype(np.uint64))


def item(crops: Crops, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    raw, labels, mask = (t[0] for t in crops[number][:3])
    return raw, labels, mask


def as_bytes(raw: Any) -> np.ndarray:
    return np.round((np.asarray(raw) + 1) * 127.5).astype(int)


def test_a_crop_is_a_function_of_seed_and_number(pair: tuple[Path, Path]) -> None:
    crops, again = (Crops(options(augment=AugmentOptions()), {"a": pair}) for _ in range(2))
    other = Crops(options(augment=AugmentOptions(), seed=1), {"a": pair})
    order = [7, 0, 3, 9]
    items = {i: item(again, i) for i in order}
    for i in sorted(order):
        assert all(torch.equal(a, b) for a, b in zip(item(crops, i), items[i], strict=True))
        assert not torch.equal(crops[i].raw, other[i].raw)
    assert not torch.equal(crops[0].raw, crops[3].raw)


def test_types_and_ranges(pair: tuple[Path, Path]) -> None:
    raw, labels, mask = item(Crops(options(), {"a": pair}), 0)
    assert (raw.shape, labels.shape, mask.shape) == ((1, 6, 8, 8), (6, 8, 8), (6, 8, 8))
    assert (raw.dtype, labels.dtype, mask.dtype) == (torch.float32, torch.int64, torch.bool)
    np.testing.assert_array_equal(as_bytes(raw[0]), labels)
    assert mask.all()


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_ranks_do_not_change_the_crops(pair: tuple[Path, Path], workers: int) -> None:
    crops = Crops(options(batch=4, accumulate=2, augment=AugmentOptions(), loader_workers=workers), {"a": pair})
    whole = list(islice(loader(crops, 3), 4))
    assert all(isinstance(batch, Batch) for batch in whole)
    shares = [list(islice(loader(crops, 3, rank=rank, ranks=2), 4)) for rank in range(2)]
    for number, batch in enumerate(whole):
        for k in range(4):
            expected = item(crops, 3 * 8 + number * 4 + k)
            assert all(torch.equal(a[k], b) for a, b in zip(batch[:3], expected, strict=True))
            shared = shares[k % 2][number]
            assert all(torch.equal(a[k // 2], b) for a, b in zip(shared[:3], expected, strict=True))


def test_processes_share_what_is_kept_and_are_no_forks_of_a_process_with_threads(pair: tuple[Path, Path]) -> None:
    crops = Crops(options(loader_workers=2), {"a": pair})
    made = loader(crops, 0)
    assert len(list(islice(made, 5))) == 5
    assert made.multiprocessing_context.get_start_method() == "forkserver"
    source = crops.supervised[0]
    assert source.labels is not None
    assert all(array._kept is not None and array._kept.is_shared() for array in (source.raw, source.labels.array))


@pytest.mark.parametrize("on_gpu", [False, True])
def test_batches_for_a_gpu_are_pinned(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, on_gpu: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: on_gpu)
    assert loader(Crops(options(), {"a": pair}), 0).pin_memory == on_gpu


def test_a_batch_that_cannot_be_shared_out_is_refused(pair: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match=r"batch of 3 .* 2 processes"):
        loader(Crops(options(batch=3), {"a": pair}), 0, ranks=2)


@pytest.mark.parametrize("first", [(4, 5, 6), (0, 0, 0), (-3, -2, 8)])
def test_labels_of_a_part_are_placed_by_their_offset(tmp_path: Path, first: tuple[int, int, int]) -> None:
    raw = coded(SHAPE)
    padded = np.zeros((28, 32, 36), np.uint64)
    padded[6:22, 6:26, 6:30] = raw
    part = padded[tuple(slice(f + 6, f + 6 + 10) for f in first)]
    voxel_size = (40.0, 9.7, 8.1)
    raw_at = write_volume(tmp_path / "raw.zarr", raw, voxel_size, (80.0, 970.0, 8.1))
    shift = tuple(o + f * v for o, f, v in zip((80.0, 970.0, 8.1), first, voxel_size, strict=True))
    labels_at = write_volume(tmp_path / "labels.zarr", part, voxel_size, shift)
    volume = Source("a", raw_at, labels_at)
    assert volume.labelled_roi == Roi(first, (10, 10, 10)).intersect(Roi((0, 0, 0), SHAPE))
    crops = Crops(options(crop=(8, 12, 8)), {"a": (raw_at, labels_at)})
    partly = 0
    for i in range(10):
        image, labels, mask = (t.numpy() for t in item(crops, i))
        np.testing.assert_array_equal(mask, labels > 0)
        np.testing.assert_array_equal(as_bytes(image[0])[mask], labels[mask])
        assert mask.mean() > 0.3
        partly += not mask.all()
    assert partly == 10  # labels span 10 voxels of y, crops 12


def test_crops_with_few_labels_are_drawn_again(tmp_path: Path) -> None:
    labels = np.zeros((16, 16, 128), np.uint64)
    labels[..., :32] = 5
    raw_at = write_volume(tmp_path / "raw.zarr", coded(labels.shape))
    crops = Crops(options(crop=(16, 16, 16)), {"a": (raw_at, write_volume(tmp_path / "labels.zarr", labels))})
    shares = [crops[i].mask.float().mean().item() for i in range(40)]
    assert np.mean(np.array(shares) >= 0.1) > 0.85  # one draw in four would do, had it no second try
    assert min(shares) < 0.99


def test_volumes_are_drawn_by_size_and_unlabelled_ones_by_their_share(tmp_path: Path) -> None:
    volumes = {}
    for name, depth, value in (("a", 16, 10), ("b", 48, 20), ("c", 16, 30)):
        raw = np.full((depth, 16, 16), value, np.uint8)
        labels = write_volume(tmp_path / f"{name}-labels.zarr", raw.astype(np.uint32))
        volumes[name] = (write_volume(tmp_path / f"{name}.zarr", raw), labels)
    chosen = distilling(volumes=("a", "b"), unlabelled=("c",), unlabelled_fraction=0.25)
    crops = Crops(chosen, volumes)
    seen = {10: 0, 20: 0, 30: 0}
    for i in range(400):
        raw, labels, mask = item(crops, i)
        value = int(as_bytes(raw[0, 0, 0, 0]))
        seen[value] += 1
        assert mask.any() == labels.any() == (value != 30)
    assert seen[30] == 100
    assert seen[20] / seen[10] == pytest.approx(3, rel=0.4)


def test_where_no_term_looks_at_labels_all_volumes_are_drawn_by_size(tmp_path: Path) -> None:
    volumes: dict[str, tuple[Path, Path | None]] = {}
    for name, depth, value in (("a", 16, 10), ("b", 48, 20)):
        volumes[name] = (write_volume(tmp_path / f"{name}.zarr", np.full((depth, 16, 16), value, np.uint8)), None)
    ids = np.ones((16, 16, 16), np.uint32)
    volumes["a"] = (volumes["a"][0], write_volume(tmp_path / "labels.zarr", ids))

    def share(*terms: dict[str, Any]) -> float:
        chosen = options(teacher="t", terms=({"name": "soft_affinity"}, *terms), volumes=("a", "b"))
        crops = Crops(chosen, volumes)
        return float(np.mean([as_bytes(item(crops, i)[0][0, 0, 0, 0]) == 20 for i in range(300)]))

    assert share() == pytest.approx(0.75, abs=0.08)
    assert share({"name": "ifvd"}) == 0.5


@pytest.mark.parametrize(("fraction", "accumulate"), [(0.25, 1), (0.5, 3), (0.3, 1), (1 / 3, 2), (0.0, 1), (1.0, 1)])
def test_each_step_has_as_many_labelled_crops(pair: tuple[Path, Path], fraction: float, accumulate: int) -> None:
    chosen = distilling(unlabelled=("b",), unlabelled_fraction=fraction, batch=2, accumulate=accumulate)
    crops, size = Crops(chosen, {"a": pair, "b": pair}), 2 * accumulate
    places = set()
    for step in range(30):
        without = [crops.is_unlabelled(step * size + k) for k in range(size)]
        assert size - sum(without) == crops.labelled(step)
        assert abs(sum(without) - size * fraction) < 1
        places |= {k for k in range(size) if without[k]}
    taken = sum(size - crops.labelled(step) for step in range(30))
    assert abs(taken - 30 * size * fraction) <= 1
    assert len(places) == (size if fraction else 0)  # in turn on all places, hence on all processes
    for index in range(8):
        assert bool(crops[index].mask.any()) is not crops.is_unlabelled(index)


@pytest.mark.parametrize("size", [(10.0, 10.0, 10.0), (20.0, 10.0, 10.0)])
def test_descriptors_see_what_lies_beyond_the_crop(tmp_path: Path, size: tuple[float, float, float]) -> None:
    """They are those of the whole volume, cut out."""
    raw, labels = cells((40, 48, 48), 40, seed=1)
    at = write_volume(tmp_path / "raw.zarr", raw, size), write_volume(tmp_path / "labels.zarr", labels, size)
    sigma = 20.0
    crops = Crops(options(crop=(6, 8, 8)), {"a": at}, lsd_sigma=sigma)
    plain = Crops(options(crop=(6, 8, 8)), {"a": at})
    whole, _ = local_shape_descriptors(torch.from_numpy(labels.astype(np.int64)), size, sigma)
    for index in range(6):
        batch = crops[index]
        assert batch.descriptors is not None
        for one, other in zip(item(crops, index), item(plain, index), strict=True):
            assert torch.equal(one, other)  # the margin changes nothing else
        _, roi, _ = crops.draw(np.random.default_rng([0, index]), supervised=True)
        expected = whole[(slice(None), *roi.slices())]
        assert (batch.descriptors[0] - expected).abs().max() < 0.02
        cut, _ = local_shape_descriptors(batch.labels[0], size, sigma)
        assert (cut - expected).abs().max() > 0.2  # of the crop alone


def test_descriptors_of_voxels_that_are_nearly_cubes(tmp_path: Path) -> None:
    raw, labels = cells((24, 24, 24), 9, seed=2)
    size = (8.3, 8.0, 8.0)
    at = write_volume(tmp_path / "raw.zarr", raw, size), write_volume(tmp_path / "labels.zarr", labels, size)
    turning = options(crop=(8, 8, 8), augment=NEVER.model_copy(update={"rotate": "zyx"}))
    crops = Crops(turning, {"a": at}, lsd_sigma=22.0)
    assert {tuple(crops[index].labels.shape) for index in range(12)} == {(1, 8, 8, 8)}


def test_sections_are_lost_in_the_crop_and_not_beside_it(tmp_path: Path) -> None:
    raw, labels = cells((40, 40, 40), 9, seed=2)
    at = write_volume(tmp_path / "raw.zarr", raw + 1), write_volume(tmp_path / "labels.zarr", labels)
    losing = options(crop=(4, 8, 8), augment=NEVER.model_copy(update={"missing_section": 1.0}))
    crops = Crops(losing, {"a": at}, lsd_sigma=20.0)
    plain = Crops(options(crop=(4, 8, 8)), {"a": at}, lsd_sigma=20.0)
    for index in range(12):
        assert not torch.equal(crops[index].raw, plain[index].raw)
    moved = options(crop=(4, 8, 8), augment=NEVER.model_copy(update={"misaligned_section": 1.0}))
    crops = Crops(moved, {"a": at}, lsd_sigma=20.0)
    shifted = [not torch.equal(crops[index].raw, plain[index].raw) for index in range(30)]
    assert sum(shifted) > 20  # one in nine shifts is by nothing


def test_descriptors_turn_with_their_crop(tmp_path: Path) -> None:
    raw, labels = cells((20, 20, 20), 9, seed=2)
    at = write_volume(tmp_path / "raw.zarr", raw), write_volume(tmp_path / "labels.zarr", labels)
    turning = options(crop=(20, 20, 20), augment=NEVER.model_copy(update={"flip": True, "rotate": "zyx"}))
    crops = Crops(turning, {"a": at}, lsd_sigma=20.0)
    for index in range(4):  # the crop is the volume: beyond it there is nothing
        batch = crops[index]
        expected, _ = local_shape_descriptors(batch.labels[0], (10.0, 10.0, 10.0), 20.0)
        assert batch.descriptors is not None
        torch.testing.assert_close(batch.descriptors[0], expected, atol=2e-5, rtol=0)


def test_a_turned_crop_has_corners(tmp_path: Path) -> None:
    """All of it shows the volume, where that is large enough."""
    raw, labels = cells((40, 40, 40), 9, seed=2)
    at = write_volume(tmp_path / "raw.zarr", raw), write_volume(tmp_path / "labels.zarr", labels)
    for rotate, sigma in (("yx", None), ("zyx", None), ("yx", 5.0)):
        augmentation = NEVER.model_copy(update={"rotate": rotate, "turn": 1.0})
        crops = Crops(options(crop=(8, 8, 8), augment=augmentation), {"a": at}, lsd_sigma=sigma)
        inside = 0
        for index in range(20):
            batch = crops[index]
            assert batch.labels.shape == (1, 8, 8, 8)
            roi = crops.draw(np.random.default_rng([0, index]), supervised=True)[1].grow(crops.margin)
            if Roi((0, 0, 0), (40, 40, 40)).contains(roi):
                inside += 1
                assert batch.mask.all()
        assert inside > 3
    # the corners of all that descriptors see: 12 voxels, of which the turned crop takes 17
    assert crops.margin == (2, 5, 5)


def test_images_are_not_turned_out_of_their_plane(pair: tuple[Path, Path]) -> None:
    chosen = options(crop=(1, 8, 8), augment=NEVER.model_copy(update={"rotate": "zyx", "turn": 1.0}))
    with pytest.raises(ConfigError, match=r"augment\.turn would leave the section"):
        Crops(chosen, {"a": pair}, offsets=((0, -1, 0), (0, 0, -1)))


def test_pieces_are_of_what_terms_see(pair: tuple[Path, Path]) -> None:
    """They are numbered from 1 without a gap, and none hangs together through the margin alone."""
    terms = ({"name": "affinity"}, {"name": "graph_relation", "taps": ("affinities",)})
    chosen = options(crop=(8, 16, 16), margin=(0, 4, 4), teacher="t", terms=terms)
    crops = Crops(chosen, {"a": pair})
    for index in range(6):
        batch = crops[index]
        assert batch.instances is not None
        known = torch.where(batch.mask, batch.labels, 0)[0, :, 4:-4, 4:-4]
        assert torch.equal(batch.instances[0, :, 4:-4, 4:-4], connected_pieces(known.contiguous()))
        assert batch.instances[0].count_nonzero() == known.count_nonzero()


def test_instances_are_of_ground_truth_that_counts(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    terms = ({"name": "affinity"}, {"name": "graph_relation", "taps": ("affinities",)})
    crops = Crops(options(teacher="t", terms=terms, unlabelled=("b",)), {"a": pair, "b": pair})
    assert crops.pieces

    def masked(crop: Crop, *_: Any, **__: Any) -> Crop:
        mask = crop.mask.copy()
        mask[:, :4] = False
        return Crop(crop.raw, np.ones_like(crop.labels), mask)

    monkeypatch.setattr(sampling_crops, "augment", masked)
    for index in range(4):
        found = crops[index]
        assert found.instances is not None
        if crops.is_unlabelled(index):  # the neurons are a teacher's: all count
            assert (found.instances == 1).all()
        else:
            assert torch.equal(found.instances > 0, found.mask)


def test_large_volumes_are_read_crop_by_crop(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Crops(options(), {"a": pair})
    monkeypatch.setattr(arrays, "IN_MEMORY", 100)
    read = Crops(options(), {"a": pair})
    assert read.supervised[0].raw._kept is None
    for i in range(3):
        assert all(torch.equal(a, b) for a, b in zip(item(kept, i), item(read, i), strict=True))


def test_crops_reach_every_voxel(pair: tuple[Path, Path]) -> None:
    volume = Source("a", *pair)
    rng = np.random.default_rng(0)
    firsts = np.array([_place(rng, volume.labelled_roi, (6, 8, 8), volume.raw.roi) for _ in range(400)])
    assert firsts.min(0).tolist() == [0, 0, 0]
    assert firsts.max(0).tolist() == [10, 12, 16]


@pytest.mark.parametrize(
    ("case", "error", "message"),
    [
        ("absent", MissingError, "no data were given"),
        ("unlabelled", MissingError, "has no labels"),
        ("float raw", DataError, "must be uint8"),
        ("float labels", DataError, "must be integers"),
        ("small", ShapeError, "less than a crop"),
        ("other voxels", VoxelSizeError, "one voxel size"),
        ("label voxels", VoxelSizeError, "labels have voxels"),
        ("between voxels", VoxelSizeError, "whole voxels"),
        ("elsewhere", ShapeError, "do not meet"),
        ("anisotropic", ConfigError, "cubic voxels"),
        ("huge ids", DataError, "2\\*\\*63"),
    ],
)
def test_what_cannot_be_sampled_is_refused(tmp_path: Path, case: str, error: type[KdsegError], message: str) -> None:
    ten, half, far = (10.0, 10.0, 10.0), (0.0, 5.0, 0.0), (0.0, 0.0, 1e4)
    raw = coded(SHAPE) if case != "float raw" else np.zeros(SHAPE, np.float32)
    labels = np.ones(SHAPE, np.float32 if case == "float labels" else np.uint64)
    if case == "huge ids":
        labels[0, 0, 0] = 2**63
    size = (40.0, 10.0, 10.0) if case == "anisotropic" else ten
    raw_at = write_volume(tmp_path / "raw.zarr", raw, size)
    at = {"between voxels": half, "elsewhere": far}.get(case, (0.0, 0.0, 0.0))
    labels_at = write_volume(tmp_path / "labels.zarr", labels, (8.0, 8.0, 8.0) if case == "label voxels" else size, at)
    other = write_volume(tmp_path / "other.zarr", coded(SHAPE), (20.0, 10.0, 10.0))
    volumes: dict[str, Any] = {"a": (raw_at, None if case == "unlabelled" else labels_at), "b": (other, None)}
    chosen = options()
    if case == "absent":
        del volumes["a"]
    if case == "small":
        chosen = options(crop=(17, 8, 8))
    if case == "other voxels":
        chosen = distilling(unlabelled=("b",))
    if case == "anisotropic":
        chosen = options(augment={"rotate": "zyx"})
    with pytest.raises(error, match=message):
        Crops(chosen, volumes)
