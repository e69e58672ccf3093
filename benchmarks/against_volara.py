"""Affinities to segmentation: kdseg beside volara, waterz in one shot and scikit-image, on the same affinities.

    python benchmarks/against_volara.py SYNTH.zarr WORK VOLARA_PYTHON VOLARA_BASELINE.py \
        [--blocks 128 64] [--halos 16 9] [--repeats 3] [--skip scikit-image ...]

`SYNTH.zarr` holds `labels` (uint64) and `affs` (uint8, with positive offsets). volara needs an environment of its own
(`pip install volara==1.0.5 zarr==3.1.6 scikit-image`), whose Python is given with the script that drives it; its halo
is 9. waterz gets kdseg's fragments. scikit-image is the usual chain: distance transform, watershed, graph of mean
boundaries, merged hierarchically. Each runs in a process of its own, in turn, `--repeats` times, so that what else the
machine does falls on all of them. The thresholds are chosen by VOI on the volume itself, before the clock starts.

Prints a row for each: median seconds of each stage and of their sum, Mvox/s, CPU seconds of the stages (where they
can be told from loading and scoring) and of the whole run, VOI split and merge, ARAND, and peak memory: the largest
sum over its processes, where memory that two of them share counts once (PSS, every 50 ms).
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import zarr
from processes import measured

from kdseg.config import (
    AgglomerateOptions,
    EdgesOptions,
    EvaluateOptions,
    FragmentsOptions,
    SegmentOptions,
    StorageOptions,
)
from kdseg.config.tasks import AgglomerateTask, EdgesTask, FragmentsTask, ScoreTask, SegmentTask, SweepTask
from kdseg.evaluation import score
from kdseg.evaluation import sweep as sweep_stage
from kdseg.evaluation.metrics.contingency import block_contingency
from kdseg.evaluation.metrics.scores import scores
from kdseg.results.claims import claim
from kdseg.results.manifests import read
from kdseg.segmentation.agglomeration import stage as agglomerate
from kdseg.segmentation.fragments import stage as fragments
from kdseg.segmentation.graph import stage as edges
from kdseg.segmentation.segments import stage as segment
from kdseg.segmentation.waterz import waterz_segments
from kdseg.volumes.affinities import affinity_offsets
from kdseg.volumes.inputs import open_input
from kdseg.volumes.volume import create_volume

STORAGE = StorageOptions(chunk=(64, 64, 64), shard=(64, 64, 64), levels=1)
WORKERS = 2
SIZE = (8.0, 8.0, 8.0)
DUST = 32
THRESHOLDS = AgglomerateOptions().thresholds
Result = dict[str, Any]


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


class Laps:
    """Seconds and CPU seconds of successive steps; a worker's count when it has ended."""

    def __init__(self) -> None:
        self.steps: dict[str, float] = {}
        self.cpu = 0.0
        self.start()

    def start(self) -> None:
        self.wall, self.used = time.perf_counter(), _cpu()

    def lap(self, name: str) -> None:
        self.steps[name] = time.perf_counter() - self.wall
        self.cpu += _cpu() - self.used
        self.start()


def _cpu() -> float:
    usage = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in usage)


def kdseg(work: Path, block: int, halo: int, threshold: float | None) -> Result:
    """Run the four stages; without a threshold it is chosen, and the result is no measurement."""
    cube, folder = (block, block, block), work / f"kdseg_{block}_{halo}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    affinities, labels = work / "affinities.json", work / "labels.json"
    names = ("fragments", "edges", "agglomeration", "segmentation", "sweep", "scores")
    fragment, edge, tree, segmentation, sweep, scored = (folder / f"{name}.json" for name in names)
    scoring = EvaluateOptions(volumes=("a",), tune_on="a", models=("a",), block=cube)
    cut = FragmentsOptions(block=cube, dust=DUST, halo=(halo, halo, halo))
    clock = Laps()
    fragments.run(
        FragmentsTask(affinities=affinities, manifest=fragment, options=cut, storage=STORAGE, workers=WORKERS)
    )
    clock.lap("fragments")
    edges.run(
        EdgesTask(
            affinities=affinities, fragments=fragment, manifest=edge, options=EdgesOptions(block=cube), workers=WORKERS
        )
    )
    clock.lap("edges")
    chunk = tuple(max(block, 256) for _ in range(3))
    agglomerate.run(
        AgglomerateTask(
            affinities=affinities,
            fragments=fragment,
            edges=edge,
            manifest=tree,
            options=AgglomerateOptions(chunk=chunk),
            workers=WORKERS,
        )
    )
    clock.lap("agglomerate")
    if threshold is None:
        sweep_stage.run(
            SweepTask(
                fragments=fragment, agglomeration=tree, labels=labels, manifest=sweep, options=scoring, workers=WORKERS
            )
        )
        threshold = float(read(sweep).stats["best"])
        clock.start()
    options = SegmentOptions(block=cube, threshold=threshold)
    segment.run(
        SegmentTask(
            fragments=fragment,
            edges=edge,
            agglomeration=tree,
            manifest=segmentation,
            options=options,
            storage=STORAGE,
            workers=WORKERS,
        )
    )
    clock.lap("relabel")
    score.run(
        ScoreTask(
            segmentation=segmentation,
            labels=labels,
            manifest=scored,
            model="kdseg",
            volume="synthetic",
            options=scoring,
            workers=WORKERS,
        )
    )
    found = read(scored).stats["scores"]
    return {"threshold": threshold, "steps": clock.steps, "cpu": clock.cpu, **found}


