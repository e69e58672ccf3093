"""Scores of networks on data that are worse, or from elsewhere, than those they were trained on.

    python benchmarks/robustness.py MODEL [MODEL ...]

A model is a model file, or the name of a shipped network. z 120:160 of `fib25_dev.h5` is segmented as validation does
it, as it is and changed in one way at a time, at the threshold that is best for it as it is; so are a volume of the
same tissue from another laboratory's pipeline and a phantom. Nothing here looks at the test cube.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import torch
from fib25 import DATA, scored
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

from kdseg.config.data import PhantomOptions
from kdseg.config.shipped import model_file
from kdseg.geometry import Roi
from kdseg.networks.checkpoint import load_model
from kdseg.training.sampling import Source
from kdseg.training.validation import Validation, least, validation_crop
from kdseg.volumes.phantom import phantom_block
from kdseg.volumes.volume import create_volume

Arrays = tuple[NDArray[np.uint8], NDArray[np.uint64]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    given = parser.parse_args()
    torch.set_num_threads(1)
    networks = {name: load_model(model_file(name)) for name in given.models}
    print("| data |", " | ".join(f"{Path(name).stem}: VOI, loss" for name in networks), "|")
    print("| --- |" + " --- |" * len(networks), flush=True)
    chosen: dict[str, int] = {}
    with TemporaryDirectory() as folder:
        for number, (what, arrays) in enumerate(conditions()):
            crop = stored(Path(folder) / str(number), what, arrays)
            cells = []
            for name, loaded in networks.items():
                found = scored([loaded], crop).scored
                best = chosen.setdefault(name, found.index(least(found)))
                cells.append(f"{found[best].voi:.3f}, {found[best].affinity_loss:.3f}")
            print(f"| {what} | {' | '.join(cells)} |", flush=True)


def conditions() -> Iterator[tuple[str, Arrays]]:
    """Yield raw data and labels, by what is other in them; the first are as they are."""
    raw, labels = read("fib25_dev.h5", slice(120, 160))
    yield "z 120:160 as it is", (raw, labels)
    for what, change in CHANGES.items():
        yield what, (change(raw), labels)
    for size in (8, 12):
        factor = 10 / size
        larger = zoom(raw.astype(np.float32), factor, order=1)
        ids, codes = np.unique(labels, return_inverse=True)
        shown = ids[zoom(codes.reshape(labels.shape).astype(np.int32), factor, order=0)]
        yield f"imaged at {size} nm", (eight_bits(larger), shown)
    yield "gala, same tissue, another pipeline", read("gala_train.h5", slice(None))
    shape = (64, 160, 160)
    yield "phantom", phantom_block(PhantomOptions(shape=shape, seed=7), Roi((0, 0, 0), shape))


def eight_bits(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Return values as uint8, those beyond cut."""
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def blanked(raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return raw data in which every tenth section is missing."""
    changed = raw.copy()
    changed[5::10] = 0
    return changed


CHANGES: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "half the contrast": lambda raw: eight_bits((raw - raw.mean()) * 0.5 + raw.mean()),
    "twice the contrast": lambda raw: eight_bits((raw - raw.mean()) * 2.0 + raw.mean()),
    "darker by 40": lambda raw: eight_bits(raw - 40.0),
    "brighter by 40": lambda raw: eight_bits(raw + 40.0),
    "noise, sigma 15": lambda raw: eight_bits(raw + np.random.default_rng(0).normal(0, 15, raw.shape)),
    "noise, sigma 30": lambda raw: eight_bits(raw + np.random.default_rng(0).normal(0, 30, raw.shape)),
    "blur, sigma 1": lambda raw: eight_bits(gaussian_filter(raw.astype(np.float32), 1)),
    "blur, sigma 2": lambda raw: eight_bits(gaussian_filter(raw.astype(np.float32), 2)),
    "every tenth section missing": blanked,
}


def read(name: str, sections: slice) -> Arrays:
    with h5py.File(DATA / name) as file:
        return file["volumes/raw"][sections], file["volumes/labels/neuron_ids"][sections].astype(np.uint64)


def stored(folder: Path, name: str, arrays: Arrays) -> Validation:
    """Return a volume, stored, all of which is scored."""
    stores = []
    for kind, array in zip(("raw", "labels"), arrays, strict=True):
        z, y, x = array.shape
        volume = create_volume(
            folder / f"{kind}.zarr",
            shape=(z, y, x),
            dtype=array.dtype,
            chunk=(64, 64, 64),
            shard=(64, 64, 64),
            voxel_size=(10.0, 10.0, 10.0),
            offset=(0.0, 0.0, 0.0),
        )
        volume.write(volume.roi, array)
        stores.append(folder / f"{kind}.zarr")
    return validation_crop(Source(name, *stores), (1000, 1000, 1000))


if __name__ == "__main__":
    main()
