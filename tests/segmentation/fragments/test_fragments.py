"""The stage `fragments`: mask, pre-merge, filters, and warnings of what looks wrong."""

import logging

import numpy as np
import pytest
from command import invoke
from pipeline import NEAREST, STORAGE, FragmentsOptions, perfect_affinities, store, voxels
from scipy.ndimage import gaussian_filter

from kdseg.config.segmentation import MutexOptions, WatershedOptions, WaterzOptions
from kdseg.config.tasks import FragmentsTask
from kdseg.errors import ConfigError, ShapeError
from kdseg.evaluation.metrics.contingency import block_contingency
from kdseg.evaluation.metrics.scores import scores
from kdseg.results.manifests import read
from kdseg.segmentation.fragments import stage as fragments
from kdseg.segmentation.fragments.checks import doubts, thin_halo
from kdseg.volumes.volume import Volume

SHAPE = (40, 64, 48)
OPTIONS = FragmentsOptions(block=(32, 32, 32), halo=(8, 8, 8))
OFFSETS = [list(offset) for offset in NEAREST]


@pytest.fixture(scope="module")
def labels():
    points = np.random.default_rng(1).uniform(0, 1, (24, 3)) * SHAPE
    places = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    return (((places[..., None, :] - points) ** 2).sum(-1).argmin(-1) + 1).astype(np.uint64)


def noisy(labels, offsets=NEAREST, seed=0):
    clean = perfect_affinities(labels, offsets).astype(float)
    return np.clip(0.7 * clean + np.random.default_rng(seed).normal(30, 20, clean.shape), 0, 255).astype(np.uint8)


def run(folder, affinities, options=OPTIONS, mask=None, offsets=OFFSETS):
    folder.mkdir(exist_ok=True)
    source = store(folder / "affinities.json", affinities, offsets=offsets)
    tissue = None if mask is None else store(folder / "mask.json", mask)
    fragments.run(
        FragmentsTask(
            affinities=source, manifest=folder / "fragments.json", options=options, storage=STORAGE, mask=tissue
        )
    )
    return voxels(folder / "fragments.json")


def test_the_mask_is_background_and_the_rest_is_filled(tmp_path, labels):
    affinities = noisy(labels)
    mask = np.full(SHAPE, 7, np.uint8)
    mask[:, 20:40] = 0
    found = run(tmp_path / "a", affinities, mask=mask)
    assert np.array_equal(found > 0, mask > 0)
    assert "mask" in read(tmp_path / "a" / "fragments.json").inputs
    # nothing behind the mask has a say
    affinities[:, :, 20:40] = 255
    assert np.array_equal(found, run(tmp_path / "b", affinities, mask=mask))
    assert run(tmp_path / "c", affinities).all()


def test_a_mask_that_does_not_fit_is_refused(tmp_path, labels):
    affinities = noisy(labels)
    with pytest.raises(ShapeError, match=r"expected integers \(40, 64, 48\)"):
        run(tmp_path, affinities, mask=np.ones((40, 64, 47), np.uint8))
    source = store(tmp_path / "affinities.json", affinities, offsets=OFFSETS)
    moved = store(tmp_path / "moved.json", np.ones(SHAPE, np.uint8), offset=(10.0, 0.0, 0.0))
    with pytest.raises(ShapeError, match="on its grid"):
        fragments.run(
            FragmentsTask(
                affinities=source, manifest=tmp_path / "fragments.json", options=OPTIONS, storage=STORAGE, mask=moved
            )
        )
    assert not (tmp_path / "fragments.json").exists()


def test_a_premerge_leaves_fewer_fragments_and_joins_no_neurons(tmp_path, labels):
    many = run(tmp_path / "a", noisy(labels))
    few = run(tmp_path / "b", noisy(labels), OPTIONS.model_copy(update={"premerge": 0.3}))
    assert len(np.unique(few)) < 0.9 * len(np.unique(many))
    assert scores(block_contingency(few, labels)).voi_merge < scores(block_contingency(many, labels)).voi_merge + 0.01
    # whatever was one fragment of the block is one still
    assert (
        scores(block_contingency(many, few)).voi_split < 1e-9 or scores(block_contingency(many, few)).voi_merge < 1e-9
    )


