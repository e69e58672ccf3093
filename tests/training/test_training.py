"""The training loop: it learns, continues where it stopped, and shares its work without changing it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_trainings import KILLED, NEVER, OFFSETS, assert_same_state, numbers, options, same
from torch import Tensor
from toy_volumes import cells, write_volume

from kdseg.config import ModelOptions
from kdseg.config.networks import TIMED_STEPS, HeadOptions
from kdseg.config.segmentation import WatershedOptions
from kdseg.errors import ClaimError, ConfigError, DataError, KdsegError, StageError, VoxelSizeError
from kdseg.networks.checkpoint import load, load_model
from kdseg.networks.models import Network, Outputs
from kdseg.networks.models.base import Heads
from kdseg.networks.models.device import Ranks
from kdseg.results.curve import Curve, read_curve
from kdseg.training import Result, learning_rate, loop, train, validation
from kdseg.training.budget import Pace, fitting, fixed_steps
from kdseg.training.pull import due, factors, looks, pulls, record
from kdseg.training.run import Data, prepare
from kdseg.training.sampling import Source, loader
from kdseg.training.validation import validate as score
from kdseg.training.validation import validation_crop

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("volumes")
    raw, labels = cells((20, 24, 24), 8)
    return {"a": (write_volume(folder / "raw.zarr", raw), write_volume(folder / "labels.zarr", labels))}


def run(folder: Path, made: ModelOptions, volumes: Any, **more: Any) -> Result:
    return train(
        made,
        offsets=OFFSETS,
        volumes=volumes,
        out=folder / "model.safetensors",
        folder=folder / "run",
        device="cpu",
        **more,
    )


def test_a_run_leaves_a_model_a_curve_and_its_best_score(tmp_path: Path, volumes: Any) -> None:
    made = options(heads={"lsd": True}, terms=[{"name": "affinity"}, {"name": "lsd", "weight": 0.5}], validate_every=4)
    result = run(tmp_path, made, volumes, name="teacher")
    rows = numbers(tmp_path)
    assert list(rows[0]) == [
        "step", "learning_rate", "affinity", "lsd", "total", "voi", "voi_split", "voi_merge", "arand", "threshold",
        "affinity_loss",
    ]  # fmt: skip
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert float(row["total"]) == pytest.approx(float(row["affinity"]) + 0.5 * float(row["lsd"]), rel=1e-4)
        assert float(row["learning_rate"]) == pytest.approx(
            learning_rate(int(row["step"]) - 1, made.train, 6), rel=1e-4
        )
    scored = {int(row["step"]): float(row["voi"]) for row in rows if row["voi"]}
    assert set(scored) == {4, 6}
    assert result.scores.voi == pytest.approx(min(scored.values()), rel=1e-5)
    assert scored[result.step] == pytest.approx(result.scores.voi, rel=1e-5)
    model = load_model(result.model)
    assert (model.meta["name"], model.meta["step"]) == ("teacher", result.step)
    assert model.meta["scores"]["voi"] == result.scores.voi
    assert (model.offsets, model.voxel_size) == (OFFSETS, (10.0, 10.0, 10.0))
    assert model.heads.lsd


@pytest.mark.slow
def test_it_learns_one_crop_by_heart(tmp_path: Path) -> None:
    raw, labels = cells((16, 24, 24), 5, seed=3)
    volumes = {"a": (write_volume(tmp_path / "raw.zarr", raw), write_volume(tmp_path / "labels.zarr", labels))}
    made = options(
        {"kind": "unet", "widths": [8, 16]}, crop=[16, 24, 24], batch=1, steps=100, validate_every=50,
        checkpoint_every=100, validate_shape=[16, 24, 24], learning_rate=1e-2, warmup=5, ema=0.9, augment=NEVER,
    )  # fmt: skip
    result = run(tmp_path, made, volumes)
    rows = read_curve(tmp_path / "run" / "curve.csv")
    assert float(rows[0]["total"]) > 0.5
    assert float(rows[-1]["total"]) < 0.15
    assert result.scores.voi < 0.8
    assert result.scores.arand < 0.15


def job(folder: Path, made: ModelOptions, volumes: Any, *teachers: Path) -> str:
    places = {name: [str(path) for path in paths] for name, paths in volumes.items()}
    values = {"options": made.model_dump(mode="json"), "offsets": OFFSETS, "volumes": places, "folder": str(folder)}
    return json.dumps(values | {"teachers": [str(path) for path in teachers]})


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """The number of threads may change the last bit of a sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
def test_a_killed_run_continues_to_the_same_weights(tmp_path: Path, volumes: Any) -> None:
    made = options(accumulate=2, steps=8, ema=0.5)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-c", KILLED, "kill", job(killed, made, volumes)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert load(killed / "run" / "state.pt")["step"] == 4
    assert [row["step"] for row in numbers(killed)] == ["1", "2", "3", "4", "5"]
    assert not (killed / "model.safetensors").exists()
    run(killed, made, volumes)
    run(whole, made, volumes)
    assert_same_state(killed, whole)
    assert numbers(killed) == numbers(whole)
    ours, theirs = (load_model(folder / "model.safetensors").network.state_dict() for folder in (killed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.usefixtures("_one_thread")
def test_a_run_in_bfloat16_continues_to_the_same_weights(
    tmp_path: Path, volumes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = options(precision="bfloat16", steps=5, validate_every=4)
    append = Curve.append

    def interrupted(self: Curve, row: Any) -> None:
        append(self, row)
        if row["step"] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Curve, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", made, volumes)
    run(tmp_path / "stopped", made, volumes)
    run(tmp_path / "whole", made, volumes)
    assert_same_state(tmp_path / "stopped", tmp_path / "whole")


def test_a_finished_run_is_not_run_again(tmp_path: Path, volumes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path, options(), volumes)
    before = (tmp_path / "run" / "curve.csv").read_text()
    first.model.unlink()
    monkeypatch.setattr(loop, "step", None)
    assert run(tmp_path, options(), volumes) == first
    assert first.model.exists()
    assert (tmp_path / "run" / "curve.csv").read_text() == before


def test_the_state_of_other_options_is_refused(tmp_path: Path, volumes: Any) -> None:
    run(tmp_path, options(), volumes)
    run(tmp_path, options(checkpoint_every=5, loader_workers=1), volumes)
    with pytest.raises(ClaimError, match="other options"):
        run(tmp_path, options(learning_rate=1e-2), volumes)


@pytest.mark.slow
@pytest.mark.parametrize("distilled", [False, True])
def test_two_processes_do_the_work_of_one(tmp_path: Path, volumes: Any, teacher: Path, distilled: bool) -> None:
    """Two processes with a crop each take the steps of one that adds up the gradients of two crops.

    While the student distils, one of the two has ground truth, and the other none.
    """
    changes: dict[str, Any] = {}
    if distilled:
        terms = [
            {"name": "affinity"},
            {"name": "cwd"},
            {"name": "graph_relation", "taps": ["affinities"], "min_size": 2},
        ]
        changes = {"teacher": "t", "terms": terms, "normalise": True, "unlabelled": ["b"], "unlabelled_fraction": 0.5}
        volumes = volumes | {"b": volumes["a"]}
    teachers = [teacher] if distilled else []
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        [*command, "finish", job(shared, options(batch=2, **changes), volumes, *teachers)],
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    run(alone, options(batch=1, accumulate=2, **changes), volumes, teachers=teachers)
    assert len(numbers(shared)) == 6
    for ours, theirs in zip(numbers(shared), numbers(alone), strict=True):
        assert float(ours["total"]) == pytest.approx(float(theirs["total"]), rel=1e-4)
        for name in [name for name in ours if name.startswith("pull.") and ours[name]]:
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-3)
    a, b = (load(folder / "run" / "state.pt")["objective"] for folder in (shared, alone))
    for name in a:
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)


def prepared(made: ModelOptions, volumes: Any, *teachers: Path) -> Any:
    return prepare(made, OFFSETS, Data(volumes, {}, teachers), "x", Ranks(CPU), WatershedOptions())


def test_the_average_follows_the_weights(volumes: Any) -> None:
    state = prepared(options(ema=0.2), volumes)
    batches = iter(loader(state.crops, 0))
    expected = [p.detach().clone() for p in state.objective.network.parameters()]
    for step in range(1, 5):
        loop.step(state, batches)
        decay = min(0.2, step / (9 + step))
        now = [p.detach() for p in state.objective.network.parameters()]
        expected = [decay * e + (1 - decay) * p for e, p in zip(expected, now, strict=True)]
        for mean, e, p in zip(state.average.parameters(), expected, now, strict=True):
            torch.testing.assert_close(mean, e, rtol=1e-5, atol=1e-6)
            assert not torch.equal(mean, p) or not p.any()
        for mean, b in zip(state.average.buffers(), state.objective.network.buffers(), strict=True):
            assert torch.equal(mean, b)


def test_labels_in_the_margin_teach_nothing(volumes: Any) -> None:
    terms = [
        {"name": "affinity", "boundary": "none"}, {"name": "lsd"}, {"name": "dice", "boundary": "none"},
        {"name": "deep_supervision", "boundary": "none"},
    ]  # fmt: skip
    made = options(
        {"kind": "unet", "widths": [4, 6], "downsample": [[1, 2, 2]], "kernels": [[1, 3, 3]] * 2},
        heads={"lsd": True}, terms=terms, margin=[1, 2, 2], augment={**NEVER, "rotate": "yx", "turn": 1.0},
    )  # fmt: skip
    rows, batch = [], next(iter(loader(prepared(made, volumes).crops, 0)))
    for inside in (False, True):
        inner = torch.zeros_like(batch.mask)
        inner[:, 1:-1, 2:-2, 2:-2] = True
        other = torch.where(inner if inside else ~inner, 1 + torch.arange(12), batch.labels)
        rows += [loop.step(prepared(made, volumes), iter([found])) for found in (batch, batch._replace(labels=other))]
    names = ("affinity", "dice", "deep_supervision", "lsd")
    assert all(rows[0][name] > 0 for name in names)
    assert all(rows[1][name] == rows[0][name] for name in names)
    assert all(rows[3][name] != rows[0][name] for name in names[:3])


def test_no_average_ships_the_weights(volumes: Any) -> None:
    state = prepared(options(ema=0), volumes)
    loop.step(state, iter(loader(state.crops, 0)))
    weights = zip(state.average.parameters(), state.objective.network.parameters(), strict=True)
    assert all(torch.equal(mean, p) for mean, p in weights)


def test_gradients_are_clipped_and_norms_do_not_decay(volumes: Any) -> None:
    state = prepared(options(gradient_clip=1e-3), volumes)
    loop.step(state, iter(loader(state.crops, 0)))
    total = torch.stack([p.grad.norm() for p in state.objective.parameters()]).norm()
    assert total.item() == pytest.approx(1e-3, rel=1e-2)
    decaying, rest = state.optimiser.param_groups
    assert (decaying["weight_decay"], rest["weight_decay"]) == (1e-2, 0)
    assert all(p.ndim == 5 for p in decaying["params"])
    assert all(p.ndim == 1 for p in rest["params"])
    assert len(decaying["params"]) + len(rest["params"]) == len(list(state.objective.parameters()))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, volumes: Any) -> Path:
    return run(tmp_path_factory.mktemp("teacher"), options({"kind": "unet", "widths": [2, 2, 2]}), volumes).model


