"""Cost of each method per training step, and savings of a stored teacher.

    OMP_NUM_THREADS=1 python benchmarks/step_time.py [--device cpu] [--crop 64] [--batch 2] [--repeats 5] [TERM ...]

Teacher and student are those of config/fib25.yaml, each with an embedding of 16 channels where a term taps it; crops
are noise, their neurons the cells of random points. A step is the teacher's prediction, the student's forward and
backward pass, all terms and AdamW, as the training loop does them; reading crops is not part of it. Printed is the
median; on a CPU in seconds of the CPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from kdseg.config.networks import HeadOptions, TrainOptions, UNetOptions
from kdseg.config.terms import term_options
from kdseg.networks.models import (
    Batch,
    Taught,
    Widths,
    build,
    count_parameters,
    fold,
    resolve_device,
    resolve_precision,
    widths,
)
from kdseg.networks.models.base import channels_last, placed
from kdseg.networks.models.device import keep_memory
from kdseg.training.losses import Context, Objective, build_terms
from kdseg.training.sampling.crops import connected_pieces, numbered_through
from kdseg.training.teaching import teachers_of

OFFSETS = tuple(tuple(-step if axis == a else 0 for a in range(3)) for step in (1, 3, 9) for axis in range(3))
VOXEL_SIZE = (10.0, 10.0, 10.0)
TEACHER = UNetOptions(widths=(24, 48, 96, 192), residual=True)
STUDENT = UNetOptions(widths=(4, 8, 16))
GRAPH = {"name": "graph_relation", "taps": [0, "affinities"]}
EMBEDDED = {"name": "graph_relation"}
"""As published: on embeddings, beside the supervised loss on them."""


class Case(NamedTuple):
    """One row.

    Attributes:
        name: of it.
        terms: of the loss.
        how: the teacher is ``alone`` (none), ``online`` or ``stored``.
        network: that is trained.
    """

    name: str
    terms: list[dict[str, Any]]
    how: str
    network: UNetOptions = STUDENT


def cases() -> list[Case]:
    """Return the student alone, each method, and the teacher's own training."""
    supervised, embedding = {"name": "affinity"}, {"name": "embedding"}
    distilling = [name for name, one in term_options().items() if one.from_teacher and name != "graph_relation"]
    return [
        Case("student alone", [supervised], "alone"),
        *(Case(name, [supervised, {"name": name}], "online") for name in distilling),
        Case("soft_affinity, stored", [supervised, {"name": "soft_affinity"}], "stored"),
        Case("graph_relation on level 0 and affinities", [supervised, GRAPH], "online"),
        Case("student alone, with embedding", [supervised, embedding], "alone"),
        Case("graph_relation on the embedding", [supervised, embedding, EMBEDDED], "online"),
        Case("graph_relation on the embedding, stored", [supervised, embedding, EMBEDDED], "stored"),
        Case("teacher", [supervised], "alone", TEACHER),
    ]


@cache
def batch_of(crop: int, number: int, device: torch.device) -> Batch:
    """Return crops of noise with neurons; what a stored teacher says is drawn at random, which costs as much."""
    shape, rng = (crop, crop, crop), np.random.default_rng(0)
    labels = torch.from_numpy(np.stack([_cells(crop, rng) for _ in range(number)]))
    pieces = torch.stack(numbered_through([connected_pieces(ids) for ids in labels]))
    raw = channels_last(torch.rand(number, 1, *shape) * 2 - 1)
    told = torch.randint(0, 256, (number, 1, len(OFFSETS), *shape), dtype=torch.uint8)
    vectors = torch.randn(number, 16, *shape).half()
    taught = Taught(told, torch.ones_like(told[:, 0], dtype=torch.bool), vectors)
    return Batch(raw, labels, labels > 0, pieces, taught).to(device)


def _cells(crop: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the number of the nearest of some random points, as many per volume as EM data have neurons."""
    points = rng.uniform(0, crop, (max(2, round(crop**3 / 5000)), 3))
    voxels = np.moveaxis(np.indices((crop, crop, crop)), 0, -1)
    nearest: NDArray[np.int64] = cKDTree(points).query(voxels, workers=-1)[1].astype(np.int64) + 1
    return nearest


def step_of(case: Case, crop: int, batch: int, device: torch.device) -> tuple[Callable[[Batch], Tensor], int]:
    """Return one step on a batch as a function that returns the loss, and the parameters that it trains."""
    dtype = resolve_precision("auto", device)
    embedded = any(term["name"] == "embedding" or term == EMBEDDED for term in case.terms)
    heads = HeadOptions(embedding=16 if embedded else 0)
    options = TrainOptions.model_validate({
        "volumes": ("a",), "validate_on": "a", "crop": (crop,) * 3, "batch": batch, "terms": begun(case.terms),
        "augment": {"elastic": 0, "misaligned_section": 0},
        **({} if case.how == "alone" else {"teacher": "t", "teaching": {"outputs": case.how}}),
    })  # fmt: skip
    torch.manual_seed(0)
    student = placed(build(case.network, heads, OFFSETS), device)
    networks = [placed(fold(build(TEACHER, heads, OFFSETS)), device)] if case.how == "online" else []
    stored = Widths({"affinities": len(OFFSETS), "embedding": 16}, (), ())
    teachers = teachers_of(networks, options, OFFSETS, dtype, cubic=True, stored=stored)
    context = Context(
        OFFSETS, VOXEL_SIZE, student=widths(student), teacher=None if teachers is None else teachers.widths
    )
    objective = Objective(student, build_terms(options.terms, context).to(device), dtype).train()
    optimiser = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-3)
    weights = objective.part_weights()

    def step(batch: Batch) -> Tensor:
        optimiser.zero_grad()
        parts = objective(batch, None if teachers is None else teachers(batch))
        loss = torch.stack([weights[name][1] * value for name, value in parts.items()]).sum()
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step, count_parameters(objective)


def seconds(step: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Return the median of some runs after two that do not count; terms that are fitted first have begun by then."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    taken = []
    for number in range(repeats + 2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        before = clock()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= 2:
            taken.append(clock() - before)
    return median(taken)


def begun(terms: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return terms that work from the second step on."""
    at_once = {"graph_flow": {"fit": 1}, "ft": {"fit": 1}, "graph_relation": {"memory_start": 1}}
    return [{**term, **at_once.get(term["name"], {})} for term in terms]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="auto", type=resolve_device)
    parser.add_argument("--crop", default=64, type=int)
    parser.add_argument("--batch", default=2, type=int)
    parser.add_argument("--repeats", default=5, type=int)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    if arguments.device.type == "cpu":
        keep_memory()
    chosen = [case for case in cases() if not arguments.names or any(name in case.name for name in arguments.names)]
    dtype = resolve_precision("auto", arguments.device)
    print(f"{arguments.device}, {torch.get_num_threads()} threads, {dtype}, {arguments.batch} x {arguments.crop}³")
    print("| step | ms | of the student alone | trained parameters |\n| --- | --- | --- | --- |")
    alone = 0.0
    batch = batch_of(arguments.crop, arguments.batch, arguments.device)
    for case in chosen:
        step, parameters = step_of(case, arguments.crop, arguments.batch, arguments.device)
        took = seconds(partial(step, batch), arguments.repeats, arguments.device)
        alone = alone or took
        print(f"| {case.name} | {1e3 * took:.0f} | {took / alone:.2f} | {parameters:,} |", flush=True)


if __name__ == "__main__":
    main()
