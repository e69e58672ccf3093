"""Source files of several formats, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from numpy.typing import NDArray

SHAPE = (12, 50, 34)

DATA = np.random.default_rng(0).integers(0, 2**16, SHAPE, dtype=np.uint16)


def write_hdf5(path: Path, data: NDArray[Any] = DATA, name: str = "volumes/raw", **attributes: Any) -> str:
    with h5py.File(path, "a") as file:
        file.create_dataset(name, data=data, compression="gzip", chunks=True if data.size else None).attrs.update(
            attributes
        )
    return f"{path}:/{name}"


def write_zarr(path: Path, zarr_format: Any, data: NDArray[Any] = DATA) -> str:
    array = zarr.create_array(
        str(path), shape=data.shape, chunks=(4, 16, 16), dtype=data.dtype, zarr_format=zarr_format
    )
    array[...] = data
    return str(path)
