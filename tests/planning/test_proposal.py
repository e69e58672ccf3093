"""Parts, networks, blocks and steps that a configuration is made of, for volumes of any shape."""

import math
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from toy_volumes import cells, write_hdf5

from kdseg.config import Config, validate
from kdseg.config.questions import InitTask
from kdseg.config.shipped import cards
from kdseg.errors import ShapeError
from kdseg.geometry import Roi, is_multiple
from kdseg.networks.checkpoint import load_model
from kdseg.planning.check import check
from kdseg.planning.proposal.data import look
from kdseg.planning.proposal.grey import grey_of
from kdseg.planning.proposal.network import FAR, WIDTHS, blocks_for, shape_for
from kdseg.planning.proposal.pace import NEW, VALIDATIONS, Budget, Pace, fitting
from kdseg.planning.proposal.proposal import SHIPPED, propose_training
from kdseg.planning.proposal.split import split
from kdseg.planning.proposal.text import scalar, text
from kdseg.planning.timings import Timing
from kdseg.volumes.bounded import MOST_BYTES, box_of_labels, decoded_bytes, sampled
from kdseg.volumes.resemblance import alike
from kdseg.volumes.sources import open_source

SHAPES = st.tuples(*[st.integers(1, 3000)] * 3)
SIZES = st.tuples(*[st.floats(1, 100)] * 3)
OFFSETS = st.tuples(*[st.integers(0, 50)] * 3)


@given(SHAPES, OFFSETS, SIZES)
def test_parts_lie_side_by_side_in_the_region(shape, offset, size):
    region = Roi(offset, shape)
    if max(shape) < 32 or min(shape) < 4:
        with pytest.raises(ShapeError, match="too few"):
            split(region, size)
        return
    axis, train, tune, test = split(region, size)
    assert all(region.contains(part) for part in (train, tune, test))
    assert train.end[axis] == tune.offset[axis]
    assert tune.end[axis] == test.offset[axis]
    assert min(tune.shape[axis], test.shape[axis]) >= 8
    assert tune.shape[axis] <= test.shape[axis] <= tune.shape[axis] + 1
    assert abs(train.shape[axis] - tune.shape[axis] - test.shape[axis]) <= 1
    used = Roi(train.offset, tuple(b - a for a, b in zip(train.offset, test.end, strict=True)))
    assert used.size == train.size + tune.size + test.size  # nothing in between, nothing twice
    assert used.shape == tuple(min(n, 1024 if one == axis else 512) for one, n in enumerate(shape))
    longer = [one for one in range(3) if shape[one] >= 64 and shape[one] * size[one] > 1.02 * shape[axis] * size[axis]]
    assert not longer


def test_equally_long_axes_are_cut_across_all_sections():
    assert split(Roi((0, 0, 0), (125, 1250, 1250)), (40.0, 4.0, 4.0)).axis == 1
    assert split(Roi((0, 0, 0), (30, 256, 200)), (40.0, 4.0, 4.0)).axis == 1  # 30 sections are too few to be cut
    assert split(Roi((0, 0, 0), (400, 256, 256)), (40.0, 4.0, 4.0)).axis == 0


@given(SIZES, st.tuples(*[st.integers(4, 600)] * 3))
def test_networks_fit_voxels_and_volumes(size, train):
    shape = shape_for(size, train)
    pooled = tuple(math.prod(step[axis] for step in shape.downsample) for axis in range(3))
    assert is_multiple(shape.crop, pooled)
    assert all(c <= n for c, n in zip(shape.crop, train, strict=True))
    assert math.prod(shape.crop) <= 2 * 64**3
    spacing = [s * p for s, p in zip(size, pooled, strict=True)]
    at_first = max(size) / min(size)
    assert max(spacing) / min(spacing) <= max(2, at_first / 4 + 1e-6)  # rounder where it can be
    assert shape.offsets[:3] == ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
    assert all(abs(n) < c or abs(n) == 1 for step in shape.offsets for n, c in zip(step, shape.crop, strict=True))
    assert [kernel == 1 for kernel in shape.kernels[0]] == [s >= 2 * min(size) for s in size]


