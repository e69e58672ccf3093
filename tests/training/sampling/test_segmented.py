"""A segmentation as teacher: its affinities by loops, blockwise, deformed, and from files to a trained student."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray
from pipeline import STORAGE, store
from small_trainings import NEVER, OFFSETS, options
from toy_volumes import cells, write_volume

from kdseg.config.data import VolumeOptions
from kdseg.config.segmentation import WatershedOptions
from kdseg.config.tasks import ConvertTask, TrainTask, VolumeInputs
from kdseg.config.teachers import SegmentationTeacher
from kdseg.errors import ClaimError, ConfigError, DataError
from kdseg.geometry import Roi, Triple
from kdseg.networks.models.device import Ranks
from kdseg.results.curve import read_curve
from kdseg.results.manifests import read
from kdseg.training import stage
from kdseg.training.augment import symmetries
from kdseg.training.run import Data, validation
from kdseg.training.sampling import Crops, Guide, Source
from kdseg.training.sampling.arrays import OUTSIDE, Labels
from kdseg.training.sampling.segmented import seen_voxels, segmented_outputs
from kdseg.training.targets import affinities, boundary_voxels
from kdseg.training.teaching import Teachers
from kdseg.volumes import convert
from kdseg.volumes.volume import open_volume

PAIRS = (*OFFSETS, (2, 0, 0), (-1, 2, 0))
SHAPE = (9, 10, 11)
FIRST = (2, 1, 0)
"""First voxel of the raw data that has labels, which end at its end."""
IDENTITY = symmetries(SHAPE, False, "none")[0]
CUBES, FLAT = (10.0, 10.0, 10.0), (40.0, 10.0, 10.0)


def lumps(shape: Triple, seed: int = 0) -> NDArray[np.uint32]:
    """Objects of a few voxels, some of which are 0."""
    coarse = np.random.default_rng(seed).integers(0, 4, tuple(-(-n // 3) for n in shape), dtype=np.uint32)
    z, y, x = shape
    return coarse.repeat(3, 0).repeat(3, 1).repeat(3, 2)[:z, :y, :x]


def opened(folder: Path, background: str = "unknown", size: Any = CUBES) -> tuple[Labels, NDArray[np.uint32]]:
    raw = write_volume(folder / "raw.zarr", np.zeros(SHAPE, np.uint8), size)
    ids = lumps(tuple(n - f for n, f in zip(SHAPE, FIRST, strict=True)))  # type: ignore[arg-type]
    at = tuple(f * v for f, v in zip(FIRST, size, strict=True))
    path = write_volume(folder / "ids.zarr", ids, size, at, attributes={"background": background})  # type: ignore[arg-type]
    return Labels("a", path, open_volume(raw)), ids


def by_loops(ids: NDArray[Any], known: NDArray[Any], rim: int, radius: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Affinities of all pairs in 0..1 and which are known, one after the other.

    Args:
        radius: of the cube around a voxel that is k voxels wide, (z, y, x), as a function of k.
    """
    far = np.full(ids.shape, rim + 1)
    for p in np.ndindex(*ids.shape):
        for k in range(rim, 0, -1):
            cube = tuple(slice(max(c - r, 0), c + r + 1) for c, r in zip(p, radius(k), strict=True))
            if len(np.unique(ids[cube][known[cube]])) > 1:
                far[p] = k
    values, there_is = np.zeros((len(PAIRS), *ids.shape)), np.zeros((len(PAIRS), *ids.shape), bool)
    for c, p in product(range(len(PAIRS)), np.ndindex(*ids.shape)):
        q = tuple(a + b for a, b in zip(p, PAIRS[c], strict=True))
        if all(0 <= v < n for v, n in zip(q, ids.shape, strict=True)):
            y = float(ids[p] == ids[q] > 0)
            values[(c, *p)] = 0.5 + (y - 0.5) * min(far[p], far[q]) / (rim + 1)
            there_is[(c, *p)] = known[p] and known[q]
    return values, there_is


