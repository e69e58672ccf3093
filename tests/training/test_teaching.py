"""Teachers: online or stored, one or several, averaged over mirror images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_models import NEVER
from toy_volumes import write_volume

from kdseg.config.networks import HeadOptions, TrainOptions, UNetOptions
from kdseg.errors import ConfigError, DataError, KdsegError, MissingError, ShapeError, VoxelSizeError
from kdseg.geometry import Roi
from kdseg.networks.models import Batch, Network, Outputs, Taught, Widths, build, fold, widths
from kdseg.prediction.averaging import averaged_over, returned, tta_mean, turned
from kdseg.prediction.tiles import predict_roi, predictor
from kdseg.training.augment import symmetries
from kdseg.training.sampling import Crops, Guide, collate, loader
from kdseg.training.sampling.taught import deformed_outputs
from kdseg.training.targets import affinities
from kdseg.training.teaching import CERTAIN, Teachers, combined, teachers_of
from kdseg.volumes.volume import create_volume

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, -3, 0), (0, 0, -3), (-2, 0, 0), (0, 2, 0), (0, 0, 2), (-3, 0, 0))
CPU = torch.device("cpu")
SHAPE = (20, 20, 20)
TURNING = NEVER.model_copy(update={"flip": True, "rotate": "zyx"})


def network(seed: int = 0, heads: HeadOptions | None = None) -> Network:
    torch.manual_seed(seed)
    return fold(build(UNetOptions(widths=(3, 4)), heads or HeadOptions(), OFFSETS))


def options(**changes: Any) -> TrainOptions:
    values: dict[str, Any] = {
        "volumes": ("a",),
        "validate_on": "a",
        "crop": (8, 8, 8),
        "steps": 5,
        "augment": TURNING,
        "teacher": "t",
        "terms": ({"name": "affinity"}, {"name": "soft_affinity"}),
        "teaching": {"outputs": "stored"},
    }
    return TrainOptions.model_validate(values | changes)


class OfLabels(Network):
    """A teacher that knows: its raw data are labels, and its affinities are exact in the whole array it sees."""

    halo, stride = (0, 0, 0), (1, 1, 1)

    def forward(self, raw: Tensor) -> Outputs:
        target, _ = affinities(raw[:, 0].round().long(), OFFSETS)
        return Outputs({"affinities": torch.where(target, 8.0, -8.0)}, ())


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 3, SHAPE).astype(np.uint8)


def store(path: Path, values: np.ndarray, offsets: Any = OFFSETS, voxel_size: Any = (10.0, 10.0, 10.0)) -> Path:
    volume = create_volume(
        path, shape=values.shape[1:], dtype=values.dtype, chunk=(20, 20, 20), shard=(20, 20, 20),
        voxel_size=voxel_size, channels=len(values), attributes={"offsets": [list(o) for o in offsets]},
    )  # fmt: skip
    volume.write(volume.roi, values)
    return path


def stored_truth(folder: Path, labels: np.ndarray) -> Guide:
    target, _ = affinities(torch.from_numpy(labels.astype(np.int64)), OFFSETS)
    return Guide((store(folder / "affinities.zarr", np.where(target, 255, 0).astype(np.uint8)),))


def test_stored_affinities_are_those_of_the_turned_crop(tmp_path: Path, labels: np.ndarray) -> None:
    """Whatever flip or quarter turn a crop takes, a perfect teacher's stored pairs are those of its labels."""
    pair = (write_volume(tmp_path / "raw.zarr", labels), write_volume(tmp_path / "l.zarr", labels.astype(np.uint64)))
    crops = Crops(options(), {"a": pair}, {"a": stored_truth(tmp_path, labels)}, OFFSETS)
    beyond = 0
    for number in range(25):
        batch = crops[number]
        assert batch.taught is not None
        target, inside = affinities(batch.labels, OFFSETS)
        # pairs that leave the crop but not the volume are known too
        assert batch.taught.known[inside].all()
        beyond += int((batch.taught.known & ~inside).sum())
        np.testing.assert_array_equal((batch.taught.affinities[:, 0] == 255)[inside], target[inside])
    assert beyond