def distilling(**changes: Any) -> ModelOptions:
    return options(teacher="t", terms=[{"name": "affinity"}, {"name": "soft_affinity", "warmup": 2}], **changes)


def test_a_student_learns_from_its_teacher_where_there_are_no_labels(
    tmp_path: Path, volumes: Any, teacher: Path
) -> None:
    before = teacher.read_bytes()
    more = {**volumes, "b": (volumes["a"][0], None)}
    made = distilling(unlabelled=["b"], unlabelled_fraction=1.0, steps=30, validate_every=30, learning_rate=1e-2)
    run(tmp_path, made, more, teachers=[teacher])
    rows = numbers(tmp_path)
    assert all(float(row["affinity"]) == 0 for row in rows)
    soft = [float(row["soft_affinity"]) for row in rows]
    assert float(rows[0]["total"]) == 0  # the term's weight starts at 0
    assert float(rows[1]["total"]) == pytest.approx(soft[1] / 2, rel=1e-4)
    assert np.mean(soft[-5:]) < 0.5 * np.mean(soft[:5])
    assert teacher.read_bytes() == before


LEARNING = [
    {"name": "affinity"},
    {"name": "graph_relation", "taps": [0, "affinities"], "min_size": 2, "memory_start": 2, "node": 0.5},
    {"name": "graph_flow", "fit": 3, "patch": 3},
    {"name": "ft", "fit": 3},
    {"name": "adversarial", "widths": [2, 3], "learning_rate": 1e-3},
    {"name": "mgd"},
    {"name": "vid", "start": 2, "warmup": 2, "decay": "cosine"},
]
"""Terms that learn or remember something: projectors, moments, paraphrasers, a discriminator."""


