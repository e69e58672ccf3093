"""What lies in the cytoplasm: mitochondria, vesicles, reticulum, microtubules; grey values to be added."""

from __future__ import annotations

import numpy as np

from kdseg.phantom.fields import Point
from kdseg.phantom.hashing import chain, compiled, hash3, uniform
from kdseg.phantom.tissue import Segments


@compiled
def bump(x: float) -> float:
    """Return a bell of height 1 and half-width 1 with a flat top."""
    x = x * x
    return 1.0 / (1.0 + x * x)


@compiled
def ramp(x: float) -> float:
    """Return ``x`` cut to 0 and 1, with a smooth start and end."""
    x = min(max(x, 0.0), 1.0)
    return x * x * (3.0 - 2.0 * x)


@compiled
def mitochondrion(segments: Segments, n: int, t: float, d: float, depth: float, wobble: float) -> float:
    """Return the grey value of a mitochondrion around the axis of segment ``n``.

    Args:
        segments: all segments.
        n: number of the nearest one.
        t: position along it, 0 to 1.
        d: distance to its axis in nm.
        depth: distance to the membrane in nm.
        wobble: a smooth field in [-1, 1] that deforms the mitochondrion.
    """
    filling = segments.filling[n]
    size = filling[0] + t * (filling[1] - filling[0])
    available = d + depth
    if size <= 0.0 or available < 50.0:
        return 0.0
    size = 1.0 - (1.0 - size) * (1.0 - size)
    distance = d + 16.0 * wobble - min(0.74 * available, 140.0) * size
    if distance > 30.0:
        return 0.0
    v = segments.axis[n]
    along = t * np.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]) / 52.0 + 1.3 * wobble
    stripe = abs(2.0 * (along - np.floor(along)) - 1.0)
    inside = ramp((6.0 - distance) / 16.0)
    return float(-inside * (20.0 + 22.0 * stripe) - 34.0 * bump(distance / 11.0) * (1.0 - 0.4 * inside))


@compiled
def vesicles(key: np.uint64, z: float, y: float, x: float) -> float:
    """Return the grey value of the vesicles near a point: dark shells, one at most per cell of 52 nm."""
    size = 52.0
    u, v, w = z / size - 0.5, y / size - 0.5, x / size - 0.5
    i, j, k = int(np.floor(u)), int(np.floor(v)), int(np.floor(w))
    value = 0.0
    for a in range(2):
        for b in range(2):
            for c in range(2):
                bits = hash3(key, i + a, j + b, k + c)
                if bits & np.uint64(3) == 0:
                    continue
                more = chain(bits, 1)
                dz = z - (i + a + 0.3 + 0.4 * uniform(bits)) * size
                dy = y - (j + b + 0.3 + 0.4 * uniform(more)) * size
                dx = x - (k + c + 0.3 + 0.4 * uniform(chain(more, 1))) * size
                shell = (np.sqrt(dz * dz + dy * dy + dx * dx) - 16.0) / 9.0
                value = max(value, bump(shell))
    return -36.0 * value


@compiled
def tubules(segments: Segments, n: int, w: Point, label: np.uint64) -> float:
    """Return the grey value of microtubules along segment ``n``: dots of a lattice across its axis."""
    v, a = segments.axis[n], segments.start[n]
    k = 0
    if abs(v[1]) < abs(v[k]):
        k = 1
    if abs(v[2]) < abs(v[k]):
        k = 2
    square = v[0] * v[0] + v[1] * v[1] + v[2] * v[2]
    # The two sides across the axis: unit vector k without its part along the axis, and their cross product.
    e0, e1, e2 = -v[k] * v[0] / square, -v[k] * v[1] / square, -v[k] * v[2] / square
    if k == 0:
        e0 += 1.0
    elif k == 1:
        e1 += 1.0
    else:
        e2 += 1.0
    length = np.sqrt(e0 * e0 + e1 * e1 + e2 * e2)
    e0, e1, e2 = e0 / length, e1 / length, e2 / length
    root = np.sqrt(square)
    f0, f1, f2 = (v[1] * e2 - v[2] * e1) / root, (v[2] * e0 - v[0] * e2) / root, (v[0] * e1 - v[1] * e0) / root
    dz, dy, dx = w[0] - a[0], w[1] - a[1], w[2] - a[2]
    p, q = (dz * e0 + dy * e1 + dx * e2) / 46.0, (dz * f0 + dy * f1 + dx * f2) / 46.0
    i, j = int(np.floor(p)), int(np.floor(q))
    bits = hash3(label, 7, i, j)
    if bits & np.uint64(1) == 0:
        return 0.0
    dp = (p - i - 0.35 - 0.3 * uniform(bits)) * 46.0
    dq = (q - j - 0.35 - 0.3 * uniform(chain(bits, 1))) * 46.0
    return -17.0 * bump(np.sqrt(dp * dp + dq * dq) / 11.0)
