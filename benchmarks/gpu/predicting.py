"""Measurements of prediction on a GPU, in order."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from job import Job, read_rows
from tiles import NETWORKS, bare
from timing import Item, rounded, timed
from volumes import NAME, disk, fused, predicted

EDGES = {"student": (128, 256, 192, 64, 96, 384, 512), "teacher": (128, 192, 64, 256, 96)}
GROUPINGS = ("padded", "lanes 1", "lanes 8", "lanes 32", "lanes 64", "autotuned", "padded autotuned")
COMPILED = ("compiled", "compiled graph", "padded compiled", "padded compiled graph")
SHM = Path("/dev/shm/kdseg-rates")
"""Folder in memory, from and to which a stage shows what a slow disk hides."""


def items(job: Job) -> Iterator[Item]:
    """Yield what is measured, in order of worth."""
    tiny = job.rehearse
    names = [NAME] if tiny else list(NETWORKS)
    students, teachers = names[:3], names[3:]
    students_at, teachers_at = ((8, 16), ()) if tiny else (EDGES["student"], EDGES["teacher"])
    yield Item("limits", 2, partial(limits, job))
    for name in students:
        for edge in students_at[:3]:
            yield _bare(job, name, edge, "product")
    side, block = (32, 16) if tiny else (512, 256)
    yield Item("disk", 2, partial(disk, job.work, 8 if tiny else 1024))
    yield _stage(job, "predict", side, block, "disk")
    for name in teachers:
        for edge in teachers_at[:2]:
            yield _bare(job, name, edge, "product")
    for name in students:
        for edge in students_at[:2]:
            yield _bare(job, name, edge, "graph")
    for how in GROUPINGS[:1] if tiny else GROUPINGS:
        yield _bare(job, NAME, students_at[0], how)
    yield _stage(job, "fuse", *((32, 16) if tiny else (256, 128)), "disk")
    for name in students[1:]:
        for how in GROUPINGS:
            yield _bare(job, name, students_at[0], how)
    for name, edges in [*((s, students_at[3:]) for s in students), *((t, teachers_at[2:]) for t in teachers)]:
        for edge in edges:
            yield _bare(job, name, edge, "product")
    if not tiny:
        yield _stage(job, "predict", 512, 128, "memory")
        yield _stage(job, "predict", 512, 256, "memory")
        yield _stage(job, "fuse", 512, 256, "disk")
    for name in teachers:
        for how in ("graph", *GROUPINGS[:2], *GROUPINGS[5:]):
            yield _bare(job, name, teachers_at[0], how)
    for name in names:
        for how in COMPILED[:1] if tiny else COMPILED:
            yield _bare(job, name, students_at[0], how, 2 if tiny else 40)
    if not tiny:
        yield _stage(job, "predict", 1024, 256, "memory", 90)


def limits(job: Job) -> dict[str, Any]:
    """Return what the card reaches in products of matrices, in copies on it, and from and to pinned memory."""
    device, n, size = torch.device(job.device), *((128, 2**20) if job.rehearse else (8192, 2**32))
    cuda = device.type == "cuda"
    found: dict[str, Any] = {"device": torch.cuda.get_device_name() if cuda else "cpu", "torch": torch.__version__}
    torch.backends.cuda.matmul.allow_tf32 = False
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        took = timed(partial(torch.mm, a, b, out=out), device, 0.4)
        found[f"{name}_tflop_per_s"] = rounded(2 * n**3 / took.ms / 1e9)
    a = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    found["copy_gb_per_s"] = rounded(2 * size / timed(partial(b.copy_, a), device, 0.2).ms / 1e6)
    part = size // 32
    here = torch.randint(0, 256, (part,), dtype=torch.uint8)
    here = here.pin_memory() if cuda else here
    there = a[:part]
    for name, into, source in (("to_gpu", there, here), ("from_gpu", here, there)):
        took = timed(partial(into.copy_, source, non_blocking=True), device, 0.2)
        found[f"{name}_gb_per_s"] = rounded(part / took.ms / 1e6)
    return found


def _bare(job: Job, name: str, edge: int, how: str, seconds: float = 3) -> Item:
    def measure() -> dict[str, Any]:
        return {"network": name, "tile": edge, "how": how} | bare(job, name, edge, how, _measured(job, "limits"))

    return Item(f"tile/{name}/{edge}/{how}", seconds, measure)


def _stage(job: Job, stage: str, side: int, block: int, where: str, seconds: float = 30) -> Item:
    """Return the row of a stage; tiles are smaller where the halos of blocks are predicted, too."""
    tile = 16 if job.rehearse else 128 if stage == "predict" else 32 if block <= 128 else 64
    seconds = 60 if stage == "fuse" and side > 256 else seconds

    def measure() -> dict[str, Any]:
        speed = _measured(job, f"tile/{NAME}/{tile}/product").get("mvox_per_s")
        folder = SHM if where == "memory" else job.work
        run = predicted if stage == "predict" else fused
        return {"side": side, "block": block, "tile": tile, "where": where} | run(job, side, block, tile, folder, speed)

    return Item(f"{stage}/{side}/{block}/{where}", 1 if job.rehearse else seconds, measure)


def _measured(job: Job, key: str) -> dict[str, Any]:
    """Return a row that was measured before, perhaps by an earlier run; empty if there is none."""
    return next((row for row in read_rows(job.rows.path) if row["job"] == "rates" and row["key"] == key), {})
