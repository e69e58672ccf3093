"""Tuning of the post-processing: what it gains on FIB-25, how thresholds move with the size of a part, its time.

    python benchmarks/tune_segmentation.py WORK MODEL [search|sides|speed]
    python benchmarks/tune_segmentation.py WORK fib25-m gain

The network predicts `fib25_dev.h5` once; affinities and results stay in the folder. ``search`` tunes on z 120:160,
which no network is trained on. ``sides`` scores parts of several widths of it, and cubes, most of whose voxels the
network was trained on: they show how the threshold moves, not how good a network is. ``speed`` is a search of 50
candidates on a phantom of 256³ voxels, with two workers. ``gain`` tunes as ``search`` does, on what a network predicts
of z 120:160 alone, and scores what was chosen on `fib25_test.h5`, beside the options as they are: a look at the test
cube, to be noted in docs/results.md.
"""

from __future__ import annotations

import argparse
import csv
import resource
import time
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from kdseg.config import FragmentsOptions
from kdseg.config.data import PhantomOptions
from kdseg.config.shipped import model_file
from kdseg.config.tasks import TunedVolume, TuneSegmentationTask
from kdseg.config.tuning import TuneSegmentationOptions
from kdseg.evaluation import tune_segmentation
from kdseg.evaluation.candidates import Candidate
from kdseg.evaluation.landscape import SCORES, Part, score_candidates
from kdseg.geometry import Offsets, Roi, pair_slices
from kdseg.networks.checkpoint import load_model
from kdseg.prediction.tiles import predict_roi, predictor
from kdseg.results.claims import claim
from kdseg.results.manifests import read
from kdseg.results.parquet import read_notes, read_parquet
from kdseg.volumes.affinities import affinity_offsets
from kdseg.volumes.phantom import phantom_block
from kdseg.volumes.volume import create_volume, open_volume

DATA = Path(__file__).parents[2] / "shared" / "data"
HELD_OUT = 120
"""First section that networks are not trained on."""
Array = np.ndarray[Any, np.dtype[Any]]


def stored(manifest: Path, array: Array, **attributes: Any) -> Path:
    """Write an array as a stage's result."""
    with claim(manifest, "benchmark", {}, {}) as held:
        volume = create_volume(
            held.store,
            shape=array.shape[-3:],
            dtype=array.dtype,
            chunk=(64, 64, 64),
            shard=(64, 64, 64),
            voxel_size=(10.0, 10.0, 10.0),
            offset=(0.0, 0.0, 0.0),
            channels=array.shape[0] if array.ndim == 4 else None,
            attributes=attributes,
        )
        volume.write(volume.roi, array)
    return manifest


def fib25(folder: Path, network: Path, name: str = "fib25_dev.h5", first: int = 0) -> TunedVolume:
    """Return predicted affinities and labels of a cube, from a section on; what comes before it is not seen."""
    folder = folder / f"{network.stem}.{Path(name).stem}.{first}"
    found = TunedVolume(affinities=folder / "affinities.json", labels=folder / "labels.json")
    if not found.labels.exists():
        with h5py.File(DATA / name) as file:
            raw, labels = file["volumes/raw"][first:], file["volumes/labels/neuron_ids"][first:]
        cpu, roi = torch.device("cpu"), Roi((0, 0, 0), raw.shape)
        loaded = load_model(model_file(network), cpu)
        run = predictor(loaded.network, (80, 128, 128), cpu, torch.float32)
        affinities = predict_roi(run, lambda part: raw[part.slices()], roi, roi)
        stored(found.affinities, affinities, offsets=loaded.offsets)
        stored(found.labels, labels.astype(np.uint64))
    return found


