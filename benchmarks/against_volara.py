"""Affinities to segmentation: kdseg beside volara, on the same affinities, in one run.

    python benchmarks/against_volara.py SYNTH.zarr WORK VOLARA_PYTHON VOLARA_BASELINE.py [block ...]

`SYNTH.zarr` holds `labels` (uint64) and `affs` (uint8, with positive offsets). volara needs an environment of its own
(`pip install volara==1.0.5 zarr==3.1.6 scikit-image`), whose Python is given with the script that drives it. Prints a
row per tool and block: seconds of each stage, the sum, Mvox/s, VOI split and merge, ARAND, peak memory of a process.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import zarr

from kdseg.config import (
    AgglomerateOptions,
    EdgesOptions,
    EvaluateOptions,
    FragmentsOptions,
    SegmentOptions,
    StorageOptions,
)
from kdseg.manifests import claim, read
from kdseg.stages import agglomerate, edges, evaluate, fragments, segment
from kdseg.volume import create_volume

STORAGE = StorageOptions(chunk=(64, 64, 64), shard=(64, 64, 64), levels=1)
WORKERS = 2
SIZE = (8.0, 8.0, 8.0)


def put(manifest: Path, array: np.ndarray, **attributes: object) -> Path:
    with claim(manifest, "benchmark", {}, {}) as held:
        volume = create_volume(
            held.store,
            shape=array.shape[-3:],
            dtype=array.dtype,
            chunk=STORAGE.chunk,
            shard=STORAGE.shard,
            voxel_size=SIZE,
            channels=array.shape[0] if array.ndim == 4 else None,
            compress=False,
            attributes=attributes,
        )
        volume.write(volume.roi, array)
        held.stats["voxels"] = volume.roi.size
    return manifest


def ours(affinities: Path, labels: Path, folder: Path, block: int, threshold: float | None) -> float:
    """Run and print; return the threshold, chosen by VOI on the volume itself where none is given."""
    cube = (block, block, block)
    names = ("fragments", "edges", "agglomeration", "segmentation", "sweep", "scores")
    fragment, edge, tree, segmentation, sweep, scores = (folder / f"{name}.json" for name in names)
    chunk = tuple(max(block, 256) for _ in range(3))
    steps = {}
    started = time.monotonic()

    def lap(name: str) -> None:
        nonlocal started
        steps[name] = round(time.monotonic() - started, 2)
        started = time.monotonic()

    fragments.run(affinities, fragment, FragmentsOptions(block=cube, dust=32), STORAGE, workers=WORKERS)
    lap("fragments")
    edges.run(affinities, fragment, edge, EdgesOptions(block=cube), workers=WORKERS)
    lap("edges")
    agglomerate.run(affinities, fragment, edge, tree, AgglomerateOptions(chunk=chunk), workers=WORKERS)
    lap("agglomerate")
    scoring = EvaluateOptions(volumes=("a",), tune_on="a", models=("a",), block=cube)
    evaluate.sweep(fragment, tree, labels, sweep, scoring, workers=WORKERS)
    threshold = read(sweep)["stats"]["best"] if threshold is None else threshold
    started = time.monotonic()
    segment.run(
        fragment, edge, tree, None, segmentation, SegmentOptions(block=cube, threshold=threshold), STORAGE,
        workers=WORKERS,
    )  # fmt: skip
    lap("relabel")
    evaluate.run(segmentation, labels, scores, scoring, workers=WORKERS)
    found, total = read(scores)["stats"], sum(steps.values())
    usage = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    values = found["scores"]
    print(
        f"| kdseg, block {block} | {steps} | {total:.1f} | {found['voxels'] / total / 1e6:.2f} | "
        f"{values['voi_split']:.3f} + {values['voi_merge']:.3f} | {values['arand']:.4f} | {usage / 1024:.0f} MB |",
        flush=True,
    )
    return float(threshold)


def theirs(synth: Path, work: Path, python: str, script: str, block: int) -> None:
    command = [python, script, str(synth), str(work / "volara"), str(block), str(WORKERS)]
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    line = run.stdout.strip().splitlines()[-1] if run.stdout.strip() else ""
    if run.returncode or not line.startswith("{"):
        print(f"| volara, block {block} | failed: {run.stderr.strip().splitlines()[-1:]} | | | | | |", flush=True)
        return
    found = json.loads(line)
    steps = {name: value for name, value in found["times"].items() if not name.endswith("_ok")}
    split, merge = found["voi_split_merge"]
    print(
        f"| volara, block {block} | {steps} | {found['total_s']} | {found['mvox_s']} | {split:.3f} + {merge:.3f} | "
        f"{found['arand']:.4f} | {found['maxrss_child_mb']:.0f} MB |",
        flush=True,
    )


def main() -> None:
    synth, work, python, script = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    group = zarr.open_group(synth, mode="r")
    data = np.asarray(group["affs"][:])
    affinities = put(work / "affinities.json", data, offsets=[list(o) for o in group["affs"].attrs["offsets"]])
    labels = put(work / "labels.json", np.asarray(group["labels"][:]).astype(np.uint64))
    print("| tool | seconds | sum | Mvox/s | VOI split + merge | ARAND | peak memory of a process |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    threshold = None
    for block in map(int, sys.argv[5:] or ["128"]):
        for _ in range(2 if threshold is None else 1):  # the first run compiles, and chooses the threshold
            folder = work / f"kdseg{block}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            threshold = ours(affinities, labels, folder, block, threshold)
        theirs(synth, work, python, script, block)


if __name__ == "__main__":
    main()