@pytest.mark.parametrize("how", ["elastic", "misaligned_section"])
@pytest.mark.parametrize("sigma", [None, 20.0])
def test_stored_affinities_of_a_deformed_crop_are_known_where_they_are_exact(
    tmp_path: Path, labels: np.ndarray, how: str, sigma: float | None
) -> None:
    """Labels are random: a pair that is mistaken for another one is wrong half of the time."""
    pair = (write_volume(tmp_path / "raw.zarr", labels), write_volume(tmp_path / "l.zarr", labels.astype(np.uint64)))
    given = options(augment=TURNING.model_copy(update={how: 1.0}), crop=(10, 10, 10))
    crops = Crops(given, {"a": pair}, {"a": stored_truth(tmp_path, labels)}, OFFSETS, lsd_sigma=sigma)
    shares = []
    for number in range(25):
        batch = crops[number]
        assert batch.taught is not None
        target, inside = affinities(batch.labels, OFFSETS)
        known = batch.taught.known & inside
        np.testing.assert_array_equal((batch.taught.affinities[:, 0] == 255)[known], target[known])
        assert not (batch.taught.known & ~batch.mask[:, None]).any()  # what came from outside was never stored
        shares.append(known.sum() / inside.sum())
    assert 0.1 < np.mean(shares) < 0.95


def test_voxels_of_other_rows_are_no_neighbours() -> None:
    """The last voxel of a row and the first one of the next follow each other in memory only."""
    places = np.arange(6).reshape(1, 2, 3)
    places[0, 1, 1:] = (2, 3)  # shows the end of the first row, then the begin of the second one
    taught = Taught(
        torch.zeros((1, 1, 1, 1, 2, 3), dtype=torch.uint8),
        torch.ones((1, 1, 1, 2, 3), dtype=torch.bool),
        torch.zeros(1, 0, 1, 2, 3),
    )
    known = deformed_outputs(taught, places, ((0, 0, -1),)).known[0, 0, 0]
    assert known.tolist() == [[False, True, True], [False, False, False]]


def test_pairs_across_a_slip_are_not_known(tmp_path: Path, labels: np.ndarray) -> None:
    pair = (write_volume(tmp_path / "raw.zarr", labels), write_volume(tmp_path / "l.zarr", labels.astype(np.uint64)))
    given = options(crop=SHAPE, augment=NEVER.model_copy(update={"misaligned_section": 1.0}))
    batch = Crops(given, {"a": pair}, {"a": stored_truth(tmp_path, labels)}, OFFSETS)[3]
    assert batch.taught is not None
    moved = [z for z in range(SHAPE[0]) if not batch.taught.known[0, 1, z, 1:].all()]
    crossing = batch.taught.known[0, 0].flatten(1).any(1)
    assert moved
    assert not crossing[moved[0]]
    assert crossing[1 : moved[0]].all()


def test_embeddings_of_a_deformed_crop_move_with_its_labels(tmp_path: Path, labels: np.ndarray) -> None:
    raw = write_volume(tmp_path / "raw.zarr", labels)
    pair = (raw, write_volume(tmp_path / "l.zarr", labels.astype(np.uint64)))
    code = np.stack([labels, 2 * labels]).astype(np.float16)
    guide = stored_truth(tmp_path, labels)._replace(embeddings=(store(tmp_path / "e.zarr", code),))
    given = options(
        augment=TURNING.model_copy(update={"elastic": 1.0, "misaligned_section": 1.0}),
        terms=({"name": "affinity"}, {"name": "soft_affinity"}, {"name": "graph_relation"}),
    )
    crops = Crops(given, {"a": pair}, {"a": guide}, OFFSETS)
    for number in range(10):
        batch = crops[number]
        assert batch.taught is not None
        assert torch.equal(batch.taught.embedding[:, 0].long()[batch.mask], batch.labels[batch.mask])
        assert not batch.taught.embedding[:, 0][~batch.mask].any()  # what shows nothing of the volume


