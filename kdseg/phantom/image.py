"""Labels and grey values of the phantom, tile by tile.

A tile looks only at the segments that can be nearest or second to one of its voxels. This selection is
conservative, and keeps the order of the segments; the arithmetic of a voxel is the same in every tile.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.phantom.fields import Field, Point, field, sample
from kdseg.phantom.hashing import chain, compiled, hash3, normal, uniform
from kdseg.phantom.tissue import REACH, Segments

Numbers = NDArray[np.float64]

WARP = 100.0, 22.0
"""Amplitude in nm of the coarse and of the fine warp."""
_WARP_SPACING = 560.0, 190.0


class Section(NamedTuple):
    """What the microscope did to each section of a block; float64 (z,).

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


class Scene(NamedTuple):
    """All that a voxel's value is computed from."""

    key: np.uint64
    voxel_size: Numbers
    first: NDArray[np.int64]
    section: Section
    segments: Segments
    warp: tuple[Field, Field, Field, Field, Field, Field]
    strength: Field
    density: Field
    drift: Field
    organelle: Field
    grain: Field


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
    return 0.8 * 2.5 * 2.0 * 3.0**0.5 * float(voxel_size[1:].max())


def scene(
    key: np.uint64, voxel_size: Numbers, first: NDArray[np.int64], section: Section, segments: Segments,
    low: Point, high: Point,
) -> Scene:
    """Return the scene of a block whose voxels, moved with their sections, lie in ``low`` to ``high`` nm."""
    coarse, fine = _WARP_SPACING
    warp = [field(key, 60 + k, coarse if k < 3 else fine, low, high) for k in range(6)]
    return Scene(
        key, voxel_size, first, section, segments,
        (warp[0], warp[1], warp[2], warp[3], warp[4], warp[5]),
        field(key, 70, 210.0, low, high),
        field(key, 71, 420.0, low, high),
        field(key, 72, 2600.0, low, high),
        field(key, 73, 150.0, low, high),
        field(key, 74, 34.0, low, high),
    )


@compiled
def _squared_distance(
    segments: Segments, n: int, z: float, y: float, x: float
) -> tuple[float, float]:
    """Return the squared distance of a point to a segment, and the position 0 to 1 of its nearest point."""
    a, v = segments.start[n], segments.axis[n]
    dz, dy, dx = z - a[0], y - a[1], x - a[2]
    t = (dz * v[0] + dy * v[1] + dx * v[2]) / (v[0] * v[0] + v[1] * v[1] + v[2] * v[2])
    t = min(max(t, 0.0), 1.0)
    dz, dy, dx = dz - t * v[0], dy - t * v[1], dx - t * v[2]
    return dz * dz + dy * dy + dx * dx, t


@compiled
def select(
    segments: Segments, among: NDArray[np.int64], centre: Numbers, radius: float
) -> NDArray[np.int64]:
    """Return those of ``among`` that can be first or second, or within reach, in a ball.

    The surface distance of a segment changes by at most its slope times the way; second to none is an
    object whose smallest value in the ball exceeds the largest value that the second object can have.
    """
    nearest, slope = np.empty(len(among)), np.empty(len(among))
    best, second, owner = np.inf, np.inf, np.uint64(0)
    for k, n in enumerate(among):
        square, t = _squared_distance(segments, n, centre[0], centre[1], centre[2])
        v, r = segments.axis[n], segments.radius[n]
        slope[k] = 1.0 + abs(r[1] - r[0]) / np.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])
        middle = np.sqrt(square) - (r[0] + t * (r[1] - r[0]))
        nearest[k] = middle - slope[k] * radius
        most = middle + slope[k] * radius
        if segments.owner[n] == owner:
            best = min(best, most)
        elif most < best:
            best, second, owner = most, best, segments.owner[n]
        else:
            second = min(second, most)
    return among[nearest <= min(second, REACH) + 1e-6]


@compiled
def _nearest_two(
    segments: Segments, among: NDArray[np.int64], z: float, y: float, x: float
) -> tuple[int, float, float, float, int, float, float]:
    """Return (segment, position, distance to axis, to surface) of the nearest object, (segment, ...) of the next."""
    n1, t1, d1, s1 = -1, 0.0, 0.0, REACH
    n2, t2, s2 = -1, 0.0, REACH
    owner = np.uint64(0)
    for n in among:
        square, t = _squared_distance(segments, n, z, y, x)
        r = segments.radius[n, 0] + t * (segments.radius[n, 1] - segments.radius[n, 0])
        bound = s2 + r
        if bound <= 0.0 or square >= bound * bound:
            continue
        d = np.sqrt(square)
        s = d - r
        if segments.owner[n] == owner:
            if s < s1:
                n1, t1, d1, s1 = n, t, d, s
        elif s < s1:
            n2, t2, s2 = n1, t1, s1
            n1, t1, d1, s1, owner = n, t, d, s, segments.owner[n]
        elif s < s2:
            n2, t2, s2 = n, t, s
    return n1, t1, d1, s1, n2, t2, s2


