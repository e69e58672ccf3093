"""Graph Flow and the paraphrasers it stands on."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdseg.config.terms import GraphFlowOptions
from kdseg.errors import ConfigError
from kdseg.networks.models import Batch, Outputs, Widths
from kdseg.training.losses import Context, Term, build_terms
from kdseg.training.losses.flow import edges, strongest, vertices
from kdseg.training.losses.paraphraser import AutoEncoder, Paraphraser, PrincipalAxes, sampled

SHAPE = (6, 10, 12)
KINDS = ["pca", "autoencoder"]


def context(student: int = 4, teacher: int = 7, skips: int = 2) -> Context:
    def of(width: int) -> Widths:
        return Widths({"affinities": 3}, (width,) * (skips + 1), (width,) * skips)

    return Context(((-1, 0, 0),), (10.0, 10.0, 10.0), of(student), of(teacher))


def features(seed: int, width: int, shape: tuple[int, ...] = SHAPE, n: int = 2, levels: int = 2) -> Outputs:
    """Two levels of skips and features, and a bottleneck; the finer level is of `shape`."""
    generator = torch.Generator().manual_seed(seed)

    def made(level: int) -> Tensor:
        extents = [max(extent // 2**level, 1) for extent in shape]
        return torch.randn(n, width, *extents, generator=generator).requires_grad_()

    return Outputs({}, tuple(made(n) for n in range(levels + 1)), tuple(made(n) for n in range(levels)))


def changed(outputs: Outputs, change: Any) -> Outputs:
    return Outputs({}, tuple(map(change, outputs.features)), tuple(map(change, outputs.skips)))


def batch(n: int = 2) -> Batch:
    labels = torch.zeros(n, *SHAPE, dtype=torch.int64)
    return Batch(torch.zeros(n, 1, *SHAPE), labels, labels > 0)


def term(options: GraphFlowOptions, known: Context | None = None) -> Term:
    made = build_terms([options], known or context())["graph_flow"]
    assert isinstance(made, Term)
    return made


def fitted(options: GraphFlowOptions, teacher: Outputs, known: Context | None = None) -> Term:
    made = term(options, known)
    student = features(0, (known or context()).student.features[0])
    for _ in range(options.fit):
        made.parts(student, teacher, batch())
    return made


def reloaded(module: nn.Module, into: nn.Module) -> None:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    into.load_state_dict(torch.load(file, weights_only=True))


def volumes(seed: int, width: int = 5, n: int = 3) -> list[Tensor]:
    """Batches whose channels have different means and scales, and depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator) * torch.linspace(0.2, 3, width)
    drawn = (torch.randn(2, width, 4, 5, 6, generator=generator) for _ in range(n))
    return [torch.einsum("dc,nczyx->ndzyx", mix, each) + torch.arange(width).view(-1, 1, 1, 1) for each in drawn]


# paraphrasers


def test_principal_axes_are_those_of_all_voxels() -> None:
    seen = volumes(0)
    made = PrincipalAxes(5, 3, steps=len(seen))
    for values in seen:
        assert made.fitting
        made.fit(values)
    assert not made.fitting
    rows = torch.cat(seen).movedim(1, -1).reshape(-1, 5).double().numpy()
    _, _, axes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    axes = axes[:3]
    axes *= np.sign(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1))
    np.testing.assert_allclose(made.projection.numpy(), axes, atol=1e-6)
    found = made.encode(seen[1].requires_grad_())
    assert not found.requires_grad
    expected = (seen[1].detach().movedim(1, -1).double().numpy() - rows.mean(0)) @ axes.T
    np.testing.assert_allclose(found.movedim(1, -1).numpy(), expected, atol=1e-5)


def test_voxels_are_sampled_from_all_planes() -> None:
    shape = (8, 8, 16)
    places = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij")).expand(2, 3, *shape)
    rows = sampled(places.float(), 128)
    assert 64 < len(rows) <= 128
    assert [len(rows[:, axis].unique()) for axis in range(3)] == list(shape)
    assert len(sampled(places.float(), 10**6)) == 2 * 8 * 8 * 16


