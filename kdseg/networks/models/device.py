"""Device, precision and processes of a network."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist

from kdseg.errors import DeviceError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt: never give back the end of the heap; put no array outside of it."""
Precision = Literal["auto", "float32", "bfloat16", "float16"]


def resolve_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        DeviceError: if there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(f"device {name!r} was asked for, but torch sees no CUDA here: use 'cpu' or 'auto'")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise DeviceError(f"device {name!r} was asked for, but there are {torch.cuda.device_count()} GPUs")
    return device


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the type that convolutions compute in.

    ``auto`` is bfloat16 where the device has instructions for it (CUDA from Ampere on; CPUs with AMX or
    AVX512-BF16), else float32.
    """
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def gpu_peak_mb(name: str) -> float | None:
    """Return the most memory in MB that tensors of this process had on the device, None on a CPU."""
    device = resolve_device(name)
    return None if device.type == "cpu" else round(torch.cuda.max_memory_allocated(device) / 2**20, 1)


def keep_memory() -> None:
    """Have this process keep the memory that it frees, where the C library can be told to (glibc).

    Every tile and every step of a training allocates the same large arrays again. By default they are given back to
    the system each time, which has to clear every page before it hands it out anew: a quarter of the time of either.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def exact() -> None:
    """Have GPUs compute float32 as float32, and the same bits each time, from now on in this process.

    By default cuDNN rounds what float32 convolutions multiply to the 10 bits of TF32. cuBLAS reads its variable when it
    is first used: without workspaces of a fixed size its sums may depend on what other streams do.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with warnings.catch_warnings():
        # torch.export and others still ask by these names, and refuse what was set by the newer ones
        warnings.filterwarnings("ignore", message=".*TF32.*")
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def autocast(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Return the context in which convolutions compute in ``dtype``; it does nothing for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


class Ranks(NamedTuple):
    """The place of this process among those that train together.

    Attributes:
        device: of this process.
        rank: its number.
        ranks: number of processes.
        together: whether they exchange what they compute; a single one that torchrun started does so with itself.
    """

    device: torch.device
    rank: int = 0
    ranks: int = 1
    together: bool = False

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the processes that torchrun started, if it did, each on a device of its own.

    Args:
        device: as for `resolve_device`.
    """
    place = resolve_device(device)
    if not dist.is_torchelastic_launched():
        yield Ranks(place)
        return
    if place.type == "cuda":
        place = resolve_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Ranks(place, dist.get_rank(), dist.get_world_size(), together=True)
    finally:
        dist.destroy_process_group()


@contextmanager
def deterministic() -> Iterator[None]:
    """Choose deterministic kernels where there are any.

    CUDA has none for the gradient of max-pooling: its sums are of any order where windows overlap. Ours do not.
    """
    exact()
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic.*")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling fresh memory guards against reading it uninitialised, which nothing here does: 20 % of a step.
        filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn_only)
            torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
