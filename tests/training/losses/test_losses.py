"""Terms of the loss: their value against loops, and what must hold for all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdseg.config.terms import (
    AffinityOptions,
    DeepSupervisionOptions,
    DiceOptions,
    EmbeddingOptions,
    LsdOptions,
    SoftAffinityOptions,
)
from kdseg.errors import ConfigError
from kdseg.networks.models import Batch, Outputs, Taught, Widths
from kdseg.training.losses import Context, Objective, Term, build_terms, term_weight
from kdseg.training.losses.base import balance
from kdseg.training.losses.supervised import embedding_affinities
from kdseg.training.targets import affinities, boundary_voxels, local_shape_descriptors

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, -3))
WIDTHS = Widths({"affinities": len(OFFSETS)}, (), ())
CONTEXT = Context(OFFSETS, (10.0, 10.0, 10.0), WIDTHS, WIDTHS)
SHAPE = (6, 7, 8)
OPTIONS = [
    AffinityOptions(),
    LsdOptions(),
    EmbeddingOptions(),
    DiceOptions(),
    SoftAffinityOptions(temperature=2.0),
]


def make_batch(seed: int = 0, n: int = 2) -> Batch:
    """Crops of boxes, so that labels have an inside, with unlabelled parts."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(1, 6, (n, 2, 2, 2), generator=generator)
    for axis in (1, 2, 3):
        labels = labels.repeat_interleave(4, dim=axis)
    labels = labels[:, :6, :7, :8].clone()
    labels[:, :, :2, 6:] = 0
    raw = torch.rand(n, 1, *SHAPE, generator=generator) * 2 - 1
    return Batch(raw, labels, labels > 0, descriptors=described(labels))


def described(labels: Tensor) -> Tensor:
    return torch.stack([local_shape_descriptors(ids, CONTEXT.voxel_size, 30.0)[0] for ids in labels])


def part(batch: Batch, crops: Any) -> Batch:
    assert batch.descriptors is not None
    return Batch(batch.raw[crops], batch.labels[crops], batch.mask[crops], descriptors=batch.descriptors[crops])


