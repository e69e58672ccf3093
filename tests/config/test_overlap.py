"""Voxels that are used twice, against a count of them."""

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from workflow import ROOT

from kdseg.config import validate
from kdseg.config.data import VolumeOptions
from kdseg.config.overlap import Cover, leaks, phantom_cover, placed, source_of
from kdseg.geometry import Roi

SIDE = 12
boxes = st.builds(
    lambda low, high: Roi(tuple(low), tuple(b - a + 1 for a, b in zip(low, high, strict=True))),
    st.lists(st.integers(0, 4), min_size=3, max_size=3),
    st.lists(st.integers(4, SIDE - 1), min_size=3, max_size=3),
)


def configuration(**evaluate):
    found = yaml.safe_load((ROOT / "config" / "test.yaml").read_text())
    found["volumes"] = {name: {"raw": "a.zarr", "labels": "b.zarr"} for name in ("train", "tune", "test", "more")}
    for model in found["models"].values():
        model["train"] |= {"crop": [4, 4, 4], "validate_shape": [2, 3, 4]}
    found["models"]["student"]["train"]["unlabelled"] = ["more"]
    del found["segment"]["threshold"], found["compare"]
    found["agglomerate"] = {"chunk": [32, 64, 64]}
    found["evaluate"] |= {"volumes": ["test"], "tune_on": "tune", "models": ["student"], **evaluate}
    return validate(found)


def marked(roi):
    found = np.zeros((SIDE,) * 3, bool)
    found[roi.slices()] = True
    return found


@settings(max_examples=50, deadline=None)
@given(boxes, boxes, boxes, boxes)
def test_shares_are_those_of_voxels(train, tune, test, more):
    covers = {"train": Cover("a", train, train), "tune": Cover("a", tune, tune), "test": Cover("a", test, test)}
    covers["more"] = Cover("a", more, None)
    crop = tune.central((2, 3, 4))
    pairs = {
        ("models.teacher.train.volumes", "evaluate.volumes"): (train, test, "test"),
        ("models.student.train.unlabelled", "evaluate.volumes"): (more, test, "test"),
        ("models.teacher.train.validate_on", "evaluate.volumes"): (crop, test, "test"),
        ("evaluate.tune_on", "evaluate.volumes"): (tune, test, "test"),
        ("models.teacher.train.volumes", "models.teacher.train.validate_on"): (train, crop, "tune"),
        ("models.teacher.train.volumes", "evaluate.tune_on"): (train, tune, "tune"),
    }
    found = {}
    for leak in leaks(configuration(), covers):
        options = tuple(option.replace("student.train.v", "teacher.train.v") for option in leak.options)
        found[options] = leak.text
    expected = {}
    for options, (first, second, volume) in pairs.items():
        share = (marked(first) & marked(second)).sum() / marked(second).sum()
        if share:
            expected[options] = volume if share == 1 else f"{100 * share:.2g} % of {volume}"
    assert {options: text.split(" is ")[0] for options, text in found.items()} == expected


def test_a_teacher_that_is_not_scored_counts_and_a_model_of_no_use_does_not():
    roi = Roi((0, 0, 0), (8, 8, 8))
    covers = {name: Cover(name, roi, roi) for name in ("train", "tune", "more")} | {"test": Cover("train", roi, roi)}
    (trained,) = leaks(configuration(), covers)
    assert "the training of student, teacher as a part of train" in trained.text
    (alone,) = leaks(configuration(models=["student_alone"]), covers)
    assert "the training of student_alone as a part of train" in alone.text


def test_a_volume_of_which_nothing_is_known_overlaps_with_itself_alone():
    (chosen, tuned) = leaks(configuration(volumes=["tune"]), {})
    assert chosen.text.startswith("tune is scored, and the checkpoints of student, teacher are chosen there, which")
    assert tuned.text.startswith("tune is scored, and the thresholds are chosen there, which")
    assert leaks(configuration(), {}) == []


def test_the_part_that_thresholds_are_chosen_on_counts_alone():
    roi = Roi((0, 0, 0), (8, 8, 8))
    covers = {"tune": Cover("a", roi, roi), "test": Cover("a", Roi((6, 0, 0), (8, 8, 8)), Roi((6, 0, 0), (8, 8, 8)))}
    part = {"offset": [0, 0, 0], "shape": [6, 8, 8]}
    assert any("thresholds" in leak.text for leak in leaks(configuration(), covers))
    assert not any("thresholds" in leak.text for leak in leaks(configuration(tune_roi=part), covers))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a.h5:/raw", "./b/../a.h5:raw", True),
        ("a.h5:/raw", "a.h5:/labels", False),
        ("a.zarr", "a.zarr/0", True),
        ("a.zarr/raw/", "a.zarr/raw/s0", True),
        ("a.zarr/raw", "a.zarr/other", False),
        ("s3://x/a.zarr", "s3://x/a.zarr/0/", True),
        ("a.tif", "b.tif", False),
    ],
)
def test_addresses_of_one_source(one, other, same):
    assert (source_of(VolumeOptions(raw=one)) == source_of(VolumeOptions(raw=other))) is same


def test_phantoms_of_one_seed_are_parts_of_one_tissue():
    first, second, third = (
        VolumeOptions(phantom={"shape": (8, 8, 8), "seed": seed, "offset": offset})
        for seed, offset in ((0, (0, 0, 0)), (0, (4, 0, 0)), (1, (0, 0, 0)))
    )
    assert source_of(first) == source_of(second) != source_of(third)
    cover = phantom_cover(second, second.phantom)
    assert cover.raw == cover.labels == Roi((4, 0, 0), (8, 8, 8))


def test_labels_are_placed_by_the_voxels_of_the_file():
    found = placed((4, 5, 6), (40.0, 80.0, 8.0), Roi((2, 3, 4), (20, 20, 20)), (30.0, 80.0, 16.0), (10.0, 8.0, 8.0))
    assert found == Roi((3, 3, 3), (4, 5, 6))
