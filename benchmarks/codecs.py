"""Codecs and programs for the volumes that kdseg stores: size, speed per core, memory.

Takes whole shards of affinities (uint8, c, z, y, x) and raw data (uint8), makes fragments (uint64), and prints a table
for each in Markdown: ratio of sizes, MB of voxels per second of CPU time, peak memory of a process that does that only.
Programs read and write one shard after the other. Extra packages: zarrs, tensorstore.

    OMP_NUM_THREADS=1 python benchmarks/codecs.py AFFINITIES.json RAW.json WORK
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from kdseg.config import FragmentsOptions, StorageOptions
from kdseg.config.tasks import FragmentsTask
from kdseg.geometry import Roi
from kdseg.segmentation.fragments import stage as fragments
from kdseg.volumes.inputs import open_input

CHUNK, SHARD = (64, 64, 64), (128, 128, 128)
CODECS: dict[str, Any] = {"none": None}
CODECS |= {
    f"blosc-zstd {level}, {shuffle}": BloscCodec(cname="zstd", clevel=level, shuffle=shuffle, typesize=size)
    for level in (1, 3, 5)
    for shuffle, size in (("noshuffle", None), ("bitshuffle", None))
}
CODECS["blosc-zstd 1, shuffle"] = BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")
CODECS["blosc-lz4 5, bitshuffle"] = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")
CODECS["blosc-lz4 5, shuffle"] = BloscCodec(cname="lz4", clevel=5, shuffle="shuffle")
CODECS |= {"zstd 1": ZstdCodec(level=1), "zstd 3": ZstdCodec(level=3), "gzip 1": GzipCodec(level=1)}
PROGRAMS = ("zarr-python", "zarr-python with zarrs", "tensorstore")
AS_KDSEG = "zarr-python as kdseg"
"""Chunks of zeros are not looked for where nothing is compressed: see `kdseg.volumes.volume.Volume.write`."""


def create(path: Path, data: np.ndarray[Any, Any], codec: Any) -> zarr.Array[Any]:
    lead = data.shape[:-3]
    return zarr.create_array(
        str(path),
        shape=data.shape,
        chunks=(*lead, *CHUNK),
        shards=(*lead, *SHARD),
        dtype=data.dtype,
        fill_value=0,
        compressors=None if codec is None else [codec],
        overwrite=True,
    )


def opened(program: str, path: Path) -> Any:
    """Return something that reads and writes with square brackets; all threads are one thread."""
    if program == "tensorstore":
        import tensorstore

        one = {"data_copy_concurrency": {"limit": 1}, "file_io_concurrency": {"limit": 1}}
        return tensorstore.open(
            {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}, "context": one}
        ).result()
    if program == "zarr-python with zarrs":
        import zarrs  # noqa: F401  # it registers its pipeline

        zarr.config.set(
            {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": 1, "async.concurrency": 1}
        )
    array = zarr.open_array(str(path), mode="r+")
    return array.with_config({"write_empty_chunks": True}) if program == AS_KDSEG else array


def blocks(shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
    grid = np.ndindex(*(n // s for n, s in zip(shape[-3:], SHARD, strict=True)))
    return [
        (slice(None),) * (len(shape) - 3) + tuple(slice(i * s, (i + 1) * s) for i, s in zip(one, SHARD, strict=True))
        for one in grid
    ]


def rows(what: Any, where: list[tuple[slice, ...]], values: np.ndarray[Any, Any] | None) -> None:
    """Write whole shards, or read them, one after the other."""
    for block in where:
        if values is not None:
            what[block] = values[block]
        else:
            np.asarray(what[block])


def measured(program: str, path: Path, data: Path | None, repeats: int) -> dict[str, float]:
    """Return the least seconds of CPU and wall of writing, or without ``data`` of reading, in this process."""
    what = opened(program, path)
    values = None if data is None else np.load(data)
    where = blocks(tuple(what.shape))
    rows(what, where[:1], values)  # what is loaded at first use
    found = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        rows(what, where, values)
        found.append((time.process_time() - cpu, time.perf_counter() - wall))
    # not getrusage, whose peak is the parent's where that was larger
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    least = {"cpu": min(c for c, _ in found), "wall": min(w for _, w in found)}
    return {**least, "peak": int(peak.split()[1]) / 1024}


def child(program: str, path: Path, data: Path | None, repeats: int) -> dict[str, float]:
    """Measure in a process of its own: memory, threads and zarr's settings are per process."""
    words = [program, str(path), "" if data is None else str(data), str(repeats)]
    environment = {**os.environ, "RAYON_NUM_THREADS": "1", "BLOSC_NTHREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--child", *words], env=environment, check=True, capture_output=True, text=True
    )
    return dict(json.loads(done.stdout))


def table(name: str, data: np.ndarray[Any, Any], work: Path, repeats: int, codecs: dict[str, Any]) -> None:
    """Print one line per codec and program."""
    source, megabytes = work / f"{name}.npy", data.nbytes / 1e6
    np.save(source, data)
    print(f"\n{name}: {data.dtype} {data.shape}, {megabytes:.0f} MB\n", flush=True)
    print("| codec | program | ratio | write MB/s | read MB/s | peak writing [MB] | peak reading [MB] |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for title, codec in codecs.items():
        programs = PROGRAMS if title in ("none", "blosc-zstd 1, noshuffle", "zstd 1") else PROGRAMS[:1]
        for program in (AS_KDSEG, *programs) if title == "none" else programs:
            path = work / "one.zarr"
            create(path, data, codec)
            wrote, read = child(program, path, source, repeats), child(program, path, None, repeats)
            back = np.asarray(zarr.open_array(str(path), mode="r")[:])
            assert (back == data).all(), f"{program} wrote something else with {title}"
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
            speeds = f"{megabytes / wrote['cpu']:.0f} | {megabytes / read['cpu']:.0f}"
            peaks = f"{wrote['peak']:.0f} | {read['peak']:.0f}"
            print(f"| {title} | {program} | {megabytes / size:.2f} | {speeds} | {peaks} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("affinities", type=Path, help="manifest of affinities, whole shards of 128³")
    parser.add_argument("raw", type=Path, help="manifest of the raw data, likewise")
    parser.add_argument("work", type=Path, help="folder for what is made; removed at the end")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    options.work.mkdir(parents=True)
    volume = open_input(options.affinities).volume
    z, y, x = (n // s * s for n, s in zip(volume.shape, SHARD, strict=True))
    made = options.work / "fragments.json"
    fragments.run(
        FragmentsTask(
            affinities=options.affinities,
            manifest=made,
            options=FragmentsOptions(block=SHARD),
            storage=StorageOptions(chunk=CHUNK, shard=SHARD),
        )
    )
    region = Roi((0, 0, 0), (z, y, x))
    table("affinities", volume.read(region), options.work, options.repeats, CODECS)
    table("fragments", open_input(made).volume.read(region), options.work, options.repeats, CODECS)
    table("raw", open_input(options.raw).volume.read(region), options.work, options.repeats, CODECS)
    shutil.rmtree(options.work)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        program, path, data, repeats = sys.argv[2:]
        print(json.dumps(measured(program, Path(path), Path(data) if data else None, int(repeats))))
    else:
        main()