@pytest.mark.parametrize("width", [5, 9])
def test_principal_axes_keep_channels_that_need_no_reduction(width: int) -> None:
    made = PrincipalAxes(5, width, steps=10)
    values = volumes(1)[0]
    assert not made.fitting
    assert made.width == 5
    assert torch.equal(made.encode(values), values)


def test_autoencoder_learns_to_reconstruct() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    # 6 channels that are two
    field = torch.randn(1, 2, 3, 6, 6, generator=generator).repeat(1, 3, 1, 1, 1)
    made = AutoEncoder(6, 2, steps=40, rate=1e-2)

    def error() -> float:
        inputs = (field - made.shift) / made.scale
        return (made.coder(inputs) - inputs).abs().mean().item()

    made.fit(field)
    before = error()
    while made.fitting:
        made.fit(field)
    assert error() < 0.6 * before
    assert made.encode(field).shape == (1, 2, 3, 6, 6)


def test_autoencoder_ignores_the_scale_of_features() -> None:
    values = volumes(2)
    found = []
    for scale, shift in ((1.0, 0.0), (1000.0, 500.0)):
        torch.manual_seed(0)
        made = AutoEncoder(5, 2, steps=3)
        for each in values:
            made.fit(scale * each + shift)
        found.append(made.encode(scale * values[0] + shift))
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-3)


def test_no_other_optimiser_trains_the_autoencoder() -> None:
    made = AutoEncoder(5, 2, steps=2)
    before = [p.clone() for p in made.parameters()]
    made.fit(volumes(0)[0])
    assert not any(p.requires_grad or p.grad is not None for p in made.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, made.parameters(), strict=True))
    assert not made.encode(volumes(0)[0].requires_grad_()).requires_grad


@pytest.mark.parametrize("kind", [PrincipalAxes, AutoEncoder])
def test_a_continued_fit_equals_an_uninterrupted_one(kind: type[Paraphraser]) -> None:
    seen = volumes(3, n=4)
    torch.manual_seed(0)
    whole = kind(5, 3, 4)
    torch.manual_seed(0)
    begun = kind(5, 3, 4)
    for values in seen:
        whole.fit(values)
    for values in seen[:2]:
        begun.fit(values)
    continued = kind(5, 3, 4)
    reloaded(begun, continued)
    for values in seen[2:]:
        assert continued.fitting
        continued.fit(values)
    assert not continued.fitting
    assert torch.equal(continued.encode(seen[0]), whole.encode(seen[0]))


# the term


def naive_peaks(values: np.ndarray, patch: int, count: int) -> list[tuple[int, int, int]]:
    """Places of one channel, strongest first."""
    size, r, found = np.abs(values), patch // 2, []
    for place in np.ndindex(*values.shape):
        around = size[tuple(slice(max(p - r, 0), p + r + 1) for p in place)]
        if size[place] == around.max() and size[place] > 0:
            found.append((size[place], place))
    return [place for _, place in sorted(found, reverse=True)[:count]]


def naive_vertices(values: np.ndarray, places: list[list[tuple[int, int, int]]], patch: int, count: int) -> np.ndarray:
    """One crop, float64 (c, z, y, x)."""
    r, out = patch // 2, []
    for channel, at in zip(values, places, strict=True):
        padded = np.pad(channel, r)
        boxes = [padded[z : z + patch, y : y + patch, x : x + patch].ravel() for z, y, x in at]
        vector = np.concatenate([*boxes, np.zeros((count - len(boxes)) * patch**3)])
        out.append(vector / np.sqrt((vector**2).sum() + 1e-4 * (values**2).mean() + 1e-6))
    return np.array(out)


