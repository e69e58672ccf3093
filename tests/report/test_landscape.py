"""The landscape of a search for post-processing options, as the report draws it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray
from report_page import Page, configuration

from kdseg.config import AgglomerateOptions, FragmentsOptions, TuneSegmentationOptions
from kdseg.errors import UnreadableError
from kdseg.evaluation.candidates import candidates
from kdseg.evaluation.tune_segmentation import COLUMNS
from kdseg.report.figures import standalone
from kdseg.report.landscape import FEW, HEADS, landscapes
from kdseg.report.page import page
from kdseg.report.results import collect
from kdseg.results.claims import claim
from kdseg.results.parquet import write_parquet

THRESHOLDS = (0.25, 0.5, 0.75)
VOI = np.array(
    [
        [[9.0, 2.0, 1.5, 3.0], [9.0, 1.0, 0.5, 2.0], [9.0, 4.0, 5.0, 6.0]],
        [[9.0, 2.5, 1.75, 1.0], [9.0, 3.0, 2.0, 2.5], [9.0, 4.0, 5.0, 6.0]],
    ]
)
"""Bits by part, candidate, and fragments or threshold."""


def search(
    folder: Path, voi: NDArray[np.float64] = VOI, by: str = "mean", best: int = 1, key: str = "fast/tuned"
) -> None:
    """Write a search of candidates with other boundaries as the stage writes it; its first threshold of 0.5 is best."""
    values = {"regions": [{"volume": "tune"}], "boundary": [k / 1000 for k in range(501, 500 + voi.shape[1])]}
    tried = candidates(
        TuneSegmentationOptions.model_validate({**values, "candidates": 500}), FragmentsOptions(), AgglomerateOptions()
    )
    parts = [{"volume": "tune", "offset": [4 * k, 0, 0], "shape": [4, 9, 9]} for k in range(voi.shape[0])]
    notes = {"parts": parts, "candidates": [[one.fragments.model_dump(mode="json"), one.score] for one in tried]}
    part, candidate, row = np.indices(voi.shape).reshape(3, -1)
    split = voi.ravel() / 4
    table = {
        "part": part.astype(np.uint32),
        "candidate": candidate.astype(np.uint32),
        "threshold": np.array([np.nan, *THRESHOLDS])[row],
        "voi_split": split,
        "voi_merge": voi.ravel() - split,
        "voi": voi.ravel(),
        "arand": np.zeros(voi.size),
    }
    over = voi.mean(axis=0) if by == "mean" else voi.max(axis=0)
    found = {
        name: {"candidate": k, "threshold": THRESHOLDS[int(over[k, 1:].argmin())], "voi": float(over[k, 1:].min())}
        for name, k in (("chosen", best), ("configured", 0))
    }
    with claim(folder / f"{key}.json", "tune-segmentation", {}, {}) as held:
        with write_parquet(held.parquet, COLUMNS, notes) as file:
            file.append(table)
        held.stats.update(found, by=by)


def test_the_best_and_the_configuration_are_marked(tmp_path: Path) -> None:
    search(tmp_path)
    (found,) = landscapes(collect(configuration(tmp_path)))
    assert found.sentence == (
        "fast: of 3 candidates, VOI on 2 parts (mean) is least with boundary 0.501 at threshold 0.5: 1.250 bits; with "
        "the options as configured at least 1.625, at threshold 0.5."
    )
    mean, worst = found.figures
    assert (mean.title, worst.title) == ("VOI, mean of 2 parts", "VOI, in the worst of 2 parts")
    for figure, over in ((mean, VOI.mean(axis=0)), (worst, VOI.max(axis=0))):
        (drawn,) = figure.spec["datasets"].values()
        for k, name in enumerate(("as configured", "chosen", "others")):
            mine = [row for row in drawn if row["model"] == name]
            assert [row["value"] for row in mine if not row["used"]] == [*over[k, 1:], None]
            rings = [(row["threshold"], row["value"]) for row in mine if row["used"]]
            assert rings == ([] if name == "others" else [(0.5, over[k, 2])])
        assert drawn[0]["model"] == "others"  # below the two that matter
        assert f"chosen at threshold 0.5: {over[1, 2]:.3f} bits" in figure.description
        assert [row["model"] for row in figure.rows] == ["as configured"] * 3 + ["chosen"] * 3


def test_the_search_for_all_models_comes_last(tmp_path: Path) -> None:
    search(tmp_path, key="tuned")
    search(tmp_path)
    own, all_of_them = landscapes(collect(configuration(tmp_path)))
    assert (own.model, all_of_them.model) == ("fast", "all models")
    assert all_of_them.sentence == own.sentence.replace("fast:", "all models:")


def test_the_table_has_the_best_few_and_the_configuration(tmp_path: Path) -> None:
    search(tmp_path)
    (found,) = landscapes(collect(configuration(tmp_path)))
    assert found.rows == [
        ["boundary 0.501", "0.5", "0.312", "0.938", "1.250", "2.000", "tune at (4, 0, 0)"],
        ["boundary 0.5 (as configured)", "0.5", "0.406", "1.219", "1.625", "1.750", "tune at (4, 0, 0)"],
        ["boundary 0.502", "0.25", "1.000", "3.000", "4.000", "4.000", "tune at (0, 0, 0)"],
    ]
    many = tmp_path / "many"
    voi = np.linspace(1, 3, 300)[::-1, None] + np.array([8.0, 0.5, 0.0, 0.25])
    search(many, voi[None], best=299)
    (found,) = landscapes(collect(configuration(many)))
    assert len(found.rows) == FEW + 1
    assert found.rows[0][0] == "boundary 0.799"
    assert found.rows[-1][0].endswith("(as configured)")
    (figure,) = found.figures
    (drawn,) = figure.spec["datasets"].values()
    assert len({row["options"] for row in drawn}) < 110
    assert figure.title == "VOI on tune"


def test_the_worst_part_decides_where_it_shall(tmp_path: Path) -> None:
    search(tmp_path, by="worst", best=0)
    (found,) = landscapes(collect(configuration(tmp_path)))
    assert "VOI on 2 parts (worst) is least with boundary 0.5 at threshold 0.5: 1.750 bits" in found.sentence
    assert [row[0] for row in found.rows] == ["boundary 0.5 (as configured)", "boundary 0.501", "boundary 0.502"]
    assert {row["model"] for row in found.figures[1].rows} == {"chosen"}


def test_scores_of_another_search_are_refused(tmp_path: Path) -> None:
    search(tmp_path)
    search(tmp_path / "other", VOI + 1)
    table = next(tmp_path.glob("**/fast/tuned.parquet"))
    swapped = [path for path in tmp_path.glob("**/tuned.parquet") if "other" in path.parts]
    table.write_bytes(swapped[0].read_bytes())
    with pytest.raises(UnreadableError, match=r"tuned\.parquet is not the file.*kdseg verify \S*tuned\.json --repair"):
        landscapes(collect(configuration(tmp_path)))


def test_a_line_per_candidate_can_be_drawn(tmp_path: Path) -> None:
    search(tmp_path, np.concatenate((VOI, VOI[:, 2:] + 1), axis=1))
    (found,) = landscapes(collect(configuration(tmp_path)))
    drawing = ElementTree.fromstring(standalone([found.figures[0].chart]))
    groups = [group for group in drawing.findall(".//{*}g") if "mark-line" in group.get("class", "")]
    outlines = [path.get("d", "") for group in groups for path in group.findall(".//{*}path")]
    assert sorted((one.count("M"), one.count("L")) for one in outlines) == [(1, 2), (1, 2), (2, 4)]  # grey: two


def test_the_page_shows_a_landscape_where_there_is_one(tmp_path: Path) -> None:
    search(tmp_path)
    results, made = collect(configuration(tmp_path)), datetime(2026, 1, 2, tzinfo=UTC)
    html = page(results, [], [], [], made)
    (found,) = landscapes(results)
    shown = Page(html)
    assert [figure.description for figure in found.figures] == [
        image["aria-label"] for image in shown.images if image.get("class") == "drawing"
    ]
    text = shown.texts["landscapes"]
    assert all(part in text for part in (found.sentence, *HEADS, *found.rows[0]))
    (tmp_path / "fast" / "tuned.parquet").unlink()
    assert "landscapes" not in Page(page(results, [], [], [], made)).texts