def phantom(folder: Path) -> TunedVolume:
    """Return affinities of a phantom's labels, with noise, and the labels."""
    found = TunedVolume(affinities=folder / "phantom.json", labels=folder / "phantom_labels.json")
    if not found.labels.exists():
        _, labels = phantom_block(PhantomOptions(shape=(256, 256, 256)), Roi((0, 0, 0), (256, 256, 256)))
        offsets: Offsets = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
        affinities = np.zeros((3, *labels.shape), np.float32)
        for channel, offset in enumerate(offsets):
            here, there = pair_slices(labels.shape, offset)
            affinities[(channel, *here)] = np.where((labels[here] == labels[there]) & (labels[here] > 0), 205, 50)
        affinities += np.random.default_rng(0).normal(0, 30, affinities.shape)
        stored(found.affinities, affinities.clip(0, 255).astype(np.uint8), offsets=offsets)
        stored(found.labels, labels.astype(np.uint64))
    return found


def tuned(manifest: Path, volume: TunedVolume, workers: int, least: int, **options: Any) -> dict[str, Any]:
    """Search, and return what the manifest says."""
    tune_segmentation.run(
        TuneSegmentationTask(
            manifest=manifest,
            volumes={"a": volume},
            options=TuneSegmentationOptions.model_validate(options),
            fragments={"block": (128, 256, 256), "halo": (32, 32, 32)},
            agglomerate={"thresholds": (0.98,)},
            dust=least,
            workers=workers,
            overwrite=True,
        )
    )
    return dict(read(manifest).stats)


def search(folder: Path, network: Path) -> None:
    part = {"volume": "a", "offset": (HELD_OUT, 0, 0), "shape": (40, 250, 250)}
    searched(folder / f"{network.stem}.search.json", fib25(folder, network), part)


def gain(folder: Path, network: Path) -> None:
    found = fib25(folder, network, first=HELD_OUT)
    stats = searched(folder / f"{network.stem}.gain.json", found, {"volume": "a"})
    test = fib25(folder, network, "fib25_test.h5")
    affinities, labels = (open_volume(read(one).result) for one in (test.affinities, test.labels))
    part = Part(
        affinities.read(affinities.roi),
        affinity_offsets(affinities),
        labels.read(labels.roi),
        None,
        (10.0, 10.0, 10.0),
    )
    for name in ("configured", "chosen"):
        chosen = stats[name]["options"]
        one = Candidate(FragmentsOptions.model_validate(chosen["fragments"]), chosen["agglomerate"]["score"])
        thresholds = (stats[name]["threshold"],)
        ((first, at),) = score_candidates(part, [one], thresholds, long_range=False, dust=100)
        print("test cube,", name, *(f"{key} {value:.3f}" for key, value in zip(SCORES, at, strict=True)))
        print("  fragments:", *(f"{key} {value:.3f}" for key, value in zip(SCORES, first, strict=True)))


