"""Strength of each term's gradient beside ground truth's: `OMP_NUM_THREADS=1 python benchmarks/pull.py [TERM ...]`.

A student learns for some steps from ground truth and one term with `normalise`, which balances their gradients. Then
the norms of both gradients are measured anew, the mean over some batches: at the term's own weight of 1, and as
`normalise` multiplies it then. A factor of 1 is balanced. Data are a phantom, the teacher a residual network that
learned on it for a hundred steps; terms on instances see the ground truth's.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kdseg.config.data import VolumeOptions
from kdseg.config.networks import ModelOptions
from kdseg.config.segmentation import WatershedOptions
from kdseg.config.tasks import ConvertTask
from kdseg.config.terms import term_options
from kdseg.networks.models.device import deterministic, joined
from kdseg.results.manifests import read
from kdseg.training import loop, train
from kdseg.training.pull import factors, gradients, pulls
from kdseg.training.run import Data, Run, prepare
from kdseg.training.sampling import loader
from kdseg.volumes import convert

OFFSETS = tuple(tuple(-step if axis == a else 0 for a in range(3)) for step in (1, 3, 9) for axis in range(3))
TAPS: dict[str, dict[str, Any]] = {
    "graph_relation": {"taps": [0, "affinities"], "memory_start": 5},
    "cad": {"tap": 0},
    "cirkd": {"memory_start": 5},
}
"""Options that let terms do without an embedding, and act within the few steps."""


def main() -> None:
    """Print a row per term."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "terms", nargs="*", default=[name for name, options in term_options().items() if options.from_teacher]
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--crop", type=int, default=32)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, joined("cpu") as ranks, deterministic():
        folder = Path(name)
        data = Data({"a": phantom(folder)}, {}, ())
        made = model([12, 24, 48], True, given.crop, [{"name": "affinity"}], steps=100)
        taught = train(
            made, offsets=OFFSETS, volumes=data.volumes, out=folder / "t.safetensors", folder=folder / "t", device="cpu"
        )
        data = data._replace(teachers=(taught.model,))
        print("| term | part | gradient at weight 1, of `affinity`'s | with `normalise` |\n| --- | --- | --- | --- |")
        for term in given.terms:
            options = [{"name": "affinity"}, {"name": term, **TAPS.get(term, {}), **begun(term)}]
            made = model([4, 8, 16], False, given.crop, options, teacher="t", normalise=True, steps=10**6)
            run = prepare(made, OFFSETS, data, term, ranks, WatershedOptions())
            for part, before, after in measured(run, given.steps, given.batches):
                print(f"| {term} | {part} | {before:.3g} | {after:.2f} |", flush=True)


def phantom(folder: Path) -> tuple[Path, Path]:
    """Return raw data and labels of a phantom."""
    options = VolumeOptions.model_validate({"phantom": {"shape": [96, 96, 96]}})
    for kind in ("raw", "labels"):
        convert.run(ConvertTask(kind=kind, manifest=folder / f"{kind}.json", options=options))
    return read(folder / "raw.json").result, read(folder / "labels.json").result


def model(widths: list[int], residual: bool, crop: int, terms: list[dict[str, Any]], **changes: Any) -> ModelOptions:
    """Return the options of a training."""
    values = {"volumes": ["a"], "validate_on": "a", "terms": terms, "crop": [crop] * 3, "learning_rate": 4e-3}
    values |= {"warmup": 20, "validate_every": 10**6, "validate_shape": [16, 32, 32], "precision": "float32"}
    network = {"kind": "unet", "widths": widths, "residual": residual}
    return ModelOptions.model_validate({"network": network, "train": values | changes})


def begun(term: str) -> dict[str, Any]:
    """Return the options that let a term act at once."""
    return {"fit": 5} if "fit" in term_options()[term].model_fields else {}


def measured(run: Run, steps: int, batches: int) -> Iterator[tuple[str, float, float]]:
    """Yield, for each part of the term, its gradient norm over the reference's: at weight 1, and as it is balanced."""
    found = iter(loader(run.crops, 0))
    for _ in range(steps):
        loop.step(run, found)
    acting = list(run.objective.part_weights())
    factor = factors(pulls(run.scales, acting), acting)
    looks = [gradients(run, loop._parts(run, next(found)), acting) for _ in range(batches)]
    norms = {name: sum(look[name].norm().item() for look in looks) for name in acting}
    for name in acting:
        if name != "affinity":
            before = norms[name] / norms["affinity"]
            yield name.partition(".")[2] or "–", before, before * factor.get(name, 0.0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
