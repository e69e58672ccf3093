"""Contingency tables and scores: `OMP_NUM_THREADS=1 python benchmarks/evaluation.py LABELS.zarr --array labels`.

Scores a segmentation that is made from the labels: moved by a voxel or two, cut along a grid, with pairs of
labels merged. Each program runs in a process of its own, `--repeats` times after a warm-up on a corner; prints
the least wall and CPU time, and the peak memory of the process less that of one that only loads the arrays.
Scores that are not those of kdseg to 1e-6 stop it. Programs that are not installed say so; `--others` names the
interpreter of an environment that has them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.uint64]
Run = Callable[[Ids, Ids], dict[str, float]]


def perturbed(labels: Ids, cut: int) -> Ids:
    """Split every label along a grid, merge labels 2 n and 2 n + 1, and move all by a voxel or two."""
    places = [np.arange(n, dtype=np.uint64) // np.uint64(cut) for n in labels.shape]
    along = [int(place[-1]) + 1 for place in places]
    cells = (places[0][:, None, None] * along[1] + places[1][None, :, None]) * along[2] + places[2][None, None, :]
    moved = np.roll(labels, (1, 2, 2), (0, 1, 2))
    return (moved // np.uint64(2)) * np.uint64(np.prod(along)) + cells + np.uint64(1)


def kdseg_table(segmentation: Ids, labels: Ids) -> dict[str, float]:
    from kdseg.evaluation.metrics.contingency import block_contingency

    return {"rows": block_contingency(segmentation, labels, None).count.size}


def kdseg_located(segmentation: Ids, labels: Ids) -> dict[str, float]:
    from kdseg.evaluation.metrics.contingency import block_located

    return {"rows": block_located(segmentation, labels, (0, 0, 0), labels.shape, None).count.size}


def kdseg_blocks(segmentation: Ids, labels: Ids) -> dict[str, float]:
    from kdseg.evaluation.metrics.contingency import block_contingency, merge
    from kdseg.geometry import Roi, blocks

    cuts = (cell.roi.slices() for cell in blocks(Roi((0, 0, 0), labels.shape), (64, 64, 64)))
    return {"rows": merge(block_contingency(segmentation[cut], labels[cut], None) for cut in cuts).count.size}


def kdseg_scores(segmentation: Ids, labels: Ids) -> dict[str, float]:
    from kdseg.evaluation.metrics.contingency import block_contingency
    from kdseg.evaluation.metrics.scores import rand, scores

    table = block_contingency(segmentation, labels, None)
    found = scores(table)
    return {
        "rows": table.count.size,
        "voi_split": found.voi_split,
        "voi_merge": found.voi_merge,
        "arand": found.arand,
        "arand_all": rand(table, pairs="all").error,
    }


def numpy_packed(segmentation: Ids, labels: Ids) -> dict[str, float]:
    packed = segmentation * np.uint64(int(labels.max()) + 1) + labels
    return {"rows": np.unique(packed, return_counts=True)[0].size}


def fastremap_packed(segmentation: Ids, labels: Ids) -> dict[str, float]:
    import fastremap

    packed = segmentation * np.uint64(int(labels.max()) + 1) + labels
    return {"rows": fastremap.unique(packed, return_counts=True)[0].size}


def skimage_table(segmentation: Ids, labels: Ids) -> dict[str, float]:
    from skimage.metrics import contingency_table

    table = contingency_table(labels.astype(np.int64), segmentation.astype(np.int64), sparse_type="array")
    return {"rows": table.nnz}


def skimage_voi(segmentation: Ids, labels: Ids) -> dict[str, float]:
    from skimage.metrics import variation_of_information

    split, merge = variation_of_information(labels, segmentation)
    return {"voi_split": float(split), "voi_merge": float(merge)}


def skimage_arand(segmentation: Ids, labels: Ids) -> dict[str, float]:
    from skimage.metrics import adapted_rand_error

    return {"arand": float(adapted_rand_error(labels.astype(np.int64), segmentation.astype(np.int64))[0])}


def waterz_scores(segmentation: Ids, labels: Ids) -> dict[str, float]:
    import waterz

    found = waterz.evaluate(segmentation, labels)
    f = 2 * found["rand_split"] * found["rand_merge"] / (found["rand_split"] + found["rand_merge"])
    return {"voi_split": found["voi_split"], "voi_merge": found["voi_merge"], "arand_all": 1 - f}


def elf_table(segmentation: Ids, labels: Ids) -> dict[str, float]:
    from elf.evaluation.util import contigency_table

    return {"rows": len(contigency_table(labels, segmentation)[3])}


def elf_scores(segmentation: Ids, labels: Ids) -> dict[str, float]:
    from elf.evaluation import cremi_score

    split, merge, arand, _ = cremi_score(segmentation, labels)
    return {"voi_split": float(split), "voi_merge": float(merge), "arand_all": float(arand)}


def only_load(segmentation: Ids, labels: Ids) -> dict[str, float]:
    return {"voxels": float(segmentation.size + 0 * labels.size)}


PROGRAMS: dict[str, tuple[str, Run]] = {
    "load": ("arrays only", only_load),
    "kdseg_scores": ("kdseg: VOI, both ARAND", kdseg_scores),
    "kdseg_table": ("kdseg: table", kdseg_table),
    "kdseg_located": ("kdseg: table with places", kdseg_located),
    "kdseg_blocks": ("kdseg: blocks of 64³ copied, counted, merged", kdseg_blocks),
    "numpy_packed": ("numpy.unique of packed pairs", numpy_packed),
    "fastremap_packed": ("fastremap.unique of packed pairs", fastremap_packed),
    "skimage_table": ("scikit-image: contingency_table", skimage_table),
    "skimage_arand": ("scikit-image: adapted_rand_error", skimage_arand),
    "skimage_voi": ("scikit-image: variation_of_information", skimage_voi),
    "elf_table": ("python-elf: table", elf_table),
    "elf_scores": ("python-elf: cremi_score (VOI, ARAND)", elf_scores),
    "waterz_scores": ("waterz.evaluate (VOI, Rand)", waterz_scores),
}


def child(name: str, folder: Path, repeats: int) -> None:
    """Run one program and print what it took as JSON."""
    segmentation, labels = np.load(folder / "segmentation.npy"), np.load(folder / "labels.npy")
    function = PROGRAMS[name][1]
    corner = (slice(0, 16),) * 3
    function(segmentation[corner].copy(), labels[corner].copy())
    walls, cpus, found = [], [], {}
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        found = function(segmentation, labels)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    # not ru_maxrss, which a process takes over from the one that started it
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024
    sys.stdout.write("\n" + json.dumps({"wall": min(walls), "cpu": min(cpus), "peak": peak, "found": found}) + "\n")


def measure(name: str, python: str, folder: Path, repeats: int) -> dict[str, Any] | None:
    command = [python, __file__, "--child", name, str(folder), "--repeats", str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "ModuleNotFoundError" in done.stderr:
        return None
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(folder: Path, voxels: int, others: str, repeats: int) -> None:
    print("| program | wall [s] | CPU [s] | Mvoxel/s of CPU | memory beside the arrays [GB] |")
    print("| --- | --- | --- | --- | --- |")
    loaded, ours = 0.0, {}
    for name, (title, _) in PROGRAMS.items():
        got = measure(name, sys.executable, folder, repeats) or measure(name, others, folder, repeats)
        if got is None:
            print(f"| {title} | not installed | | | |")
            continue
        if name == "load":
            loaded = got["peak"]
            continue
        ours = ours or got["found"]
        for key, value in got["found"].items():
            if abs(value - ours[key]) > 1e-6:
                raise SystemExit(f"{name} finds {key} = {value}, kdseg {ours[key]}")
        speed, more = voxels / got["cpu"] / 1e6, max(got["peak"] - loaded, 0) / 1e9
        print(f"| {title} | {got['wall']:.3f} | {got['cpu']:.3f} | {speed:.1f} | {more:.2f} |", flush=True)
    print(f"\n{voxels / 1e6:.1f} Mvoxel, {ours}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labels", type=Path, nargs="?")
    parser.add_argument("--array", default="labels")
    parser.add_argument("--cut", type=int, default=64, help="grid that labels are split along, in voxels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--others", default=sys.executable, help="python of an environment with more programs")
    parser.add_argument("--child", nargs=2, metavar=("NAME", "FOLDER"))
    given = parser.parse_args()
    if given.child:
        child(given.child[0], Path(given.child[1]), given.repeats)
        return
    if given.labels is None:
        parser.error("LABELS.zarr is needed")
    import zarr

    labels = zarr.open_group(given.labels, mode="r")[given.array][:].astype(np.uint64)
    with tempfile.TemporaryDirectory() as name:
        np.save(Path(name) / "labels.npy", labels)
        np.save(Path(name) / "segmentation.npy", perturbed(labels, given.cut))
        voxels = labels.size
        del labels
        compare(Path(name), voxels, given.others, given.repeats)


if __name__ == "__main__":
    main()
