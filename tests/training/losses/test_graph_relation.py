"""Graph relation distillation: every part against loops, and what must hold for it."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kdseg.config.terms import GraphRelationOptions
from kdseg.errors import ConfigError, ShapeError
from kdseg.geometry import pair_slices
from kdseg.networks.models import Batch, Outputs, Widths
from kdseg.training.losses import Context, build_terms
from kdseg.training.losses import fields as slabs
from kdseg.training.losses.base import balance, weighted_mean
from kdseg.training.losses.fields import compare
from kdseg.training.losses.graph import GraphRelationTerm
from kdseg.training.losses.instances import at_level, core
from kdseg.training.losses.nodes import contact_areas, select_nodes
from kdseg.training.losses.supervised import embedding_affinities
from kdseg.training.targets import affinities

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (-2, 0, 0), (0, -3, 0), (1, 2, -3))
SHAPE = (4, 6, 8)
WIDTH = 5
ALL = {"node": 1.0, "edge": 1.0, "affinity": 1.0, "inter_edge": 1.0, "inter_affinity": 1.0}


def context(teacher: int = WIDTH, levels: tuple[int, ...] = (3, 4)) -> Context:
    ours = Widths({"affinities": len(OFFSETS), "embedding": WIDTH}, levels, ())
    theirs = Widths({"affinities": len(OFFSETS), "embedding": teacher}, levels, ())
    return Context(OFFSETS, (10.0, 10.0, 10.0), ours, theirs)


def term(teacher: int = WIDTH, seed: int = 0, **options: Any) -> GraphRelationTerm:
    torch.manual_seed(seed)
    defaults = {"memory_start": 0, "min_size": 1, "memory": 4}
    made = build_terms([GraphRelationOptions(**(defaults | options))], context(teacher))["graph_relation"]
    assert isinstance(made, GraphRelationTerm)
    return made.double()


def only(part: str, **options: Any) -> GraphRelationTerm:
    return term(**(dict.fromkeys(ALL, 0.0) | {part: 1.0} | options))


def make_batch(seed: int = 0, n: int = 2) -> Batch:
    """Boxes, numbered over the batch, of which some are none."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 8, (n, 2, 3, 4), generator=generator)
    for axis in (1, 2, 3):
        ids = ids.repeat_interleave(2, dim=axis)
    ids = torch.where(ids > 0, ids + 8 * torch.arange(n)[:, None, None, None], 0)
    found, ids = ids.unique(return_inverse=True)
    assert found[0] == 0
    return Batch(torch.zeros(n, 1, *SHAPE), ids, ids > 0, ids)


