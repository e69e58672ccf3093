"""Labels and grey values of the phantom; the same arithmetic for every voxel, however they are grouped.

A block is divided into regions, these into groups, these into leaves of 64 voxels. Fields are sampled row by row in
a group, and the segments that matter become fewer from step to step.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.volumes.phantom.fields import Field, Point, field, sample
from kdseg.volumes.phantom.grey import Corner, shade
from kdseg.volumes.phantom.hashing import chain, compiled
from kdseg.volumes.phantom.leaf import BLUR, FIRST, GIVEN, LEAF, VALUE, leaf_shape, working_space
from kdseg.volumes.phantom.microscope import Section, expose
from kdseg.volumes.phantom.organelles import Contents, Vesicles, contents, vesicles
from kdseg.volumes.phantom.search import nearest_two, select, table
from kdseg.volumes.phantom.tissue import Segments

Numbers = NDArray[np.float64]
Index = tuple[int, int, int]

WARP = 76.0, 15.0
"""Amplitude in nm of the coarse and of the fine warp."""
# A turn (of columns 2/3, -1/3, 2/3 ...) keeps the lattices of the tissue from lying along the voxel axes.
_TURN = ((2 / 3, -1 / 3, 2 / 3), (2 / 3, 2 / 3, -1 / 3), (-1 / 3, 2 / 3, 2 / 3))
_WARP_SPACING = 430.0, 150.0
_FIELDS = (70, 210.0), (71, 420.0), (72, 2600.0), (73, 150.0), (74, 34.0)
"""Stream and spacing in nm of the fields of a leaf: strength, density, drift, organelle, grain."""
_GROUP, _REGION = (2, 4, 8), (16, 16, 16)
"""Leaves along each axis; long rows are fast, and the numbers of a group fit a processor's second cache."""


class Scene(NamedTuple):
    """All that a voxel's value is computed from."""

    key: np.uint64
    voxel_size: Numbers
    first: NDArray[np.int64]
    section: Section
    rows: Numbers
    owner: NDArray[np.uint64]
    contents: Contents
    vesicles: Vesicles
    warp: tuple[Field, Field, Field, Field, Field, Field]
    fields: tuple[Field, Field, Field, Field, Field]
    leaf: Index


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
    fields = [field(key, stream, spacing, low, high) for stream, spacing in _FIELDS]
    return Scene(
        key,
        voxel_size,
        first,
        section,
        table(segments),
        segments.owner,
        contents(segments),
        vesicles(np.uint64(chain(key, 80)), low, high),
        (warp[0], warp[1], warp[2], warp[3], warp[4], warp[5]),
        (fields[0], fields[1], fields[2], fields[3], fields[4]),
        leaf_shape(voxel_size),
    )


def warped_box(low: Numbers, high: Numbers) -> tuple[Numbers, Numbers]:
    """Return the corners of a box that holds what the warp makes of the box from ``low`` to ``high`` nm."""
    turn = np.array(_TURN)
    centre, half = turn @ (low + high) / 2, np.abs(turn) @ (high - low) / 2 + sum(WARP)
    return centre - half, centre + half


@compiled
def _places(scene: Scene, low: Index, high: Index) -> Corner:
    """Return where in the tissue, in nm, the voxels from ``low`` to ``high`` of the block lie."""
    nz, ny, nx = high[0] - low[0], high[1] - low[1], high[2] - low[2]
    places = Corner(np.empty(nz), np.empty((nz, ny)), np.empty((nz, nx)))
    size, first, section = scene.voxel_size, scene.first, scene.section
    for k in range(nz):
        z = low[0] + k
        places.z[k] = (z + first[0]) * size[0]
        for m in range(ny):
            places.y[k, m] = (low[1] + m + first[1]) * size[1] + section.shift_y[z]
        for n in range(nx):
            places.x[k, n] = (low[2] + n + first[2]) * size[2] + section.shift_x[z]
    return places


