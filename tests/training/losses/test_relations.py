"""Relations between channels, voxels and samples: closed forms against loops, and what must not matter to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdseg.config.terms import CpkdOptions, DistOptions, IfvdOptions, SkdOptions, SpkdOptions
from kdseg.errors import ConfigError, ShapeError
from kdseg.networks.models import Batch, Outputs, Widths
from kdseg.training.losses import Context, Term, make_term
from kdseg.training.losses.affinity import bernoulli_divergence
from kdseg.training.losses.similarity import (
    block_mean,
    channel_relations,
    gram,
    pearson_relations,
    pixel_relations,
    sample_relations,
    samples,
)

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
OURS = Widths({"affinities": 3}, (4, 6), (4,))
THEIRS = Widths({"affinities": 3}, (5, 6), (5,))
CONTEXT = Context(OFFSETS, (10.0, 10.0, 10.0), student=OURS, teacher=THEIRS)
SHAPE = (4, 6, 8)


def noise(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def outputs(seed: int, widths: Widths, known: Tensor | None = None) -> Outputs:
    z, y, x = SHAPE
    grids = [SHAPE, (z // 2, y // 2, x // 2)]
    features = tuple(
        noise(seed + i, 2, c, *grid).requires_grad_()
        for i, (c, grid) in enumerate(zip(widths.features, grids, strict=True))
    )
    return Outputs({"affinities": (2 * noise(seed + 9, 2, 3, *SHAPE)).requires_grad_()}, features, (), known)


def batch(instances: Tensor | None = None) -> Batch:
    labels = torch.ones(2, *SHAPE, dtype=torch.int64)
    return Batch(torch.zeros(2, 1, *SHAPE), labels, labels > 0, instances)


def term(options: Any, context: Context = CONTEXT) -> Term:
    made = make_term(options, context)
    assert isinstance(made, Term)
    return made


def copied(student: Outputs) -> Outputs:
    return Outputs(
        {k: v.detach().clone() for k, v in student.logits.items()}, tuple(f.detach().clone() for f in student.features)
    )


@pytest.mark.parametrize("widths", [(5, 5), (3, 7)])
@pytest.mark.parametrize("chunk", [4096, 50])
def test_pixel_relations_are_those_of_the_whole_map(
    widths: tuple[int, int], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdseg.training.losses.similarity.CHUNK", chunk)
    ours, theirs = (noise(i, 2, c, *SHAPE, dtype=torch.float64).requires_grad_(i == 0) for i, c in enumerate(widths))
    s, t = (v.flatten(2) / v.flatten(2).norm(dim=1, keepdim=True) for v in (ours, theirs))
    naive = (torch.einsum("ncp,ncq->npq", s, s) - torch.einsum("ncp,ncq->npq", t, t)).square().mean()
    value = pixel_relations(ours, theirs)
    assert value.item() == pytest.approx(naive.item(), rel=1e-9)
    (found,) = torch.autograd.grad(value, ours)
    (expected,) = torch.autograd.grad(naive, ours)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-12)
    rough = pixel_relations(ours.detach().float(), theirs.float())
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(naive.item(), rel=1e-6)


def test_pixel_relations_keep_small_differences_of_large_crops() -> None:
    ours = noise(0, 1, 8, 32, 32, 32)
    theirs = ours + 1e-2 * noise(1, 1, 8, 32, 32, 32)
    exact = pixel_relations(ours.double(), theirs.double()).item()
    assert 1e-6 < exact < 1e-4
    assert pixel_relations(ours, theirs).item() == pytest.approx(exact, rel=2e-3)


def test_gram_is_the_product() -> None:
    a, b = noise(0, 2, 3, 10000), noise(1, 2, 5, 10000)
    assert torch.allclose(gram(a, b), a.double() @ b.double().mT, rtol=1e-5, atol=1e-3)
    assert gram(a, b).dtype == torch.float64


def test_channel_relations_are_those_of_the_loop() -> None:
    ours, theirs = noise(0, 2, 4, *SHAPE), noise(1, 2, 4, *SHAPE)
    losses = []
    for s, t in zip(ours.double().numpy(), theirs.double().numpy(), strict=True):
        for i in range(4):
            for j in range(4):

                def cosine(v: Any, i: int = i, j: int = j) -> float:
                    return (v[i] * v[j]).sum() / np.sqrt((v[i] ** 2).sum() * (v[j] ** 2).sum())

                losses.append((cosine(s) - cosine(t)) ** 2)
    assert channel_relations(ours, theirs).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_pixel_relations_ignore_the_basis_and_channel_relations_the_place() -> None:
    ours, theirs = noise(0, 2, 4, *SHAPE), noise(1, 2, 4, *SHAPE)
    basis, _ = torch.linalg.qr(noise(2, 4, 4))
    turned = torch.einsum("dc,nczyx->ndzyx", basis, ours)
    assert pixel_relations(turned, theirs).item() == pytest.approx(pixel_relations(ours, theirs).item(), rel=1e-5)
    assert channel_relations(turned, theirs).item() != pytest.approx(channel_relations(ours, theirs).item(), rel=0.05)
    for relations in (pixel_relations, channel_relations):
        value = relations(ours, theirs).item()
        assert relations(ours.rot90(1, (3, 4)).flip(2), theirs.rot90(1, (3, 4)).flip(2)).item() == pytest.approx(
            value, rel=1e-5
        )
        # both compare directions: neither scale of the networks matters
        assert relations(7 * ours, theirs / 9).item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_pearson_relations_are_correlations(masked: bool) -> None:
    ours, theirs = torch.sigmoid(noise(0, 2, 3, *SHAPE)), torch.sigmoid(noise(1, 2, 3, *SHAPE))
    known = torch.ones(ours.shape, dtype=torch.bool)
    if masked:
        known[:, 0, :1] = False
        known[0, :, :, :3] = False
        known[1, 2] = False
    s, t, k = (v.numpy() for v in (ours.double(), theirs.double(), known))
    inter, intra = [], []
    for n in range(2):
        found = []
        for p in np.ndindex(*SHAPE):
            here = k[(n, slice(None), *p)]
            if here.sum() > 1:
                found.append(1 - np.corrcoef(s[(n, slice(None), *p)][here], t[(n, slice(None), *p)][here])[0, 1])
        inter.append(np.mean(found))
        each = [1 - np.corrcoef(s[n, c][k[n, c]], t[n, c][k[n, c]])[0, 1] for c in range(3) if k[n, c].any()]
        assert len(each) == (2 if masked and n else 3)
        intra.append(np.mean(each))
    values = pearson_relations(ours, theirs, known if masked else None)
    assert values[0].item() == pytest.approx(np.mean(inter), rel=1e-5)
    assert values[1].item() == pytest.approx(np.mean(intra), rel=1e-5)


def test_pearson_relations_forgive_scale_and_shift_and_do_not_divide_by_nothing() -> None:
    theirs = torch.sigmoid(noise(1, 2, 3, *SHAPE))
    inter, intra = pearson_relations(0.3 + 0.5 * theirs, theirs)
    assert inter < 1e-6
    assert intra < 1e-6
    constant = torch.full_like(theirs, 0.25)
    assert pearson_relations(constant, constant.clone()) == (0, 0)
    ours = constant.clone().requires_grad_()
    inter, intra = pearson_relations(ours, theirs)
    assert inter.item() == pytest.approx(0.5)
    assert intra.item() == pytest.approx(0.5)
    (inter + intra).backward()
    assert torch.isfinite(ours.grad).all()
    assert pearson_relations(ours, theirs, torch.zeros(ours.shape, dtype=torch.bool)) == (0, 0)


def test_samples_are_parts_of_crops() -> None:
    values = noise(0, 2, 3, 5, 6, 8)
    found = samples(values, (2, 3, 1))
    assert found.shape == (12, 3 * 2 * 2 * 8)
    # crop 1, second part along z, second along y; the last section is left over
    assert torch.equal(found[6 + 3 + 1], values[1, :, 2:4, 2:4].flatten())
    with pytest.raises(ShapeError, match="use fewer parts"):
        samples(values, (6, 1, 1))


def test_sample_relations_are_those_of_the_loop() -> None:
    ours, theirs = noise(0, 5, 30), noise(1, 5, 12)
    maps = []
    for rows in (ours.double().numpy(), theirs.double().numpy()):
        similarity = rows @ rows.T
        maps.append(similarity / np.linalg.norm(similarity, axis=1, keepdims=True))
    assert sample_relations(ours, theirs).item() == pytest.approx(((maps[0] - maps[1]) ** 2).mean(), rel=1e-5)
    assert sample_relations(1e9 * ours, 1e-9 * theirs).item() == pytest.approx(
        sample_relations(ours, theirs).item(), rel=1e-4
    )


def test_block_mean_is_average_pooling() -> None:
    values = noise(0, 2, 3, 5, 6, 8)
    assert torch.allclose(block_mean(values, (2, 3, 1)), torch.nn.functional.avg_pool3d(values, (2, 3, 1)), atol=1e-6)
    with pytest.raises(ShapeError, match="smaller pool"):
        block_mean(values, (1, 7, 1))


@pytest.mark.parametrize(
    "options",
    [
        CpkdOptions(level=1),
        CpkdOptions(reading="pearson", temperature=2.0),
        DistOptions(),
        SpkdOptions(),
        SkdOptions(level=0),
        SkdOptions(level=1, pool=(2, 1, 2)),
        IfvdOptions(level=0, min_size=1),
    ],
    ids=str,
)
def test_equal_networks_differ_in_nothing(options: Any) -> None:
    context = CONTEXT._replace(teacher=OURS)
    student = outputs(0, OURS)
    instances = torch.arange(2 * 4 * 6 * 8).reshape(2, *SHAPE) // 24
    parts = term(options, context).parts(student, copied(student), batch(instances))
    for value in parts.values():
        assert 0 <= value.abs() < 1e-6
    torch.stack(list(parts.values())).sum().backward()
    gradients = [v.grad for v in (*student.features, *student.logits.values()) if v.grad is not None]
    assert gradients
    assert all(g.abs().max() < 1e-8 for g in gradients)


def test_cpkd_maps_channels_but_not_voxels() -> None:
    made = term(CpkdOptions(channel=2.0, pixel=3.0))
    student, teacher = outputs(0, OURS), outputs(50, THEIRS)
    parts = made.parts(student, teacher, batch())
    mapped = made.projector(student.features[0])
    assert parts["channel"].item() == pytest.approx(channel_relations(mapped, teacher.features[0]).item(), rel=1e-6)
    assert parts["pixel"].item() == pytest.approx(
        pixel_relations(student.features[0], teacher.features[0]).item(), rel=1e-6
    )
    total = made(student, teacher, batch())
    assert total.item() == pytest.approx(2 * parts["channel"].item() + 3 * parts["pixel"].item(), rel=1e-6)
    total.backward()
    assert {p.shape for p in made.parameters() if p.grad is not None and p.grad.any()} >= {(5, 4, 1, 1, 1)}
    assert teacher.features[0].grad is None


def test_cpkd_read_as_correlations_is_dist() -> None:
    student, teacher = outputs(0, OURS), outputs(50, THEIRS)
    cpkd = term(CpkdOptions(reading="pearson", temperature=3.0)).parts(student, teacher, batch())
    dist = term(DistOptions(temperature=3.0)).parts(student, teacher, batch())
    assert cpkd["pixel"] == dist["inter"]
    assert cpkd["channel"] == dist["intra"]
    s, t = (torch.sigmoid(o.logits["affinities"] / 3) for o in (student, teacher))
    inter, intra = pearson_relations(s, t)
    assert dist["inter"].item() == pytest.approx(9 * inter.item())
    assert dist["intra"].item() == pytest.approx(9 * intra.item())
    total = term(DistOptions(inter=0.5, intra=4.0, temperature=3.0))(student, teacher, batch())
    assert total.item() == pytest.approx(9 * (0.5 * inter + 4 * intra).item(), rel=1e-6)


def test_what_the_teacher_did_not_predict_does_not_count() -> None:
    known = torch.ones(2, 3, *SHAPE, dtype=torch.bool)
    known[:, 0, :1] = False
    student, teacher = outputs(0, OURS), outputs(50, THEIRS, known)
    other = teacher._replace(logits={"affinities": teacher.logits["affinities"].masked_fill(~known, 9.0)})
    for options, changed in ((DistOptions(), {"inter", "intra"}), (SkdOptions(), {"pixel"})):
        made = term(options)
        parts = made.parts(student, teacher, batch())
        assert made.parts(student, other, batch()) == parts
        everywhere = made.parts(student, other._replace(known=None), batch())
        assert {name for name in parts if everywhere[name] != parts[name]} == changed


def test_skd_is_the_divergence_of_affinities_and_the_relations_of_pooled_voxels() -> None:
    student, teacher = outputs(0, OURS), outputs(50, THEIRS)
    made = term(SkdOptions(level=0, pool=(2, 2, 2), pixel=0.5, pair=2.0))
    parts = made.parts(student, teacher, batch())
    s, t = (torch.sigmoid(o.logits["affinities"].detach().double()) for o in (student, teacher))
    divergence = t * (t / s).log() + (1 - t) * ((1 - t) / (1 - s)).log()
    assert parts["pixel"].item() == pytest.approx(divergence.mean().item(), rel=1e-5)
    pooled = [torch.nn.functional.avg_pool3d(o.features[0], 2) for o in (student, teacher)]
    assert parts["pair"].item() == pytest.approx(pixel_relations(*pooled).item(), rel=1e-5)
    assert made(student, teacher, batch()).item() == pytest.approx(
        0.5 * parts["pixel"].item() + 2 * parts["pair"].item(), rel=1e-6
    )
    assert bernoulli_divergence(torch.zeros(3), torch.zeros(3)).abs().max() == 0


def test_spkd_compares_all_parts_of_all_crops() -> None:
    student, teacher = outputs(0, OURS), outputs(50, THEIRS)
    value = term(SpkdOptions(level=1, parts=(1, 3, 2)))(student, teacher, batch())
    cut = [samples(o.features[1], (1, 3, 2)) for o in (student, teacher)]
    assert len(cut[0]) == 12
    assert value.item() == pytest.approx(sample_relations(*cut).item(), rel=1e-6)


def test_ifvd_is_that_of_the_loop() -> None:
    instances = torch.zeros(2, *SHAPE, dtype=torch.int64)
    instances[0, :2], instances[0, 2:, :4], instances[1, :, :, 3:] = 1, 2, 3
    instances[1, 0, 0, :2] = 4
    student, teacher = outputs(0, OURS), outputs(50, THEIRS)
    errors: list[list[float]] = [[], []]
    for n, i in ((0, 1), (0, 2), (1, 3)):
        inside = (instances[n] == i).numpy()
        cosines = []
        for o in (student, teacher):
            voxels = o.features[0][n].detach().double().numpy()[:, inside]
            mean = voxels.mean(1)
            cosines.append(mean @ voxels / np.linalg.norm(mean) / np.linalg.norm(voxels, axis=0))
        errors[n] += list((cosines[0] - cosines[1]) ** 2)
    value = term(IfvdOptions(min_size=3))(student, teacher, batch(instances))
    assert value.item() == pytest.approx(np.mean([np.mean(each) for each in errors]), rel=1e-5)
    # of a run in which three crops may have instances in each batch, on average
    shared = term(IfvdOptions(min_size=3))(student, teacher, batch(instances)._replace(instanced=3.0))
    assert shared.item() == pytest.approx(value.item() * 2 / 3, rel=1e-5)
    # of a coarser level, sizes are still those of the full grid
    assert term(IfvdOptions(level=1, min_size=120))(student, teacher, batch(instances)) > 0
    assert term(IfvdOptions(level=1, min_size=121))(student, teacher, batch(instances)) == 0
    with pytest.raises(ConfigError, match="instances"):
        term(IfvdOptions())(student, teacher, batch())


@pytest.mark.parametrize("options", [CpkdOptions(), SpkdOptions(), SkdOptions(), IfvdOptions()], ids=lambda o: o.name)
def test_features_of_stored_teachers_are_refused(options: Any) -> None:
    stored = CONTEXT._replace(teacher=Widths({"affinities": 3}, (), ()))
    with pytest.raises(ConfigError, match="online"):
        term(options, stored)
    assert isinstance(term(DistOptions(), stored), Term)


@pytest.mark.parametrize("options", [CpkdOptions(reading="pearson"), DistOptions(), SkdOptions()], ids=lambda o: o.name)
def test_other_offsets_are_refused(options: Any) -> None:
    with pytest.raises(ConfigError, match="same offsets"):
        term(options, CONTEXT._replace(teacher=THEIRS._replace(logits={"affinities": 4})))
