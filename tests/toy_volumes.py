"""Small volumes on disk, for tests that read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from numpy.typing import NDArray

from kdseg.config.data import StorageOptions, VolumeOptions
from kdseg.config.tasks import ConvertTask
from kdseg.volumes import convert
from kdseg.volumes.inputs import open_input
from kdseg.volumes.volume import Volume, create_volume

DATA = np.random.default_rng(0).integers(0, 2**16, (12, 50, 34), dtype=np.uint16)


def write_volume(
    path: Path,
    array: NDArray[np.generic],
    voxel_size: tuple[float, float, float] = (10.0, 10.0, 10.0),
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
    **more: Any,
) -> Path:
    """Store an array (z, y, x)."""
    z, y, x = array.shape
    volume = create_volume(
        path,
        shape=(z, y, x),
        dtype=array.dtype,
        chunk=(16, 16, 16),
        shard=(16, 16, 16),
        voxel_size=voxel_size,
        offset=offset,
        **more,
    )
    volume.write(volume.roi, array)
    return path


def cells(shape: tuple[int, int, int], count: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
    """Return raw with dark membranes, and labels without: the cells nearest to random points."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 1, (count, 3)) * shape
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    distance = np.linalg.norm(grid[..., None, :] - points, axis=-1)
    labels = distance.argmin(axis=-1).astype(np.uint64) + 1
    first, second = np.sort(distance, axis=-1)[..., :2].transpose(3, 0, 1, 2)
    raw = np.where(second - first < 1.5, 50, 190) + rng.normal(0, 15, shape)
    return raw.clip(0, 255).astype(np.uint8), labels


def write_hdf5(path: Path, data: NDArray[Any] = DATA, name: str = "volumes/raw", **attributes: Any) -> str:
    with h5py.File(path, "a") as file:
        file.create_dataset(name, data=data, compression="gzip", chunks=True if data.size else None).attrs.update(
            attributes
        )
    return f"{path}:/{name}"


def converted_raw(folder: Path, **options: Any) -> Volume:
    """Return the raw data of a volume's options as they are stored, in little shards."""
    task = ConvertTask(
        kind="raw",
        manifest=folder / "raw.json",
        options=VolumeOptions.model_validate(options),
        storage=StorageOptions(chunk=(8, 8, 8), shard=(8, 8, 8), levels=1),
        overwrite=True,
    )
    convert.run(task)
    return open_input(task.manifest).volume


def write_zarr(path: Path, zarr_format: Any, data: NDArray[Any] = DATA) -> str:
    array = zarr.create_array(
        str(path), shape=data.shape, chunks=(4, 16, 16), dtype=data.dtype, zarr_format=zarr_format
    )
    array[...] = data
    return str(path)
