"""Flooding of a graph of voxels from seeds, compiled by numba.

All functions work on `links`: uint8 (3, z, y, x), ``[axis, p]`` is the affinity of ``p`` and ``p - e_axis``; axes
before ``first`` (0, or 1: each section alone) are ignored. The flooding itself works on arrays with a margin of one
voxel, which spares it every question about borders, and on one record of four bytes per voxel, since what it costs
is the memory that it touches.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdseg.running.compiled import compiled

COARSENESS = 3
"""Bits of a link that do not count for the order of the flooding: 32 levels."""
_LEVELS = 256 >> COARSENESS
_CLOSED = 255  # level of what is not to be flooded: it is already, or lies outside
_CHUNK = 256  # voxels that lie together in a queue
_MOST = 6  # neighbours, and so new chunks, of one voxel
_NO_END = 256  # more than any affinity: no link counts
_VISITED = -1  # label, while components are searched
_HEAD, _READ, _TAIL, _WRITTEN = 0, 1, 2, 3  # chunk to read, place in it; chunk to write, place in it


@compiled
def strength(links: NDArray[np.uint8], mask: NDArray[np.bool_], first: int) -> NDArray[np.uint8]:
    """Return how far each voxel is inside: its mean affinity to both neighbours, along its weakest axis.

    A mean over all six neighbours would miss a sharp flat boundary, where five of them are on one side.

    Args:
        links: nearest affinities.
        mask: bool (z, y, x); others are neither inside nor neighbours.
        first: axis that counts first, 0 or 1.

    Returns:
        uint8 (z, y, x), in 1/255, rounded down; 0 outside of the mask and without any neighbour.
    """
    nz, ny, nx = mask.shape
    out = np.zeros(mask.shape, np.uint8)
    weakest = np.empty(nx, np.int16)
    # one more voxel at either end of a row: nothing, as beyond the volume
    linked, inside = np.zeros(nx + 1, np.uint8), np.zeros(nx + 2, np.bool_)
    nothing = np.zeros(nx, np.bool_)
    for z in range(nz):
        for y in range(ny):
            weakest[:] = _NO_END
            if first == 0:
                above = min(z + 1, nz - 1)
                ends = mask[z - 1, y] if z > 0 else nothing, mask[z + 1, y] if z + 1 < nz else nothing
                _weaken(weakest, links[0, z, y], ends[0], links[0, above, y], ends[1])
            above = min(y + 1, ny - 1)
            ends = mask[z, y - 1] if y > 0 else nothing, mask[z, y + 1] if y + 1 < ny else nothing
            _weaken(weakest, links[1, z, y], ends[0], links[1, z, above], ends[1])
            linked[:nx], inside[1 : nx + 1] = links[2, z, y], mask[z, y]
            _weaken(weakest, linked[:nx], inside[:nx], linked[1:], inside[2:])
            row, own = out[z, y], mask[z, y]
            for x in range(nx):
                row[x] = np.uint8(weakest[x]) if own[x] and weakest[x] < _NO_END else np.uint8(0)
    return out


@compiled
def _weaken(
    weakest: NDArray[np.int16],
    below: NDArray[np.uint8],
    below_counts: NDArray[np.bool_],
    above: NDArray[np.uint8],
    above_counts: NDArray[np.bool_],
) -> None:
    """Lower a row's values to the mean of the links along one axis that count; compiled to vector instructions."""
    for x in range(weakest.size):
        one, other = np.int16(below_counts[x]), np.int16(above_counts[x])
        total = np.int16(below[x]) * one + np.int16(above[x]) * other
        mean = total >> (one & other)
        found = mean if one | other else np.int16(_NO_END)
        weakest[x] = min(weakest[x], found)


