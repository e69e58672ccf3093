"""One YAML per dataset: valid examples, a schema in step with the code, one clear line per mistake."""

import re
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from workflow import ROOT

from kdseg.config import PredictOptions, load, schema, validate
from kdseg.config.tasks import PredictTask
from kdseg.config.teachers import AffinitiesTeacher, FileTeacher, ModuleTeacher, SegmentationTeacher
from kdseg.errors import ConfigError, MissingError, ShapeError
from kdseg.geometry import fits_or_covers
from kdseg.segmentation.agglomeration.tree import layout

EXAMPLES = sorted(path.name for path in (ROOT / "config").glob("*.yaml"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_shipped_configuration_is_valid(name):
    assert load(ROOT / "config" / name).models


def test_the_schema_for_editors_is_current():
    assert (ROOT / "config" / "schema.json").read_text() == schema(), "run: kdseg schema > config/schema.json"


@pytest.fixture
def values():
    return yaml.safe_load((ROOT / "config" / "test.yaml").read_text())


def change(path, value):
    def apply(values):
        *parents, last = path.split(".")
        for key in parents:
            values = values[int(key) if key.isdigit() else key]
        values[last] = value

    return apply


MISTAKES = {
    "a section that is a list": (change("predict", ["block"]), r"predict: expected options, `key: value` each"),
    "one number for three": (change("predict.tile", 32), r"predict\.tile: expected a list, .* \(got 32\)"),
    "typo": (change("predicct", {}), r"predicct: unknown key, did you mean predict\?$"),
    "typo in a model": (
        change("models.teacher.train.learnign_rate", 0.1),
        r"models\.teacher\.train\.learnign_rate: unknown key, did you mean learning_rate\? \(got 0\.1\)",
    ),
    "typo in a term": (
        change("models.teacher.train.terms", [{"name": "affinity", "wieght": 1}]),
        r"models\.teacher\.train\.terms\.0\.affinity\.wieght: unknown key, did you mean weight\?",
    ),
    "typo in a network": (
        change("models.teacher.network", {"kind": "unet", "witdhs": [4, 8]}),
        r"network\.unet\.witdhs: unknown key, did you mean widths\?",
    ),
    "key like no other": (change("predict.zzz", 1), r"predict\.zzz: unknown key \(got 1\)"),
    "typo in a section": (change("predict.tiles", [1, 1, 1]), r"predict\.tiles: unknown key.*got \[1, 1, 1\]"),
    "wrong type": (change("models.teacher.train.steps", "many"), r"models\.teacher\.train\.steps.*'many'"),
    "zero steps": (change("models.teacher.train.steps", 0), r"greater than or equal to 1"),
    "no source": (change("volumes.train", {}), r"volumes\.train: .*either `raw` .* or `phantom`"),
    "two sources": (change("volumes.train.raw", "a.h5"), r"not both"),
    "voxel size of a phantom": (change("volumes.train.voxel_size", [1, 1, 1]), r"brings its own"),
    "voxel size": (
        change("volumes.train", {"raw": "a.tif", "voxel_size": [10, 0, 10]}),
        r"volumes\.train\.voxel_size\.1.*greater than 0",
    ),
    "intensity": (change("volumes.train", {"raw": "a", "intensity": [5, 5]}), r"low < high"),
    "unknown volume": (change("evaluate.tune_on", "trane"), r"volume 'trane', but there are only \['train', 'tune'\]"),
    "unlabelled volume": (change("volumes.tune", {"raw": "a.tif"}), r"needs ground truth of the volume 'tune'"),
    "unknown teacher": (change("models.student.train.teacher", "master"), r"model 'master', but there are only"),
    "own teacher": (change("models.student.train.teacher", "student"), r"its own teacher"),
    "teacher without a term": (change("models.student.train.terms", [{"name": "affinity"}]), r"no term uses it"),
    "term without a teacher": (
        change("models.teacher.train.terms", [{"name": "soft_affinity"}]),
        r"\['soft_affinity'\] need a `teacher`",
    ),
    "unknown term": (change("models.teacher.train.terms", [{"name": "magic"}]), r"magic"),
    "block and shard": (change("predict.block", [32, 32, 48]), r"multiple of predict\.tile|multiple of storage\.shard"),
    "edges block and shard": (change("edges.block", [32, 32, 48]), r"edges\.block .*multiple of storage\.shard"),
    "chunk and shard": (change("storage.chunk", [15, 16, 16]), r"shard .* must be a multiple of chunk"),
    "thresholds": (change("agglomerate.thresholds", [0.5, 0.2]), r"must ascend"),
    "offsets": (change("offsets", [[0, 0, -1], [0, -1, 0], [-1, 0, 0]]), r"first three offsets"),
    "repeated offset": (change("offsets", [[-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, -1]]), r"must be distinct"),
    "name": (change("models.bad/name", {}), r"bad/name"),
    "reserved name": (change("models.volumes", {}), r"volumes"),
    "levels": (change("models.teacher.network.downsample", [[2, 2, 2]] * 4), r"2 widths need 1 downsample"),
    "even kernel": (change("models.teacher.network.kernels", [[3, 3, 3], [2, 3, 3]]), r"must be odd"),
    "results with a blank": (change("results", "my results"), r"results"),
    "fused without affinities for waterz": (
        lambda values: values.update(predict={"fused": True}, agglomerate={"engine": "waterz"}),
        r"waterz needs the affinities of the whole volume, which predict\.fused does not store: use the engine `exact`",
    ),
    "tuning on a volume without labels": (
        lambda values: values.update(
            volumes={**values["volumes"], "new": {"raw": "a.tif"}}, tune_segmentation={"regions": [{"volume": "new"}]}
        ),
        r"tune_segmentation\.regions needs ground truth of the volume 'new'",
    ),
    "tuning with a place but no extent": (
        change("tune_segmentation", {"regions": [{"volume": "tune", "offset": [0, 0, 0]}]}),
        r"offset but no shape",
    ),
    "tuning with a value twice": (
        change("tune_segmentation", {"regions": [{"volume": "tune"}], "dust": [5, 5]}),
        r"each value of dust may be given once",
    ),
    "tuning beyond the dendrogram": (
        change("tune_segmentation", {"regions": [{"volume": "tune"}], "thresholds": [0.5, 0.9]}),
        r"agglomerate\.thresholds, 0\.8",
    ),
    "tuning on too little": (
        change("tune_segmentation", {"regions": [{"volume": "tune", "shape": [9, 63, 200]}]}),
        r"has a part of 'tune' of \(9, 63, 200\) voxels, less than least_side 64",
    ),
    "a threshold that is fixed and searched": (
        lambda values: values.update(
            segment={"threshold": 0.5}, tune_segmentation={"regions": [{"volume": "tune"}], "apply": "own"}
        ),
        r"segment\.threshold 0\.5 and tune_segmentation\.apply 'own' both say the threshold",
    ),
    "tuning of quantiles that fused does not keep": (
        lambda values: values.update(
            predict={"fused": True}, tune_segmentation={"regions": [{"volume": "tune"}], "score": ["quantile50"]}
        ),
        r"remove it, or \['quantile50'\] from tune_segmentation\.score",
    ),
    "turn without a plane": (
        change("models.teacher.train.augment", {"turn": 1, "rotate": "none"}),
        r"planes of augment",
    ),
    "turn with a stored teacher": (
        lambda values: values["models"]["student"]["train"].update(
            augment={"turn": 0.5}, teaching={"outputs": "stored"}
        ),
        r"turned by any angle, stored affinities say nothing",
    ),
    "margin through a coarse voxel": (
        lambda values: values["models"]["student"]["train"].update(
            margin=[1, 2, 2], terms=[{"name": "affinity"}, {"name": "fitnets"}]
        ),
        r"margin \[1, 2, 2\] must be a multiple of the pooling",
    ),
    "nothing within the margin": (change("models.teacher.train.margin", [16, 0, 0]), r"nothing is left of a crop"),
    "gpus without cuda": (change("gpus", 2), r"needs `device: cuda`"),
    "device": (change("device", "tpu"), r"device"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line(values, mistake):
    apply, message = MISTAKES[mistake]
    validate(values)
    apply(values)
    with pytest.raises(ConfigError, match=message) as caught:
        validate(values)
    # Models share sections through YAML anchors: one line for each place that is wrong.
    assert all(re.match(r"\S+: \S", line) for line in str(caught.value).splitlines())


def test_a_misspelt_key_is_told_before_the_one_that_is_missing(values):
    values["evaluate"] = {("volums" if key == "volumes" else key): value for key, value in values["evaluate"].items()}
    with pytest.raises(ConfigError) as caught:
        validate(values)
    first, second = str(caught.value).splitlines()
    assert first.startswith("evaluate.volums: unknown key, did you mean volumes?")
    assert second == "evaluate.volumes: Field required"


LAB = {"affinities": {"train": "lab.zarr"}, "offsets": [[-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 9, 0]]}


def test_levels_of_terms_on_ground_truth_are_the_students_own(values):
    del values["compare"]
    student = values["models"]["student"]
    student["network"] = {"kind": "unet", "widths": [2, 4, 6]}
    terms = [{"name": "affinity"}, {"name": "soft_affinity"}, {"name": "deep_supervision", "levels": [2]}]
    student["train"] = {**student["train"], "terms": terms}
    assert len(validate(values).models["teacher"].network.widths) == 2
    student["train"]["terms"] = [{"name": "affinity"}, {"name": "fitnets", "level": 2}]
    with pytest.raises(ConfigError, match=r"'fitnets' looks at the levels \[2\], but 'teacher' has only 0 to 1"):
        validate(values)


@pytest.mark.parametrize("name", ["affinity", "dice"])
def test_validation_has_the_membrane_of_the_term_on_affinities(values, name):
    values["models"]["teacher"]["train"] |= {"terms": [{"name": name, "boundary": "none"}]}
    assert validate(values).models["teacher"].train.boundary == "none"


STORED = {"teacher": "lab", "teaching": {"outputs": "stored"}, "augment": {"elastic": 0, "misaligned_section": 0}}
FOREIGN = {
    "no model and no teacher": (lambda lab, train, values: train.update(teacher="bla"), r"model 'bla', but there are"),
    "name of both": (
        lambda lab, train, values: values["teachers"].update(teacher=lab),
        r"the names \['teacher'\] are given twice in `models`, `pretrained` and `teachers`",
    ),
    "online": (lambda lab, train, values: train.update(teaching={}), r"set `teaching\.outputs` to stored"),
    "volume": (
        lambda lab, train, values: lab.update(affinities={"tune": "lab.zarr"}),
        r"affinities of \['tune'\], but not of the volumes \['train'\] that it is asked",
    ),
    "offset": (
        lambda lab, train, values: lab.update(offsets=lab["offsets"][1:]),
        r"the teacher 'lab' has no channel for the offsets \[\[-1, 0, 0\]\]",
    ),
    "embedding": (
        lambda lab, train, values: train.update(terms=[*train["terms"], {"name": "cwd", "tap": "embedding"}]),
        r"gives affinities alone, but the terms \['cwd'\]",
    ),
    "segmentation among others": (
        lambda lab, train, values: (
            values["teachers"].update(lab={"segmentation": {"train": "s.zarr"}}),
            train.update(teacher=["lab", "teacher"]),
        ),
        r"'lab' is a segmentation, .* name it alone",
    ),
    "segmentation of another volume": (
        lambda lab, train, values: values["teachers"].update(lab={"segmentation": {"tune": "s.zarr"}}),
        r"has segmentation of \['tune'\], but not of the volumes \['train'\]",
    ),
    "segmentation of a phantom": (
        lambda lab, train, values: values["teachers"].update(lab={"segmentation": {"train": "s.zarr"}}),
        r"a segmentation of the volumes \['train'\], which are phantoms",
    ),
    "no place": (lambda lab, train, values: lab.pop("affinities"), r"one of `affinities`, `segmentation`, `file` and"),
    "stored network": (
        lambda lab, train, values: values["teachers"].update(lab={"file": "net.ts"}),
        r"is a network that is not stored: set `teaching\.outputs: online`",
    ),
    "border": (
        lambda lab, train, values: (
            values["teachers"].update(lab={"file": "net.ts", "halo": [1, 0, 0]}),
            train.update(teaching={"average": "flips"}),
        ),
        "cannot be averaged",
    ),
    "neurons": (
        lambda lab, train, values: train["teaching"].update(instances="segmentation"),
        r"a model of this configuration, or a segmentation, got 'lab'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", [None, *FOREIGN])
def test_teachers_from_elsewhere_are_named_beside_models(values, mistake):
    values["offsets"] = LAB["offsets"][:3]
    values["teachers"] = {"lab": {**LAB}}
    model = values["models"]["student"]
    train = model["train"] = {**model["train"], **STORED, "teaching": {"outputs": "stored"}}
    del values["compare"]
    if mistake is None:
        config = validate(values)
        assert config.own_teachers("student") == ()
        assert config.models["student"].train.teachers == ("lab",)
        return
    apply, message = FOREIGN[mistake]
    if mistake == "embedding":
        model["heads"] = {"embedding": 4}
    apply(values["teachers"]["lab"], train, values)
    with pytest.raises(ConfigError, match=message):
        validate(values)


def test_the_documented_teachers_are_valid(values):
    text = (ROOT / "docs" / "distillation.md").read_text()
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(teachers:.*?)```", text, re.DOTALL)]
    assert len(blocks) == 4
    kinds = {type(validate({**values, **block}).teachers["lab"]) for block in blocks}
    assert kinds == {AffinitiesTeacher, FileTeacher, ModuleTeacher, SegmentationTeacher}


def test_a_segmentation_gives_the_neurons_that_terms_ask_for(values):
    del values["compare"]
    values["volumes"]["bare"] = {"raw": "a.tif"}
    values["teachers"] = {"lab": {"segmentation": {"bare": "s.zarr"}}}
    terms = [{"name": "soft_affinity"}, {"name": "graph_relation", "taps": ["affinities"]}]
    change = {"volumes": ["bare"], "unlabelled": [], "validate_on": "bare", "teacher": "lab", "terms": terms}
    train = values["models"]["student"]["train"] = values["models"]["student"]["train"] | change
    train["teaching"] = {"outputs": "stored", "instances": "segmentation"}
    assert validate(values).taught_volumes("student") == ("bare",)
    train["teaching"] = {"outputs": "stored"}
    with pytest.raises(ConfigError, match="look at neurons, but no volume has labels"):
        validate(values)


def test_labels_are_needed_where_a_term_or_nobody_else_judges(values):
    values["volumes"]["bare"] = {"raw": "a.tif"}
    train = values["models"]["student"]["train"]
    del values["compare"]
    train["validate_on"] = "bare"  # the teacher judges
    validate(values)
    train["volumes"] = ["bare"]
    with pytest.raises(ConfigError, match=r"models\.student\.train needs ground truth of the volume 'bare'"):
        validate(values)
    train["terms"] = [{"name": "soft_affinity"}]
    assert validate(values).taught_volumes("student") == ("bare", "train")
    values["models"]["teacher"]["train"]["validate_on"] = "bare"
    with pytest.raises(ConfigError, match=r"models\.teacher\.train needs ground truth of the volume 'bare'"):
        validate(values)


def test_a_volume_without_labels_is_segmented_at_the_threshold_of_the_validation(values):
    del values["compare"]
    values["volumes"]["bare"] = {"raw": "a.tif"}
    values["evaluate"]["volumes"] = ["bare"]
    del values["evaluate"]["tune_on"]
    assert validate(values).evaluate.tuned == ()
    with pytest.raises(ConfigError, match="tune_roi is a part of the volume `tune_on`: name that, too"):
        validate({**values, "evaluate": {**values["evaluate"], "tune_roi": {"shape": [9, 9, 9]}}})
    compare = {"student": "student", "methods": {"kd": {"terms": [{"name": "soft_affinity"}]}}}
    with pytest.raises(ConfigError, match=r"name it as `evaluate\.tune_on`"):
        validate({**values, "compare": compare})
    values["evaluate"]["tune_on"] = "tune"
    with pytest.raises(ConfigError, match=r"compare\.volumes needs ground truth of the volume 'bare'"):
        validate({**values, "compare": compare})


CHUNK = r"agglomerate\.chunk \(32, 32, 64\) must be a multiple of %s\.block .*'tune' of \(32, 64, 64\)"


def test_a_chunk_of_parts_of_blocks_is_refused_where_the_extent_is_known(values):
    values["agglomerate"]["chunk"] = [32, 32, 64]  # half of a block of fragments along y
    with pytest.raises(ConfigError, match=CHUNK % "fragments"):
        validate(values)
    values["fragments"]["block"], values["edges"]["block"] = [32, 32, 32], [32, 64, 32]
    with pytest.raises(ConfigError, match=CHUNK % "edges"):
        validate(values)
    values["agglomerate"]["engine"] = "waterz"  # takes the volume in one chunk
    validate(values)


@pytest.mark.parametrize("teaching", [{}, {"instances": "segmentation"}])
def test_a_chunk_is_refused_only_for_what_is_segmented(values, teaching):
    values["agglomerate"]["chunk"] = [40, 64, 64]  # covers `tune`, but cuts blocks of `train`, of 48 voxels
    values["fragments"]["block"] = values["edges"]["block"] = [32, 64, 64]
    values["models"]["student"]["train"]["teaching"] = teaching
    if not teaching:
        validate(values)
        return
    with pytest.raises(ConfigError, match=r"chunk \(40, 64, 64\) .* volume 'train' of \(48, 64, 64\)"):
        validate(values)


def test_a_chunk_is_not_refused_where_only_the_file_knows_the_extent(values):
    values["agglomerate"]["chunk"] = [40, 64, 64]
    source = {"raw": "a.zarr", "labels": "b.zarr"}
    values["volumes"]["tune"] = source
    validate(values)
    values["volumes"]["tune"] = source | {"roi": {"shape": [41, 64, 64]}}
    with pytest.raises(ConfigError, match=r"cover the volume 'tune' of \(41, 64, 64\)"):
        validate(values)
    values["volumes"]["tune"] = source | {"roi": {"shape": [40, 64, 64]}}
    validate(values)


@given(*[st.tuples(*[st.integers(1, 12)] * 3)] * 4)
def test_the_configuration_accepts_what_the_tree_accepts(chunk, fragment, edge, shape):
    try:
        layout(shape, chunk, fragment, edge)
        fits = True
    except ShapeError:
        fits = False
    assert fits == all(fits_or_covers(chunk, block, shape) for block in (fragment, edge))


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(MissingError, match="examples are in "):
        load(tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"a\.yaml is not valid YAML: [^\"]* in line 1, column 5"):
        load(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match="must hold a mapping"):
        load(tmp_path / "a.yaml")


def test_sections_travel_as_json():
    options = PredictOptions(block=(64, 64, 64), tile=(32, 32, 32))
    task = PredictTask(raw="raw.json", model="model.json", manifest="affinities.json", options=options)
    assert PredictTask.model_validate_json(task.model_dump_json()) == task
    with pytest.raises(ValidationError, match="tile"):
        PredictTask.model_validate({**task.model_dump(), "options": {"tile": [0, 1, 1]}})


def test_a_term_that_is_switched_off_may_begin_when_it_likes() -> None:
    terms = [{"name": "affinity"}, {"name": "soft_affinity", "start": 12}]
    values = distilled(terms=terms, distil=False)
    del values["compare"]
    assert not validate(values).models["student"].train.teachers
    with pytest.raises(ConfigError, match="would never act"):
        validate(distilled(terms=terms))


def distilled(**changes: Any) -> dict[str, Any]:
    """config/test.yaml with another training of its student."""
    values = yaml.safe_load((ROOT / "config" / "test.yaml").read_text())
    values["models"]["student"]["train"] = values["models"]["student"]["train"] | changes
    return values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terms": [{"name": "affinity"}, {"name": "fitnets", "level": 7}]}, r"looks at the levels \[7\].*0 to 1"),
        ({"terms": [{"name": "affinity"}, {"name": "at", "levels": [0, -3]}]}, r"levels \[-3\]"),
        ({"terms": [{"name": "affinity"}, {"name": "graph_flow", "fit": 12}]}, "would never act"),
        ({"terms": [{"name": "affinity"}, {"name": "soft_affinity", "start": 12}]}, "would never act"),
        (
            {"terms": [{"name": "affinity"}, {"name": "cirkd", "batch": 0, "memory_start": 12}]},
            "'cirkd' would never act: it begins after 12 of 12 steps; lower its .*`memory_start`",
        ),
        (
            {"terms": [{"name": "affinity"}, {"name": "graph_relation", "taps": [0], "edge": 0, "affinity": 0}]},
            "'graph_relation' would never act: it begins after 50 of 12",
        ),
        (
            {
                "terms": [
                    {"name": "affinity"},
                    {"name": "graph_relation", "taps": ["affinities"], "edge": 0, "affinity": 0},
                ]
            },
            "no part",
        ),
        ({"crop": [32, 32, 31]}, r"multiple of the pooling \[2, 2, 2\]"),
    ],
)
def test_what_terms_cannot_do_is_refused_before_the_teacher_is_trained(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(distilled(**changes))


def test_tiles_that_a_network_does_not_take_are_refused_where_it_predicts() -> None:
    values = distilled()
    values["models"]["deep"] = {**values["models"]["student"], "network": {"kind": "unet", "widths": [2, 4, 4, 4]}}
    values["predict"] = {"block": [32, 32, 32], "tile": [4, 16, 16]}
    assert validate(values)
    values["evaluate"]["models"] = ["deep"]
    message = r"predict\.tile \[4, 16, 16\] must be a multiple of the pooling \[8, 8, 8\] of 'deep'"
    with pytest.raises(ConfigError, match=message):
        validate(values)
    values["evaluate"]["models"] = ["student"]
    values["models"]["student"]["train"] |= {"teacher": "deep", "teaching": {"outputs": "stored"}}
    values["models"]["deep"]["train"] = values["models"]["teacher"]["train"]
    with pytest.raises(ConfigError, match=message):
        validate(values)


@pytest.mark.parametrize("changes", [{"affinity": 0}, {}])
def test_grafts_with_the_ground_truth_need_it(changes: dict[str, Any]) -> None:
    def made(**more: Any) -> dict[str, Any]:
        terms = [{"name": "soft_affinity"}, {"name": "cad", "tap": 0, **changes, **more}]
        values = distilled(volumes=["bare"], terms=terms)
        values["volumes"]["bare"] = {"raw": "bare.zarr"}
        del values["compare"]
        return values

    with pytest.raises(ConfigError, match=r"models\.student\.train needs ground truth of the volume 'bare'"):
        validate(made())
    assert validate(made(target="teacher")).models["student"].train.labels_used is False
    if not changes:
        assert validate(made(graft=0)).models["student"].train.supervised is False


def test_trials_without_a_term_on_the_embedding_have_no_such_head() -> None:
    terms = [{"name": "affinity"}, {"name": "graph_relation"}]
    values = distilled(terms=terms)
    values["models"]["student"]["heads"] = {"embedding": 8}
    values["models"]["teacher"]["heads"] = {"embedding": 8}
    values["models"]["teacher"]["train"] = values["models"]["teacher"]["train"] | {
        "terms": [{"name": "affinity"}, {"name": "embedding"}]
    }
    values["compare"]["methods"] = {"grd": {"terms": [{"name": "graph_relation"}]}}
    found = validate(values).trials
    assert found["alone.seed0"].heads.embedding == 0
    assert found["grd.seed0"].heads.embedding == 8


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("agglomerate", {"score": "quantile75"}),
        ("agglomerate", {"thresholds": [0.1, 0.3]}),
        ("edges", {"long_range": True}),
    ],
)
def test_the_threshold_of_validation_is_of_its_own_agglomeration(values, section, changes):
    del values["evaluate"]["tune_on"], values["compare"]
    values["edges"] = {"histograms": True}
    values["agglomerate"], values["segment"] = {}, {}
    validate(values)
    values[section] = {**values[section], **changes}
    with pytest.raises(ConfigError, match="the threshold is the best one of validation"):
        validate(values)
    values["segment"] = {"threshold": 0.2}
    validate(values)


def test_terms_on_neurons_need_neurons(values):
    values["volumes"]["bare"] = {"raw": "raw.zarr"}
    student = values["models"]["student"]
    student["train"] = {
        **student["train"],
        "volumes": ["bare"],
        "terms": [{"name": "soft_affinity"}, {"name": "ifvd"}],
    }
    del values["compare"]
    with pytest.raises(ConfigError, match=r"the terms \['ifvd'\] look at neurons, but no volume has labels"):
        validate(values)
    student["train"]["teaching"] = {"instances": "segmentation"}
    config = validate(values)
    assert config.unlabelled_of(config.models["student"].train) == ("bare", "train")


def taught_by_a_shipped_one(values: dict[str, Any]) -> dict[str, Any]:
    values = values | {"pretrained": {"teacher": "fib25-teacher"}}
    values["models"] = {name: model for name, model in values["models"].items() if name != "teacher"}
    return values


PRETRAINED = {
    "unknown name": (lambda v: v["pretrained"].update(other="fib25-x"), "pretrained.other: no network 'fib25-x' comes"),
    "name of both": (lambda v: v["pretrained"].update(student="fib25-m"), r"the names \['student'\] are given twice"),
    "name of a folder": (lambda v: v["pretrained"].update(logs="fib25-m"), r"\['logs'\] are folders of the results"),
    "nothing at all": (lambda v: v.update(pretrained={}, models={}), "no network is named: give `models`"),
}


@pytest.mark.parametrize("mistake", PRETRAINED)
def test_pretrained_networks_are_named_like_models(values: dict[str, Any], mistake: str) -> None:
    values = taught_by_a_shipped_one(values)
    assert validate(values).own_teachers("student") == ("teacher",)
    change, message = PRETRAINED[mistake]
    change(values)
    with pytest.raises(ConfigError, match=message):
        validate(values)


def test_a_pretrained_network_needs_a_threshold_that_somebody_chose(values: dict[str, Any]) -> None:
    values = taught_by_a_shipped_one(values) | {"models": {}}
    values.pop("compare")
    values |= {"agglomerate": {}, "segment": {}}
    values["evaluate"] |= {"models": ["teacher"], "tune_on": None}
    validate(values)  # its card says one
    with pytest.raises(ConfigError, match="on the card of the network 'teacher' was chosen with other options"):
        validate(values | {"fragments": values["fragments"] | {"watershed": {"method": "mutex"}}})
    values["pretrained"]["teacher"] = "somewhere/model.safetensors"  # which need not be there yet
    with pytest.raises(ConfigError, match="nobody knows a threshold of the network 'teacher', which is a file"):
        validate(values)
    validate(values | {"segment": {"threshold": 0.5}})


def test_a_pretrained_teacher_of_neurons_needs_a_threshold_too(values: dict[str, Any]) -> None:
    values = taught_by_a_shipped_one(values)
    values.pop("compare")
    values |= {"agglomerate": {}, "segment": {}}
    values["evaluate"] |= {"models": ["student"], "tune_on": None}
    values["volumes"]["more"] = {"phantom": {"shape": [48, 64, 64], "seed": 3}}
    terms = [{"name": "affinity"}, {"name": "soft_affinity"}, {"name": "graph_relation", "taps": ["affinities"]}]
    teaching = {"outputs": "stored", "instances": "segmentation"}
    values["models"]["student"]["train"] |= {"teaching": teaching, "terms": terms, "unlabelled": ["more"]}
    validate(values)
    values["pretrained"]["teacher"] = "somewhere/model.safetensors"
    with pytest.raises(ConfigError, match="nobody knows a threshold of the network 'teacher', which is a file"):
        validate(values)


def test_a_threshold_beyond_the_agglomeration_is_refused(values: dict[str, Any]) -> None:
    values["segment"]["threshold"] = 0.85
    with pytest.raises(ConfigError, match=r"segment.threshold 0.85 is above the last one of agglomerate.*, 0.8,"):
        validate(values)
