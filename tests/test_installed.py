"""A wheel, installed, runs the workflow without a clone of the repository."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest
from workflow import ROOT

PROJECT = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "kdseg")
WORKFLOW = ("Snakefile", "rules", "envs", "profiles", "config")


def call(*command, cwd, check=True):
    """Return what a command prints, run without the environment of the tests: neither its Python nor its kdseg."""
    alone = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    alone |= {"PATH": os.defpath, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=cwd, env=alone, check=False)
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in (*PROJECT, *WORKFLOW):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, source / name)
    offline = ("--no-deps", "--no-index", "--disable-pip-version-check")
    call(sys.executable, "-m", "pip", "wheel", *offline, "--no-build-isolation", "-w", folder, source, cwd=folder)
    (made,) = folder.glob("kdseg-*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A virtual environment with the wheel; of this one it sees all but the kdseg of the clone."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    offline = ("--no-deps", "--no-index", "--disable-pip-version-check")
    call(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", *offline, wheel, cwd=folder)
    places = {"base": str(folder), "platbase": str(folder)}
    # a path, whose own *.pth, of the clone, are not read
    Path(sysconfig.get_path("purelib", vars=places), "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


@pytest.mark.slow
def test_a_wheel_holds_all_files_of_the_workflow(wheel):
    tops = [ROOT / name for name in WORKFLOW]
    files = [one for top in tops for one in (top, *top.rglob("*")) if one.is_file() and one.name != "mine.yaml"]
    with ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if name.startswith("kdseg/workflow/")}
    assert held == {f"kdseg/workflow/{one.relative_to(ROOT)}": one.read_bytes() for one in files}


@pytest.mark.slow
def test_an_installed_kdseg_runs_the_workflow_in_any_folder(installed, tmp_path):
    kdseg = installed / "bin" / "kdseg"
    (examples,) = installed.glob("lib/python*/site-packages/kdseg/workflow/config")
    assert f"examples are in {examples}" in call(kdseg, "run", "test.yaml", cwd=tmp_path, check=False)
    shutil.copyfile(examples / "test.yaml", tmp_path / "test.yaml")
    listed = call(kdseg, "run", "test.yaml", "--cores", "1", "--", "--dry-run", cwd=tmp_path)
    assert "would run report results/test/report.html" in listed
    assert not (tmp_path / "results").exists()
    labels = "results/test/volumes/tune/labels.json"
    text = call(kdseg, "run", "test.yaml", labels, "--cores", "1", cwd=tmp_path)
    assert f"finished convert {labels}" in text
    assert "1 of 1 jobs done" in text
    assert (tmp_path / labels).is_file()
    (log,) = tmp_path.glob(".snakemake/log/*.log")
    assert f"Snakefile: {examples.parent / 'Snakefile'}\n" in log.read_text()
