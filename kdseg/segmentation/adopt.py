"""Affinities made elsewhere → affinities as `kdseg predict` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdseg.config.questions import AdoptTask
from kdseg.errors import ConfigError, DataError, ShapeError, VoxelSizeError
from kdseg.geometry import Block, Offsets, Roi, VoxelSize
from kdseg.results.claims import claim
from kdseg.results.manifests import source_fingerprint
from kdseg.running.runner import place_of, run_blocks
from kdseg.segmentation.links import nearest_channels
from kdseg.volumes.sources import ChannelSource, open_channels, source_path
from kdseg.volumes.volume import create_volume, open_volume


def run(task: AdoptTask) -> None:
    """Write affinities of another program as uint8 OME-Zarr (c, z, y, x), 255 = same neuron.

    Raises:
        ConfigError: if a one-voxel step is missing.
        ShapeError: if there is not one offset per channel.
        DataError: if the values are neither uint8 nor floats in 0..1.
        VoxelSizeError: if the voxel size is not known, or the file says another one.
    """
    address, invert, storage = task.address, task.invert, task.storage
    source = open_channels(address)
    steps = _steps(address, source, task.offsets)
    size = _size(address, source.voxel_size, task.voxel_size)
    if source.dtype != np.uint8 and source.dtype.kind != "f":
        raise DataError(
            f"{address} holds {source.dtype}, expected uint8 (255: same neuron) or floats in 0..1: convert it"
        )
    made_of: dict[str, Any] = {
        "address": address,
        "offsets": [list(step) for step in steps],
        "voxel_size": list(size),
        "invert": invert,
        "storage": storage.model_dump(mode="json"),
    }
    inputs = {"source": source_fingerprint(source_path(address))}
    with claim(
        task.manifest, "adopt", made_of, inputs, volume=True, bucket=storage.remote, overwrite=task.overwrite
    ) as held:
        create_volume(
            held.store,
            shape=source.shape,
            dtype=np.uint8,
            chunk=storage.chunk,
            shard=storage.shard,
            voxel_size=size,
            offset=source.offset or (0.0, 0.0, 0.0),
            channels=source.channels,
            compress=False,
            attributes={"offsets": made_of["offsets"]},
        )
        roi, function = Roi((0, 0, 0), source.shape), partial(adopt_block, source, held.store, invert)
        run_blocks("adopt", roi, storage.shard, function, place_of(task), held.progress(storage.shard))
        held.stats["voxels"] = roi.size


def adopt_block(source: ChannelSource, out: Path, invert: bool, block: Block) -> None:
    """Convert and write one block."""
    values = as_uint8(source.read(block.roi), f"{source.address} {block.roi}")
    open_volume(out).write(block.roi, 255 - values if invert else values)


def as_uint8(values: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """Return affinities in 1/255, floats rounded to the nearest.

    Raises:
        DataError: if floats are not all in 0..1.
    """
    if values.dtype == np.uint8:
        return values
    if not (values.min() >= 0 and values.max() <= 1):  # NaN fails both
        raise DataError(
            f"{where} holds values from {values.min():g} to {values.max():g}, expected affinities in 0..1: scale them"
        )
    return np.rint(values.astype(np.float32) * 255).astype(np.uint8)


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


def _size(address: str, found: VoxelSize | None, given: VoxelSize | None) -> VoxelSize:
    if found is None and given is None:
        raise VoxelSizeError(f"{address} does not say its voxel size: give it, in nm, as z,y,x")
    if found is not None and given is not None and not np.allclose(found, given, rtol=1e-3):
        raise VoxelSizeError(f"{address} has voxels of {found} nm, got {given} nm: leave it out, or correct the file")
    return found or given  # type: ignore[return-value]  # one of them is there
