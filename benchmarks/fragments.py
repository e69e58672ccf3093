"""Fragments of one block by every candidate: time, peak memory, and what agglomeration makes of them.

    python benchmarks/fragments.py [--size 256] [--blur 1] [--noise 30] [--only kdseg,waterz]

The affinities are those of the phantom's labels, blurred and with noise. Each candidate runs in a process of its
own, after a small block that compiles and loads everything. Its time is of one core, from uint8 affinities to
labels; its memory is the highest resident size above that before the call, the affinities not included. VOI is of
the fragments, and of their exact agglomeration at the best of all thresholds. Candidates that are not installed
are skipped.
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

from kdseg.config.data import PhantomOptions
from kdseg.config.segmentation import MutexOptions, WatershedOptions, WaterzOptions
from kdseg.evaluation.metrics.contingency import block_contingency, relabel
from kdseg.evaluation.metrics.scores import scores
from kdseg.geometry import Roi, pair_slices
from kdseg.segmentation.agglomeration.linkage import agglomerate, cut
from kdseg.segmentation.fragments.watershed import fragments
from kdseg.segmentation.graph.rag import block_edges
from kdseg.segmentation.lut import lut
from kdseg.volumes.phantom import phantom_block

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (-4, 0, 0), (0, -8, 0), (0, 0, -8))
NEAREST = OFFSETS[:3]
Labels = np.ndarray[Any, np.dtype[Any]]


def usual_seeds(affinities: Labels) -> tuple[Labels, Labels]:
    """Height and markers of the usual recipe: maxima of the smoothed distance to voxels of low mean affinity."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter, label, maximum_filter

    mean = affinities[:3].mean(0, dtype=np.float32) / 255
    inside = mean > 0.5
    distance = gaussian_filter(distance_transform_edt(inside).astype(np.float32), 1)
    markers, _ = label((distance == maximum_filter(distance, 11)) & inside, np.ones((3, 3, 3)))
    return 1 - mean, markers.astype(np.int32)


def skimage(affinities: Labels) -> Labels:
    from skimage.segmentation import watershed

    return watershed(*usual_seeds(affinities))


def mahotas(affinities: Labels) -> Labels:
    import mahotas

    height, markers = usual_seeds(affinities)
    return mahotas.cwatershed((255 * height).astype(np.uint8), markers)


def bioimage_cpp(affinities: Labels) -> Labels:
    from bioimage_cpp.segmentation import watershed_from_affinities

    _, markers = usual_seeds(affinities)
    return watershed_from_affinities(affinities[:3].astype(np.float32), NEAREST, markers)


def bioimage_cpp_mutex(affinities: Labels) -> Labels:
    from bioimage_cpp.segmentation import mutex_watershed

    weights = affinities.astype(np.float32) / 255
    weights[3:] = 1 - weights[3:]
    return mutex_watershed(weights, OFFSETS, 3)


CANDIDATES: dict[str, Callable[[Labels], Labels]] = {
    "kdseg": lambda a: fragments(a[:3], NEAREST, WatershedOptions()),
    "kdseg maxima": lambda a: fragments(a[:3], NEAREST, WatershedOptions(seeds="maxima")),
    "kdseg per section": lambda a: fragments(a[:3], NEAREST, WatershedOptions(per_section=True)),
    "waterz": lambda a: fragments(a[:3], NEAREST, WaterzOptions()),
    "bioimage-cpp": bioimage_cpp,
    "skimage": skimage,
    "mahotas": mahotas,
    "bioimage-cpp mutex": bioimage_cpp_mutex,
    "mwatershed": lambda a: fragments(a, OFFSETS, MutexOptions()),
}


def tissue(size: int, blur: float, noise: float) -> tuple[Labels, Labels]:
    """Affinities uint8 (6, z, y, x) of the phantom's labels, and these."""
    from scipy.ndimage import gaussian_filter

    shape = (size, size, size)
    labels = phantom_block(PhantomOptions(shape=shape), Roi((0, 0, 0), shape))[1].astype(np.uint64)
    rng = np.random.default_rng(0)
    affinities = np.zeros((len(OFFSETS), *shape), np.uint8)
    for channel, offset in zip(affinities, OFFSETS, strict=True):
        here, there = pair_slices(shape, offset)
        cut_away = np.zeros(shape, np.float32)
        cut_away[here] = labels[here] != labels[there]
        if blur:
            # a flat boundary, blurred, is as dark as before in its middle
            cut_away = np.minimum(gaussian_filter(cut_away, blur) * np.float32(np.sqrt(2 * np.pi) * blur), 1)
        channel[:] = np.clip(220 - 190 * cut_away + rng.normal(0, noise, shape).astype(np.float32), 0, 255)
    return affinities, labels


def resident(what: str) -> int:
    """Bytes, of /proc: ``VmRSS`` now, ``VmHWM`` at most since that was forgotten."""
    (line,) = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(what)]
    return 1024 * int(line.split()[1])


def measured(name: str, folder: Path) -> dict[str, Any]:
    affinities, labels = np.load(folder / "affinities.npy"), np.load(folder / "labels.npy")
    run = CANDIDATES[name]
    run(np.ascontiguousarray(affinities[:, :24, :24, :24]))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    before, start = resident("VmRSS"), time.perf_counter()
    found = run(affinities)
    seconds, peak = time.perf_counter() - start, resident("VmHWM") - before
    ids = np.ascontiguousarray(found).astype(np.uint64)
    table, names = block_contingency(ids, labels), np.unique(ids[ids > 0])
    whole = tuple(slice(0, n) for n in labels.shape)
    dendrogram = agglomerate(block_edges(ids, affinities[:3], NEAREST, owned=whole), 1.0)
    cuts = (lut(names, *cut(dendrogram, 0.05 * k)) for k in range(1, 20))
    best = min((scores(relabel(table, names, one)) for one in cuts), key=lambda at: at.voi)
    own = scores(table)
    return {
        "fragments": len(names),
        "Mvox/s": labels.size / seconds / 1e6,
        "B/voxel": peak / labels.size,
        "split": own.voi_split,
        "merge": own.voi_merge,
        "best VOI": best.voi,
        "best ARAND": best.arand,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--blur", type=float, default=1.0, help="sigma in voxels")
    parser.add_argument("--noise", type=float, default=30.0, help="sigma in 1/255")
    parser.add_argument("--only", default=",".join(CANDIDATES))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one[0], Path(options.one[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, array in zip(
            ("affinities", "labels"), tissue(options.size, options.blur, options.noise), strict=True
        ):
            np.save(Path(folder) / f"{name}.npy", array)
        heads = "fragments", "Mvox/s", "B/voxel", "split", "merge", "best VOI", "best ARAND"
        print("| candidate | " + " | ".join(heads) + " |\n" + "| --- " * (1 + len(heads)) + "|")
        for name in options.only.split(","):
            done = subprocess.run(
                [sys.executable, __file__, "--one", name, folder], capture_output=True, text=True, check=False
            )
            if done.returncode:
                print(f"| {name} | skipped: {done.stderr.strip().splitlines()[-1]} |", flush=True)
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            print(f"| {name} | " + " | ".join(f"{row[h]:.4g}" for h in heads) + " |", flush=True)


if __name__ == "__main__":
    main()
