"""`kdseg predict` from end to end, as users run it, against the bare forward pass of the same tiles in the same run.

    python benchmarks/prediction_stage.py WORK --side 512 --block 128 --tile 128 --workers 1 2 [--network teacher]

A phantom would take longer to make than to predict: the raw data are smoothed noise. Weights are random. Prints, per
number of workers, Mvox/s of as many bare forward passes at once, and of the stage with the start of the workers and
from the first block on, the seconds of reading, computing and writing, and the memory that was announced beside the
largest that a worker had.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from kdseg.config import PredictOptions
from kdseg.config.networks import HeadOptions, UNetOptions
from kdseg.networks.checkpoint import LoadedModel, save_model
from kdseg.networks.models import build
from kdseg.networks.models.device import resolve_precision
from kdseg.prediction.tiles import predictor
from kdseg.results.claims import claim
from kdseg.results.manifests import file_fingerprint
from kdseg.running.telemetry import status_path
from kdseg.volumes.volume import create_volume

OFFSETS = tuple(tuple(-n * (a == axis) for a in range(3)) for n in (1, 3, 9) for axis in range(3))
NM = (10.0, 10.0, 10.0)
NETWORKS = {
    "student": UNetOptions(widths=(4, 8, 16)),
    "teacher": UNetOptions(widths=(16, 32, 64, 208), residual=True),
}


def network_of(name):
    """Return a network of config/config.yaml with random weights, and its options."""
    torch.manual_seed(0)
    return build(NETWORKS[name], HeadOptions(), OFFSETS), NETWORKS[name]


def prepare(work, side, name):
    rng = np.random.default_rng(0)
    part = gaussian_filter(rng.normal(size=(256, 256, 256)).astype(np.float32), 1.5, mode="wrap")
    part = (part * 500 + 128).clip(0, 255).astype(np.uint8)
    with claim(work / "raw.json", "noise", {"side": side}, {}, volume=True) as held:
        shard = (128, 128, 128)
        volume = create_volume(
            held.store, shape=(side,) * 3, dtype=np.uint8, chunk=(64, 64, 64), shard=shard, voxel_size=NM
        )
        volume.write(volume.roi, np.tile(part, [-(-side // 256)] * 3)[:side, :side, :side])
    network, options = network_of(name)
    with claim(work / "model.json", "train", {}, {}) as held:
        save_model(held.model, LoadedModel(network, options, HeadOptions(), OFFSETS, NM))
        held.stats["weights"] = file_fingerprint(held.model)


def alone(name, tile, seconds, started):
    """Return Mvox/s of the network in this process, in one thread; begin with the others."""
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    ready = predictor(network_of(name)[0], (tile,) * 3, cpu, resolve_precision("auto", cpu))
    raw = np.random.default_rng(0).integers(0, 256, [tile + 2 * h for h in ready.halo], np.uint8)
    ready(raw)
    started.wait()
    begun, tiles = time.perf_counter(), 0
    while (passed := time.perf_counter() - begun) < seconds:
        ready(raw)
        tiles += 1
    return tiles * tile**3 / passed / 1e6


def bare(name, tile, processes, seconds=8.0):
    """Return Mvox/s of the network in as many processes at once, together."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(processes, mp_context=context) as pool:
        started = manager.Barrier(processes)
        runs = [pool.submit(alone, name, tile, seconds, started) for _ in range(processes)]
        return sum(run.result() for run in runs)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--network", choices=list(NETWORKS), default="student")
    given = parser.parse_args()
    prepare(given.work, given.side, given.network)
    print(
        "| workers | bare | Mvox/s | of bare | from first block on | of bare | read, compute, write | MB told, peak |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for workers in given.workers:
        speed = bare(given.network, given.tile, workers)
        manifest = given.work / f"affinities{workers}.json"
        options = PredictOptions(block=(given.block,) * 3, tile=(given.tile,) * 3).model_dump_json()
        files = {"raw": given.work / "raw.json", "model": given.work / "model.json", "manifest": manifest}
        command = [sys.executable, "-m", "kdseg", "predict", *(f"--{k}={v}" for k, v in files.items())]
        how = [f"--options={options}", "--device=cpu", f"--workers={workers}"]
        subprocess.run([*command, *how], check=True, capture_output=True)
        facts = json.loads(status_path(manifest).read_text())
        shutil.rmtree(manifest.with_suffix(".zarr"))
        seconds = {k: sum(w["seconds"][k] for w in facts["workers"].values()) for k in ("read", "compute", "write")}
        total = given.side**3 / facts["seconds"] / 1e6
        steady = (given.side**3 - workers * given.block**3) / (facts["seconds"] - facts["first_block_s"]) / 1e6
        shares = ", ".join(f"{s:.1f} s" for s in seconds.values())
        announced, peak = (facts["memory_mb"][name] for name in ("announced", "peak"))
        print(
            f"| {workers} | {speed:.2f} | {total:.2f} | {total / speed:.2f} | {steady:.2f} | {steady / speed:.2f} "
            f"| {shares} | {announced:.0f}, {peak:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