@pytest.mark.usefixtures("_one_thread")
def test_what_terms_learn_and_remember_is_continued_too(
    tmp_path: Path, volumes: Any, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = options(teacher="t", terms=LEARNING, normalise=True, steps=8, validate_every=8)
    append = Curve.append

    def interrupted(self: Curve, row: Any) -> None:
        append(self, row)
        if row["step"] == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Curve, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", made, volumes, teachers=[teacher])
    run(tmp_path / "stopped", made, volumes, teachers=[teacher])
    run(tmp_path / "whole", made, volumes, teachers=[teacher])
    one, two = (load(tmp_path / name / "run" / "state.pt") for name in ("stopped", "whole"))
    for part in ("objective", "average", "optimiser", "scales", "step"):
        assert same(one[part], two[part]), part
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "whole")
    last = numbers(tmp_path / "whole")[-1]
    assert all(float(last[name]) != 0 for name in one["scales"])  # every part works by then
    assert len(one["scales"]) == 12  # and has a gradient


@pytest.mark.usefixtures("_one_thread")
def test_normalised_terms_pull_by_their_weight(volumes: Any, teacher: Path) -> None:
    """The oracle: gradients of each part alone, of the same network on the same crops."""
    terms = [{"name": "affinity", "weight": 2.0}, {"name": "soft_affinity"}, {"name": "cwd", "weight": 0.5}]
    given = {"teacher": "t", "terms": terms, "normalise": True, "accumulate": 2, "learning_rate": 1e-30}
    state = prepared(options(**given), volumes, teacher)
    rows = []
    for _ in range(2):  # the rate lets nothing move
        rows.append(loop.step(state, iter(loader(state.crops, 0))))
    assert state.scales.keys() == {"affinity", "soft_affinity", "cwd"}
    # at first only the part on ground truth acts: how strong the others are is not known yet
    assert rows[0]["total"] == pytest.approx(2 * rows[0]["affinity"])
    norms = {}
    for name in state.scales:
        alone = prepared(options(**given), volumes, teacher)
        batches = iter(loader(alone.crops, 0))
        for _ in range(2):
            (loop._parts(alone, next(batches))[name] / 2).backward()
        norms[name] = torch.cat([p.grad.flatten() for p in alone.objective.network.parameters() if p.grad is not None])
    lengths = {name: norm.norm().item() for name, norm in norms.items()}
    assert state.scales == pytest.approx(lengths, rel=1e-4)
    assert {name: rows[1][f"pull.{name}"] for name in lengths} == pytest.approx(
        {name: length / lengths["affinity"] for name, length in lengths.items()}, rel=1e-4
    )
    balanced = {"affinity": 2.0, "soft_affinity": 1.0, "cwd": 0.5}
    expected = sum(w * rows[1][name] * lengths["affinity"] / lengths[name] for name, w in balanced.items())
    assert rows[1]["total"] == pytest.approx(expected, rel=1e-4)