def test_neurons_of_unlabelled_crops_end_where_nothing_is_shown(tmp_path: Path, labels: np.ndarray) -> None:
    """Elsewhere than in its labels, an elastic deformation looks beyond the crop."""
    raw = write_volume(tmp_path / "raw.zarr", labels)
    ids = write_volume(tmp_path / "ids.zarr", labels.astype(np.uint64))
    guide = Guide(instances=ids)
    given = options(
        augment=NEVER.model_copy(update={"elastic": 1.0}), terms=({"name": "soft_affinity"}, {"name": "ifvd"}),
        teaching={"instances": "segmentation"},
    )  # fmt: skip
    unlabelled, labelled = Crops(given, {"a": (raw, None)}, {"a": guide}), Crops(given, {"a": (raw, ids)})
    for number in range(5):
        one, other = unlabelled[number], labelled[number]
        assert one.instances is not None
        assert other.instances is not None
        assert (other.instances == 0).any()
        assert torch.equal(one.instances, other.instances)


def test_pairs_that_leave_the_volume_are_not_known(tmp_path: Path, labels: np.ndarray) -> None:
    pair = (write_volume(tmp_path / "raw.zarr", labels), write_volume(tmp_path / "l.zarr", labels.astype(np.uint64)))
    crops = Crops(options(crop=SHAPE), {"a": pair}, {"a": stored_truth(tmp_path, labels)}, OFFSETS)
    for number in range(6):
        taught, batch = crops[number].taught, crops[number]
        assert taught is not None
        _, inside = affinities(batch.labels, OFFSETS)
        assert torch.equal(taught.known, inside)


def test_stored_and_online_teachers_agree_inside(tmp_path: Path) -> None:
    """The crop is the volume, so that both see the same: they differ by the rounding to 1/255."""
    raw = np.random.default_rng(1).integers(0, 256, (24, 24, 24), dtype=np.uint8)
    net = network()
    predict = predictor(net, (24, 24, 24), CPU, torch.float32, offsets=OFFSETS)
    whole = Roi((0, 0, 0), (24, 24, 24))
    guide = Guide((store(tmp_path / "t.zarr", predict_roi(predict, lambda roi: raw[roi.slices()], whole, whole)),))
    pair = (write_volume(tmp_path / "raw.zarr", raw), write_volume(tmp_path / "l.zarr", raw.astype(np.uint64)))
    same = options(crop=(24, 24, 24), augment=NEVER)
    batch = Crops(same, {"a": pair}, {"a": guide}, OFFSETS)[0]
    stored = teachers_of([], same, OFFSETS, torch.float32, cubic=True, stored=Widths({"affinities": 9}, (), ()))
    online = teachers_of([net], options(crop=(24, 24, 24), teaching={}), OFFSETS, torch.float32, cubic=True)
    assert stored is not None
    assert online is not None
    a, b = (torch.sigmoid(teachers(batch).logits["affinities"]) for teachers in (stored, online))
    core = (..., *(slice(10, -10),) * 3)  # at the border one sees mirrored voxels, the other zeros
    torch.testing.assert_close(a[core], b[core], atol=0.51 / 255 + CERTAIN, rtol=0)
    assert online.widths == widths(net)
    assert stored.widths.features == ()


