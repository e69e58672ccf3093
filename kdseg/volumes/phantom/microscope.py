"""Effects of the microscope on the sections of a block, and its noise."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.volumes.phantom.hashing import chain, compiled, hash3, normal, uniform

Numbers = NDArray[np.float64]


class Section(NamedTuple):
    """Effects of the microscope on each section of a block; float64 (z,).

    Attributes:
        shift_y: displacement in nm.
        shift_x: displacement in nm.
        gain: factor of the contrast.
        bias: added grey value.
        blur: nm added to the width of membranes; thicker sections blur more.
    """

    shift_y: Numbers
    shift_x: Numbers
    gain: Numbers
    bias: Numbers
    blur: Numbers


def sections(key: np.uint64, voxel_size: Numbers, first: int, count: int) -> Section:
    """Return the state of ``count`` sections from ``first`` on; all the same for isotropic voxels."""
    still = np.zeros(count)
    if voxel_size[0] < 1.5 * voxel_size[1:].min():
        return Section(still, still, still + 1.0, still, still)
    bits = [[np.uint64(hash3(key, 50, first + z, k)) for k in range(6)] for z in range(count)]
    noise = np.array([[normal(b) for b in row] for row in bits]).reshape(count, 6)
    rare = np.array([uniform(row[5]) for row in bits]) < 0.06
    jump = np.where(rare, 2.5, 1.0)
    return Section(
        noise[:, 0] * 0.8 * voxel_size[1] * jump,
        noise[:, 1] * 0.8 * voxel_size[2] * jump,
        1.0 + 0.08 * noise[:, 2],
        7.0 * noise[:, 3],
        0.22 * voxel_size[0] * np.where(rare, 2.5, 1.0),
    )


def largest_shift(voxel_size: Numbers) -> float:
    """Return a bound of the displacement of a section in nm."""
    return float(0.8 * 2.5 * 2.0 * 3.0**0.5 * voxel_size[1:].max())


@compiled
def expose(row: np.uint64, first: int, gain: float, bias: float, value: Numbers, raw: NDArray[np.uint8]) -> None:
    """Fill a row of ``raw`` with what the microscope sees of ``value``, with noise."""
    for n in range(raw.size):
        seen = 128.0 + gain * (value[n] - 128.0) + bias
        seen += 5.5 * normal(chain(row, n + first))
        raw[n] = np.uint8(min(max(seen + 0.5, 0.0), 255.0))
