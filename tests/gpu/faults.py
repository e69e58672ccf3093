"""Prediction of blocks that meet what a GPU can do to a worker; imported by the workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kdseg.geometry import Block
from kdseg.prediction.stage import Work, predict_block
from kdseg.running.attempt import Clock

NO_ROOM, LOST = (0, 0, 1), (0, 1, 0)
"""Blocks: the GPU's memory is full at each attempt; the worker loses the GPU at the first."""
_alone = threading.Lock()


def faulty_block(work: Work, block: Block, clock: Clock) -> bool:
    """Predict a block, as `predict_block` does, with its fault; alone, since other threads would share it."""
    gpu, lost = work.weights.device != "cpu", work.out.with_name("lost")
    with _alone:
        if block.index == LOST and not lost.exists():
            lost.touch()
            lose_the_gpu() if gpu else pretend("AcceleratorError", "CUDA error: device-side assert triggered")
        if block.index == NO_ROOM and not gpu:
            pretend("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB.\nmore words")
        if block.index == NO_ROOM:
            with little_memory():
                return predict_block(work, block, clock)
        return predict_block(work, block, clock)


def pretend(name: str, said: str) -> None:
    """Raise, on the CPU, the error of torch that a GPU's fault becomes."""
    raise getattr(torch, name)(said)


def lose_the_gpu() -> None:
    """Fail in a kernel, by an index that is out of range: this process can use the GPU no more."""
    torch.zeros(2, device="cuda:0")[torch.full((1,), 9, device="cuda:0")].cpu()


@contextmanager
def little_memory(room: int = 2**16) -> Iterator[None]:
    """Let this process have ``room`` bytes of the GPU more than it holds, while the body runs."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(0) + room) / total, 0)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
