"""Savings of the closed forms of distillation, one row per figure.

    OMP_NUM_THREADS=1 python benchmarks/distillation.py [WORD ...]

Runs the rows whose name holds one of the words, or all. Each figure is measured in a process of its own. Seconds
are those of the CPU, which other processes do not stretch; memory is the growth of the peak resident memory above that
with the inputs alone.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kdseg.config.networks import HeadOptions, UNetOptions
from kdseg.config.terms import AffinityOptions, EmbeddingOptions, GraphRelationOptions
from kdseg.networks.models import Batch, Outputs, build, resolve_precision, widths
from kdseg.networks.models.base import channels_last, placed
from kdseg.training.losses import Context, Objective, Term, build_terms
from kdseg.training.losses.instances import instance_means
from kdseg.training.losses.memory import Moment, moment_distances
from kdseg.training.losses.similarity import pixel_relations

Triple = tuple[int, int, int]


def measured(job: Callable[..., Any], *inputs: Any) -> tuple[float, float, Any]:
    """Return CPU seconds, GiB and the result of ``job(*made)``, in a fresh process; made is what ``inputs`` makes.

    Args:
        job: a function of this module.
        inputs: (function of this module, *its arguments), called before the clock starts.
    """
    measurement: tuple[float, float, Any] = apart(_measured, job, inputs)
    return measurement


def apart(job: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function of this module returns in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(job, arguments)


def _measured(job: Callable[..., Any], inputs: tuple[Any, ...]) -> tuple[float, float, Any]:
    make, *arguments = inputs
    made = make(*arguments)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    found = job(*made)
    seconds = time.process_time() - start
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20, found


# --- relations between voxels ---------------------------------------------------------------------------------------


def two_features(shape: Triple, ours: int, theirs: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(1, ours, *shape, generator=generator).requires_grad_(),
        torch.randn(1, theirs, *shape, generator=generator),
    )


def naive_relations(ours: Tensor, theirs: Tensor) -> Tensor:
    s, t = (normalize(values.flatten(2), dim=1, eps=1e-6) for values in (ours, theirs))
    return (s.mT @ s - t.mT @ t).square().mean()


def with_gradient(form: Callable[[Tensor, Tensor], Tensor], ours: Tensor, theirs: Tensor) -> float:
    value = form(ours, theirs)
    value.backward()
    return value.item()


def closed_job(ours: Tensor, theirs: Tensor) -> float:
    return with_gradient(pixel_relations, ours, theirs)


def naive_job(ours: Tensor, theirs: Tensor) -> float:
    return with_gradient(naive_relations, ours, theirs)


def refused_job(ours: Tensor, theirs: Tensor) -> str:
    try:
        naive_relations(ours, theirs)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return "was not refused"


def pixel_relations_full() -> None:
    shape = (64, 160, 160)
    voxels = shape[0] * shape[1] * shape[2]
    for ours, theirs in ((8, 8), (8, 32), (16, 16)):
        seconds, memory, _ = measured(closed_job, two_features, shape, ours, theirs)
        print(f"{shape}, {ours} and {theirs} channels, value and gradient: {seconds:.2f} s, {memory:.2f} GiB")
    print(f"one map of all pairs would take {4 * voxels**2:,} bytes ({4 * voxels**2 / 2**40:.1f} TiB)")
    print("asked for it, torch says:", measured(refused_job, two_features, shape, 8, 8)[2])


def pixel_relations_small() -> None:
    shape = (16, 20, 20)
    closed = measured(closed_job, two_features, shape, 8, 32)
    naive = measured(naive_job, two_features, shape, 8, 32)
    difference = abs(closed[2] - naive[2]) / naive[2]
    print(
        f"{shape}, 8 and 32 channels: {closed[0]:.4f} s and {closed[1]:.3f} GiB in closed form, {naive[0]:.2f} s and "
        f"{naive[1]:.2f} GiB by the map of all pairs; {naive[0] / closed[0]:.0f} times as fast, values "
        f"{closed[2]:.9f} and {naive[2]:.9f} ({difference:.0e} apart)"
    )


# --- relations between instances ------------------------------------------------------------------------------------


def boxes(shape: Triple, per_axis: Triple) -> Tensor:
    """Instances in boxes, int64 (1, z, y, x) from 1."""
    z, y, x = (torch.arange(n) * k // n for n, k in zip(shape, per_axis, strict=True))
    return (1 + (z[:, None, None] * per_axis[1] + y[:, None]) * per_axis[2] + x)[None]


def looped_means(values: Tensor, ids: Tensor, count: int) -> Tensor:
    """A mask per instance, as published."""
    rows = values.movedim(1, -1)
    return torch.stack([rows[ids == number].mean(0) for number in range(1, count + 1)])


def means_by(form: Callable[..., Any], values: Tensor, ids: Tensor, count: int) -> Tensor:
    means = form(values, ids, count)
    return means[0] if isinstance(means, tuple) else means


def means_job(shape: Triple, per_axis: Triple, channels: int) -> dict[str, float]:
    ids, count = boxes(shape, per_axis), per_axis[0] * per_axis[1] * per_axis[2]
    generator = torch.Generator().manual_seed(0)
    field = torch.randn(1, *shape, channels, generator=generator).movedim(-1, 1)  # as networks return it
    pull = torch.randn(count, channels, generator=generator)
    found = {}
    for name, form in (("ours", instance_means), ("loop", looped_means)):
        # the first gradient of a process waits for imports
        warm = torch.ones(1, 1, 1, 1, 2, requires_grad=True)
        torch.autograd.grad(means_by(form, warm, ids[:, :1, :1, :2], 1), warm, torch.ones(1, 1))
        values = field.clone(memory_format=torch.preserve_format).requires_grad_()
        start = time.process_time()
        means = means_by(form, values, ids, count)
        (gradient,) = torch.autograd.grad(means, values, pull)
        found[name] = time.process_time() - start, means.detach(), gradient
    (fast, means, gradient), (slow, expected, slope) = found["ours"], found["loop"]
    return {
        "ours": fast,
        "loop": slow,
        "values": (means - expected).abs().max().item(),
        "gradients": (gradient - slope).abs().max().item() / slope.abs().max().item(),
    }


def means_of_instances() -> None:
    shape, per_axis = (64, 256, 256), (4, 10, 10)
    found = apart(means_job, shape, per_axis, 16)
    print(
        f"{shape}, 400 instances, 16 channels, means and gradient: {found['ours']:.2f} s in one pass, "
        f"{found['loop']:.1f} s with a mask per instance, {found['loop'] / found['ours']:.0f} times as fast; largest "
        f"difference {found['values']:.0e} of values, {found['gradients']:.0e} of gradients (relative)"
    )


def pairs_job(crops: int, held: int, tokens: int, width: int, repeats: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return normalize(torch.randn(*shape, width, generator=generator, dtype=torch.float64), dim=-1).float()

    bank, theirs, ours = draw(held, tokens), draw(crops, tokens), draw(crops, tokens).requires_grad_()

    def pair_form() -> Tensor:
        """A map of all pairs of tokens for each pair of crops, as published."""
        maps = [((s @ m.T - t @ m.T) ** 2).mean() for s, t in zip(ours, theirs, strict=True) for m in bank]
        return torch.stack(maps).mean()

    flat = bank.flatten(0, 1)
    metric = flat.T @ flat / len(flat)

    def moment_form() -> Tensor:
        value = moment_distances(ours - theirs, metric).mean()
        rows = theirs.flatten(0, 1)
        rows.T @ rows  # what the moment takes in
        return value

    found = {}
    for name, form in (("pairs", pair_form), ("moment", moment_form)):
        seconds = []
        for _ in range(repeats):
            start = time.process_time()
            value = form()
            (gradient,) = torch.autograd.grad(value, ours)
            seconds.append(time.process_time() - start)
        found[name] = median(seconds), value.item(), gradient
    (slow, expected, slope), (fast, value, gradient) = found["pairs"], found["moment"]
    return {
        "pairs": slow,
        "moment": fast,
        "values": abs(value - expected) / expected,
        "gradients": ((gradient - slope).abs().max() / slope.abs().max()).item(),
        "bytes": float(sum(b.numel() * b.element_size() for b in Moment(width, 32, 0).buffers())),
    }


def relations_to_earlier_crops() -> None:
    found = apart(pairs_job, 2, 12, 576, 16, 31)
    print(
        f"24 pairs of 576 tokens, 16 channels, value and gradient: {1e3 * found['moment']:.2f} ms by the moment, "
        f"{1e3 * found['pairs']:.1f} ms by pairs of tokens, {found['pairs'] / found['moment']:.0f} times as fast; "
        f"relative difference {found['values']:.0e} of values, {found['gradients']:.0e} of gradients; the moment keeps "
        f"{found['bytes']:.0f} bytes, the published queue of 32 crops of 25x56x56 {32 * 16 * 25 * 56 * 56 * 4:,}"
    )


def step_job(crop: int, repeats: int) -> dict[str, float]:
    """Seconds of a student's step with and without the graph relation, and of each of its parts by itself."""
    torch.manual_seed(0)
    offsets = tuple(tuple(-step if axis == a else 0 for a in range(3)) for step in (1, 3, 9) for axis in range(3))
    student = placed(build(UNetOptions(widths=(4, 8, 16)), HeadOptions(embedding=16), offsets), "cpu")
    dtype = resolve_precision("auto", torch.device("cpu"))
    context = Context(offsets, (10.0, 10.0, 10.0), student=widths(student), teacher=widths(student))
    ids = torch.cat([boxes((crop,) * 3, (4, 4, 4)), boxes((crop,) * 3, (4, 4, 4)) + 64])
    batch = Batch(channels_last(torch.randn(2, 1, crop, crop, crop)), ids, ids > 0, ids)
    embedding = channels_last(torch.randn(2, 16, crop, crop, crop)).to(dtype)
    teacher = Outputs({"embedding": embedding}, ())
    ours = Outputs({"embedding": torch.randn_like(embedding).requires_grad_()}, ())
    parts = ("node", "edge", "affinity", "inter_edge", "inter_affinity")
    optimiser = torch.optim.AdamW(student.parameters())
    jobs: dict[str, Callable[[], None]] = {}
    for name, chosen in ({"alone": ()} | {"all parts": parts} | {part: (part,) for part in parts}).items():
        terms: list[Any] = [AffinityOptions(), EmbeddingOptions()]
        if chosen:
            weights = {part: float(part in chosen) for part in parts}
            terms.append(GraphRelationOptions(memory_start=0, **weights))
        made = build_terms(terms, context)
        if name in parts:
            jobs[name] = partial(one_gradient, made["graph_relation"], ours, teacher, batch)
        else:
            jobs[name] = partial(one_step, Objective(student, made, dtype).train(), optimiser, batch, teacher)
            if chosen:
                jobs["all parts, by themselves"] = partial(one_gradient, made["graph_relation"], ours, teacher, batch)
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            if turn:
                seconds[name].append(time.process_time() - start)
    more = [b - a for a, b in zip(seconds["alone"], seconds.pop("all parts"), strict=True)]
    found = {"bfloat16": float(dtype == torch.bfloat16), "more": median(more)}
    return found | {name: median(times) for name, times in seconds.items()}