def outputs(seed: int, n: int = 2, scale: float = 2.0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    channels = {"affinities": len(OFFSETS), "lsd": 10, "embedding": 6}
    logits = {k: (scale * torch.randn(n, c, *SHAPE, generator=generator)).requires_grad_() for k, c in channels.items()}
    return Outputs(logits, ())


def term(options: Any) -> Term:
    made = build_terms([options], CONTEXT)[options.name]
    assert isinstance(made, Term)
    return made


@pytest.mark.parametrize("options", OPTIONS[:4], ids=lambda o: o.name)
def test_crops_without_labels_do_not_dilute_the_others(options: Any) -> None:
    batch, student = make_batch(), outputs(1)
    labels, mask = batch.labels.clone(), batch.mask.clone()
    labels[1], mask[1] = 0, False
    value = term(options)(student, None, batch._replace(labels=labels, mask=mask))
    first = Outputs({k: v[:1] for k, v in student.logits.items()}, ())
    alone = term(options)(first, None, part(batch, slice(1)))
    assert value.item() == pytest.approx(alone.item(), rel=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: o.name)
def test_nothing_labelled_gives_a_finite_term_and_gradient(options: Any) -> None:
    batch = make_batch()
    empty = batch._replace(labels=torch.zeros_like(batch.labels), mask=torch.zeros_like(batch.mask))
    student = outputs(1)
    value = term(options)(student, outputs(2), empty)
    value.backward()
    gradients = [v.grad for v in student.logits.values() if v.grad is not None]
    assert gradients
    assert all(torch.isfinite(g).all() for g in gradients)
    if options.name == "soft_affinity":
        assert value > 0
    else:
        assert value == 0
        assert not any(g.any() for g in gradients)


@pytest.mark.parametrize(
    ("boundary", "width", "balanced"),
    [("none", 1, True), ("yx", 1, True), ("zyx", 1, True), ("auto", 1, True), ("auto", 2, True), ("auto", 1, False)],
)
def test_affinity_term_is_that_of_the_loop(boundary: str, width: int, balanced: bool) -> None:
    batch, student = make_batch(), outputs(1)
    edge = {"none": None, "auto": "zyx"}.get(boundary, boundary)
    logits, losses = student.logits["affinities"].detach().double().numpy(), []
    for b in range(2):
        membrane = None if edge is None else boundary_voxels(batch.labels[b], edge, width)
        target, known = affinities(batch.labels[b], OFFSETS, mask=batch.mask[b], boundary=membrane)
        for c in range(len(OFFSETS)):
            t, k = target[c].numpy(), known[c].numpy()
            f = np.clip(t[k].mean(), 0.05, 0.99)
            positive, negative = (1, f / (1 - f)) if f > 0.5 else ((1 - f) / f, 1)
            w = np.where(t, positive, negative)[k] if balanced else np.ones(k.sum())
            p = 1 / (1 + np.exp(-logits[b, c][k]))
            losses.append(np.sum(w * -np.where(t[k], np.log(p), np.log(1 - p))) / w.sum())
    options = AffinityOptions(boundary=boundary, boundary_width=width, balanced=balanced)
    value = term(options)(student, None, batch)
    assert value.item() == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("width", [1, 2])
def test_dice_is_that_of_the_loop(width: int) -> None:
    batch, student = make_batch(), outputs(1)
    batch.labels[1][batch.labels[1] > 0] = 3  # one neuron: nothing parts its pairs
    p = torch.sigmoid(student.logits["affinities"].detach().double()).numpy()
    crops = []
    for b in range(2):
        edge = boundary_voxels(batch.labels[b], "zyx", width)
        target, known = affinities(batch.labels[b], OFFSETS, mask=batch.mask[b], boundary=edge)
        losses = []
        for c in range(len(OFFSETS)):
            q, t = p[b, c][known[c].numpy()], target[c][known[c]].numpy()
            for found, there in ((q, t), (1 - q, ~t)):
                if there.any():
                    losses.append(1 - 2 * (found * there).sum() / ((found**2).sum() + there.sum()))
        crops.append(np.mean(losses))
    assert term(DiceOptions(boundary_width=width))(student, None, batch).item() == pytest.approx(np.mean(crops))


def test_a_perfect_prediction_has_no_dice_loss() -> None:
    batch = make_batch()
    edge = boundary_voxels(batch.labels, "zyx")
    target, known = affinities(batch.labels, OFFSETS, mask=batch.mask, boundary=edge)
    right = torch.where(target | ~known, 40.0, -40.0)  # what is not known may be anything
    assert term(DiceOptions())(Outputs({"affinities": right}, ()), None, batch) < 1e-6


def levels(seed: int) -> Outputs:
    """Features of 5 and 3 channels, the coarser of half the resolution."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, 5, *SHAPE), (2, 3, *(n // 2 for n in SHAPE)))
    return Outputs({}, tuple(torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes))


def test_deep_supervision_is_the_affinity_term_of_each_level() -> None:
    batch, student = make_batch(), levels(1)
    context = CONTEXT._replace(student=WIDTHS._replace(features=(5, 3)))
    made = build_terms([DeepSupervisionOptions(levels=(0, -1), boundary_width=2)], context)["deep_supervision"]
    value = made(student, None, batch)
    value.backward()
    assert all(p.grad is not None and p.grad.any() for p in [*made.parameters(), *student.features])
    expected = []
    for linear, features in zip(made.maps, student.features, strict=True):
        logits = (
            torch.einsum("oc,nczyx->nozyx", linear.weight[:, :, 0, 0, 0], features) + linear.bias[:, None, None, None]
        )
        whole = torch.nn.functional.interpolate(logits, size=SHAPE, mode="trilinear", align_corners=False)
        expected.append(term(AffinityOptions(boundary_width=2))(Outputs({"affinities": whole}, ()), None, batch).item())
    assert expected[0] != expected[1]
    assert value.item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_deep_supervision_of_a_level_that_is_not_there_is_refused() -> None:
    context = CONTEXT._replace(student=WIDTHS._replace(features=(5, 3)))
    with pytest.raises(ConfigError, match=r"decoder level 2 of the student, which has levels 0 to 1"):
        build_terms([DeepSupervisionOptions(levels=(2,))], context)


def test_coarse_z_widens_boundaries_in_the_plane_only() -> None:
    batch, student = make_batch(), outputs(1)
    coarse = CONTEXT._replace(voxel_size=(40.0, 4.0, 4.0))
    auto = build_terms([AffinityOptions()], coarse)["affinity"](student, None, batch)
    assert auto.item() == pytest.approx(term(AffinityOptions(boundary="yx"))(student, None, batch).item())
    assert auto.item() != pytest.approx(term(AffinityOptions(boundary="zyx"))(student, None, batch).item())


@pytest.mark.parametrize("options", [AffinityOptions, DiceOptions])
def test_sections_of_a_stack_have_no_membrane_between_them(options: Any) -> None:
    batch, student = make_batch(), outputs(1)
    flat = CONTEXT._replace(offsets=tuple((0, y, x) for _, y, x in OFFSETS if y or x))
    student = Outputs({"affinities": student.logits["affinities"][:, : len(flat.offsets)]}, ())
    auto, yx, zyx = (
        build_terms([options(boundary=boundary)], context)[options().name](student, None, batch).item()
        for boundary, context in (
            ("auto", flat),
            ("yx", flat),
            ("auto", flat._replace(offsets=(*flat.offsets[:-1], (-1, 0, 0)))),
        )
    )
    assert auto == pytest.approx(yx)
    assert auto != pytest.approx(zyx)


def test_balance_lets_both_classes_weigh_the_same() -> None:
    target = torch.zeros(1, 2, 1, 1, 10, dtype=torch.bool)
    target[0, 0, ..., :8] = True
    target[0, 1, ..., :3] = True
    known = torch.ones_like(target)
    known[..., 9] = False
    weights = balance(target, known)
    for channel in range(2):
        positive = weights[0, channel][target[0, channel]].sum()
        assert positive == pytest.approx(weights[0, channel][~target[0, channel]].sum().item())
    assert not weights[~known].any()
    assert weights[known].min() == 1
    only = balance(torch.ones_like(target), known)
    assert torch.equal(only, known.float())


def test_lsd_term_compares_known_voxels() -> None:
    batch = make_batch()
    target = described(batch.labels)
    perfect = torch.logit(target.clamp(1e-6, 1 - 1e-6))
    assert term(LsdOptions())(Outputs({"lsd": perfect}, ()), None, batch) < 1e-9
    wrong = torch.where(batch.mask[:, None], perfect, perfect + 3)
    assert term(LsdOptions())(Outputs({"lsd": wrong}, ()), None, batch) < 1e-9
    half = torch.zeros_like(perfect)
    known = batch.mask[:, None].expand_as(target)
    # the mean of the two crops' means
    expected = np.mean([((0.5 - t[k]) ** 2).mean().item() for t, k in zip(target, known, strict=True)])
    assert term(LsdOptions())(Outputs({"lsd": half}, ()), None, batch).item() == pytest.approx(expected, rel=1e-4)


def test_embedding_affinities_are_cosines_of_pairs() -> None:
    embedding = torch.randn(2, 5, *SHAPE)
    found = embedding_affinities(embedding, OFFSETS)
    p, q = embedding[1, :, 4, 5, 6], embedding[1, :, 4, 5, 3]
    assert found[1, 3, 4, 5, 6].item() == pytest.approx((p @ q / p.norm() / q.norm()).item(), rel=1e-5)
    assert not found[:, 3, :, :, :3].any()
    assert not embedding_affinities(torch.zeros(1, 5, *SHAPE), OFFSETS).any()


def test_embedding_term_ignores_the_basis_and_knows_the_solution() -> None:
    batch, student = make_batch(), outputs(1)
    basis, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))
    turned = Outputs({"embedding": torch.einsum("dc,nczyx->ndzyx", basis, student.logits["embedding"])}, ())
    made = term(EmbeddingOptions(boundary="none"))
    assert made(turned, None, batch).item() == pytest.approx(made(student, None, batch).item(), rel=1e-4)
    solution = torch.nn.functional.one_hot(batch.labels, 6).movedim(-1, 1).float()
    assert made(Outputs({"embedding": solution}, ()), None, batch) < 1e-10


def test_soft_affinity_of_equals_is_zero_and_has_no_gradient() -> None:
    student = outputs(1)
    teacher = Outputs({k: v.detach().clone() for k, v in student.logits.items()}, ())
    value = term(SoftAffinityOptions(temperature=3.0))(student, teacher, make_batch())
    value.backward()
    assert abs(value.item()) < 1e-6
    assert student.logits["affinities"].grad.abs().max() < 1e-8


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_soft_affinity_is_the_divergence_of_bernoulli_variables(temperature: float, balanced: bool) -> None:
    student, teacher = outputs(1), outputs(2)

    def p(o: Outputs) -> Tensor:
        return torch.sigmoid(o.logits["affinities"].detach().double() / temperature)

    t, s = p(teacher), p(student)
    divergence = t * (t / s).log() + (1 - t) * ((1 - t) / (1 - s)).log()
    joined = (t > 0.5).double()
    share = joined.mean((2, 3, 4), keepdim=True)
    # the two classes of each channel weigh the same
    weight = joined / share + (1 - joined) / (1 - share) if balanced else torch.ones_like(t)
    expected = temperature**2 * ((divergence * weight).sum((2, 3, 4)) / weight.sum((2, 3, 4))).mean()
    made = term(SoftAffinityOptions(temperature=temperature, balanced=balanced))
    value = made(student, teacher, make_batch())
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    value.backward()
    assert teacher.logits["affinities"].grad is None


@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_soft_affinity_survives_certain_teachers(logit: float) -> None:
    teacher = Outputs({"affinities": torch.full((2, len(OFFSETS), *SHAPE), logit)}, ())
    student = Outputs({"affinities": torch.full_like(teacher.logits["affinities"], -logit).requires_grad_()}, ())
    value = term(SoftAffinityOptions())(student, teacher, make_batch())
    value.backward()
    assert value.item() == pytest.approx(200, rel=1e-3)
    assert torch.isfinite(student.logits["affinities"].grad).all()


def test_weights_warm_up_linearly() -> None:
    options = SoftAffinityOptions(weight=0.5, warmup=10)
    assert [term_weight(options, step, 1000) for step in (0, 4, 10, 999)] == [0, 0.2, 0.5, 0.5]
    assert term_weight(AffinityOptions(weight=2.0), 0, 1000) == 2


@pytest.mark.parametrize(("decay", "middle"), [("none", 2.0), ("linear", 1.0), ("cosine", 1.0)])
def test_weights_start_late_and_decay_to_nothing(decay: str, middle: float) -> None:
    options = SoftAffinityOptions(weight=2.0, start=20, warmup=10, decay=decay)
    found = [term_weight(options, step, 130) for step in (0, 19, 25, 30, 80, 130)]
    assert found == pytest.approx([0, 0, 1, 2, middle, 2.0 if decay == "none" else 0.0])


def test_objective_trains_the_parameters_of_terms_too() -> None:
    class Scaled(Term):
        def __init__(self) -> None:
            super().__init__()
            self.factor = torch.nn.Parameter(torch.ones(()))

        def value(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
            return self.factor * student.logits["affinities"].mean()

    class Constant(torch.nn.Module):
        def forward(self, raw: Tensor) -> Outputs:
            return outputs(3)

    objective = Objective(Constant(), torch.nn.ModuleDict({"scaled": Scaled()}), torch.float32)
    objective(make_batch(), None)["scaled"].backward()
    assert [name for name, p in objective.named_parameters() if p.grad is not None] == ["terms.scaled.factor"]


class Pooling(torch.nn.Module):
    """A network whose outputs show where they come from."""

    def forward(self, raw: Tensor) -> Outputs:
        coarse = torch.nn.functional.avg_pool3d(raw, 2)
        return Outputs({"affinities": raw.repeat(1, len(OFFSETS), 1, 1, 1)}, (raw, coarse), (raw,), raw > 0)


class Seen(Term):
    """Keeps what it is given."""

    def value(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        self.found = (student, teacher, batch)
        return student.logits["affinities"].sum()


def test_no_term_sees_the_margin() -> None:
    raw = torch.rand(2, 1, 8, 8, 12)
    labels = torch.randint(1, 4, (2, 8, 8, 12))
    taught = Taught(torch.zeros(2, 1, 4, 8, 8, 12, dtype=torch.uint8), labels[:, None] > 1, torch.rand(2, 0, 8, 8, 12))
    descriptors = torch.rand(2, 10, 8, 8, 12)
    batch = Batch(raw, labels, labels > 1, labels, taught, descriptors, labelled=2.0)
    seen = Seen()
    objective = Objective(Pooling(), torch.nn.ModuleDict({"seen": seen}), torch.float32, (2, 0, 4))
    objective(batch, Pooling()(raw + 1))
    student, teacher, found = seen.found
    inner = (..., slice(2, 6), slice(None), slice(4, 8))
    for outputs, image in ((student, raw), (teacher, raw + 1)):
        assert torch.equal(outputs.logits["affinities"], image[inner].repeat(1, 4, 1, 1, 1))
        assert torch.equal(outputs.features[0], image[inner])
        # a coarse level covers the same voxels
        assert torch.equal(outputs.features[1], torch.nn.functional.avg_pool3d(image[inner], 2))
        assert torch.equal(outputs.skips[0], image[inner])
        assert torch.equal(outputs.known, image[inner] > 0)
    for name in ("raw", "labels", "mask", "instances", "descriptors"):
        assert torch.equal(getattr(found, name), getattr(batch, name)[inner])
    assert all(torch.equal(one, whole[inner]) for one, whole in zip(found.taught, taught, strict=True))
    assert found.labelled == 2.0


def test_where_no_term_looks_at_features_any_margin_will_do() -> None:
    seen, labels = Seen(), torch.ones(1, 8, 8, 8, dtype=torch.int64)
    objective = Objective(Pooling(), torch.nn.ModuleDict({"seen": seen}), torch.float32, (1, 0, 0), features=False)
    objective(Batch(torch.rand(1, 1, 8, 8, 8), labels, labels > 0), Pooling()(torch.rand(1, 1, 8, 8, 8)))
    assert seen.found[0].logits["affinities"].shape == seen.found[1].logits["affinities"].shape == (1, 4, 6, 8, 8)


def test_a_margin_that_cuts_through_a_coarse_voxel_is_refused() -> None:
    objective = Objective(Pooling(), torch.nn.ModuleDict({"seen": Seen()}), torch.float32, (1, 0, 0))
    labels = torch.ones(1, 8, 8, 8, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"train\.margin \(1, 0, 0\) cannot be cut from features of a stride of 2"):
        objective(Batch(torch.rand(1, 1, 8, 8, 8), labels, labels > 0), None)
