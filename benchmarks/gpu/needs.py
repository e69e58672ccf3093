"""Imports of the jobs, read from the sources: kdseg but its reports, benchmarks/gpu, and tests/gpu.

Sources are parsed, not run: most of kdseg imports its libraries inside functions, where running it would miss them.
`pack.py --check` runs the imports.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from job import ROOT
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

DISTRIBUTIONS = {"cc3d": "connected-components-3d", "yaml": "pyyaml"}
"""Whose name is not that of the module."""
LEFT_OUT = ("report", "cli/run.py", "cli/progress.py")
"""Parts of kdseg that no job enters: what draws pages is larger than all the rest, and the workflow runs the jobs."""
PLUGINS = {"pytest_timeout": "pytest-timeout", "pytest_benchmark": "pytest-benchmark"}
"""Of pytest, imported by nothing: options in pyproject.toml are theirs, and pytest refuses those it does not know."""


def imported(root: Path = ROOT) -> set[str]:
    """Return the top-level modules that the jobs import, without those of Python and of this repository."""
    folders = (root, *(root / name for name in ("tests", "tests/gpu", "benchmarks", "benchmarks/gpu")))
    queue = _sources(root)
    seen, names = set(queue), set[str]()
    while queue:
        for name in _imports(queue.pop()):
            if own := next((path for folder in folders if (path := _own(folder, name))), None):
                if own not in seen:
                    seen.add(own)
                    queue.append(own)
            elif name not in sys.stdlib_module_names:
                names.add(name)
    return names


def own_modules(root: Path = ROOT) -> list[str]:
    """Return the names of all modules of kdseg that jobs may enter."""
    found = (path.relative_to(root).with_suffix("") for path in sorted(_room_sources(root)))
    names = (".".join(path.parts).removesuffix(".__init__") for path in found)
    return [name for name in names if not name.endswith(".__main__")]


def required(extras: tuple[str, ...] = (), root: Path = ROOT) -> tuple[list[Requirement], list[str]]:
    """Return the requirements of what is imported, and the modules that only extras which were not asked for have.

    A module that pyproject.toml does not name comes with something it names, or is one that a job needs beside kdseg.

    Args:
        extras: of kdseg, e.g. ``monai``.
        root: the repository.

    Returns:
        The requirements, with the bounds of pyproject.toml where it has some. The modules, by name.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    listed = project["optional-dependencies"]
    if unknown := sorted(set(extras) - set(listed)):
        sys.exit(f"got the extra {unknown[0]!r}, expected one of {', '.join(listed)}")
    bounds: dict[NormalizedName, Requirement] = {}
    for group in ("test", *extras):
        bounds |= _by_name(listed[group])
    bounds |= _by_name(project["dependencies"])
    optional = {name for group in listed if group != "test" for name in _by_name(listed[group])} - set(bounds)
    modules = {name: canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in imported(root)}
    wanted = {canonicalize_name(name) for name in PLUGINS.values()} | set(modules.values())
    needs = [bounds.get(name, Requirement(name)) for name in sorted(wanted - optional)]
    return needs, sorted(module for module, name in modules.items() if name in optional)


def _sources(root: Path) -> list[Path]:
    found = [path for folder in ("benchmarks/gpu", "tests/gpu") for path in (root / folder).rglob("*.py")]
    return [*_room_sources(root), *found, root / "tests" / "conftest.py"]


def _room_sources(root: Path) -> list[Path]:
    left_out = [root / "kdseg" / part for part in LEFT_OUT]
    return [path for path in (root / "kdseg").rglob("*.py") if not any(map(path.is_relative_to, left_out))]


def _own(folder: Path, name: str) -> Path | None:
    places = (folder / f"{name}.py", folder / name / "__init__.py")
    return next((path for path in places if path.exists()), None)


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]


def _by_name(lines: list[str]) -> dict[NormalizedName, Requirement]:
    return {canonicalize_name(need.name): need for need in map(Requirement, lines)}
