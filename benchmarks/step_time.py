"""What each method adds to a training step, and what a stored teacher saves.

    OMP_NUM_THREADS=1 python benchmarks/step_time.py [--device cpu] [--crop 64] [--batch 2] [--repeats 5] [TERM ...]

Teacher and student are those of config/fib25.yaml, each with an embedding of 16 channels where a term taps it; crops
are of the phantom. A step is the teacher's prediction, the student's forward and backward pass, all terms and AdamW, as
the training loop does them; reading crops is not part of it. Printed is the median; on a CPU in seconds of the CPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import cache
from statistics import median
from typing import Any

import numpy as np
import torch

from kdseg.config.data import PhantomOptions
from kdseg.config.networks import HeadOptions, TrainOptions, UNetOptions
from kdseg.geometry import Roi
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
from kdseg.training.losses import TERMS, Context, Objective, build_terms
from kdseg.training.sampling.crops import connected_pieces, numbered_through
from kdseg.training.teaching import teachers_of
from kdseg.volumes.phantom import phantom_block

OFFSETS = tuple(tuple(-step if axis == a else 0 for a in range(3)) for step in (1, 3, 9) for axis in range(3))
VOXEL_SIZE = (10.0, 10.0, 10.0)
TEACHER = UNetOptions(widths=(24, 48, 96, 192), residual=True)
STUDENT = UNetOptions(widths=(4, 8, 16))
GRAPH = {"name": "graph_relation", "taps": [0, "affinities"]}
EMBEDDED = {"name": "graph_relation"}
"""As published: on embeddings, beside the supervised loss on them."""


@cache
def batch_of(crop: int, number: int, device: torch.device) -> Batch:
    """Crops of the phantom; what a stored teacher says is drawn at random, which costs as much."""
    shape = (crop, crop, crop)
    made = [phantom_block(PhantomOptions(shape=shape, seed=k), Roi((0, 0, 0), shape)) for k in range(number)]
    labels = torch.stack([torch.from_numpy(ids.astype(np.int64)) for _, ids in made])
    pieces = torch.stack(numbered_through([connected_pieces(ids) for ids in labels]))
    raw = channels_last(torch.stack([torch.from_numpy(image).float() / 127.5 - 1 for image, _ in made])[:, None])
    told = torch.randint(0, 256, (number, 1, len(OFFSETS), crop, crop, crop), dtype=torch.uint8)
    vectors = torch.randn(number, 16, crop, crop, crop).half()
    taught = Taught(told, torch.ones_like(told[:, 0], dtype=torch.bool), vectors)
    return Batch(raw, labels, labels > 0, pieces, taught).to(device)


def step_of(terms: Sequence[dict[str, Any]], how: str, arguments: argparse.Namespace) -> tuple[Callable[[], None], int]:
    """Return one step as a function, and the parameters that it trains."""
    device, dtype = arguments.device, resolve_precision("auto", arguments.device)
    embedded = any(term["name"] == "embedding" or term == EMBEDDED for term in terms)
    heads = HeadOptions(embedding=16 if embedded else 0)
    options = TrainOptions.model_validate({
        "volumes": ("a",), "validate_on": "a", "crop": (arguments.crop,) * 3, "terms": begun(terms),
        "augment": {"elastic": 0, "misaligned_section": 0},
        **({} if how == "alone" else {"teacher": "t", "teaching": {"outputs": how}}),
    })  # fmt: skip
    torch.manual_seed(0)
    student = placed(build(STUDENT, heads, OFFSETS), device)
    networks = [placed(fold(build(TEACHER, heads, OFFSETS)), device)] if how == "online" else []
    stored = Widths({"affinities": len(OFFSETS), "embedding": 16}, (), ())
    teachers = teachers_of(networks, options, OFFSETS, dtype, cubic=True, stored=stored)
    context = Context(
        OFFSETS, VOXEL_SIZE, student=widths(student), teacher=None if teachers is None else teachers.widths
    )
    objective = Objective(student, build_terms(options.terms, context).to(device), dtype).train()
    optimiser = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-3)
    batch, weights = batch_of(arguments.crop, arguments.batch, device), objective.part_weights()

    def step() -> None:
        optimiser.zero_grad()
        parts = objective(batch, None if teachers is None else teachers(batch))
        torch.stack([weights[name][1] * value for name, value in parts.items()]).sum().backward()
        optimiser.step()

    return step, count_parameters(objective)


def seconds(step: Callable[[], None], repeats: int, device: torch.device) -> float:
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
    supervised, embedding = {"name": "affinity"}, {"name": "embedding"}
    distilling = [name for name in TERMS if name not in ("affinity", "lsd", "embedding", "graph_relation")]
    rows: list[tuple[str, list[dict[str, Any]], str]] = [("student alone", [supervised], "alone")]
    rows += [(name, [supervised, {"name": name}], "online") for name in distilling]
    rows += [
        ("soft_affinity, stored", [supervised, {"name": "soft_affinity"}], "stored"),
        ("graph_relation on level 0 and affinities", [supervised, GRAPH], "online"),
        ("student alone, with embedding", [supervised, embedding], "alone"),
        ("graph_relation on the embedding", [supervised, embedding, EMBEDDED], "online"),
        ("graph_relation on the embedding, stored", [supervised, embedding, EMBEDDED], "stored"),
    ]
    if arguments.names:
        rows = [row for row in rows if any(name in row[0] for name in arguments.names)]
    dtype = resolve_precision("auto", arguments.device)
    print(f"{arguments.device}, {torch.get_num_threads()} threads, {dtype}, {arguments.batch} x {arguments.crop}³")
    print("| step | ms | of the student alone | trained parameters |\n| --- | --- | --- | --- |")
    alone = 0.0
    for name, terms, how in rows:
        step, parameters = step_of(terms, how, arguments)
        took = seconds(step, arguments.repeats, arguments.device)
        alone = alone or took
        print(f"| {name} | {1e3 * took:.0f} | {took / alone:.2f} | {parameters:,} |", flush=True)


if __name__ == "__main__":
    main()
