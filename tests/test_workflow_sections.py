"""The workflow on a stack of 2-D images, from a folder of TIFF files to scores per section."""

import json

import numpy as np
import pytest
import tifffile
import yaml
from toy_volumes import cells
from workflow import snakemake

from kdseg.volumes.inputs import open_input

SIDE = 48
TRAIN = {"volumes": ["train"], "validate_on": "tune", "steps": 60, "batch": 4, "crop": [1, 32, 32]}
CONFIG = {
    "results": "results",
    "device": "cpu",
    "workers": 1,
    "sections": True,
    "storage": {"chunk": [1, 32, 32], "shard": [2, 64, 64], "levels": 2},
    "volumes": {
        name: {"raw": name, "labels": f"{name}_labels", "background": "boundary", "voxel_size": [10, 10, 10]}
        for name in ("train", "tune")
    },
    "models": {
        "teacher": {
            "network": {"kind": "unet", "widths": [6, 12], "residual": True},
            "train": {**TRAIN, "steps": 8, "validate_every": 8, "warmup": 2},
        },
        "student": {
            "network": {"kind": "unet", "widths": [4, 6]},
            "train": {
                **TRAIN,
                "validate_every": 30,
                "warmup": 5,
                "teacher": "teacher",
                "terms": [{"name": "affinity"}, {"name": "soft_affinity"}, {"name": "graph_relation", "taps": [0]}],
            },
        },
    },
    "predict": {"tile": [1, 32, 32]},
    "fragments": {"watershed": {"method": "mutex"}, "dust": 8},
    "evaluate": {"models": ["student"], "volumes": ["tune", "single"], "tune_on": "tune"},
}
CONFIG["volumes"]["single"] = CONFIG["volumes"]["tune"] | {"raw": "single.tif", "labels": "single_labels.tif"}


def images(folder, name, count, seed):
    """Write unrelated images of bright cells in a dark background, and their labels, anew from 1 in each."""
    for path in (folder / name, folder / f"{name}_labels"):
        path.mkdir()
    for z in range(count):
        raw, labels = (array[0] for array in cells((1, SIDE, SIDE), 6, seed=seed + z))
        away = np.hypot(*(np.indices(labels.shape) - SIDE / 2)) > 0.45 * SIDE
        tifffile.imwrite(folder / name / f"{z:02}.tif", np.where(away, 20, raw).astype(np.uint8))
        tifffile.imwrite(folder / f"{name}_labels" / f"{z:02}.tif", np.where(away, 0, labels).astype(np.uint16))


@pytest.mark.slow
def test_images_are_learned_segmented_and_scored_one_by_one(tmp_path):
    images(tmp_path, "train", 6, 0)
    images(tmp_path, "tune", 3, 100)
    images(tmp_path, "alone", 1, 200)
    for file, folder in (("single", "alone"), ("single_labels", "alone_labels")):
        (tmp_path / folder / "00.tif").rename(tmp_path / f"{file}.tif")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    snakemake(tmp_path, config)
    results = tmp_path / "results"
    page = (results / "report.html").read_text()
    assert "tune, xy plane" in page
    assert "tune, xz plane" not in page
    stats = json.loads((results / "student" / "tune" / "scores.json").read_text())["stats"]
    assert stats["sections"]["count"] == 3
    assert stats["sections"]["mean"]["aji"] > 0.05  # a barely trained network: not single voxels, though
    assert stats["scores"]["voi"] == pytest.approx(stats["best_possible"]["voi"])
    assert json.loads((results / "student" / "single" / "scores.json").read_text())["stats"]["sections"]["count"] == 1
    segments = open_input(results / "student" / "tune" / "segmentation.json").volume
    ids = [set(np.unique(section)) - {0} for section in segments.read(segments.roi)]
    assert all(ids)
    assert len(set().union(*ids)) == sum(map(len, ids))
