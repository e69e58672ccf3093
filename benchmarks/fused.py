"""Costs and savings of `predict.fused`: `OMP_NUM_THREADS=1 python benchmarks/fused.py --widths 4 8 16`.

Predicts a phantom with an untrained network of one of the sizes used here, once through stored affinities and
once fused, and prints wall time, CPU time, times that a voxel is predicted, and bytes left on disk. The results
are compared: they are equal, or it fails.
"""

from __future__ import annotations

import argparse
import logging
import resource
import tempfile
import time
from pathlib import Path

import torch

from kdseg.config import Config, EdgesOptions, FragmentsOptions, PredictOptions, StorageOptions, VolumeOptions
from kdseg.config.networks import HeadOptions, UNetOptions
from kdseg.config.tasks import ConvertTask, EdgesTask, FragmentsTask, PredictTask
from kdseg.networks.checkpoint import LoadedModel, save_model
from kdseg.networks.models import build
from kdseg.prediction import stage as predict
from kdseg.results.claims import claim
from kdseg.results.manifests import file_fingerprint, read
from kdseg.results.tables import read_table
from kdseg.segmentation.fragments import stage as fragments
from kdseg.segmentation.graph import stage as edges
from kdseg.volumes import convert

OFFSETS = Config.model_fields["offsets"].default


def network(manifest: Path, widths: tuple[int, ...]) -> Path:
    torch.manual_seed(0)
    options = UNetOptions(widths=widths)
    made = build(options, HeadOptions(), OFFSETS)
    made(torch.randn(1, 1, 32, 32, 32))
    with claim(manifest, "train", {"widths": list(widths)}, {}) as held:
        save_model(held.model, LoadedModel(made, options, HeadOptions(), OFFSETS, (10.0, 10.0, 10.0)))
        held.stats["weights"] = file_fingerprint(held.model)
    return manifest


def size(*paths: Path) -> int:
    return sum(file.stat().st_size for path in paths for file in path.rglob("*") if file.is_file())


def cpu() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def same(a: Path, b: Path) -> bool:
    files = [file.relative_to(a) for file in a.rglob("*") if file.is_file()]
    return bool(files) and all((a / name).read_bytes() == (b / name).read_bytes() for name in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 192, 192))
    parser.add_argument("--widths", type=int, nargs="+", default=(4, 8, 16))
    parser.add_argument("--halo", type=int, default=32)
    parser.add_argument("--block", type=int, nargs="+", default=(64, 128))
    parser.add_argument("--tile", type=int, nargs="+", default=(64, 32))
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    storage = StorageOptions(chunk=(32, 32, 32), shard=(64, 64, 64))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        phantom = VolumeOptions.model_validate({"phantom": {"shape": given.shape}})
        raw = folder / "raw.json"
        convert.run(ConvertTask(kind="raw", manifest=raw, options=phantom, storage=storage))
        model = network(folder / "model.json", tuple(given.widths))
        print(
            "| block | tile | route | predicted per voxel | wall s | CPU s "
            "| affinities [MB] | faces [MB] | inner edges [MB] |"
        )
        print("|" + " --- |" * 9)
        for block, tile in ((b, t) for b in given.block for t in given.tile):
            options = FragmentsOptions(block=(block,) * 3, halo=(given.halo,) * 3)
            predicting = PredictOptions(block=(64,) * 3, tile=(tile,) * 3)
            here = {route: folder / f"{block}_{tile}" / route for route in ("stored", "fused")}
            for route, out in here.items():
                kept, made = out / "affinities.json", out / "fragments.json"
                wall, used = time.monotonic(), cpu()
                if route == "stored":
                    predict.run(
                        PredictTask(
                            raw=raw, model=model, manifest=kept, options=predicting, storage=storage, device="cpu"
                        )
                    )
                    fragments.run(FragmentsTask(affinities=kept, manifest=made, options=options, storage=storage))
                else:
                    fragments.run(
                        FragmentsTask(
                            raw=raw,
                            model=model,
                            manifest=made,
                            predict=predicting,
                            options=options,
                            storage=storage,
                            device="cpu",
                        )
                    )
                source = kept if route == "stored" else None
                edges.run(
                    EdgesTask(
                        affinities=source,
                        fragments=made,
                        manifest=out / "edges.json",
                        options=EdgesOptions(block=(64,) * 3),
                    )
                )
                wall, used = time.monotonic() - wall, cpu() - used
                times = read(made).stats.get("times_predicted", 1)
                parts = [read_table(path) for path in (out / "fragments.tables").glob("*.npz")]
                faces = sum(part[f"face_{c}"].nbytes for part in parts for c in range(3))
                disk = size(out / "affinities.zarr"), faces, size(out / "fragments.tables") - faces
                columns = [block, tile, route, times, f"{wall:.1f}", f"{used:.1f}", *(f"{n / 1e6:.2f}" for n in disk)]
                print("| " + " | ".join(map(str, columns)) + " |", flush=True)
            for result in ("fragments.zarr", "edges.tables"):
                if not same(here["stored"] / result, here["fused"] / result):
                    raise SystemExit(f"{result} differs")


if __name__ == "__main__":
    main()