@compiled
def _warp_plane(turn: Point, z: float, y: Numbers, x: Numbers, coarse: Numbers, fine: Numbers, out: Numbers) -> None:
    """Fill ``out`` (y, x) with one coordinate of where the warp takes a plane."""
    for m in range(y.size):
        for n in range(x.size):
            out[m, n] = turn[0] * z + turn[1] * y[m] + turn[2] * x[n] + WARP[0] * coarse[m, n] + WARP[1] * fine[m, n]


@compiled
def _sample_group(scene: Scene, places: Corner, given: Numbers) -> None:
    """Fill ``given`` (GIVEN, z, y, x) with warped positions and fields."""
    ny, nx = places.y.shape[1], places.x.shape[1]
    coarse, fine = np.empty((ny, nx)), np.empty((ny, nx))
    for k in range(places.z.size):
        z, y, x = places.z[k], places.y[k], places.x[k]
        for axis in range(3):
            sample(scene.warp[axis], z, y, x, coarse)
            sample(scene.warp[axis + 3], z, y, x, fine)
            _warp_plane(_TURN[axis], z, y, x, coarse, fine, given[axis, k])
        for f in range(5):
            sample(scene.fields[f], z, y, x, given[3 + f, k])


@compiled
def _ball(points: Numbers) -> tuple[Numbers, float]:
    """Return centre and radius of a ball that holds all points (3, z, y, x): the middle of two corners."""
    _, nz, ny, nx = points.shape
    centre = np.empty(3)
    for axis in range(3):
        centre[axis] = 0.5 * (points[axis, 0, 0, 0] + points[axis, nz - 1, ny - 1, nx - 1])
    most = 0.0
    for k in range(nz):
        for m in range(ny):
            for n in range(nx):
                dz = points[0, k, m, n] - centre[0]
                dy = points[1, k, m, n] - centre[1]
                dx = points[2, k, m, n] - centre[2]
                most = max(most, dz * dz + dy * dy + dx * dx)
    return centre, np.sqrt(most)


@compiled
def _region_ball(scene: Scene, low: Index, high: Index) -> tuple[Numbers, float]:
    """Return a ball that holds where the warp takes the voxels from ``low`` to ``high``, however far that may be."""
    places = _places(scene, low, high)
    least = places.z[0], places.y.min(), places.x.min()
    most = places.z[-1], places.y.max(), places.x.max()
    centre, square = np.empty(3), 0.0
    for axis in range(3):
        turn = _TURN[axis]
        centre[axis] = 0.0
        for k in range(3):
            centre[axis] += turn[k] * (least[k] + most[k]) / 2.0
        square += ((most[axis] - least[axis]) / 2.0) ** 2
    return centre, np.sqrt(square) + np.sqrt(3.0) * (WARP[0] + WARP[1])


@compiled
def _fill_leaf(scene: Scene, given: Numbers, blur: Numbers, work: Numbers) -> None:
    """Copy a leaf's part of a group, (GIVEN, z, y, x), to its rows; voxels behind the end repeat the last ones."""
    tz, ty, tx = scene.leaf
    _, nz, ny, nx = given.shape
    for k in range(tz):
        for m in range(ty):
            start = (k * ty + m) * tx
            z, y = min(k, nz - 1), min(m, ny - 1)
            for n in range(tx):
                work[BLUR + start + n] = blur[z]
            for c in range(GIVEN):
                for n in range(tx):
                    work[c * LEAF + start + n] = given[c, z, y, min(n, nx - 1)]


@compiled
def _render_leaf(
    scene: Scene,
    near: NDArray[np.int64],
    given: Numbers,
    corner: Corner,
    blur: Numbers,
    work: Numbers,
    value: Numbers,
    labels: NDArray[np.uint64],
) -> None:
    """Fill ``value`` and ``labels`` (z, y, x), the leaf's part of a group and of the block."""
    centre, radius = _ball(given[:3])
    among = select(scene.rows, near, centre, radius)
    _fill_leaf(scene, given, blur, work)
    nearest_two(scene.rows, among, work)
    shade(scene.rows, scene.contents, scene.vesicles, corner, scene.leaf, scene.voxel_size[0], work)
    _, ty, tx = scene.leaf
    nz, ny, nx = labels.shape
    for k in range(nz):
        for m in range(ny):
            for n in range(nx):
                i = (k * ty + m) * tx + n
                value[k, m, n] = work[VALUE + i]
                labels[k, m, n] = scene.owner[int(work[FIRST + i])]


