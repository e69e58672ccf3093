"""The report, on a small folder of results that is written as the stages write it."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from datetime import UTC, datetime
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from report_page import MODELS, Page, configuration

from kdseg.config.tasks import ReportTask
from kdseg.errors import MissingError, UnreadableError, VoxelSizeError
from kdseg.geometry import Roi
from kdseg.report import stage as report
from kdseg.report.colours import CONTOUR, colour_keys, colour_numbers, contours, palette, png
from kdseg.report.curves import sweep_figures, thin, threshold_figures, training_figures
from kdseg.report.figures import standalone
from kdseg.report.graph import nodes
from kdseg.report.page import page
from kdseg.report.results import STAGES, collect
from kdseg.report.slices import read_section, sections, window
from kdseg.report.table import COLUMNS, Row, rows, significant, table_text
from kdseg.report.unknown import unknown
from kdseg.report.verdict import closure, compare, headline, verdicts
from kdseg.results.claims import claim
from kdseg.results.curve import Curve
from kdseg.volumes.volume import create_volume, open_volume

SHAPE = (12, 40, 48)
GOOD = {
    "heavy": (0.30, 0.20, 0.05),
    "alone": (0.60, 0.40, 0.15),
    "fast": (0.40, 0.30, 0.07),
    "baseline": (0.50, 0.35, 0.08),
}
"""VOI split, VOI merge, ARAND by model."""
RATES = {"heavy": 0.5, "alone": 4.0, "fast": 5.0}


def put(folder, key, stats=None, array=None, offset=(0.0, 0.0, 0.0)):
    """Write a manifest, with a volume beside it where there is an array."""
    with claim(folder / f"{key}.json", key.split("/")[-1], {"key": key}, {}) as held:
        if array is not None:
            volume = create_volume(
                held.store,
                shape=array.shape[-3:],
                dtype=array.dtype,
                chunk=(8, 16, 16),
                shard=(8, 16, 16),
                voxel_size=(20.0, 10.0, 10.0),
                offset=offset,
                channels=array.shape[0] if array.ndim == 4 else None,
            )
            volume.write(volume.roi, array)
        held.stats.update(stats or {})


def score_stats(split, merge, arand, threshold):
    scores = {"voi_split": split, "voi_merge": merge, "voi": split + merge, "arand": arand}
    scores |= {"arand_precision": 0.91, "arand_recall": 0.82}
    best = {"threshold": 0.45, "voi": split + merge - 0.05}
    return {"threshold": threshold, "scores": scores, "best_possible": None if threshold is None else best}


def neurons(shape, count=9):
    points = np.random.default_rng(0).uniform(0, shape, (count, 3))
    grid = np.stack(np.indices(shape), -1)
    return (1 + ((grid[..., None, :] - points) ** 2).sum(-1).argmin(-1)).astype(np.uint64)


def make_run(folder, scores=GOOD, shape=SHAPE):
    """Write the results of three models on one volume."""
    labels = neurons(shape)
    raw = (80 + 12 * labels + np.random.default_rng(1).integers(0, 40, shape)).astype(np.uint8)
    for volume in ("train", "tune", "cube"):
        put(folder, f"volumes/{volume}/raw", {"voxels": raw.size}, raw)
        # the ground truth starts one section higher, and so covers less than the raw data
        put(folder, f"volumes/{volume}/labels", {}, labels[1:], offset=(20.0, 0.0, 0.0))
    put(folder, "volumes/cube/baseline", {}, labels // np.uint64(2) + np.uint64(1))
    put(folder, "baseline/cube/scores", score_stats(*scores["baseline"], None))
    for k, model in enumerate(MODELS):
        facts = {"parameters": (1_000_000, 100_000, 100_000)[k], "kmac_per_voxel": (800.0, 40.0, 40.0)[k]}
        put(folder, f"{model}/model", {**facts, "seconds": 120.5})
        write_curve(folder, model, k)
        for volume in ("tune", "cube"):
            put_stages(folder, model, volume, labels, scores[model])


def write_curve(folder, model, k):
    terms = ["affinity"] + (["soft_affinity"] if model == "fast" else [])
    path = folder / model / "model.training" / "curve.csv"
    columns = ["step", "learning_rate", *terms, "total", "voi", "arand", "seconds"]
    with Curve(path, columns, keep=0) as curve:
        for step in range(1, 41):
            row = {"step": step, "learning_rate": 1e-3, "total": (k + 1) / step, "seconds": 0.1 * step}
            row |= dict.fromkeys(terms, 1 / step)
            curve.append(row | ({"voi": 2 - step / 40, "arand": 0.5} if step % 20 == 0 else {}))


def put_stages(folder, model, volume, labels, scores):
    split = labels + np.uint64(100) * (np.indices(labels.shape)[2] > 20).astype(np.uint64)
    affinities = np.stack([255 * (labels == np.roll(labels, 1, axis)) for axis in range(3)]).astype(np.uint8)
    measured = {"mvox_per_s": RATES[model], "voxels": labels.size, "device": "cpu", "workers": 2, "peak_mb": 512.0}
    put(folder, f"{model}/{volume}/affinities", measured, affinities)
    for stage in ("fragments", "edges", "agglomeration"):
        put(folder, f"{model}/{volume}/{stage}", {"voxels": 2_000_000, "seconds": 4.0})
    parts = [(t, scores[0] * (1.5 - t), scores[1] * (0.5 + t)) for t in (0.25, 0.5, 0.75)]
    sweep = [
        {"threshold": t, "voi_split": split, "voi_merge": merge, "voi": split + merge, "arand": scores[2]}
        for t, split, merge in parts
    ]
    put(folder, f"{model}/{volume}/sweep", {"sweep": sweep, "best": 0.5})
    put(folder, f"{model}/{volume}/segmentation", {"threshold": 0.5}, split)
    put(folder, f"{model}/{volume}/scores", score_stats(*scores, 0.5))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_run(folder)
    report.run(ReportTask(config=configuration(folder), out=folder / "report.html"))
    return folder


@pytest.fixture(scope="module")
def html(run):
    return (run / "report.html").read_text()


def verdict_of(folder, scores, **changes):
    """Return the verdict where nothing but scores is there."""
    for model, values in scores.items():
        put(folder, f"{model}/cube/scores", score_stats(*values, None if model == "baseline" else 0.5))
    config = configuration(folder, **changes)
    return verdicts(config, rows(collect(config)))[0]


def test_the_table_names_the_dust(html, run, tmp_path):
    assert "Objects of all sizes count, as by <code>kdseg evaluate</code>" in html
    dusty = configuration(run, evaluate={"volumes": ["cube"], "tune_on": "tune", "models": ["alone"], "dust": 77})
    report.run(ReportTask(config=dusty, out=tmp_path / "report.html"))
    assert "with <code>--dust 77</code>" in (tmp_path / "report.html").read_text()


def test_the_page_holds_the_numbers(html):
    cells = Page(html).cells
    assert cells["heavy", "cube", "role"] == "teacher"
    assert cells["alone", "cube", "role"] == "student alone"
    assert cells["fast", "cube", "role"] == "distilled student"
    assert cells["fast", "cube", "voi_split"] == "0.400"
    assert cells["fast", "cube", "voi_merge"] == "0.300"
    assert cells["fast", "cube", "voi"] == "0.700 best 0.650"
    assert cells["fast", "cube", "arand"] == "0.070"
    assert cells["fast", "cube", "arand_precision"] == "0.910"
    assert cells["fast", "cube", "arand_recall"] == "0.820"
    assert cells["fast", "cube", "threshold"] == "0.50 best 0.45"
    assert cells["fast", "cube", "parameters"] == "100,000 10 %"
    assert cells["fast", "cube", "kmac"] == "40.0 5.0 %"
    # 5 Mvox/s instead of 0.5: a tenth of the time, and 4 instead of 0.5 an eighth
    assert cells["fast", "cube", "mvox_per_s"] == "5.00 time 10 %"
    assert cells["alone", "cube", "mvox_per_s"] == "4.00 time 12 %"
    assert cells["fast", "cube", "peak_mb"] == "512"
    assert cells["baseline", "cube", "voi"] == "0.850"
    assert cells["baseline", "cube", "parameters"] == "–"


def test_rows_follow_the_configuration(html):
    assert Page(html).rows == [(model, "cube") for model in (*MODELS, "baseline")]


def test_the_page_stands_alone(html):
    page = Page(html)
    without_scripts = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert all(address.startswith('"data:') for address in re.findall(r"url\(([^#)]+)", without_scripts))
    assert not re.search(r"@import|<(link|iframe|object|embed)\b", without_scripts)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'unsafe-inline'"
    assert len(html.encode()) < 3_000_000
    assert page.images
    assert all(image.get("alt") or image.get("aria-label") for image in page.images)


def test_text_of_the_user_is_escaped(html):
    assert "<h1>Mouse &lt;cube&gt; &amp; more</h1>" in html


@pytest.fixture
def results(run):
    return collect(configuration(run))


def test_every_chart_is_on_the_page(html, results):
    figures = [*sweep_figures(results), *threshold_figures(results), *training_figures(results)]
    # one sweep; VOI sum, split and merge on two volumes; total, two terms, VOI, ARAND
    assert len(figures) == 1 + 6 + 5
    shown = Page(html)
    assert shown.specs == [json.loads(json.dumps(figure.spec)) for figure in figures]
    drawn = [image["aria-label"] for image in shown.images if image.get("class") == "drawing"]
    assert drawn == [figure.description for figure in figures]
    assert "fast at threshold 0.5: split 0.400, merge 0.300" in drawn[0]


def test_charts_can_be_drawn(results):
    for figure in (*sweep_figures(results), *threshold_figures(results), *training_figures(results)):
        svg = standalone([figure.chart])
        assert "var(" not in svg
        texts = {"".join(text.itertext()) for text in ElementTree.fromstring(svg).findall(".//{*}text")}
        x, y = [*figure.heads.values()][2:4] if "source" in figure.heads else [*figure.heads.values()][1:]
        assert any(text.startswith(x) for text in texts)
        assert any(text.startswith(y) for text in texts)
        models = {row["model"] for row in figure.rows} - {"baseline"}
        assert len(drawn_lines(figure)) == len(models)
        rings = [p for p in ElementTree.fromstring(svg).findall(".//{*}path") if p.get("stroke-width") == "2.5"]
        (drawn,) = figure.spec["datasets"].values()
        assert len(rings) == sum(row["used"] for row in drawn)


def test_a_button_hides_a_model(html, results):
    assert re.findall(r'data-hides="(\w+)"', html) == [*MODELS, "baseline", *MODELS, *MODELS]
    figure = threshold_figures(results)[0]
    assert len(drawn_lines(figure)) == 3
    (hidden,) = [param for param in figure.chart.params if param.name == "hidden"]
    hidden.value = ["fast"]
    assert len(drawn_lines(figure)) == 2


def test_the_sweep_shows_every_threshold_and_the_chosen_one(results):
    (figure,) = sweep_figures(results)
    fast = [row for row in figure.rows if row["model"] == "fast"]
    assert [(r["threshold"], r["split"], r["merge"]) for r in fast if not r["used"]] == [
        (t, pytest.approx(0.4 * (1.5 - t)), pytest.approx(0.3 * (0.5 + t))) for t in (0.25, 0.5, 0.75)
    ]
    assert [(r["threshold"], r["split"], r["merge"]) for r in fast if r["used"]] == [(0.5, 0.4, 0.3)]
    (baseline,) = [row for row in figure.rows if row["model"] == "baseline"]
    assert baseline["used"]
    assert ["baseline", "–", "0.5", "0.35", "scores"] in [*figure.cells()]


def test_voi_is_drawn_over_thresholds(results):
    figure = next(f for f in threshold_figures(results) if f.title == "VOI merge on tune")
    assert figure.description.startswith("VOI merge over thresholds on tune")
    assert "fast at threshold 0.5: 0.300 bits" in figure.description
    assert [*dict.fromkeys(row["model"] for row in figure.rows)] == [*MODELS]
    wanted = [(0.25, 0.225), (0.5, 0.3), (0.75, 0.375)]
    assert [(r["threshold"], r["value"]) for r in figure.rows if r["model"] == "fast"] == [
        (t, pytest.approx(v)) for t, v in wanted
    ]
    (drawn,) = figure.spec["datasets"].values()
    rings = [row for row in drawn if row["used"] and row["model"] == "fast"]
    assert [(ring["threshold"], ring["value"]) for ring in rings] == [(0.5, pytest.approx(0.3))]
    assert len([*figure.cells()]) == 9


@pytest.mark.parametrize(("apply", "key"), [("own", "fast/tuned"), ("shared", "tuned")])
def test_the_threshold_of_a_search_is_the_one_that_is_marked(run, tmp_path, apply, key):
    folder = shutil.copytree(run, tmp_path / "run")
    put(folder, key, {"chosen": {"threshold": 0.75}})
    search = {"regions": [{"volume": "tune"}], "apply": apply}
    results = collect(configuration(folder, tune_segmentation=search))
    figure = next(f for f in threshold_figures(results) if f.title == "VOI merge on tune")
    assert "fast at threshold 0.75: 0.375 bits" in figure.description
    assert "fast at threshold 0.5" not in figure.description
    found = {node.key: node for node in nodes(results)}
    assert found["fast/cube/segmentation"].inputs == ("fast/cube/agglomeration",)


def drawn_lines(figure):
    """Return the colour and the outlines of every line of a chart, each an M and its L."""
    drawing = ElementTree.fromstring(standalone([figure.chart]))
    groups = [g for g in drawing.findall(".//{*}g") if "mark-line" in g.get("class", "")]
    return {path.get("stroke"): path.get("d") for g in groups for path in g.findall(".//{*}path")}


def training(folder, **columns):
    """Return the charts of a training by title; a column is the text of its cells from step 1 on."""
    put(folder, "fast/model")
    path = folder / "fast" / "model.training" / "curve.csv"
    path.parent.mkdir(parents=True)
    columns = {"total": ["1"] * 6, **columns}
    lines = [",".join(("step", *columns))]
    lines += [",".join((str(k + 1), *cells)) for k, cells in enumerate(zip(*columns.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n")
    return {figure.title: figure for figure in training_figures(collect(configuration(folder)))}


def test_a_term_without_a_value_is_a_gap(tmp_path):
    found = training(
        tmp_path, affinity=["3", "nan", "0.5", "0.25", "", "1"], soft_affinity=["0", "0", "0", "4", "0", "2"]
    )
    values = {title: [row["value"] for row in figure.rows] for title, figure in found.items()}
    assert values["term affinity"] == [3, None, 0.5, 0.25, None, 1]
    assert values["term soft_affinity"] == [None, None, None, 4, None, 2]
    assert values["total loss"] == [1] * 6
    assert [row[2] for row in found["term affinity"].cells()] == ["3", "–", "0.5", "0.25", "–", "1"]
    (line,) = drawn_lines(found["term affinity"]).values()
    assert (line.count("M"), line.count("L")) == (3, 1)
    assert found["term soft_affinity"].description.endswith("fast ends at 2.")


def test_a_term_that_never_acted_has_no_value(tmp_path):
    figure = training(tmp_path, soft_affinity=["0"] * 6)["term soft_affinity"]
    assert figure.description.endswith("fast has no value yet.")
    assert "L" not in "".join(path or "" for path in drawn_lines(figure).values())


def test_one_validation_is_a_dot(tmp_path):
    found = training(tmp_path, voi=["", "", "2.5", "", "", ""], arand=["", "0.5", "", "inf", "", "0.25"])
    voi = found["VOI on the validation crop [bits]"]
    assert [(row["step"], row["value"], row["dot"]) for row in voi.rows] == [(3, 2.5, True)]
    drawing = ElementTree.fromstring(standalone([voi.chart]))
    groups = [g for g in drawing.findall(".//{*}g") if "mark-symbol" in g.get("class", "")]
    shown = [
        p for g in groups for p in g.findall(".//{*}path") if p.get("opacity") == "1" and p.get("fill") != "transparent"
    ]
    assert len(shown) == 1
    # steps that do not validate are no gap, a score that is not finite is one
    assert [row["value"] for row in found["ARAND on the validation crop"].rows] == [0.5, None, 0.25]


def test_a_lone_value_of_a_long_curve_is_a_dot(tmp_path):
    cells = ["1"] * 20 + ["nan", "5", "nan"] + ["1"] * 20
    rows = training(tmp_path, total=cells)["total loss"].rows
    assert [row["step"] for row in rows if row["dot"]] == [22]


def test_all_parts_of_a_term_are_shown(tmp_path):
    cells = ["1"] * 6
    found = training(
        tmp_path, **{"affinity": cells, "soft_affinity.near": cells, "affinity.far": cells, "other": cells}
    )
    titles = ["total loss", "term affinity", "term affinity.far", "term soft_affinity.near"]
    assert [*found] == titles


def test_the_page_of_equal_results_is_equal(run):
    results = collect(configuration(run))
    made = datetime(2026, 1, 2, tzinfo=UTC)
    first, second = (page(results, rows(results), [], verdicts(results.config, rows(results)), made) for _ in range(2))
    assert first == second


def test_a_fixed_threshold_is_marked(run):
    config = configuration(run, segment={"threshold": 0.75})
    found = [figure.description for figure in threshold_figures(collect(config))]
    assert len(found) == 6
    assert "fast at threshold 0.75: 0.300 bits" in found[1]
    assert all("at threshold 0.5:" not in text for text in found)


def test_the_sections_show_every_model(run):
    found = sections(collect(configuration(run)))
    assert [s.name for s in found] == ["cube-xy", "cube-xz"]
    # 48 x 40 voxels of 10 nm; 48 voxels of 10 nm x 11 of 20 nm
    assert [s.aspect for s in found] == [1.2, pytest.approx(48 / 22, abs=1e-4)]
    for section in found:
        assert [heading for heading, _ in section.columns] == ["data", *MODELS, "baseline"]
        assert [len(pictures) for _, pictures in section.columns] == [2, 2, 2, 2, 1]


def test_a_section_is_aligned_in_nanometres(run):
    config = configuration(run)
    path = collect(config).store("volumes/cube/raw")
    raw, labels = open_volume(path), open_volume(path.with_name("labels.zarr"))
    roi = window(labels.roi, 0, 32)
    assert roi == Roi((5, 4, 8), (1, 32, 32))
    everything = raw.read(raw.roi)
    np.testing.assert_array_equal(read_section(raw, labels, roi), everything[6, 4:36, 8:40])
    xz = read_section(raw, labels, Roi((-1, 7, 0), (13, 1, 48)))
    np.testing.assert_array_equal(xz[:12], everything[:, 7])
    assert not xz[12:].any()


def test_a_section_of_other_voxels_is_refused(tmp_path):
    options = {"shape": (4, 4, 4), "dtype": "u1", "chunk": (4, 4, 4), "shard": (4, 4, 4)}
    a = create_volume(tmp_path / "a.zarr", voxel_size=(10, 10, 10), **options)
    b = create_volume(tmp_path / "b.zarr", voxel_size=(20, 10, 10), **options)
    with pytest.raises(VoxelSizeError, match="10"):
        read_section(a, b, window(b.roi, 0, 4))


def test_text_and_summary_hold_the_same(run):
    text = (run / "report.txt").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert text.startswith(summary["verdict"])
    fast = next(row for row in summary["rows"] if row["model"] == "fast")
    assert (fast["voi"], fast["arand"], fast["time_percent"]) == (0.7, 0.07, 10.0)
    assert summary["verdicts"][0]["closures"] == pytest.approx({"voi": 0.6, "arand": 0.8})
    assert not [path for path in run.iterdir() if path.suffix == ".part"]


def test_the_text_table_is_aligned():
    table = [Row("fast", "distilled student", "cube", voi=0.7), Row("a-long-name", "teacher", "cube", voi=10.25)]
    lines = table_text(table).splitlines()
    assert len(lines) == 3
    end = lines[0].index("VOI sum [bits]") + len("VOI sum [bits]")
    assert lines[1][:end].endswith(" 0.700")
    assert lines[2][:end].endswith(" 10.250")
    assert lines[1].count("not measured") == len(COLUMNS) - 4


def test_better(tmp_path):
    verdict = verdict_of(tmp_path, GOOD)
    assert verdict.outcome == "better"
    assert "the distilled student “fast” is better than the same network trained alone (“alone”)" in verdict.sentence
    assert "VOI 0.700 instead of 1.000 bits (−0.300, −30 %)" in verdict.sentence
    assert "ARAND 0.070 instead of 0.150 (−0.080, −53 %)" in verdict.sentence
    assert "of the gap to the teacher “heavy” it closes 60 % in VOI and 80 % in ARAND" in verdict.sentence
    assert "it is better than the baseline (VOI 0.850 bits, ARAND 0.080)" in verdict.sentence


def test_not_better(tmp_path):
    verdict = verdict_of(tmp_path, GOOD | {"fast": (0.7, 0.5, 0.2)})
    assert verdict.outcome == "not better"
    assert "“fast” is NOT better than the same network trained alone" in verdict.sentence
    assert "it closes −40 % in VOI and −50 % in ARAND" in verdict.sentence
    assert "it is NOT better than the baseline" in verdict.sentence


def test_equal_is_not_better(tmp_path):
    assert verdict_of(tmp_path, GOOD | {"fast": GOOD["alone"]}).outcome == "not better"


def test_mixed(tmp_path):
    verdict = verdict_of(tmp_path, GOOD | {"fast": (0.4, 0.3, 0.2)})
    assert verdict.outcome == "mixed"
    assert "“fast” is neither better nor worse than the same network" in verdict.sentence


def test_a_teacher_that_is_not_better(tmp_path):
    verdict = verdict_of(tmp_path, GOOD | {"heavy": (0.7, 0.4, 0.12)})
    assert "the teacher “heavy” is itself NOT better than the student alone in VOI (1.100)" in verdict.sentence
    assert verdict.closures == pytest.approx({"arand": 0.08 / 0.03})
    assert "it closes 267 % in ARAND" in verdict.sentence


def test_missing_scores(tmp_path):
    scores = {name: GOOD[name] for name in ("heavy", "fast")}
    verdict = verdict_of(tmp_path, scores)
    assert verdict.outcome == "not measured"
    assert "no scores of alone there" in verdict.sentence


def test_a_teacher_without_scores(tmp_path):
    verdict = verdict_of(tmp_path, {name: GOOD[name] for name in ("alone", "fast")})
    assert verdict.outcome == "better"
    assert "the teacher “heavy” has no scores there" in verdict.sentence
    assert verdict.closures == {}


def test_no_twin_and_no_student(tmp_path):
    evaluate = {"volumes": ["cube"], "tune_on": "tune", "models": ["heavy", "fast"]}
    assert "no scored model has the same network" in verdict_of(tmp_path, GOOD, evaluate=evaluate).sentence
    evaluate["models"] = ["heavy", "alone"]
    assert "scores no distilled student" in verdict_of(tmp_path / "b", GOOD, evaluate=evaluate).sentence


def test_networks_that_nobody_distils_are_compared(tmp_path):
    models = {name: options for name, options in configured(tmp_path).items() if name != "fast"}
    changes = {"models": models, "pretrained": {"shipped": "fib25-s"}}
    evaluate = {"volumes": ["cube"], "tune_on": "tune", "models": ["shipped", "alone"]}
    scores = {"shipped": (0.30, 0.20, 0.05), "alone": GOOD["alone"], "baseline": (0.1, 0.1, 0.01)}
    found = verdict_of(tmp_path, scores, evaluate=evaluate, **changes)
    assert found.sentence == "On cube, “shipped” is better than “alone” (VOI 0.500 and 1.000 bits)."
    assert found.outcome == "not measured"
    evaluate["models"] += ["heavy"]
    put(tmp_path, "heavy/cube/scores", score_stats(0.4, 0.2, 0.05, 0.5))
    sentence = verdict_of(tmp_path, {}, evaluate=evaluate, **changes).sentence
    assert "“shipped” is the best of 3 networks, before “heavy” (VOI 0.500 and 0.600 bits)" in sentence
    unscored = verdict_of(tmp_path / "one", {"alone": GOOD["alone"]}, evaluate=evaluate, **changes).sentence
    assert "scores no distilled student" in unscored


def configured(folder):
    """Return the models of the configuration as it is written."""
    return configuration(folder).model_dump(mode="json", exclude_unset=True)["models"]


def test_what_nobody_knows_is_said(tmp_path):
    put(tmp_path, "fast/model", {"best_agreement_voi": 0.25})
    volumes = {name: {"raw": "a.zarr", "labels": "b.zarr"} for name in ("train", "tune")}
    evaluate = {"volumes": ["cube"], "models": ["fast"]}
    config = configuration(tmp_path, volumes=volumes | {"cube": {"raw": "a.zarr"}}, evaluate=evaluate)
    results = collect(config)
    assert unknown(results) == [
        "cube has no ground truth: it is segmented, and nobody knows how well.",
        "fast agrees with its teacher heavy up to a VOI of 0.250 bits on the validation crop of tune. That is an "
        "agreement, not an accuracy: faults of the teacher that it copies agree, too.",
    ]
    (verdict,) = verdicts(config, rows(results))
    assert verdict.sentence == "How good fast is on cube is not known: there is no ground truth."
    assert [node.key for node in nodes(results) if node.key.endswith(("sweep", "scores"))] == []


def test_a_small_volume_to_tune_on_is_said(tmp_path):
    for name, shape in (("large", [64, 64, 64]), ("small", [63, 200, 200])):
        put(tmp_path / name, "heavy/tune/sweep", {"tuned_on": shape, "narrowest": min(shape)})
        said = "\n".join(unknown(collect(configuration(tmp_path / name))))
        assert ("chosen on 63 × 200 × 200 voxels of tune, less than 64" in said) == (name == "small")
    fixed = configuration(tmp_path / "small", segment={"threshold": 0.5})
    assert unknown(collect(fixed)) == []


def test_notes_tell_what_makes_the_comparison_unfair(tmp_path):
    evaluate = {"volumes": ["tune"], "tune_on": "tune", "models": list(MODELS)}
    models = configuration(tmp_path).model_dump(mode="json")["models"]
    models["fast"]["train"]["steps"] = 9000
    for model in MODELS:
        put(tmp_path, f"{model}/tune/scores", score_stats(*GOOD[model], 0.5))
    config = configuration(tmp_path, evaluate=evaluate, models=models)
    notes = " ".join(verdicts(config, rows(collect(config)))[0].notes)
    assert "not trained alike: steps 9000 vs 1000" in notes


def test_the_headline_counts(tmp_path):
    evaluate = {"volumes": ["cube", "tune", "train"], "tune_on": "tune", "models": list(MODELS)}
    for model in MODELS:
        put(tmp_path, f"{model}/tune/scores", score_stats(*GOOD["alone"], 0.5))
    verdict_of(tmp_path, GOOD)
    config = configuration(tmp_path, evaluate=evaluate)
    found = verdicts(config, rows(collect(config)))
    assert [v.outcome for v in found] == ["better", "not better", "not measured"]
    assert "in 1 of 2 comparisons; 1 more are not measured" in headline(found)


def test_a_part_of_the_results_is_reported(tmp_path):
    put(tmp_path, "heavy/model", {"parameters": 1_000_000})
    report.run(ReportTask(config=configuration(tmp_path), out=tmp_path / "report.html"))
    page = Page((tmp_path / "report.html").read_text())
    assert page.cells["heavy", "cube", "parameters"] == "1,000,000 100 %"
    assert page.cells["fast", "cube", "voi"] == "not measured"
    assert "not measured" in page.texts["verdict"]
    assert "no sweep has run" in page.texts["sweeps"]


def test_other_machines_are_not_compared(tmp_path):
    for model, device in (("heavy", "cuda"), ("fast", "cpu")):
        put(tmp_path, f"{model}/cube/affinities", {"mvox_per_s": 1.0, "device": device, "workers": 1})
    table = rows(collect(configuration(tmp_path)))
    assert [row.time_percent for row in table[:3]] == [100.0, None, None]


def test_no_results_at_all(tmp_path):
    with pytest.raises(MissingError, match="run the workflow first, `kdseg run"):
        report.run(ReportTask(config=configuration(tmp_path / "nothing"), out=tmp_path / "report.html"))
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    put(tmp_path, "heavy/model")
    out = tmp_path / "page"
    (out / "report.html").mkdir(parents=True)
    with pytest.raises(UnreadableError, match=r"cannot write .*report\.html"):
        report.run(ReportTask(config=configuration(tmp_path), out=out / "report.html"))
    assert not [path for path in out.iterdir() if path.suffix == ".part"]


@pytest.mark.parametrize("text", ["step,total\n1,abc\n", "step,other\n1,2\n"])
def test_a_damaged_curve_is_named(tmp_path, text):
    put(tmp_path, "heavy/model")
    path = tmp_path / "heavy" / "model.training" / "curve.csv"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(UnreadableError, match=r"curve\.csv"):
        collect(configuration(tmp_path))


def test_the_graph_follows_the_configuration(run):
    config = configuration(run)
    found = {node.key: node for node in nodes(collect(config))}
    assert set(found["fast/model"].inputs) == {"volumes/train", "volumes/tune", "heavy/model"}
    assert set(found["fast/cube/affinities"].inputs) == {"fast/model", "volumes/cube"}
    assert set(found["fast/cube/segmentation"].inputs) == {"fast/cube/agglomeration", "fast/tune/sweep"}
    assert found["baseline/cube/scores"].inputs == ("volumes/cube/baseline",)
    assert "fast/tune/scores" not in found
    assert len([key for key in found if key.startswith("fast/cube/")]) == len(STAGES)
    made_before = all(
        found[name].column < node.column for node in found.values() for name in node.inputs if name in found
    )
    assert made_before
    places = [(node.column, round(node.y)) for node in found.values()]
    assert len(set(places)) == len(places)


def test_fused_fragments_come_from_the_network(run):
    found = {node.key: node for node in nodes(collect(configuration(run, predict={"fused": True})))}
    assert set(found["fast/cube/fragments"].inputs) == {"fast/model", "volumes/cube"}
    assert found["fast/cube/fragments"].caption == "cube"
    assert not [key for key in found if key.endswith("affinities")]


def test_the_graph_has_no_sweep_edge_for_a_fixed_threshold(run):
    found = {node.key: node for node in nodes(collect(configuration(run, segment={"threshold": 0.5})))}
    assert found["fast/cube/segmentation"].inputs == ("fast/cube/agglomeration",)


def test_closure_and_compare():
    assert closure(1.0, 0.7, 0.5) == pytest.approx(0.6)
    assert closure(1.0, 0.7, 1.0) is None
    good, bad = Row("a", "teacher", "v", voi=1.0, arand=0.1), Row("b", "teacher", "v", voi=2.0, arand=0.2)
    assert compare(good, bad) == "better"
    assert compare(bad, good) == "not better"


images = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9))


@settings(deadline=None, max_examples=30)
@given(images, st.booleans())
def test_png_is_read_back(image, indexed):
    from PIL import Image

    colours = np.random.default_rng(0).integers(0, 256, (256, 4)).astype(np.uint8)
    with Image.open(io.BytesIO(png(image, colours if indexed else None))) as read:
        found = np.asarray(read.convert("RGBA") if indexed else read)
    np.testing.assert_array_equal(found, colours[image] if indexed else image)


ids = hnp.arrays(np.uint64, (5, 6), elements=st.integers(0, 5))


@settings(deadline=None, max_examples=50)
@given(ids, ids)
def test_colour_keys_follow_their_definition(segments, labels):
    known, keys = colour_keys([segments[:2], segments[2:]], [labels[:2], labels[2:]])
    overlap = {
        (s, t): int(((segments == s) & (labels == t)).sum())
        for s in set(segments.ravel().tolist()) - {0}
        for t in set(labels.ravel().tolist()) - {0}
    }
    matched = {s: int(key) for s, key in zip(known.tolist(), keys.tolist(), strict=True) if key < 2**63}
    assert set(known.tolist()) == set(segments.ravel().tolist()) - {0}
    assert len(set(keys.tolist())) == len(keys)
    for s, t in matched.items():
        assert overlap[s, t] == max(overlap[s, u] for _, u in overlap if (s, u) in overlap) > 0
    for s in set(known.tolist()) - set(matched):
        assert int(keys[known.tolist().index(s)]) == s | 2**63
        best = max((overlap[k] for k in overlap if k[0] == s), default=0)
        wanted = {t for (a, t), n in overlap.items() if a == s and n == best}
        # a segment without an object has nothing below it, or lost its object to a larger overlap
        rivals = [overlap[a, b] for a, b in matched.items() if b in wanted]
        assert best == 0 or max(rivals) >= best


def test_a_right_segment_has_its_object_s_colour():
    labels = np.repeat(np.array([[1, 1, 1, 2, 2, 3]], np.uint64), 4, axis=0)
    segments = np.array([[70, 70, 71, 8, 8, 8]] * 4, np.uint64)
    known, keys = colour_keys([segments], [labels])
    truth, ours = colour_numbers(labels), colour_numbers(segments, known, keys)
    same = (truth == ours)[0].tolist()
    assert same == [True, True, False, True, True, False]
    assert not ours[:, :0].any()
    assert colour_numbers(np.zeros((2, 2), np.uint64), known, keys).max() == 0
    assert ours.max() < CONTOUR
    assert palette()[0, 3] == 0


@settings(deadline=None, max_examples=30)
@given(ids)
def test_contours_follow_their_definition(image):
    found = contours(image)
    for (y, x), value in np.ndenumerate(image):
        right = x + 1 < image.shape[1] and image[y, x + 1] != value
        below = y + 1 < image.shape[0] and image[y + 1, x] != value
        assert found[y, x] == (right or below)


def test_long_curves_are_thinned():
    assert thin([(float(k), 2.0 * k) for k in range(1000)], 10)[0] == (49.5, 99.0)
    assert len(thin([(0.0, 0.0)] * 1001, 10)) <= 10
    assert thin([(1.0, None), (2.0, 4.0), (3.0, None), (4.0, None)], 2) == ((1.5, 4.0), (3.5, None))


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.0, 3, "0"),
        (12345.6, 3, "12,346"),
        (0.012, 3, "0.0120"),
        (5.0, 2, "5.0"),
        (99.99, 3, "100.0"),
        (-2.5, 2, "-2.5"),
    ],
)
def test_significant(value, digits, text):
    assert significant(value, digits) == text


def test_pictures_are_pngs(run):
    for section in sections(collect(configuration(run))):
        for _, pictures in section.columns:
            for picture in pictures:
                if picture.image:
                    assert base64.b64decode(picture.image.split(",")[1]).startswith(b"\x89PNG")
