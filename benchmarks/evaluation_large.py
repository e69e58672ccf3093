"""`kdseg evaluate` on volumes larger than memory: `python benchmarks/evaluation_large.py WORK --sides 512 1024 2048`.

Writes for each side two cubes of ids, block by block, as kdseg writes volumes (zarr, sharded, zstd): labels (uint32),
Voronoi cells of a jittered lattice, as many per voxel whatever the side; segments (uint64), the labels moved by four
voxels, cut along planes, pairs merged. They stay in WORK for the next run. Prints wall time, CPU time of all processes,
and the peak of the memory of all processes together (proportional: shared pages count once), for

- `read`: both volumes read block by block in one process and thrown away: the floor,
- `evaluate`: `kdseg evaluate` as a user calls it, with `--workers`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray
from processes import measured

from kdseg.geometry import Roi, Triple, blocks
from kdseg.volumes.volume import create_volume, open_volume

VOXEL_SIZE = (10.0, 10.0, 10.0)
CHUNK, SHARD = (64, 64, 64), (256, 256, 256)
CELL = 64
"""Voxels along each axis per cell of the lattice, so that a cube of 1024 has 4,096 labels."""
CUT = 160
"""Voxels between the planes that segments are cut along."""


@njit(cache=True)
def _jitter(z: int, y: int, x: int, axis: int) -> int:
    """Return where in its cell of the lattice a point is, a hash of the cell."""
    mixed = np.uint64((z << 40) ^ (y << 20) ^ x) * np.uint64(4) + np.uint64(axis)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return int((mixed ^ (mixed >> np.uint64(31))) % np.uint64(CELL))


@njit(cache=True)
def _cell(z: int, y: int, x: int) -> int:
    """Return the number of the lattice's point that is nearest to a voxel."""
    best, name = 1 << 60, 0
    for cz in range(z // CELL, z // CELL + 3):
        for cy in range(y // CELL, y // CELL + 3):
            for cx in range(x // CELL, x // CELL + 3):
                dz = (cz - 1) * CELL + _jitter(cz, cy, cx, 0) - z
                dy = (cy - 1) * CELL + _jitter(cz, cy, cx, 1) - y
                dx = (cx - 1) * CELL + _jitter(cz, cy, cx, 2) - x
                far = dz * dz + dy * dy + dx * dx
                if far < best:
                    best, name = far, (cz << 20) | (cy << 10) | cx
    return name


@njit(cache=True)
def fill(offset: Triple, labels: NDArray[np.uint32], segments: NDArray[np.uint64]) -> None:
    """Write the ids of the voxels from ``offset`` on: functions of places alone, constant in cubes of 4 voxels."""
    step = 4
    for z0 in range(0, labels.shape[0], step):
        for y0 in range(0, labels.shape[1], step):
            for x0 in range(0, labels.shape[2], step):
                z, y, x = offset[0] + z0, offset[1] + y0, offset[2] + x0
                box = ((z // CUT) << 8) | ((y // CUT) << 4) | (x // CUT)
                segment = ((_cell(z, y + step, x + step) // 2) << 24) + box + 1
                labels[z0 : z0 + step, y0 : y0 + step, x0 : x0 + step] = _cell(z, y, x)
                segments[z0 : z0 + step, y0 : y0 + step, x0 : x0 + step] = segment


def write(folder: Path, side: int) -> None:
    """Write both volumes, shard by shard; nothing where they are written already."""
    done = folder / "done"
    if done.exists():
        return
    shape = (side,) * 3
    names: dict[str, type] = {"labels": np.uint32, "segmentation": np.uint64}
    made = {
        name: create_volume(
            folder / f"{name}.zarr", shape=shape, dtype=dtype, chunk=CHUNK, shard=SHARD, voxel_size=VOXEL_SIZE
        )
        for name, dtype in names.items()
    }
    labels, segments = np.empty(SHARD, np.uint32), np.empty(SHARD, np.uint64)
    for block in blocks(Roi((0, 0, 0), shape), SHARD):
        fill(block.roi.offset, labels, segments)
        made["labels"].write(block.roi, labels)
        made["segmentation"].write(block.roi, segments)
    done.touch()


def read(folder: Path, block: int) -> None:
    """Read both volumes block by block."""
    volumes = [open_volume(folder / f"{name}.zarr") for name in ("labels", "segmentation")]
    for cell in blocks(volumes[0].roi, (block,) * 3):
        for volume in volumes:
            volume.read(cell.roi)


def row(what: str, side: int, command: list[str]) -> None:
    wall, cpu, peak, _ = measured(command)
    voxels = side**3 / 1e6
    print(
        f"| {side}³ | {what} | {wall:.1f} | {voxels / wall:.0f} | {cpu:.1f} | {voxels / cpu:.0f} | {peak / 1e6:.0f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--workers", type=int, nargs="+", default=[1])
    parser.add_argument("--only-read", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only_read:
        read(given.only_read, given.block)
        return
    print("| voxels | what | wall [s] | Mvox/s | CPU [s] | Mvox/s of CPU | peak of all processes [MB] |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for side in given.sides:
        folder = given.work / str(side)
        write(folder, side)
        block = str(given.block)
        again = [sys.executable, __file__, str(given.work), "--block", block, "--only-read", str(folder)]
        row("read", side, again)
        command = [
            sys.executable,
            "-m",
            "kdseg",
            "evaluate",
            *(str(folder / f"{n}.zarr") for n in ("segmentation", "labels")),
        ]
        for workers in given.workers:
            options = ["--block", *[block] * 3, "--workers", str(workers), "--json", str(folder / f"{workers}.json")]
            row(f"evaluate, {workers} workers", side, [*command, *options])


if __name__ == "__main__":
    main()
