"""Which method is worth it: derived trials, scores, means and spreads over seeds, the page, the workflow."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from pipeline import VOXEL_SIZE, store
from report_page import Page as _Page
from toy_volumes import cells as toy_cells
from workflow import ROOT, snakemake

from kdseg.config import FragmentsOptions, TrialOptions, validate
from kdseg.config.compare import ALONE, choice, rate_trials, trial_name
from kdseg.config.networks import HeadOptions, UNetOptions
from kdseg.config.segmentation import VALIDATED, WatershedOptions
from kdseg.config.tasks import ChooseTask, CompareTask, TrialTask, VolumeInputs
from kdseg.errors import ConfigError, MissingError
from kdseg.networks.checkpoint import LoadedModel, load_model, save_model
from kdseg.networks.models import build
from kdseg.report import compare_stage as compare
from kdseg.report.comparison import Spread, collect, gain, spread
from kdseg.report.comparison_notes import notes
from kdseg.report.comparison_page import figures
from kdseg.report.comparison_table import cells, plus_minus, sentence, table_csv, table_text, trials_csv
from kdseg.report.figures import standalone
from kdseg.results.claims import claim
from kdseg.results.curve import Curve, seconds_per_step
from kdseg.results.manifests import file_fingerprint, read
from kdseg.training import choose, trial
from kdseg.training.sampling.source import Source
from kdseg.training.validation import sweep, validation_crop

KD = {"terms": [{"name": "soft_affinity", "balanced": False}]}
SCORES = {
    "teacher": {0: (0.5, 0.10)},
    "alone": {0: (1.0, 0.30), 1: (1.2, 0.32), 2: (1.1, 0.34)},
    "kd": {0: (0.9, 0.29), 1: (0.8, 0.32), 2: (1.15, 0.30)},
    "good": {0: (0.7, 0.2), 1: (0.8, 0.2), 2: (0.6, 0.2)},
}
"""VOI and ARAND by model and seed. Gap in VOI: 1.1 − 0.5."""


@pytest.fixture
def values():
    found = yaml.safe_load((ROOT / "config" / "test.yaml").read_text())
    found["compare"] = {"student": "student", "seeds": [0, 1, 2], "methods": {"kd": KD, "good": KD}}
    return found


def put(folder, name, voi, arand, **training):
    facts = {"seconds_per_step": 0.1, "peak_mb": 900.0, "device": "cpu", **training}
    with claim(Path(folder) / name / "trial.json", "trial", {"name": name}, {}) as held:
        scores = {"voi": voi, "voi_split": voi / 4, "voi_merge": 3 * voi / 4, "arand": arand, "threshold": 0.5}
        scores["affinity_loss"] = arand / 2
        held.stats.update(scores={"tune": scores}, training=facts)


def comparison(folder, values, scores=SCORES, **training):
    for method, found in scores.items():
        for seed, (voi, arand) in found.items():
            name = method if method == "teacher" else trial_name(method, seed)
            put(folder, name, voi, arand, **training.get(method, {}))
    return collect(validate({**values, "results": str(folder)}))


class Page(_Page):
    """The cells of the table by method."""

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        if "data-method" in (found := dict(attrs)):
            self.rows.append((found["data-method"],))


def test_trials_differ_in_terms_heads_and_seed_only(values):
    values["models"]["student"]["train"]["batch"] = 3
    heads = {"heads": {"embedding": 4}, "terms": [{"name": "embedding"}, {"name": "graph_relation", "taps": [0]}]}
    values["compare"]["methods"] = {"kd": KD, "grd": heads}
    config = validate(values)
    base = config.models["student"]
    assert list(config.trials) == [f"{m}.seed{s}" for m in (ALONE, "kd", "grd") for s in (0, 1, 2)]
    for name, made in config.trials.items():
        method, _, seed = name.partition(".seed")
        free = {"train": {"seed", "terms", "teacher", "unlabelled"}, "heads": True}
        assert made.model_dump(exclude=free) == base.model_dump(exclude=free)
        assert made.train.seed == int(seed)
        assert next(t.name for t in made.train.terms if not t.from_teacher) == "affinity"
        assert (made.train.teachers, made.train.unlabelled) == (
            ((), ()) if method == ALONE else (("teacher",), ("train",))
        )
    assert [t.name for t in config.trials["alone.seed1"].train.terms] == ["affinity"]
    # the student's own distillation term gives way to the method's
    assert [t.name for t in config.trials["kd.seed1"].train.terms] == ["affinity", "soft_affinity"]
    assert config.trials["kd.seed1"].train.terms[1].balanced is False
    assert config.trials["grd.seed2"].heads.embedding == 4
    assert list(config.all_models) == [*config.models, *config.trials]
    assert config.trial.volumes == ("tune",)


def test_a_method_asks_the_teacher_in_its_own_way(values):
    values["compare"]["methods"] = {"kd": {**KD, "teaching": {"outputs": "stored", "average": "flips"}}, "good": KD}
    config = validate(values)
    asked = {name: (made.train.teaching.outputs, made.train.teaching.average) for name, made in config.trials.items()}
    assert asked["kd.seed1"] == ("stored", "flips")
    assert asked["good.seed1"] == asked["alone.seed1"] == ("online", "none")


def test_each_method_is_tried_at_each_rate(values):
    values["compare"] |= {"learning_rates": [0.003, 1e-05], "rate_seeds": 2, "methods": {"kd": KD}}
    config = validate(values)
    assert len(config.trials) == 2 * 2 * 3
    for (name, made), (method, rate, seed) in zip(
        config.trials.items(),
        ((m, r, s) for m in (ALONE, "kd") for r in (0.003, 1e-05) for s in (0, 1, 2)),
        strict=True,
    ):
        assert name == trial_name(method, seed, rate)
        assert (made.train.learning_rate, made.train.seed) == (rate, seed)
    assert rate_trials(config.compare, "kd") == {
        0.003: ("kd.rate0.003.seed0", "kd.rate0.003.seed1"),
        1e-05: ("kd.rate1e-05.seed0", "kd.rate1e-05.seed1"),
    }


def methods(**found):
    return lambda values: values["compare"].update(methods=found)


MISTAKES = {
    "unknown student": (lambda v: v["compare"].update(student="x"), r"compare\.student names the model 'x'"),
    "no teacher": (lambda v: v["compare"].update(student="teacher"), r"'teacher', which learns from no teacher"),
    "alone": (methods(alone=KD), r"'alone' is made by itself"),
    "dot": (methods(**{"a.b": KD}), r"compare\.methods\.a\.b"),
    "no method": (methods(), r"at least 1 item"),
    "controls only": (methods(a={"terms": [{"name": "lsd"}], "heads": {"lsd": True}}), r"no method of \['a'\]"),
    "no head": (methods(kd=KD, a={"terms": [{"name": "graph_relation"}]}), r"compare\.methods\.a: .*heads\.embedding"),
    "teacher without the head": (
        methods(a={"heads": {"embedding": 4}, "terms": [{"name": "embedding"}, {"name": "graph_relation"}]}),
        r"a\.seed0: .*teachers \['teacher'\] have none",
    ),
    "term of the base": (methods(a={"terms": [{"name": "affinity"}, *KD["terms"]]}), r"methods\.a: .*given once"),
    "seeds": (lambda v: v["compare"].update(seeds=[1, 1]), r"each seed may be given once"),
    "rates": (lambda v: v["compare"].update(learning_rates=[0.1, 0.1]), r"each learning rate may be given once"),
    "rate seeds": (lambda v: v["compare"].update(rate_seeds=4), r"at most the number of seeds, 3, got 4"),
    "volume": (lambda v: v["compare"].update(volumes=["nowhere"]), r"compare\.volumes names the volume 'nowhere'"),
    "nothing to train alone": (
        lambda v: v["models"]["student"]["train"].update(terms=KD["terms"]),
        r"no term on ground truth",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told(values, mistake):
    change, message = MISTAKES[mistake]
    validate(values)
    change(values)
    with pytest.raises(ConfigError, match=message):
        validate(values)


def test_spread_is_the_sample_standard_deviation():
    assert spread([]) is None
    assert spread([2.0]).sd is None
    found = spread([1.0, 2.0, 4.0])
    assert found.mean == pytest.approx(7 / 3)
    assert found.sd == pytest.approx(np.std([1, 2, 4], ddof=1))


def test_a_zero_has_no_minus():
    assert plus_minus(Spread(-0.001, 0.25, 3), 0, 100) == "0 ± 25"
    assert plus_minus(Spread(-0.02, None, 1), 0, 100) == "−2"


def test_a_gain_is_paired_by_seed_over_the_gap_of_the_means():
    found = gain({0: 0.9, 1: 0.8, 2: 1.1}, {0: 1.0, 1: 1.2, 2: 1.1, 7: 1.5}, 0.5)
    gap = np.mean([1.0, 1.2, 1.1, 1.5]) - 0.5
    closures = np.array([0.1, 0.4, 0.0]) / gap
    assert found.closure.mean == pytest.approx(closures.mean())
    assert found.closure.sd == pytest.approx(closures.std(ddof=1))
    assert found.difference.mean == pytest.approx(-0.5 / 3)
    # Student's t for two degrees of freedom, 97.5 %: 4.3027
    assert found.interval == pytest.approx(4.302653 * np.std([0.1, 0.4, 0.0], ddof=1) / 3**0.5, rel=1e-6)
    assert (found.wins, found.ties, found.difference.count) == (2, 1, 3)


def test_without_a_better_teacher_there_is_no_gap():
    ours, alone = {0: 0.9, 1: 0.8}, {0: 1.0, 1: 1.2}
    for teacher in (1.1, 1.3):
        assert gain(ours, alone, teacher).closure is None
        assert gain(ours, alone, teacher).teacher_known
    assert gain(ours, alone, None).closure is None
    assert not gain(ours, alone, None).teacher_known
    assert gain({0: 0.9}, {1: 1.0}, 0.5) is None
    one = gain({0: 0.9}, alone, 0.6)
    assert (one.closure.mean, one.closure.sd, one.interval) == (pytest.approx(0.2), None, None)


def test_the_table(tmp_path, values):
    found = comparison(tmp_path, values, kd={"seconds_per_step": 0.15, "peak_mb": 1000.0})
    assert [entry.name for entry in found.entries] == ["teacher", "alone", "good", "kd"]
    kd = cells(found.entries[3])
    assert kd["voi"] == "0.950 ± 0.180"
    assert kd["arand"] == "0.303 ± 0.015"
    # (0.1 + 0.4 − 0.05) / 3 / 0.6
    assert kd["voi_closure"] == "25 ± 38"
    assert kd["voi_wins"] == "2 of 3"
    assert kd["arand_wins"] == kd["affinity_loss_wins"] == "2 of 3, 1 equal"
    assert kd["affinity_loss"] == "0.152 ± 0.008"
    assert kd["affinity_loss_closure"] == kd["arand_closure"]
    assert kd["affinity_loss_difference"] == "−0.008 ± 0.026"
    assert kd["voi_difference"].startswith("−0.150 ± ")
    assert (kd["time"], kd["memory"], kd["seeds"]) == ("150.0 (1.50×)", "1,000", "3 of 3")
    assert cells(found.entries[1])["time"] == "100.0"
    assert cells(found.entries[0])["voi"] == "0.500"
    text = sentence(found, "tune")
    assert "“good” has the least mean VOI of 2 methods: 0.700 ± 0.100 bits, the student alone 1.100 ± 0.100" in text
    assert "better in 3 of 3 seeds and closes 67 ± 17 % of the gap to the teacher “teacher” (0.500 bits)" in text
    assert "In VOI, 1 of 2 methods beat the student alone with every seed; better with 95 % confidence: " in text
    assert text.endswith("in VOI “good”, in affinity loss “good”.")
    lines = table_text(found, "tune").splitlines()
    assert len(lines) == 5
    assert lines[4].startswith("kd ")


def test_no_gap_is_said(tmp_path, values):
    found = comparison(tmp_path, values, SCORES | {"teacher": {0: (1.3, 0.10)}})
    good = cells(found.entries[2])
    assert good["voi_closure"] == "no gap"
    assert good["arand_closure"] == "55 ± 9"
    assert "is itself NOT better than the student alone: there is no gap" in sentence(found, "tune")


def test_trials_that_had_not_equal_time_are_named(tmp_path, values):
    train = values["models"]["student"]["train"]
    values["models"]["student"]["train"] = {k: v for k, v in train.items() if k != "steps"} | {"seconds": 60}
    values["compare"]["methods"]["kd"] = {**KD, "teaching": {"outputs": "stored"}}
    for seed, steps in enumerate((100, 111)):
        put(tmp_path, trial_name("kd", seed), 1.0, 0.3, steps=steps)
    scores = {name: found for name, found in SCORES.items() if name != "kd"}
    found = comparison(tmp_path, values, scores, good={"steps": 90}, alone={"steps": 1000})
    _, alone, good, kd = (cells(entry) for entry in found.entries)
    assert (alone["steps"], good["steps"], kd["steps"]) == ("1,000", "90", "100 to 111")
    text = "\n".join(notes(found))
    assert "kd: the steps that fitted into 60 s differ by more than a tenth between seeds" in text
    assert "What stored teachers predicted, once for all trials, is not in the 60 s." in text
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(table_csv(found)))}
    assert (rows["kd"]["steps_least"], rows["kd"]["steps_most"]) == ("100", "111")
    each = [(row["method"], row["seed"], row["steps"]) for row in csv.DictReader(io.StringIO(trials_csv(found)))]
    assert ("kd", "1", "111") in each
    even = comparison(tmp_path / "even", values, SCORES, kd={"steps": 100})
    assert "differ by more" not in "\n".join(notes(even))


def test_harm_is_said(tmp_path, values):
    worse = {seed: (voi + 0.3, arand + 0.1) for seed, (voi, arand) in SCORES["alone"].items()}
    found = comparison(tmp_path, values, SCORES | {"kd": worse, "good": worse})
    assert "NO method is better than the student alone" in sentence(found, "tune")
    assert cells(found.entries[2])["voi_closure"] == "−50 ± 0"
    # equal means keep the order of the configuration
    assert [entry.name for entry in found.entries[2:]] == ["kd", "good"]


def test_what_is_missing_is_not_measured(tmp_path, values):
    scores = {k: dict(v) for k, v in SCORES.items()}
    del scores["good"][1], scores["teacher"]
    scores["kd"] = {}
    found = comparison(tmp_path, values, scores)
    _, alone, good, kd = (cells(entry) for entry in found.entries)
    assert good["seeds"] == "2 of 3"
    assert good["voi_wins"] == "2 of 2"
    assert good["voi_closure"] == "not measured"
    assert kd["voi"] == kd["voi_wins"] == kd["time"] == kd["memory"] == kd["voi_difference"] == "not measured"
    assert alone["voi"] == "1.100 ± 0.100"
    assert any("Not measured: teacher, kd.seed0, kd.seed1, kd.seed2, good.seed1." in note for note in notes(found))
    assert "0 of 1 method beat" in sentence(found, "tune")
    assert "1 method not measured" in sentence(found, "tune")
    assert "not measured" in table_text(found, "tune")
    with pytest.raises(MissingError, match=r"kdseg run .* compare"):
        collect(validate({**values, "results": str(tmp_path / "nowhere")}))


def choose_rate(folder, method, losses):
    """Choose by the losses on the tuning volume, a list by rate: one per seed."""
    trials = {}
    for rate, values in losses.items():
        trials[rate] = []
        for seed, loss in enumerate(values):
            manifest = Path(folder) / trial_name(method, seed, rate) / "trial.json"
            with claim(manifest, "trial", {"loss": loss}, {}) as held:
                held.stats.update(tuned={"affinity_loss": loss}, scores={"tune": {"voi": rate}})
            trials[rate].append(manifest)
    manifest = Path(folder) / choice(method)
    choose.run(ChooseTask(manifest=manifest, trials=trials))
    return read(manifest).stats


def test_the_rate_of_least_mean_loss_is_chosen(tmp_path, values):
    found = choose_rate(tmp_path, "kd", {0.1: [0.5, 0.3], 0.2: [0.31, 0.47], 0.3: [0.29, 0.6]})
    assert found["learning_rate"] == 0.2
    assert [one["mean"] for one in found["tried"]] == pytest.approx([0.4, 0.39, 0.445])
    assert found["tried"][1]["losses"] == [0.31, 0.47]
    equal = choose_rate(tmp_path / "equal", "kd", {0.4: [0.5], 0.1: [0.5]})
    assert equal["learning_rate"] == 0.4
    # a rate more is no other question
    trials = {rate: [tmp_path / f"kd.rate{rate}.seed0" / "trial.json"] for rate in (0.1, 0.3)}
    choose.run(ChooseTask(manifest=tmp_path / choice("kd"), trials=trials))
    assert read(tmp_path / choice("kd")).stats["learning_rate"] == 0.3


def test_each_method_is_reported_at_its_own_rate(tmp_path, values):
    values["compare"] |= {"learning_rates": [0.1, 0.2, 0.4], "methods": {"kd": KD, "good": KD}}
    config = validate({**values, "results": str(tmp_path)})
    choose_rate(tmp_path, "alone", {0.1: [0.4], 0.2: [0.3], 0.4: [0.5]})
    choose_rate(tmp_path, "kd", {0.1: [0.31], 0.2: [0.32], 0.4: [0.33]})
    put(tmp_path, trial_name("kd", 1, 0.1), 0.3, 0.2)
    put(tmp_path, trial_name("kd", 1, 0.2), 9.0, 9.0)  # of another rate: not compared
    found = collect(config)
    alone, kd, good = (cells(entry) for entry in found.entries[1:])
    assert (alone["rate"], kd["rate"], good["rate"]) == ("0.2", "0.1", "not measured")
    assert (alone["voi"], kd["voi"]) == ("0.200", "0.200 ± 0.141")
    assert (kd["seeds"], good["seeds"]) == ("2 of 3", "0 of 3")
    text = "\n".join(notes(found))
    assert "kd: the learning rate is the lowest or the highest" in text
    assert "kd.rate0.1.seed2, good.seed0" in text
    compare.run(CompareTask(config=config, out=tmp_path / "compare.html"))
    lines = (tmp_path / "compare.txt").read_text().splitlines()
    for row in (["kd", "[0.3100]", "0.3200", "0.3300"], ["alone", "0.4000", "[0.3000]", "0.5000"]):
        assert row in [line.split() for line in lines]
    assert any("of 0.1, 0.2, 0.4, the one of least affinity loss on “tune” with the seeds 0." in line for line in lines)
    html = (tmp_path / "compare.html").read_text()
    assert '<th scope="row" class="text">kd</th><td>[0.3100]</td>' in html
    assert json.loads((tmp_path / "compare.json").read_text())["learning_rates"]["alone"]["learning_rate"] == 0.2
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO((tmp_path / "compare.csv").read_text()))}
    assert rows["kd"]["learning_rate"] == "0.1"


def test_a_doubtful_comparison_is_marked(tmp_path, values):
    values["compare"]["seeds"] = [0, 1]
    values["compare"]["methods"]["heads"] = {"heads": {"lsd": True}, "terms": [{"name": "lsd"}, *KD["terms"]]}
    near = SCORES | {"teacher": {0: (1.05, 0.10)}}
    text = "\n".join(notes(comparison(tmp_path, values, near, kd={"device": "cuda"})))
    for part in (
        "Fewer than 3 seeds",
        "owes a part of its lead to chance",
        "the thresholds are chosen there",
        "50 % of their",
    ):
        assert part in text
    assert "heads: other heads" in text
    assert "different devices" in text
    assert "the gap in VOI, 0.050 bits, is small" in text


def test_the_files_hold_the_same(tmp_path, values):
    comparison(tmp_path, values)
    values = {**values, "results": str(tmp_path), "title": "Mouse <cube> & more"}
    compare.run(CompareTask(config=validate(values), out=tmp_path / "compare.html"))
    html = (tmp_path / "compare.html").read_text()
    page = Page(html)
    assert not page.links
    assert "Mouse &lt;cube&gt; &amp; more" in html
    assert page.cells["kd", "voi_closure"] == "25 ± 38"
    assert page.cells["teacher", "voi"] == "0.500"
    assert "for 12 steps of 2 crops of 32 × 32 × 32 voxels (65,536 voxels per step)" in page.texts["budget"]
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO((tmp_path / "compare.csv").read_text()))}
    assert float(rows["kd"]["voi_closure_mean"]) == pytest.approx(0.25)
    assert rows["teacher"]["voi_closure_mean"] == ""
    trials = list(csv.DictReader(io.StringIO((tmp_path / "compare_trials.csv").read_text())))
    assert len(trials) == 10
    assert {(t["method"], t["seed"], t["voi"]) for t in trials} >= {("kd", "1", "0.8"), ("teacher", "0", "0.5")}
    found = json.loads((tmp_path / "compare.json").read_text())
    assert {row["name"] for row in found["rows"]} == set(rows)
    assert "“good” has the least mean VOI" in (tmp_path / "compare.txt").read_text()
    drawing = ElementTree.fromstring((tmp_path / "compare.svg").read_text())
    texts = ["".join(text.itertext()) for text in drawing.findall(".//{*}text")]
    for title in ("VOI on tune [bits]", "ARAND on tune", "affinity loss on tune [nat]"):
        assert f"{title}: less is better" in texts
    assert len(page.specs) == 3
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]


def test_a_chart_places_dots_means_rules_and_what_is_missing(tmp_path, values):
    found = comparison(tmp_path, values, SCORES | {"good": {}}, kd={"seconds_per_step": 0.15})
    figure, _, _ = figures(found, "tune")
    assert figure.description.endswith("Means: kd 0.950; alone 1.100.")
    assert [(r["method"], r["seed"], r["value"]) for r in figure.rows if r["role"] == "distilled"] == [
        ("kd", 0, 0.9), ("kd", 1, 0.8), ("kd", 2, 1.15)
    ]  # fmt: skip
    drawing = ElementTree.fromstring(standalone([figure.chart]))
    texts = ["".join(text.itertext()) for text in drawing.findall(".//{*}text")]
    for text in ("kd", "1.50× time", "1× time", "not measured", "teacher 0.500", "alone, mean 1.100"):
        assert text in texts
    dots = [x for x, _ in places(drawing, "symbol")]
    assert len(dots) == 6 + 2  # with those of the legend
    means = dict(places(drawing, "rect"))
    rules = [x for x, _ in places(drawing, "rule")]
    assert len(means) == 2
    assert sum(dots[:3]) / 3 == pytest.approx(min(means) + 1, abs=0.1)  # a tick is 2 wide
    assert rules[0] < min(dots[:6])
    assert rules[1] == pytest.approx(sum(dots[3:6]) / 3, abs=0.1)


def places(drawing, kind):
    """Return the (x, y) of the marks of one kind, in their order."""
    groups = [g for g in drawing.findall(".//{*}g") if f"mark-{kind} role-mark" in g.get("class", "")]
    groups += [g for g in drawing.findall(".//{*}g") if f"mark-{kind} role-legend-symbol" in g.get("class", "")]
    marks = [mark for g in groups for mark in (*g.findall(".//{*}path"), *g.findall(".//{*}line"))]
    found = [mark.get("transform") or mark.get("d") for mark in marks]
    return [tuple(map(float, re.match(r"(?:translate\(|M)([-\d.]+),([-\d.]+)", text).groups())) for text in found]


@pytest.mark.parametrize("score", ["voi", "agreement_voi"])
def test_time_per_step_leaves_out_warming_up_and_validation(tmp_path, score):
    path = tmp_path / "curve.csv"
    seconds = 20000.0
    with Curve(path, ["step", "total", score, "seconds"], keep=0) as curve:
        for step in range(1, 31):
            validating = step % 2 == 0
            seconds += 5.0 if step <= 10 else 9.0 if validating else 0.021 if step % 4 == 1 else 0.023
            curve.append({"step": step, "total": 0.5, "seconds": seconds} | ({score: 1.0} if validating else {}))
    assert seconds_per_step(path) == pytest.approx(0.022, abs=0.0015)
    assert seconds_per_step(path, skip=30) is None
    assert seconds_per_step(tmp_path / "none.csv") is None


def small_model(manifest):
    """Weights of a network with random ones, so that volumes differ in the threshold that suits them."""
    torch.manual_seed(8)
    network, offsets = UNetOptions(widths=(2, 2)), ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
    built = build(network, HeadOptions(), offsets)
    built(torch.randn(2, 1, 16, 16, 16))  # running statistics
    with claim(manifest, "train", {}, {}) as held:
        save_model(held.model, LoadedModel(built, network, HeadOptions(), offsets, VOXEL_SIZE))
        held.stats["weights"] = file_fingerprint(held.model)
        held.stats["parameters"] = 7
    return manifest


def test_the_threshold_comes_from_the_tuning_volume_alone(tmp_path):
    volumes, crops = {}, {}
    for seed, name in enumerate(("tune", "test")):
        arrays = zip(("raw", "labels"), toy_cells((24, 24, 24), 6 + 6 * seed, seed), strict=True)
        raw, labels = (store(tmp_path / name / f"{kind}.json", array) for kind, array in arrays)
        volumes[name] = VolumeInputs(raw=raw, labels=labels)
        crops[name] = validation_crop(Source(name, read(raw).result, read(labels).result), (16, 16, 16))
    model = small_model(tmp_path / "kd.seed0" / "model.json")
    fragments = FragmentsOptions(watershed=WatershedOptions(seeds="maxima", seed_distance=2))
    # as the oracle below; `auto` is bfloat16 where the CPU computes it natively
    options = TrialOptions(tune_on="tune", volumes=("test",), shape=(16, 16, 16), precision="float32")
    trial.run(
        TrialTask(
            model=model,
            manifest=model.with_name("trial.json"),
            options=options,
            volumes=volumes,
            fragments=fragments,
            name="kd.seed0",
            device="cpu",
        )
    )
    stats = json.loads(model.with_name("trial.json").read_text())["stats"]

    cpu, loaded = torch.device("cpu"), load_model(read(model).result, torch.device("cpu"))
    tune, test = (
        sweep(loaded.network, crops[name], loaded.offsets, torch.float32, cpu, fragments.watershed)
        for name in ("tune", "test")
    )
    best = min(range(len(VALIDATED)), key=lambda k: tune[k].voi)
    assert test[best].voi > min(scored.voi for scored in test)  # another threshold suits it better
    assert (stats["model"], stats["threshold"]) == ("kd.seed0", VALIDATED[best])
    assert stats["tuned"] == tune[best]._asdict()
    assert stats["scores"] == {"test": test[best]._asdict()}
    assert stats["training"]["parameters"] == 7
    assert stats["training"]["seconds_per_step"] is None


def test_a_trial_needs_the_data_of_its_volumes(tmp_path):
    model = small_model(tmp_path / "kd.seed0" / "model.json")
    options = TrialOptions(tune_on="tune", volumes=("tune",), shape=(8, 8, 8))
    with pytest.raises(ConfigError, match=r"\['labels', 'raw'\] of the volume 'tune'"):
        trial.run(
            TrialTask(
                model=model,
                manifest=model.with_name("trial.json"),
                options=options,
                volumes={},
                fragments=FragmentsOptions(),
                name="kd.seed0",
                device="cpu",
            )
        )


@pytest.fixture
def compared(finished, tmp_path, values):
    """A real comparison of one method, one seed, with the teacher of a finished run."""
    folder, config = tmp_path / "copy", tmp_path / "config.yaml"
    shutil.copytree(finished[0], folder, symlinks=True)
    compare = {"student": "student", "seeds": [3], "shape": [16, 48, 48], "methods": {"kd": KD}}
    config.write_text(yaml.safe_dump({**values, "compare": compare}))
    return folder, config, snakemake(folder, config, "compare")


@pytest.mark.slow
def test_one_command_compares(compared):
    folder, config, printed = compared
    results = folder / "results" / "test"
    stats = {
        name: json.loads((results / name / "trial.json").read_text())["stats"]
        for name in ("teacher", "alone.seed3", "kd.seed3")
    }
    for name, found in stats.items():
        model = json.loads((results / name / "model.json").read_text())
        assert model["stats"]["peak_mb"] == found["training"]["peak_mb"]
        # tuned and scored on one volume: the least VOI of all thresholds
        assert found["scores"]["tune"] == found["tuned"]
        assert 0 < found["tuned"]["voi"] < 20
        assert found["training"]["seconds_per_step"] > 0
    teacher, alone, kd = (found["scores"]["tune"]["voi"] for found in stats.values())
    assert stats["alone.seed3"]["training"]["parameters"] == stats["kd.seed3"]["training"]["parameters"]
    rows = {r["method"]: r for r in csv.DictReader(io.StringIO((results / "compare.csv").read_text()))}
    assert [float(rows[name]["voi_mean"]) for name in ("teacher", "alone", "kd")] == [teacher, alone, kd]
    assert rows["kd"]["voi_sd"] == ""
    if alone > teacher:
        assert float(rows["kd"]["voi_closure_mean"]) == pytest.approx((alone - kd) / (alone - teacher))
    else:
        assert rows["kd"]["voi_closure_mean"] == ""
    assert (results / "compare.txt").read_text().splitlines()[0] in printed
    # what is there is not made again, and the report needs none of it
    assert "Nothing to be done" in snakemake(folder, config, "compare")
    assert "seed0" not in snakemake(folder, config, "--dry-run")


@pytest.mark.slow
def test_each_method_is_trained_at_its_own_rate(finished, tmp_path, values):
    folder, config = tmp_path / "copy", tmp_path / "config.yaml"
    shutil.copytree(finished[0], folder, symlinks=True)
    compare = {"student": "student", "seeds": [3, 4], "shape": [16, 48, 48], "methods": {"kd": KD}}
    config.write_text(yaml.safe_dump({**values, "compare": {**compare, "learning_rates": [1e-06, 0.02]}}))
    printed = snakemake(folder, config, "compare")
    results = folder / "results" / "test"
    for method in (ALONE, "kd"):
        found = read(results / choice(method)).stats
        best = min(found["tried"], key=lambda one: one["mean"])["learning_rate"]
        other = next(one["learning_rate"] for one in found["tried"] if one["learning_rate"] != best)
        assert found["learning_rate"] == best
        made = {path.name for path in results.glob(f"{method}.rate*.seed*")}
        # the trial that the choice needed is not made again, and no other of the rate that lost
        assert made == {f"{method}.rate{best}.seed3", f"{method}.rate{best}.seed4", f"{method}.rate{other}.seed3"}
        assert (results / f"{method}.rate{best}.seed4" / "trial.json").exists()
    assert "Each method is trained at its own learning rate" in printed
    assert "Nothing to be done" in snakemake(folder, config, "compare")


@pytest.mark.slow
def test_without_the_section_it_says_what_to_add(tmp_path, values):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({key: section for key, section in values.items() if key != "compare"}))
    text = snakemake(tmp_path, config, "compare", check=False)
    assert "no section `compare`: add one" in text
    assert "methods:" in text
