"""VOI, ARAND and affinity loss on FIB-25: thresholds are chosen on z 120:160, the test cube is scored at them.

    python benchmarks/fib25.py MODEL [MODEL ...] [--tune-only] [--csv FILE]

A model is a model file, the name of a shipped network, or several joined by `+`: the mean of their affinities. Each
volume is segmented in one piece, as validation does it, in float32 on the CPU; neurons of fewer than 100 labelled
voxels are left out. The floor is the VOI if each fragment were joined to the neuron that most of it lies in: what is
left then is where, by a voxel or two, fragments put their borders.

Every run without `--tune-only` is a look at the test cube: note it in docs/results.md.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kdseg.config import StorageOptions, VolumeOptions
from kdseg.config.segmentation import WatershedOptions
from kdseg.config.shipped import model_file
from kdseg.config.tasks import ConvertTask
from kdseg.evaluation.metrics.contingency import Contingency, relabel
from kdseg.evaluation.metrics.scores import scores
from kdseg.networks.checkpoint import LoadedModel, load_model
from kdseg.networks.models import count_parameters, kmac_per_voxel
from kdseg.results.manifests import read
from kdseg.training import validation
from kdseg.training.heldout import affinity_loss
from kdseg.training.sampling import Source
from kdseg.training.validation import Scored, Validation, least, validation_crop
from kdseg.volumes import convert

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TUNE = {"file": "fib25_dev.h5", "roi": {"offset": [120, 0, 0], "shape": [40, 250, 250]}}
TEST = {"file": "fib25_test.h5"}
DUST = 100
COLUMNS = ("network", "parameters", "kMAC per voxel", "threshold", "VOI tune", "ARAND tune", "loss tune", "floor tune")
COLUMNS += ("VOI test", "split, merge", "ARAND test", "loss test", "floor test", "seconds")


class Found(NamedTuple):
    """Scores at all thresholds, and the VOI of a perfect agglomeration of the same fragments."""

    scored: list[Scored]
    floor: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--tune-only", action="store_true", help="leave the test cube alone")
    parser.add_argument("--csv", type=Path, help="write the table there, too")
    given = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"no data in {DATA}: see benchmarks/README.md")
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        tune = crop_of("tune", TUNE, Path(folder))
        test = None if given.tune_only else crop_of("test", TEST, Path(folder))
        print(f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS), sep="\n", flush=True)
        rows = []
        for model in given.models:
            rows.append(row(model, tune, test))
            print(f"| {' | '.join(rows[-1])} |", flush=True)
    if given.csv is not None:
        with given.csv.open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])


def crop_of(name: str, where: dict[str, object], folder: Path) -> Validation:
    """Return a volume, converted, all of which is scored."""
    file = DATA / str(where["file"])
    addresses = {"raw": f"{file}:/volumes/raw", "labels": f"{file}:/volumes/labels/neuron_ids"}
    options = VolumeOptions.model_validate(addresses | {key: where[key] for key in where if key == "roi"})
    stores = []
    for kind in ("raw", "labels"):
        manifest = folder / name / f"{kind}.json"
        convert.run(ConvertTask(kind=kind, manifest=manifest, options=options, storage=StorageOptions()))
        stores.append(read(manifest).result)
    return validation_crop(Source(name, *stores), (1000, 1000, 1000))


def row(model: str, tune: Validation, test: Validation | None) -> list[str]:
    """Return the cells of a line of the table."""
    begun = time.monotonic()
    paths = [model_file(one) for one in model.split("+")]
    networks = [load_model(path) for path in paths]
    there, here = None if test is None else scored(networks, test), scored(networks, tune)
    best = least(here.scored)
    cells = [
        " + ".join(path.parent.name if path.stem == "model" else path.stem for path in paths),
        f"{sum(count_parameters(one.network) for one in networks):,}",
        f"{sum(kmac_per_voxel(one.network) for one in networks):.1f}",
        f"{best.threshold}",
        f"{best.voi:.3f}",
        f"{best.arand:.3f}",
        f"{best.affinity_loss:.4f}",
        f"{here.floor:.3f}",
    ]
    if there is None:
        cells += ["not looked at"] * 5
    else:
        at = there.scored[here.scored.index(best)]
        cells += [f"{at.voi:.3f}", f"{at.voi_split:.3f}, {at.voi_merge:.3f}", f"{at.arand:.3f}"]
        cells += [f"{at.affinity_loss:.4f}", f"{there.floor:.3f}"]
    return [*cells, f"{time.monotonic() - begun:.0f}"]


def predicted(networks: list[LoadedModel], crop: Validation) -> NDArray[np.uint8]:
    """Return the affinities of a crop, (c, z, y, x), the mean of some networks' of equal offsets."""
    total = None
    for one in networks:
        if one.offsets != networks[0].offsets:
            sys.exit(f"the networks predict other affinities: {one.offsets}, {networks[0].offsets}")
        cpu = torch.device("cpu")
        found = validation.predicted(one.network, crop, one.offsets, torch.float32, cpu).astype(np.uint32)
        total = found if total is None else total + found
    assert total is not None
    return ((2 * total + len(networks)) // (2 * len(networks))).astype(np.uint8)


def scored(networks: list[LoadedModel], crop: Validation) -> Found:
    """Return the scores of a crop at the thresholds of validation, and what a perfect agglomeration would have."""
    offsets, affinities = networks[0].offsets, predicted(networks, crop)
    table, tree = validation.tabled(affinities, crop, offsets, WatershedOptions(), dust=DUST)
    found = validation.scored(table, tree, affinity_loss(affinities, crop.truth, offsets))
    return Found(found, scores(perfect(table)).voi)


def perfect(table: Contingency) -> Contingency:
    """Return the table of the agglomeration that joins each fragment to the neuron most of it lies in."""
    order = np.lexsort((table.label, -table.count.astype(np.int64), table.segment))
    segments, first = np.unique(table.segment[order], return_index=True)
    return relabel(table, segments, table.label[order][first])


if __name__ == "__main__":
    main()