@compiled
def levels(links: NDArray[np.uint8], strengths: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the records that `flood` works on: links that are strong only where both ends are inside too.

    One quarter link, three eighths the strength of each end: a single wrong link opens no boundary. The sum
    is cut down to 32 levels, for with all 256 most voxels are met several times, each time a little better.

    Args:
        links: nearest affinities.
        strengths: uint8 (z, y, x), from `strength`.
        mask: bool (z, y, x); others are closed.

    Returns:
        uint8 (z + 2, y + 2, x + 2, 4), with a closed margin: the levels 1..32 of the three links, and the
        level at which the voxel was met, 0 for not yet.
    """
    nz, ny, nx = mask.shape
    out = np.full((nz + 2, ny + 2, nx + 2, 4), _CLOSED, np.uint8)
    for z in range(nz):
        for y in range(ny):
            records, inside, own = out[z + 1, y + 1], mask[z, y], strengths[z, y]
            behind_z, behind_y = strengths[max(z - 1, 0), y], strengths[z, max(y - 1, 0)]
            link_z, link_y, link_x = links[0, z, y], links[1, z, y], links[2, z, y]
            for x in range(nx):
                half = 3 * int(own[x])
                records[x + 1, 0] = 1 + ((2 * int(link_z[x]) + half + 3 * int(behind_z[x])) >> (3 + COARSENESS))
                records[x + 1, 1] = 1 + ((2 * int(link_y[x]) + half + 3 * int(behind_y[x])) >> (3 + COARSENESS))
                records[x + 1, 2] = 1 + ((2 * int(link_x[x]) + half + 3 * int(own[max(x - 1, 0)])) >> (3 + COARSENESS))
                records[x + 1, 3] = 0 if inside[x] else _CLOSED
    return out


def level_of(affinity: int) -> int:
    """Return the level of a link of this affinity, in 1/255, between ends of the same strength."""
    return 1 + (affinity >> COARSENESS)


@compiled
def _spread(
    labels: NDArray[np.int32],
    records: NDArray[np.uint8],
    voxel: NDArray[np.int32],
    after: NDArray[np.int32],
    ends: NDArray[np.int64],
    steps: NDArray[np.int64],
    p: int,
    level: int,
) -> None:
    """Meet the neighbours of a voxel that was flooded at a level; queue those that were never met so well."""
    for k in range(steps.shape[0]):
        q = p + steps[k, 0]
        if records[4 * q + 3] >= level:
            continue
        link = min(int(records[4 * max(p, q) + steps[k, 1]]), level)
        if link <= records[4 * q + 3]:
            continue
        records[4 * q + 3] = link
        labels[q] = labels[p]
        if ends[link, _WRITTEN] == _CHUNK:
            new = ends[0, _TAIL]
            ends[0, _TAIL] += 1
            if ends[link, _HEAD] == -1:
                ends[link, _HEAD], ends[link, _READ] = new, 0
            else:
                after[ends[link, _TAIL]] = new
            ends[link, _TAIL], ends[link, _WRITTEN] = new, 0
        voxel[ends[link, _TAIL] * _CHUNK + ends[link, _WRITTEN]] = q
        ends[link, _WRITTEN] += 1


@compiled
def _close(labels: NDArray[np.int32], records: NDArray[np.uint8]) -> None:
    for p in range(labels.size):
        if labels[p] != 0:
            records[4 * p + 3] = _CLOSED


@compiled
def _drain(
    labels: NDArray[np.int32],
    records: NDArray[np.uint8],
    voxel: NDArray[np.int32],
    after: NDArray[np.int32],
    ends: NDArray[np.int64],
    steps: NDArray[np.int64],
    start: int,
) -> int:
    """Flood until the queues are empty or there may be no chunk left; return the seed to go on from."""
    for p in range(start, labels.size):
        if labels[p] != 0 and records[4 * p + 3] == _CLOSED:
            if ends[0, _TAIL] + _MOST > after.size:
                return p
            _spread(labels, records, voxel, after, ends, steps, p, _LEVELS)
    level = _LEVELS
    while level > 0:
        chunk, place = ends[level, _HEAD], ends[level, _READ]
        if chunk == -1:
            level -= 1
            continue
        if ends[0, _TAIL] + _MOST > after.size:
            break
        ends[level, _READ] = place + 1
        if chunk == ends[level, _TAIL] and place + 1 == ends[level, _WRITTEN]:
            ends[level, _HEAD], ends[level, _WRITTEN] = -1, _CHUNK
        elif place + 1 == _CHUNK:
            ends[level, _HEAD], ends[level, _READ] = after[chunk], 0
        p = voxel[chunk * _CHUNK + place]
        if records[4 * p + 3] == level:
            _spread(labels, records, voxel, after, ends, steps, p, level)
    return labels.size if level > 0 else -1


def flood(labels: NDArray[np.int32], records: NDArray[np.uint8], first: int) -> None:
    """Grow the seeds along the strongest links until all that is open and that they reach is filled.

    Priority flooding of the edge-weighted graph (a watershed cut: Cousty et al. 2009; hierarchical queue:
    Meyer 1991): the voxel with the strongest link to what is flooded comes next, where a weaker link on the
    way to it counts for all that lies behind; first in, first out among equals, seeds in C order. Time is
    linear. A voxel that is met again by a stronger link stays where it is in the weaker queue, and is passed
    over there.

    Args:
        labels: int32 (z + 2, y + 2, x + 2), ids above 0; 0 is filled in place. The margin is 0. At most
            2**31 voxels.
        records: from `levels`; changed.
        first: axis that is flooded first, 0 or 1.
    """
    _, ny, nx = labels.shape
    lengths = [ny * nx, nx, 1]
    steps = np.array([(sign * lengths[axis], axis) for axis in range(first, 3) for sign in (-1, 1)])
    _close(labels.ravel(), records.ravel())
    # one chain of chunks per level; the first row only counts the chunks
    ends = np.empty((_LEVELS + 1, 4), np.int64)
    ends[:, _HEAD], ends[:, _READ], ends[:, _TAIL], ends[:, _WRITTEN] = -1, 0, 0, _CHUNK
    chunks = labels.size // 16 // _CHUNK + 2 * _LEVELS
    voxel, after = np.empty(chunks * _CHUNK, np.int32), np.empty(chunks, np.int32)
    start = 0
    while True:
        start = _drain(labels.ravel(), records.ravel(), voxel, after, ends, steps, start)
        if start < 0:
            return
        voxel, after = (np.concatenate((part, np.empty_like(part))) for part in (voxel, after))


@compiled
def seed_rest(
    labels: NDArray[np.int32],
    links: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    boundary: int,
    smallest: int,
    first: int,
) -> None:
    """Give a seed to every component that has none: to all its voxels, a new id each component.

    Components are voxels joined by links above ``boundary``. Without this, what is too thin to have an inside
    would be flooded by its neighbours.

    Args:
        labels: int32 (z + 2, y + 2, x + 2), with a margin of 0; ids above 0, 0 for none; changed.
        links: nearest affinities.
        mask: bool (z, y, x), others get no seed.
        boundary: in 1/255.
        smallest: components of fewer voxels get no seed.
        first: axis that joins first, 0 or 1.
    """
    nz, ny, nx = mask.shape
    flat, allowed, link = labels.ravel(), mask.ravel(), links.ravel()
    plane, margin = ny * nx, (ny + 2) * (nx + 2)
    following = flat.max() + 1
    members = np.empty(np.sum(labels[1:-1, 1:-1, 1:-1] == 0), np.int32)
    for start in range(allowed.size):
        if start % nx == 0:
            row = ((start // plane + 1) * (ny + 2) + start // nx % ny + 1) * (nx + 2) + 1 - start
        if not allowed[start] or flat[row + start] != 0:
            continue
        members[0], count, done, seeded = start, 1, 0, False
        flat[row + start] = _VISITED
        while done < count:
            p = members[done]
            done += 1
            z, y, x = p // plane, p // nx % ny, p % nx
            at = ((z + 1) * (ny + 2) + y + 1) * (nx + 2) + x + 1
            for axis, place, n, step, wide in ((0, z, nz, plane, margin), (1, y, ny, nx, nx + 2), (2, x, nx, 1, 1)):
                for sign in (-1, 1):
                    q = p + sign * step
                    if axis < first or not 0 <= place + sign < n or not allowed[q]:
                        continue
                    if link[axis * nz * plane + max(p, q)] > boundary:
                        met = flat[at + sign * wide]
                        seeded = seeded or met > 0
                        if met == 0:
                            flat[at + sign * wide] = _VISITED
                            members[count] = q
                            count += 1
        if not seeded and count >= smallest:
            for p in members[:count]:
                labels[p // plane + 1, p // nx % ny + 1, p % nx + 1] = following
            following += 1
    for p in range(flat.size):
        flat[p] = max(flat[p], 0)
