"""Conversion plans: the part of a source that becomes a volume, as raw data, labels or a mask."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdseg.config.data import VolumeOptions
from kdseg.config.tasks import Kind
from kdseg.errors import DataError, ShapeError, VoxelSizeError
from kdseg.geometry import Block, Roi, Triple, VoxelSize, triple
from kdseg.volumes.foreign import Source, expect_exact, expect_same_sections, expect_sections_in_step, lacks_size, sized
from kdseg.volumes.values import to_labels, to_uint8
from kdseg.volumes.volume import open_volume

log = logging.getLogger(__name__)

Content = Literal["raw", "labels", "mask"]
"""Meaning of a volume's voxels: grey values, ids of neurons, or tissue."""

_TOLERANCE = 1e-3
_BLOCK = 2**23
"""Voxels of the largest block, unless one shard is larger: 64 MB of labels."""


@dataclass(frozen=True)
class Plan:
    """Part of a source to write, and its place.

    Attributes:
        kind: ``raw``, ``labels`` or ``mask``.
        roi: voxels, counted from the first one of the source.
        voxel_size: nm, (z, y, x).
        offset: nm, (z, y, x), position of the first voxel of ``roi``.
        intensity: raw values that become 0 and 255; None for others.
    """

    kind: Content
    roi: Roi
    voxel_size: VoxelSize
    offset: VoxelSize
    intensity: tuple[float, float] | None = None


def _placed(source: Source, kind: Kind, options: VolumeOptions) -> Source:
    """Return a dataset with the place that the configuration gives it; the file may not say another one."""
    given: VoxelSize | None = getattr(options.offset, kind)
    if given is None:
        return source
    if source.placed and not np.allclose(source.offset or 0, given, rtol=0, atol=_TOLERANCE):  # of files in mm
        raise VoxelSizeError(
            f"{source.address} says that it begins at {source.offset} nm (z, y, x), the configuration says {given}: "
            f"correct the file, or remove `offset: {{{kind}: …}}`"
        )
    return replace(source, offset=given, placed=True)


def plan_raw(source: Source, options: VolumeOptions) -> Plan:
    """Return what to convert of raw data.

    Args:
        source: integers or floats.
        options: its voxel size, region of interest and intensities.

    Raises:
        DataError: if the type of the voxels is not an intensity, or floats come without ``intensity``.
        ShapeError: if the region of interest is not inside of the source.
        VoxelSizeError: if the voxel size is not known, or the file says another one, or another place.
    """
    dtype = source.data.dtype
    if dtype.kind not in "iuf":
        raise DataError(f"{source.address} holds {dtype}, expected integers or floats as raw data: convert it")
    if options.intensity is None and dtype.kind == "f":
        raise DataError(
            f"{source.address} holds {dtype}, whose range says nothing: set `intensity: [low, high]` to the values "
            "that become 0 and 255"
        )
    intensity = options.intensity or (float(np.iinfo(dtype).min), float(np.iinfo(dtype).max))
    voxel_size, roi = _voxel_size(source, options), _region(source, options)
    source = _placed(sized(source, voxel_size), "raw", options)
    return Plan("raw", roi, voxel_size, _position(source.offset or (0.0, 0.0, 0.0), roi, voxel_size), intensity)


def plan_labels(source: Source, options: VolumeOptions, raw: Source, kind: Kind = "labels") -> Plan:
    """Return what to convert of labels: where they meet the region of interest of the raw data.

    Labels may cover a part of the raw data, if both say where they lie. Where one does not, both must have the same
    shape, and are taken to lie at the same place.

    Args:
        source: integers, or floats that are whole numbers.
        options: voxel size and region of interest, in voxels of ``raw``.
        raw: the raw data that the labels belong to.
        kind: ``labels`` or ``baseline``.

    Raises:
        DataError: if the type of the voxels is not a label, or their format keeps values nearly only.
        ShapeError: if labels and region do not meet, or lie between the voxels of the raw data, or nobody says where.
        VoxelSizeError: if the voxel sizes differ, or the configuration says another place than the file.
    """
    dtype = source.data.dtype
    if dtype.kind not in "iuf":
        raise DataError(f"{source.address} holds {dtype}, expected one integer id per neuron: label its components")
    return _plan_beside(kind, source, options, raw)


def plan_mask(source: Source, options: VolumeOptions, raw: Source) -> Plan:
    """Return what to convert of a mask: the region of interest of the raw data, all of it.

    Args:
        source: integers or bools.
        options: voxel size and region of interest, in voxels of ``raw``.
        raw: the raw data that the mask belongs to.

    Raises:
        DataError: if the voxels are neither integers nor bools, or their format keeps values nearly only.
        ShapeError: if the mask does not cover the region, or lies between the voxels of the raw data, or nobody says
            where.
        VoxelSizeError: if the voxel sizes differ, or the configuration says another place than the file.
    """
    dtype = source.data.dtype
    if dtype.kind not in "iub":
        raise DataError(
            f"{source.address} holds {dtype}, expected a mask of integers or bools, 0 where there is no tissue: "
            "convert it"
        )
    plan, region = _plan_beside("mask", source, options, raw), _region(raw, options)
    if plan.roi.shape != region.shape:
        raise ShapeError(
            f"the mask {source.address} covers {plan.roi.shape} of the {region.shape} voxels of {raw.address} that are "
            "used, expected all: correct its shape or `offset`, or set `roi` to what it covers"
        )
    return plan