@compiled
def _render_cell(
    scene: Scene,
    near: NDArray[np.int64],
    given: Numbers,
    corner: Corner,
    blur: Numbers,
    work: Numbers,
    value: Numbers,
    labels: NDArray[np.uint64],
) -> None:
    """Render the leaves of a part of a group, which share their choice of segments."""
    near = select(scene.rows, near, *_ball(given[:3]))
    tz, ty, tx = scene.leaf
    nz, ny, nx = labels.shape
    for z in range(0, nz, tz):
        for y in range(0, ny, ty):
            for x in range(0, nx, tx):
                a, b, c = slice(z, z + tz), slice(y, y + ty), slice(x, x + tx)
                part = Corner(corner.z[a], corner.y[a, b], corner.x[a, c])
                _render_leaf(scene, near, given[:, a, b, c], part, blur[a], work, value[a, b, c], labels[a, b, c])


@compiled
def _render_group(
    scene: Scene,
    near: NDArray[np.int64],
    low: Index,
    given: Numbers,
    work: Numbers,
    raw: NDArray[np.uint8],
    labels: NDArray[np.uint64],
) -> None:
    """Fill ``raw`` and ``labels`` (z, y, x), the group's part of the block that begins at ``low``."""
    nz, ny, nx = raw.shape
    places = _places(scene, low, (low[0] + nz, low[1] + ny, low[2] + nx))
    _sample_group(scene, places, given)
    given = given[:, :nz, :ny, :nx]
    near = select(scene.rows, near, *_ball(given[:3]))
    value = np.empty((nz, ny, nx))
    blur = scene.section.blur[low[0] : low[0] + nz]
    tz, ty, tx = 2 * scene.leaf[0], 2 * scene.leaf[1], 2 * scene.leaf[2]
    for z in range(0, nz, tz):
        for y in range(0, ny, ty):
            for x in range(0, nx, tx):
                a, b, c = slice(z, z + tz), slice(y, y + ty), slice(x, x + tx)
                corner = Corner(places.z[a], places.y[a, b], places.x[a, c])
                _render_cell(scene, near, given[:, a, b, c], corner, blur[a], work, value[a, b, c], labels[a, b, c])
    key, section, first = chain(scene.key, 90), scene.section, scene.first
    for k in range(nz):
        plane = chain(key, low[0] + k + first[0])
        gain, bias = section.gain[low[0] + k], section.bias[low[0] + k]
        for m in range(ny):
            row = chain(plane, low[1] + m + first[1])
            expose(row, low[2] + first[2], gain, bias, value[k, m], raw[k, m])


@compiled
def render(scene: Scene, raw: NDArray[np.uint8], labels: NDArray[np.uint64]) -> None:
    """Fill ``raw`` and ``labels`` (z, y, x) of a block."""
    nz, ny, nx = raw.shape
    leaf = scene.leaf
    gz, gy, gx = leaf[0] * _GROUP[0], leaf[1] * _GROUP[1], leaf[2] * _GROUP[2]
    rz, ry, rx = leaf[0] * _REGION[0], leaf[1] * _REGION[1], leaf[2] * _REGION[2]
    everything = np.arange(len(scene.owner))
    work, given = working_space(), np.empty((GIVEN, gz, gy, gx))
    for z in range(0, nz, rz):
        for y in range(0, ny, ry):
            for x in range(0, nx, rx):
                end = min(z + rz, nz), min(y + ry, ny), min(x + rx, nx)
                near = select(scene.rows, everything, *_region_ball(scene, (z, y, x), end))
                for k in range(z, end[0], gz):
                    for m in range(y, end[1], gy):
                        for n in range(x, end[2], gx):
                            a, b, c = (
                                slice(k, min(k + gz, end[0])),
                                slice(m, min(m + gy, end[1])),
                                slice(n, min(n + gx, end[2])),
                            )
                            _render_group(scene, near, (k, m, n), given, work, raw[a, b, c], labels[a, b, c])
