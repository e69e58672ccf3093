"""Volumes in Neuroglancer's precomputed format: raw, compressed_segmentation, jpeg and so on, sharded or not.

Source: neuroglancer, `src/datasource/precomputed/volume.md`. Chunks are decoded by tensorstore, which is optional. It
starts threads when it reads, and a process with these must not fork: so `info` is read here, and tensorstore is not
imported before voxels are read, in the worker. A process that has read voxels itself can no longer start workers
by forking: tensorstore ends these, and the stage says that its workers were killed.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import MissingError, ShapeError, UnreadableError
from kdseg.geometry import Slices, Triple, VoxelSize, grid_shape, triple
from kdseg.volumes.decoding import expect_small_chunks
from kdseg.volumes.precomputed_shards import Shards, sharding_of

_DAMAGE = (OSError, ValueError, LookupError, TypeError, ArithmeticError, StopIteration, RecursionError)
"""Errors of an `info` that is not understood."""
_PACKED = {".gz", ".br", ".zstd", ".xz", ".lzma", ".bz2"}
"""Endings of packed files; names of chunks and shards end otherwise."""
_LOSSY = ("jpeg", "jpegxl")
"""Encodings that keep values nearly; of jpegxl there are some that keep all, which nobody uses for ids."""
_ENCODED = 3
"""Bytes at most that an encoding makes of one that it cannot make smaller."""
_HEAD = 2**16
"""Bytes that it adds to a chunk at most."""


@dataclass(frozen=True)
class PrecomputedArray:
    """One scale of a precomputed volume, (z, y, x), not read yet.

    Attributes:
        path: folder of `info`.
        key: of the scale.
        shape: (z, y, x).
        dtype: of the values.
        voxel_size: nm, (z, y, x).
        offset: nm, (z, y, x), corner of the first voxel.
        placed: whether `info` says where the volume lies.
        unit: voxels, (z, y, x), of one chunk.
        shards: files of the chunks; None if each chunk is one.
        lossy: whether values near the true ones were stored.
    """

    path: Path
    key: str
    shape: Triple
    dtype: np.dtype[Any]
    voxel_size: VoxelSize
    offset: VoxelSize
    placed: bool
    unit: Triple
    shards: Shards | None = None
    lossy: bool = False

    def __getitem__(self, key: Slices) -> NDArray[Any]:
        """Return the voxels of a box, (z, y, x); a chunk that is not there is 0, as the format has it.

        Raises:
            UnreadableError: if a chunk is damaged, or unpacks to more than its voxels.
        """
        if self.shards is not None:
            chunks = (range(s.start // n, -(-s.stop // n)) for s, n in zip(key, self.unit, strict=True))
            self.shards.expect_small(triple(cell) for cell in product(*chunks))
        tensorstore: Any = import_module("tensorstore")
        spec = {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": f"{self.path.resolve()}/"},
            "scale_metadata": {"key": self.key},
        }
        try:
            volume = tensorstore.open(spec, open=True, read=True).result()
            part = volume[..., 0].translate_to[0, 0, 0][tuple(reversed(key))]  # (x, y, z) in the file
            return np.ascontiguousarray(part.read().result().T)
        except (ValueError, OSError) as error:
            said = str(error).split(" [")[0]
            raise UnreadableError(f"cannot read {self.path}:{self.key}: {said}; the volume is damaged") from error


def open_precomputed(path: Path, key: str = "") -> PrecomputedArray:
    """Open one scale of a precomputed volume.

    Args:
        path: folder of `info`.
        key: of the scale, as in `info`; default: the first, which is the finest.

    Raises:
        MissingError: if tensorstore is not installed, or there is no such scale or no folder of its chunks.
        ShapeError: if it has several channels.
        UnreadableError: if `info` is damaged, or not that of a volume, or names chunks in another folder, or chunks are
            files that were packed.
    """
    try:
        info = json.loads((path / "info").read_text())
        scales = {str(scale["key"]): scale for scale in info["scales"]}
        scale = scales[key] if key in scales else next(iter(scales.values()))
        channels, dtype = int(info["num_channels"]), np.dtype(info["data_type"])
        z, y, x = (int(n) for n in reversed(scale["size"]))
        sizes = [float(v) for v in reversed(scale["resolution"])]
        first = [int(v) for v in reversed(scale.get("voxel_offset", (0, 0, 0)))]
        unit = [int(n) for n in reversed(scale["chunk_sizes"][0])]
        voxel_size, offset = triple(sizes), triple([v * s for v, s in zip(first, sizes, strict=True)])
        chunk = (unit[0], unit[1], unit[2])
        sharding, grid = sharding_of(scale), grid_shape((z, y, x), chunk)
    except _DAMAGE as error:
        raise UnreadableError(
            f"{path}/info is damaged or not that of a precomputed volume ({type(error).__name__}: {error}); expected "
            "scales with key, size, resolution and chunk_sizes"
        ) from error
    most = math.prod(unit) * dtype.itemsize
    expect_small_chunks(f"{path}:{scale['key']}", {"a chunk": most})
    if key and key not in scales:
        raise MissingError(f"{path} has no scale {key!r}, expected {path}: and one of {list(scales)}")
    if channels != 1:
        raise ShapeError(f"{path} has {channels} channels, expected (z, y, x) of one channel: extract it")
    folder = path / str(scale["key"])
    if not folder.absolute().is_relative_to(path.absolute()) or ".." in folder.parts[len(path.parts) :]:
        raise UnreadableError(f"{path}/info names chunks in {folder}, outside of its own folder: correct the key")
    _check_chunks(folder)
    if find_spec("tensorstore") is None:
        raise MissingError(
            f"{path} is in Neuroglancer's precomputed format, which tensorstore reads, and that is not installed: "
            "pip install 'kdseg[precomputed]', or pip install tensorstore"
        )
    key = str(scale["key"])
    if scale.get("encoding") != "raw":
        most = _ENCODED * most + _HEAD
    shards = None if sharding is None else Shards(folder, sharding, grid, most)
    lossy, says = scale.get("encoding") in _LOSSY, "voxel_offset" in scale
    return PrecomputedArray(path, key, (z, y, x), dtype, voxel_size, offset, says, chunk, shards, lossy)


def _check_chunks(folder: Path) -> None:
    """Refuse what would be read as zeros: chunks that are not there, and those under other names, are 0."""
    if not folder.is_dir():
        raise MissingError(f"no folder {folder} with the chunks of this scale: copy it, too")
    with os.scandir(folder) as entries:
        first = next((Path(entry.name) for entry in entries if entry.is_file()), None)
    if first is not None and first.suffix in _PACKED:
        raise UnreadableError(
            f"the chunks in {folder} are packed one by one, e.g. {first}, as CloudVolume does: unpack them, e.g. with "
            "gunzip -r, or write them with compress=False"
        )
