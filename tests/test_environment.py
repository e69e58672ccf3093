"""The lists of dependencies agree, and the documents name what exists."""

import runpy
import subprocess
import sys
import tomllib

import pytest
import yaml
from workflow import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_conda_environment_lists_the_dependencies():
    environment = yaml.safe_load((ROOT / "envs" / "kdseg.yaml").read_text())
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip == PROJECT["dependencies"]


def test_every_dependency_is_pinned():
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    extras = [one for group in PROJECT["optional-dependencies"].values() for one in group]
    for requirement in [*PROJECT["dependencies"], *extras]:
        name = requirement.split(">")[0].split("[")[0].lower()
        assert name == "kdseg" or name in pinned, f"{name} is not in constraints.txt"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MIT", False),
        ("Apache-2.0 OR GPL-3.0-only", False),
        ("LGPL-3.0-or-later", False),
        ("BSD-3-Clause AND (MIT OR Apache-2.0)", False),
        ("", True),
        ("GPL-3.0-only", True),
        ("MIT AND AGPL-3.0-only", True),
        ("BSD License; GNU General Public License (GPL)", True),
        ("no copies are permitted", True),
        ("GPLv3 and MIT", True),
        ("GPL-3.0-only or MIT", False),
        ("AGPL-3.0 with MIT parts", True),
        ("GNU General Public License, BSD", True),
        ("BSL-1.1", True),
        ("BSL-1.0", False),
        ("Boost Software License 1.0", False),
    ],
)
def test_licences_that_are_refused(text, expected):
    assert runpy.run_path(str(ROOT / ".ci" / "dependencies.py"))["refused"](text) == expected


def test_what_is_needed_has_licences_that_are_allowed():
    run = subprocess.run([sys.executable, ROOT / ".ci" / "dependencies.py"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert "\nzarr " in run.stdout
    assert "\nyarl " in run.stdout  # which kdseg itself does not name