@pytest.mark.parametrize(("at", "patch", "peaks"), [("teacher", 5, 4), ("own", 3, 1), ("own", 5, 3)])
def test_the_term_is_that_of_the_loop(at: Any, patch: int, peaks: int) -> None:
    options = GraphFlowOptions(levels=(0, 1), at=at, patch=patch, peaks=peaks)
    student, teacher = features(1, 4), features(2, 4)
    found = term(options, context(4, 4)).parts(student, teacher, batch())
    of_vertices, of_edges = [], []
    for level in (0, 1):
        for n in range(2):
            drawn = {}
            for layer in ("skips", "features"):
                s, t = (getattr(o, layer)[level][n].detach().double().numpy() for o in (student, teacher))
                there = [naive_peaks(channel, patch, peaks) for channel in t]
                here = [naive_peaks(channel, patch, peaks) for channel in s] if at == "own" else there
                drawn["s", layer] = naive_vertices(s, here, patch, peaks)
                drawn["t", layer] = naive_vertices(t, there, patch, peaks)
            u = [drawn[side, "features"] - drawn[side, "skips"] for side in "st"]
            of_vertices += [((u[0] - u[1]) ** 2).sum(1).mean()]
            e = {key: each @ each.T for key, each in drawn.items()}
            turned = e["s", "features"] - e["s", "skips"] - e["t", "features"] + e["t", "skips"]
            of_edges += [np.mean([turned[i, j] ** 2 for i in range(4) for j in range(4) if i != j])]
    assert found["vertices"].item() == pytest.approx(np.mean(of_vertices), rel=1e-5)
    assert found["edges"].item() == pytest.approx(np.mean(of_edges), rel=1e-4)


def test_vertices_and_edges_are_those_of_the_loop_to_the_last_digits() -> None:
    values = torch.randn(2, 3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    found = vertices(values, strongest(values, 5, 40), 5)
    for n in range(2):
        places = [naive_peaks(channel, 5, 40) for channel in values[n].numpy()]
        assert min(map(len, places)) < 40  # some patches are empty
        naive = naive_vertices(values[n].numpy(), places, 5, 40)
        np.testing.assert_allclose(found[n].numpy(), naive, atol=1e-9)
        cosines = naive @ naive.T
        np.testing.assert_allclose(edges(found)[n].numpy(), cosines - np.diag(np.diag(cosines)), atol=1e-9)


def test_peaks_are_distinct() -> None:
    values = torch.zeros(1, 1, *SHAPE)
    values[0, 0, 3, 4, 4:7] = torch.tensor([2.0, -3.0, 1.0])  # one peak of three voxels
    values[0, 0, 0, 0, 0] = 0.5
    found = strongest(values, 5, 4)
    assert found.found.tolist() == [[[True, True, False, False]]]
    assert found.places[0, 0, :2].tolist() == [3 * 120 + 4 * 12 + 5, 0]


@pytest.mark.parametrize("at", ["teacher", "own"])
def test_a_student_that_is_its_teacher_is_right(at: Any) -> None:
    student = features(1, 4)
    teacher = changed(student, lambda t: t.detach().clone())
    found = term(GraphFlowOptions(levels=(0, 1), at=at), context(4, 4))(student, teacher, batch())
    found.backward()
    assert found.item() == 0
    for values in (*student.features[:2], *student.skips):
        assert not values.grad.any()


def test_a_student_that_is_its_paraphrased_teacher_is_right_and_only_that() -> None:
    teacher = features(2, 7)
    made = fitted(GraphFlowOptions(fit=3), teacher)
    axes = made.paraphrasers

    def student(scale: float = 1.0) -> Outputs:
        skip, feature = axes["skip0"].encode(teacher.skips[0]), axes["feature0"].encode(teacher.features[0])
        return Outputs({}, (feature, *teacher.features[1:]), (scale * skip, *teacher.skips[1:]))

    parts = made.parts(student(), teacher, batch())
    assert parts["vertices"] < 1e-10
    assert parts["edges"] < 1e-10
    # unit vectors have no scale
    assert made.parts(student(20.0), teacher, batch())["vertices"] < 1e-8
    other = made.parts(student(-1.0), teacher, batch())
    assert other["vertices"] > 1
    assert other["edges"] < 1e-10  # turning all of a layer round changes no cosine
    random = made.parts(features(3, 4), teacher, batch())
    assert random["vertices"] > 0.1
    assert random["edges"] > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_the_term_is_zero_while_the_paraphraser_is_fitted(kind: Any) -> None:
    made, teacher, student = term(GraphFlowOptions(fit=2, paraphraser=kind)), features(2, 7), features(1, 4)
    made.eval()
    assert made(student, teacher, batch()) == 0  # validation fits nothing
    made.train()
    for _ in range(2):
        value = made(student, teacher, batch())
        value.backward()
        assert value.item() == 0
        assert not student.features[0].grad.any()
    assert made(student, teacher, batch()) > 0
    with torch.no_grad():
        kept = {name: value.clone() for name, value in made.named_buffers()}
    made(student, features(9, 7), batch())
    assert all(torch.equal(value, kept[name]) for name, value in made.named_buffers())


def test_a_continued_run_equals_an_uninterrupted_one() -> None:
    options, student = GraphFlowOptions(fit=3, paraphraser="autoencoder"), features(1, 4)
    torch.manual_seed(0)
    whole = term(options)
    torch.manual_seed(0)
    begun, continued = term(options), term(options)
    taught = [features(seed, 7) for seed in range(10, 15)]
    expected = [whole(student, teacher, batch()).item() for teacher in taught]
    found = [begun(student, teacher, batch()).item() for teacher in taught[:2]]
    reloaded(begun, continued)
    found += [continued(student, teacher, batch()).item() for teacher in taught[2:]]
    assert found == expected
    assert expected[-1] > 0


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.flip(0),
        lambda t: t.flip(2),
        lambda t: t.flip((3, 4)),
        lambda t: t.transpose(3, 4),
    ],
    ids=["crops", "z", "yx", "transposed"],
)
@pytest.mark.parametrize("at", ["teacher", "own"])
def test_order_and_orientation_of_crops_do_not_matter(change: Any, at: Any) -> None:
    student, teacher = features(1, 4), features(2, 7)
    made = fitted(GraphFlowOptions(fit=1, at=at), teacher)
    value = made(student, teacher, batch())
    assert made(changed(student, change), changed(teacher, change), batch()).item() == pytest.approx(
        value.item(), rel=1e-4
    )


