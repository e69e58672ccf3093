"""Speed of tiles, the share lost between the stores, and the distance from the limits of the machine.

    OMP_NUM_THREADS=1 python benchmarks/prediction.py [--tiles 64 96 128] [--blocks 2] [--repeats 3]

Student and teacher are those of config/config.yaml, the smallest is half as wide; weights are random. One thread,
seconds of the CPU, the least of the repeats, each of which takes the three ways in turn: tiles alone from an array,
`predict_roi` from an array, and from zarr to zarr in blocks of one tile, as a worker does. Memory is what a tile
adds to a fresh process that has predicted a small one; told is what `tile_memory` says of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path

import numpy as np
import torch

from kdseg.config.networks import HeadOptions, UNetOptions
from kdseg.geometry import Roi, blocks
from kdseg.networks.models import build, kmac_per_voxel, resolve_precision
from kdseg.prediction.tiles import predict_roi, predictor, tile_memory
from kdseg.volumes.volume import create_volume, open_volume

OFFSETS = tuple(tuple(-step if axis == a else 0 for a in range(3)) for step in (1, 3, 9) for axis in range(3))
NETWORKS = {
    "student": UNetOptions(widths=(4, 8, 16)),
    "smallest": UNetOptions(widths=(2, 4, 8)),
    "teacher": UNetOptions(widths=(16, 32, 64, 208), residual=True),
}
CPU = torch.device("cpu")


def status(field: str) -> int:
    """Return a size in bytes from /proc."""
    with Path("/proc/self/status").open() as file:
        return 1024 * int(next(line for line in file if line.startswith(field)).split()[1])


def least(function, repeats: int) -> float:
    """Return the least seconds of the CPU."""
    taken = []
    for _ in range(repeats):
        before = time.process_time()
        function()
        taken.append(time.process_time() - before)
    return min(taken)


def peaks() -> None:
    """Print what a product of matrices and a copy reach here."""
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(1024, 1024).to(dtype)
        print(f"peak {dtype}: {2 * 1024**3 / least(lambda a=a: a @ a, 20) / 1e9:.0f} GFLOP/s")
    a = torch.zeros(2**28, dtype=torch.uint8)
    b = torch.zeros_like(a)
    print(f"peak of memory, read and written: {2 * len(a) / least(lambda: b.copy_(a), 5) / 1e9:.0f} GB/s")


def row(name: str, edge: int, many: int, repeats: int, folder: Path) -> dict[str, float]:
    """Measure one network with one tile."""
    torch.manual_seed(0)
    network = build(NETWORKS[name], HeadOptions(), OFFSETS)
    dtype, tile = resolve_precision("auto", CPU), (edge,) * 3
    small = predictor(network, network.stride, CPU, dtype)
    small(np.zeros([s + 2 * h for s, h in zip(small.tile, small.halo, strict=True)], np.uint8))
    predict = predictor(network, tile, CPU, dtype)
    raw = np.random.default_rng(0).integers(0, 256, (edge, edge, many * edge), dtype=np.uint8)
    total = Roi((0, 0, 0), raw.shape)
    cells = [
        np.pad(raw[:, :, i * edge : (i + 1) * edge], [(h, h) for h in predict.halo], "reflect") for i in range(many)
    ]
    before = status("VmRSS:")
    predict(cells[0])
    took = status("VmHWM:") - before
    common = {"chunk": (min(edge, 64),) * 3, "shard": tile, "voxel_size": (8.0, 8.0, 8.0), "offset": (0, 0, 0)}
    for store, dtype_of, more in (("raw.zarr", np.uint8, {}), ("out.zarr", np.uint8, {"channels": len(OFFSETS)})):
        create_volume(folder / store, shape=raw.shape, dtype=dtype_of, compress=not more, **common, **more)
    open_volume(folder / "raw.zarr").write(total, raw)

    def alone() -> None:
        for cell in cells:
            predict(cell)

    def memory() -> None:
        predict_roi(predict, lambda roi: raw[roi.slices()], total, total)

    def stores() -> None:
        for block in blocks(total, tile):  # as kdseg.prediction.stage does in its workers
            source = open_volume(folder / "raw.zarr")
            values = predict_roi(predict, source.read, source.roi, block.roi)
            open_volume(folder / "out.zarr").write(block.roi, values)

    ways = {"alone": alone, "memory": memory, "stores": stores}
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):
        for way, function in ways.items():
            best[way] = min(best[way], least(function, 1))
    result = {way: raw.size / seconds / 1e6 for way, seconds in best.items()}
    reads = prod(t + 2 * h for t, h in zip(tile, network.halo, strict=True)) / prod(tile)
    gflops = 2 * kmac_per_voxel(network) * result["alone"]  # of what is kept: kMAC/voxel times Mvox/s
    return {
        **result,
        "reads": reads,
        "gflops": gflops,
        "told": tile_memory(network, tile, dtype) / 1e6,
        "took": took / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiles", type=int, nargs="+", default=[64, 96, 128])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", action="store_true", help="print the one row as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(row(given.networks[0], given.tiles[0], given.blocks, given.repeats, Path(folder))))
        return
    peaks()
    print(
        "| network | tile | Mvox/s alone | predict_roi | zarr to zarr | of alone | read/kept | GFLOP/s | MB told | MB |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in given.networks:
        for edge in given.tiles:
            how = ["--one", "--networks", name, "--tiles", str(edge), "--blocks", str(given.blocks)]
            command = [sys.executable, __file__, *how, "--repeats", str(given.repeats)]
            r = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            print(
                f"| {name} | {edge}³ | {r['alone']:.2f} | {r['memory']:.2f} | {r['stores']:.2f} "
                f"| {r['stores'] / r['alone']:.2f} | {r['reads']:.2f} | {r['gflops']:.0f} | {r['told']:.0f} "
                f"| {r['took']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