def test_filters_drop_the_small_and_the_weak(tmp_path, labels):
    affinities = noisy(labels)
    affinities[:, :, :32] = affinities[:, :, :32] * 0.75
    options = OPTIONS.model_copy(update={"watershed": WatershedOptions(boundary=0.3)})
    found = run(tmp_path / "a", affinities, options.model_copy(update={"least_mean": 0.55}))
    assert (found[:, 34:] > 0).mean() > 0.95
    assert (found[:, :30] > 0).mean() < 0.1
    sizes = np.unique(run(tmp_path / "b", affinities, options.model_copy(update={"dust": 900})), return_counts=True)[1]
    assert sizes.min() >= 900


@pytest.mark.parametrize("premerge", [None, 0.2])
def test_sections_need_no_halo_along_z(tmp_path, labels, premerge, monkeypatch):
    watershed = WatershedOptions(per_section=True)
    seen = []
    original = Volume.read
    monkeypatch.setattr(
        Volume, "read", lambda self, roi, channels=None: (seen.append(roi), original(self, roi, channels))[1]
    )
    results = []
    for name, z in (("a", 0), ("b", 8)):
        options = OPTIONS.model_copy(update={"halo": (z, 8, 8), "watershed": watershed, "premerge": premerge})
        results.append(run(tmp_path / name, noisy(labels), options))
    if premerge is None:
        assert np.array_equal(*results)
    read_along_z = {roi.shape[0] for roi in seen if roi.shape[1] < 64}
    assert (40 in read_along_z) == (premerge is not None)


def test_only_the_channels_of_the_method_are_read(tmp_path, labels, monkeypatch):
    offsets = [[0, 0, -5], [0, 0, -1], [-1, 0, 0], [0, -4, 0], [0, -1, 0]]
    affinities = noisy(labels, tuple(map(tuple, offsets)))
    seen = []
    original = Volume.read
    monkeypatch.setattr(
        Volume, "read", lambda self, roi, channels=None: (seen.append(channels), original(self, roi, channels))[1]
    )
    found = run(tmp_path / "a", affinities, offsets=offsets)
    assert {tuple(c) for c in seen if c is not None} == {(2, 4, 1)}
    assert np.array_equal(found, run(tmp_path / "b", affinities[[2, 4, 1]]))
    seen.clear()
    run(tmp_path / "c", affinities, OPTIONS.model_copy(update={"watershed": MutexOptions()}), offsets=offsets)
    assert (0, 1, 2, 3, 4) in {tuple(c) for c in seen if c is not None}
    with pytest.raises(ConfigError, match="along y"):
        run(tmp_path / "d", affinities[:4], offsets=offsets[:4])


@pytest.mark.parametrize("sign", [-1, 1])
def test_affinities_that_are_right_raise_no_doubt(labels, sign):
    offsets = tuple((sign * z, sign * y, sign * x) for z, y, x in NEAREST)
    assert doubts(perfect_affinities(labels, offsets), offsets) == []
    assert doubts(noisy(labels, offsets), offsets) == []
    assert doubts(np.zeros((3, 20, 20, 20), np.uint8), offsets) == []
    assert doubts(np.full((3, 20, 20, 20), 255, np.uint8), offsets) == []


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("affinities_of", [perfect_affinities, noisy])
def test_wrong_sign_order_and_meaning_are_named(labels, affinities_of, sign):
    offsets = tuple((sign * z, sign * y, sign * x) for z, y, x in NEAREST)
    right = affinities_of(labels, offsets)
    (inverted, *_) = doubts(255 - right, offsets)
    assert "boundary" in inverted
    for axis in range(3):
        turned = tuple(tuple(-n for n in offset) if a == axis else offset for a, offset in enumerate(offsets))
        (message,) = doubts(right, turned)
        assert f"the offset along {'zyx'[axis]} has the opposite sign" in message
    (message,) = doubts(right, tuple(tuple(-n for n in offset) for offset in offsets))
    assert "all offsets have the opposite sign" in message
    # given along y, z, x: the channel taken for z is y's, and so on
    (message,) = doubts(right[[1, 0, 2]], offsets)
    assert "the channels taken for z, y, x are those along y, z, x" in message
    (message,) = doubts(right[[1, 2, 0]], offsets)
    assert "the channels taken for z, y, x are those along y, x, z" in message


