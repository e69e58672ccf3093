"""Whether what was packed can be installed and imported: called by `pack.py --check`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from job import CARRIED, ROOT
from needs import PLUGINS, imported, own_modules, required
from wheels import modules_of, pip

TRY = """
import importlib, json, sys
failed = {}
for name in json.load(sys.stdin):
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = [getattr(error, "name", None) or "", f"{type(error).__name__}: {error}"]
print(json.dumps(failed))
"""


def check(python: str, facts: dict[str, Any], torch: str | None) -> int:
    """Install the packed wheels as the bare machine does, import what the jobs import, and print what fails.

    What the machine has already comes from the package index, in a clean virtual environment. torch is left out
    unless it is given: an index without builds for the CPU serves gigabytes. Modules that import it are then not
    checked, and named.

    Args:
        python: an interpreter of the target's version.
        facts: the manifest of the pack.
        torch: a requirement, e.g. ``torch==2.11.0``.

    Returns:
        The exit status: 1 if something could not be imported.
    """
    if shutil.which(python) is None:
        sys.exit(f"--check: there is no interpreter {python}")
    version = subprocess.run([python, "-c", _VERSION], capture_output=True, text=True, check=True).stdout.strip()
    if version != facts["python"]:
        sys.exit(f"--check: {python} is Python {version}, expected {facts['python']}, which the pack is for")
    with tempfile.TemporaryDirectory() as scratch:
        there, site = Path(scratch) / "there", Path(scratch) / "site"
        subprocess.run([python, "-m", "venv", "--without-pip", str(there)], check=True)
        inside = str(there / "bin" / "python")
        exact = [f"{name}=={its}" for name, its in facts["there"].items() if name != "torch"]
        _install(inside, [*exact, *([torch] if torch else [])], "--only-binary=:all:")
        wheels = sorted((CARRIED / "wheels").glob("*.whl"))
        options = ("--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "--target", str(site))
        _install(inside, list(map(str, wheels)), *options)
        names = _names(facts, wheels)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])}
        done = subprocess.run(
            [inside, "-c", TRY], input=json.dumps(names), capture_output=True, text=True, env=environment, check=False
        )
    if done.returncode:
        sys.exit(f"--check: the imports ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return _say(names, json.loads(done.stdout.splitlines()[-1]), torch is not None)


_VERSION = "import sys; print(f'{sys.version_info[0]}.{sys.version_info[1]}')"


def _install(python: str, needs: list[str], *options: str) -> None:
    if not needs:
        return
    done = pip("--python", python, "install", "--quiet", *options, *needs)
    if done.returncode:
        sys.exit(f"--check: pip could not install: {done.stderr.strip()[-500:]}")


def _names(facts: dict[str, Any], wheels: list[Path]) -> list[str]:
    """Return the modules to import: those of the jobs, of the wheels, and of kdseg."""
    _, optional = required(tuple(facts["extras"]))
    packed = {name for wheel in wheels for name in modules_of(wheel)}
    return [*sorted({*imported(), *PLUGINS, *packed} - set(optional)), *own_modules()]


def _say(names: list[str], failed: dict[str, list[str]], with_torch: bool) -> int:
    unchecked = [name for name, (lacks, _) in failed.items() if not with_torch and lacks.partition(".")[0] == "torch"]
    broken = {name: why for name, (_, why) in failed.items() if name not in unchecked}
    print(f"imported: {len(names) - len(failed)} of {len(names)} modules")
    if unchecked:
        print(f"not checked, for want of torch: {len(unchecked)} modules: {', '.join(unchecked)}")
    for name, why in broken.items():
        print(f"cannot be imported: {name}: {why}")
    return 1 if broken else 0