def outputs(seed: int, n: int = 2, width: int = WIDTH, dtype: torch.dtype = torch.float64) -> Outputs:
    generator = torch.Generator().manual_seed(seed)

    def draw(channels: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
        made = torch.randn(n, channels, *shape, generator=generator, dtype=torch.float64)
        return made.to(dtype).requires_grad_()

    logits = {"affinities": draw(len(OFFSETS)), "embedding": draw(width)}
    return Outputs(logits, (draw(3), draw(4, (4, 3, 4))))


def part(made: GraphRelationTerm, name: str, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
    return made.parts(student, teacher, batch)[name]


def nodes_of(outputs: Outputs, batch: Batch) -> dict[int, tuple[int, Tensor]]:
    """Crop and mean of each instance, by a loop."""
    assert batch.instances is not None
    found = {}
    for crop, i in product(range(len(batch.instances)), range(1, int(batch.instances.max()) + 1)):
        mask = batch.instances[crop] == i
        if mask.any():
            found[i] = (crop, outputs.logits["embedding"][crop][:, mask].mean(1))
    return found


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b) / (a.norm() * b.norm())


def areas(ids: Tensor) -> dict[tuple[int, int], int]:
    found: dict[tuple[int, int], int] = {}
    for crop in ids:
        for axis in range(3):
            n = crop.shape[axis]
            a, b = crop.narrow(axis, 0, n - 1).flatten().tolist(), crop.narrow(axis, 1, n - 1).flatten().tolist()
            for i, j in zip(a, b, strict=True):
                if i and j and i != j:
                    found[i, j] = found.get((i, j), 0) + 1
                    found[j, i] = found.get((j, i), 0) + 1
    return found


def looped_edges(student: Outputs, teacher: Outputs, batch: Batch, weigh: Any) -> Tensor:
    """Mean over crops of the mean over ordered pairs i != j, weighted by ``weigh(i, j, cosines of i)``."""
    ours, theirs = nodes_of(student, batch), nodes_of(teacher, batch)
    crops = []
    for crop in range(len(batch.raw)):
        here = [i for i, (c, _) in theirs.items() if c == crop]
        total, weights = torch.zeros((), dtype=torch.float64), 0.0
        for i in here:
            row = {j: cosine(theirs[i][1], theirs[j][1]).item() for j in here if j != i}
            for j in row:
                weight = weigh(i, j, row)
                error = cosine(ours[i][1], ours[j][1]) - cosine(theirs[i][1], theirs[j][1])
                total, weights = total + weight * error**2, weights + weight
        if weights:
            crops.append(total / weights)
    return torch.stack(crops).mean()


def check_equal(value: Tensor, expected: Tensor, student: Outputs, rel: float = 1e-6) -> None:
    """Value and gradient by the embedding are the same."""
    assert value.item() == pytest.approx(expected.item(), rel=rel)
    embedding = student.logits["embedding"]
    (ours,) = torch.autograd.grad(value, embedding, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected, embedding, retain_graph=True)
    assert theirs.any()
    assert torch.allclose(ours, theirs, rtol=rel, atol=rel * theirs.abs().max().item())


@pytest.mark.parametrize("graph", ["full", "rag", "knn", "mixed"])
def test_edges_are_those_of_a_loop(graph: str) -> None:
    batch, student, teacher = make_batch(), outputs(1), outputs(2)
    assert batch.instances is not None
    area = areas(batch.instances)

    def full(i: int, j: int, row: dict[int, float]) -> float:
        return 1.0

    def rag(i: int, j: int, row: dict[int, float]) -> float:
        return float(area.get((i, j), 0))

    def knn(i: int, j: int, row: dict[int, float]) -> float:
        return float(j in sorted(row, key=lambda k: -row[k])[:2])

    symmetric = contact_areas(select_nodes(batch.instances, GraphRelationOptions(min_size=1)))
    assert torch.equal(symmetric, symmetric.mT)
    rules = {"full": [full], "rag": [rag], "knn": [knn], "mixed": [full, rag]}[graph]
    expected = torch.stack([looped_edges(student, teacher, batch, rule) for rule in rules]).mean()
    value = part(only("edge", graph=graph, neighbours=2), "edge", student, teacher, batch)
    check_equal(value, expected, student)


@pytest.mark.parametrize("weight", ["none", "sqrt", "linear"])
def test_sizes_weigh_nodes_and_edges(weight: str) -> None:
    batch, student, teacher = make_batch(), outputs(1), outputs(2)
    power = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[weight]
    size = {i: float((batch.instances == i).sum()) ** power for i in nodes_of(teacher, batch)}
    value = part(only("edge", graph="full", size_weight=weight), "edge", student, teacher, batch)
    check_equal(value, looped_edges(student, teacher, batch, lambda i, j, _: size[i] * size[j]), student)
    value = part(only("node", node_space="raw", size_weight=weight), "node", student, teacher, batch)
    check_equal(value, looped_nodes(student, teacher, batch, lambda a, b: ((a - b) ** 2).sum(), size), student)


def looped_nodes(student: Outputs, teacher: Outputs, batch: Batch, distance: Any, size: dict[int, float]) -> Tensor:
    ours, theirs = nodes_of(student, batch), nodes_of(teacher, batch)
    crops = []
    for crop in range(len(batch.raw)):
        here = [i for i, (c, _) in theirs.items() if c == crop]
        total = torch.stack([size[i] * distance(ours[i][1], theirs[i][1]) for i in here]).sum()
        crops.append(total / sum(size[i] for i in here))
    return torch.stack(crops).mean()


@pytest.mark.parametrize("space", ["raw", "unit"])
@pytest.mark.parametrize("power", [1, 2])
def test_nodes_are_those_of_a_loop(space: str, power: int) -> None:
    batch, student, teacher = make_batch(), outputs(1), outputs(2)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        if space == "unit":
            a, b = a / a.norm(), b / b.norm()
        return (a - b).norm() ** power

    expected = looped_nodes(student, teacher, batch, distance, dict.fromkeys(nodes_of(teacher, batch), 1.0))
    value = part(only("node", node_space=space, node_power=power), "node", student, teacher, batch)
    check_equal(value, expected, student, rel=1e-5 if power == 1 else 1e-6)


@pytest.mark.parametrize("which", ["nearest", "all"])
@pytest.mark.parametrize(("slab", "width"), [(2**19, WIDTH), (1, WIDTH), (480, WIDTH), (480, 9), (480, 3)])
@pytest.mark.parametrize("balanced", [True, False])
def test_affinities_are_those_of_all_pairs(
    which: str, slab: int, width: int, balanced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slabs, "_SLAB", slab)
    batch, student, teacher = make_batch(), outputs(1), outputs(2, width=width)
    # neighbours that agree and neighbours that do not
    theirs = teacher.logits["embedding"].detach().cumsum(-1).cumsum(-2)
    teacher = teacher._replace(logits=teacher.logits | {"embedding": theirs})
    means = []
    for offset in OFFSETS if which == "all" else OFFSETS[:3]:
        here, there = pair_slices(SHAPE, offset)
        one, other = (
            torch.nn.functional.cosine_similarity(e[(..., *here)], e[(..., *there)], dim=1)[:, None]
            for e in (student.logits["embedding"], theirs)
        )
        weights = balance(other > 0.5, torch.ones_like(other, dtype=torch.bool))
        assert len(weights.unique()) > 1
        if not balanced:
            weights = torch.ones_like(weights)
        means.append(weighted_mean((one - other) ** 2, weights.double()))
    value = part(only("affinity", offsets=which, teacher=width, balanced=balanced), "affinity", student, teacher, batch)
    check_equal(value, torch.stack(means).mean(), student)


def test_offsets_that_do_not_fit_have_no_pairs() -> None:
    field = torch.randn(1, 3, 2, 4, 4, requires_grad=True)
    found = compare(field, torch.randn(1, 3, 2, 4, 4), offsets=((-2, 0, 0), (0, 0, -1)))
    alone = compare(field, torch.randn(1, 3, 2, 4, 4), offsets=((-2, 0, 0),))
    assert found.affinity > 0
    assert alone.affinity == 0
    alone.affinity.backward()
    assert field.grad is not None
    assert not field.grad.any()


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_relations_to_earlier_crops_are_those_of_all_pairs_of_tokens(dtype: torch.dtype, rel: float) -> None:
    """The matrix of the moment against the published form: a cosine for each pair of tokens, one crop at a time."""
    made = term(memory=4, **(ALL | {"node": 0.0, "edge": 0.0, "affinity": 0.0})).to(dtype)
    earlier = [(outputs(seed, dtype=dtype), make_batch(seed)) for seed in (5, 6, 7)]
    for teacher, batch in earlier:
        made.parts(teacher, teacher, batch)
    batch, student, teacher = make_batch(), outputs(1, dtype=dtype), outputs(2, dtype=dtype)
    found = made.parts(student, teacher, batch)

    def voxels(outputs: Outputs) -> Tensor:
        return normalize(outputs.logits["embedding"].double().movedim(1, -1).reshape(-1, WIDTH), dim=1)

    def nodes(outputs: Outputs, batch: Batch) -> Tensor:
        return torch.stack([v.double() / v.double().norm() for _, v in nodes_of(outputs, batch).values()])

    ours, theirs = voxels(student), voxels(teacher)
    expected = pairwise(ours, theirs, [voxels(o) for o, _ in earlier])
    check_equal(found["inter_affinity"], expected.to(dtype), student, rel)
    crop = [c for c, _ in nodes_of(student, batch).values()]
    ours, theirs = nodes(student, batch), nodes(teacher, batch)
    means = [[i for i, c in enumerate(crop) if c == b] for b in (0, 1)]
    bank = [nodes(o, b) for o, b in earlier]
    expected = torch.stack([pairwise(ours[at], theirs[at], bank) for at in means]).mean()
    check_equal(found["inter_edge"], expected.to(dtype), student, rel)


def pairwise(ours: Tensor, theirs: Tensor, bank: list[Tensor]) -> Tensor:
    """Mean over token pairs of the mean over earlier batches, old ones counting less, and the ridge of the metric."""
    ages = [0.75**age for age in reversed(range(len(bank)))]
    errors = [w * ((ours @ m.T - theirs @ m.T) ** 2).mean() for w, m in zip(ages, bank, strict=True)]
    total = torch.stack(errors).sum() / sum(ages)
    ridge = 1e-3 / WIDTH
    return total + ridge * ((ours - theirs) ** 2).sum(1).mean()


@pytest.mark.parametrize("inter", ["moment", "kl"])
def test_relations_to_earlier_crops_count_from_the_start_on(inter: str) -> None:
    made = term(memory_start=2, inter=inter, tokens=16, **ALL)
    batch = make_batch()
    for number in range(4):
        student = outputs(10 + number)
        found = made.parts(student, outputs(20 + number), batch)
        for name in ("inter_edge", "inter_affinity"):
            (gradient,) = torch.autograd.grad(found[name], student.logits["embedding"], retain_graph=True)
            assert (found[name] > 0) == (number >= 2)
            assert gradient.any() == (number >= 2)


@pytest.mark.parametrize("inter", ["moment", "kl"])
@pytest.mark.parametrize("graph", ["full", "rag", "knn", "mixed"])
def test_equals_have_no_distance_and_no_gradient(graph: str, inter: str) -> None:
    taps, batch = ("embedding", 0, -1, "affinities"), make_batch()
    for power in (1, 2):
        made = term(graph=graph, inter=inter, taps=taps, offsets="all", tokens=10, node_power=power, **ALL)
        made.parts(outputs(3), outputs(4), batch)
        student = outputs(1)
        value = made(student, student, batch)
        assert 0 <= value.item() < 1e-12
        leaves = [*student.logits.values(), *student.features]
        assert all(g.abs().max() < 1e-9 for g in torch.autograd.grad(value, leaves))


def turned(outputs: Outputs) -> Outputs:
    basis, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)).double())
    embedding = torch.einsum("dc,nczyx->ndzyx", basis, outputs.logits["embedding"])
    return outputs._replace(logits=outputs.logits | {"embedding": embedding})


