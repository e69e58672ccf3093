"""The lists of dependencies agree, and the documents name what exists."""

import tomllib

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