def waterz(work: Path, threshold: float | None, fragment: Path) -> Result:
    """Agglomerate kdseg's fragments in one shot; only that, and reading and writing, is measured."""
    clock = Laps()
    source = open_input(work / "affinities.json").volume
    labelled = open_input(fragment).volume
    near, ids = source.read(source.roi, [0, 1, 2]), labelled.read(labelled.roi)
    clock.lap("read")
    offsets = affinity_offsets(source)[:3]
    tried = THRESHOLDS if threshold is None else (threshold,)
    found = waterz_segments(near, ids, offsets, tried)
    clock.lap("agglomerate")
    return _best(work, dict(zip(tried, found, strict=True)), clock)


def scikit_image(work: Path, threshold: float | None) -> Result:
    """The chain that its gallery shows, in 3D."""
    from scipy.ndimage import distance_transform_edt
    from skimage.feature import peak_local_max
    from skimage.graph import merge_hierarchical, rag_boundary
    from skimage.segmentation import watershed

    clock = Laps()
    source = open_input(work / "affinities.json").volume
    near = source.read(source.roi, [0, 1, 2])
    clock.lap("read")
    boundary = 1 - near.mean(axis=0, dtype=np.float32) / 255
    distance = distance_transform_edt(boundary < 0.5)
    markers = np.zeros(boundary.shape, np.int32)
    peaks = peak_local_max(distance, min_distance=5, labels=(boundary < 0.5).astype(np.int32))
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    clock.lap("seeds")
    ids = watershed(boundary, markers)
    clock.lap("watershed")
    graph = rag_boundary(ids, boundary, connectivity=1)
    clock.lap("graph")
    tried = [round(0.1 * k, 1) for k in range(1, 9)] if threshold is None else [threshold]
    found = {
        one: merge_hierarchical(
            ids,
            graph,
            one,
            rag_copy=True,
            in_place_merge=True,
            merge_func=lambda graph, src, dst: None,
            weight_func=_mean_boundary,
        )
        for one in tried
    }
    clock.lap("merge")
    return _best(work, found, clock)


def _mean_boundary(graph: Any, src: int, dst: int, n: int) -> dict[str, float]:
    """Weight of the edge from a merged region to a neighbour: the mean of both edges, by their counts."""
    absent = {"weight": 0.0, "count": 0}
    edges = [graph[one].get(n, absent) for one in (src, dst)]
    count = sum(edge["count"] for edge in edges)
    return {"count": count, "weight": sum(edge["count"] * edge["weight"] for edge in edges) / count}


def _best(work: Path, found: dict[float, np.ndarray], clock: Laps) -> Result:
    labels = open_input(work / "labels.json").volume
    truth = labels.read(labels.roi)
    scored = {at: scores(block_contingency(ids.astype(np.uint64), truth)) for at, ids in found.items()}
    threshold = min(scored, key=lambda at: scored[at].voi)
    return {"threshold": threshold, "steps": clock.steps, "cpu": clock.cpu, **scored[threshold]._asdict()}


def volara(line: Result) -> Result:
    """Result of the line that volara's driver prints; the CPU time of its stages alone is not known."""
    steps = {name: value for name, value in line["times"].items() if not name.endswith("_ok")}
    split, merge = line["voi_split_merge"]
    return {"steps": steps, "cpu": None, "voi_split": split, "voi_merge": merge, "arand": line["arand"]}