@pytest.mark.parametrize(
    ("background", "rim", "size"),
    [("unknown", 0, CUBES), ("unknown", 2, CUBES), ("boundary", 1, CUBES), ("object", 2, CUBES), ("unknown", 2, FLAT)],
)
def test_affinities_are_those_of_loops(tmp_path: Path, background: str, rim: int, size: Any) -> None:
    labels, ids = opened(tmp_path, background, size)
    whole = np.zeros(SHAPE, np.int64)
    covered = np.zeros(SHAPE, bool)
    part = tuple(slice(f, None) for f in FIRST)
    whole[part], covered[part] = ids, True
    if background == "unknown":
        covered &= whole > 0
    if background == "object":
        whole[covered & (whole == 0)] = OUTSIDE
    expected, known = by_loops(whole, covered, rim, lambda k: (k if size == CUBES else 0, k, k))
    taught = segmented_outputs(seen_voxels(labels, Roi((0, 0, 0), SHAPE), rim, size), rim, PAIRS, IDENTITY)
    assert 0.05 < known.mean() < 0.95
    np.testing.assert_array_equal(taught.known[0].numpy(), known)
    found = taught.affinities[0, 0].numpy()[known]
    np.testing.assert_allclose(found / 255, expected[known], atol=0.5 / 255 + 1e-9)
    assert len(np.unique(found)) > rim + 1


@pytest.mark.parametrize("rim", [0, 1, 3])
def test_the_border_of_a_crop_changes_nothing(tmp_path: Path, rim: int) -> None:
    labels, _ = opened(tmp_path, "boundary")
    whole = segmented_outputs(seen_voxels(labels, Roi((0, 0, 0), SHAPE), rim, CUBES), rim, PAIRS, IDENTITY)
    rng = np.random.default_rng(1)
    for _ in range(20):
        first = [int(rng.integers(0, n - 4)) for n in SHAPE]
        roi = Roi((first[0], first[1], first[2]), (4, 4, 4))
        found = segmented_outputs(seen_voxels(labels, roi.grow((2, 3, 3)), rim, CUBES), rim, PAIRS, IDENTITY)
        for one, other in ((found.affinities, whole.affinities), (found.known, whole.known)):
            inside = one[..., 2:-2, 3:-3, 3:-3]
            assert torch.equal(inside, other[(..., *roi.slices())])


def test_in_a_stack_distances_are_within_sections(tmp_path: Path) -> None:
    """Each section has objects of its own, so that beyond it all is another object."""
    ids = lumps((6, 24, 24)) + 100 * np.arange(6, dtype=np.uint32)[:, None, None]
    paths = write_volume(tmp_path / "raw.zarr", ids.astype(np.uint8)), write_volume(tmp_path / "ids.zarr", ids)
    given = options(
        terms=[{"name": "soft_affinity"}], teacher="lab", teaching={"outputs": "stored"}, augment=NEVER,
        crop=[1, 12, 12], validate_shape=[6, 24, 24],
    ).train  # fmt: skip
    flat, guide = ((0, -1, 0), (0, 0, -1)), Guide(segmentation=paths[1], rim=1)
    taught = Crops(given, {"a": (paths[0], None)}, {"a": guide}, flat)[0].taught
    assert taught is not None
    assert taught.affinities.max() == 255
    data = Data({"a": (paths[0], None)}, {"a": guide}, ())
    teachers, ranks = Teachers((), None, flat), Ranks(torch.device("cpu"))  # type: ignore[arg-type]
    judged = validation(data, given, teachers, flat, WatershedOptions(), ranks)
    assert judged.truth.boundary is not None
    assert torch.equal(judged.truth.boundary, boundary_voxels(judged.truth.labels, "yx"))


@pytest.fixture
def volume(tmp_path: Path) -> tuple[Path, Path]:
    ids = lumps((20, 20, 20))
    return write_volume(tmp_path / "raw.zarr", ids.astype(np.uint8)), write_volume(tmp_path / "ids.zarr", ids)


