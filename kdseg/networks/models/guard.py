"""Self-test of 3-D convolutions on a GPU.

cuDNN 9.8 to 9.10 computes some convolutions of large bfloat16 inputs wrongly, without an error (pytorch#163539). Which
inputs is not documented: the test repeats the reported one, in the layouts and kernels that networks here use.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from kdseg.errors import DeviceError
from kdseg.geometry import Triple

Convolve = Callable[[Tensor, Tensor], Tensor]

REPORTED: Triple = (124, 1282, 722)
"""Extent (z, y, x) of the input of 16 channels for which the error was reported."""
CHANNELS = 16
KERNELS: tuple[Triple, ...] = ((1, 3, 3), (3, 3, 3))
LAYOUTS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last_3d}
PIECES = 8
"""Parts of the input, along z, that are computed one by one: too small for the error."""
SLICE = 4
"""Edge in voxels of the outputs that are compared with float64, at three places."""
TOLERANCE = 0.02
"""Of the largest value. bfloat16 rounds to 0.004 of a value, and wrong results are as large as right ones."""


class Deviation(NamedTuple):
    """Largest differences of one convolution, as parts of its largest value.

    Attributes:
        pieces: from the same convolution in pieces, over all outputs.
        exact: from float64 on the CPU, in three small parts.
    """

    pieces: float
    exact: float

    @property
    def wrong(self) -> bool:
        """Whether more than rounding differs; NaN is."""
        return not max(self) <= TOLERANCE


@lru_cache(maxsize=8)
def check_convolutions(device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a GPU on which convolutions are wrong; once per process, device and type.

    Args:
        device: a GPU.
        dtype: what convolutions compute in.

    Raises:
        DeviceError: if a convolution is wrong.
    """
    with turn("convolutions"):
        extent = fitting_extent(torch.cuda.mem_get_info(device)[0], dtype)
        for name, layout in LAYOUTS.items():
            for kernel in KERNELS:
                found = deviation(device, dtype, extent, kernel, layout)
                if found.wrong:
                    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
                    raise DeviceError(
                        f"{torch.cuda.get_device_name(device)} with cuDNN {cudnn} and torch "
                        f"{torch.__version__} computes conv3d of {dtype} wrongly ({name}, kernel {kernel}: off by "
                        f"{max(found):.2g} of the largest value): install nvidia-cudnn 9.15 or newer, or use the CPU"
                    )
        torch.cuda.empty_cache()


@contextmanager
def turn(name: str) -> Iterator[None]:
    """Keep the other processes of this user and machine out of the body until it ends.

    The test takes a third of a large GPU's memory for a second: ten trainings that begin together do not fit.

    Args:
        name: of what is done in turns.
    """
    path = Path(tempfile.gettempdir()) / f"kdseg-{os.getuid()}-{name}.lock"
    # of this user alone, and no link that somebody else made in a folder of all
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # it ends with the process, however that ends
        yield
    finally:
        os.close(handle)


def fitting_extent(free: int, dtype: torch.dtype) -> Triple:
    """Return the reported extent, or as many of its planes as half of the free memory holds.

    Args:
        free: bytes of the device.
        dtype: of inputs and outputs.
    """
    depth, height, width = REPORTED
    plane = CHANNELS * height * width * dtype.itemsize
    copies = 3  # input, its copy in the other layout, output
    return (max(2 * PIECES, min(depth, free // 2 // (copies * plane))), height, width)


def deviation(
    device: torch.device,
    dtype: torch.dtype,
    extent: Triple,
    kernel: Triple,
    layout: torch.memory_format,
    convolve: Convolve = functional.conv3d,
) -> Deviation:
    """Return how far a convolution of random numbers is from what it should be.

    Args:
        device: where it is computed.
        dtype: what it is computed in.
        extent: of the input, (z, y, x).
        kernel: of the convolution.
        layout: of the input.
        convolve: the convolution, without padding, of an input (1, c, z, y, x) and a weight.
    """
    random = torch.Generator(device).manual_seed(0)
    x = torch.randn((1, CHANNELS, *extent), generator=random, dtype=dtype, device=device).contiguous(
        memory_format=layout
    )
    weight = torch.randn((CHANNELS, CHANNELS, *kernel), generator=random, dtype=dtype, device=device)
    weight /= (CHANNELS * kernel[0] * kernel[1] * kernel[2]) ** 0.5
    with torch.inference_mode():
        whole = convolve(x, weight)
        largest = max(float(whole.max()), -float(whole.min()))
        pieces = _from_pieces(x, weight, whole, convolve)
        exact = _from_float64(x, weight, whole)
    return Deviation(pieces / largest, exact / largest)


def _from_pieces(x: Tensor, weight: Tensor, whole: Tensor, convolve: Convolve) -> float:
    margin, depth, most = weight.shape[2] - 1, whole.shape[2], 0.0
    step = -(-depth // PIECES)
    for start in range(0, depth, step):
        planes = slice(start, min(start + step, depth))
        piece = convolve(x[:, :, planes.start : planes.stop + margin].contiguous(), weight)
        most = max(most, float((whole[:, :, planes] - piece).abs_().max()))
    return most


def _from_float64(x: Tensor, weight: Tensor, whole: Tensor) -> float:
    most = 0.0
    for share in (0.0, 0.5, 1.0):  # from the first to the last corner
        low = [int(share * max(n - SLICE, 0)) for n in whole.shape[2:]]
        outputs, inputs = whole, x
        for axis, (n, k) in enumerate(zip(low, weight.shape[2:], strict=True), start=2):
            outputs = outputs.narrow(axis, n, SLICE)
            inputs = inputs.narrow(axis, n, SLICE + k - 1)
        expected = functional.conv3d(inputs.cpu().double(), weight.cpu().double())
        most = max(most, float((outputs.cpu().double() - expected).abs().max()))
    return most