def test_edges_and_affinities_ignore_the_basis_and_nodes_do_not() -> None:
    made, batch = term(memory_start=9, **ALL), make_batch()
    student, teacher = outputs(1), outputs(2)
    one, other = made.parts(student, teacher, batch), made.parts(turned(student), teacher, batch)
    for name in ("edge", "affinity"):
        assert other[name].item() == pytest.approx(one[name].item(), rel=1e-9)
    assert other["node"].item() != pytest.approx(one["node"].item(), rel=1e-3)


def flipped(outputs: Outputs, axes: tuple[int, ...]) -> Outputs:
    return Outputs({k: v.flip(axes) for k, v in outputs.logits.items()}, tuple(f.flip(axes) for f in outputs.features))


@pytest.mark.parametrize("axes", [(2,), (3,), (4,), (2, 3, 4), (0,)])
def test_mirror_images_and_the_order_of_crops_do_not_matter(axes: tuple[int, ...]) -> None:
    batch, student, teacher = make_batch(), outputs(1), outputs(2)
    assert batch.instances is not None
    shifted = tuple(a - 1 if a else 0 for a in axes)
    mirrored = batch._replace(instances=batch.instances.flip(shifted))
    values = []
    for s, t, b in ((student, teacher, batch), (flipped(student, axes), flipped(teacher, axes), mirrored)):
        made = term(**ALL)
        made.parts(outputs(5), outputs(6), make_batch(3))
        values.append(made.parts(s, t, b))
    for name in ALL:
        assert values[1][name].item() == pytest.approx(values[0][name].item(), rel=1e-9)


