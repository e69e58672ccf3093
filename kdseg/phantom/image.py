"""Labels and grey values of the phantom, voxel by voxel; the same arithmetic in every tile."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.phantom.fields import Field, Point, field, sample
from kdseg.phantom.hashing import chain, compiled, hash3, normal, uniform
from kdseg.phantom.organelles import bump, mitochondrion, ramp, tubules, vesicles
from kdseg.phantom.search import Found, direction, nearest_two, select
from kdseg.phantom.tissue import REACH, Segments

Numbers = NDArray[np.float64]
Index = tuple[int, int, int]

WARP = 76.0, 15.0
"""Amplitude in nm of the coarse and of the fine warp."""
# A turn (of columns 2/3, -1/3, 2/3 ...) keeps the lattices of the tissue from lying along the voxel axes.
_TURN = ((2 / 3, -1 / 3, 2 / 3), (2 / 3, 2 / 3, -1 / 3), (-1 / 3, 2 / 3, 2 / 3))
_WARP_SPACING = 430.0, 150.0


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
    return float(0.8 * 2.5 * 2.0 * 3.0**0.5 * voxel_size[1:].max())


def scene(
    key: np.uint64,
    voxel_size: Numbers,
    first: NDArray[np.int64],
    section: Section,
    segments: Segments,
    low: Point,
    high: Point,
) -> Scene:
    """Return the scene of a block whose voxels, moved with their sections, lie in ``low`` to ``high`` nm."""
    coarse, fine = _WARP_SPACING
    warp = [field(key, 60 + k, coarse if k < 3 else fine, low, high) for k in range(6)]
    return Scene(
        key,
        voxel_size,
        first,
        section,
        segments,
        (warp[0], warp[1], warp[2], warp[3], warp[4], warp[5]),
        field(key, 70, 210.0, low, high),
        field(key, 71, 420.0, low, high),
        field(key, 72, 2600.0, low, high),
        field(key, 73, 150.0, low, high),
        field(key, 74, 34.0, low, high),
    )


@compiled
def _membrane(scene: Scene, found: Found, w: Point) -> tuple[float, float]:
    """Return the distance to the membrane in nm, and how oblique (0 to 1) it lies to the sections."""
    n1, t1, _, s1, n2, t2, s2 = found
    if n2 < 0:
        return REACH, 0.0
    a = direction(scene.segments, n1, t1, w[0], w[1], w[2])
    b = direction(scene.segments, n2, t2, w[0], w[1], w[2])
    nz, ny, nx = a[0] - b[0], a[1] - b[1], a[2] - b[2]
    # The slope of s2 - s1; 2 between two axes, small where one object lies behind the other.
    slope = max(np.sqrt(nz * nz + ny * ny + nx * nx), 0.6)
    return (s2 - s1) / slope, abs(nz) / slope


@compiled
def _grey(scene: Scene, found: Found, w: Point, p: Point, blur: float) -> float:
    """Return the grey value without noise at ``p`` (nm), which the warp takes to ``w``."""
    n1, t1, d1 = found[:3]
    label = scene.segments.owner[n1]
    strength = sample(scene.strength, p[0], p[1], p[2])
    density = sample(scene.density, p[0], p[1], p[2])
    grain = sample(scene.grain, p[0], p[1], p[2])
    organelle = sample(scene.organelle, p[0], p[1], p[2])
    depth, oblique = _membrane(scene, found, w)
    synaptic = uniform(chain(label, 4)) < 0.45
    active = ramp((density - 0.05) / 0.3) if synaptic else 0.0
    width = 14.5 + 4.0 * density + 7.0 * active * ramp(2.0 * strength)
    smear = blur + 0.4 * scene.voxel_size[0] * oblique
    smeared = np.sqrt(width * width + smear * smear)
    dark = min(max(0.86 + 0.85 * strength, 0.12), 1.05) * width / smeared
    value = 150.0 + 34.0 * (uniform(chain(label, 5)) - 0.5) + 10.0 * grain - 66.0 * dark * bump(depth / smeared)
    organ = mitochondrion(scene.segments, n1, t1, d1, depth, organelle)
    if organ > -4.0:
        if active > 0.0 and 26.0 < depth < 190.0:
            shell = vesicles(chain(scene.key, 80), p[0], p[1], p[2])
            organ += active * shell * ramp((depth - 26.0) / 14.0)
        elif not synaptic and depth > 40.0:
            # Reticulum: a surface where a field is 0, in parts of the large profiles.
            sheet = bump((organelle + 0.12 * grain) / 0.1)
            organ -= 30.0 * sheet * ramp((depth - 40.0) / 25.0) * ramp(2.5 * density)
            organ += tubules(scene.segments, n1, w, label)
    return float(value + organ + 9.0 * sample(scene.drift, p[0], p[1], p[2]))


def warped_box(low: Numbers, high: Numbers) -> tuple[Numbers, Numbers]:
    """Return the corners of a box that holds what the warp makes of the box from ``low`` to ``high`` nm."""
    turn = np.array(_TURN)
    centre, half = turn @ (low + high) / 2, np.abs(turn) @ (high - low) / 2 + sum(WARP)
    return centre - half, centre + half


@compiled
def _warped(scene: Scene, z: float, y: float, x: float) -> Point:
    w = scene.warp
    turned = (
        _TURN[0][0] * z + _TURN[0][1] * y + _TURN[0][2] * x,
        _TURN[1][0] * z + _TURN[1][1] * y + _TURN[1][2] * x,
        _TURN[2][0] * z + _TURN[2][1] * y + _TURN[2][2] * x,
    )
    return (
        turned[0] + WARP[0] * sample(w[0], z, y, x) + WARP[1] * sample(w[3], z, y, x),
        turned[1] + WARP[0] * sample(w[1], z, y, x) + WARP[1] * sample(w[4], z, y, x),
        turned[2] + WARP[0] * sample(w[2], z, y, x) + WARP[1] * sample(w[5], z, y, x),
    )


@compiled
def _position(scene: Scene, z: int, y: int, x: int) -> Point:
    """Return where in the tissue, in nm, a voxel of the block lies."""
    return (
        (z + scene.first[0]) * scene.voxel_size[0],
        (y + scene.first[1]) * scene.voxel_size[1] + scene.section.shift_y[z],
        (x + scene.first[2]) * scene.voxel_size[2] + scene.section.shift_x[z],
    )


@compiled
def _warp_box(scene: Scene, low: Index, high: Index, warped: Numbers) -> None:
    """Fill ``warped`` (z, y, x, 3) with where the warp takes the voxels from ``low`` to ``high``."""
    for z in range(low[0], high[0]):
        for y in range(low[1], high[1]):
            for x in range(low[2], high[2]):
                p = _position(scene, z, y, x)
                w = _warped(scene, p[0], p[1], p[2])
                for k in range(3):
                    warped[z - low[0], y - low[1], x - low[2], k] = w[k]


@compiled
def _ball(points: Numbers) -> tuple[Numbers, float]:
    """Return centre and radius of a ball that holds all ``points`` (z, y, x, 3)."""
    least, most = np.full(3, np.inf), np.full(3, -np.inf)
    nz, ny, nx, _ = points.shape
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                for k in range(3):
                    least[k], most[k] = min(least[k], points[z, y, x, k]), max(most[k], points[z, y, x, k])
    half = (most - least) / 2.0
    return (least + most) / 2.0, np.sqrt(half[0] * half[0] + half[1] * half[1] + half[2] * half[2])


@compiled
def _render_tile(
    scene: Scene,
    among: NDArray[np.int64],
    low: Index,
    warped: Numbers,
    raw: NDArray[np.uint8],
    labels: NDArray[np.uint64],
) -> None:
    key = chain(scene.key, 90)
    section = scene.section
    nz, ny, nx, _ = warped.shape
    for k in range(nz):
        z = low[0] + k
        for m in range(ny):
            y = low[1] + m
            row = chain(chain(key, z + scene.first[0]), y + scene.first[1])
            for n in range(nx):
                x = low[2] + n
                w = (warped[k, m, n, 0], warped[k, m, n, 1], warped[k, m, n, 2])
                found = nearest_two(scene.segments, among, w[0], w[1], w[2])
                labels[z, y, x] = scene.segments.owner[found[0]]
                value = _grey(scene, found, w, _position(scene, z, y, x), section.blur[z])
                value = 128.0 + section.gain[z] * (value - 128.0) + section.bias[z]
                value += 5.5 * normal(chain(row, x + scene.first[2]))
                raw[z, y, x] = np.uint8(min(max(value + 0.5, 0.0), 255.0))


@compiled
def render(scene: Scene, tile: Index, raw: NDArray[np.uint8], labels: NDArray[np.uint64]) -> None:
    """Fill ``raw`` and ``labels`` (z, y, x), in tiles of ``tile`` voxels gathered in groups of 4 x 4 x 4."""
    nz, ny, nx = raw.shape
    tz, ty, tx = tile
    everything = np.arange(len(scene.segments.owner))
    buffer = np.empty((4 * tz, 4 * ty, 4 * tx, 3))
    for gz in range(0, nz, 4 * tz):
        for gy in range(0, ny, 4 * ty):
            for gx in range(0, nx, 4 * tx):
                end = (min(gz + 4 * tz, nz), min(gy + 4 * ty, ny), min(gx + 4 * tx, nx))
                _warp_box(scene, (gz, gy, gx), end, buffer)
                group = buffer[: end[0] - gz, : end[1] - gy, : end[2] - gx]
                centre, radius = _ball(group)
                near = select(scene.segments, everything, centre, radius)
                for z in range(0, end[0] - gz, tz):
                    for y in range(0, end[1] - gy, ty):
                        for x in range(0, end[2] - gx, tx):
                            part = group[z : z + tz, y : y + ty, x : x + tx]
                            centre, radius = _ball(part)
                            among = select(scene.segments, near, centre, radius)
                            _render_tile(scene, among, (gz + z, gy + y, gx + x), part, raw, labels)