@settings(deadline=None)
@given(SIZES, SHAPES)
def test_blocks_are_whole_shards_and_tiles(size, largest):
    blocks = blocks_for(size, largest)
    values = {
        "storage": {"chunk": blocks.chunk, "shard": blocks.shard},
        "volumes": {"a": {"phantom": {"shape": largest}}},
        "pretrained": {"a": "x.safetensors"},
        "predict": {"block": blocks.predict, "tile": blocks.tile},
        "fragments": {"block": blocks.fragments, "halo": blocks.halo},
        "edges": {"block": blocks.shard},
        "segment": {"block": blocks.shard, "threshold": 0.5},
        "evaluate": {"models": ["a"], "volumes": ["a"], "block": blocks.shard},
    }
    Config.model_validate(values)
    assert is_multiple(blocks.tile, (4, 4, 4))


def test_the_network_for_cubes_is_the_shipped_one():
    """Else no training could start from it."""
    loaded, shape = load_model(cards()[SHIPPED].file), shape_for((10.0, 10.0, 10.0), (100, 100, 100))
    assert loaded.options.widths == WIDTHS
    assert shape.even
    assert loaded.offsets == shape.offsets == FAR == Config.model_fields["offsets"].default


def test_as_many_steps_as_fit():
    step, validation = Timing(start_s=7, unit_s=0.5), Timing(unit_s=3.0)
    found = fitting(Budget(100, 20, 5000), step, validation, "x")
    assert found.steps == 100  # of 140 that fit
    assert found.said == "about 1.45 min on this machine (x), 0.5 s per step"  # 7 + 50 + 10 * 3 s
    assert VALIDATIONS == 10
    assert fitting(NEW, Timing(unit_s=100), validation, "x").steps == NEW.least
    assert fitting(NEW, Timing(unit_s=1e-4), validation, "x").steps == NEW.most
    assert fitting(Budget(1, 200, 5000), step, validation, "x").steps == 200  # validations alone take longer


@given(st.text() | st.floats(allow_nan=False) | st.lists(st.floats(allow_nan=False, allow_infinity=False)))
@example("a\nb: c # d")
def test_any_value_can_be_written_in_a_line(value):
    written = scalar(value)
    assert len(written.splitlines()) <= 1 or not isinstance(value, str)
    assert yaml.safe_load(f"a: {written} # comment\n") == {"a": value}


def test_few_voxels_are_decoded_whatever_the_chunks(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, chunks in (("small", (16, 64, 64)), ("large", (1024, 512, 512))):
            file.create_dataset(name, (10**4, 10**5, 10**5), np.uint8, chunks=chunks)
    small, large = (open_source(f"{tmp_path}/a.h5:/{name}") for name in ("small", "large"))
    assert len(list(sampled(small, small.roi))) == 5
    assert list(sampled(large, large.roi)) == []  # one would be 268 MB, and touch others
    assert box_of_labels(small, small.roi) == small.roi
    assert (
        decoded_bytes(small, Roi((0, 0, 0), (1, 1, 1))) <= MOST_BYTES < decoded_bytes(large, Roi((0, 0, 0), (1, 1, 1)))
    )


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 5)] * 3), st.tuples(*[st.integers(1, 6)] * 3), st.integers(0, 99))
def test_the_box_of_labels_is_the_smallest(first, extent, seed):
    labels = np.zeros((12, 13, 14), np.uint64)
    box = Roi(first, extent)
    labels[box.slices()] = np.random.default_rng(seed).integers(0, 2, extent)
    places = np.argwhere(labels)

    with TemporaryDirectory() as folder:
        source = open_source(write_hdf5(Path(folder) / "a.h5", labels, "labels"))
        found = box_of_labels(source, source.roi)
    if not len(places):
        assert found is None
    else:
        assert (found.offset, found.end) == (tuple(places.min(0)), tuple(places.max(0) + 1))


def test_padding_tells_nothing_of_grey_values():
    rng = np.random.default_rng(0)
    part, padding = rng.integers(100, 200, (1, 64, 64), np.uint8), np.zeros((1, 64, 64), np.uint8)
    assert grey_of(part.dtype, [padding, part, padding]) == grey_of(part.dtype, [part])
    assert grey_of(part.dtype, [padding]).flat
    assert grey_of(part.dtype, []).flat
    assert grey_of(np.dtype(np.float32), [np.full((1, 4, 4), np.nan)]).flat