@pytest.mark.parametrize(("taps", "rel"), [(("embedding", 0), 1e-9), (("affinities",), 1e-6)])
def test_numbers_of_instances_do_not_matter(taps: tuple[Any, ...], rel: float) -> None:
    batch, student, teacher = make_batch(), outputs(1), outputs(2)
    assert batch.instances is not None
    names = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(int(batch.instances.max()))])
    other = batch._replace(instances=names[batch.instances])
    one, two = (term(taps=taps, **ALL).parts(student, teacher, b) for b in (batch, other))
    for name in one:
        assert two[name].item() == pytest.approx(one[name].item(), rel=rel)


def test_a_shift_of_the_crop_changes_no_pair() -> None:
    """Cosines of the pairs that two overlapping crops share are the same: nothing wraps around."""
    field = torch.randn(1, WIDTH, 8, 10, 12)
    a, b = field[:, :, :6, :8, :9], field[:, :, 1:7, 2:10, 3:12]
    for offset in OFFSETS:
        one, other = embedding_affinities(a, (offset,))[0, 0], embedding_affinities(b, (offset,))[0, 0]
        common = one[1:, 2:, 3:], other[:-1, :-2, :-3]
        (z, y, x), _ = pair_slices((5, 6, 6), offset)
        assert torch.allclose(common[0][z, y, x], common[1][z, y, x])
    # pairs that would wrap around differ without bound, and the term does not see them
    student, teacher = torch.zeros(1, 2, 1, 1, 6), torch.zeros(1, 2, 1, 1, 6)
    student[:, 0], teacher[:, 0] = 1, 1
    student[0, :, 0, 0, 0] = torch.tensor([0.0, 1.0])
    teacher[0, :, 0, 0, 0] = torch.tensor([0.0, -1.0])
    assert compare(student, teacher, offsets=((0, 0, -5), (0, 0, -1))).affinity == 0
    teacher[0, :, 0, 0, 5] = torch.tensor([0.0, 1.0])
    assert compare(student, teacher, offsets=((0, 0, -5),)).affinity == 1