@compiled
def _direction(
    segments: Segments, n: int, t: float, z: float, y: float, x: float
) -> tuple[float, float, float]:
    """Return the unit vector from the nearest point of a segment."""
    a, v = segments.start[n], segments.axis[n]
    dz, dy, dx = z - a[0] - t * v[0], y - a[1] - t * v[1], x - a[2] - t * v[2]
    length = np.sqrt(dz * dz + dy * dy + dx * dx) + 1e-9
    return dz / length, dy / length, dx / length


@compiled
def _bump(x: float) -> float:
    """Return a bell of height 1 and half-width 1 with a flat top."""
    x = x * x
    return 1.0 / (1.0 + x * x)


@compiled
def _ramp(x: float) -> float:
    """Return ``x`` cut to 0 and 1, with a smooth start and end."""
    x = min(max(x, 0.0), 1.0)
    return x * x * (3.0 - 2.0 * x)


@compiled
def _mitochondrion(
    scene: Scene, n: int, t: float, d: float, depth: float, z: float, y: float, x: float
) -> float:
    """Return the grey value that a mitochondrion around the axis of segment ``n`` adds."""
    filling = scene.segments.filling[n]
    size = filling[0] + t * (filling[1] - filling[0])
    available = d + depth
    if size <= 0.0 or available < 60.0:
        return 0.0
    size = 1.0 - (1.0 - size) * (1.0 - size)
    wobble = sample(scene.organelle, z, y, x)
    distance = d + 16.0 * wobble - min(0.74 * available, 165.0) * size
    if distance > 30.0:
        return 0.0
    v = scene.segments.axis[n]
    along = t * np.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]) / 52.0 + 1.3 * wobble
    stripe = abs(2.0 * (along - np.floor(along)) - 1.0)
    inside = _ramp((6.0 - distance) / 16.0)
    return -inside * (20.0 + 22.0 * stripe) - 34.0 * _bump(distance / 11.0) * (1.0 - 0.4 * inside)


@compiled
def _vesicles(scene: Scene, z: float, y: float, x: float) -> float:
    """Return the grey value of the vesicles near a point: dark shells, one at most per cell of 52 nm."""
    size = 52.0
    u, v, w = z / size - 0.5, y / size - 0.5, x / size - 0.5
    i, j, k = int(np.floor(u)), int(np.floor(v)), int(np.floor(w))
    key = chain(scene.key, 80)
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
                value = max(value, _bump(shell))
    return -36.0 * value


@compiled
def _grey(
    scene: Scene, found: tuple[int, float, float, float, int, float, float],
    w: tuple[float, float, float], p: tuple[float, float, float], blur: float,
) -> float:
    """Return the grey value without noise at ``p`` (nm), which the warp takes to ``w``."""
    n1, t1, d1, s1, n2, t2, s2 = found
    segments = scene.segments
    label = segments.owner[n1]
    strength = sample(scene.strength, p[0], p[1], p[2])
    density = sample(scene.density, p[0], p[1], p[2])
    grain = sample(scene.grain, p[0], p[1], p[2])
    depth, oblique = REACH, 0.0
    if n2 >= 0:
        a = _direction(segments, n1, t1, w[0], w[1], w[2])
        b = _direction(segments, n2, t2, w[0], w[1], w[2])
        nz, ny, nx = a[0] - b[0], a[1] - b[1], a[2] - b[2]
        length = max(np.sqrt(nz * nz + ny * ny + nx * nx), 0.6)
        depth, oblique = (s2 - s1) / length, abs(nz) / length
    synaptic = uniform(chain(label, 4)) < 0.45
    active = _ramp((density - 0.05) / 0.3) if synaptic else 0.0
    width = 13.0 + 4.0 * density + 7.0 * active * _ramp(2.0 * strength)
    smeared = np.sqrt(width * width + (blur + scene.voxel_size[0] * 0.4 * oblique) ** 2)
    dark = min(max(0.78 + 0.85 * strength, 0.1), 1.05) * width / smeared
    shade = uniform(chain(label, 5))
    value = 150.0 + 26.0 * (shade - 0.55) + 7.0 * grain - 62.0 * dark * _bump(depth / smeared)
    mitochondrion = _mitochondrion(scene, n1, t1, d1, depth, p[0], p[1], p[2])
    value += mitochondrion
    if mitochondrion > -4.0:
        if active > 0.0 and 26.0 < depth < 190.0:
            value += active * _vesicles(scene, p[0], p[1], p[2]) * _ramp((depth - 26.0) / 14.0)
        elif not synaptic and depth > 40.0:
            # Endoplasmic reticulum: a surface where a field is 0, in parts of the large profiles.
            sheet = sample(scene.organelle, p[0], p[1], p[2]) + 0.12 * grain
            value -= 30.0 * _bump(sheet / 0.1) * _ramp((depth - 40.0) / 25.0) * _ramp(2.5 * density)
            value -= _tubules(segments, n1, t1, w, label)
    return value + 9.0 * sample(scene.drift, p[0], p[1], p[2])


