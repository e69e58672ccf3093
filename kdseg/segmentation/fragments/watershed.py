"""Fragments: an oversegmentation of affinities, whose parts are merged later but never cut again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cc3d
import numpy as np
from numpy.typing import NDArray

from kdseg.config.base import exact
from kdseg.config.segmentation import MutexOptions, WatershedOptions, WaterzOptions
from kdseg.errors import ShapeError
from kdseg.geometry import Offsets, Slices, VoxelSize, in_sections, pair_slices
from kdseg.running.compiled import compiled
from kdseg.segmentation.fragments.flood import flood, level_of, levels, seed_rest, strength
from kdseg.segmentation.fragments.heights import distance, mean_affinity, smooth
from kdseg.segmentation.fragments.mutex import mutex_fragments
from kdseg.segmentation.fragments.seeds import basins, joined
from kdseg.segmentation.links import nearest_links
from kdseg.segmentation.waterz import waterz_fragments

_SMALLEST = 10  # voxels of a separate component that gets a seed of its own; fewer are noise on a boundary


class Grains(NamedTuple):
    """Parts of a block that its fragments are made of, for several options.

    Attributes:
        ids: integers (z, y, x), 1..n, 0 for background.
        fragment: integers (options, n + 1), in which fragment each part lies, those of one fragment alike; 0 for
            background alone.
    """

    ids: NDArray[np.integer[Any]]
    fragment: NDArray[np.integer[Any]]


def fragments(
    affinities: NDArray[np.uint8],
    offsets: Offsets,
    options: WatershedOptions | MutexOptions | WaterzOptions,
    mask: NDArray[np.bool_] | None = None,
    voxel_size: VoxelSize = (1.0, 1.0, 1.0),
) -> NDArray[np.uint64]:
    """Return the fragments of one block with its halo; a pure function of its arguments.

    - ``watershed``: each voxel inside (`flood.strength` above ``options.boundary``) climbs to a peak of the
      smoothed distance to the next boundary voxel, or of the smoothed mean affinity (`seeds.basins`); so does
      every component of links above the boundary that has no inside (`flood.seed_rest`). From there the graph
      of nearest affinities is flooded, strongest first (`flood.flood`), where a link counts less if its ends
      are weak (`flood.levels`). All of the mask is filled, boundaries too; without any seed all is
      background, as where all affinities are 0. About 25 bytes per voxel. With ``options.per_section`` the
      affinities along z are not used, as where there are none (`geometry.in_sections`).
    - ``mutex``: mutex watershed (Wolf et al. 2018, arXiv 1904.12654). Nearest affinities attract with
      ``a + bias``, others repel with ``1 - a``. About 400 bytes per voxel.
    - ``waterz``: waterz' own watershed.

    Args:
        affinities: uint8 (c, z, y, x); ``affinities[c, p]`` is the affinity between ``p`` and
            ``p + offsets[c]`` in 1/255; 255 means "same neuron".
        offsets: one ``(z, y, x)`` step in voxels per channel; one-voxel steps along z, y, x among them, or along y
            and x alone: no fragment reaches across sections then.
        options: the method and its settings.
        mask: bool (z, y, x), False where there is no tissue: background, and no fragment reaches across it.
        voxel_size: nm; of the watershed's distances only its ratios matter.

    Returns:
        uint64 (z, y, x), 0 for background, else 1..n by first occurrence in C order. A fragment may be in
        several pieces; `clean` tells them apart.

    Raises:
        ShapeError: if affinities, offsets and mask do not fit each other.
        ConfigError: if a nearest offset is missing, or the method's library is not installed.
    """
    links, mask = _links(affinities, offsets, mask)
    if options.method == "mutex":
        return _renumber(mutex_fragments(affinities, offsets, options, mask), 0)
    if options.method == "waterz":
        return _renumber(_masked_waterz(links, options, mask), 0)
    flat = int(options.per_section or in_sections(offsets))
    return _renumber(_seeded(links, mask, options, (options.seed_distance,), voxel_size, flat).ids, 0)


def seeded_grains(
    affinities: NDArray[np.uint8],
    offsets: Offsets,
    options: WatershedOptions,
    distances: Sequence[int],
    mask: NDArray[np.bool_] | None = None,
    voxel_size: VoxelSize = (1.0, 1.0, 1.0),
) -> Grains:
    """Return what the fragments of several seed distances are made of; a pure function of its arguments.

    With the distance, basins are joined and nothing else changes: which voxels have a seed does not, and the flooding
    asks for no more than that. So one flooding serves them all.

    Args:
        affinities: as of `fragments`, as are the others.
        offsets: likewise.
        options: all but the seed distance.
        distances: values of ``options.seed_distance``, ascending.
        mask: likewise.
        voxel_size: nm.

    Returns:
        int32; the options are the distances.
    """
    flat = int(options.per_section or in_sections(offsets))
    return _seeded(*_links(affinities, offsets, mask), options, distances, voxel_size, flat)


def clean(fragments: NDArray[np.integer[Any]], core: Slices, dust: int) -> NDArray[np.uint64]:
    """Return the fragments of a block's core, each in one piece.

    Pieces that hang together (over faces of voxels) through the halo only become fragments of their own: the
    next block has its own fragments there, and the region graph joins them.

    Args:
        fragments: integers (z, y, x), with halo; 0 is background, ids are at most the number of voxels.
        core: the block without its halo.
        dust: pieces of fewer voxels become background.

    Returns:
        uint64 in the shape of the core, 0 for background, else 1..n by first occurrence in C order.

    Raises:
        ShapeError: if the core does not lie inside the array.
    """
    if any(not 0 <= s.start <= s.stop <= n for s, n in zip(core, fragments.shape, strict=True)):
        raise ShapeError(f"core {core} does not lie inside the fragments' shape {fragments.shape}")
    inner = np.ascontiguousarray(fragments[core])
    if inner.size == 0:
        return inner.astype(np.uint64)
    pieces = cc3d.connected_components(inner.astype(np.uint32), connectivity=6, out_dtype=np.uint32)
    return _renumber(pieces, dust)


def drop_weak(
    fragments: NDArray[np.uint64],
    affinities: NDArray[np.uint8],
    offsets: Offsets,
    core: Slices,
    least: float,
    mask: NDArray[np.bool_] | None = None,
    *,
    per_section: bool = False,
) -> NDArray[np.uint64]:
    """Return the fragments of a core without those whose voxels are not inside anything on the mean.

    Args:
        fragments: uint64 (z, y, x), of the core, 1..n, 0 for background.
        affinities: uint8 (c, z, y, x), with halo.
        offsets: one ``(z, y, x)`` step in voxels per channel.
        core: the block without its halo.
        least: a fragment goes if the mean of its voxels' `flood.strength` is lower, in 0..1.
        mask: bool (z, y, x), with halo.
        per_section: whether affinities along z count for nothing, as where there are none.

    Returns:
        uint64 in the shape of the core, 1..n by first occurrence in C order.

    Raises:
        ShapeError: if the fragments do not fill the core.
    """
    total = summed_strength(fragments, affinities, offsets, core, mask, per_section=per_section)
    dropped = weak(total, np.bincount(fragments.ravel()), least)
    return _renumber(np.where(dropped[fragments], np.uint64(0), fragments), 0)


def summed_strength(
    fragments: NDArray[np.uint64],
    affinities: NDArray[np.uint8],
    offsets: Offsets,
    core: Slices,
    mask: NDArray[np.bool_] | None,
    *,
    per_section: bool,
) -> NDArray[np.int64]:
    """Return the sum of each fragment's `flood.strength`, int64 (n + 1,), in 1/255; the arguments are `drop_weak`'s.

    Raises:
        ShapeError: if the fragments do not fill the core.
    """
    links = nearest_links(affinities, offsets)
    mask = np.ones(links.shape[1:], np.bool_) if mask is None else mask
    strengths = strength(links, mask, int(per_section or in_sections(offsets)))[core]
    if strengths.shape != fragments.shape:
        raise ShapeError(f"fragments {fragments.shape} do not fill the core {strengths.shape}")
    # sums of integers below 2**53 are exact in float64
    return np.bincount(fragments.ravel(), strengths.ravel()).astype(np.int64)


def weak(total: NDArray[np.int64], size: NDArray[np.int64], least: float) -> NDArray[np.bool_]:
    """Return which fragments have a mean strength below ``least``, exactly.

    Args:
        total: int64 (n,), from `summed_strength`.
        size: int64 (n,), voxels.
        least: in 0..1.
    """
    bound = 255 * exact(least)  # both products are below 2**60
    return np.asarray(total * bound.denominator < bound.numerator * size)


def _links(
    affinities: NDArray[np.uint8], offsets: Offsets, mask: NDArray[np.bool_] | None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return nearest affinities in one convention, and a mask that fits them."""
    links = nearest_links(affinities, offsets)
    mask = np.ones(links.shape[1:], np.bool_) if mask is None else np.ascontiguousarray(mask)
    if mask.shape != links.shape[1:] or mask.dtype != np.bool_:
        raise ShapeError(f"expected a mask bool {links.shape[1:]}, got {mask.dtype} {mask.shape}")
    return links, mask