def test_a_part_that_says_nothing_leaves_its_norm(volumes: Any) -> None:
    state = prepared(options(normalise=True), volumes)
    record(state, {"affinity": torch.zeros(1, 3)})  # it has not begun: its first norm would be 0 for ever
    assert state.scales == {}
    record(state, {"affinity": torch.tensor([[2.0, 0.0]])})
    for silent in (0.0, float("nan"), float("inf")):
        record(state, {"affinity": torch.tensor([[silent]])})
    assert state.scales == {"affinity": 2.0}
    record(state, {"affinity": torch.tensor([[4.0]])})
    assert state.scales == {"affinity": 3.0}
    # as in float16: the first overflows at the scaler's factor, the second does not
    record(state, {"affinity": torch.tensor([[float("inf")], [5.0]])})
    assert state.scales == {"affinity": 4.0}


def test_the_part_that_others_are_compared_with() -> None:
    acting = ["cwd", "affinity", "at"]
    assert pulls({"cwd": 4.0, "affinity": 2.0, "vid": 1.0}, acting) == {"cwd": 2.0, "affinity": 1.0}
    assert pulls({"cwd": 4.0, "at": 2.0}, acting) == {"cwd": 1.0, "at": 0.5}  # no crop with ground truth yet
    assert factors({"cwd": 2.0, "affinity": 1.0}, acting) == {"cwd": 0.5, "affinity": 1.0}
    assert factors({}, acting) == {"affinity": 1.0}
    assert factors({}, ["cwd", "at"]) == {"cwd": 1.0}
    assert factors({}, ["cwd", "embedding"]) == {"embedding": 1.0}  # of a network without an affinity head
    assert factors({}, ["cwd", "dice"]) == {"dice": 1.0}
    assert pulls({"cwd": 4.0, "embedding": 2.0}, ["cwd", "embedding"]) == {"cwd": 2.0, "embedding": 1.0}
    assert factors({"affinity": 1.0, "at": 1e-9}, acting)["at"] == 1e4  # noise is not blown up


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_ground_truth_counts_alike_however_a_step_is_cut(
    tmp_path: Path, volumes: Any, teacher: Path, accumulate: int
) -> None:
    """Values of a step of four crops, of which one is labelled, are those of the labelled one."""
    terms = [{"name": "affinity"}, {"name": "graph_relation", "taps": ["affinities"], "min_size": 2}]
    both = volumes | {"b": volumes["a"]}
    given = {
        "teacher": "t", "terms": terms, "unlabelled": ["b"], "unlabelled_fraction": 0.75, "learning_rate": 1e-30,
        "batch": 4 // accumulate, "accumulate": accumulate, "augment": NEVER,
    }  # fmt: skip
    state = prepared(options(**given), both, teacher)
    network = state.objective.network.eval()
    network.train = lambda mode=True: network  # type: ignore[method-assign, assignment]
    (labelled,) = (index for index in range(4) if not state.crops.is_unlabelled(index))
    row = loop.step(state, iter(loader(state.crops, 0)))
    alone = prepared(options(**given), both, teacher)
    alone.objective.eval()
    crop = state.crops[labelled]
    expected = alone.objective(crop, alone.teachers(crop))  # type: ignore[misc]
    assert row["affinity"] == pytest.approx(expected["affinity"].item(), rel=1e-5)
    assert row["graph_relation.edge"] == pytest.approx(expected["graph_relation.edge"].item(), rel=1e-5)


