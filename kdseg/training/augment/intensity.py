"""Changes of the image alone: electron microscopes differ in contrast, noise and focus, and lose sections."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Raw = NDArray[np.float32]


def change_intensity(raw: Raw, rng: np.random.Generator) -> Raw:
    """Return an image of other contrast, brightness and gamma; half of the time each section differs a little.

    Args:
        raw: float32 (z, y, x) in [-1, 1].
        rng: contrast in [0.7, 1.3], brightness in [-0.2, 0.2], gamma in [0.7, 1.4]; sections vary by 5 %.
    """
    depth = raw.shape[0]
    contrast, brightness = np.full(depth, rng.uniform(0.7, 1.3)), np.full(depth, rng.uniform(-0.2, 0.2))
    gamma = 2.0 ** rng.uniform(-0.5, 0.5)
    if rng.random() < 0.5:
        contrast *= rng.normal(1, 0.05, depth)
        brightness += rng.normal(0, 0.05, depth)
    # in place, in the range 0..1 that gamma needs
    unit = raw * (contrast / 2).astype(np.float32)[:, None, None]
    unit += ((brightness + 1) / 2).astype(np.float32)[:, None, None]
    np.clip(unit, 0, 1, out=unit)
    np.power(unit, np.float32(gamma), out=unit)
    unit *= 2
    unit -= 1
    return unit


def add_noise(raw: Raw, rng: np.random.Generator) -> Raw:
    """Return an image with Gaussian noise of a random width, 1 to 8 % of the range."""
    noise = rng.standard_normal(raw.shape, dtype=np.float32)
    noise *= np.float32(rng.uniform(0.02, 0.16))
    noise += raw
    return np.clip(noise, -1, 1, out=noise)


def blur(raw: Raw, rng: np.random.Generator, *, in_plane: bool) -> Raw:
    """Return an image out of focus, by a Gaussian of 0.5 to 1.2 voxels; ``in_plane`` leaves z alone."""
    sigma = rng.uniform(0.5, 1.2)
    distance = np.arange(-3, 4)
    taps = np.exp(-(distance**2) / (2 * sigma**2))
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in range(1 if in_plane else 0, 3):
        padded = np.pad(raw, [(3, 3) if a == axis else (0, 0) for a in range(3)], mode="edge")
        views = [
            padded[tuple(slice(k, k + n) if a == axis else slice(None) for a, n in enumerate(raw.shape))]
            for k in range(7)
        ]
        out = views[3] * taps[3]
        for k in range(3):
            out += (views[k] + views[6 - k]) * taps[k]
        raw = out
    return raw


def blank_sections(raw: Raw, rng: np.random.Generator, margin: int = 0) -> Raw:
    """Return an image without one or two neighbouring sections, black or grey; the network is to bridge them.

    None of the ``margin`` sections at either end is chosen.
    """
    count = int(rng.integers(1, 3))
    first = margin + int(rng.integers(0, max(raw.shape[0] - 2 * margin - count, 0) + 1))
    out = raw.copy()
    out[first : first + count] = -1.0 if rng.random() < 0.5 else raw.mean()
    return out