def test_embeddings_of_stored_teachers_turn_with_the_crop(tmp_path: Path, labels: np.ndarray) -> None:
    raw = write_volume(tmp_path / "raw.zarr", labels)
    code = np.stack([labels, 2 * labels]).astype(np.float16)
    guide = stored_truth(tmp_path, labels)._replace(embeddings=(store(tmp_path / "e.zarr", code),))
    chosen = options(terms=({"name": "affinity"}, {"name": "graph_relation"}))
    pair = (raw, write_volume(tmp_path / "l.zarr", labels.astype(np.uint64)))
    crops = Crops(chosen, {"a": pair}, {"a": guide}, OFFSETS)
    for number in range(5):
        batch = crops[number]
        assert batch.taught is not None
        assert torch.equal(batch.taught.embedding[:, 0].long(), batch.labels)
        assert torch.equal(batch.taught.embedding[:, 1].long(), 2 * batch.labels)


def test_stored_embeddings_of_two_teachers_count_alike(tmp_path: Path, labels: np.ndarray) -> None:
    """As online: the cosine of two voxels is the mean of the teachers' cosines, however long their vectors are."""
    generator = np.random.default_rng(4)
    fields = [scale * generator.standard_normal((3, *SHAPE)) for scale in (1, 100)]
    places = tuple(store(tmp_path / f"{k}.zarr", field.astype(np.float16)) for k, field in enumerate(fields))
    affinities_at = stored_truth(tmp_path, labels).affinities[0]
    guide = Guide((affinities_at, affinities_at), places)
    chosen = options(
        teacher=("t", "u"), terms=({"name": "affinity"}, {"name": "graph_relation"}), augment=NEVER, crop=SHAPE
    )
    pair = (write_volume(tmp_path / "raw.zarr", labels), write_volume(tmp_path / "l.zarr", labels.astype(np.uint64)))
    taught = Crops(chosen, {"a": pair}, {"a": guide}, OFFSETS)[0].taught
    assert taught is not None
    joint = torch.cosine_similarity(taught.embedding[0, :, 0].float(), taught.embedding[0, :, 1].float(), dim=0)
    each = [torch.cosine_similarity(torch.from_numpy(f[:, 0]), torch.from_numpy(f[:, 1]), dim=0) for f in fields]
    torch.testing.assert_close(joint.double(), (each[0] + each[1]) / 2, atol=2e-3, rtol=0)


def test_offsets_that_cannot_turn_are_refused_at_once(tmp_path: Path, labels: np.ndarray) -> None:
    pair = (write_volume(tmp_path / "raw.zarr", labels), write_volume(tmp_path / "l.zarr", labels.astype(np.uint64)))
    lopsided = (*OFFSETS[:3], (0, -5, 0))
    guide = Guide((store(tmp_path / "t.zarr", np.zeros((4, *SHAPE), np.uint8), lopsided),))
    with pytest.raises(DataError, match="has no channel"):
        Crops(options(), {"a": pair}, {"a": guide}, lopsided)


def test_unlabelled_crops_carry_the_teachers_segmentation(tmp_path: Path, labels: np.ndarray) -> None:
    raw = write_volume(tmp_path / "raw.zarr", labels)
    ids = write_volume(tmp_path / "s.zarr", labels.astype(np.uint64) + 6)
    chosen = options(
        unlabelled=("b",), unlabelled_fraction=1.0, teaching={"instances": "segmentation"}, augment=TURNING,
        terms=({"name": "affinity"}, {"name": "graph_relation", "taps": [0]}),
    )  # fmt: skip
    pair = (raw, write_volume(tmp_path / "l.zarr", labels.astype(np.uint64)))
    crops = Crops(chosen, {"a": pair, "b": (raw, None)}, {"b": Guide(instances=ids)}, OFFSETS)
    without = Crops(chosen, {"a": pair, "b": (raw, None)}, {}, OFFSETS)
    for number in range(3):
        batch = crops[number]
        assert not batch.mask.any()
        assert torch.equal(batch.labels[:, None] - 6, ((batch.raw + 1) * 127.5).round().long())
        assert batch.instances is not None
        assert batch.instances.min() > 0
        empty = without[number].instances
        assert empty is not None
        assert not empty.any()


