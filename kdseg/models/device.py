"""Where networks run, and in which precision."""

from __future__ import annotations

from typing import Literal

import torch

from kdseg.errors import DeviceError

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


def autocast(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Return the context in which convolutions compute in ``dtype``; it does nothing for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
