"""CPU time of the checksums of one shard of 128^3, beside that of its storage: `python benchmarks/checksums.py`.

Affinities of noise, uncompressed, and ids of segments, compressed; written and read by one thread. benchmarks/README.md
has their shares of the stages.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from time import process_time

import numpy as np
from numpy.typing import NDArray

from kdseg.volumes.decoding import decode_in_one_thread
from kdseg.volumes.volume import create_volume

SHAPE = (128, 128, 128)
TIMES = 15


def cpu(function: Callable[[], object]) -> float:
    """Return the least CPU time of some calls, in ms."""
    found = []
    for _ in range(TIMES):
        began = process_time()
        function()
        found.append(process_time() - began)
    return 1e3 * min(found)


def measure(name: str, data: NDArray[np.generic]) -> None:
    """Print one row."""
    channels = data.shape[0] if data.ndim == 4 else None
    with tempfile.TemporaryDirectory() as folder:
        volume = create_volume(
            Path(folder) / "v.zarr",
            shape=SHAPE,
            dtype=data.dtype,
            chunk=(64, 64, 64),
            shard=SHAPE,
            voxel_size=(10, 10, 10),
            channels=channels,
            compress=channels is None,
        )
        write = cpu(lambda: volume.write(volume.roi, data))
        read = cpu(lambda: volume.read(volume.roi))
        ((_, file),) = volume.files(volume.roi)
        kept = file.read_bytes()
        made, compared = cpu(lambda: zlib.crc32(kept)), cpu(lambda: zlib.crc32(file.read_bytes()))
    print(f"| {name} | {len(kept) / 1e6:.2f} | {write:.1f} | {made:.2f} | {read:.1f} | {compared:.2f} |")


def main() -> None:
    """Print the table."""
    decode_in_one_thread()
    rng = np.random.default_rng(0)
    print(
        "| shard | MB | write, with its checksum [ms] | checksum [ms] | read [ms] | comparison, once a process [ms] |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    measure("affinities, 3 channels", rng.integers(0, 256, (3, *SHAPE), dtype=np.uint8))
    segments = rng.integers(1, 2**40, (8, 8, 8)).astype(np.uint64)
    measure("segments, cubes of 16", segments.repeat(16, 0).repeat(16, 1).repeat(16, 2))


if __name__ == "__main__":
    main()