def _seeded(
    links: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    options: WatershedOptions,
    distances: Sequence[int],
    voxel_size: VoxelSize,
    first: int,
) -> Grains:
    finest = min(voxel_size[first:])
    spacing = (voxel_size[0] / finest, voxel_size[1] / finest, voxel_size[2] / finest)
    strengths = strength(links, mask, first)
    boundary = int(255 * exact(options.boundary))  # integers above a fraction are those above its floor
    inside = strengths > boundary
    if options.seeds == "distance":
        height = smooth(distance(inside, spacing, first), spacing, first)
    else:
        height = smooth(mean_affinity(links, mask, first), spacing, first)
    height[~inside] = -1
    windows = np.array([[int(far * exact(finest) / exact(size)) for size in voxel_size] for far in distances])
    windows[:, :first] = 0
    records = levels(links, strengths, mask)
    labels, peaks = basins(height, records, level_of(boundary), first)
    into = joined(height, records, level_of(boundary), windows, labels, peaks)
    del height, inside
    seed_rest(labels, links, mask, boundary, _SMALLEST, first)
    flood(labels, records, first)
    del records
    return _common(labels[1:-1, 1:-1, 1:-1], into)


def _common(labels: NDArray[np.int32], into: NDArray[np.int32]) -> Grains:
    """Join basins that lie together whatever the option.

    Args:
        labels: int32 (z, y, x); those above the basins' belong to themselves.
        into: int32 (options, n + 1), the basin that each one comes to lie in.
    """
    rest = np.arange(into.shape[1], int(labels.max(initial=0)) + 1, dtype=np.int32)
    every = np.concatenate((into, np.broadcast_to(rest, (len(into), rest.size))), axis=1)
    fragment, name = np.unique(every, axis=1, return_inverse=True)  # 0 stays 0: it is the least
    return Grains(name.ravel().astype(np.int32)[labels], fragment)


