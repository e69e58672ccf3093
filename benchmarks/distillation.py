"""What the closed forms of distillation save, one row per figure.

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
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kdseg.losses.similarity import pixel_relations

Triple = tuple[int, int, int]


def measured(job: Callable[..., Any], *inputs: Any) -> tuple[float, float, Any]:
    """Return CPU seconds, GiB and the result of ``job(*made)``, in a fresh process; made is what ``inputs`` makes.

    Args:
        job: a function of this module.
        inputs: (function of this module, *its arguments), called before the clock starts.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (job, inputs))


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


ROWS: list[Callable[[], None]] = [pixel_relations_full, pixel_relations_small]
"""What is measured; the name of a function is the name of its row."""


def main(words: list[str]) -> None:
    for row in ROWS:
        if not words or any(word in row.__name__ for word in words):
            print(f"# {row.__name__}, {torch.get_num_threads()} thread(s)", flush=True)
            row()


if __name__ == "__main__":
    main(sys.argv[1:])
