"""Affinities made elsewhere → affinities as `kdseg predict` writes them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.config.questions import AdoptTask
from kdseg.errors import ConfigError, DataError, ShapeError, VoxelSizeError, masked
from kdseg.geometry import Block, Offsets, Roi, Triple, VoxelSize, channels_of
from kdseg.results.claims import claim
from kdseg.running.runner import place_of, run_blocks
from kdseg.segmentation.links import nearest_channels
from kdseg.volumes.checksums import keep_checksums
from kdseg.volumes.foreign import ChannelSource, lacks_size, sized
from kdseg.volumes.inputs import Input, fingerprints, open_input
from kdseg.volumes.sources import open_channels, source_state
from kdseg.volumes.volume import create_volume, open_volume

log = logging.getLogger(__name__)
SAMPLE = (64, 64, 64)
"""Voxels in the middle, whose values tell whether they seem to be inverted."""
HAIR = 1e-3
"""Least and largest affinities may be off 0 and 1 by so much, as sums of float16 are: 1/255 is a step."""


class _Part(NamedTuple):
    """Part of a source of affinities that is taken.

    Attributes:
        channels: in this order.
        first: the first voxel, (z, y, x).
        shape: voxels, (z, y, x).
        voxel_size: nm, (z, y, x).
        offset: nm, (z, y, x), position of the first voxel.
        invert: values are high between neurons.
    """

    channels: tuple[int, ...]
    first: Triple
    shape: Triple
    voxel_size: VoxelSize
    offset: VoxelSize
    invert: bool


def run(task: AdoptTask) -> None:
    """Write affinities of another program as uint8 OME-Zarr (c, z, y, x), 255 = same neuron.

    Raises:
        ConfigError: if a one-voxel step is missing.
        ShapeError: if there is not one offset per channel.
        DataError: if the values are neither uint8 nor floats in 0..1.
        VoxelSizeError: if the voxel size is not known, or the file says another one.
    """
    address, storage = task.address, task.storage
    source = open_channels(address)
    steps = _steps(address, source, task.offsets)
    raw = None if task.raw is None else open_input(task.raw)
    part = _part(task, source, steps, raw)
    if source.dtype != np.uint8 and source.dtype.kind != "f":
        raise DataError(
            f"{address} holds {source.dtype}, expected uint8 (255: same neuron) or floats in 0..1: convert it"
        )
    _say_inverted(source, part, nearest_channels(steps))
    made_of: dict[str, Any] = {
        "address": masked(address),
        "offsets": [list(step) for step in steps],
        "channels": list(part.channels),
        "voxel_size": list(part.voxel_size),
        "invert": part.invert,
        "storage": storage.model_dump(mode="json"),
    }
    inputs = {"source": source_state(address), **fingerprints(raw=raw)}
    with claim(
        task.manifest, "adopt", made_of, inputs, volume=True, bucket=storage.remote, overwrite=task.overwrite
    ) as held:
        create_volume(
            held.store,
            shape=part.shape,
            dtype=np.uint8,
            chunk=storage.chunk,
            shard=storage.shard,
            voxel_size=part.voxel_size,
            offset=part.offset,
            channels=len(part.channels),
            compress=False,
            attributes={"offsets": [list(steps[channel]) for channel in part.channels]},
        )
        roi, function = Roi((0, 0, 0), part.shape), partial(adopt_block, source, held.store, part)
        run_blocks("adopt", roi, storage.shard, function, place_of(task), held.progress(storage.shard))
        keep_checksums(held, "adopt", storage.shard)
        held.stats["voxels"] = roi.size


def adopt_block(source: ChannelSource, out: Path, part: _Part, block: Block) -> bytes:
    """Convert and write one block."""
    there = block.roi.shift(part.first)
    values = as_uint8(source.read(there)[list(part.channels)], f"{source.address} {there}")
    return open_volume(out).write(block.roi, 255 - values if part.invert else values)


def as_uint8(values: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """Return affinities in 1/255, floats rounded to the nearest.

    Raises:
        DataError: if floats are not all in 0..1, or a hair outside by rounding.
    """
    if values.dtype == np.uint8:
        return values
    if not (values.min() >= -HAIR and values.max() <= 1 + HAIR):  # NaN fails both
        raise DataError(
            f"{where} holds values from {values.min():.9g} to {values.max():.9g}, expected affinities in 0..1: scale "
            "them"
        )
    return np.rint(np.clip(values.astype(np.float32), 0, 1) * 255).astype(np.uint8)


def _say_inverted(source: ChannelSource, part: _Part, nearest: Sequence[int]) -> None:
    """Warn where most pairs of neighbours seem to be of two neurons."""
    roi = Roi(part.first, part.shape).central(SAMPLE)
    mean = as_uint8(source.read(roi)[list(nearest)], f"{source.address} {roi}").mean() / 255
    mean = 1 - mean if part.invert else mean
    if mean < 0.5:
        log.warning(
            "%s: the mean affinity of neighbours is %.2f in the middle of the volume, of most tissue it is above 0.5: "
            "are its values high within neurons? %s --invert otherwise",
            source.address,
            mean,
            "leave out" if part.invert else "give",
        )


def _steps(address: str, source: ChannelSource, offsets: Sequence[Sequence[int]]) -> Offsets:
    if len(offsets) != source.channels or any(len(step) != 3 for step in offsets):
        raise ShapeError(
            f"{address} has {source.channels} channels, expected one step z,y,x for each, got "
            f"{[list(step) for step in offsets]}"
        )
    steps = tuple((int(z), int(y), int(x)) for z, y, x in offsets)
    if len(set(steps)) != len(steps) or (0, 0, 0) in steps:
        raise ConfigError(f"offsets must be distinct and not zero, got {list(steps)}")
    nearest_channels(steps)
    return steps


def _part(task: AdoptTask, source: ChannelSource, steps: Offsets, raw: Input | None) -> _Part:
    """Return the channels that are wanted, of all voxels or of those of the raw data."""
    try:
        channels = channels_of(task.keep or steps, steps)
    except ConfigError as error:
        raise ConfigError(f"{task.address} {error}") from None
    if raw is None:
        size = _size(source, task.voxel_size)
        source = sized(source, size)
        place = source.offset or (0.0, 0.0, 0.0)
        return _Part(channels, (0, 0, 0), source.shape, size, place, task.invert)
    volume = raw.volume
    source = sized(source, task.voxel_size)
    size = _size(source, volume.voxel_size)
    source = sized(source, size)
    first = [0.0, 0.0, 0.0]
    if source.offset is not None:
        first = [(a - b) / v for a, b, v in zip(volume.offset, source.offset, size, strict=True)]
    z, y, x = (round(step) for step in first)
    whole, wanted = Roi((0, 0, 0), source.shape), Roi((z, y, x), volume.shape)
    fits = wanted == whole if source.offset is None else whole.intersect(wanted) == wanted
    if not fits or not np.allclose(first, (z, y, x), atol=1e-2):
        raise ShapeError(
            f"{task.address} has {source.shape} voxels from {source.offset or 'nobody knows where'}, expected those of "
            f"{task.raw}, {volume.shape} from {volume.offset} nm: cut them out, with the axes (c, z, y, x)"
        )
    return _Part(channels, (z, y, x), volume.shape, size, volume.offset, task.invert)


def _size(source: ChannelSource, given: VoxelSize | None) -> VoxelSize:
    address, found = source.address, source.voxel_size
    if found is None and given is None:
        raise VoxelSizeError(f"{address} {lacks_size(source)}: give it, --voxel-size Z Y X, in nm")
    if found is not None and given is not None and not np.allclose(found, given, rtol=1e-3):
        raise VoxelSizeError(f"{address} has voxels of {found} nm, got {given} nm: leave it out, or correct the file")
    return found or given  # type: ignore[return-value]  # one of them is there
