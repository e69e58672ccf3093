"""VOI, ARAND and affinity loss on FIB-25: thresholds are chosen on z 120:160, the test cube is scored at them.

    python benchmarks/fib25.py MODEL.pt [MODEL.pt ...] [--tune-only]

Each volume is segmented in one piece, as validation does it, in float32 on the CPU; neurons of fewer than 100 labelled
voxels are left out. Every run without `--tune-only` is a look at the test cube: note it in docs/results.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from kdseg.config import StorageOptions, VolumeOptions
from kdseg.config.segmentation import WatershedOptions
from kdseg.config.tasks import ConvertTask
from kdseg.networks.checkpoint import load_model
from kdseg.networks.models import count_parameters, kmac_per_voxel
from kdseg.results.manifests import read
from kdseg.training.sampling import Source
from kdseg.training.validation import Scored, Validation, least, sweep, validation_crop
from kdseg.volumes import convert

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TUNE = {"file": "fib25_dev.h5", "roi": {"offset": [120, 0, 0], "shape": [40, 250, 250]}}
TEST = {"file": "fib25_test.h5"}
DUST = 100
COLUMNS = ("network", "parameters", "kMAC per voxel", "threshold", "VOI tune", "ARAND tune", "loss tune")
COLUMNS += ("VOI test (split, merge)", "ARAND test", "loss test", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--tune-only", action="store_true", help="leave the test cube alone")
    given = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"no data in {DATA}: see benchmarks/README.md")
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        tune = crop_of("tune", TUNE, Path(folder))
        test = None if given.tune_only else crop_of("test", TEST, Path(folder))
        print(f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS), sep="\n", flush=True)
        for path in given.models:
            print(row(path, tune, test), flush=True)


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


def row(path: Path, tune: Validation, test: Validation | None) -> str:
    """Return a line of the table."""
    begun = time.monotonic()
    loaded = load_model(path)

    def scored(crop: Validation) -> list[Scored]:
        cpu = torch.device("cpu")
        return sweep(loaded.network, crop, loaded.offsets, torch.float32, cpu, WatershedOptions(), dust=DUST)

    found = scored(tune)
    best = least(found)
    cells = [
        path.parent.name if path.stem == "model" else path.stem,
        f"{count_parameters(loaded.network):,}",
        f"{kmac_per_voxel(loaded.network):.1f}",
        f"{best.threshold}",
        f"{best.voi:.3f}",
        f"{best.arand:.3f}",
        f"{best.affinity_loss:.4f}",
    ]
    if test is None:
        cells += ["not looked at"] * 3
    else:
        there = scored(test)[found.index(best)]
        cells.append(f"{there.voi:.3f} ({there.voi_split:.3f}, {there.voi_merge:.3f})")
        cells += [f"{there.arand:.3f}", f"{there.affinity_loss:.4f}"]
    return f"| {' | '.join([*cells, f'{time.monotonic() - begun:.0f}'])} |"


if __name__ == "__main__":
    main()