def taught_options(how: str | None = None, **changes: Any) -> Any:
    augment = NEVER | {"flip": True, "rotate": "zyx"} | ({} if how is None else {how: 1.0})
    values = {"teacher": "lab", "teaching": {"outputs": "stored"}, "crop": [8, 8, 8], "augment": augment}
    return options(terms=[{"name": "affinity"}, {"name": "soft_affinity"}], **values | changes).train


@pytest.mark.parametrize("how", [None, "elastic", "misaligned_section"])
@pytest.mark.parametrize("sigma", [None, 20.0])
def test_a_turned_and_deformed_crop_has_the_affinities_of_its_labels(
    volume: tuple[Path, Path], how: str | None, sigma: float | None
) -> None:
    guides = {"a": Guide(segmentation=volume[1])}
    crops = Crops(taught_options(how), {"a": volume}, guides, PAIRS, lsd_sigma=sigma)
    beyond = 0
    for number in range(12):
        batch = crops[number]
        assert batch.taught is not None
        target, known = affinities(batch.labels, PAIRS, mask=batch.mask)
        inside = torch.zeros_like(known)
        for channel, pair in enumerate(affinities(torch.ones_like(batch.labels), PAIRS)[1][0]):
            inside[0, channel] = pair
        assert torch.equal(batch.taught.known & inside, known)
        assert torch.equal((batch.taught.affinities[:, 0] == 255)[known], target[known])
        beyond += int((batch.taught.known & ~inside).sum())
    assert (beyond > 0) == (how is None or sigma is not None)


def test_distances_turn_with_the_crop(tmp_path: Path) -> None:
    labels, _ = opened(tmp_path)
    seen = seen_voxels(labels, Roi((0, 0, 0), SHAPE), 2, CUBES)
    plain = segmented_outputs(seen, 2, ((0, 0, -1), (0, 0, 1)), IDENTITY)
    mirrored = next(s for s in symmetries(SHAPE, True, "none") if s.flip == (False, False, True))
    flipped = segmented_outputs(seen, 2, ((0, 0, -1), (0, 0, 1)), mirrored)
    assert torch.equal(flipped.affinities[:, :, 0].flip(-1), plain.affinities[:, :, 1])
    assert torch.equal(flipped.known[:, 0].flip(-1), plain.known[:, 1])


def test_neurons_of_volumes_without_labels_are_its_objects(volume: tuple[Path, Path]) -> None:
    guide = Guide(instances=volume[1], segmentation=volume[1])
    given = options(
        terms=[{"name": "soft_affinity"}, {"name": "graph_relation", "taps": ["affinities"]}], teacher="lab",
        teaching={"outputs": "stored", "instances": "segmentation"}, augment=NEVER,
    )  # fmt: skip
    batch = Crops(given.train, {"a": (volume[0], None)}, {"a": guide}, PAIRS)[0]
    assert not batch.mask.any()
    np.testing.assert_array_equal(batch.labels, ((batch.raw[:, 0] + 1) * 127.5).round().long())
    assert batch.instances is not None
    assert torch.equal(batch.instances > 0, batch.labels > 0)


def test_crops_are_drawn_where_it_says_something(tmp_path: Path) -> None:
    raw = write_volume(tmp_path / "raw.zarr", np.zeros((90, 12, 12), np.uint8))
    ids = write_volume(tmp_path / "ids.zarr", np.ones((10, 12, 12), np.uint8), offset=(500.0, 0.0, 0.0))
    given = options(terms=[{"name": "soft_affinity"}], teacher="lab", teaching={"outputs": "stored"}, augment=NEVER)
    crops = Crops(given.train, {"a": (raw, None)}, {"a": Guide(segmentation=ids)}, PAIRS)
    for number in range(20):
        taught = crops[number].taught
        assert taught is not None
        assert taught.known[0, 1, :, 1:].all()