def one_step(objective: Objective, optimiser: torch.optim.Optimizer, batch: Batch, teacher: Outputs) -> None:
    optimiser.zero_grad()
    torch.stack(list(objective(batch, teacher).values())).sum().backward()
    optimiser.step()


def one_gradient(term: Term, student: Outputs, teacher: Outputs, batch: Batch) -> None:
    torch.autograd.grad(term(student, teacher, batch), student.logits["embedding"])


def graph_relation_in_a_step() -> None:
    found = apart(step_job, 64, 9)
    precision, alone = "bfloat16" if found.pop("bfloat16") else "float32", found.pop("alone")
    more = found.pop("all parts") - alone
    print(
        f"student 4-8-16 with an embedding of 16, batch of 2 x 64^3, 128 instances, {precision}: step "
        f"{1e3 * alone:.0f} ms, with all parts {1e3 * more:+.0f} ms ({100 * more / alone:+.1f} %); by itself"
    )
    for name, seconds in found.items():
        print(f"  {name}: {1e3 * seconds:.0f} ms, {100 * seconds / alone:.1f} % of the step")


ROWS: list[Callable[[], None]] = [
    pixel_relations_full,
    pixel_relations_small,
    means_of_instances,
    relations_to_earlier_crops,
    graph_relation_in_a_step,
]
"""Measurements; the name of a function is the name of its row."""


def main(words: list[str]) -> None:
    for row in ROWS:
        if not words or any(word in row.__name__ for word in words):
            print(f"# {row.__name__}, {torch.get_num_threads()} thread(s)", flush=True)
            row()


if __name__ == "__main__":
    main(sys.argv[1:])