def test_instances_are_connected_pieces_numbered_through_the_batch(tmp_path: Path) -> None:
    ids = np.zeros((8, 8, 8), np.uint64)
    ids[:, :, 0], ids[:, :, 4], ids[:, :, 2] = 5, 5, 9  # 5 comes in two pieces
    raw = write_volume(tmp_path / "raw.zarr", np.ones((8, 8, 8), np.uint8))
    pair = (raw, write_volume(tmp_path / "l.zarr", ids))
    chosen = options(terms=({"name": "affinity"}, {"name": "graph_relation", "taps": [0]}), teaching={}, batch=2)
    batch = next(iter(loader(Crops(chosen, {"a": pair}), 0)))
    assert batch.instances is not None
    pieces = [set(item[item > 0].unique().tolist()) for item in batch.instances]
    assert pieces == [{1, 2, 3}, {4, 5, 6}]
    assert torch.equal(batch.instances > 0, batch.labels > 0)
    for item, ids_of_item in zip(batch.instances, batch.labels, strict=True):
        for number in item[item > 0].unique():
            assert len(ids_of_item[item == number].unique()) == 1
    plain = Crops(options(teaching={}), {"a": pair})
    assert collate([plain[0], plain[1]]).instances is None


@pytest.mark.parametrize("number", range(48))
def test_affinities_come_back_from_every_symmetry(labels: np.ndarray, number: int) -> None:
    symmetry = symmetries(SHAPE, True, "zyx")[number]
    raw = torch.from_numpy(labels.astype(np.float32))[None, None]
    moved = OfLabels()(turned(raw, symmetry)).logits["affinities"]
    back, known = returned(moved, OFFSETS, symmetry.inverse)
    exact, inside = affinities(raw[:, 0].long(), OFFSETS)
    seen = (known > 0) & inside
    assert torch.equal((back > 0)[seen], exact[seen])
    assert seen.sum() > 0.6 * inside.sum()
    assert torch.equal(turned(turned(raw, symmetry), symmetry.inverse), raw)


def test_averaging_a_perfect_teacher_changes_nothing(labels: np.ndarray) -> None:
    raw = torch.from_numpy(labels.astype(np.float32))[None, None]
    group = averaged_over("all", SHAPE, cubic=True)
    assert len(group) == 48
    mean, _ = tta_mean(OfLabels(), raw, OFFSETS, group)
    exact, inside = affinities(raw[:, 0].long(), OFFSETS)
    assert torch.equal((mean > 0.5)[inside], exact[inside])
    assert (mean[inside] - 0.5).abs().min() > 0.49


def test_an_averaged_teacher_commutes_with_flips() -> None:
    raw = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    net, group = network(), averaged_over("flips", (16, 16, 16), cubic=False)
    assert len(group) == 8
    for symmetry in group[1:3]:
        straight, _ = tta_mean(net, raw, OFFSETS, group)
        mirrored, _ = tta_mean(net, turned(raw, symmetry), OFFSETS, group)
        back, known = returned(mirrored, OFFSETS, symmetry.inverse)
        core = (..., *(slice(4, -4),) * 3)
        assert known[core].all()
        torch.testing.assert_close(back[core], straight[core], atol=1e-5, rtol=0)
        plain = net(raw).logits["affinities"].sigmoid()
        assert (plain[core] - straight[core]).abs().max() > 1e-3


def test_several_teachers_are_averaged_or_weighted_by_their_confidence() -> None:
    a, b = torch.tensor([0.9, 0.5, 0.2]), torch.tensor([0.5, 0.1, 0.4])
    torch.testing.assert_close(torch.sigmoid(combined([a, b], "mean")), (a + b) / 2)
    sure = torch.sigmoid(combined([a, b], "confidence"))
    weights = [(2 * p - 1).abs() + 1e-3 for p in (a, b)]
    torch.testing.assert_close(sure, (weights[0] * a + weights[1] * b) / (weights[0] + weights[1]))
    assert sure[0] > 0.89
    assert sure[1] < 0.11
    extreme = combined([torch.tensor([0.0, 1.0])], "mean")
    assert torch.isfinite(extreme).all()