def test_targets_of_a_volume_that_alternates_in_z_follow_the_length_of_the_offset() -> None:
    labels = (1 + torch.arange(8) % 2)[:, None, None].expand(8, 3, 3).contiguous()
    offsets = tuple((-k, 0, 0) for k in (1, 2, 3, 4))
    target, known = affinities(labels, offsets)
    embedding = torch.nn.functional.one_hot(labels, 3).movedim(-1, 0)[None].double()
    cosines = embedding_affinities(embedding, offsets)[0]
    for channel, k in enumerate((1, 2, 3, 4)):
        assert (target[channel, k:] == (k % 2 == 0)).all()
        assert (cosines[channel, k:] == (k % 2 == 0)).all()
        assert not known[channel, :k].any()
    same = torch.ones_like(embedding)
    for k in (1, 2, 3, 4):
        found = compare(same, embedding, offsets=((-k, 0, 0),)).affinity
        assert found.item() == pytest.approx(float(k % 2), abs=1e-9)


def test_small_instances_and_those_beyond_the_largest_are_no_nodes() -> None:
    ids = torch.zeros(2, 1, 4, 10, dtype=torch.int64)
    ids[0, 0, 0, :2], ids[0, 0, 1, :7], ids[0, 0, 2, :5], ids[1, 0, 0], ids[0, 0, 3, :6] = 4, 2, 5, 1, 3
    options = GraphRelationOptions(min_size=3, max_nodes=2, size_weight="linear")
    nodes = select_nodes(ids, options)
    assert nodes.number == 3
    assert nodes.weights.tolist() == [7, 6, 10]
    assert nodes.crop.tolist() == [0, 0, 1]
    assert torch.equal(nodes.ids == 1, ids == 2)
    assert torch.equal(nodes.ids == 2, ids == 3)
    assert torch.equal(nodes.ids == 3, ids == 1)
    assert nodes.padded(torch.tensor([5.0, 6.0, 7.0])).tolist() == [[5, 6], [7, 0]]


def test_the_core_is_what_is_averaged() -> None:
    batch, student, teacher = make_batch(), outputs(1), outputs(2)
    assert batch.instances is not None
    eroded = core(batch.instances)
    assert 0 < (eroded > 0).sum() < (batch.instances > 0).sum()
    value = part(only("node", core=True), "node", student, teacher, batch)
    left = batch._replace(instances=eroded.unique(return_inverse=True)[1])
    assert value.item() == pytest.approx(part(only("node"), "node", student, teacher, left).item(), rel=1e-9)


