"""Packing for a machine without a package index: what is chosen, what is left out, what is refused."""

import subprocess
import sys
import zipfile

import check_pack
import h5py
import needs
import numpy as np
import pack
import pytest
import wheels
from packaging.requirements import Requirement

PYTHON = "3.12"


def wheel(folder, name, version, *requires, tag="py3-none-any", modules=("__init__.py",)):
    """Write a real wheel, small."""
    stem = f"{name}-{version}"
    path = folder / f"{stem}-{tag}.whl"
    head = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in requires)]
    with zipfile.ZipFile(path, "w") as file:
        for module in modules:
            file.writestr(f"{name}/{module}", "")
        file.writestr(f"{stem}.dist-info/METADATA", "\n".join(["Metadata-Version: 2.1", *head, ""]))
        file.writestr(f"{stem}.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        file.writestr(f"{stem}.dist-info/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that stands for the package index: pip is told of no other."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def target(**have):
    return wheels.Target(PYTHON, wheels.PLATFORMS, have)


def resolve(tmp_path, names, there, pins=""):
    constraints, scratch = tmp_path / "pins.txt", tmp_path / "scratch"
    constraints.write_text(pins)
    scratch.mkdir()
    return wheels.resolve([Requirement(name) for name in names], there, constraints, scratch)


@pytest.mark.parametrize(("version", "assumed"), [("2.0", "2.0"), (None, "3.0")])
def test_what_is_there_is_left_out_with_what_only_it_needs(version, assumed, tmp_path, index):
    wheel(index, "job", "1", "lib>=2", "net", "deep")
    wheel(index, "lib", "2.1", "below")
    wheel(index, "lib", "3.0", "below")
    wheel(index, "net", "1", "lib<4")
    wheel(index, "deep", "1")
    wheel(index, "below", "1")  # lib needs it: the machine that has lib has it
    found = resolve(tmp_path, ["job"], target(lib=version))
    assert found.packed == {"job": "1", "net": "1", "deep": "1"}
    assert found.there == {"lib": assumed}
    assert found.unserved == []


def test_what_is_there_decides_which_version_goes_with_it(tmp_path, index):
    wheel(index, "old", "1", "lib<3")
    wheel(index, "old", "2", "lib>=3")
    assert resolve(tmp_path, ["old"], target(lib="2.0")).packed == {"old": "1"}


@pytest.mark.parametrize(("need", "who"), [("job", "job 1"), ("lib>=3", "kdseg")])
def test_what_is_there_and_does_not_fit_is_refused(need, who, tmp_path, index):
    wheel(index, "job", "1", "lib>=3")
    wheel(index, "lib", "3")
    with pytest.raises(SystemExit, match=rf"{who} needs lib>=3; there is lib 2.0: leave it out of --have"):
        resolve(tmp_path, [need], target(lib="2.0"))


def test_pins_hold_and_give_way_to_what_is_there(tmp_path, index):
    for version in ("1", "2", "3"):
        wheel(index, "job", version, "lib")
        wheel(index, "lib", version)
    pins = "job==2 ; python_full_version >= '3.12'\njob==1 ; python_full_version < '3.12'\nlib==1\n"
    found = resolve(tmp_path, ["job"], target(lib="3"), pins)
    assert found.packed == {"job": "2"}
    assert found.there == {"lib": "3"}


def test_markers_are_those_of_the_target(tmp_path, index):
    ours, theirs = f"{sys.version_info[0]}.{sys.version_info[1]}", "3.97"
    wheel(index, "job", "1", f'new ; python_version > "{ours}"', f'old ; python_version <= "{ours}"', "extra[more]")
    wheel(index, "new", "1", "newer")
    wheel(index, "newer", "1")
    wheel(index, "old", "1")
    wheel(index, "extra", "1", 'more ; extra == "more"', 'unasked ; extra == "other"')
    wheel(index, "more", "1")
    found = resolve(tmp_path, ["job"], wheels.Target(theirs, wheels.PLATFORMS, {}))
    assert sorted(found.packed) == ["extra", "job", "more", "new", "newer"]


@pytest.mark.parametrize("pins", ["", "binary==3\n"])
def test_a_package_without_a_wheel_is_named_and_the_others_are_packed(pins, tmp_path, index):
    wheel(index, "job", "1", "lib", "binary!=4,>=2")
    wheel(index, "lib", "1")
    wheel(index, "binary", "3", tag="cp39-cp39-manylinux_2_17_x86_64")
    found = resolve(tmp_path, ["job", "absent"], target(), pins)
    assert sorted(found.unserved) == ["absent", "binary"]
    assert found.packed == {"job": "1", "lib": "1"}


def test_one_wheel_of_each_is_fetched_for_the_target(tmp_path, index):
    wheel(index, "binary", "1", tag="cp312-cp312-manylinux_2_34_x86_64")
    wheel(index, "binary", "1", tag="cp311-cp311-manylinux_2_34_x86_64")
    wheel(index, "binary", "2", tag="cp312-cp312-manylinux_2_34_x86_64")
    wheels.download({"binary": "1"}, target(), tmp_path / "got")
    assert [path.name for path in (tmp_path / "got").iterdir()] == ["binary-1-cp312-cp312-manylinux_2_34_x86_64.whl"]


def test_the_have_list_is_read_as_pip_writes_it(tmp_path):
    file = tmp_path / "have.txt"
    file.write_text("Torch==2.11.0+cu130\n# by hand\nlazy_loader\nlocal @ file:///x/y.whl\n\n")
    assert wheels.read_have(file) == {"torch": "2.11.0+cu130", "lazy-loader": None, "local": None}
    file.write_text("Package    Version\n")
    with pytest.raises(SystemExit, match=r"got 'Package    Version', expected NAME==VERSION"):
        wheels.read_have(file)


def test_what_is_needed_is_what_the_sources_import(tmp_path):
    """Also inside functions, and in tests that need a GPU, but not in other tests."""
    for name, text in {
        "kdseg/__init__.py": "",
        "kdseg/a.py": "import os, zarr.codecs\nfrom kdseg import b\ndef f():\n    import monai.networks, yaml",
        "benchmarks/gpu/jobs/rates.py": "from job import Rows\nimport extra_of_a_job",
        "benchmarks/gpu/job.py": "import timings",
        "benchmarks/timings.py": "",
        "kdseg/report/page.py": "import altair",
        "tests/conftest.py": "import pytest",
        "tests/helper.py": "import hypothesis",
        "tests/gpu/test_on_gpu.py": "import h5py, helper",
        "tests/test_else.py": "import skimage",
        "pyproject.toml": '[project]\ndependencies = ["zarr>=3", "snakemake", "pyyaml>=6", "h5py"]\n'
        '[project.optional-dependencies]\nmonai = ["monai>=1.4"]\ntest = ["pytest>=8", "hypothesis>=6"]',
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found, optional = needs.required((), tmp_path)
    of_tests = ["hypothesis>=6", "pytest>=8", "pytest-benchmark", "pytest-timeout"]
    assert [str(need) for need in found] == ["extra-of-a-job", "h5py", *of_tests, "pyyaml>=6", "zarr>=3"]
    assert optional == ["monai"]
    assert "monai>=1.4" in [str(need) for need in needs.required(("monai",), tmp_path)[0]]
    assert needs.own_modules(tmp_path) == ["kdseg", "kdseg.a"]


def test_the_jobs_need_no_workflow():
    names = {need.name for need in needs.required()[0]}
    assert {"torch", "zarr", "distributed", "waterz", "pytest-timeout"} <= names
    assert "snakemake" not in names


def test_a_pack_that_is_too_big_is_refused_in_one_line(tmp_path):
    (tmp_path / "data").mkdir()
    for name, size in {"a": 10, "b": 3000, "c": 2000}.items():
        (tmp_path / "data" / name).write_bytes(bytes(size))
    files = pack.listing(tmp_path)
    assert pack.over(files, tree=990, limit=6000) is None
    line = pack.over(files, tree=991, limit=6000)
    assert line is not None
    assert "\n" not in line
    assert line.endswith("largest: data/b 0.0, data/c 0.0, data/a 0.0")


def test_the_tree_is_what_git_does_not_ignore(tmp_path):
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text("/build/\n")
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "x").write_bytes(bytes(500))
    (tmp_path / "new").write_bytes(bytes(30))
    assert pack.tree_bytes(tmp_path) == 30 + len("/build/\n")


def test_a_crop_says_where_it_lies(tmp_path):
    whole, part = tmp_path / "whole.h5", tmp_path / "part.h5"
    raw = np.arange(6 * 8 * 10, dtype=np.uint16).reshape(6, 8, 10)
    with h5py.File(whole, "w") as file:
        file.attrs["source"] = "somewhere"
        volume = file.create_dataset("volumes/raw", data=raw)
        volume.attrs.update(resolution=np.array([10, 20, 30]), offset=np.array([5, 0, 0]), axes="zyx")
    pack.cut(whole, part, 4)
    with h5py.File(part) as file:
        volume = file["volumes/raw"]
        np.testing.assert_array_equal(volume[()], raw[1:5, 2:6, 3:7])
        assert (volume.dtype, volume.compression, volume.attrs["axes"]) == (raw.dtype, "gzip", "zyx")
        np.testing.assert_array_equal(volume.attrs["offset"], [5 + 10, 40, 90])
        np.testing.assert_array_equal(volume.attrs["resolution"], [10, 20, 30])
        assert file.attrs["source"] == "somewhere; cropped to the middle 4^3"


def test_the_volume_for_tests_stays(tmp_path):
    source, to = tmp_path / "source", tmp_path / "to"
    source.mkdir()
    for name in (*pack.WHOLE, "fib25_test.h5"):
        (source / name).write_bytes(b"1")
    with h5py.File(source / pack.CROPPED, "w") as file:
        volume = file.create_dataset("volumes/raw", data=np.zeros((4, 4, 4), np.uint8))
        volume.attrs.update(resolution=[10, 10, 10], offset=[0, 0, 0])
    pack.pack_data(source, to, 8)
    expected = ["LICENSE_fib25_CC-BY.txt", "fib25_dev.h5", "fib25_raw_400.h5", "fib25_tiny.h5"]
    assert sorted(path.name for path in to.iterdir()) == expected


def test_without_data_it_says_so(tmp_path, capsys):
    pack.pack_data(tmp_path / "absent", tmp_path / "to", 8)
    assert "packed without real data: there is no" in capsys.readouterr().out


def test_weights_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.safetensors").write_bytes(b"1")
    with pytest.raises(SystemExit, match=r"two weights named x.safetensors, expected names that differ"):
        pack.pack_models([tmp_path / "a" / "x.safetensors", tmp_path / "b" / "x.safetensors"], tmp_path / "to")


def test_the_modules_of_a_wheel(tmp_path):
    path = wheel(tmp_path, "some", "1", modules=("__init__.py", "inner.py"))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("alone.cpython-312-x86_64-linux-gnu.so", "")
        file.writestr("_private.py", "")
        file.writestr("space/part/__init__.py", "")
    assert wheels.modules_of(path) == ["alone", "some"]


def test_the_check_tells_what_is_missing_from_what_has_not_been_checked(tmp_path, monkeypatch, capfd):
    (tmp_path / "wheels").mkdir()
    wheel(tmp_path / "wheels", "packed", "1")
    monkeypatch.setattr(check_pack, "CARRIED", tmp_path)
    facts = {"python": f"{sys.version_info[0]}.{sys.version_info[1]}", "there": {}, "extras": []}
    assert check_pack.check(sys.executable, facts, None) == 1
    text = capfd.readouterr().out
    assert "cannot be imported: zarr: ModuleNotFoundError: No module named 'zarr'" in text
    unchecked = text.partition("for want of torch: ")[2].partition("\n")[0]
    assert "modules: torch, kdseg" in unchecked
    assert "zarr" not in unchecked
    assert "cannot be imported: packed" not in text
    assert "cannot be imported: kdseg.errors" not in text


def test_the_check_takes_the_python_that_was_packed_for():
    with pytest.raises(SystemExit, match=r"is Python 3.\d+, expected 3.2, which the pack is for"):
        check_pack.check(sys.executable, {"python": "3.2"}, None)