def test_two_networks_teach_together() -> None:
    raw = torch.rand(2, 1, 8, 8, 8) * 2 - 1
    nets = [network(seed, HeadOptions(embedding=4)) for seed in (0, 1)]
    for net in nets:  # a vector of length 0 has no direction
        torch.nn.init.normal_(net.get_submodule("heads.convolutions.embedding").bias)
    chosen = options(teacher=("t", "u"), teaching={})
    teachers = teachers_of(nets, chosen, OFFSETS, torch.float32, cubic=True)
    assert teachers is not None
    batch = Batch(raw, torch.zeros(2, 8, 8, 8, dtype=torch.int64), torch.zeros(2, 8, 8, 8, dtype=torch.bool))
    outputs = teachers(batch)
    assert outputs.features == ()
    assert teachers.widths.logits == {"affinities": 9, "embedding": 8}
    singles = [net(raw).logits for net in nets]
    mean = torch.stack([single["affinities"].sigmoid() for single in singles]).mean(0)
    torch.testing.assert_close(outputs.logits["affinities"].sigmoid(), mean, atol=CERTAIN, rtol=0)
    # the cosine of two voxels is the mean of the teachers' cosines
    joint = torch.cosine_similarity(outputs.logits["embedding"][:, :, 0], outputs.logits["embedding"][:, :, 1])
    each = [torch.cosine_similarity(s["embedding"][:, :, 0], s["embedding"][:, :, 1]) for s in singles]
    torch.testing.assert_close(joint, (each[0] + each[1]) / 2, atol=1e-5, rtol=0)


def test_stored_averaged_affinities_are_the_online_average(tmp_path: Path) -> None:
    raw = np.random.default_rng(2).integers(0, 256, (40, 40, 40), dtype=np.uint8)
    net, whole = network(), Roi((0, 0, 0), (40, 40, 40))
    middle = Roi((16, 16, 16), (8, 8, 8))  # one tile, which sees no border
    predict = predictor(net, (8, 8, 8), CPU, torch.float32, offsets=OFFSETS, product="affinities_flips")
    assert predict.halo == tuple(h + 4 for h in net.halo)
    stored = predict_roi(predict, lambda roi: raw[roi.slices()], whole, middle)
    tensor = torch.from_numpy(raw.astype(np.float32))[None, None] / 127.5 - 1
    online, _ = tta_mean(net, tensor, OFFSETS, averaged_over("flips", (40, 40, 40), cubic=True))
    core = (..., *middle.slices())
    np.testing.assert_allclose(stored, online[0][core].detach() * 255, atol=0.51)
    plain = net(tensor).logits["affinities"].sigmoid()[0].detach()
    assert np.abs(stored - plain[core].numpy() * 255).max() > 1


def test_the_embedding_is_predicted_in_half_precision() -> None:
    raw = np.random.default_rng(3).integers(0, 256, (32, 32, 32), dtype=np.uint8)
    net, whole = network(0, HeadOptions(embedding=5)), Roi((0, 0, 0), (32, 32, 32))
    predict = predictor(net, (8, 8, 8), CPU, torch.float32, product="embedding")
    found = predict_roi(predict, lambda roi: raw[roi.slices()], whole, whole)
    assert (found.dtype, found.shape) == (np.float16, (5, 32, 32, 32))
    exact = net(torch.from_numpy(raw.astype(np.float32))[None, None] / 127.5 - 1).logits["embedding"][0].detach()
    core = (..., *(slice(12, 20),) * 3)
    np.testing.assert_allclose(found[core], exact[core], rtol=2e-3, atol=2e-3)
    with pytest.raises(ConfigError, match="no heads"):
        predictor(network(), (8, 8, 8), CPU, torch.float32, product="embedding")