def test_terms_without_weight_and_their_teacher_are_not_computed(volumes: Any, teacher: Path) -> None:
    terms = [
        {"name": "affinity"},
        {"name": "soft_affinity", "start": 2},
        {"name": "fitnets", "level": -1, "weight": 0.0},
        {"name": "ft", "fit": 2, "start": 4},
    ]
    state = prepared(options(teacher="t", terms=terms[:3]), volumes, teacher)
    asked: list[int] = []
    found = state.teachers
    assert found is not None
    state.teachers = lambda batch: asked.append(state.step) or found(batch)  # type: ignore[assignment, func-returns-value]
    batches = iter(loader(state.crops, 0))
    rows = [loop.step(state, batches) for _ in range(4)]
    assert asked == [2, 3]
    assert [row["soft_affinity"] != 0 for row in rows] == [False, False, True, True]
    assert all(row["fitnets"] == 0 for row in rows)
    projector = dict(state.objective.terms["fitnets"].named_parameters())
    assert projector
    assert all(p.grad is not None and not p.grad.any() for p in projector.values())
    # one that learns before it acts is computed just before, and never if it never acts
    for weight, expected in ((1.0, [False, False, True, True]), (0.0, [False] * 4)):
        learning = prepared(options(teacher="t", terms=[terms[0], terms[3] | {"weight": weight}]), volumes, teacher)
        count = learning.objective.terms["ft"].state_dict()["paraphraser.moments.count"]
        batches, learned = iter(loader(learning.crops, 0)), []
        for _ in range(4):
            before = float(count)
            loop.step(learning, batches)
            learned.append(float(count) > before)
        assert learned == expected


def test_without_distillation_the_teacher_is_not_asked(volumes: Any, teacher: Path) -> None:
    terms = [{"name": "affinity"}, {"name": "fitnets", "level": -1}]
    off = prepared(options(teacher="t", terms=terms, distil=False), volumes)
    alone = prepared(options(), volumes)
    assert off.teachers is None
    assert list(off.objective.terms) == ["affinity"]
    assert loop.step(off, iter(loader(off.crops, 0))) == loop.step(alone, iter(loader(alone.crops, 0)))
    on = prepared(options(teacher="t", terms=terms), volumes, teacher)
    projector = dict(on.objective.terms["fitnets"].named_parameters())
    trained = {id(p) for group in on.optimiser.param_groups for p in group["params"]}
    assert projector
    assert all(id(p) in trained for p in projector.values())


@pytest.mark.parametrize("size", [9.6, 10.4])
def test_a_teacher_knows_voxels_that_differ_by_less_than_a_twentieth(
    tmp_path: Path, teacher: Path, size: float
) -> None:
    raw = write_volume(tmp_path / "raw.zarr", np.ones((20, 24, 24), np.uint8), (10.0, 10.0, size))
    labels = write_volume(tmp_path / "labels.zarr", np.ones((20, 24, 24), np.uint64), (10.0, 10.0, size))
    state = prepared(distilling(), {"a": (raw, labels)}, teacher)
    assert len(state.teachers.networks) == 1