def test_decoder_levels_are_averaged_on_their_own_grids() -> None:
    batch, student, teacher = make_batch(), outputs(1), outputs(2)
    weights = {"edge": 1.0, "affinity": 1.0, "node": 1.0}
    fine, coarse, both = (
        term(taps=taps, **(dict.fromkeys(ALL, 0.0) | weights)).parts(student, teacher, batch)
        for taps in ((0,), (-1,), (0, 1))
    )
    for name in weights:
        assert both[name].item() == pytest.approx((fine[name] + coarse[name]).item() / 2, rel=1e-9)
    assert batch.instances is not None
    level = at_level(batch.instances, (4, 3, 4))
    field = student.features[1], teacher.features[1]
    alone = compare(*field, offsets=((-1, 0, 0), (0, -1, 0), (0, 0, -1)), instances=level, count=int(level.max()))
    assert coarse["affinity"].item() == pytest.approx(alone.affinity.item(), rel=1e-9)
    # (1, 2, -3) and (-2, 0, 0) are (1, 1, -2) and (-2, 0, 0) there; (0, -3, 0) is (0, -2, 0); (0, -1, 0) vanishes
    every = part(only("affinity", taps=(1,), offsets="all"), "affinity", student, teacher, batch)
    left = ((-1, 0, 0), (-2, 0, 0), (0, -2, 0), (1, 1, -2))
    assert every.item() == pytest.approx(compare(*field, offsets=left).affinity.item(), rel=1e-9)


def test_a_teacher_on_another_grid_is_brought_to_the_students() -> None:
    batch, student, teacher = make_batch(), outputs(1), outputs(2)
    fine = teacher.logits["embedding"].detach()
    double = fine.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    other = teacher._replace(logits=teacher.logits | {"embedding": double})
    one, two = (term(**ALL).parts(student, t, batch) for t in (teacher, other))
    for name in ALL:
        assert two[name].item() == pytest.approx(one[name].item(), rel=1e-5)


def direct_loop(student: Tensor, teacher: Tensor, known: Tensor, ids: Tensor) -> Tensor:
    """Edges of a teacher that has only affinities, by a loop over voxel pairs."""
    p, q = torch.sigmoid(student), torch.sigmoid(teacher)
    crops = []
    for crop in range(len(ids)):
        held: dict[tuple[int, int], list[Tensor]] = {}
        for channel, (dz, dy, dx) in enumerate(OFFSETS[:3]):
            for z, y, x in product(*map(range, SHAPE)):
                u, v, w = z + dz, y + dy, x + dx
                if min(u, v, w) < 0 or not known[crop, channel, z, y, x]:
                    continue
                a, b = sorted((int(ids[crop, z, y, x]), int(ids[crop, u, v, w])))
                if a and a != b:
                    held.setdefault((a, b), []).append(p[crop, channel, z, y, x] - q[crop, channel, z, y, x])
        if held:
            area = sum(len(found) for found in held.values())
            crops.append(sum(len(d) * torch.stack(d).mean() ** 2 for d in held.values()) / area)
    return torch.stack([torch.as_tensor(c) for c in crops]).mean()