def test_its_own_objects_judge(tmp_path: Path) -> None:
    raw = write_volume(tmp_path / "raw.zarr", np.zeros(SHAPE, np.uint8))
    labels, ids = opened(tmp_path / "more", "object")
    guide = Guide(segmentation=tmp_path / "more" / "ids.zarr", rim=1)
    made = taught_options(validate_shape=[4, 4, 4])
    teachers = Teachers((), None, PAIRS)  # type: ignore[arg-type]
    data, ranks = Data({"a": (raw, None)}, {"a": guide}, ()), Ranks(torch.device("cpu"))
    found = validation(data, made, teachers, PAIRS, WatershedOptions(), ranks)
    assert found.roi == labels.roi.central((4, 4, 4))
    np.testing.assert_array_equal(found.labels, ids[found.roi.shift((-2, -1, 0)).slices()])
    assert found.agreement
    assert found.truth.known.all()
    with pytest.raises(DataError, match="one object at most"):
        validation(data, taught_options(validate_shape=[1, 1, 1]), teachers, PAIRS, WatershedOptions(), ranks)


def test_a_segmentation_trains_a_student_without_a_label(tmp_path: Path) -> None:
    """Plain zarr without a voxel size; what it is made of and how sure it is are part of the result."""
    raw, ids = cells((20, 24, 24), 8)
    lab = tmp_path / "lab.zarr"
    zarr.create_array(str(lab), data=ids.astype(np.uint16), chunks=(8, 8, 8))
    zarr.create_array(str(tmp_path / "em.zarr"), data=raw, chunks=(8, 8, 8))
    volumes, converted = {"a": VolumeInputs(raw=tmp_path / "raw.json")}, tmp_path / "lab" / "segmentation.json"
    source = VolumeOptions(raw=str(tmp_path / "em.zarr"), labels=str(lab), voxel_size=CUBES)
    for kind, manifest in (("raw", volumes["a"].raw), ("labels", converted)):
        convert.run(ConvertTask(manifest=manifest, kind=kind, options=source, storage=STORAGE))  # type: ignore[arg-type]

    def train(rim: int, **more: Any) -> None:
        made = options(
            terms=[{"name": "soft_affinity"}], teacher="lab", teaching={"outputs": "stored"}, steps=60,
            validate_every=20, learning_rate=2e-2, ema=0.0, crop=[12, 12, 12], augment=NEVER | {"elastic": 0.3},
        )  # fmt: skip
        values = {"foreign": {"lab": SegmentationTeacher(segmentation={"a": str(lab)}, rim=rim)}} | more
        stored = {"lab": {"a": {"segmentation": converted}}}
        task = {"manifest": tmp_path / "model.json", "name": "m", "options": made, "volumes": volumes, "stored": stored}
        stage.run(TrainTask(**task, offsets=OFFSETS, device="cpu", **values))

    train(1)
    found = read(tmp_path / "model.json")
    assert found.inputs.keys() == {"a/raw", "lab/a/segmentation.json"}
    rows = read_curve(tmp_path / "model.training" / "curve.csv")
    agreed = [float(row["agreement_voi"]) for row in rows if row["agreement_voi"]]
    assert found.stats["best_agreement_voi"] == pytest.approx(min(agreed), rel=1e-5)
    losses = [float(row["soft_affinity"]) for row in rows]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    with pytest.raises(ClaimError, match=r"options\.foreign"):
        train(2)
    with pytest.raises(ConfigError, match="not its options: give them as `foreign`"):
        train(1, foreign={})


def test_a_segmentation_that_does_not_meet_the_volume_is_refused(tmp_path: Path) -> None:
    raw = write_volume(tmp_path / "raw.zarr", np.zeros(SHAPE, np.uint8))
    away = write_volume(tmp_path / "ids.zarr", lumps(SHAPE), offset=(500.0, 0.0, 0.0))
    with pytest.raises(DataError, match="do not meet its raw data"):
        Source("a", raw, None, Guide(segmentation=away))
    manifest = store(tmp_path / "float.json", np.zeros(SHAPE, np.float32))
    with pytest.raises(DataError, match="must be integers"):
        Source("a", raw, None, Guide(segmentation=read(manifest).result))