@pytest.mark.parametrize("shape", [(1, 10, 12), (2, 2, 2), (1, 1, 1)])
def test_flat_and_tiny_crops_work(shape: tuple[int, ...]) -> None:
    student, teacher = features(1, 4, shape), features(2, 4, shape)
    value = term(GraphFlowOptions(), context(4, 4))(student, teacher, batch())
    value.backward()
    assert value.item() > 0
    assert torch.isfinite(student.features[0].grad).all()


@pytest.mark.parametrize("side", ["student", "teacher", "both", "constant"])
def test_silent_channels_give_finite_gradients(side: str) -> None:
    def silent(t: Tensor) -> Tensor:
        return torch.full_like(t, 3.0 if side == "constant" else 0.0).detach().requires_grad_()

    student, teacher = features(1, 4), features(2, 4)
    if side != "teacher":
        student = changed(student, silent)
    if side != "student":
        teacher = changed(teacher, silent)
    value = term(GraphFlowOptions(), context(4, 4))(student, teacher, batch())
    value.backward()
    assert np.isfinite(value.item())
    assert torch.isfinite(student.features[0].grad).all()
    if side in ("teacher", "both"):
        assert value == 0  # there is nowhere to look
        assert not student.features[0].grad.any()


def test_a_channel_that_is_silent_at_the_peaks_does_not_blow_up_the_gradient() -> None:
    student, teacher = features(1, 4), features(2, 4)
    quiet = changed(student, lambda t: t.detach().clone())
    quiet.features[0][:, 0] = 1e-12
    quiet = changed(quiet, lambda t: t.requires_grad_())
    options = GraphFlowOptions()
    for each in (student, quiet):
        term(options, context(4, 4))(each, teacher, batch()).backward()
    ratio = quiet.features[0].grad.abs().max() / student.features[0].grad.abs().max()
    assert ratio < 1e4