def told(command: list[str]) -> Result:
    """Run a command; return what its last line says, with CPU seconds and peak memory of it and its children."""
    run = measured(command)
    lines = [line for line in run.text.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"{command} printed no result:\n{run.text[-2000:]}")
    return {**json.loads(lines[-1]), "used": run.cpu, "peak": run.peak}


def row(name: str, runs: list[Result], voxels: int) -> None:
    steps = {step: round(median(run["steps"][step] for run in runs), 2) for step in runs[0]["steps"]}
    total = median(sum(run["steps"].values()) for run in runs)
    each = ", ".join(f"{sum(run['steps'].values()):.1f}" for run in runs)
    cpu = "–" if runs[0]["cpu"] is None else f"{median(run['cpu'] for run in runs):.1f}"
    one = runs[0]
    print(
        f"| {name} | {', '.join(f'{step} {value}' for step, value in steps.items())} | **{total:.1f}** ({each}) | "
        f"{voxels / total / 1e6:.2f} | {cpu} / {median(run['used'] for run in runs):.1f} | "
        f"{one['voi_split']:.3f} + {one['voi_merge']:.3f} | {one['arand']:.4f} | "
        f"{max(run['peak'] for run in runs) / 2**20:.0f} MB |",
        flush=True,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("synth", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("python")
    parser.add_argument("script")
    parser.add_argument("--blocks", type=int, nargs="+", default=[128, 64])
    parser.add_argument("--halos", type=int, nargs="+", default=[FragmentsOptions().halo[0], 9], help="of kdseg")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--skip", nargs="*", default=[], choices=["waterz", "scikit-image", "volara"])
    parser.add_argument("--route", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


def one_route(options: argparse.Namespace) -> Result:
    name, *values = options.route
    threshold = None if values[-1] == "-" else float(values[-1])
    if name == "kdseg":
        return kdseg(options.work, int(values[0]), int(values[1]), threshold)
    if name == "waterz":
        return waterz(options.work, threshold, options.work / values[0] / "fragments.json")
    return scikit_image(options.work, threshold)


def plan(options: argparse.Namespace) -> dict[str, Callable[[], Result]]:
    """Return the runs by name; each chooses its threshold first, which also compiles what is to be compiled."""
    places = [str(options.synth), str(options.work), options.python, options.script]
    runs: dict[str, Callable[[], Result]] = {}

    def own(name: str, *route: str) -> None:
        command = [sys.executable, __file__, *places, "--route", *route]
        threshold = str(told([*command, "-"])["threshold"])
        runs[f"{name}, cut at {threshold}"] = lambda: told([*command, threshold])

    for block in options.blocks:
        for halo in options.halos:
            own(f"kdseg, block {block}, halo {halo}", "kdseg", str(block), str(halo))
        if "volara" not in options.skip:
            command = [options.python, options.script, str(options.synth), str(options.work / "volara")]
            runs[f"volara, block {block}, halo 9"] = lambda command=command, block=block: volara_run(command, block)
    if "waterz" not in options.skip:
        block, halo = options.blocks[0], options.halos[0]
        own(f"waterz on the fragments of kdseg, block {block}", "waterz", f"kdseg_{block}_{halo}")
    if "scikit-image" not in options.skip:
        own("scikit-image", "scikit-image")
    return runs


def volara_run(command: list[str], block: int) -> Result:
    found = told([*command, str(block), str(WORKERS)])
    return {**volara(found), "used": found["used"], "peak": found["peak"]}


def main() -> None:
    options = arguments()
    if options.route:
        print(json.dumps(one_route(options)), flush=True)
        return
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    group = zarr.open_group(str(options.synth), mode="r")
    labels, affs = group["labels"], group["affs"]
    put(options.work / "labels.json", labels[:])
    put(options.work / "affinities.json", affs[:], offsets=[list(offset) for offset in affs.attrs["offsets"]])
    runs = plan(options)
    results: dict[str, list[Result]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            results[name].append(run())
            print(f"{name}: {results[name][-1]}", file=sys.stderr, flush=True)  # a later one may be interrupted
    print("| tool | stages [s] | sum [s] (runs) | Mvox/s | CPU [s] of the stages / of the run | VOI | ARAND | peak |\n"
          + "| --- " * 8 + "|")  # fmt: skip
    for name, each in results.items():
        row(name, each, int(np.prod(labels.shape)))


if __name__ == "__main__":
    main()
