"""Prediction of a phantom that is not stored: its raw data are computed when a block is read.

    python benchmarks/streamed.py WORK --side 512 --block 256 --tile 128 --workers 2

The network has the widths of the student, random weights, and predicts the affinities of nearest neighbours only: their
three bytes per voxel are all that is stored. They are removed afterwards. Prints Mvox/s from end to end, as users run
it, the seconds of reading (which is computing the phantom), computing and writing, of all workers together, the memory
that was announced beside the largest that a worker had, and the bytes stored as raw data and as affinities.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from kdseg.config import PredictOptions, StorageOptions, VolumeOptions
from kdseg.config.networks import HeadOptions, UNetOptions
from kdseg.config.tasks import ConvertTask
from kdseg.networks.checkpoint import LoadedModel, save_model
from kdseg.networks.models import build
from kdseg.results.claims import claim, clear
from kdseg.results.manifests import file_fingerprint
from kdseg.running.telemetry import status_path
from kdseg.volumes import convert

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (-3, 0, 0), (0, -3, 0), (0, 0, -3), (-9, 0, 0), (0, -9, 0), (0, 0, -9))
NM = (10.0, 10.0, 10.0)


def prepare(work, side, offsets):
    """Make raw data that are not stored, and a network."""
    options = VolumeOptions.model_validate({"phantom": {"shape": (side,) * 3, "voxel_size": NM, "stored": False}})
    convert.run(
        ConvertTask(kind="raw", manifest=work / "raw.json", options=options, storage=StorageOptions(), overwrite=True)
    )
    torch.manual_seed(0)
    options = UNetOptions(widths=(4, 8, 16))
    network = build(options, HeadOptions(), offsets)
    with claim(work / "model.json", "train", {"offsets": offsets}, {}, overwrite=True) as held:
        save_model(held.model, LoadedModel(network, options, HeadOptions(), offsets, NM))
        held.stats["weights"] = file_fingerprint(held.model)


def predict(work, block, tile, workers):
    """Run `kdseg predict`; return the wall time of the whole command in seconds."""
    options = PredictOptions(block=(block,) * 3, tile=(tile,) * 3).model_dump_json()
    files = {"raw": work / "raw.json", "model": work / "model.json", "manifest": work / "affinities.json"}
    command = [sys.executable, "-m", "kdseg", "predict", *(f"--{k}={v}" for k, v in files.items())]
    how = [f"--options={options}", "--device=cpu", f"--workers={workers}", "--overwrite"]
    started = time.perf_counter()
    subprocess.run([*command, *how], check=True)
    return time.perf_counter() - started


def size(store):
    """Return the bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in (store, *store.rglob("*")) if file.is_file())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--offsets", type=int, default=3, choices=range(1, len(OFFSETS) + 1), help="channels")
    parser.add_argument("--block", type=int, default=256)
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    free, needed = shutil.disk_usage(given.work.parent).free, given.offsets * given.side**3
    if free < needed:
        parser.error(f"the affinities take {needed / 1e9:.1f} GB, of which {free / 1e9:.1f} are free")
    prepare(given.work, given.side, OFFSETS[: given.offsets])
    wall = predict(given.work, given.block, given.tile, given.workers)
    manifest = given.work / "affinities.json"
    facts = json.loads(status_path(manifest).read_text())
    seconds = {k: sum(w["seconds"][k] for w in facts["workers"].values()) for k in ("read", "compute", "write")}
    stored = size(given.work / "raw.zarr"), size(given.work / "affinities.zarr")
    clear(manifest)
    announced, peak = (facts["memory_mb"][name] for name in ("announced", "peak"))
    print("| side | workers | wall | Mvox/s | read, compute, write | announced, peak [MB] | raw, affinities [bytes] |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print(
        f"| {given.side} | {given.workers} | {wall:.0f} s | {given.side**3 / wall / 1e6:.2f} "
        f"| {', '.join(f'{s:.1f} s' for s in seconds.values())} | {announced:.0f}, {peak:.0f} "
        f"| {stored[0]:,}, {stored[1]:,} |"
    )


if __name__ == "__main__":
    main()