def test_bfloat16_features_are_compared_in_float32() -> None:
    student, teacher = features(1, 4), features(2, 7)
    made = fitted(GraphFlowOptions(fit=1), teacher)
    exact = made(student, teacher, batch())
    with torch.autocast("cpu", torch.bfloat16):
        rough = made(changed(student, Tensor.bfloat16), changed(teacher, Tensor.bfloat16), batch())
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=1e-2)
    rounded = [changed(each, lambda t: t.bfloat16().float()) for each in (student, teacher)]
    assert torch.equal(rough, made(*rounded, batch()))


def test_more_of_the_student_learns_than_as_published() -> None:
    shape = (12, 40, 40)
    teacher, share = features(2, 8, shape, n=1), {}
    for name, options in (
        ("published", GraphFlowOptions(patch=3, peaks=1, at="own")),
        ("here", GraphFlowOptions()),
    ):
        student = features(1, 8, shape, n=1)
        term(options, context(8, 8))(student, teacher, batch(1)).backward()
        share[name] = (student.features[0].grad != 0).float().mean().item()
    assert share["published"] == pytest.approx(27 / (12 * 40 * 40), rel=0.2)
    assert share["here"] > 12 * share["published"]


def test_learning_by_the_term_leads_to_the_teacher() -> None:
    teacher = features(2, 4)
    student = features(1, 4)
    made = term(GraphFlowOptions(), context(4, 4))
    optimiser = torch.optim.Adam([*student.features, *student.skips], lr=0.05)
    first = made(student, teacher, batch()).item()
    for _ in range(60):
        optimiser.zero_grad()
        made(student, teacher, batch()).backward()
        optimiser.step()
    assert made(student, teacher, batch()).item() < 0.05 * first


def test_a_teacher_of_another_stride_is_brought_to_the_students_grid() -> None:
    student, teacher = features(1, 4), features(2, 4)
    fine = changed(teacher, lambda t: t.repeat_interleave(2, 3).repeat_interleave(2, 4))
    made = term(GraphFlowOptions(), context(4, 4))
    value = made(student, teacher, batch()).item()
    assert made(student, fine, batch()).item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("at", ["teacher", "own"])
def test_channels_that_the_teacher_lacks_are_not_compared(at: Any) -> None:
    teacher = features(2, 4)
    student = changed(teacher, lambda t: torch.cat([t.detach(), torch.randn_like(t)[:, :2]], 1).requires_grad_())
    value = term(GraphFlowOptions(at=at), context(6, 4))(student, teacher, batch())
    assert value < 1e-10


def test_a_layer_that_needs_no_paraphraser_is_kept_while_another_is_fitted() -> None:
    wide, narrow = features(2, 7), features(3, 4)
    known = context()
    made = term(GraphFlowOptions(fit=2), known._replace(teacher=known.teacher._replace(skips=(4, 4))))
    for _ in range(3):
        value = made(features(1, 4), Outputs({}, wide.features, narrow.skips), batch())
    assert value > 0
    assert torch.equal(made.paraphrasers["skip0"].encode(narrow.skips[0]), narrow.skips[0])


@pytest.mark.parametrize("level", [2, -1, -2])
def test_levels_without_an_encoder_are_refused(level: int) -> None:
    with pytest.raises(ConfigError, match="levels 0 to 1 have both"):
        term(GraphFlowOptions(levels=(0, level)))


def test_stored_teachers_are_refused() -> None:
    known = context()
    with pytest.raises(ConfigError, match="not stored"):
        term(GraphFlowOptions(), known._replace(teacher=Widths({"affinities": 3}, (), ())))


def test_parts_have_their_weights() -> None:
    made = term(GraphFlowOptions(vertices=2.0, edges=0.5), context(4, 4))
    student, teacher = features(1, 4), features(2, 4)
    parts = made.parts(student, teacher, batch())
    assert made(student, teacher, batch()).item() == pytest.approx(
        2 * parts["vertices"].item() + parts["edges"].item() / 2
    )