def _plan_beside(kind: Kind, source: Source, options: VolumeOptions, raw: Source) -> Plan:
    expect_exact(source, f"the voxels of the {kind}")
    voxel_size = _voxel_size(raw, options)
    source, raw = _placed(sized(source, voxel_size), kind, options), _placed(sized(raw, voxel_size), "raw", options)
    if source.voxel_size is not None and not _close(source.voxel_size, voxel_size):
        raise VoxelSizeError(
            f"{source.address} has voxels of {source.voxel_size} nm, but {raw.address} has {voxel_size} nm: resample "
            "one of them"
        )
    origin = raw.offset or (0.0, 0.0, 0.0)
    shift = _shift(kind, source, raw, voxel_size)
    box = source.roi.shift(shift).intersect(_region(raw, options))
    if not box.size:
        raise ShapeError(
            f"{source.address} covers {source.roi.shift(shift)} of the raw data's voxels, which does not meet the "
            f"region {_region(raw, options)}: correct its `offset` attribute or `roi`"
        )
    inside = box.shift((-shift[0], -shift[1], -shift[2]))
    return Plan("mask" if kind == "mask" else "labels", inside, voxel_size, _position(origin, box, voxel_size))


def block_shape(shard: Triple, unit: Triple, shape: Triple) -> Triple:
    """Return the block to convert at a time.

    Wide strips of a source are decoded once instead of once per shard: the block grows from one shard
    towards one ``unit`` of the source, the last axis first, as far as memory allows.

    Args:
        shard: voxels per file of the result, (z, y, x).
        unit: voxels per chunk or strip of the source.
        shape: voxels of the result.

    Returns:
        A multiple of ``shard``.
    """
    block = list(shard)
    for axis in (2, 1, 0):
        rest = math.prod(block) // block[axis]
        wanted = -(-min(unit[axis], shape[axis]) // shard[axis])
        block[axis] = shard[axis] * max(1, min(wanted, _BLOCK // (rest * shard[axis])))
    return (block[0], block[1], block[2])


def convert_block(source: Source, plan: Plan, out: Path, block: Block) -> bytes:
    """Convert one block; return what is known of its files.

    Args:
        source: to read from.
        plan: what of it.
        out: volume of ``plan.roi.shape`` voxels, uint8 or (labels) uint64.
        block: whole shards of ``out``.

    Raises:
        DataError: if there is a voxel that is neither an intensity nor a label.
    """
    roi = block.roi.shift(plan.roi.offset)
    data = source.read(roi)
    try:
        if plan.kind == "mask":
            voxels: NDArray[Any] = (data != 0).astype(np.uint8)
        else:
            voxels = to_labels(data) if plan.intensity is None else to_uint8(data, *plan.intensity)
    except DataError as error:
        raise DataError(f"{source.address} {roi}: {error}") from None
    return open_volume(out).write(block.roi, voxels)


def _voxel_size(source: Source, options: VolumeOptions) -> VoxelSize:
    found, wanted = source.voxel_size, options.voxel_size
    if found is None and wanted is None:
        raise VoxelSizeError(f"{source.address} {lacks_size(source)}: set `voxel_size: [z, y, x]` in nm")
    if found is not None and wanted is not None and not _close(found, wanted):
        raise VoxelSizeError(
            f"{source.address} says its voxels have {found} nm (z, y, x), `voxel_size` says {wanted}: correct "
            "the file, or leave that out"
        )
    size = found if found is not None else wanted
    if size is None:
        raise VoxelSizeError(f"{source.address} has no voxel size")
    return size


def _region(raw: Source, options: VolumeOptions) -> Roi:
    if options.roi is None:
        return raw.roi
    roi = Roi(options.roi.offset, options.roi.shape)
    if not raw.roi.contains(roi):
        raise ShapeError(f"`roi` {roi} does not lie inside of {raw.address}, which is {raw.roi}: make it smaller")
    return roi


def _shift(kind: Kind, source: Source, raw: Source, voxel_size: VoxelSize) -> Triple:
    """Return the first voxel of ``source`` in voxels of ``raw``, by the rule of `kdseg.evaluation.alignment`."""
    if source.offset is None or raw.offset is None or not (source.placed and raw.placed):
        without, other = (raw, source) if source.placed else (source, raw)
        if source.data.shape != raw.data.shape:
            places = {"raw": "[0, 0, 0]"} if not raw.placed else {}  # from whose first voxel CREMI's labels count
            places |= {kind: "[z, y, x]"} if not source.placed else {}
            line = ", ".join(f"{name}: {place}" for name, place in places.items())
            raise ShapeError(
                f"{without.address} of {without.data.shape} voxels does not say where it lies, and {other.address} has "
                f"another shape, {other.data.shape}: add `offset: {{{line}}}` to the volume, the position in nm of the "
                "first voxel"
            )
        expect_same_sections(source, raw)
        log.info(
            "%s does not say where it lies: it has the shape of %s, and is taken to lie at the same place",
            without.address,
            other.address,
        )
        return (0, 0, 0)
    steps = [(a - b) / v for a, b, v in zip(source.offset, raw.offset, voxel_size, strict=True)]
    z, y, x = (round(step) for step in steps)
    if any(abs(step - whole) > _TOLERANCE for step, whole in zip(steps, (z, y, x), strict=True)):
        raise ShapeError(
            f"{source.address} starts {steps} voxels from the first one of {raw.address}, expected whole voxels: "
            "correct its offset"
        )
    expect_sections_in_step(source, raw, z)
    return (z, y, x)


def _position(origin: VoxelSize, roi: Roi, voxel_size: VoxelSize) -> VoxelSize:
    return triple(o + n * v for o, n, v in zip(origin, roi.offset, voxel_size, strict=True))


def _close(a: VoxelSize, b: VoxelSize) -> bool:
    return all(math.isclose(m, n, rel_tol=_TOLERANCE) for m, n in zip(a, b, strict=True))
