"""Counter-based random numbers: a hash of (key, position) instead of a generator with a state.

A value depends on nothing but its key and its position, so that every block finds the same ones. The
mixing function is the finalizer of SplitMix64 (Steele, Lea and Flood, 2014, figure 15).
"""

from __future__ import annotations

import numpy as np

from kdseg.running.compiled import Function
from kdseg.running.compiled import compiled as compiled_with

_WEYL = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_27, _30, _31 = np.uint64(27), np.uint64(30), np.uint64(31)
_11, _16, _32, _48 = np.uint64(11), np.uint64(16), np.uint64(32), np.uint64(48)
_LOW = np.uint64(0xFFFF)


def compiled(function: Function) -> Function:
    """Compile ``function`` with numba; IEEE arithmetic as written, for the same bits wherever it runs.

    It runs without the interpreter's lock: a network computes while the next block of a phantom is made.
    """
    return compiled_with(function, fastmath=False, error_model="numpy", nogil=True)


@compiled
def mix(value: np.uint64) -> np.uint64:
    """Return ``value`` with its bits mixed, a bijection of 64-bit integers."""
    value = (value ^ (value >> _30)) * _FIRST
    value = (value ^ (value >> _27)) * _SECOND
    return value ^ (value >> _31)


@compiled
def chain(key: np.uint64, value: int) -> np.uint64:
    """Return the key of the branch ``value`` (any signed integer) of ``key``."""
    return mix((key ^ np.uint64(value)) + _WEYL)


@compiled
def hash3(key: np.uint64, z: int, y: int, x: int) -> np.uint64:
    """Return 64 random bits of the lattice point ``(z, y, x)``, signed integers."""
    return chain(chain(chain(key, z), y), x)


@compiled
def uniform(bits: np.uint64) -> float:
    """Return a number in [0, 1) made of the upper 53 of 64 random ``bits``."""
    return np.float64(bits >> _11) * 2.0**-53


@compiled
def normal(bits: np.uint64) -> float:
    """Return a nearly normal number of mean 0 and deviation 1 (the sum of four uniform ones)."""
    total = (bits & _LOW) + ((bits >> _16) & _LOW) + ((bits >> _32) & _LOW) + (bits >> _48)
    return (np.float64(total) * 2.0**-16 - 2.0) * 1.7320508075688772