@pytest.mark.parametrize(
    ("case", "error", "message"),
    [
        ("offsets", ConfigError, "the student predicts"),
        ("voxels", VoxelSizeError, "voxels of"),
        ("shape", ShapeError, "seen the same volume"),
        ("absent", MissingError, "0 of the 1 teachers"),
    ],
)
def test_stored_outputs_that_do_not_fit_are_refused(
    tmp_path: Path, labels: np.ndarray, case: str, error: type[KdsegError], message: str
) -> None:
    pair = (write_volume(tmp_path / "raw.zarr", labels), write_volume(tmp_path / "l.zarr", labels.astype(np.uint64)))
    shape = (9, 20, 20, 19) if case == "shape" else (9, *SHAPE)
    other = ((0, 0, -5), *OFFSETS[1:]) if case == "offsets" else OFFSETS
    size = (10.0, 10.0, 11.0) if case == "voxels" else (10.0, 10.0, 10.0)
    guide = (
        Guide() if case == "absent" else Guide((store(tmp_path / "t.zarr", np.zeros(shape, np.uint8), other, size),))
    )
    with pytest.raises(error, match=message):
        Crops(options(), {"a": pair}, {"a": guide}, OFFSETS)


BAD = {
    "features of a stored teacher": ({"terms": [{"name": "affinity"}, {"name": "fitnets"}]}, "not stored"),
    "features of two": (
        {"teaching": {}, "teacher": ("t", "u"), "terms": [{"name": "affinity"}, {"name": "fitnets"}]},
        "cannot be averaged",
    ),
    "averaged features": (
        {"teaching": {"average": "flips"}, "terms": [{"name": "affinity"}, {"name": "fitnets"}]},
        "cannot be averaged",
    ),
    "the same twice": ({"teacher": ("t", "t")}, "named once"),
    "nothing left": ({"distil": False, "terms": [{"name": "soft_affinity"}]}, "no term is left"),
}


@pytest.mark.parametrize("case", BAD)
def test_options_that_cannot_be_taught_are_refused(case: str) -> None:
    changes, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        options(**changes)


def test_switching_distillation_off_leaves_ground_truth() -> None:
    off = options(distil=False, unlabelled=("b",))
    assert (off.teachers, off.active_unlabelled, off.stored_products) == ((), (), ())
    assert [term.name for term in off.active_terms] == ["affinity"]
    assert teachers_of([], off, OFFSETS, torch.float32, cubic=True) is None


def test_what_is_stored_follows_from_the_terms() -> None:
    assert options().stored_products == ("affinities",)
    both = options(
        terms=({"name": "affinity"}, {"name": "graph_relation"}), teaching={"outputs": "stored", "average": "all"}
    )
    assert both.stored_products == ("affinities_all", "embedding")
    assert options(teaching={}).stored_products == ()


def test_a_teacher_without_its_network_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 teacher checkpoints"):
        teachers_of([], options(teaching={}), OFFSETS, torch.float32, cubic=True)
    with pytest.raises(ConfigError, match="nothing stored"):
        teachers_of([], options(), OFFSETS, torch.float32, cubic=True)
    nobody = Teachers((), Widths({}, (), ()), OFFSETS)
    empty = torch.zeros(1, 1, 8, 8, 8)
    with pytest.raises(ConfigError, match="nothing of theirs"):
        nobody(Batch(empty, empty[0].long(), empty[0].bool()))
    taught = Taught(torch.zeros(1, 1, 9, 8, 8, 8, dtype=torch.uint8), torch.ones(1, 9, 8, 8, 8).bool(), empty[:, :0])
    outputs = nobody(Batch(empty, empty[0].long(), empty[0].bool(), taught=taught))
    assert outputs.known is not None
    assert torch.equal(outputs.known, taught.known)
