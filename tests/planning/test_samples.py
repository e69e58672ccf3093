"""Samples of volumes that stages are timed on."""

import h5py
import numpy as np
import pytest
import tifffile
from workflow import ROOT

from kdseg.config import VolumeOptions, load
from kdseg.planning.bench import Bench
from kdseg.planning.extents import read_extents
from kdseg.planning.jobs import Job, jobs
from kdseg.planning.measure import CHAIN, measure
from kdseg.planning.samples import MOST, Samples, blurred_affinities, growing, part_of, sample_shapes
from kdseg.volumes.inputs import open_input

NEAREST = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))


@pytest.mark.parametrize(
    ("shape", "shard", "expected"),
    [
        ((64, 160, 160), (64, 64, 64), ((64, 64, 64), (64, 128, 128))),
        ((10**5, 10**5, 10**5), (128, 128, 128), ((128, 128, 128), (128, 256, 256))),
        ((20, 40, 50), (64, 64, 64), ((20, 40, 50), (20, 40, 50))),
        ((32, 64, 64), (32, 32, 32), ((32, 32, 32), (32, 64, 64))),
        ((10**4, 10**4, 10**4), (256, 256, 256), ((256, 256, 256), (256, 256, 512))),
        ((10**4, 10**4, 10**4), (512, 512, 512), ((512, 512, 512), (512, 512, 1024))),
        ((10**4, 10**4, 10**4), (128, 256, 256), ((128, 256, 256), (128, 256, 512))),
        ((200, 300, 260), (256, 256, 256), ((200, 256, 256), (200, 300, 256))),
    ],
    ids=["half", "large", "less than a shard", "half is a shard", "256", "512", "128 x 256", "1 shard along z"],
)
def test_samples_are_whole_shards_within_the_volume(shape, shard, expected):
    assert sample_shapes(shape, shard) == expected


def test_a_part_lies_in_the_middle_and_begins_at_a_shard():
    options = VolumeOptions(raw="a.tif", roi={"offset": [5, 0, 7], "shape": [64, 200, 200]})
    part = part_of(options, (64, 200, 200), (64, 64, 64), (64, 64, 64))
    assert (part.roi.offset, part.roi.shape) == ((5, 64, 71), (64, 64, 64))


@pytest.mark.parametrize(
    ("shape", "within", "expected"),
    [
        ((64, 128, 128), None, [(256, 128, 128), (256, 256, 256)]),
        ((40, 64, 64), (40, 250, 250), [(40, 128, 128), (40, 250, 250)]),
        ((40, 64, 64), (40, 64, 64), []),
    ],
    ids=["of any size", "within a volume", "all of a volume"],
)
def test_larger_samples_have_four_times_the_voxels(shape, within, expected):
    assert list(growing(shape, within)) == [shape, *expected]
    assert all(np.prod(one) <= MOST for one in growing(shape, within))


def test_a_part_of_a_phantom_may_be_larger_than_it():
    options = VolumeOptions(phantom={"shape": (32, 32, 32), "offset": (0, 500, 0)})
    part = part_of(options, (32, 32, 32), (64, 64, 64), (32, 32, 32))
    assert (part.phantom.offset, part.phantom.shape) == ((0, 500, 0), (64, 64, 64))


