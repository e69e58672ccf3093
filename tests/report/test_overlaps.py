"""Voxels that were trained on and scored, in the report of volumes that were converted from one file."""

import json

import numpy as np
from report_page import Page, configuration
from toy_volumes import cells, write_hdf5

from kdseg.config.tasks import ConvertTask, ReportTask
from kdseg.report import stage as report
from kdseg.report.overlap import overlaps
from kdseg.volumes import convert

SIZE = (20.0, 10.0, 10.0)


def written(folder):
    """Return volumes of one file, of which the labels begin 4 sections after the raw data."""
    raw, labels = cells((32, 32, 32), 12)
    file = folder / "a.h5"
    whole = write_hdf5(file, raw, "raw", resolution=SIZE, offset=(0.0, 0.0, 0.0))
    truth = write_hdf5(file, labels[4:].astype(np.uint32), "labels", resolution=SIZE, offset=(80.0, 0.0, 0.0))

    def part(z, n):
        return {"raw": whole, "labels": truth, "roi": {"offset": (z, 0, 0), "shape": (n, 32, 32)}}

    return {"train": part(0, 16), "tune": part(24, 8), "cube": part(12, 12)}


def test_a_report_says_what_was_trained_on_and_scored(tmp_path):
    config = configuration(tmp_path, volumes=written(tmp_path))
    assert overlaps(config) == []  # nothing is converted yet
    for name, options in config.volumes.items():
        for kind in ("raw", "labels"):
            manifest = tmp_path / "volumes" / name / f"{kind}.json"
            manifest.parent.mkdir(parents=True, exist_ok=True)
            storage = {"chunk": (16, 16, 16), "shard": (16, 16, 16), "levels": 1}
            convert.run(ConvertTask(kind=kind, manifest=manifest, options=options, storage=storage))
    (found,) = overlaps(config)
    assert found.startswith(
        "33 % of cube is scored, and is ground truth for the training of heavy, alone, fast as a part of train: "
    )
    report.run(ReportTask(config=config, out=tmp_path / "report.html"))
    assert found in Page((tmp_path / "report.html").read_text()).texts["notes"]
    assert found in (tmp_path / "report.txt").read_text().splitlines()
    assert json.loads((tmp_path / "summary.json").read_text())["overlaps"] == [found]


def test_where_a_volume_is_scored_that_its_thresholds_are_chosen_on_the_report_says_so(tmp_path):
    evaluate = {"volumes": ["tune"], "tune_on": "tune", "models": ["heavy"]}
    said = overlaps(configuration(tmp_path, evaluate=evaluate))
    assert [text for text in said if "the thresholds are chosen there, which flatters every model of ours." in text]
    fixed = overlaps(configuration(tmp_path, evaluate=evaluate, segment={"threshold": 0.5}))
    assert not [text for text in fixed if "thresholds" in text]
