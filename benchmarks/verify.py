"""Speed of `kdseg verify` beside that of the disk: `python benchmarks/verify.py [--gigabytes 4] [--folder FOLDER]`.

Two volumes of noise, in files of 2.1 and of 0.26 MB, are read by plain `readinto` of each file into a buffer that is
kept, by one process per worker, and verified: from the disk, dropped from the cache before, and from the cache.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np

from kdseg.geometry import blocks
from kdseg.volumes.verify import verify
from kdseg.volumes.volume import create_volume

CUBE = 512
TIMES = 5
_buffer = bytearray(2**23)


def make(folder: Path, cubes: int, shard: int) -> Path:
    """Return the manifest of converted noise, of some cubes in a row."""
    source, extent = folder / "noise.zarr", (CUBE, CUBE, CUBE)
    if not source.exists():
        volume = create_volume(
            source,
            shape=(cubes * CUBE, CUBE, CUBE),
            dtype=np.uint8,
            chunk=(128, 128, 128),
            shard=extent,
            voxel_size=(10, 10, 10),
            compress=False,
        )
        rng = np.random.default_rng(0)
        for block in blocks(volume.roi, extent):
            volume.write(block.roi, rng.integers(0, 256, block.roi.shape, dtype=np.uint8))
    manifest = folder / f"of-{shard}" / "raw.json"
    options = ["--kind", "raw", "--options.raw", source, "--manifest", manifest, "--workers", "2"]
    layout = ["--storage.shard", *[shard] * 3, "--storage.levels", "1"]
    kdseg("convert", *options, *layout)
    return manifest


def kdseg(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "kdseg", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def drop(files: list[Path]) -> float:
    """Drop files from the cache; return the share that is gone."""
    os.sync()
    gone = 0
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            os.preadv(handle, [bytearray(1)], file.stat().st_size // 2, os.RWF_NOWAIT)
        except BlockingIOError:
            gone += 1
        os.close(handle)
    return gone / len(files)


def read(file: Path) -> int:
    with file.open("rb", 0) as handle:
        return handle.readinto(_buffer)


def measure(manifest: Path, workers: int) -> None:
    """Print two rows, of the best of some turns."""
    files = list(manifest.with_suffix(".zarr").glob("0/c/*/*/*"))
    size = sum(file.stat().st_size for file in files) / 1e9

    def sound() -> None:
        ((_, faults),) = verify(manifest.parent, workers)
        assert not faults

    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(read, files)
        ways: tuple[Callable[[], object], ...] = (
            lambda: pool.map(read, files, chunksize=16),
            sound,
            lambda: kdseg("verify", manifest.parent, "--workers", workers),
        )
        for cold in (True, False):
            speeds = [0.0] * len(ways)
            for number, way in [*enumerate(ways)] * TIMES:  # in turn: there may be other work
                if cold and (gone := drop(files)) < 0.95:
                    raise SystemExit(f"{1 - gone:.0%} of the files stay in the cache: choose another --folder")
                began = perf_counter()
                way()
                speeds[number] = max(speeds[number], size / (perf_counter() - began))
            limit, inside, command = speeds
            print(
                f"| {size:.1f} GB in files of {1e3 * size / len(files):.2f} MB | {workers} | "
                f"{'disk' if cold else 'cache'} | {limit:.2f} | {inside:.2f} ({inside / limit:.2f}) | "
                f"{command:.2f} ({command / limit:.2f}) |",
                flush=True,
            )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of each volume; three times that is written")
    parser.add_argument("--folder", type=Path, help="on the disk that is measured; default: that of temporary files")
    given = parser.parse_args()
    cubes = max(1, round(given.gigabytes * 1e9 / CUBE**3))
    print("| files | workers | from | limit [GB/s] | verify (of the limit) | whole command (of the limit) |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for shard in (128, 64):
            manifest = make(Path(folder), cubes, shard)
            for workers in (1, 2):
                measure(manifest, workers)
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