@compiled
def _tubules(
    segments: Segments, n: int, t: float, w: tuple[float, float, float], label: np.uint64
) -> float:
    """Return the grey value that microtubules take away: dots of a lattice across the axis of a segment."""
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
    return 17.0 * _bump(np.sqrt(dp * dp + dq * dq) / 11.0)


@compiled
def _warped(scene: Scene, z: float, y: float, x: float) -> tuple[float, float, float]:
    w = scene.warp
    return (
        z + WARP[0] * sample(w[0], z, y, x) + WARP[1] * sample(w[3], z, y, x),
        y + WARP[0] * sample(w[1], z, y, x) + WARP[1] * sample(w[4], z, y, x),
        x + WARP[0] * sample(w[2], z, y, x) + WARP[1] * sample(w[5], z, y, x),
    )


@compiled
def _position(scene: Scene, z: int, y: int, x: int) -> tuple[float, float, float]:
    """Return where in the tissue, in nm, a voxel of the block lies."""
    return (
        (z + scene.first[0]) * scene.voxel_size[0],
        (y + scene.first[1]) * scene.voxel_size[1] + scene.section.shift_y[z],
        (x + scene.first[2]) * scene.voxel_size[2] + scene.section.shift_x[z],
    )


@compiled
def _ball(
    scene: Scene, low: tuple[int, int, int], high: tuple[int, int, int], warped: Numbers
) -> tuple[Numbers, float]:
    """Warp the voxels of a tile into ``warped`` (z, y, x, 3); return centre and radius of a ball around them."""
    least, most = np.full(3, np.inf), np.full(3, -np.inf)
    for z in range(low[0], high[0]):
        for y in range(low[1], high[1]):
            for x in range(low[2], high[2]):
                p = _position(scene, z, y, x)
                w = _warped(scene, p[0], p[1], p[2])
                for k in range(3):
                    warped[z - low[0], y - low[1], x - low[2], k] = w[k]
                    least[k], most[k] = min(least[k], w[k]), max(most[k], w[k])
    half = (most - least) / 2.0
    return (least + most) / 2.0, np.sqrt(half[0] * half[0] + half[1] * half[1] + half[2] * half[2])


@compiled
def _render_tile(
    scene: Scene, among: NDArray[np.int64], low: tuple[int, int, int], warped: Numbers,
    raw: NDArray[np.uint8], labels: NDArray[np.uint64], high: tuple[int, int, int],
) -> None:
    key = chain(scene.key, 90)
    section = scene.section
    for z in range(low[0], high[0]):
        for y in range(low[1], high[1]):
            row = chain(chain(key, z + scene.first[0]), y + scene.first[1])
            for x in range(low[2], high[2]):
                at = warped[z - low[0], y - low[1], x - low[2]]
                w = (at[0], at[1], at[2])
                found = _nearest_two(scene.segments, among, w[0], w[1], w[2])
                labels[z, y, x] = scene.segments.owner[found[0]]
                value = _grey(scene, found, w, _position(scene, z, y, x), section.blur[z])
                value = 128.0 + section.gain[z] * (value - 128.0) + section.bias[z]
                value += 6.5 * normal(chain(row, x + scene.first[2]))
                raw[z, y, x] = np.uint8(min(max(value + 0.5, 0.0), 255.0))


@compiled
def render(
    scene: Scene, tile: tuple[int, int, int], raw: NDArray[np.uint8], labels: NDArray[np.uint64]
) -> None:
    """Fill ``raw`` and ``labels`` (z, y, x), in tiles of ``tile`` voxels gathered in groups of 4 x 4 x 4."""
    nz, ny, nx = raw.shape
    group = (4 * tile[0], 4 * tile[1], 4 * tile[2])
    everything = np.arange(len(scene.segments.owner))
    buffer = np.empty((*group, 3))
    for gz in range(0, nz, group[0]):
        for gy in range(0, ny, group[1]):
            for gx in range(0, nx, group[2]):
                end = (min(gz + group[0], nz), min(gy + group[1], ny), min(gx + group[2], nx))
                centre, radius = _ball(scene, (gz, gy, gx), end, buffer)
                near = select(scene.segments, everything, centre, radius)
                for z in range(gz, end[0], tile[0]):
                    for y in range(gy, end[1], tile[1]):
                        for x in range(gx, end[2], tile[2]):
                            high = (min(z + tile[0], end[0]), min(y + tile[1], end[1]), min(x + tile[2], end[2]))
                            centre, radius = _ball(scene, (z, y, x), high, buffer)
                            among = select(scene.segments, near, centre, radius)
                            _render_tile(scene, among, (z, y, x), buffer, raw, labels, high)