@pytest.mark.slow
def test_a_sample_that_is_larger_than_its_volume_has_its_mirror_images_with_objects_of_their_own(tmp_path):
    config = load(ROOT / "config" / "test.yaml")
    samples = Samples(Bench(tmp_path, 1), config)
    options = VolumeOptions(phantom={"shape": (32, 32, 32)})
    parts = [samples.dataset("x", options, kind) for kind in ("raw", "labels")]
    for kind, before, after in zip(("raw", "labels"), parts, samples.mirrored(*parts, (64, 32, 48)), strict=True):
        part, whole = open_input(before).volume, open_input(after).volume
        voxels, whole = part.read(part.roi), whole.read(whole.roi)
        if kind == "labels":
            names = np.unique(voxels)
            voxels = np.searchsorted(names[names > 0], voxels) + (voxels > 0)
        images = voxels, voxels[:, :, :-17:-1], voxels[::-1], voxels[::-1, :, :-17:-1]
        found = whole[:32, :, :32], whole[:32, :, 32:], whole[32:, :, :32], whole[32:, :, 32:]
        more = int(voxels.max()) + 1 if kind == "labels" else 0
        for number, (image, one) in enumerate(zip(images, found, strict=True)):
            assert np.array_equal(one, np.where(image > 0, image + number * more, 0))
        assert kind == "raw" or voxels.any()


def test_affinities_are_high_within_objects_and_low_across():
    labels = np.ones((16, 16, 16), np.uint64)
    labels[:, :, 8:] = 2
    found = blurred_affinities(labels, NEAREST)
    assert found[2, 2:, :, 8].mean() < found[2, 2:, :, 4].mean() - 60
    assert abs(found[1, 2:, 2:, 8].mean() - found[1, 2:, 2:, 4].mean()) < 30


@pytest.mark.slow
def test_affinities_lie_where_their_labels_lie(tmp_path):
    config = load(ROOT / "config" / "test.yaml")
    samples = Samples(Bench(tmp_path, 1), config)
    options = VolumeOptions(phantom={"shape": (32, 32, 32), "offset": (0, 500, 0)})
    raw, labels = (samples.dataset("x", options, kind) for kind in ("raw", "labels"))
    found = open_input(samples.affinities(raw, labels)).volume
    assert found.offset == (0, 5000, 0)


@pytest.mark.slow
def test_stages_of_a_run_are_timed_on_samples():
    config = load(ROOT / "config" / "test.yaml")
    extents = read_extents(config)
    wanted = [job for job in jobs(config, extents) if job.stage in CHAIN or job.manifest == "student_alone/model.json"]
    found = measure(config, extents, wanted, cores=1)
    assert not found.missing
    assert set(found.timings) >= {*CHAIN, "train student_alone", "validate student_alone"}
    assert all(one.start_s > 0 or name.startswith("validate") for name, one in found.timings.items())


@pytest.mark.slow
def test_samples_grow_where_a_volume_is_so_large_that_small_ones_tell_nothing_of_it(monkeypatch):
    monkeypatch.setattr("kdseg.planning.samples.MOST", 2**20)
    config = load(ROOT / "config" / "test.yaml")
    extents = read_extents(config)
    job = Job("edges", "student/tune/edges.json", work={"edges": 10**15})
    found = measure(config, extents, [job], cores=1)
    first = sample_shapes(extents[config.evaluate.volumes[0]].raw, config.storage.shard)[1]
    # longer than a start differs by chance, the work of the first sample is not
    assert np.prod(found.sample) >= 4 * np.prod(first)
    assert not found.missing


@pytest.mark.slow
def test_labels_are_timed_where_they_lie_beside_raw_data_of_another_format(tmp_path):
    voxels = np.random.default_rng(0).integers(1, 9, (32, 64, 64), np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = voxels
        file["raw"].attrs["resolution"] = (10.0, 10.0, 10.0)
    folder = tmp_path / "sections.of 2020"
    folder.mkdir()
    for z, section in enumerate(voxels):
        tifffile.imwrite(folder / f"{z:03}.tif", section)
    config = load(ROOT / "config" / "test.yaml")
    options = VolumeOptions(raw=f"{tmp_path}/a.h5:/raw", labels=str(folder))
    config = config.model_copy(update={"volumes": {**config.volumes, "file": options}})
    extents = read_extents(config)
    job = Job("convert", "volumes/file/labels.json", work={"convert labels of 2020": voxels.size})
    found = measure(config, extents, [job], cores=1)
    assert (list(found.timings), found.missing) == (["convert labels of 2020"], {})
