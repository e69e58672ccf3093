"""Puts the workflow, which lies at the top of the repository, into wheels: to kdseg/workflow."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

TOP = Path(__file__).parent
FILES = ("Snakefile", "rules/*.smk", "envs/*.yaml", "profiles/*/*.yaml", "config/**/*")
MINE = "mine.yaml"  # which git ignores: a configuration of whoever builds


class BuildWithWorkflow(build_py):
    """Copies Python modules, and the files of the workflow; an editable install finds these where they lie."""

    def run(self) -> None:
        """Copy all."""
        super().run()
        if not self.editable_mode:
            for source, target in self._workflow():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return the files that a wheel consists of."""
        return [*super().get_outputs(include_bytecode), *(target for _, target in self._workflow())]

    def _workflow(self) -> list[tuple[str, str]]:
        found = [
            path for pattern in FILES for path in sorted(TOP.glob(pattern)) if path.is_file() and path.name != MINE
        ]
        return [(str(one), str(Path(self.build_lib, "kdseg", "workflow", one.relative_to(TOP)))) for one in found]


setup(cmdclass={"build_py": BuildWithWorkflow})