def test_a_teacher_with_affinities_alone_has_edges_and_affinities() -> None:
    batch, student, teacher = make_batch(), outputs(1), outputs(2)
    assert batch.instances is not None
    known = torch.rand(2, len(OFFSETS), *SHAPE, generator=torch.Generator().manual_seed(0)) > 0.2
    teacher = teacher._replace(known=known)
    made = term(taps=("affinities",), **ALL)
    assert set(made.weights) == {"edge", "affinity"}
    found = made.parts(student, teacher, batch)
    ours, theirs = (o.logits["affinities"] for o in (student, teacher))
    # made in float32
    expected = direct_loop(ours.float(), theirs.float(), known, batch.instances)
    assert found["edge"].item() == pytest.approx(expected.item(), rel=1e-5)
    (one,) = torch.autograd.grad(found["edge"], ours)
    (two,) = torch.autograd.grad(expected, ours)
    assert torch.allclose(one, two, atol=1e-8)
    inside = torch.zeros_like(known)[:, :3]
    inside[:, 0, 1:], inside[:, 1, :, 1:], inside[:, 2, :, :, 1:] = True, True, True
    target = torch.sigmoid(theirs[:, :3].float())
    error = (torch.sigmoid(ours[:, :3].float()) - target) ** 2
    expected = weighted_mean(error, balance(target > 0.5, inside & known[:, :3]))
    assert found["affinity"].item() == pytest.approx(expected.item(), rel=1e-5)
    everywhere = made.parts(student, teacher._replace(known=None), batch)
    assert everywhere["affinity"].item() != pytest.approx(expected.item(), rel=1e-3)
    alike = term(taps=("affinities",), **ALL, balanced=False).parts(student, teacher, batch)
    expected = weighted_mean(error, (inside & known[:, :3]).float())
    assert alike["affinity"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("inter", ["moment", "kl"])
@pytest.mark.parametrize("graph", ["full", "rag", "knn", "mixed"])
@pytest.mark.parametrize("case", ["none", "one", "far"])
def test_few_instances_give_finite_parts(case: str, graph: str, inter: str) -> None:
    batch = make_batch()
    ids = torch.zeros_like(batch.labels)
    if case == "one":
        ids[0] = 1
    if case == "far":
        ids[0, 0], ids[0, 3], ids[1] = 1, 2, 3
    batch = batch._replace(instances=ids, labels=torch.zeros_like(ids), mask=torch.zeros_like(ids, dtype=torch.bool))
    made = term(graph=graph, inter=inter, taps=("embedding", 1, "affinities"), core=True, tokens=8, **ALL)
    for number in range(3):
        student = outputs(number)
        found = made.parts(student, outputs(9), batch)
        leaves = [*student.logits.values(), *student.features]
        for name, value in found.items():
            assert torch.isfinite(value)
            gradients = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
            assert all(g is None or torch.isfinite(g).all() for g in gradients)
            assert any(g is not None for g in gradients)
            if case == "none" and name in ("node", "edge", "inter_edge"):
                assert value == 0
                assert not any(g is not None and g.any() for g in gradients)
    assert found["edge"].item() == 0 or case == "far"
    assert all(torch.isfinite(b).all() for b in made.buffers())


@pytest.mark.parametrize(("dtype", "rel"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_half_precision_is_compared_in_float32(dtype: torch.dtype, rel: float) -> None:
    batch, exact = make_batch(), term(taps=("embedding", 0), **ALL).float()
    rough = term(taps=("embedding", 0), **ALL).float()
    for seed in (1, 3):
        student, teacher = outputs(seed, dtype=torch.float32), outputs(seed + 1, dtype=torch.float32)
        halves = [
            Outputs(
                {k: v.detach().to(dtype) for k, v in o.logits.items()}, tuple(f.detach().to(dtype) for f in o.features)
            )
            for o in (student, teacher)
        ]
        halves[0].logits["embedding"].requires_grad_()
        one = exact.parts(student, teacher, batch)
        with torch.autocast("cpu", torch.bfloat16):
            two = rough.parts(*halves, batch)
        for name in ALL:
            assert two[name].dtype == torch.float32
            assert two[name].item() == pytest.approx(one[name].item(), rel=rel, abs=1e-9)
    embedding = halves[0].logits["embedding"]
    (gradient,) = torch.autograd.grad(sum(two.values()), embedding)
    assert gradient.dtype == dtype
    (expected,) = torch.autograd.grad(sum(one.values()), student.logits["embedding"])
    assert torch.allclose(gradient.float(), expected, atol=0.03 * expected.abs().max().item())


def test_values_near_the_end_of_float16_are_finite() -> None:
    batch, made = make_batch(), term(node_space="raw", **ALL).float()
    for scale in (6e4, 1e-7, 0.0):
        student, teacher = outputs(1, dtype=torch.float32), outputs(2, dtype=torch.float32)
        half = {}
        for name, o in (("student", student), ("teacher", teacher)):
            sign = o.logits["embedding"].detach().sign()
            half[name] = Outputs({"embedding": (scale * sign).half().requires_grad_()}, ())
        for _ in range(2):
            value = made(half["student"], half["teacher"], batch)
        value.backward()
        assert torch.isfinite(value)
        gradient = half["student"].logits["embedding"].grad
        assert gradient is not None
        assert torch.isfinite(gradient).all()


def test_a_projector_is_learned_where_widths_differ() -> None:
    batch, student, teacher = make_batch(), outputs(1), outputs(2, width=7)
    made = term(teacher=7, **ALL)
    made.parts(student, teacher, batch)
    names = [name for name, p in made.named_parameters() if p.requires_grad]
    assert names == ["links.embedding.projector.weight", "links.embedding.projector.bias"]
    found = made.parts(student, teacher, batch)
    for name in ("node", "inter_edge", "inter_affinity"):
        gradients = torch.autograd.grad(found[name], list(made.parameters()), retain_graph=True)
        assert all(g.any() for g in gradients)
    for name in ("edge", "affinity"):
        assert not any(
            g is not None
            for g in torch.autograd.grad(found[name], list(made.parameters()), retain_graph=True, allow_unused=True)
        )
    assert not list(term(**ALL).parameters())
    assert not list(term(teacher=7, node=0, inter_edge=0, inter_affinity=0).parameters())
    kl = term(teacher=7, inter="kl", tokens=8, **ALL)
    kl.parts(student, teacher, batch)
    assert kl.parts(student, teacher, batch)["inter_affinity"] > 0


def test_projected_vectors_are_compared_like_any() -> None:
    """With a projector that embeds the student in a wider space, the parts are those of the teacher in it."""
    batch, student, teacher = make_batch(), outputs(1), outputs(2)
    wide = teacher.logits["embedding"].detach()
    wide = teacher._replace(logits=teacher.logits | {"embedding": torch.cat([wide, torch.zeros_like(wide[:, :2])], 1)})
    plain, projected = term(**ALL), term(teacher=7, **ALL)
    with torch.no_grad():
        projector = projected.links["embedding"].projector
        projector.weight.copy_(torch.eye(7, WIDTH))
        projector.bias.zero_()
    for _ in range(2):
        one, two = plain.parts(student, teacher, batch), projected.parts(student, wide, batch)
    for name in ("node", "edge", "affinity"):
        assert two[name].item() == pytest.approx(one[name].item(), rel=1e-9)
    for name in ("inter_edge", "inter_affinity"):
        # the ridge is spread over more dimensions
        assert two[name].item() == pytest.approx(one[name].item(), rel=2e-3)


@pytest.mark.parametrize("inter", ["moment", "kl"])
def test_a_continued_run_is_the_uninterrupted_one(inter: str) -> None:
    batch, straight, broken = make_batch(), *(term(inter=inter, tokens=8, **ALL) for _ in range(2))
    for number in range(6):
        student, teacher = outputs(number), outputs(number + 20)
        one, two = straight.parts(student, teacher, batch), broken.parts(student, teacher, batch)
        assert all(torch.equal(one[name], two[name]) for name in ALL)
        state = {k: v.clone() for k, v in broken.state_dict().items()}
        broken = term(inter=inter, tokens=8, seed=number, **ALL)
        broken.load_state_dict(state)


def test_evaluation_does_not_remember() -> None:
    made, batch = term(**ALL), make_batch()
    made.eval().parts(outputs(1), outputs(2), batch)
    assert not any(b.any() for b in made.buffers())


def test_what_cannot_be_compared_is_refused() -> None:
    batch, student, teacher = make_batch(), outputs(1), outputs(2)
    with pytest.raises(ConfigError, match="needs the instances"):
        term().parts(student, teacher, batch._replace(instances=None))
    only("affinity").parts(student, teacher, batch._replace(instances=None))
    with pytest.raises(ConfigError, match="5 channels in the student and 7 in the teacher"):
        term(teacher=7, projector=False)
    assert term(teacher=7, projector=False, inter_edge=0, inter_affinity=0).weights
    options = GraphRelationOptions().model_copy(update={"taps": ("affinities",), "edge": 0.0, "affinity": 0.0})
    with pytest.raises(ConfigError, match="has no part"):
        GraphRelationTerm(options, context())
    with pytest.raises(ConfigError, match="levels 0 to 1"):
        term(taps=(2,))
    field = torch.zeros(1, 3, 2, 2, 2)
    with pytest.raises(ShapeError, match="same voxels"):
        compare(field, torch.zeros(1, 3, 2, 2, 3))
    with pytest.raises(ShapeError, match="3 channels of the student and 4"):
        compare(field, torch.zeros(1, 4, 2, 2, 2), metric=torch.eye(4))


@pytest.mark.parametrize("offsets", [((-1, 0, 0), (0, -1, 0)), ((-5, 0, 0), (0, 0, -3))])
def test_slabs_of_two_widths_change_nothing(offsets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wider field allows fewer planes at a time than the narrower one."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(1, c, 12, 7, 8, generator=generator, dtype=torch.float64) for c in (4, 24))
    found = []
    for slab in (10**9, 4 * 7 * 8 * 12, 24 * 7 * 8 * 2, 1):
        monkeypatch.setattr(slabs, "_SLAB", slab)
        student = ours.clone().requires_grad_()
        value = slabs.compare(student, theirs, offsets=offsets).affinity
        value.backward()
        assert student.grad is not None
        found.append((value.item(), student.grad))
    for value, gradient in found[1:]:
        assert value == pytest.approx(found[0][0], rel=1e-12)
        torch.testing.assert_close(gradient, found[0][1])