def _masked_waterz(links: NDArray[np.uint8], options: WaterzOptions, mask: NDArray[np.bool_]) -> NDArray[np.uint64]:
    links = links.copy()
    z, y, x = mask.shape
    for axis in range(3):
        here, there = pair_slices((z, y, x), (-int(axis == 0), -int(axis == 1), -int(axis == 2)))
        links[axis][here][~(mask[here] & mask[there])] = 0
    return np.where(mask, waterz_fragments(links, options.low, options.high), 0)


@compiled
def _renumber(ids: NDArray[np.integer[Any]], dust: int) -> NDArray[np.uint64]:
    """Return ids 1..n by first occurrence in C order; 0 stays 0, ids of fewer than ``dust`` voxels become it."""
    nz, ny, nx = ids.shape
    most = np.int64(ids.max()) + 1 if ids.size else 1
    size = np.zeros(most, np.int64)
    if dust > 1:
        for z in range(nz):
            for y in range(ny):
                for x in range(nx):
                    size[ids[z, y, x]] += 1
    new = np.zeros(most, np.uint64)
    out = np.zeros(ids.shape, np.uint64)
    following, last, last_new = np.uint64(0), ids.dtype.type(0), np.uint64(0)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                old = ids[z, y, x]
                if old != last:  # most neighbours along x are of one fragment
                    if old != 0 and new[old] == 0 and (dust <= 1 or size[old] >= dust):
                        following += np.uint64(1)
                        new[old] = following
                    last, last_new = old, new[old]
                out[z, y, x] = last_new
    return out