def test_order_and_signs_are_told_in_blurred_affinities_too(labels):
    right = np.stack([255 - np.clip(gaussian_filter(255.0 - c, 1) / 0.36, 0, 255) for c in perfect_affinities(labels)])
    right = np.clip(right + np.random.default_rng(0).normal(0, 25, right.shape), 0, 255).astype(np.uint8)
    assert doubts(right, NEAREST) == []
    (message,) = doubts(right[[2, 1, 0]], NEAREST)
    assert "the channels taken for z, y, x are those along x, y, z" in message
    (message,) = doubts(right, tuple((-z, -y, -x) for z, y, x in NEAREST))
    assert "all offsets have the opposite sign" in message


def test_a_halo_thinner_than_the_method_needs_is_named():
    big, unit = (200, 200, 200), (1.0, 1.0, 1.0)

    def warning(halo, watershed, voxel_size=unit, offsets=NEAREST, shape=big, **more):
        return thin_halo(FragmentsOptions(halo=halo, watershed=watershed, **more), offsets, voxel_size, shape)

    seeded, flat = WatershedOptions(), WatershedOptions(per_section=True)
    assert warning(FragmentsOptions().halo, seeded) == ""
    assert warning((16, 16, 16), seeded) == ""
    assert "z: 0 of 16" in warning((0, 16, 15), seeded)
    assert "x: 15 of 16" in warning((0, 16, 15), seeded)
    assert "y:" not in warning((0, 16, 15), seeded)
    assert warning((0, 0, 0), seeded, shape=(128, 128, 128)) == ""
    assert warning((0, 16, 16), flat) == ""
    assert "z: 0 of" in warning((0, 16, 16), flat, premerge=0.1)
    assert "y: 8 of 16" in warning((0, 8, 16), flat, voxel_size=(1.0, 4.0, 4.0))
    assert warning((2, 16, 16), seeded, voxel_size=(40.0, 5.0, 5.0)) == ""
    assert "z: 1 of 2" in warning((1, 16, 16), seeded, voxel_size=(40.0, 5.0, 5.0))
    assert warning((8, 8, 8), WaterzOptions()) == ""
    # 8 * 2.1 / 2.4 is a little above 7 in float64
    assert warning((7, 8, 8), WaterzOptions(), voxel_size=(2.4, 2.1, 2.1)) == ""
    assert "z: 6 of 7" in warning((6, 8, 8), WaterzOptions(), voxel_size=(2.4, 2.1, 2.1))
    assert "x: 7 of 8" in warning((8, 8, 7), WaterzOptions())
    far = (*NEAREST, (0, -9, 0))
    assert "y: 8 of 9" in warning((1, 8, 1), MutexOptions(), offsets=far)
    assert warning((1, 9, 1), MutexOptions(), offsets=far) == ""


def test_the_stage_warns(tmp_path, labels, caplog):
    with caplog.at_level(logging.WARNING):
        run(tmp_path, 255 - noisy(labels))
    text = caplog.text
    assert "not `boundary`" in text
    assert "z: 8 of 16" in text


def test_the_command_takes_a_mask(tmp_path, labels):
    source = store(tmp_path / "affinities.json", noisy(labels), offsets=OFFSETS)
    tissue = store(tmp_path / "mask.json", np.zeros(SHAPE, bool))
    words = ["--affinities", source, "--mask", tissue, "--manifest", tmp_path / "fragments.json"]
    words += ["--options", OPTIONS.model_dump_json(), "--storage", STORAGE.model_dump_json()]
    result = invoke("fragments", *map(str, words))
    assert result.exit_code == 0, result.output
    assert not voxels(tmp_path / "fragments.json").any()