def searched(manifest: Path, volume: TunedVolume, part: dict[str, Any]) -> dict[str, Any]:
    """Search and print a summary, the best first."""
    stats = tuned(
        manifest,
        volume,
        workers=2,
        least=100,
        regions=[part],
        least_side=40,
        boundary=[0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
        seeds=["distance", "maxima"],
        seed_distance=[3, 5, 9],
        dust=[0, 20],
        score=["mean", "quantile50", "quantile75"],
        candidates=252,
    )
    for name in ("configured", "chosen"):
        (at,) = stats[name]["parts"]
        first = at["fragments"]
        print(name, f"threshold {stats[name]['threshold']}", *(f"{key} {at[key]:.3f}" for key in SCORES))
        print("  fragments:", *(f"{key} {first[key]:.3f}" for key in SCORES))
    print(f"{stats['candidates']} candidates, {stats['seconds']:.1f} s\n{stats['configuration']}")
    rows = ranked(manifest)
    with manifest.with_suffix(".csv").open("w", newline="") as file:
        out = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        out.writeheader()
        out.writerows(rows)
    for row in rows[:8]:
        print(*row.values())
    return stats


def ranked(manifest: Path) -> list[dict[str, Any]]:
    """Return what was tried, each at its best threshold, the best first."""
    notes, columns = read_notes(manifest.with_suffix(".parquet")), read_parquet(manifest.with_suffix(".parquet"))
    shape = (len(notes["candidates"]), -1)
    table = {name: column.reshape(shape)[:, 1:] for name, column in columns.items()}  # without the fragments' own
    found = []
    for k, (options, score) in enumerate(notes["candidates"]):
        at = table["voi"][k].argmin()
        shed = {name: options["watershed"][name] for name in ("boundary", "seeds", "seed_distance")}
        tried = {
            **shed,
            "dust": options["dust"],
            "score": score,
            "threshold": round(float(table["threshold"][k, at]), 2),
        }
        found.append(tried | {name: f"{table[name][k, at]:.4f}" for name in SCORES})
    return sorted(found, key=lambda row: float(row["voi"]))


def sides(folder: Path, network: Path) -> None:
    parts = []
    for depth, first, widths in ((40, HELD_OUT, (50, 100, 200, 250)), (None, 0, (50, 100, 160))):
        for side in widths:
            extent = (depth or side, side, side)
            whole = (160 - first, 250, 250)
            steps = [range(0, n - k + 1, k) for n, k in zip(whole, extent, strict=True)]
            for z, y, x in product(*steps):
                parts.append({"volume": "a", "offset": (first + z, y, x), "shape": extent})
    parts.append({"volume": "a"})
    volume = fib25(folder, network)
    tuned(folder / "sides.json", volume, workers=2, least=100, regions=parts, least_side=30)
    table = read_parquet(folder / "sides.parquet")
    merged = ~np.isnan(table["threshold"])
    voi = table["voi"][merged].reshape(len(parts), -1)
    thresholds = table["threshold"][merged].reshape(voi.shape)[0]
    shapes = np.array([part["shape"] for part in read_notes(folder / "sides.parquet")["parts"]])
    strip = np.flatnonzero((shapes == (40, 250, 250)).all(axis=1))[0]
    for shape in np.unique(shapes, axis=0):
        mine = (shapes == shape).all(axis=1)
        best = thresholds[voi[mine].argmin(axis=1)]
        over = voi[mine].mean(axis=0)
        large = voi[strip if shape[0] == 40 else len(parts) - 1]
        cost = [large[np.flatnonzero(thresholds == one)[0]] - large.min() for one in best]
        print(
            f"{shape}: {mine.sum()} parts, best {np.median(best):.2f} ({best.min():.2f} to {best.max():.2f}), of the "
            f"mean {thresholds[over.argmin()]:.2f}; on the largest {np.mean(cost):.3f} (up to {max(cost):.3f}) bits"
        )


def speed(folder: Path, network: Path) -> None:
    volume = phantom(folder)
    for name, lists in (
        ("10 watersheds", {"boundary": [0.3, 0.4, 0.5, 0.6, 0.7], "seed_distance": [3, 5]}),
        ("50 watersheds", {"boundary": [0.3, 0.4, 0.5, 0.6, 0.7], "seed_distance": [*range(2, 12)]}),
    ):
        scores = ["mean", "quantile25", "quantile50", "quantile75", "quantile90"] if name[:2] == "10" else ["mean"]
        started, before = time.perf_counter(), _children()
        manifest = folder / f"speed_{name[:2]}.json"
        manifest.unlink(missing_ok=True)
        stats = tuned(manifest, volume, workers=2, least=0, regions=[{"volume": "a"}], score=scores, **lists)
        seconds, cpu = time.perf_counter() - started, _children() - before
        print(
            f"{stats['candidates']} candidates, {name}: {seconds:.1f} s, {cpu:.1f} s of CPU, {stats['peak_mb']:.0f} MB"
        )


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("network", type=Path)
    parser.add_argument("what", choices=("search", "sides", "speed", "gain"))
    given = parser.parse_args()
    {"search": search, "sides": sides, "speed": speed, "gain": gain}[given.what](given.folder, given.network)