def test_ids_are_told_from_grey_values():
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, (1, 64, 64), np.uint8)
    ids = np.kron(rng.integers(0, 9, (1, 4, 4)), np.ones((1, 16, 16), int)).astype(np.uint64)
    assert (alike([grey]) or 1) < 0.1
    assert (alike([ids]) or 0) > 0.85
    assert alike([np.zeros((1, 4, 4))]) is None


def test_a_range_for_a_network_has_its_mean_and_contrast(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(30000, 2000, (1, 200, 200)).astype(np.uint16)
    low, high = grey_of(values.dtype, [values]).range_like_known()
    seen = (values.astype(float) - low) * 255 / (high - low)
    assert abs(seen.mean() - 128) < 1
    assert abs(seen.std() - 33) < 1
    alike_already = rng.normal(120, 35, (1, 200, 200)).clip(0, 255).astype(np.uint8)
    assert grey_of(alike_already.dtype, [alike_already]).range_like_known() is None


@pytest.fixture
def labelled(tmp_path):
    """Return what is known of a small volume with labels."""
    raw, labels = cells((40, 48, 64), 20)
    file = tmp_path / "a.h5"
    pair = {"raw": raw, "labels": labels}
    at = {name: write_hdf5(file, voxels, name, resolution=(10.0,) * 3) for name, voxels in pair.items()}
    return look(InitTask(**at))


def test_on_a_gpu_more_crops_are_learned_from_at_a_time(labelled):
    trained = {gpu: _read(text(propose_training(labelled, gpu=gpu), Pace(100, ""), Path("a"))) for gpu in (False, True)}
    batches = {gpu: config.models["network"].train.batch for gpu, config in trained.items()}
    assert batches == {False: 2, True: 8}
    assert trained[True].models["network"].train.loader_workers > 0


def test_thin_parts_to_tune_on_are_told(labelled):
    said = "the best one is partly luck"
    assert said in text(propose_training(labelled, gpu=False), Pace(100, ""), Path("a"))
    large = replace(labelled, region=Roi((0, 0, 0), (64, 256, 64)))
    assert said not in text(propose_training(large, gpu=False), Pace(100, ""), Path("a"))
    coarse = replace(large, region=Roi((0, 0, 0), (16, 256, 64)), voxel_size=(40.0, 10.0, 10.0))
    assert not propose_training(coarse, gpu=False).thin


def test_secrets_of_addresses_are_not_written(labelled):
    url = "https://me:pass-word@host/a.zarr/raw?signature=abcdef"
    options = labelled.options.model_copy(update={"raw": url, "labels": url.replace("raw", "ids")})
    written = text(propose_training(replace(labelled, options=options), gpu=False), Pace(100, ""), Path("a"))
    assert not [secret for secret in ("pass-word", "abcdef", "//me") if secret in written]
    assert "# ${NAME}: set an environment variable" in written
    assert "results: results/a " in written


def test_a_comment_stays_one(labelled):
    """Whatever is in a name, or in what a failed timing says."""
    pace = Pace(100, "no\nresults: elsewhere\x85\u2028  x: y")
    assert _read(text(propose_training(labelled, gpu=False), pace, Path("b\ntitle: x\rdevice: cuda\x07"))).title == "a"


def _read(written):
    return validate(yaml.safe_load(written))


@settings(deadline=None, max_examples=30)
@given(
    st.tuples(st.integers(4, 300), st.integers(4, 400), st.integers(4, 400)),
    st.tuples(*[st.sampled_from([4.0, 8.0, 10.0, 10.3, 25.0, 40.0])] * 3),
    st.sampled_from([np.uint8, np.int16, np.uint16]),
)
def test_what_is_proposed_can_be_run_whatever_the_data(shape, size, dtype):
    assume(max(shape) >= 32)
    with TemporaryDirectory() as folder:
        with h5py.File(Path(folder) / "a.h5", "w") as file:
            for name, kind in (("raw", dtype), ("labels", np.uint32)):
                file.create_dataset(name, shape, kind, chunks=(4, 4, 4), fillvalue=1).attrs["resolution"] = size
        addresses = {name: f"{folder}/a.h5:/{name}" for name in ("raw", "labels")}
        proposal = propose_training(look(InitTask(**addresses)), gpu=False)
        found = check(_read(text(proposal, Pace(100, ""), Path("a"))))
        assert [(one.option, one.error) for one in found] == [
            (f"volumes.{name}.labels", False) for name in ("train", "tune", "test")
        ]  # of which all is one neuron