def test_a_teacher_that_does_not_fit_is_refused(tmp_path: Path, volumes: Any, teacher: Path) -> None:
    other = write_volume(tmp_path / "raw.zarr", np.ones((20, 24, 24), np.uint8), (9.0, 10.0, 10.0))
    labels = write_volume(tmp_path / "labels.zarr", np.ones((20, 24, 24), np.uint64), (9.0, 10.0, 10.0))
    with pytest.raises(VoxelSizeError, match="the data have"):
        run(tmp_path, distilling(), {"a": (other, labels)}, teachers=[teacher])
    with pytest.raises(ConfigError, match="offsets"):
        train(
            distilling(),
            offsets=OFFSETS[:3],
            volumes=volumes,
            out=tmp_path / "m.safetensors",
            folder=tmp_path,
            teachers=[teacher],
        )
    with pytest.raises(ConfigError, match="0 teacher checkpoints"):
        run(tmp_path, distilling(), volumes)
    with pytest.raises(ConfigError, match="teacher's pooling"):
        run(tmp_path, distilling(crop=[8, 12, 6]), volumes, teachers=[teacher])
    with pytest.raises(ConfigError, match="network's pooling"):
        run(tmp_path, options(crop=[8, 12, 7]), volumes)


def test_volumes_of_another_voxel_size_are_refused(tmp_path: Path, volumes: Any) -> None:
    flat = tuple(
        write_volume(tmp_path / f"{dtype.__name__}.zarr", np.ones((20, 24, 24), dtype), (10.0, 5.0, 10.0))
        for dtype in (np.uint8, np.uint64)
    )
    with pytest.raises(VoxelSizeError, match=r"'b' has voxels of \(10\.0, 5\.0, 10\.0\) nm, the volumes to train on"):
        run(tmp_path, options(validate_on="b"), {**volumes, "b": flat})
    with pytest.raises(ConfigError, match="'yx' needs voxels as wide as high"):
        run(tmp_path, options(augment={"rotate": "yx"}), {"a": flat})


def test_a_part_that_never_acts_is_said(tmp_path: Path, volumes: Any, teacher: Path, caplog: Any) -> None:
    def said(start: int, accumulate: int = 1) -> list[str]:
        caplog.clear()
        terms = [{"name": "affinity"}, {"name": "graph_relation", "taps": ["affinities", 0], "memory_start": start}]
        made = options(steps=2, teacher="t", terms=terms, accumulate=accumulate)
        run(tmp_path / f"{start}-{accumulate}", made, volumes, teachers=[teacher])
        return [record.getMessage() for record in caplog.records if "never acts" in record.getMessage()]

    assert not said(1)
    assert not said(3, accumulate=2)  # it acts in the last batch of the last step
    assert said(4, accumulate=2)
    assert said(2) == [
        "the term 'graph_relation' relates to earlier crops after 2 steps, but the training has 2: this part never "
        "acts; lower its `memory_start`"
    ]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, volumes: Any) -> None:
    with pytest.raises(StageError, match=r"at step 2 .*lower learning_rate"):
        run(tmp_path, options(learning_rate=1e30, warmup=0), volumes)
    assert len(numbers(tmp_path)) == 1


def test_half_precision_scales_its_gradients(tmp_path: Path, volumes: Any) -> None:
    run(tmp_path, options(precision="float16", steps=2), volumes)
    assert load(tmp_path / "run" / "state.pt")["scaler"]["scale"] > 1


def test_learning_rate_rises_linearly_and_falls_to_nothing() -> None:
    made = options(steps=110, warmup=10, learning_rate=0.5).train
    rates = [learning_rate(step, made, 110) for step in range(111)]
    assert rates[:3] == pytest.approx([0.05, 0.1, 0.15])
    assert max(rates) == rates[10] == pytest.approx(0.5)
    assert rates[60] == pytest.approx(0.25)
    assert rates[110] == pytest.approx(0)
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_the_learning_rate_falls_when_the_number_of_steps_is_known() -> None:
    made = options(steps=None, seconds=60, warmup=10, learning_rate=0.5).train
    assert made.full_rate_steps == 42
    assert [learning_rate(step, made, inf) for step in (0, 9, 10, 41, 1000)] == pytest.approx(
        [0.05, 0.5, 0.5, 0.5, 0.5]
    )
    assert [learning_rate(step, made, 142) for step in (10, 41, 42, 92, 142)] == pytest.approx([0.5, 0.5, 0.5, 0.25, 0])


def test_what_is_timed_begins_when_all_terms_act() -> None:
    terms = [{"name": "affinity"}, {"name": "graph_flow", "fit": 60}, {"name": "vid", "start": 25}]
    assert options(steps=None, seconds=60, teacher="t", terms=terms, accumulate=2).train.full_rate_steps == 62
    assert options(steps=None, seconds=60, teacher="t", terms=terms, distil=False).train.full_rate_steps == 34


