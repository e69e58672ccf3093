"""`sections: true` alone makes a configuration of 2-D images; what looks beyond a section is refused in one line."""

import json

import pytest
import yaml
from workflow import ROOT

from kdseg.config import validate
from kdseg.errors import ConfigError


@pytest.fixture
def values():
    return {
        "sections": True,
        "volumes": {"a": {"raw": "a", "labels": "b", "voxel_size": [1, 1, 1]}},
        "models": {
            name: {"network": {"kind": "unet", "widths": [2, 4, 8]}, "train": {"volumes": ["a"], "validate_on": "a"}}
            for name in ("teacher", "student")
        },
        "evaluate": {"models": ["student"], "volumes": ["a"], "tune_on": "a"},
    }


def test_one_statement_is_enough(values):
    config = validate(values)
    assert not any(z for z, _, _ in config.offsets)
    assert config.offsets[:2] == ((0, -1, 0), (0, 0, -1))
    for model in config.models.values():
        assert {step[0] for step in model.network.steps} == {kernel[0] for kernel in model.network.level_kernels} == {1}
        assert model.train.crop[0] == 1
        assert model.train.augment.missing_section == model.train.augment.misaligned_section == 0
        assert model.train.augment.elastic == 0.2  # as elsewhere
    assert config.predict.tile[0] == 1
    assert config.fragments.halo[0] == 0
    assert validate(json.loads(config.model_dump_json())) == config


def test_what_is_said_stays_as_it_is(values):
    values["storage"] = {"shard": [2, 256, 256]}
    values["fragments"] = {"halo": [0, 5, 5]}
    values["models"]["student"]["network"]["kernels"] = [[1, 5, 5]] * 3
    config = validate(values)
    assert (config.storage.chunk, config.storage.shard) == ((1, 256, 256), (2, 256, 256))
    assert config.fragments.halo == (0, 5, 5)
    assert config.models["student"].network.kernels == ((1, 5, 5),) * 3


def test_a_teacher_from_elsewhere_has_no_offset_along_z_either(values):
    steps = [[0, -1, 0], [0, 0, -1]]
    values["offsets"] = steps
    values["teachers"] = {"lab": {"affinities": {"a": "a.zarr"}, "offsets": steps}}
    values["models"]["student"]["train"] |= {
        "teacher": "lab", "teaching": {"outputs": "stored"}, "terms": [{"name": "soft_affinity"}],
    }  # fmt: skip
    assert validate(values).teachers["lab"].offsets == ((0, -1, 0), (0, 0, -1))


def test_without_the_statement_nothing_changes():
    values = yaml.safe_load((ROOT / "config" / "test.yaml").read_text())
    assert validate({**values, "sections": False}) == validate(values)
    assert validate(values).offsets[0] == (-1, 0, 0)


CAD = [{"name": "affinity"}, {"name": "cad", "tap": 0}]
MISTAKES = {
    "offsets": ([[0, -1, 0], [0, 0, -1], [-1, 0, 0]], r"offsets \[\[-1, 0, 0\]\] leave their section: remove them"),
    "predict.tile": ([2, 256, 256], r"predict\.tile \[2, 256, 256\] has more than one section: use \[1, h, w\]"),
    "fragments.halo": ([1, 16, 16], r"fragments\.halo \[1, 16, 16\] reaches into other sections: use \[0, h, w\]"),
    "tune_segmentation": (
        {"regions": [{"volume": "a"}], "halo": [[0, 8, 8], [4, 8, 8]]},
        r"tune_segmentation\.halo \[\[4, 8, 8\]\] reaches into other sections: use \[0, h, w\]",
    ),
    "fragments.premerge": (0.2, r"fragments\.premerge is waterz', which joins voxels along z: remove it"),
    "fragments.watershed": ({"method": "waterz"}, r"fragments\.watershed\.method: waterz is waterz'"),
    "agglomerate.engine": ("waterz", r"agglomerate\.engine: waterz is waterz'"),
    "models.student.network.kernels": ([[1, 3, 3], [3, 3, 3], [1, 3, 3]], r"student: network\.kernels \[\[3, 3, 3\]\]"),
    "models.student.network.downsample": (
        [[1, 2, 2], [2, 2, 2]],
        r"student: network\.downsample \[\[2, 2, 2\]\] pools",
    ),
    "models.student.train.crop": ([2, 64, 64], r"train\.crop \[2, 64, 64\] has more than one section: use \[1, h, w\]"),
    "models.student.train.augment": ({"rotate": "zyx"}, r"rotate 'zyx' turns sections out of their plane: use 'yx'"),
    "models.teacher.train.augment": ({"missing_section": 0.1}, r"missing_section 0\.1 .* set it to 0"),
    "models.student.train": (
        {"volumes": ["a"], "validate_on": "a", "teacher": "teacher", "terms": CAD},
        r"models\.student: the term 'cad' grafts sections .* set its graft to 0",
    ),
    "models.teacher.train": (
        {"volumes": ["a"], "validate_on": "a", "teacher": "student", "terms": [{"name": "affinity"}, {"name": "spkd"}]},
        r"models\.teacher: the term 'spkd' cuts features into \[2, 2, 2\] parts: use \[1, h, w\]",
    ),
    "compare": (
        {"student": "student", "seeds": [0], "methods": {"cad": {"terms": CAD[1:]}}},
        r"compare\.methods\.cad: the term 'cad' grafts sections",
    ),
}


@pytest.mark.parametrize("where", MISTAKES)
def test_what_looks_beyond_a_section_is_refused_in_one_line(values, where):
    validate(values)
    value, message = MISTAKES[where]
    *parents, last = where.split(".")
    inner = values
    for key in parents:
        inner = inner.setdefault(key, {})
    inner[last] = value
    with pytest.raises(ConfigError, match=message) as caught:
        validate(values)
    (line,) = str(caught.value).splitlines()
    assert "since with `sections: true` each z is an image of its own" in line


def test_offsets_without_z_need_the_statement(values):
    del values["sections"]
    values["offsets"] = [[0, -1, 0], [0, 0, -1], [0, -3, 0]]
    with pytest.raises(ConfigError, match=r"first three offsets .*; a stack of images has `sections: true`"):
        validate(values)
    values["sections"] = True
    validate(values)
    values["offsets"].reverse()
    with pytest.raises(ConfigError, match="first two offsets must be one-voxel steps along y and x, in this order"):
        validate(values)
