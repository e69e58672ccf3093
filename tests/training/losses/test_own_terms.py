"""Terms of other packages, which join by an entry point."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import kdseg

OPTIONS = """
from typing import ClassVar, Literal
from kdseg.config.terms import DistillationSection

class HuberOptions(DistillationSection):
    term: ClassVar[str] = "mine.terms:HuberTerm"
    name: Literal["{name}"] = "{name}"
    delta: float = 1.0

    @property
    def taps_used(self):
        return ("affinities",)

nothing = 3
"""
TERM = """
from torch.nn.functional import huber_loss
from kdseg.training.losses import Term

class HuberTerm(Term):
    def __init__(self, options, context):
        super().__init__()
        self.delta = options.delta

    def value(self, student, teacher, batch):
        ours, theirs = student.logits["affinities"].float(), teacher.logits["affinities"].float()
        return huber_loss(ours, theirs, delta=self.delta)
"""
PROGRAM = """
import torch
from term_cases import CONTEXT, OURS, THEIRS, make_batch, outputs
from kdseg.config.networks import TrainOptions
from kdseg.training.losses import build_terms
terms = [{"name": "affinity"}, {"name": "mine_huber", "delta": 2.0, "weight": 0.5}]
options = TrainOptions(volumes=["a"], validate_on="a", teacher="t", terms=terms)
built = build_terms(options.active_terms, CONTEXT)
student, teacher = outputs(1, OURS), outputs(2, THEIRS)
found = built["mine_huber"](student, teacher, make_batch())
a, b = student.logits["affinities"], teacher.logits["affinities"]
print(type(built["mine_huber"]).__module__, torch.equal(found, torch.nn.functional.huber_loss(a, b, delta=2.0)))
"""
EACH_FIRST = """
import os, pkgutil, sys
from importlib import import_module
import torch  # once for all children
found = pkgutil.walk_packages([sys.argv[1]], "kdseg.", onerror=print)
packages = [module.name for module in found if module.ispkg]
for name in [name for name in sys.modules if name.startswith("kdseg")]:
    del sys.modules[name]
for name in packages:
    child = os.fork()
    if not child:
        import_module(name)
        os._exit(0)
    print(name, os.waitpid(child, 0)[1])
"""


def installed(folder: Path, target: str, name: str = "mine_huber") -> dict[str, str]:
    """Lay out a package as pip installs it; return the environment that finds it."""
    package, info = folder / "mine", folder / "mine-1.0.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").touch()
    (package / "options.py").write_text(OPTIONS.format(name=name))
    (package / "terms.py").write_text(TERM)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[kdseg.terms]\nhuber = {target}\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}


@pytest.mark.slow
def test_a_term_of_another_package_is_trained(tmp_path: Path) -> None:
    environment = installed(tmp_path, "mine.options:HuberOptions")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split() == ["mine.terms", "True"], done.stderr


@pytest.mark.slow
def test_such_a_package_may_be_imported_first(tmp_path: Path) -> None:
    environment = installed(tmp_path, "mine.options:HuberOptions")
    program = f"import mine.options\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split() == ["mine.terms", "True"], done.stderr


@pytest.mark.slow
def test_any_package_of_kdseg_may_be_imported_first() -> None:
    arguments = [sys.executable, "-c", EACH_FIRST, str(Path(kdseg.__file__).parent)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    codes = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert {"kdseg.config", "kdseg.training.losses", "kdseg.volumes.phantom"} <= codes.keys(), done.stderr
    assert set(codes.values()) == {"0"}, (codes, done.stderr)


@pytest.mark.parametrize(
    ("target", "name", "message"),
    [
        (
            "mine.options:nothing",
            "mine_huber",
            "of the group kdseg.terms is 3: expected a subclass of",
        ),
        ("mine.options:HuberOptions", "cwd", "two terms are called 'cwd'"),
        ("mine.gone:HuberOptions", "mine_huber", "of the package mine"),
    ],
)
def test_what_is_no_term_is_refused(tmp_path: Path, target: str, name: str, message: str) -> None:
    environment = installed(tmp_path, target, name)
    program = "import kdseg.config; kdseg.config.schema()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