def test_seconds_become_steps_once_and_a_killed_run_keeps_them(
    tmp_path: Path, volumes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = options(steps=None, seconds=900, checkpoint_every=1, validate_every=1000)
    known = made.train.full_rate_steps
    append = Curve.append

    def stop_after(step: int) -> dict[str, Any]:
        def interrupted(self: Curve, row: Any) -> None:
            append(self, row)
            if row["step"] == step:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Curve, "append", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path, made, volumes)
        state: dict[str, Any] = load(tmp_path / "run" / "state.pt")
        return state

    with pytest.raises(FileNotFoundError):  # steps that are timed are not saved: they are timed again
        stop_after(known - 1)
    first = stop_after(known + 3)
    second = stop_after(known + 5)
    assert (first["step"], second["step"]) == (known + 2, known + 4)
    assert known < first["steps"] < inf
    assert second["steps"] == first["steps"]
    rows = numbers(tmp_path)
    assert [int(row["step"]) for row in rows if row["voi"]] == [known]
    for row in rows:
        expected = learning_rate(int(row["step"]) - 1, made.train, first["steps"])
        assert float(row["learning_rate"]) == pytest.approx(expected, rel=1e-4)


def test_steps_that_fit() -> None:
    assert fitting(100, lambda steps: 0.5 * steps + (steps / 20 + 1) * 10) == 90  # 90 steps, 4.5 validations, the last
    assert fitting(10.4, lambda steps: steps) == 10
    for left in (9.0, -5.0):  # too short for a validation
        with pytest.raises(ConfigError, match=rf"at least {12 - left} s more") as refused:
            fitting(left, lambda steps: 2 * steps + 10)
        assert "\n" not in str(refused.value)


def test_gradients_are_looked_at_less_often_later() -> None:
    seldom = [step for step in range(1000) if due(step, ["a"], ["a"])]
    assert seldom == [0, 1, 2, 4, *range(7, 128, 7), *range(155, 1000, 31)]
    for first, last in ((0, 1000), (3, 127), (100, 140), (500, 500), (129, 160), (129, 161)):
        assert looks(first, last) == sum(first <= step < last for step in seldom)
    # any steps that are timed hold one
    assert all(looks(step, step + TIMED_STEPS) for step in range(1000))


def test_time_is_for_as_many_looks_at_gradients_as_there_will_be(volumes: Any) -> None:
    state = prepared(options(steps=None, seconds=100.0, normalise=True, validate_every=10**6), volumes)
    state.step, state.seconds = 96, 0.0
    pace = Pace()
    pace.validated = 1.0
    pace.steps.extend((looks(step, step + 1) > 0, 0.5 if looks(step, step + 1) else 0.1) for step in range(64, 96))
    steps = fixed_steps(state, pace) - 96
    spent = [sum(0.5 if looks(step, step + 1) else 0.1 for step in range(96, 96 + n)) + 1 for n in (steps, steps + 1)]
    assert spent[0] <= 100 < spent[1] + 1e-3


def test_a_part_without_gradient_is_measured_as_seldom_as_the_others(
    volumes: Any, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = [{"name": "affinity"}, {"name": "cwd", "start": 9}, {"name": "ft", "fit": 1000}]
    state = prepared(options(steps=2000, teacher="t", terms=terms, normalise=True), volumes, teacher)
    seen: dict[int, list[str]] = {}
    measure = loop.gradients

    def noted(run: Any, parts: Any, names: Any) -> Any:
        seen[run.step] = list(names)
        return measure(run, parts, names)

    monkeypatch.setattr(loop, "gradients", noted)
    batches = iter(loader(state.crops, 0))
    for _ in range(12):
        loop.step(state, batches)
    assert "ft" not in state.scales
    assert {step: names for step, names in seen.items() if names} == {
        **{step: ["affinity", "ft"] for step in (0, 1, 2, 4, 7)}, 9: ["cwd"],
    }  # fmt: skip


def test_too_little_time_is_refused(tmp_path: Path, volumes: Any) -> None:
    with pytest.raises(ConfigError, match=r"too short: 0\.001 s are over after 1 of the 34 steps") as refused:
        run(tmp_path, options(steps=None, seconds=1e-3), volumes)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="not both"):
        options(seconds=60)
    assert ModelOptions.model_validate_json(options(steps=None, seconds=60).model_dump_json()).train.seconds == 60
    assert options(steps=None).train.steps == 1000


def test_terms_and_heads_need_each_other() -> None:
    for heads, terms in (({"lsd": True}, ["affinity"]), ({}, ["affinity", "embedding"]), ({}, ["lsd"])):
        with pytest.raises(ValueError, match=r"need each other|need a term|need an embedding"):
            options(heads=heads, terms=[{"name": name} for name in terms])
    with pytest.raises(ValueError, match="given once"):
        options(terms=[{"name": "affinity"}, {"name": "affinity"}])


class Oracle(Network):
    """Reads the labels off raw data that show them."""

    halo, stride = (2, 4, 4), (1, 2, 2)

    def __init__(self) -> None:
        super().__init__()
        self.heads = Heads(3, HeadOptions(), OFFSETS[:3])  # hands the features on
        with torch.no_grad():
            for parameter in self.heads.parameters():
                parameter.copy_(torch.eye(3)[:, :, None, None, None] if parameter.ndim == 5 else torch.zeros(3))

    def forward(self, raw: Tensor) -> Outputs:
        self._check(raw)
        padded = torch.nn.functional.pad(raw, (1, 0, 1, 0, 1, 0), value=-1)
        here = padded[:, :, 1:, 1:, 1:]
        there = [padded[:, :, :-1, 1:, 1:], padded[:, :, 1:, :-1, 1:], padded[:, :, 1:, 1:, :-1]]
        same = torch.cat([here == other for other in there], dim=1)
        features = torch.where(same, 9.0, -9.0)
        return Outputs(self.heads(features), (features,))


def test_validation_of_an_oracle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, labels = cells((30, 50, 50), 12)
    raw = write_volume(tmp_path / "raw.zarr", (labels * 20).astype(np.uint8))
    source = Source("a", raw, write_volume(tmp_path / "labels.zarr", labels[3:, 5:, :], offset=(30.0, 50.0, 0.0)))
    crop = validation_crop(source, (21, 99, 40))
    assert (crop.roi.offset, crop.roi.shape) == ((6, 5, 5), (21, 45, 40))
    np.testing.assert_array_equal(crop.labels, labels[6:27, 5:50, 5:45])
    scored = score(Oracle(), crop, OFFSETS[:3], torch.float32, CPU, WatershedOptions())
    assert scored.voi == pytest.approx(scored.voi_split + scored.voi_merge)
    assert scored.voi < 0.4
    assert scored.arand < 0.05
    # it knows no membrane between neurons that touch, which is what students learn
    learned = validation_crop(source, (21, 99, 40), "none")
    exact = score(Oracle(), learned, OFFSETS[:3], torch.float32, CPU, WatershedOptions())
    assert 0 < exact.affinity_loss < 1e-2 < scored.affinity_loss
    # Where the run's own watershed finds no inside, nothing is told apart: the option is used.
    blind = score(Oracle(), crop, OFFSETS[:3], torch.float32, CPU, WatershedOptions(boundary=1.0))
    assert blind.voi > scored.voi + 0.5
    monkeypatch.setattr(validation, "VALIDATED", (0.5, 1.0))  # the last one merges everything
    assert score(Oracle(), crop, OFFSETS[:3], torch.float32, CPU, WatershedOptions()).threshold == 0.5


def test_validation_where_nothing_is_labelled_is_refused(tmp_path: Path) -> None:
    labels = np.zeros((20, 24, 24), np.uint64)
    labels[:, :2] = 1
    raw = write_volume(tmp_path / "raw.zarr", np.ones(labels.shape, np.uint8))
    source = Source("a", raw, write_volume(tmp_path / "labels.zarr", labels))
    with pytest.raises(DataError, match="has no labels"):
        validation_crop(source, (4, 4, 4))


def test_a_curve_drops_what_came_after_and_rows_that_were_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "curve.csv"
    with Curve(path, ["step", "a", "b"], keep=0) as curve:
        for step in (1, 2, 3):
            curve.append({"step": step, "a": step / 3})
    with path.open("a") as file:
        file.write("4,0.1,2")  # of 2.5
    assert [row["step"] for row in read_curve(path)] == ["1", "2", "3"]
    with Curve(path, ["step", "a", "b"], keep=2) as curve:
        curve.append({"step": 3, "b": 7.0})
    assert path.read_text().split() == ["step,a,b", "1,0.333333,", "2,0.666667,", "3,,7"]
    (tmp_path / "file").write_text("")
    with pytest.raises(KdsegError, match="cannot write"):
        Curve(tmp_path / "file" / "curve.csv", ["step"], keep=0)
